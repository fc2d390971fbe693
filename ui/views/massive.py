"""One sentence on the massive activations of a record: how many, what they hold, and where they are."""

from __future__ import annotations

from workbench.markup.tokens import escape
from workbench.results.records import LatentRecords


def massive_html(records: LatentRecords) -> str:
    """The sentence as HTML; empty where the record has no massive rows, or was made before they were counted."""
    about = records.metadata.get("massive")
    if not about or not about["n"]:
        return ""
    vocab = records.vocab
    where = ", ".join(f"{p} ({n:,}×)" for p, n in about["positions"][:3])
    tokens = ", ".join(f"<code>{escape(vocab[t])}</code> ({n:,}×)" for t, n in about["tokens"][:3])
    share = about["n"] / about["n_rows"]
    return (
        f"<b>Massive activations:</b> {about['n']:,} of {about['n_rows']:,} rows ({share:.2%}) are longer than ten"
        f" median norms and hold {about['square_share']:.0%} of all squared norm. Positions {where}; tokens {tokens}."
        " Training leaves them out; what is shown here has them."
    )
