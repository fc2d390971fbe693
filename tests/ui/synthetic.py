"""Generated workspaces for the pages: latent records in the real format, of any size, with hostile strings where asked.

``python tests/ui/synthetic.py DIR --latents 100000`` writes the folder the speed budgets are measured on;
``--hostile URL`` puts strings that try to run, load or restyle something into every place where text appears.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.provenance import write_manifest
from workbench.workspace import Workspace

GROUPS = ["top", "q1", "q2", "q3", "q4", "random", "near_miss"]
BINS, TOP_LOGITS, NEIGHBOURS = 64, 20, 20
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "a",
    "is",
    "that",
    "for",
    "it",
    "as",
    "was",
    "with",
    "be",
    "by",
    "on",
    "not",
    "he",
    "his",
    "but",
    "at",
]


def hostile_tokens(beacon: str = "http://127.0.0.1:9/beacon") -> list[str]:
    """Strings that would run a script, load a picture, restyle the page or break a format if a page let them."""
    return [
        "<script>window.__pwn=1</script>",
        f"<img src='{beacon}?img' onerror='window.__pwn=2'>",
        f'"><svg onload=window.__pwn=3><image href="{beacon}?svg"/></svg>',
        f"<style>body{{background:url({beacon}?css)}}.ctx{{display:none}}</style>",
        f"<form action='{beacon}'><input></form><h1 class='pwned'>",
        f"![x]({beacon}?md)",
        "[link](javascript:window.__pwn=4)",
        ":red[colour] :material/delete:",
        "$x^2$ $$\\frac{1}{2}$$",
        "**bold** _it_ `code` ~~s~~",
        "\u202eesrever\u202c",
        "\u200b\u2066\ufeff",
        "\x00\x1b[31m",
        "NaN",
        "null",
        "=1+1",
        "\r",
        "a\r\nb",
        "_&%$#{}~^\\",
        "👩\u200d🔬",
        "|",
        "&amp;&lt;b&gt;",
        "'\"`",
        "</div></div></div>",
        "日本語",
        "ـعربيـ",
    ]


def vocabulary(size: int = 512, *, hostile: bool = False, beacon: str = "http://127.0.0.1:9/beacon") -> list[str]:
    """``size`` token strings: words with and without a leading space, whitespace tokens, then hostile
    ones where asked.
    """
    tokens = [
        "<bos>",
        "\n",
        "\n\n",
        "\t",
        "    ",
        "(",
        ")",
        ":",
        ",",
        ".",
        "def",
        " self",
        " return",
        " import",
        " numpy",
        "é",
        " naïve",
    ]
    tokens += [f" {w}" for w in WORDS] + WORDS
    tokens += [f" w{i}" for i in range(size - len(tokens))]
    tokens = tokens[:size]
    if hostile:
        bad = hostile_tokens(beacon)
        for slot in range(1, size, 2):
            tokens[slot] = bad[(slot // 2) % len(bad)]
    return tokens


def write_records(
    folder: Path,
    *,
    latents: int = 256,
    contexts: int = 400,
    width: int = 32,
    per_group: int = 4,
    n_tokens: int = 100_000,
    vocab: list[str] | None = None,
    labels: list[str] | None = None,
    seed: int = 0,
) -> None:
    """Write the files of one ``latents/<id>`` folder, without its manifest: vectorised, so 100k
    latents take seconds.
    """
    rng = np.random.default_rng(seed)
    vocab = vocab or vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=True))
    tokens = rng.integers(0, len(vocab), (contexts, width), dtype=np.int32)
    tokens[: contexts // 10, -3:] = -1  # windows at the end of a sequence are padded
    np.save(folder / "contexts_tok.npy", tokens)
    np.save(
        folder / "contexts_seq.npy", np.stack([np.arange(contexts), rng.integers(1, 200, contexts)], 1).astype(np.int32)
    )

    G, K = len(GROUPS), per_group
    dead = np.arange(latents) % 37 == 36
    group_ctx = np.stack(
        [rng.integers(0, contexts, (latents, G, K)), rng.integers(0, width - 4, (latents, G, K))], -1
    ).astype(np.int32)
    group_ctx[dead] = -1
    np.save(folder / "group_ctx.npy", group_ctx)
    n_fired = np.maximum(rng.lognormal(5, 1.6, latents).astype(np.int64), 7)
    n_fired[dead] = 0
    group_n = np.repeat((n_fired // G)[:, None], G, 1).astype(np.int64)
    np.save(folder / "group_n.npy", group_n)

    peak = rng.gamma(3.0, 1.5, latents).astype(np.float32) + 0.5
    counts = rng.integers(1, 4, latents * G * K)
    counts[np.repeat(dead, G * K)] = 0
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    slot = np.repeat(np.arange(latents * G * K), counts)
    offset = np.arange(indptr[-1]) - indptr[slot]
    positions = np.minimum(group_ctx[..., 1].reshape(-1)[slot] + offset, width - 1).astype(np.uint16)
    scale = np.array([1.0, 0.2, 0.4, 0.6, 0.9, 0.5, 0.0], dtype=np.float32)
    values = peak[slot // (G * K)] * scale[(slot // K) % G] * (1.0 - 0.25 * offset).astype(np.float32)
    np.save(folder / "act_indptr.npy", indptr)
    np.save(folder / "act_pos.npy", positions)
    np.save(folder / "act_val.npy", values.astype(np.float32))

    edges = np.geomspace(1e-2, 30, BINS + 1).astype(np.float32)
    shape = np.exp(-0.5 * ((np.arange(BINS) - rng.uniform(25, 50, latents)[:, None]) / 6) ** 2)
    hist = np.floor(shape / shape.sum(1, keepdims=True) * n_fired[:, None]).astype(np.uint32)
    hist[np.arange(latents), hist.argmax(1)] += (n_fired - hist.sum(1)).astype(np.uint32)
    np.save(folder / "hist.npy", hist)
    np.save(folder / "edges.npy", edges)

    np.save(folder / "logits_id.npy", rng.integers(0, len(vocab), (latents, 2, TOP_LOGITS), dtype=np.int32))
    size = np.sort(rng.gamma(2, 0.6, (latents, 2, TOP_LOGITS)), -1)[..., ::-1]
    np.save(folder / "logits_val.npy", (size * np.array([1, -1])[None, :, None]).astype(np.float32))
    near = NEIGHBOURS
    ids = (
        np.arange(latents)[:, None] + 1 + rng.integers(0, max(1, latents - near), (latents, 1)) + np.arange(near)
    ) % latents
    np.save(folder / "nbr_cos_id.npy", ids.astype(np.int32))
    np.save(
        folder / "nbr_cos_val.npy", np.sort(rng.uniform(0.05, 0.9, (latents, near)), -1)[:, ::-1].astype(np.float32)
    )

    frame = pd.DataFrame(
        {
            "latent": np.arange(latents),
            "n_fired": n_fired,
            "density": n_fired / n_tokens,
            "max": np.where(dead, np.nan, peak),
            "mean": np.where(dead, np.nan, peak * 0.4),
            "std": np.where(dead, np.nan, peak * 0.2),
            "skew": np.where(dead, np.nan, rng.normal(2, 0.5, latents)),
            "kurtosis": np.where(dead, np.nan, rng.normal(6, 2, latents)),
            "n_sequences": np.minimum(n_fired, contexts),
            "peak_token": (peak_token := np.where(dead, -1, rng.integers(0, len(vocab), latents)).astype(np.int32)),
            "peak_text": pd.array(np.where(dead, None, np.array(vocab, dtype=object)[peak_token]), dtype="string"),
            "promoted_text": pd.array(
                np.array(vocab, dtype=object)[np.load(folder / "logits_id.npy")[:, 0, 0]], dtype="string"
            ),
            "decoder_norm": np.ones(latents, dtype=np.float32),
            "nearest": ids[:, 0].astype(np.int32),
            "nearest_cos": np.load(folder / "nbr_cos_val.npy")[:, 0],
            "label": labels
            if labels is not None
            else [f"pattern {i % 97}" if i % 3 == 0 else None for i in range(latents)],
        }
    )
    frame.to_parquet(folder / "latents.parquet", index=False)


def add_dictionary(
    ws: Workspace,
    id: str,
    *,
    model: str,
    revision: str | None,
    site: str,
    records: bool = True,
    hook: str = "",
    **kw: object,
) -> None:
    """One dictionary with plausible numbers and, where ``records`` is true, its latent records."""
    vocab = kw.pop("vocab", None) or vocabulary()
    latents = int(kw.get("latents", 256))  # type: ignore[call-overload]
    about = {
        "kind": "sae",
        "model_name": model,
        "revision": revision,
        "hook_name": hook or f"blocks.{site[1]}.hook_resid_post",
        "site": site,
    }
    with ws.create(
        "dictionaries",
        id,
        command=f"workbench train {id}",
        numbers={
            "explained_variance": 0.87,
            "l0": 15.9,
            "dead_share": 0.02,
            "d_sae": latents,
            "k": 16,
            "n_heldout": 40_000,
        },
        metadata=about,
    ) as tmp:
        (tmp / "cfg.json").write_text(
            json.dumps({"architecture": "topk", "d_in": 64, "d_sae": latents, "metadata": about})
        )
    if not records:
        return
    meta = {
        "dictionary": id,
        "model": model,
        "revision": revision,
        "hook": about["hook_name"],
        "site": site,
        "n_tokens": 100_000,
        "ctx": int(kw.get("width", 32)),  # type: ignore[call-overload]
        "groups": GROUPS,
        "logits": {"computed": True, "final_norm_folded": True, "note": "final norm folded into the unembedding"},
        "vocab": "vocab.json",
    }
    with ws.create(
        "latents", id, command=f"workbench features {id}", inputs=[ws.get("dictionaries", id).as_input()], metadata=meta
    ) as tmp:
        write_records(tmp, vocab=vocab, **kw)  # type: ignore[arg-type]


def make_workspace(
    root: Path,
    *,
    latents: int = 256,
    hostile: bool = False,
    beacon: str = "http://127.0.0.1:9/beacon",
    big: bool = False,
) -> Workspace:
    """A workspace of two architectures, three layers, two snapshots, one dictionary without records."""
    ws = Workspace(root)
    vocab = vocabulary(hostile=hostile, beacon=beacon)
    bad = hostile_tokens(beacon)
    labels = [bad[i % len(bad)] for i in range(latents)] if hostile else None
    for model in ("mini-pythia", "mini-mamba"):
        with ws.create(
            "models",
            model,
            command="workbench pretrain",
            numbers={"parameters": 550_000, "loss": 3.1},
            metadata={"architecture": {"mini-pythia": "gpt_neox", "mini-mamba": "mamba"}[model]},
        ) as tmp:
            (tmp / "config.json").write_text("{}")
    add_dictionary(
        ws,
        "mini-pythia.L1R-8x",
        model="mini-pythia",
        revision=None,
        site="L1R",
        latents=latents,
        vocab=vocab,
        labels=labels,
    )
    if big:
        return ws
    add_dictionary(
        ws,
        "mini-pythia.L2R-8x",
        model="mini-pythia",
        revision=None,
        site="L2R",
        latents=latents,
        vocab=vocab,
        labels=labels,
        seed=1,
    )
    add_dictionary(
        ws,
        "mini-pythia@step512.L2R-8x",
        model="mini-pythia",
        revision="step512",
        site="L2R",
        latents=latents,
        vocab=vocab,
        labels=labels,
        seed=2,
    )
    add_dictionary(
        ws,
        "mini-mamba.L2R-8x",
        model="mini-mamba",
        revision=None,
        site="L2R",
        latents=latents,
        vocab=vocab,
        labels=labels,
        seed=3,
    )
    add_dictionary(
        ws, "mini-mamba.L2S-8x", model="mini-mamba", revision=None, site="L2S", latents=latents, records=False
    )
    return ws


def remove_files(folder: Path, *names: str) -> None:
    """Take artefacts out of a complete folder and write its manifest again, as a partial computation would leave it."""
    from workbench.provenance import read_manifest

    m = read_manifest(folder)
    for name in names:
        (folder / name).unlink()
    write_manifest(
        folder, m.kind, m.id, command=m.command, inputs=list(m.inputs), numbers=m.numbers, metadata=m.metadata
    )


def main() -> None:
    """Command line of the generator."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latents", type=int, default=256)
    parser.add_argument("--hostile", metavar="BEACON_URL", help="use hostile strings that point to this address")
    args = parser.parse_args()
    ws = make_workspace(
        args.folder,
        latents=args.latents,
        hostile=bool(args.hostile),
        beacon=args.hostile or "",
        big=args.latents > 20_000,
    )
    print(f"{ws.root}: {len(ws.items('latents'))} dictionaries with {args.latents:,} latents each")


if __name__ == "__main__":
    main()
