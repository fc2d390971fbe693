"""Generated analyses for the pages: comparisons, circuits, evolutions, maps and labels, in the real formats."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd

from tests.ui.synthetic import vocabulary
from workbench.workspace import Workspace


def add_all(ws: Workspace, *, vocab: list[str] | None = None, text: str = "plain") -> None:
    """One result of every kind beside the dictionaries of :func:`tests.ui.synthetic.make_workspace`."""
    vocab = vocab or vocabulary()
    add_matches(ws, "mini-pythia.L2R-8x", "mini-mamba.L2R-8x", vocab)
    add_transplant(ws, "mini-pythia.L2R-8x", "mini-mamba.L2R-8x")
    add_substitution(ws, "mini-mamba.L1W-2x")
    for model, architecture in (("mini-pythia", "transformer"), ("mini-mamba", "mamba")):
        add_circuits(ws, model, architecture, vocab, text)
    add_evolution(ws, "mini-pythia.L1R", vocab, text)
    add_architectures(ws, "two-architectures", vocab)
    for model, kind in (("mini-mamba", "Mamba"), ("mini-pythia", "attention")):
        add_states(ws, model, kind, vocab, text)
    add_map(ws, "mini-pythia.L1R-8x")
    add_labels(ws, "mini-pythia.L2R-8x", text)
    add_trust(ws, "mini-pythia.L1R-8x", text)
    add_graph(ws, "mini-pythia", vocab, text)
    add_doses(ws, "mini-pythia.L1R-8x", text)
    add_scores(ws, "mini-pythia.L2R-8x", text)
    add_claims(ws, text)


def _latents(ws: Workspace, id: str) -> int:
    return len(pd.read_parquet(ws.path("latents", id) / "latents.parquet"))


def add_matches(
    ws: Workspace, a: str, b: str, vocab: list[str], *, sequences: int = 40, ctx: int = 32, seed: int = 0
) -> None:
    """A comparison in which latent i of A and of B read the same tokens, plus noise; baselines are noise."""
    rng = np.random.default_rng(seed)
    n = {a: _latents(ws, a), b: _latents(ws, b)}
    rows = sequences * (ctx - 1)
    meta = {
        "n_tokens": rows,
        "min_firings": 3,
        "level": 0.5,
        "series": ["cross", "shuffle", "neurons", "same-token", "token-conditional"],
        "missing": {"sae seed": "needs another seed"},
    }
    for side, id in (("a", a), ("b", b)):
        meta[side] = {
            "name": id.split(".")[0],
            "model": id.split(".")[0],
            "revision": None,
            "dictionaries": [id],
            "layers": [2],
        }
    rho = {"depth_rank_correlation": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 99}}
    command, numbers = f"workbench compare {a} {b}", {"ab": rho, "ba": rho}
    with ws.create("matches", f"{a}__{b}", command=command, numbers=numbers, metadata=meta) as out:
        common = [rng.choice(rows, size=rng.integers(4, 30), replace=False) for _ in range(max(n.values()))]
        for id in (a, b):
            folder = out / "codes" / id
            folder.mkdir(parents=True)
            chosen = [np.unique(np.concatenate([common[i], rng.choice(rows, 2)])) for i in range(n[id])]
            np.save(folder / "indptr.npy", np.concatenate([[0], np.cumsum([len(c) for c in chosen])]).astype(np.int64))
            np.save(folder / "row.npy", np.concatenate(chosen).astype(np.int32))
            np.save(folder / "value.npy", rng.gamma(2, 1, sum(len(c) for c in chosen)).astype(np.float32) + 0.1)
        np.save(out / "tokens.npy", rng.integers(0, len(vocab), (sequences, ctx)).astype(np.int32))
        np.save(out / "sequences.npy", np.arange(sequences))
        np.save(out / "positions.npy", np.arange(1, ctx))
        (out / "vocab.json").write_text(json.dumps(vocab))
        frames, base = [], []
        for direction, own, other in (("ab", a, b), ("ba", b, a)):
            r = rng.beta(5, 2, n[own])
            r[::19] = np.nan
            partner = pd.Series(np.arange(n[own]) % n[other]).astype("Int64").where(~np.isnan(r))
            fired = rng.integers(3, 400, n[own])
            frames.append(
                pd.DataFrame(
                    {
                        "direction": direction,
                        "dictionary": own,
                        "layer": 2,
                        "latent": np.arange(n[own]),
                        "n_fired": fired,
                        "density": fired / rows,
                        "r": r,
                    }
                ).assign(
                    partner_dictionary=other,
                    partner_layer=2,
                    partner=partner,
                    partner_fired=fired,
                    n_cofire=fired // 2,
                    second_r=r * 0.8,
                    second_dictionary=other,
                    second=partner,
                    null_q99=0.1,
                    matched=r > 0.5,
                    mutual=~np.isnan(r) & (np.arange(n[own]) % 2 == 0),
                    one_to_one_dictionary=other,
                    one_to_one=partner,
                    one_to_one_r=r,
                    even_r=r,
                )
            )
            drawn = [("cross", r), ("shuffle", rng.beta(1, 12, n[own])), ("neurons", rng.beta(2, 4, 64))]
            drawn += [("same-token", rng.beta(3, 3, n[own])), ("token-conditional", rng.beta(2, 5, n[own]))]
            for series, values in drawn:
                base.append(
                    pd.DataFrame(
                        {
                            "direction": direction,
                            "series": series,
                            "layer": 2,
                            "latent": np.arange(len(values)),
                            "n_fired": 9,
                            "r": values,
                        }
                    )
                )
        baselines = pd.concat(base)
        pd.concat(frames).to_parquet(out / "best.parquet", index=False)
        baselines.to_parquet(out / "baselines.parquet", index=False)
        _match_summaries(out, baselines)


def add_transplant(ws: Workspace, a: str, b: str, *, seed: int = 0) -> None:
    """A transplant of every latent of B, in which what partners repair follows r; tables by the product's own code."""
    from workbench.analysis.transplant.tables import tables_of

    rng = np.random.default_rng(seed)
    best = pd.read_parquet(ws.path("matches", f"{a}__{b}") / "best.parquet")
    best = best[(best["direction"] == "ba") & best["r"].notna()].sort_values("r", ascending=False)
    frame = pd.DataFrame({"latent": best["latent"].astype(int), "partner": best["partner"].astype(int), "r": best["r"]})
    frame["r_given_token"], frame["n_fired"] = frame["r"] - 0.2, best["n_fired"]
    frame["cosine"], frame["scale"] = 0.7 * frame["r"], 1.0
    frame["n_sequences"], frame["n_tokens"], frame["kl_ablated"], frame["loss_ablated"] = 16, 2000, 0.01, 0.004
    for arm, share in (
        ("transplant", frame["r"] ** 2),
        ("activation", frame["r"]),
        ("other", 0),
        ("random", -0.6),
        ("ceiling", 0.9),
    ):
        frame[arm] = share + 0.02 * rng.standard_normal(len(frame))
        frame[f"{arm}_low"], frame[f"{arm}_high"] = frame[arm] - 0.1, frame[arm] + 0.1
        frame[f"kl_{arm}"] = frame["kl_ablated"] * (1 - frame[arm])
        frame[f"loss_{arm}"] = frame["loss_ablated"] * (1 - frame[arm])
    for end in ("", "_low", "_high"):
        frame[f"loss_repaired{end}"] = frame[f"transplant{end}"]
    made, numbers = tables_of(frame.reset_index(drop=True), 0.5)
    about = {
        side: {"dictionary": id, "model": id.split(".")[0], "revision": None, "layer": 2}
        for side, id in (("a", a), ("b", b))
    }
    about |= {"matches": f"{a}__{b}", "ceiling": f"partner in {b}.s1", "level": 0.5, "n_sequences": 256}
    about["map"] = {"n_pairs": 300, "ridge": 0.01, "cosine": 0.6}
    command = f"workbench transplant {a} {b}"
    with ws.create("transplants", f"{a}__{b}", command=command, numbers=numbers, metadata=about) as out:
        for name, table in made.items():
            table.to_parquet(out / f"{name}.parquet", index=False)


def add_substitution(ws: Workspace, dictionary: str, *, seed: int = 0) -> None:
    """A substitution in which atoms repair most and controls little; tables by the product's own code."""
    from workbench.analysis.substitution.tables import tables_of

    rng = np.random.default_rng(seed)
    atom, rank = np.repeat(np.arange(8), 12), np.tile([0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 4, 9], 8)
    frame = pd.DataFrame({"atom": atom, "rank": rank, "sequence": 0, "position": 3, "value": 1.0, "norm": 1.0})
    for measure in ("kl", "next", "read"):
        damage = rng.uniform(0.5, 1.5, len(frame))
        frame[f"{measure}_ablated"] = damage
        for arm, left in (
            ("atom", 0.4),
            ("matched", 0.5),
            ("whole", 0.1),
            ("permuted", 1.0),
            ("random", 1.6),
            ("pca", 0.9),
        ):
            frame[f"{measure}_{arm}"] = damage * left * rng.uniform(0.5, 1.5, len(frame))
            frame[f"cosine_{arm}"] = 0.8 if arm == "atom" else 0.1
    frame["shift"], frame["shift_predicted"], frame["shift_product"] = 1.0, 0.9, 0.9
    made, numbers = tables_of(frame)
    about = {"dictionary": dictionary, "model": dictionary.split(".")[0], "revision": None, "site": "L1W"}
    about |= {"kind": "Mamba", "shape": [1, 16, 256], "alive": 200, "n_sequences": 128, "native_moves": 0.0}
    about["window"] = 16
    command = f"workbench substitute {dictionary}"
    with ws.create("substitutions", dictionary, command=command, numbers=numbers, metadata=about) as out:
        for name, table in made.items():
            table.to_parquet(out / f"{name}.parquet", index=False)


def _match_summaries(out: Path, baselines: pd.DataFrame) -> None:
    summary, order, shifts, layers, nulls, depth = [], [], [], [], [], []
    for direction in ("ab", "ba"):
        mean = {}
        for series, part in baselines[baselines["direction"] == direction].groupby("series", sort=False):
            r = part["r"].dropna()
            mean[series] = float(r.mean())
            q = {k: float(r.quantile(p)) for k, p in (("median", 0.5), ("q05", 0.05), ("q95", 0.95))}
            shares = {f"share_{int(100 * p)}": float((r >= p).mean()) for p in (0.5, 0.7, 0.9)}
            summary.append(
                {
                    "direction": direction,
                    "series": series,
                    "n": len(r),
                    "mean": mean[series],
                    "low": mean[series] - 0.01,
                    "high": mean[series] + 0.01,
                }
                | q
                | shares
                | {"share_null": 0.9}
            )
        d = mean["cross"] - mean["neurons"]
        order.append(
            {
                "direction": direction,
                "lower": "neurons",
                "higher": "cross",
                "difference": d,
                "low": d - 0.02,
                "high": d + 0.02,
                "holds": d > 0.02,
                "strict": True,
                "paired": False,
            }
        )
        layers.append(
            {
                "direction": direction,
                "layer": 2,
                "partner_layer": 2,
                "dictionary": "a",
                "partner_dictionary": "b",
                "n": 9,
                "mean": 0.6,
                "median": 0.6,
                "q90": 0.9,
                "share_50": 0.7,
            }
        )
        depth.append({"direction": direction, "layer": 2, "partner_layer": 2, "count": 40})
        for j, (start, end) in enumerate(((1, 64), (64, 256), (256, 1024))):
            q = {"q50": 0.05, "q95": 0.1, "q99": 0.15, "cross_q50": 0.5 + 0.1 * j}
            nulls.append({"direction": direction, "fired_from": start, "fired_to": end, "n": 50} | q)
        shifts += [
            {
                "direction": direction,
                "shift": s,
                "n_tokens": 900,
                "n": 200,
                "mean": 0.6 - 0.2 * abs(s),
                "low": 0.5 - 0.2 * abs(s),
                "high": 0.7 - 0.2 * abs(s),
                "median": 0.6,
            }
            for s in range(-2, 3)
        ]
    for name, rows in (
        ("summary", summary),
        ("order", order),
        ("layers", layers),
        ("shifts", shifts),
        ("nulls", nulls),
        ("depth", depth),
    ):
        pd.DataFrame(rows).to_parquet(out / f"{name}.parquet", index=False)


def add_circuits(ws: Workspace, model: str, architecture: str, vocab: list[str], text: str, *, seed: int = 0) -> None:
    """One model on the induction task: a clear peak at B (heads) or B+1 (state writes)."""
    rng = np.random.default_rng(seed)
    mamba = architecture == "mamba"
    estimate = {"value": 0.9, "low": 0.8, "high": 0.95, "n": 32}
    peak = {"layer": 2, "position": "B+1" if mamba else "B", "effect": estimate, "share": estimate, "same": 0.99} | (
        {} if mamba else {"unit": 3}
    )
    numbers = {
        "accuracy": estimate,
        "clean_logit_diff": estimate | {"value": 4.2},
        "write_peak" if mamba else "read_peak": peak,
    }
    numbers |= (
        {"conv_peak": {"tap": 1, "layer": 2, "source_offset": 0, "share": estimate}}
        if mamba
        else {"induction_heads": {"sentence": f"Induction heads: L2H3. {text}"}}
    )
    about = {
        "model": model,
        "revision": None,
        "architecture": architecture,
        "task": "induction",
        "focus": "B",
        "n_prompts": 32,
        "metrics": ["logit_diff"],
        "n_layers": 3,
    }
    rows = []
    for layer, unit, offset in itertools.product(range(3), [-1] if mamba else range(4), range(-2, 6)):
        effect = -4.0 if (layer, offset) == (2, 1 if mamba else 0) and unit in (-1, 3) else float(rng.normal(0, 0.05))
        rows.append(("write_profile" if mamba else "read_profile", layer, unit, offset, -1, effect))
        if mamba and layer == 2:
            rows += [("conv_profile", layer, unit, offset, tap, effect if tap == 1 else 0.01) for tap in range(4)]
    rows += [
        ("state_to_logit" if mamba else "head_to_logit", layer, unit, None, -1, -float(layer))
        for layer in range(3)
        for unit in ([-1] if mamba else range(4))
    ]
    frame = pd.DataFrame(rows, columns=["analysis", "layer", "unit", "offset", "tap", "effect"])
    frame = frame.assign(
        path="direct",
        source="control",
        site="h",
        receiver="",
        position="B",
        metric="logit_diff",
        low=frame["effect"] - 0.2,
        high=frame["effect"] + 0.2,
        n=32,
    )
    frame["offset"] = frame["offset"].astype("Int16")
    with ws.create(
        "circuits", f"{model}.induction", command=f"workbench circuits {model}", numbers=numbers, metadata=about
    ) as out:
        frame.to_parquet(out / "effects.parquet", index=False)
        np.savez(out / "arrays.npz", profile=np.zeros((2, 3), np.float32))
        prompt = {
            "tokens": vocab[:24],
            "corrupt": vocab[:24],
            "answer": vocab[3],
            "wrong": vocab[5],
            "predicted": vocab[3],
            "correct": True,
            "logit_diff": 3.5,
            "marks": {"A": 4, "B": 5},
        }
        (out / "prompts.json").write_text(json.dumps([prompt, prompt]))


def add_evolution(ws: Workspace, id: str, vocab: list[str], text: str, *, latents: int = 60, seed: int = 0) -> None:
    """Latents that are born at different steps and a few that die."""
    rng = np.random.default_rng(seed)
    steps = np.array([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000])
    S, K, T = len(steps), 4, 16
    birth = rng.uniform(1, 8, latents)
    norms = 1 / (1 + np.exp(-(np.log2(steps + 1)[None] - birth[:, None]) * 2))
    norms[::7] *= np.linspace(1, 0, S)[None]
    with ws.create(
        "evolution", id, command="workbench evolve", metadata={"sources": [f"step{s}" for s in steps], "dictionary": id}
    ) as out:
        np.save(out / "steps.npy", steps)
        for name in ("decnorm", "decnorm_raw"):
            np.save(out / f"{name}.npy", norms.astype(np.float32))
        (out / "vocab.json").write_text(json.dumps(vocab))
        emergence = pd.array(steps[(norms > 0.5).argmax(1)], dtype="Int64")
        pd.DataFrame(
            {
                "latent": np.arange(latents),
                "emergence_0.5_step": emergence,
                "peak_step": steps[norms.argmax(1)].astype(float),
                "lifespan": 5.0,
                "class": np.where(np.arange(latents) % 7 == 0, "dying", text),
                "kind": np.where(np.arange(latents) % 3 == 0, "token", "other/rare"),
                "n_fired": rng.integers(1, 999, latents),
                "alive": True,
            }
        ).to_parquet(out / "latents.parquet", index=False)
        pd.DataFrame(
            {
                "step": steps,
                "loss": np.linspace(6, 3, S),
                "mean_norm": norms.mean(0),
                "accuracy_induction": np.linspace(0, 1, S),
            }
        ).to_parquet(out / "phases.parquet", index=False)
        pd.DataFrame(
            [
                {
                    "claim": f"later is steeper {text}",
                    "value": 0.4,
                    "low": 0.3,
                    "high": 0.5,
                    "n": latents,
                    "null": "permuted",
                    "null_mean": 0.0,
                    "null_low": -0.1,
                    "null_high": 0.1,
                    "p": 0.001,
                    "verdict": "holds",
                }
            ]
        ).to_parquet(out / "statistics.parquet", index=False)
        curve = [
            {"mode": m, "ranking": r, "k": k, "metric": 3 - 0.1 * k, "low": 2 - 0.1 * k, "high": 4 - 0.1 * k, "n": 12}
            for m in ("destroy", "keep")
            for r in ("attribution", "random")
            for k in (1, 2, 4, 8)
        ]
        about = {"share": 0.5, "draws": 1, "source": "step1000", "task": "induction", "step": 1000}
        pd.DataFrame(curve).assign(**about).to_parquet(out / "attribution.parquet", index=False)
        acts = out / "act_ck"
        acts.mkdir()
        peak = rng.integers(2, T - 2, (latents, K))
        shape = np.exp(-0.5 * (np.arange(T)[None, None, :] - peak[..., None]) ** 2)
        np.save(acts / "tokens.npy", rng.integers(0, len(vocab), (latents, K, T)).astype(np.int32))
        np.save(acts / "peak.npy", peak.astype(np.int16))
        np.save(acts / "where.npy", rng.integers(0, 99, (latents, K, 2)).astype(np.int32))
        np.save(acts / "acts.npy", (255 * norms[:, None, :, None] * shape[:, :, None, :]).clip(0, 255).astype(np.uint8))
        np.save(acts / "code.npy", (255 * shape).astype(np.uint8))
        np.save(acts / "top.npy", np.full(latents, 8.0, np.float32))


def add_architectures(
    ws: Workspace,
    id: str,
    vocab: list[str],
    *,
    third: tuple[int, ...] = (),
    latents: int = 90,
    seed: int = 0,
) -> None:
    """A crosscoder over two models: what the token leaves open comes two doublings later in the second. ``third``:
    steps of a further one, in which all comes as early as in the first.
    """
    rng = np.random.default_rng(seed)
    usual = (0, 16, 64, 256, 1024, 8192)
    steps = {"mini-pythia": usual, "mini-mamba": usual} | ({"mini-hybrid": third} if third else {})
    left, born = rng.random(latents), rng.uniform(6.5, 9, latents)
    late = [2 * (m == 1) * (left > 0.6) for m in range(len(steps))]
    curves = np.concatenate(
        [
            1 / (1 + np.exp(-2 * (np.log2(np.maximum(s, 8)) - (born + by)[:, None])))
            for s, by in zip(steps.values(), late, strict=True)
        ],
        axis=1,
    )
    names = list(steps)
    every = [(n, s) for n in names for s in steps[n]]
    places = np.split(np.arange(len(every)), np.cumsum([len(s) for s in steps.values()])[:-1])
    about = {
        "sources": [f"{n}/step{s}" for n, s in every],
        "models": names,
        "dictionary": id,
        "site": "L1R",
        "architectures": [
            {"model": n, "hook": "h", "sources": at.tolist(), "steps": list(steps[n])}
            for n, at in zip(names, places, strict=True)
        ],
    }
    with ws.create("evolution", id, command="workbench evolve", metadata=about) as out:
        np.save(out / "steps.npy", np.array([s for _, s in every]))
        for name in ("decnorm", "decnorm_raw", "own_agreement", "own_explained"):
            np.save(out / f"{name}.npy", curves.astype(np.float32))
        (out / "vocab.json").write_text(json.dumps(vocab))
        index = np.arange(latents)
        n_fired = rng.integers(40, 999, latents)
        pd.DataFrame(
            {"latent": index, "kind": "token", "complexity": left, "v_token": 1 - left, "n_fired": n_fired}
        ).assign(alive=True).to_parquet(out / "latents.parquet", index=False)
        parts = [
            pd.DataFrame(
                {"latent": index, "model": n, "shared": index % 5 > 0, "open": left, "agreement": 0.6}
                | {f"emergence_{k}": 2 ** (born + by) for k in ("own", "norm", "explained")}
                | {"n_fired": n_fired}
            )
            for n, by in zip(names, late, strict=True)
        ]
        pd.concat(parts).to_parquet(out / "architectures.parquet", index=False)
        phases = {"source": about["sources"], "step": [s for _, s in every], "loss": np.linspace(6, 3, len(every))}
        pd.DataFrame(phases).to_parquet(out / "phases.parquet", index=False)


def add_states(ws: Workspace, model: str, kind: str, vocab: list[str], text: str, *, seed: int = 0) -> None:
    """Two texts at three snapshots in two layers; a write is read four tokens later."""
    rng = np.random.default_rng(seed)
    S, L, T, C, H = 3, 2, 10, 3, 2
    i, j = np.meshgrid(np.arange(T), np.arange(T), indexing="ij")
    arrays: dict[str, np.ndarray] = {}
    texts = []
    for p in range(2):
        share = np.where(j <= i, np.exp(-0.3 * (i - j)) + 3.0 * (i - j == 4), 0.0)
        share = np.broadcast_to(share / share.sum(1, keepdims=True), (S, L, T, T)).astype(np.float32)
        effect = np.where(j - i == 4, 1.5, 0.0)[None, None] * np.arange(S)[:, None, None, None] * np.ones((1, L, 1, 1))
        effect[..., -1] = np.nan
        arrays |= {f"{p}.share": share, f"{p}.effect": effect.astype(np.float32)}
        arrays[f"{p}.logprob"] = -rng.random((S, T - 1)).astype(np.float32)
        for k in range(L):
            if kind == "attention":
                arrays[f"{p}.{k}.heads"] = np.repeat(share[:, k, None], H, axis=1).astype(np.float16)
                continue
            left = np.where(i + j < T, 0.9**j, np.nan)
            arrays[f"{p}.{k}.survival"] = np.broadcast_to(left, (S, T, T)).astype(np.float16)
            arrays[f"{p}.{k}.channels"] = rng.integers(0, 256, (S, T, C)).astype(np.int32)
            arrays[f"{p}.{k}.weight"] = np.full((S, T, C), 0.2, np.float16)
        ids = [int(x) for x in np.random.default_rng(p).integers(0, len(vocab), T)]
        words = [vocab[x] for x in ids]
        atoms: list[list[list[object]]] = [[[] for _ in range(L)] for _ in range(S)]  # no dictionary of writes
        texts.append({"ids": ids, "tokens": [text, *words[1:]], "predicted": [words] * S, "atoms": atoms})
    about = {
        "model": model,
        "revisions": ["step0", "step512", "step9000"],
        "layers": [{"layer": k, "kind": kind} for k in range(L)],
        "architecture": "transformer" if kind == "attention" else "recurrent",
        "task": "induction",
        "texts": "induction",
        "n_texts": 2,
        "dictionaries": {},
    }
    best = {"text": 0, "layer": 1, "written": 2, "reader": 6, "nats": 3.0}
    with ws.create(
        "states",
        f"{model}.induction",
        command=f"workbench states {model}",
        metadata=about,
        numbers={"n_texts": 2, "n_tokens": 2 * T, "n_snapshots": S, "largest_effect": best},
    ) as out:
        np.savez_compressed(out / "arrays.npz", **arrays)
        (out / "texts.json").write_text(json.dumps(texts))


def add_map(ws: Workspace, dictionary: str, *, seed: int = 0) -> None:
    """A layout of one dictionary with its neighbour histogram."""
    rng = np.random.default_rng(seed)
    n = _latents(ws, dictionary)
    numbers = {
        dictionary: {
            "n_latents": n,
            "median_nearest_cosine": 0.5,
            "median_matched": 0.4,
            "median_isotropic": 0.2,
            "share_above_matched": 0.1,
        }
    }
    with ws.create(
        "maps",
        dictionary,
        command=f"workbench map {dictionary}",
        numbers=numbers,
        metadata={"dictionaries": [dictionary], "layout": "UMAP: for finding one's way."},
    ) as out:
        xy = rng.normal(size=(n, 2))
        pd.DataFrame(
            {"dictionary": dictionary, "latent": np.arange(n, dtype=np.int32), "x": xy[:, 0], "y": xy[:, 1]}
        ).to_parquet(out / "points.parquet", index=False)
        edges = np.linspace(-1, 1, 81)
        rows = [
            {"series": s, "left": edges[i], "right": edges[i + 1], "count": int(c), "n": n, "dictionary": dictionary}
            for s, m in (("decoder", 0.5), ("matched", 0.4))
            for i, c in enumerate(np.histogram(rng.normal(m, 0.1, n).clip(-1, 1), edges)[0])
        ]
        pd.DataFrame(rows).to_parquet(out / "nearest_hist.parquet", index=False)


def add_labels(ws: Workspace, dictionary: str, text: str) -> None:
    """Rule labels of every third latent."""
    n = _latents(ws, dictionary)
    label = [f"fires on {text} {i}" if i % 3 == 0 else None for i in range(n)]
    with ws.create(
        "explanations",
        f"{dictionary}.rules",
        command=f"workbench explain {dictionary}",
        metadata={"dictionary": dictionary, "explainer": "rules"},
    ) as out:
        pd.DataFrame(
            {
                "latent": np.arange(n),
                "label": pd.array(label, dtype="string"),
                "label_score": np.where(np.arange(n) % 3 == 0, 0.75, np.nan),
            }
        ).to_parquet(out / "labels.parquet", index=False)


def add_trust(ws: Workspace, dictionary: str, text: str, *, seed: int = 0) -> None:
    """Cards of evidence: every third latent well supported, every fifth a token detector, the last never fires."""
    n, rng = _latents(ws, dictionary), np.random.default_rng(seed)
    number = np.arange(n)
    score = np.where(number % 3 == 0, 0.95, np.where(number % 3 == 1, 0.6, 0.2))
    words = np.array(["well supported", "mixed", "weakly supported"], dtype=object)[number % 3]
    found = {}
    for role in ("seed", "model_seed", "untrained"):
        r = rng.uniform(0.1, 0.99, n) if role != "untrained" else np.where(number % 5 == 0, 0.9, 0.1)
        found |= {f"{role}_r": r, f"{role}_chance": np.full(n, 0.2), f"{role}_partner": (number + 1) % n}
        found |= {f"{role}_cofire": np.full(n, 50), f"{role}_found": r >= 0.5}
    table = pd.DataFrame(
        {
            "latent": number.astype(np.int32),
            "n_fired": np.where(number == n - 1, 0, 100),
            **found,
            "agreement": rng.uniform(0.3, 0.9, n),
            "agreement_chance": np.full(n, 0.2),
            "should": np.full(n, 80),
            "missed": np.full(n, 20),
            "absorbed": np.full(n, 8),
            "absorbed_share": np.full(n, 0.1),
            "absorbed_chance": np.full(n, 0.01),
            "takers": [[int((i + 2) % n)] for i in number],
            "taker_tokens": [[8] for _ in number],
            "siblings": np.ones(n, int),
            "sibling_ids": [[int((i + 3) % n)] for i in number],
            "sibling_cosines": [[0.8] for _ in number],
            "effect": rng.normal(0.01, 0.02, n),
            "effect_low": np.full(n, -0.01),
            "effect_high": np.full(n, 0.04),
            "effect_n": np.full(n, 100),
            "effect_peers": np.full(n, 0.01),
            "effect_rank": np.full(n, 0.75),
            "effect_alone": np.where(number < 20, 0.012, np.nan),
            "effect_alone_n": np.where(number < 20, 4, 0),
            "rule": [text for _ in number],
            **{f"label_{k}": np.full(n, np.nan) for k in ("f1", "f1_chance", "precision", "recall")},
            **{f"label_{k}": np.full(n, np.nan) for k in ("hard_accuracy", "hard_precision", "hard_recall")},
            **{f"label_{k}": np.zeros(n, int) for k in ("n", "n_rule", "n_hard")},
            "stability": rng.uniform(0.1, 0.9, n),
            "stability_chance": np.full(n, 0.15),
            "stability_n": np.full(n, 12),
            "score": score,
            "word": pd.array(words, dtype="string"),
        }
    )
    table.loc[n - 1, [c for c in table if c.endswith(("_r", "_chance")) or c == "score"]] = np.nan
    table.loc[n - 1, "word"] = None
    metadata = {
        "dictionary": dictionary,
        "model": dictionary.split(".")[0],
        "site": "L1R",
        "n_tokens": 26_000,
        "min_firings": 20,
        "others": {"seed": dictionary, "model_seed": "gone.L1R-8x", "untrained": dictionary},
        "missing": {"label": text},
        "agreement": {"value": 0.97, "low": 0.96, "high": 0.98, "n": 384, "slope": 0.9},
    }
    with ws.create(
        "trust",
        dictionary,
        command=f"workbench trust {dictionary}",
        inputs=[ws.get("dictionaries", dictionary).as_input()],
        metadata=metadata,
    ) as tmp:
        table.to_parquet(tmp / "cards.parquet", index=False)


def add_graph(ws: Workspace, model: str, vocab: list[str], text: str, *, seed: int = 0) -> None:
    """A pruned attribution graph over eight tokens and two layers."""
    rng = np.random.default_rng(seed)
    nodes = [
        {
            "node_id": f"E_{p}",
            "feature": None,
            "layer": "E",
            "ctx_idx": p,
            "feature_type": "embedding",
            "clerp": "",
            "influence": 0.1,
        }
        for p in range(8)
    ]
    for layer in (1, 2):
        for p in range(8):
            latent = int(rng.integers(0, 200))
            nodes.append(
                {
                    "node_id": f"{layer}_{latent}_{p}",
                    "feature": latent,
                    "layer": str(layer),
                    "ctx_idx": p,
                    "feature_type": "cross layer transcoder",
                    "clerp": "",
                    "influence": float(rng.random()),
                    "activation": 2.0,
                }
            )
        nodes.append(
            {
                "node_id": f"{layer}_err_3",
                "feature": None,
                "layer": str(layer),
                "ctx_idx": 3,
                "feature_type": "mlp reconstruction error",
                "clerp": "",
                "influence": 0.2,
            }
        )
    nodes.append(
        {
            "node_id": "3_17_7",
            "feature": 17,
            "layer": "3",
            "ctx_idx": 7,
            "feature_type": "logit",
            "clerp": f"output {text}",
            "influence": 1.0,
            "is_target_logit": True,
            "token_prob": 0.6,
        }
    )
    ids = [n["node_id"] for n in nodes]
    links = [
        {"source": ids[i], "target": ids[j], "weight": float(rng.normal())}
        for i in range(len(ids))
        for j in range(i + 1, len(ids), 5)
    ]
    document = {
        "metadata": {"slug": "s", "scan": model, "prompt_tokens": vocab[:8], "prompt": text},
        "qParams": {},
        "nodes": nodes,
        "links": links,
    }
    about = {
        "model": model,
        "prompt": text,
        "dictionaries": {f"blocks.{layer}.hook_resid_post": f"{model}.L{layer}R-8x" for layer in (1, 2)},
    }
    numbers = {
        "nodes": len(nodes),
        "edges": len(links),
        "nodes_before": 900,
        "edges_before": 9000,
        "node_influence_kept": 0.8,
    }
    with ws.create(
        "graphs", f"{model}.prompt.12345678", command="workbench graph", numbers=numbers, metadata=about
    ) as out:
        (out / "graph.json").write_text(json.dumps(document))


def add_scores(ws: Workspace, dictionary: str, text: str) -> None:
    """Scores of the labels by rule of six latents, judged by the rule and by a model that cannot read one scorer."""
    from workbench.analysis.explain.scorers.run import summary
    from workbench.results.scores import SCORERS

    rng = np.random.default_rng(3)
    for short, judge in (("rule", "the rule itself"), ("m", f"a-model {text}")):
        rows = []
        for latent, name in ((i, s) for i in range(6) for s in SCORERS):
            value = float("nan") if (short, name) == ("m", "simulation") else 0.6 + 0.3 * rng.random()
            rows.append(
                {"latent": latent, "scorer": name, "judge": judge, "value": value, "low": value - 0.1}
                | {"high": min(1.0, value + 0.1), "chance": 0.0 if name == "simulation" else 0.5, "n_positive": 20}
                | {
                    "n_negative": 20,
                    "precision": 0.8,
                    "recall": 0.7,
                    "f1": 0.75,
                    "unreadable": 40 if value != value else 0,
                }
            )
        table = pd.DataFrame(rows)
        about = {"dictionary": dictionary, "explanation": f"{dictionary}.rules", "explainer": "rules", "judge": judge}
        with ws.create(
            "scores", f"{dictionary}.rules.by-{short}", command=f"workbench score {dictionary}", metadata=about
        ) as out:
            table.to_parquet(out / "scores.parquet", index=False)
            summary(table).to_parquet(out / "summary.parquet", index=False)


def add_doses(ws: Workspace, dictionary: str, text: str) -> None:
    """A dose-response that grows as such do; one amount made no continuation."""
    amount = np.array([0.0, 1, 2, 4, 8])
    table = pd.DataFrame({"amount": amount, "kl": 0.02 * amount**2, "logit": 1 + amount / 2})
    table["probability"], table["perplexity"] = 0.1 + amount / 20, [8.0, 8.5, 11.0, np.nan, 90.0]
    about = {"dictionary": dictionary, "model": dictionary.split(".")[0], "revision": None, "latents": [3], "held": []}
    about |= {"prompt": f"def read(self): {text}", "target": f" {text}", "tokens": 20}
    command = f"workbench steer {dictionary} 'def read(self):' --add 3=1 --dose 0,1,2,4,8 --keep"
    numbers = {"amounts": len(table), "largest_kl": float(table["kl"].max())}
    with ws.create("doses", f"{dictionary}.def-read.12345678", command=command, numbers=numbers, metadata=about) as out:
        table.to_parquet(out / "doses.parquet", index=False)


def add_claims(ws: Workspace, text: str) -> None:
    """A finding of each verdict: with an interval and a control, without either, and not measured at all."""
    measured = {"value": 0.56, "low": 0.5, "high": 0.6, "n": 120, "unit": "rank correlation"}
    nothing = {"value": None, "low": None, "high": None, "n": 0, "unit": ""}
    control = {"value": 0.01, "low": -0.05, "high": 0.06, "n": 120, "unit": ""}
    cases = (
        ("universality.depth", "supported", measured, control),
        ("llama-scope.folding", "contradicted", {**measured, "low": None, "high": None, "unit": text}, None),
        ("evolution.dimensionality", "not testable here", nothing, None),
    )
    for id, verdict, effect, against in cases:
        document = {
            "claim": id,
            "paper": id.partition(".")[0],
            "section": "4.4",
            "statement": f"Latents sit at similar depth {text}.",
            "paper_number": f"about 0.6 {text}",
            "experiment": f"Spearman correlation {text}.",
            "criterion": "95 % interval above zero.",
            "control": "No association.",
            "control_measured": against,
            "effect": effect,
            "n": effect["n"],
            "verdict": verdict,
            "note": "",
        }
        numbers = {"verdict": verdict, "n": effect["n"], "effect": effect}
        with ws.create("claims", id, command="workbench reproduce", numbers=numbers) as folder:
            (folder / "finding.json").write_text(json.dumps(document))
            pd.DataFrame({"seed": [0, 1], "value": [0.5, 0.6], "what": text}).to_parquet(
                folder / "table.parquet", index=False
            )
