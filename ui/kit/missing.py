"""What a workspace does not have yet, and the command that makes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import workbench
from ui.kit.index import Index


@dataclass(frozen=True)
class Gap:
    """Something absent: what, why one would want it, and the command."""

    what: str
    why: str
    command: str


def verb_exists(verb: str) -> bool:
    """Whether this installation has the verb."""
    return (Path(workbench.__file__).parent / "cli" / f"{verb}.py").is_file()


def gaps(index: Index) -> list[Gap]:
    """Everything missing, in the order in which it is made; only commands that exist."""
    where = f"--workspace {index.root.name}"
    dictionaries = list(index.dictionaries.values())
    found: list[tuple[str, Gap]] = []
    if not dictionaries:
        found.append(
            (
                "demo",
                Gap("Dictionaries", "Makes models, stores, dictionaries and latents in about three minutes.", f"workbench demo {where}"),
            )
        )
    bare = [d for d in dictionaries if d.records is None]
    for d in bare[:4]:
        found.append(
            (
                "features",
                Gap(f"Latents of {d.id}", "Contexts, histograms and logit effects for the browser.", f"workbench features {d.id} {where}"),
            )
        )
    if len(bare) > 4:
        found.append(
            (
                "features",
                Gap(f"Latents of {len(bare) - 4} more dictionaries", "See the table below.", f"workbench features DICTIONARY {where}"),
            )
        )
    if dictionaries:
        sample = dictionaries[0].id
        pair = _pair(index)
        if not index.of("evaluations"):
            found.append(
                (
                    "evaluate",
                    Gap(
                        "Evaluations",
                        "Explained variance, loss recovered, dead latents on held-out text.",
                        f"workbench evaluate {sample} {where}",
                    ),
                )
            )
        if not index.of("matches") and pair:
            found.append(
                (
                    "compare",
                    Gap(
                        "Matches between dictionaries",
                        "Which latents of one model have a twin in the other.",
                        f"workbench compare {pair[0]} {pair[1]} {where}",
                    ),
                )
            )
        if not index.of("circuits"):
            found.append(
                ("circuits", Gap("Circuits", "Induction by path patching, and Mamba's off-by-one state.", f"workbench circuits {where}"))
            )
        if not index.of("evolution"):
            found.append(
                (
                    "evolve",
                    Gap("Evolution over training", "Birth, growth and death of latents over snapshots.", f"workbench evolve {where}"),
                )
            )
        if not index.of("maps"):
            found.append(("map", Gap("Map of decoder directions", "Families of latents at a glance.", f"workbench map {sample} {where}")))
    return [gap for verb, gap in found if verb_exists(verb)]


def _pair(index: Index) -> tuple[str, str] | None:
    """One dictionary of each architecture, at the same site where possible."""
    by = {name: [d for d in index.dictionaries.values() if d.architecture == name] for name in ("Transformer", "Mamba")}
    if not by["Transformer"] or not by["Mamba"]:
        two = list(index.dictionaries)[:2]
        return (two[0], two[1]) if len(two) == 2 else None
    a = by["Transformer"][-1]
    b = next((d for d in by["Mamba"] if d.site == a.site), by["Mamba"][-1])
    return a.id, b.id
