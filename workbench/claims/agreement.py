"""Does a run agree with results written earlier? Claim by claim: verdict, effect and control, each within its own
interval.

``workbench reproduce --write docs/RESULTS.md`` leaves the numbers as ``docs/RESULTS.json`` beside the page; this is
what is compared.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae.errors import CorruptError, MissingError, UsageError
from sae.files import read_json
from workbench.claims import all_claims, protocol
from workbench.claims.rules import CONTRADICTED, INCONCLUSIVE, NOT_TESTABLE, SUPPORTED

ROUNDING = 1e-9  # sizes below this are rounding error, whatever they are
POINT = 0.5  # two numbers without intervals may differ by this share of the larger
BORDERS = ({INCONCLUSIVE, SUPPORTED}, {INCONCLUSIVE, CONTRADICTED})  # where the end of an interval decides
_KEYS = ("claim", "verdict", "effect", "control_measured")


@dataclass(frozen=True)
class Disagreement:
    """One claim, and in which way two results of it differ."""

    claim: str
    what: str

    def __str__(self) -> str:
        return f"{self.claim}: {self.what}"


def results_document(
    documents: Sequence[dict[str, Any]],
    *,
    seeds: int,
    quick: bool,
    retrain: bool,
    kind: str = protocol.EXPLORATORY,
    unmeasured: Sequence[str] = (),
) -> dict[str, Any]:
    """What is written beside a results page: the size of the run and every claim's numbers, without what varies from
    run to run.
    """
    claims = [{k: v for k, v in d.items() if k != "version"} for d in documents]
    frozen = protocol.frozen()
    about = {"schema": 2, "protocol": frozen["digest"], "protocol_date": frozen["date"], "kind": kind}
    about |= {"not_measured": list(unmeasured)} if unmeasured else {}
    return about | {"seeds": seeds, "quick": quick, "retrain": retrain, "claims": claims}


def read_results(path: Path) -> dict[str, Any]:
    """A results document; of a page (``RESULTS.md``) the one beside it.

    Raises:
        MissingError: no such file. CorruptError: it is no results document.
    """
    file = path.with_suffix(".json") if path.suffix == ".md" else path
    if not file.is_file():
        raise MissingError(
            f"{file} does not exist. `workbench reproduce all --write {path.with_suffix('.md')}` makes it."
        )
    document = read_json(file)
    claims = document.get("claims") if isinstance(document, dict) else None
    if not isinstance(claims, list) or any(not isinstance(c, dict) or any(k not in c for k in _KEYS) for c in claims):
        raise CorruptError(f"{file} is not a results document: its claims lack {', '.join(_KEYS)}.")
    return document


def check_size(path: Path, *, seeds: int, quick: bool, retrain: bool) -> dict[str, Any]:
    """The results document of ``path`` (see :func:`read_results`), if a run of this size can be held against it.

    Without ``retrain`` the claims that need models trained for them are left out of it: they can be compared only by
    training those models again.

    Raises:
        UsageError: seeds or quick differ, or it has no retrained claims and ``retrain`` asks for them; the message has
        the options to give, or the page beside it that is of this size. Or the results are older than the protocol,
        with other verdicts on other measures.
    """
    earlier = read_results(path)
    if "protocol" not in earlier:
        raise UsageError(
            f"{path} was made before there was a protocol: its verdicts (found, not found) are of other measures, and"
            f" nothing can be held against them. `workbench reproduce all --write {path.with_suffix('.md')}` makes it"
            " anew."
        )
    mine, theirs = (seeds, quick, retrain), _size(earlier)
    if (seeds, quick, True) == theirs and not retrain:
        anew = _trained_anew()
        return earlier | {"claims": [c for c in earlier["claims"] if c["claim"] not in anew]}
    if mine != theirs:
        options = f"--seeds {theirs[0]}{' --quick' if theirs[1] else ''}{' --retrain' if theirs[2] else ''}"
        fitting = [
            p
            for p in sorted(path.parent.glob(f"{path.stem}*.json"))
            if p != path.with_suffix(".json") and _is_of(p, mine)
        ]
        other = f", or compare with {fitting[0].with_suffix('.md')}" if fitting else ""
        raise UsageError(f"those results were made with {options}; run with the same options to compare{other}.")
    return earlier


def kept_of(path: Path, measured: Collection[str], *, seeds: int, quick: bool, whole: bool) -> dict[str, Any]:
    """What stays of the results page at ``path`` when a run writes there that did not measure all of its claims.

    A run of one claim, or of one paper, adds to the page of its own size and protocol; a run of all replaces what it
    measures and leaves the claims that need models trained for them.

    Args:
        measured: ids of the claims that the run writes. whole: it is a run of all claims.

    Returns:
        Its document with the claims that stay; without any where there is no page, or where a whole run replaces one
        of another size or protocol.

    Raises:
        UsageError: the run is a part, and the page is of another size or protocol: it would be lost.
    """
    if not path.with_suffix(".json").is_file():
        return {"claims": []}
    earlier = read_results(path)
    theirs = (earlier.get("seeds"), earlier.get("quick"), earlier.get("protocol"))
    if theirs != (seeds, quick, protocol.frozen()["digest"]):
        if whole:
            return {"claims": []}
        size = f"--seeds {theirs[0]}{' --quick' if theirs[1] else ''}, protocol {str(theirs[2])[:12]}"
        raise UsageError(
            f"{path} holds the results of another run ({size}), which one part of this one would replace. Write to"
            " another file, or run all."
        )
    stay = _trained_anew() if whole else {c["claim"] for c in earlier["claims"]}
    return earlier | {"claims": [c for c in earlier["claims"] if c["claim"] in stay - set(measured)]}


def _trained_anew() -> set[str]:
    return {c.id for c in all_claims() if c.trained_anew}


def _size(document: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(document.get(k) for k in ("seeds", "quick", "retrain"))


def _is_of(file: Path, size: tuple[Any, ...]) -> bool:
    try:
        return _size(read_results(file)) == size
    except (CorruptError, MissingError):
        return False


def disagreements(
    documents: Sequence[dict[str, Any]], earlier: dict[str, Any], *, complete: bool = True
) -> list[Disagreement]:
    """Where a run and earlier results differ by more than their intervals.

    Two intervals agree where they overlap; a number without one (or with one of no width, all units being equal) agrees
    with an interval that holds it, and with another number within half of the larger (or where both are rounding
    error). Verdicts must be equal, or differ in that one of them is *inconclusive*: then the end of an interval lies
    on this side of the criterion in one run and on that side in the other (see :func:`at_the_border`).

    Args:
        complete: the run holds every claim; then a claim that only one side has is a disagreement (but for those the
            earlier run says it did not measure).
    """
    here = {d["claim"]: d for d in documents}
    there = {d["claim"]: d for d in earlier["claims"]}
    found = []
    for claim in [c for c in there if c in here] + [c for c in here if c not in there]:
        if claim not in there and claim in earlier.get("not_measured", ()):
            continue
        if claim not in there:
            found.append(Disagreement(claim, "is not among the earlier results"))
            continue
        new, old = here[claim], there[claim]
        verdicts = {new["verdict"], old["verdict"]}
        if len(verdicts) > 1 and verdicts not in BORDERS:
            found.append(Disagreement(claim, f"{new['verdict']}, earlier {old['verdict']}"))
            continue
        if NOT_TESTABLE in verdicts:
            continue
        for what, key in (("effect", "effect"), ("control", "control_measured")):
            if not close(new[key], old[key]):
                found.append(Disagreement(claim, f"{what} {_shown(new[key])}, earlier {_shown(old[key])}"))
    if complete:
        found += [Disagreement(c, "is missing from this run") for c in there if c not in here]
    return found


def at_the_border(documents: Sequence[dict[str, Any]], earlier: dict[str, Any]) -> list[Disagreement]:
    """Claims whose numbers agree and whose verdict is *inconclusive* in one of both runs only."""
    differ = {d.claim for d in disagreements(documents, earlier, complete=False)}
    there = {d["claim"]: d["verdict"] for d in earlier["claims"]}
    return [
        Disagreement(d["claim"], f"{d['verdict']}, earlier {there[d['claim']]}; effect and control agree")
        for d in documents
        if d["claim"] not in differ and there.get(d["claim"], d["verdict"]) != d["verdict"]
    ]


def close(a: dict[str, Any] | None, b: dict[str, Any] | None) -> bool:
    """Whether two measured values agree within their intervals (see :func:`disagreements`)."""
    x, y = (None if m is None else m.get("value") for m in (a, b))
    if x is None or y is None or a is None or b is None:
        return x is None and y is None
    (a_low, a_high), (b_low, b_high) = _ends(a), _ends(b)
    if a_low <= b_high and b_low <= a_high:
        return True
    size = max(abs(x), abs(y))
    without = a_low == a_high and b_low == b_high
    return size <= ROUNDING or (without and abs(x - y) <= POINT * size)


def _ends(m: dict[str, Any]) -> tuple[float, float]:
    v = m["value"]
    low, high = m.get("low"), m.get("high")
    return (v if low is None else min(low, v)), (v if high is None else max(high, v))


def _shown(m: dict[str, Any] | None) -> str:
    if m is None or m.get("value") is None:
        return "none"
    return f"{m['value']:.4g}" + ("" if m.get("low") is None else f" [{m['low']:.4g}, {m['high']:.4g}]")
