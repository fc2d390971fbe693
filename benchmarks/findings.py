"""Which findings about training survive another kind of crosscoder.

The claims of the evolution paper are read off one kind, Top-K with one magnitude of a latent for all snapshots. Here
the same claims are measured on every kind, with the same rules, seeds, rows and snapshots, and stand side by side.
Effects and intervals are to be compared, not verdicts: of two seeds these differ by chance.

The last two columns share no code at all: one SAE per snapshot, whose latents are chained by what they share given the
token (:mod:`workbench.analysis.evolution.chains`), every seed's beginnings through the next seed's SAEs; or each
snapshot's best partner, chained or not. Three of the findings can be asked of them, with the same rules.

    python benchmarks/findings.py [--workspace DIR] [--seeds 2] [--kinds KIND ...] [--full] [--write PAGE]
    python benchmarks/findings.py --quick               # one kind, one seed: shows that it runs

Without ``--full`` each is measured at the size of ``workbench reproduce --quick``. Complete crosscoders are reused.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _chained import chained

from workbench.claims import all_claims
from workbench.claims.base import Claim, Finding, judgement
from workbench.claims.lab import Lab
from workbench.claims.page import shown
from workbench.workspace import Workspace

KINDS: dict[str, dict[str, Any]] = {  # fields of EvolveRecipe
    "one magnitude": {},
    "own magnitudes": {"crosscoder": {"gate": "own-magnitude"}},
    "BatchTopK": {"crosscoder": {"activation": "batchtopk"}},
    "JumpReLU per source": {
        "crosscoder": {"activation": {"kind": "jumprelu", "coefficient": 0.3}, "gate": "per-source"},
        "refit": 0,  # its decoder norms decide which latents are on
    },
}
CHAINED = {"SAEs, chained": True, "SAEs, best partner": False}  # from partner to partner, or each snapshot's own
FINDINGS = (
    "emergent-latents",
    "initialisation-dip",
    "two-groups",
    "turning-point",
    "dimensionality",
    "previous-token-before-induction",
    "induction-before-context",
    "complexity-and-emergence",
    "latents-precede-induction",
)


@dataclass
class OneKind(Lab):
    """A lab whose crosscoders are of one kind."""

    kind: str = "one magnitude"

    def evolution_recipe(self, seed: int) -> Any:
        """The claims' recipe with this kind's fields and an id of its own."""
        recipe = super().evolution_recipe(seed)
        named = f"{recipe.id}.{self.kind.lower().replace(' ', '-')}"
        changed = {"id": named, **KINDS[self.kind]}
        changed["crosscoder"] = {**recipe.crosscoder, **changed.get("crosscoder", {})}
        return type(recipe).model_validate(recipe.model_dump() | changed)


def cell(claim: Claim, finding: Finding) -> str:
    """Effect with its interval, control, and on which side of the claim's rule they lie."""
    if finding.untestable:
        return f"not testable: {finding.untestable}"
    verdict = judgement(claim, finding).verdict
    control = "–" if finding.control is None else shown(finding.control.as_dict())
    return f"{verdict}: {shown(finding.effect.as_dict())}, control {control}"


def quality(lab: OneKind) -> str:
    """Held-out explained variance (mean over snapshots, and of the last), latents on per row and the share alive."""
    found = [lab.evolution(seed).manifest for seed in lab.each_seed()]
    ev = np.array([m.numbers["explained_variance"] for m in found])
    l0, alive = (np.mean([m.numbers[key] for m in found]) for key in ("l0", "alive"))
    return f"EV {ev.mean():.3f}, of the last {ev[:, -1].mean():.3f}, L0 {l0:.1f}, {alive:,.0f} alive"


def page(table: dict[str, dict[str, str]], seeds: int, size: str) -> str:
    """The table as Markdown."""
    kinds = list(table)
    lines = [
        f"# Which findings survive {'another kind of' if set(kinds) & set(KINDS) else 'without any'} crosscoder",
        "",
        f"Written by `python benchmarks/findings.py --write`: {seeds} seeds of every kind, {size}; effect, control, and"
        " what each claim's own rule makes of them. Verdicts of a few seeds differ by chance: compare effects and"
        " intervals.",
        "",
        f"| | {' | '.join(kinds)} |",
        f"|---|{'---|' * len(kinds)}",
    ]
    for row in table[kinds[0]]:
        cells = (table[kind][row].replace("|", "\\|") for kind in kinds)
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS, *CHAINED], default=[*KINDS, *CHAINED])
    parser.add_argument("--full", action="store_true", help="the size of `workbench reproduce` without --quick")
    parser.add_argument("--quick", action="store_true", help="one kind, one seed")
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.kinds, args.seeds = args.kinds[:1], 1
    workspace = Workspace(args.workspace or Path(tempfile.mkdtemp()) / "findings")
    claims = {name: next(c for c in all_claims("evolution") if c.id == f"evolution.{name}") for name in FINDINGS}
    table: dict[str, dict[str, str]] = {}
    for kind in args.kinds:
        lab = OneKind(
            workspace,
            seeds=args.seeds,
            quick=not args.full,
            kind=kind if kind in KINDS else "one magnitude",  # whose snapshots, text and phases chains are held against
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
        found, last = (
            chained(lab, by_chain=CHAINED[kind])
            if kind in CHAINED
            else ({name: c.measure(lab) for name, c in claims.items()}, "")
        )
        table[kind] = {name: cell(c, found[name]) if name in found else "–" for name, c in claims.items()}
        table[kind]["quality"] = last or quality(lab)
        for row, said in table[kind].items():
            print(f"{kind:20} {row:34} {said}", flush=True)
        if args.write:  # after every kind: each takes long
            size = "at full size" if args.full else "at the size of a quick run"
            args.write.write_text(page(table, args.seeds, size), encoding="utf-8")


if __name__ == "__main__":
    main()
