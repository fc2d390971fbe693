"""What a corpus is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializationInfo, SerializerFunctionWrapHandler, model_serializer, model_validator

from sae.strict import StrictConfig
from workbench.config import corpus_name
from workbench.corpus.records import OnBad

Split = Literal["train", "heldout", "all"]  # all: text that nothing was trained on, whole
_ADDED = (
    "packing",
    "dataset",
    "dataset_revision",
    "dataset_split",
    "subset",
    "shuffle_buffer",
    "on_bad",
    "heldout",
    "epochs",
    "dedupe",
    "parts",
    "weights",
    "roles",
)
_SHARES = ("tiled_share", "snippet_share", "agreement_share")
SUFFIXES = {
    "text": {".txt", ".md", ".py", ".rst", ".text"},
    "jsonl": {".jsonl", ".json"},
    "parquet": {".parquet"},
    "csv": {".csv", ".tsv"},
    "chat": {".jsonl", ".json", ".parquet"},
}
"""Files of a folder that are read, by kind of corpus."""

_WHOLE = ("text", "jsonl", "parquet", "csv", "chat")
_OF_KINDS: dict[str, tuple[str, ...]] = {
    "text_field": ("jsonl", "parquet", "csv", "chat", "hub"),
    "on_bad": (*_WHOLE, "hub"),
    "epochs": (*_WHOLE, "prose", "docs", "mix"),
    "dedupe": _WHOLE,
    "packing": (*_WHOLE, "mini", "prose", "docs", "hub"),
    "roles": ("chat",),
    **dict.fromkeys(("dataset_revision", "dataset_split", "subset", "shuffle_buffer"), ("hub",)),
}
"""Kinds of corpus in which an option does something; in others it is refused and not ignored."""
_OF_THE_MIX = ("split", "epochs", "seed", "heldout")


class CorpusConfig(StrictConfig):
    """Where tokens come from. Shares are fractions of the windows; what they leave is text.

    Only "mini", the mixture the miniature models were trained on, has synthetic windows where no share is named.

    ``kind``: "mini" (standard library), "prose" (its documentation only), "docs" (that, and of the installed packages;
    see :mod:`workbench.corpus.installed`), "text" | "jsonl" | "parquet" | "csv" (local ``paths``: files or folders),
    "chat" (JSONL or Parquet whose records hold messages, read through the tokenizer's chat template; ``roles`` says
    whose words are rows),
    "hub" (a ``dataset`` of the Hugging Face hub, or a folder that holds one; ``paths`` are then patterns of its files),
    "mix" (several corpora, ``parts``, by ``weights``; seed, split and epochs are the mix's own).
    """

    kind: Literal["mini", "prose", "docs", "text", "jsonl", "parquet", "csv", "chat", "hub", "mix"] = Field(
        "mini",
        description=(
            "mini (Python's library and synthetic windows), prose or docs (documentation on this"
            " machine), text, jsonl, parquet, csv or chat (local paths), hub (a data set), mix (several)"
        ),
    )
    seed: int = Field(0, description="of the order of windows and of synthetic text")
    split: Split = Field(
        "train",
        description="documents that training may read, those held out, or all (text that nothing was trained on)",
    )
    tiled_share: float = Field(
        default=0.12, ge=0, le=1, description="share of the windows that repeat one chunk of tokens"
    )
    snippet_share: float = Field(
        default=0.28, ge=0, le=1, description="share of the windows in which pieces of text come again"
    )
    agreement_share: float = Field(
        default=0.05, ge=0, le=1, description="share of the windows of templated sentences with subject and verb"
    )
    paths: tuple[str, ...] = Field((), description="local files or folders; hub: patterns of the data set's files")
    text_field: str = Field("text", description="field that holds a record's text (chat: its messages)")
    on_bad: OnBad = Field("skip", description="records without a text: left out and counted, or refused by line")
    epochs: int = Field(1, ge=1, description="passes over the training part of local text; held-out text never repeats")
    dedupe: bool = Field(False, description="leave out local documents that are near-copies of an earlier one")
    parts: tuple[CorpusConfig, ...] = Field((), description="mix: the corpora")
    roles: tuple[str, ...] = Field((), description="chat: whose words are rows (assistant, say); default: all tokens")
    weights: tuple[float, ...] = Field((), description="mix: share of the windows of each part; default: equal")
    packing: Literal["stream", "documents"] = Field(
        "stream", description="documents: one window each, shorter ones left out"
    )
    dataset: str = Field("", description="hub: name, or a folder")
    dataset_revision: str = Field("", description="hub: commit, tag or branch; the commit read is recorded")
    dataset_split: str = Field("train", description="hub: split of the data set")
    subset: str = Field("", description="hub: configuration of the dataset")
    shuffle_buffer: int = Field(
        0, ge=0, description="hub: documents shuffled together, by seed; 0 = the dataset's order"
    )
    heldout: Literal["windows", "documents"] = Field(
        "windows",
        description="documents: a plan's last tenth comes from documents of its own, as a store's always does",
    )

    @model_validator(mode="before")
    @classmethod
    def _plain_text(cls, values: Any) -> Any:
        """Anybody's text comes without synthetic windows, unless a recipe names their shares. What a part says as the
        mix does is said once.
        """
        if isinstance(values, dict) and values.get("kind") == "mix" and isinstance(values.get("parts"), (list, tuple)):
            mix = {n: values[n] for n in _OF_THE_MIX if n in values}
            parts = [
                {k: v for k, v in p.items() if k not in mix or v != mix[k]} if isinstance(p, dict) else p
                for p in values["parts"]
            ]
            values = {**values, "parts": parts}
        if isinstance(values, dict) and (values.get("kind", "mini") != "mini" or values.get("packing") == "documents"):
            named = {"text_field": "messages"} if values.get("kind") == "chat" else {}
            return {**dict.fromkeys(_SHARES, 0.0), **named, **values}
        return values

    @model_serializer(mode="wrap")
    def _as_recorded(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """What came later is left out where it says nothing, so older stores and cards keep their digests. As JSON, the
        form in which results keep it, it names files and folders by the last part of their path.
        """
        values = handler(self)
        if info.mode == "json":
            values["paths"] = list(self.paths if self.kind == "hub" else map(corpus_name, self.paths))
            folder = self.dataset.startswith((".", "~")) or Path(self.dataset).is_absolute()
            values["dataset"] = corpus_name(self.dataset) if folder else self.dataset
        unsaid: dict[str, tuple[Any, ...]] = {k: (type(self).model_fields[k].default, []) for k in _ADDED}
        return {k: v for k, v in values.items() if v not in unsaid.get(k, ())}

    @model_validator(mode="after")
    def _consistent(self) -> CorpusConfig:
        if self.tiled_share + self.snippet_share + self.agreement_share > 1:
            raise ValueError("tiled_share + snippet_share + agreement_share is more than 1")
        if (self.kind == "mix") != bool(self.parts):
            raise ValueError(f"kind {self.kind!r} takes {'parts' if self.kind == 'mix' else 'no parts'}")
        if self.kind == "mix" and (any(p.kind == "mix" for p in self.parts) or self.synthetic_share):
            raise ValueError(
                "a mix is of corpora that are no mixes, and has no synthetic windows but theirs: leave tiled_share,"
                " snippet_share and agreement_share out"
            )
        if self.weights and (len(self.weights) != len(self.parts) or min(self.weights) <= 0):
            raise ValueError("a mix has one positive weight for each part")
        if self.kind != "hub" and (self.kind in ("mini", "prose", "docs", "mix")) == bool(self.paths):
            raise ValueError(f"kind {self.kind!r} takes {'no paths' if self.paths else 'at least one path'}")
        if (self.kind == "hub") != bool(self.dataset):
            raise ValueError(f"kind {self.kind!r} takes {'a' if self.kind == 'hub' else 'no'} dataset")
        if self.roles and self.synthetic_share:
            raise ValueError("synthetic windows have no roles; leave the shares out, or roles")
        self._no_idle_options()
        if self.streamed and self.synthetic_share:
            raise ValueError(
                "streamed text (kind 'hub', or packing 'documents') takes no synthetic windows; leave the shares out"
            )
        if self.heldout == "documents" and (self.streamed or self.synthetic_share):
            raise ValueError(
                "heldout = 'documents' is for text that fits into memory (kind 'text', 'jsonl', …), without synthetic"
                " windows (tiled_share and the like)"
            )
        return self

    def _no_idle_options(self) -> None:
        """Refuse what was asked for and would do nothing.

        Raises:
            ValueError: naming the option and the kinds it is for.
        """
        for name, kinds in _OF_KINDS.items():
            value, unsaid = getattr(self, name), type(self).model_fields[name].default
            if value != unsaid and self.kind not in kinds:
                raise ValueError(
                    f"{name} = {value!r} does nothing in a corpus of kind {self.kind!r}; it is for {', '.join(kinds)}"
                )
        if self.streamed and (self.dedupe or self.epochs > 1):
            raise ValueError(
                "text that is packed as it is read (kind 'hub', or packing 'documents') is gone through once, and its"
                " near-copies are not looked for: leave dedupe and epochs out"
            )
        for part in self.parts:
            for name in _OF_THE_MIX:
                if getattr(part, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} belongs to the mix as a whole; set it there, not in its parts")

    @property
    def streamed(self) -> bool:
        """Whether documents are packed as they are read, instead of shuffled windows of a corpus that is held whole."""
        return self.kind == "hub" or self.packing == "documents"

    @property
    def synthetic_share(self) -> float:
        """Share of windows that are not text."""
        return self.tiled_share + self.snippet_share + self.agreement_share


def corpus_config(corpus: str, seed: int) -> CorpusConfig:
    """A corpus from the command line: all of local text, JSONL, Parquet or CSV files, or the held-out split of
    ``mini`` or ``prose``.
    """
    if corpus in ("mini", "prose"):
        return CorpusConfig.model_validate({"kind": corpus, "split": "heldout", "seed": seed})
    path = Path(corpus)
    found = {p.suffix.lower() for p in (path.rglob("*") if path.is_dir() else [path])}
    kind = next((k for k in ("jsonl", "parquet", "csv") if found & SUFFIXES[k]), "text")
    return CorpusConfig.model_validate({"kind": kind, "paths": (str(path),), "split": "all", "seed": seed})
