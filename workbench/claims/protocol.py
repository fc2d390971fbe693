"""The protocol: what every claim states, measures and asks, in one file with its digest and date.

``protocol.json`` beside this module is written by ``python -m workbench.claims.protocol DATE`` and never by hand; a
test holds it against the registry, so that no criterion changes without a new digest and date. A run is *confirmatory*
only if the protocol was there, unchanged, before any of its results; everything else is *exploratory*.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.errors import UsageError
from sae.files import read_json, sha256_json, write_json

if TYPE_CHECKING:
    from workbench.claims.base import Claim
    from workbench.workspace import Workspace

FILE = Path(__file__).with_name("protocol.json")
CONFIRMATORY, EXPLORATORY = "confirmatory", "exploratory"


def of_claim(claim: Claim) -> dict[str, Any]:
    """What is fixed about a claim before it is measured."""
    texts = ("statement", "experiment", "control", "unit", "construction", "unsettled")
    rule = {"kind": claim.rule.kind, "level": claim.rule.level, "control": claim.rule.control}
    return {"claim": claim.id, **{t: getattr(claim, t) for t in texts}, "rule": rule}


def digest(claims: Any) -> str:
    """sha256 of a claim's part of the protocol, or of several."""
    return str(sha256_json(claims))


def current() -> list[dict[str, Any]]:
    """The protocol as the registry has it."""
    from workbench.claims import all_claims

    return [of_claim(c) for c in all_claims()]


@cache
def frozen() -> dict[str, Any]:
    """The protocol file: digest, date, claims, and the log of verdicts that changed."""
    found: dict[str, Any] = read_json(FILE)
    return found


def check_confirmatory(workspace: Workspace, earlier: Sequence[dict[str, Any]] = ()) -> None:
    """Refuse to call a run confirmatory when results exist that were measured under another protocol.

    Args:
        earlier: results documents the run is held against or written over.

    Raises:
        UsageError: the registry is not the protocol of the file, or results of another protocol exist already.
    """
    now, file = digest(current()), frozen()
    if now != file["digest"]:
        raise UsageError(
            f"the claims ({now[:12]}) are not those of the protocol of {file['date']}"
            f" ({file['digest'][:12]}): this run is"
            " exploratory. Leave out --confirmatory."
        )
    own = {c["claim"]: digest(c) for c in file["claims"]}
    for item in workspace.items("claims"):
        under = (item.manifest.recipe or {}).get("protocol")
        if under != own.get(item.id):
            raise UsageError(
                f"{item.id} was measured under another protocol ({str(under)[:12]}) before this one of {file['date']}"
                f" ({file['digest'][:12]}): this run is exploratory. Leave out --confirmatory, or use a new workspace."
            )
    for document in earlier:
        if document.get("protocol") != file["digest"]:
            raise UsageError(
                f"results of the protocol {str(document.get('protocol'))[:12]} exist already; that of {file['date']}"
                f" ({file['digest'][:12]}) came after them: this run is exploratory. Leave out --confirmatory."
            )


def freeze(date: str) -> dict[str, Any]:
    """Write the protocol file for the registry as it is; the log of changed verdicts is kept."""
    claims = current()
    changes = read_json(FILE)["changes"] if FILE.is_file() else []
    document = {"date": date, "digest": digest(claims), "claims": claims, "changes": changes}
    write_json(FILE, document)
    return document


if __name__ == "__main__":
    done = freeze(sys.argv[1])
    print(f"protocol {done['digest'][:12]} of {done['date']}: {len(done['claims'])} claims")
