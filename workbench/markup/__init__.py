"""Tokens, tables, small charts and latents as HTML: what the pages, exported files and notebooks share.

No Streamlit, no torch.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def look(name: str = "look.css") -> str:
    """A style sheet of this package; ``look.css`` is that of everything in it."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
