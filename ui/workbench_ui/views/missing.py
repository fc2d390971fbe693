"""What a workspace does not have yet, and the command that makes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import workbench
from workbench_ui.kit.index import Index

OF_THE_MINIATURES = ("evolution", "claims")  # their commands run on the bundled models, not on the reader's own


@dataclass(frozen=True)
class Gap:
    """Something absent: what, why one would want it, and the command."""

    what: str
    why: str
    command: str


def verb_exists(verb: str) -> bool:
    """Whether this installation has the verb."""
    return (Path(workbench.__file__).parent / "cli" / f"{verb}.py").is_file()


def of_the_miniatures(index: Index) -> bool:
    """Whether the dictionaries are of the models that come with the program."""
    return any(d.model.startswith("mini-") for d in index.dictionaries.values())


def gaps(index: Index) -> list[Gap]:
    """Everything missing, in the order in which it is made; only commands that exist."""
    dictionaries = list(index.dictionaries.values())
    if not dictionaries:
        return [
            Gap(
                "Dictionaries",
                "Makes models, stores, dictionaries and latents in about three minutes.",
                "workbench demo",
            )
        ]
    own = of_the_miniatures(index)
    found = [
        (verb, what, why, arguments)
        for kind, verb, what, why, arguments in _analyses(index)
        if not index.of(kind) and (own or kind not in OF_THE_MINIATURES)
    ]
    bare = [d for d in dictionaries if d.records is None and d.has_rows]
    if bare:
        others = f", and of {len(bare) - 1} more" if len(bare) > 1 else ""
        found.append(
            (
                "features",
                f"Latents of {bare[0].id}{others}",
                "Contexts, histograms and logit effects for the browser.",
                bare[0].id,
            )
        )
    return [
        Gap(what, why, f"workbench {verb} {arguments}") for verb, what, why, arguments in found if verb_exists(verb)
    ]


def _analyses(index: Index) -> list[tuple[str, str, str, str, str]]:
    """(kind, verb, what, why, arguments) of every analysis, with arguments that fit this workspace."""
    dictionaries = list(index.dictionaries.values())
    first = next((d for d in dictionaries if d.records is not None), dictionaries[0])  # what one can look at first
    one, model = first.id, first.model
    pair = _pair(index)
    compared = (
        [("matches", "compare", "Matches", "Which latents of one model have a twin in the other.", " ".join(pair))]
        if pair
        else []
    )
    return [
        (
            "evaluations",
            "evaluate",
            "Evaluations",
            "Loss recovered, explained variance and dead latents on held-out text.",
            one,
        ),
        (
            "explanations",
            "explain",
            "Labels",
            "What latents fire on, by rule, with held-out precision and recall.",
            one,
        ),
        (
            "trust",
            "trust",
            "Evidence",
            "Is this latent real? Other seeds, its effect, near misses, beside chance.",
            one,
        ),
        *compared,
        ("circuits", "circuits", "Circuits", "Induction by path patching, and Mamba's off-by-one state.", model),
        (
            "states",
            "states",
            "What is written and read",
            "Token by token: what is kept, for how long, by whom read.",
            model,
        ),
        (
            "evolution",
            "evolve",
            "Evolution over training",
            "Birth, growth and death of latents over snapshots.",
            "mini-evolve",
        ),
        ("maps", "map", "Map of decoder directions", "Families of latents at a glance.", one),
        (
            "claims",
            "reproduce",
            "Results",
            "What three papers found, measured again here, with controls and verdicts.",
            "all --quick",
        ),
        (
            "graphs",
            "graph",
            "Attribution graph",
            "Which latents make the next token of a prompt.",
            f'"def __init__(self" --model {model}',
        ),
    ]


def _pair(index: Index) -> tuple[str, str] | None:
    """One dictionary of each architecture, at the same site where possible."""
    by = {name: [d for d in index.dictionaries.values() if d.architecture == name] for name in ("Transformer", "Mamba")}
    if not by["Transformer"] or not by["Mamba"]:
        two = list(index.dictionaries)[:2]
        return (two[0], two[1]) if len(two) == 2 else None
    a = by["Transformer"][-1]
    b = next((d for d in by["Mamba"] if d.site == a.site), by["Mamba"][-1])
    return a.id, b.id
