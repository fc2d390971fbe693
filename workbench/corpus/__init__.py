"""Text for the models: documents, a token stream, and the fixed token plan every harvest and every training batch comes
from.

The bundled mixture (``kind="mini"``) is the text of the running Python's own standard library, on every machine and
never shipped, mixed with synthetic windows (:mod:`workbench.corpus.synthetic`). Documents fall into ``train`` or
``heldout`` by a hash of their name, so the split does not move when files come or go. Other kinds read local text,
JSONL or Parquet, or stream a dataset of the hub (:mod:`workbench.corpus.hub`).
"""

from workbench.corpus.config import CorpusConfig, Split
from workbench.corpus.contract import TokenContract, contract_of
from workbench.corpus.documents import documents, in_split, local_documents
from workbench.corpus.installed import stdlib_documents
from workbench.corpus.mixture import mixed_windows, text_windows
from workbench.corpus.plan import TokenPlan, plan_tokens
from workbench.corpus.stream import TextStream, bos_id, frequencies, text_stream

__all__ = [
    "CorpusConfig",
    "Split",
    "TextStream",
    "TokenContract",
    "TokenPlan",
    "bos_id",
    "contract_of",
    "documents",
    "frequencies",
    "in_split",
    "local_documents",
    "mixed_windows",
    "plan_tokens",
    "stdlib_documents",
    "text_stream",
    "text_windows",
]
