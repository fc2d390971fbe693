"""Running claims: each is measured once, written as a complete result, and judged by its fixed criterion."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from sae import system
from sae.errors import MismatchError, UserError
from sae.files import read_json, sha256_json, write_json
from workbench.claims import protocol
from workbench.claims.base import NOT_TESTABLE, Claim, Finding, judgement, untestable
from workbench.claims.code import code_digest
from workbench.claims.lab import Lab
from workbench.results.reuse import reusable
from workbench.run import Run
from workbench.workspace import Item, Workspace


def recipe_of(claim: Claim, lab: Lab) -> dict[str, Any]:
    """What decides a claim's result besides the data: the code it rests on, the protocol, seeds and size."""
    return {
        "claim": sha256_json([claim.id, code_digest(claim.measure.__module__)])[:16],
        "protocol": protocol.digest(protocol.of_claim(claim)),
        "seeds": lab.seeds,
        "quick": lab.quick,
    }


def complete_claim(claim: Claim, lab: Lab) -> dict[str, Any] | None:
    """The document of a claim that the workspace holds already, measured in the same way; None where it must be
    measured, as one is whose code has changed since.

    Raises:
        MismatchError: it was measured with other seeds, at another size or under another protocol, and
        ``lab.replace`` is false.
    """
    if not lab.workspace.complete("claims", claim.id):
        return None
    if lab.workspace.get("claims", claim.id).manifest.numbers["verdict"] == NOT_TESTABLE:
        return None  # what was missing may have come
    recipe = recipe_of(claim, lab)
    stored = lab.workspace.get("claims", claim.id).manifest.recipe or {}
    if stored.get("claim") != recipe["claim"] and {**stored, "claim": recipe["claim"]} == recipe:
        lab.say(f"{claim.id}: the code it rests on has changed, measured again")
        return None
    words = {"claim": "the code it rests on", "protocol": "what the protocol says of it"}
    quiet = Run(replace=lab.replace)
    have = reusable(lab.workspace, "claims", claim.id, recipe=recipe, run=quiet, words=words)
    return None if have is None else document_of(have)


def run_claim(claim: Claim, lab: Lab) -> dict[str, Any]:
    """Measure one claim (or reuse its complete result) and return its document."""
    if (have := complete_claim(claim, lab)) is not None:
        return have
    lab.say(f"{claim.id}: {claim.statement}")
    try:
        finding = claim.measure(lab)
    except MismatchError:  # an experiment of another size is there: for the user to replace, and no result
        raise
    except UserError as e:  # what the bundled models or this workspace cannot carry is a result, and says why
        finding = untestable(str(e))
    document = describe(claim, finding)
    numbers = {"verdict": document["verdict"], "n": document["n"], "effect": document["effect"]}
    with lab.workspace.create(
        "claims",
        claim.id,
        replace=True,
        command=f"workbench reproduce --only {claim.id}",
        recipe=recipe_of(claim, lab),
        numbers=numbers,
    ) as folder:
        write_json(folder / "finding.json", document)
        if finding.table is not None:
            finding.table.to_parquet(folder / "table.parquet", index=False)
    return document_of(lab.workspace.get("claims", claim.id))


def describe(claim: Claim, finding: Finding) -> dict[str, Any]:
    """The document of one claim: its text, what was measured, the control, the evidence and the verdict."""
    found, judged = finding.as_dict(), judgement(claim, finding)
    note = "; ".join(t for t in (judged.why, found["note"]) if t)
    return {
        "claim": claim.id,
        "paper": claim.paper,
        "section": claim.section,
        "statement": claim.statement,
        "paper_number": claim.paper_number,
        "experiment": claim.experiment,
        "criterion": claim.rule.words(finding.effect.unit),
        "control": claim.control,
        "control_measured": found["control"],
        "effect": found["effect"],
        "n": finding.effect.n,
        "unit": claim.unit,
        "p": None if math.isnan(judged.p) else judged.p,
        "p_exact": None if math.isnan(judged.p_exact) else judged.p_exact,
        "verdict": judged.verdict,
        "would_change": claim.would_change,
        "note": note,
        **found["more"],
    }


def document_of(item: Item) -> dict[str, Any]:
    """The document of a complete claim, with its data version."""
    return {**read_json(item.path / "finding.json"), "version": item.version}


def run_all(
    claims: Sequence[Claim],
    workspace: Workspace,
    *,
    seeds: int,
    quick: bool,
    retrain: bool = False,
    replace: bool = False,
    workers: int = 1,
    say: Callable[[str], None],
    done: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """Run claims; ``done`` is told each document as it is complete. Interrupted runs go on where they stopped.

    Args:
        workers: processes that share the work, each with its part of the cores; more than one needs claims of the
            registry. With one everything happens here, in the order of the claims.

    Returns:
        The documents, in the order of the claims.

    Raises:
        MismatchError: a claim is there that was measured otherwise, and ``replace`` is false.
    """
    lab = Lab(workspace, seeds=seeds, quick=quick, retrain=retrain, replace=replace, say=say)
    documents: dict[str, dict[str, Any]] = {}

    def report(document: dict[str, Any]) -> None:
        documents[document["claim"]] = document
        done(document)

    missing = []
    for claim in claims:
        if (have := complete_claim(claim, lab)) is not None:
            report(have)
        else:
            missing.append(claim)
    together = workers > 1 and len(missing) > 1
    if retrain:
        _say_trainings(missing, lab, workers if together else 1)
    if together:
        from workbench.claims.pool import run_tasks, tasks_of

        lab.threads = max(1, system.cores() // workers)
        run_tasks(tasks_of(missing, retrain=retrain), lab, workers, report)
    else:
        for claim in missing:
            report(run_claim(claim, lab))
    return [documents[c.id] for c in claims]


def _say_trainings(claims: Sequence[Claim], lab: Lab, workers: int) -> None:
    """Which models are trained first for these claims, and how long that takes."""
    wanted = dict.fromkeys(n.removeprefix("variant ") for c in claims for n in c.needs if n.startswith("variant "))
    minutes = {name: taken for name in wanted if (taken := lab.to_train(name)) > 0}
    if minutes:
        # they share no cores: the longest of them, or all of them in turns, whichever ends later
        together = max(max(minutes.values()), sum(minutes.values()) / workers)
        lab.say(
            f"{len(minutes)} model{'s are' if len(minutes) > 1 else ' is'} trained for this, about {together:.0f}"
            f" minutes with {workers} process{'es' if workers > 1 else ''}: {', '.join(minutes)}"
        )
