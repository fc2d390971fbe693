"""The format document's example is what the program writes, and its words are the program's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from workbench.activations import ActivationStore, fill
from workbench.activations.format.shard import plan_attributes, plan_datasets, shard_attributes, shard_datasets
from workbench.activations.format.spec import SCHEMA, Source, StoreSpec, Stream

TEXT = (Path(__file__).parents[3] / "docs" / "store-format.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", TEXT[TEXT.index("## Example") :], re.DOTALL)[1]


def test_the_example_reads(tmp_path):
    example = json.loads(block("json"))
    rows, tokens = np.array(example["rows"], np.float32), np.array(example["tokens"], np.int32)
    spec = StoreSpec(
        id="example",
        sources=(Source(name="m", model="m"),),
        streams=(Stream(key="h000", source="m", hook="x", at="x", width=2),),
        plan={},
        n_seq=2,
        ctx=3,
        seqs_per_shard=2,
        batch_size=2,
        dtype="bfloat16",
    )
    store = tmp_path / "example"
    fill(store, spec, tokens, lambda lo, hi: iter([{"h000": rows}]))
    found: dict = {"store": store}
    exec(block("python"), found)
    assert np.array_equal(found["rows"], rows)
    assert np.array_equal(ActivationStore.open(store).read("x").numpy(), rows)


def test_every_name_is_in_the_document():
    assert f"format {SCHEMA}" in TEXT.splitlines()[0]
    missing = [f for f in StoreSpec.model_fields if f"`{f}`" not in TEXT]
    spec = StoreSpec(
        id="e",
        sources=(Source(name="m", model="m"),),
        streams=(Stream(key="h000", source="m", hook="x", at="x", width=2),),
        plan={},
        n_seq=2,
        ctx=3,
        seqs_per_shard=2,
        batch_size=2,
    )
    names = [d.name.replace("h000", "<key>") for d in [*shard_datasets(spec, 0), *plan_datasets(spec)]]
    missing += [n for n in names if f"`{n}`" not in TEXT]
    missing += [a for a in [*shard_attributes(spec, 0), *plan_attributes(spec)] if f"`{a}`" not in TEXT]
    assert missing == []
