"""Tokens, tables, small charts and latents as HTML: what the pages, exported files and notebooks share. No Streamlit, no torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def look() -> str:
    """The style sheet of everything in this package."""
    return (Path(__file__).parent / "look.css").read_text(encoding="utf-8")
