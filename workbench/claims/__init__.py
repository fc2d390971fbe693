"""The findings of the three papers, one small file per claim, re-run on the bundled models.

A claim states what a paper found, how it is measured here, the control under which the effect must vanish, and the
criterion, all fixed before the run. :func:`all_claims` finds every ``CLAIM`` in the sub-packages, so a new claim is one
new file.
"""

from __future__ import annotations

import importlib
import pkgutil

from workbench.claims.base import Claim, Finding, Measured, verdict
from workbench.claims.lab import Lab

PAPERS = ("llama-scope", "universality", "evolution")
__all__ = ["PAPERS", "Claim", "Finding", "Lab", "Measured", "all_claims", "verdict"]


def all_claims(paper: str | None = None) -> list[Claim]:
    """Every claim, paper by paper and by file name; of one ``paper`` where given."""
    found = []
    for name in PAPERS:
        if paper not in (None, "all", name):
            continue
        package = importlib.import_module(f"workbench.claims.{name.replace('-', '_')}")
        for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
            loaded = importlib.import_module(f"{package.__name__}.{module}")
            claims = getattr(loaded, "CLAIMS", None) or (getattr(loaded, "CLAIM", None),)
            found += [c for c in claims if c is not None]
    return found
