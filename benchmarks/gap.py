"""What sharing one code over all snapshots costs: explained variance of a crosscoder beside one SAE per snapshot, over
F and k.

Both see the same rows as often, with the same number of latents F and the same k (so the same L0 at every source).
Printed are the mean gap over all snapshots and over those from the turning point on, each with a 95 % bootstrap
interval over held-out batches, and the gap of every snapshot. All activations are computed once and kept in memory.

    python benchmarks/gap.py --write docs/benchmarks-gap.md           # against F with the first k, then against k at
                                                                      the middle F
    python benchmarks/gap.py --latents 1024 --k 16                   # one comparison
    python benchmarks/gap.py --after 768                             # a crosscoder over the later snapshots alone
    python benchmarks/gap.py --latents 1024 --k 16 --gate own-magnitude --kept 0 32 64   # so many latents shared, of
                                                                     which each source uses its k strongest
    python benchmarks/gap.py --latents 1024 --k 16 --gate shared own-magnitude   # one magnitude for all, or one each
    python benchmarks/gap.py --latents 1024 --k 16 --gate per-source --coefficient .05 .1 --times 1 4
                                     # JumpReLU with a gate per source; one and four times the latents of an SAE alone

L0 is counted per snapshot. A gate per source learns its own: its thresholds are then multiplied by the one factor at
which k latents are on per row and snapshot, over the held-out rows on which all are compared.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crosscoders import Crosscoder, evaluate_sources
from crosscoders import evolution as ev
from sae import SAE, train, train_many
from sae.refitting import refit
from workbench.analysis.evolution import orders
from workbench.analysis.evolution.baselines import alone_config, measure_gaps
from workbench.analysis.evolution.recipe import EvolveRecipe, resolve_sources
from workbench.analysis.evolution.rows import LastBatches
from workbench.analysis.evolution.snapshots import OnlineBatches, Snapshots, Source
from workbench.analysis.evolution.train import crosscoder_config
from workbench.config import read_recipe
from workbench.corpus import plan_tokens
from workbench.models import load_tokenizer


class Apart:
    """The batches of a crosscoder as one part per source, for training an SAE at each."""

    def __init__(self, batches: OnlineBatches, names: list[str], widths: list[int]):
        self.batches, self.names, self.widths = batches, names, widths

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for x in self.batches:
            yield dict(zip(self.names, x.split(self.widths, dim=1), strict=True))


class Strongest:
    """A crosscoder of which each source uses only its ``k`` strongest latents of those that are on, by f_si n_si: L0 is
    k at every source, or less where magnitudes are zero.
    """

    def __init__(self, cc: Crosscoder, k: int):
        self.cc, self.k, self.split = cc, k, cc.split
        self.norms = torch.stack([b.norm(dim=1) for b in cc.split(cc.dec_FD)])

    def reconstructed_by_source(self, x: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """(reconstruction [B, D], values of each source [B, K], indices [B, K]) of raw rows."""
        parts, indices = self.cc.source_values(x)
        y, used = [], []
        for s, (f, n) in enumerate(zip(parts, self.norms, strict=True)):
            kept = (f * n[indices]).topk(min(self.k, f.shape[1]), dim=1).indices
            used.append(f * torch.zeros_like(f).scatter_(1, kept, 1.0))
            y.append(self.split(SAE.decode_sparse(self.cc, used[-1], indices))[s])  # one code, at this source alone
        return torch.cat(y, dim=1), used, indices


@torch.no_grad()
def at_k(cc: Crosscoder, k: int, rows: Tensor) -> tuple[Crosscoder, float]:
    """The same crosscoder with a gate per source, in place, its thresholds multiplied by the factor at which ``k``
    latents are on per row and source over ``rows`` [N, D]; and that factor.
    """
    norms, level = cc.decoder_norms() / cc.gain_F, cc.opening() * (cc.decoder_norms() / cc.gain_F).amax(0)
    wanted = k * len(rows) * len(norms)
    strongest = rows.new_zeros(0)
    for part in rows.split(256):  # z n_si / t_i of every source; only what can be among the wanted is kept
        z = cc.pre_activations(part).clamp_min(0)
        least = strongest[-1] if len(strongest) == wanted else 0.0
        ratios = [(z * (n / level)).flatten() for n in norms]
        strongest = torch.cat([strongest, *(r[r > least] for r in ratios)])
        strongest = strongest.topk(min(wanted, len(strongest))).values
    factor = float(strongest[-1])
    cc.threshold_F.mul_(factor)
    return cc, factor


def compare(
    recipe: EvolveRecipe,
    sources: list[Source],
    widths: list[int],
    train_on: OnlineBatches,
    test_on: list[Tensor],
    kept: int,
    times: int,
    made: dict[tuple[int, int], dict[str, SAE]],
) -> dict[str, Any]:
    """One crosscoder of ``times`` as many latents and one SAE per source; their gap
    (:func:`workbench.analysis.evolution.baselines.measure_gaps`). ``made`` keeps the SAEs of every F and k.
    """
    began = time.perf_counter()
    names, steps, k = [s.name for s in sources], recipe.steps, recipe.k
    tail = LastBatches(train_on, min(steps, -(-recipe.refit // recipe.batch_size)))
    per_source = recipe.crosscoder["gate"] == "per-source"
    fitted = recipe.refit and not per_source  # its decoder norms decide which latents are on
    own = {"k": kept or k, "expansion": recipe.expansion * times, "refit": recipe.refit if fitted else 0}
    config = crosscoder_config(recipe.model_copy(update=own), sources, widths)
    cc = train(config, tail, total_steps=steps, progress=False)
    cc = refit(cc, tail.rows(steps)) if fitted else cc
    seconds = time.perf_counter() - began
    assert isinstance(cc, Crosscoder)
    alone_L0, factor = evaluate_sources(cc, test_on).l0, 1.0
    if per_source:
        cc, factor = at_k(cc, k, torch.cat(test_on))
    F = recipe.expansion * widths[0]
    if (F, k) not in made:
        alone: dict[str, SAE] = train_many(
            {n: alone_config(recipe, w) for n, w in zip(names, widths, strict=True)},
            Apart(train_on, names, widths),
            total_steps=steps,
            progress=False,
        )
        if recipe.refit:
            for s, n in enumerate(names):
                alone[n] = refit(alone[n], (x.split(widths, dim=1)[s] for x in tail.rows(steps)))
        made[F, k] = alone
    alone = made[F, k]
    seen: Any = Strongest(cc, k) if kept else cc
    gaps = measure_gaps(seen, [alone[n] for n in names], names, test_on)
    fired = evaluate_sources(cc, test_on).fired_F.numpy()
    cosines = ev.cosine_matrices([b.numpy() for b in cc.decoder_blocks()])
    every, *late = orders.gap_claims(gaps, cosines, fired > 0)
    out = {
        "gate": config.gate,
        "kept": kept,
        "F": config.d_sae,
        "F alone": F,
        "k": k,
        "coefficient": config.activation.coefficient if per_source else None,
        "L0 as trained": alone_L0,
        "factor": factor,
        "L0": float(gaps.table["l0_crosscoder"].mean()),
        "lr": config.peak_lr,
        "steps": steps,
        "seconds of the crosscoder": round(seconds, 1),
        "dead": float((fired == 0).mean()),
    }
    out |= {"EV crosscoder": float(gaps.table["ev_crosscoder"].mean()), "EV alone": float(gaps.table["ev_sae"].mean())}
    out |= {"gap": every, "late": late[0] if late else None, "by source": gaps.table["gap"].round(4).tolist()}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="4 snapshots, little text: shows that it runs, not what the gap is"
    )
    parser.add_argument("--recipe", default="mini-evolve", help="whose model, site, batch size and settings are taken")
    parser.add_argument("--snapshots", type=int, default=10, help="0 = all")
    parser.add_argument("--after", type=int, default=0, help="only snapshots from this training step on")
    parser.add_argument(
        "--kept",
        type=int,
        nargs="+",
        default=[0],
        help="latents the crosscoder shares where each source uses k of them; 0 = k",
    )
    parser.add_argument("--sequences", type=int, default=1600, help="of unique training text")
    parser.add_argument(
        "--refit", type=int, default=None, help="rows to which decoders are fitted at the end; default: the recipe's"
    )
    parser.add_argument("--batch", type=int, default=None, help="rows per step; default: the recipe's")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows trained on")
    parser.add_argument("--latents", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--k", type=int, nargs="+", default=[16, 8, 32])
    parser.add_argument("--gate", nargs="+", default=["shared"], choices=["shared", "own-magnitude", "per-source"])
    parser.add_argument(
        "--coefficient", type=float, nargs="+", default=[0.3], help="of the penalty, with --gate per-source"
    )
    parser.add_argument(
        "--times", type=int, nargs="+", default=[1], help="latents of the crosscoder for each of an SAE alone"
    )
    parser.add_argument("--lr", type=float, nargs="+", default=None, help="of the crosscoder; default: the recipe's")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no further comparison after so long")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", type=Path, help="also write a table of all comparisons, as Markdown")
    args = parser.parse_args()
    if any(args.kept) and "per-source" in args.gate:
        parser.error("--kept: a gate per source chooses its own latents. Use it with the other gates")
    if narrow := [n for n in args.kept if 0 < n < max(args.k)]:
        parser.error(
            f"--kept {narrow[0]}: fewer than the k = {max(args.k)} that each source uses. Use more, or a smaller --k"
        )
    if args.quick:
        args.snapshots, args.sequences, args.rows, args.latents, args.k = 4, 128, 15_000, [256], [16]
    began = time.perf_counter()
    size: dict[str, Any] = {"snapshots": args.snapshots, "n_seq": args.sequences, "tokens": args.rows}
    size |= {k: v for k, v in {"batch_size": args.batch, "refit": args.refit}.items() if v is not None}
    recipe = read_recipe(EvolveRecipe, args.recipe).model_copy(update=size)
    sources = [s for s in resolve_sources(recipe) if s.step is not None and s.step >= args.after]
    snapshots, names = Snapshots(sources), [s.name for s in sources]
    tokenizer = load_tokenizer(recipe.model, sources[-1].revision)
    tokens = plan_tokens(recipe.corpus, tokenizer, n_seq=args.sequences, ctx=recipe.ctx).tokens
    held = plan_tokens(
        recipe.corpus.model_copy(update={"split": "heldout"}),
        tokenizer,
        n_seq=32 if args.quick else 160,
        ctx=recipe.ctx,
    ).tokens
    rows = OnlineBatches(snapshots, held, 1, seed=0)
    test_on = [rows.rows_of(np.arange(i, i + 4)) for i in range(0, len(held), 4)]
    group = max(64, recipe.batch_size // 32)
    train_on = OnlineBatches(snapshots, tokens, recipe.batch_size, seed=recipe.seed, group=group, cache=True)
    widths = snapshots.widths()
    done: list[dict[str, Any]] = []
    made: dict[tuple[int, int], dict[str, SAE]] = {}
    sizes = [(F, args.k[0]) for F in args.latents] + [(args.latents[len(args.latents) // 2], k) for k in args.k[1:]]
    kinds = [
        (
            {"gate": gate} | ({"activation": {"kind": "jumprelu", "coefficient": c}} if c is not None else {}),
            times,
            kept,
        )
        for gate in args.gate
        for c in (args.coefficient if gate == "per-source" else [None])
        for times in args.times
        for kept in args.kept
    ]
    for (F, k), (kind, times, kept), lr in itertools.product(sizes, kinds, args.lr or [None]):
        if F % widths[0]:
            parser.error(f"--latents {F}: not a multiple of the width {widths[0]}")
        if time.perf_counter() - began > args.seconds:
            break
        own = recipe.crosscoder | kind | ({} if lr is None else {"lr": lr})
        one = recipe.model_copy(update={"expansion": F // widths[0], "k": k, "crosscoder": own})
        done.append(compare(one, sources, widths, train_on, test_on, kept, times, made))
        if not args.json:
            _tell(done[-1], names)
        if args.write:  # after each: they take minutes
            args.write.write_text(table(done, names, args.rows), encoding="utf-8")
    if args.json:
        print(json.dumps(done, indent=2))


def table(done: list[dict[str, Any]], names: list[str], rows: int) -> str:
    """The comparisons as Markdown."""
    lines = [
        "# What sharing one code over snapshots costs",
        "",
        (
            f"Written by `python benchmarks/gap.py --write`: crosscoders over {len(names)} snapshots of mini-pythia at"
            f" L2R ({names[0]} to {names[-1]}),"
        ),
        (
            f"beside one SAE per snapshot with F alone latents, the same k, and the same {rows:,} rows. L0: latents on"
            " per row and snapshot. Held-out explained variance, mean over"
        ),
        (
            "snapshots; gap in points with a 95 % bootstrap interval over held-out batches, over all snapshots and over"
            " those from the turning point on."
        ),
        "",
        "| gate | F | F alone | k | L0 | crosscoder | alone | gap | late gap | dead |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in done:
        cells = [
            _named(one),
            one["F"],
            one["F alone"],
            one["k"],
            f"{one['L0']:.2f}",
            f"{one['EV crosscoder']:.3f}",
            f"{one['EV alone']:.3f}",
            _points(one["gap"]),
            _points(one["late"]),
        ]
        cells.append(f"{one['dead']:.0%}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def _named(one: dict[str, Any]) -> str:
    if one["coefficient"] is None:
        return f"{one['gate']}, {one['k']} of {one['kept']} shared" if one["kept"] else str(one["gate"])
    return (
        f"{one['gate']}, coefficient {one['coefficient']:g} (L0 {one['L0 as trained']:.1f} by itself, thresholds x"
        f" {one['factor']:.2f})"
    )


def _points(row: dict[str, Any] | None) -> str:
    return "not known" if row is None else f"{100 * row['value']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def _tell(found: dict[str, Any], names: list[str]) -> None:
    print(
        f"{_named(found):>13} F {found['F']:>5} (alone {found['F alone']}) k {found['k']:>3} L0"
        f" {found['L0']:.2f} lr {found['lr']:g} {found['steps']} steps"
        f" ({found['seconds of the crosscoder']} s, {found['dead']:.0%} dead): EV {found['EV crosscoder']:.3f}, alone"
        f" {found['EV alone']:.3f}; gap {_points(found['gap'])} points, from the turning point on"
        f" {_points(found['late'])}"
    )
    print("   " + "  ".join(f"{n} {100 * g:.1f}" for n, g in zip(names, found["by source"], strict=True)), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
