"""What to harvest: the recipe of a store."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from sae.strict import StrictConfig
from workbench.activations.format.spec import DType
from workbench.corpus import CorpusConfig


class SourceRecipe(StrictConfig):
    """One model at one revision. ``hooks`` replaces the recipe's list, or maps its names to this model's own."""

    model: str = Field(description="a bundled model, a name in the local Hugging Face cache, a folder or a GGUF file")
    revision: str | None = Field(None, description="snapshot of the model, such as step512; the last one by default")
    name: str = Field(
        "", description="what the store calls it; default: the model's name, with @revision where there is one"
    )
    hooks: tuple[str, ...] | dict[str, str] = Field(
        (),
        description=(
            "instead of the recipe's hooks: this model's own, or a table of theirs and what this model calls them"
        ),
    )

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

    id: str = Field(description="name of the store: it is written to stores/ID")
    sources: tuple[SourceRecipe, ...] = Field(
        min_length=1,
        description="the models, each with its snapshot; all read the same tokens, so their rows are aligned",
    )
    hooks: tuple[str, ...] = Field(
        (), description="what is kept: sites such as L2R, patterns such as *R, or hook names"
    )
    corpus: CorpusConfig = Field(
        default_factory=lambda: CorpusConfig.model_validate({}), description="the text, as a table of its own"
    )
    n_seq: int = Field(
        1024, ge=2, description="sequences that are read; the last tenth of them is held out from training"
    )
    ctx: int = Field(128, ge=2, description="tokens of a sequence")
    dtype: DType = Field("float32", description="precision in which rows are stored")
    seqs_per_shard: int = Field(
        128, ge=1, description="sequences of one file (shard): what an interrupted harvest has to make again"
    )
    batch_size: int = Field(32, ge=1, description="sequences that run through the model together")
    block_rows: int = Field(64, ge=1, le=1 << 16, description="rows of a block, which is read and checked as one")
    exclude: tuple[int, ...] = Field(
        (0,), description="positions of a sequence without rows; default: the first, which is BOS"
    )
    exclude_ids: tuple[int, ...] | None = Field(None, description="ids without rows; default: BOS, EOS and pads")
    non_finite: Literal["refuse", "skip-sequence"] = Field(
        "refuse", description="what NaN or infinity in a row does: end the harvest, or leave its sequence out"
    )
    device: str = Field("cpu", description="where the models run: cpu, cuda, cuda:N or mps")
    model_dtype: Literal["float32", "bfloat16"] = Field("float32", description="precision in which the models run")
    threads: int = Field(
        1,
        ge=1,
        le=256,
        description="threads of a process; they change the last bits of the numbers, so they belong to the content",
    )
    workers: int = Field(
        1, ge=1, le=256, description="processes that share the work on this machine; they change no number"
    )

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
