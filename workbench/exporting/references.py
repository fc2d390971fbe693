"""BibTeX entries for what a figure rests on. A figure names the keys it needs; the program itself is always cited."""

from __future__ import annotations

from collections.abc import Sequence

from sae.errors import UsageError
from sae.strict import nearest
from workbench.version import __version__

ENTRIES: dict[str, tuple[str, dict[str, str]]] = {
    "workbench": (
        "misc",  # plain.bst knows no @software
        {
            "title": "{Interpretability Workbench}",
            "author": "{Interpretability Workbench contributors}",
            "howpublished": f"Computer program, version {__version__}",
            "year": "2026",
        },
    ),
    "universality": (
        "inproceedings",
        {
            "title": "Towards Universality: Studying Mechanistic Similarity Across Language Model Architectures",
            "author": "Wang, Junxuan and Ge, Xuyang and Shu, Wentao and others",
            "booktitle": "International Conference on Learning Representations",
            "year": "2025",
            "eprint": "2410.06672",
            "archiveprefix": "arXiv",
        },
    ),
    "llamascope": (
        "misc",
        {
            "title": "{Llama Scope}: Extracting Millions of Features from {Llama-3.1-8B} with Sparse Autoencoders",
            "author": "He, Zhengfu and Shu, Wentao and Ge, Xuyang and others",
            "year": "2024",
            "eprint": "2410.20526",
            "archiveprefix": "arXiv",
        },
    ),
    "evolution": (
        "misc",
        {
            "title": "Evolution of Concepts in Language Model Pre-Training",
            "author": "Ge, Xuyang and Shu, Wentao and others",
            "year": "2025",
            "eprint": "2509.17196",
            "archiveprefix": "arXiv",
        },
    ),
    "massive": (
        "misc",
        {
            "title": "Massive Activations in Large Language Models",
            "author": "Sun, Mingjie and Chen, Xinlei and Kolter, J. Zico and Liu, Zhuang",
            "year": "2024",
            "eprint": "2402.17762",
            "archiveprefix": "arXiv",
        },
    ),
    "topk": (
        "misc",
        {
            "title": "Scaling and evaluating sparse autoencoders",
            "author": "Gao, Leo and Dupr{\\'e} la Tour, Tom and Tillman, Henk and others",
            "year": "2024",
            "eprint": "2406.04093",
            "archiveprefix": "arXiv",
        },
    ),
    "crosscoders": (
        "misc",
        {
            "title": "Sparse Crosscoders for Cross-Layer Features and Model Diffing",
            "author": "Lindsey, Jack and Templeton, Adly and Marcus, Jonathan and others",
            "howpublished": "Transformer Circuits Thread",
            "year": "2024",
        },
    ),
    "pythia": (
        "inproceedings",
        {
            "title": "{Pythia}: A Suite for Analyzing Large Language Models Across Training and Scaling",
            "author": "Biderman, Stella and Schoelkopf, Hailey and others",
            "booktitle": "International Conference on Machine Learning",
            "year": "2023",
            "eprint": "2304.01373",
            "archiveprefix": "arXiv",
        },
    ),
    "writesae": (
        "misc",
        {
            "title": "{WriteSAE}: Sparse Autoencoders for Recurrent State",
            "author": "Young, Jack",
            "year": "2026",
            "eprint": "2605.12770",
            "archiveprefix": "arXiv",
        },
    ),
    "mamba": (
        "misc",
        {
            "title": "{Mamba}: Linear-Time Sequence Modeling with Selective State Spaces",
            "author": "Gu, Albert and Dao, Tri",
            "year": "2023",
            "eprint": "2312.00752",
            "archiveprefix": "arXiv",
        },
    ),
}


def bibtex(keys: Sequence[str], *, comment: str = "") -> str:
    """The entries for ``keys`` (and the program's own), in alphabetical order.

    Raises:
        UsageError: an unknown key.
    """
    wanted = sorted({"workbench", *keys})
    for key in wanted:
        if key not in ENTRIES:
            raise UsageError(f"reference {key!r} is not known ({nearest(key, list(ENTRIES))})")
    out = [f"% {comment}\n"] if comment else []
    for key in wanted:
        kind, fields = ENTRIES[key]
        body = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
        out.append(f"@{kind}{{{key},\n{body}\n}}\n")
    return "\n".join(out)


def of_models(models: Sequence[str]) -> tuple[str, ...]:
    """Keys of the architectures that model names speak of."""
    names = " ".join(models).lower()
    return tuple(k for k in ("pythia", "mamba") if k in names)
