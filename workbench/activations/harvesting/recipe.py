"""What to harvest: the recipe of a store."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from sae.strict import StrictConfig
from workbench.activations.format.spec import DType
from workbench.corpus import CorpusConfig


class SourceRecipe(StrictConfig):
    """One model at one revision. ``hooks`` replaces the recipe's list, or maps its names to this model's own."""

    model: str
    revision: str | None = None
    name: str = ""
    hooks: tuple[str, ...] | dict[str, str] = ()

    @property
    def source(self) -> str:
        """The source's name in the store: given, or ``<model id>[@revision]``."""
        from workbench.models import model_id

        return self.name or model_id(self.model) + (f"@{self.revision}" if self.revision else "")


class HarvestRecipe(StrictConfig):
    """What to harvest. All sources see the same tokens, so their rows are aligned.

    ``hooks`` are hook names, sites (``L2R``) or patterns of sites (``*R``). ``threads`` belongs to the content, because
    the number of threads changes the last bits of a matrix product; ``workers`` does not.
    """

    id: str
    sources: tuple[SourceRecipe, ...] = Field(min_length=1)
    hooks: tuple[str, ...] = ()
    corpus: CorpusConfig = Field(default_factory=lambda: CorpusConfig.model_validate({}))
    n_seq: int = Field(1024, ge=2)
    ctx: int = Field(128, ge=2)
    dtype: DType = "float32"
    seqs_per_shard: int = Field(128, ge=1)
    batch_size: int = Field(32, ge=1)
    block_rows: int = Field(64, ge=1, le=1 << 16)
    exclude: tuple[int, ...] = (0,)
    exclude_ids: tuple[int, ...] | None = Field(None, description="ids without rows; default: BOS, EOS and pads")
    non_finite: Literal["refuse", "skip-sequence"] = "refuse"
    device: str = "cpu"
    model_dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = Field(1, ge=1, le=256)
    workers: int = Field(1, ge=1, le=256)

    def hooks_of(self, source: SourceRecipe) -> tuple[list[str], dict[str, str]]:
        """(hook names wanted of a source, what this source calls those it calls otherwise)."""
        renamed = source.hooks if isinstance(source.hooks, dict) else {}
        return list(self.hooks) if renamed or not source.hooks else list(source.hooks), renamed

    def content(self) -> dict[str, Any]:
        """The recipe as the store keeps it: without what does not change the content (models run in float32 unless it
        says more).
        """
        unsaid = {"workers"} | ({"model_dtype"} if self.model_dtype == "float32" else set())
        return self.model_dump(mode="json", exclude=unsaid | ({"exclude_ids"} if self.exclude_ids is None else set()))
