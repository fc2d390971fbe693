"""``workbench states`` as a function: run a model's snapshots over texts, write ``states/<model>.<texts>/`` once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae.errors import UsageError
from sae.files import sha256_json, write_json
from workbench.corpus.contract import contract_of
from workbench.corpus.shown import shown_token, shown_tokens
from workbench.models.weights import model_inputs
from workbench.results.reuse import reusable
from workbench.run import QUIET, Run
from workbench.workspace import Item, Workspace, check_id

Array = np.ndarray[Any, Any]
MOST_TEXTS = 64


@dataclass(frozen=True)
class Texts:
    """Texts as tokens; ``name`` tells them apart, the same for every model that reads the same tokens."""

    ids: list[Array]
    name: str
    task: str


def read_texts(
    tokenizer: Any, texts: Sequence[str], *, task: str, prompts: int, length: int | None, seed: int, size: int
) -> Texts:
    """The texts given, or prompts of a task where none is.

    Raises:
        UsageError: no tokenizer, an empty text, more than :data:`MOST_TEXTS`.
    """
    from workbench.analysis.circuits.tasks import make_prompts, read_task

    if not texts:
        config = read_task(task)
        made = make_prompts(config, prompts, vocab_size=size, tokenizer=tokenizer, seed=seed, length=length)
        return Texts(list(made.clean.astype(np.int64)), config.name, config.name)
    if tokenizer is None:
        raise UsageError(
            "this model has no tokenizer, so it cannot read a text. Use a model folder with tokenizer.json."
        )
    if len(texts) > MOST_TEXTS:
        raise UsageError(f"{len(texts)} texts: at most {MOST_TEXTS} are shown together. Leave some out.")
    if empty := [t for t in texts if not t.strip()]:
        raise UsageError(f"the text {empty[0]!r} is empty. Give one whose tokens are to be followed.")
    contract = contract_of(tokenizer)
    ids = [np.asarray(contract.encode(tokenizer, t), np.int64) for t in texts]
    return Texts(ids, f"text-{sha256_json([i.tolist() for i in ids])[:8]}", "")


def snapshots_of(model: str, revisions: Sequence[str], snapshots: int) -> list[str | None]:
    """The revisions named, or so many of the model's snapshots at even distances, the last included; the model as it
    is where it has none.
    """
    from workbench.models.load import find_folder, resolve_revision
    from workbench.models.load import revisions as known_revisions

    if revisions:
        return [resolve_revision(model, r) for r in revisions]
    known = known_revisions(model) if find_folder(model) is not None else []
    if not known or snapshots < 2:
        return [resolve_revision(model, None)]
    n = min(snapshots, len(known))
    return [known[round(i * (len(known) - 1) / (n - 1))] for i in range(n)]


def make_states(
    workspace: Workspace,
    model_name: str,
    *,
    texts: Sequence[str] = (),
    task: str = "induction",
    prompts: int = 4,
    length: int | None = None,
    revisions: Sequence[str] = (),
    snapshots: int = 6,
    dictionaries: Sequence[str] = (),
    seed: int = 0,
    run: Run = QUIET,
) -> Item:
    """What every layer keeps of every token of some texts, at some snapshots; a complete result is reused.

    Raises:
        UsageError, MissingError: an unknown model, snapshot, task or dictionary; a layer that cannot be read.
    """
    from workbench.analysis.memory.measure import text_memories
    from workbench.models.load import load_model, load_tokenizer, model_id
    from workbench.models.pointers import by_id

    model_name = by_id(workspace, model_name, run=run)
    found = snapshots_of(model_name, revisions, snapshots)
    first = load_model(model_name, found[-1])
    tokenizer = load_tokenizer(model_name, found[-1]) if first.tokenizer is None else first.tokenizer
    read = read_texts(tokenizer, texts, task=task, prompts=prompts, length=length, seed=seed, size=first.cfg.d_vocab)
    writes, items = _write_dictionaries(workspace, dictionaries, model_name)
    if strange := [d for d, at in writes.values() if at not in found]:
        raise UsageError(
            f"{strange[0].metadata.get('hook_name', 'a dictionary')} was read at a snapshot that is not followed"
            f" ({', '.join(map(str, found))}). Name it with --revision."
        )
    recipe = {"ids": [i.tolist() for i in read.ids], "revisions": list(found), "dictionaries": sorted(dictionaries)}
    inputs = [*model_inputs([(model_name, r) for r in found]), *(item.as_input() for item in items)]
    id = check_id(f"{model_id(model_name)}.{read.name}")
    words = {"ids": "texts"}
    if (have := reusable(workspace, "states", id, recipe=recipe, inputs=inputs, run=run, words=words)) is not None:
        return have
    memories: list[list[Any]] = []  # by snapshot, by text
    for revision in run.each(found, "states", unit="snapshot"):
        model = first if revision == found[-1] else load_model(model_name, revision)
        own = {layer: d for layer, (d, at) in writes.items() if at == revision}  # of another snapshot, other atoms
        memories.append(text_memories(model, read.ids, dictionaries=own))
    kinds = [{"layer": m.layer, "kind": m.kind} for m in memories[0][0].layers]
    about = {
        "model": model_name,
        "revisions": list(found),
        "layers": kinds,
        "architecture": "transformer" if {k["kind"] for k in kinds} == {"attention"} else "recurrent",
        "task": read.task,
        "texts": read.name,
        "n_texts": len(read.ids),
        "dictionaries": {str(layer): d for layer, d in _named(workspace, dictionaries).items()},
    }
    numbers = {"n_texts": len(read.ids), "n_tokens": int(sum(map(len, read.ids))), "n_snapshots": len(found)}
    with workspace.create(
        "states",
        id,
        replace=True,
        command=run.command,
        recipe=recipe,
        inputs=inputs,
        numbers=numbers | _headline(memories[-1]),
        metadata=about,
    ) as folder:
        _write(Path(folder), memories, tokenizer)
    return workspace.get("states", id)


def _named(workspace: Workspace, ids: Sequence[str]) -> dict[int, str]:
    """Layer -> dictionary of writes."""
    out: dict[int, str] = {}
    for id in ids:
        site = str(workspace.get("dictionaries", id).manifest.metadata.get("site") or "")
        if not (site.startswith("L") and site.endswith("W") and site[1:-1].isdecimal()):
            raise UsageError(f"{id} reads {site or 'no site that it names'}, not what a layer writes (such as L2W).")
        out[int(site[1:-1])] = id
    return out


def _write_dictionaries(
    workspace: Workspace, ids: Sequence[str], model: str
) -> tuple[dict[int, tuple[Any, str | None]], list[Item]]:
    """Layer -> (dictionary of writes, the snapshot it was trained at), and what is read for them."""
    import sae
    from workbench.models.load import resolve_revision

    items = [workspace.get("dictionaries", id) for id in ids]
    for item in items:
        if (of := item.manifest.metadata.get("model_name")) != model:
            raise UsageError(f"{item.id} is a dictionary of {of}, not of {model}.")
    found = {}
    for layer, id in _named(workspace, ids).items():
        revision = workspace.get("dictionaries", id).manifest.metadata.get("revision")
        found[layer] = sae.load(workspace.path("dictionaries", id)), resolve_revision(model, revision)
    return found, items


def _headline(last: list[Any]) -> dict[str, Any]:
    """Of the last snapshot, the largest effect that removing what is kept of a token has at a later one."""
    best: tuple[float, dict[str, Any]] = (-np.inf, {})
    for p, memory in enumerate(last):
        for m in memory.layers:
            later = np.triu(np.ones(m.effect.shape, bool), 1) & ~np.isnan(m.effect)
            effect = np.where(later, m.effect, -np.inf)
            at = np.unravel_index(int(effect.argmax()), effect.shape)
            if effect[at] > best[0]:
                place = {"text": p, "layer": m.layer, "written": int(at[0]), "reader": int(at[1])}
                best = float(effect[at]), place
    return {"largest_effect": best[1] | {"nats": round(best[0], 4)}}


def _write(folder: Path, memories: list[list[Any]], tokenizer: Any) -> None:
    """The files that :class:`workbench.results.states.States` reads."""
    arrays: dict[str, Array] = {}
    texts = []
    for p in range(len(memories[0])):
        runs = [of_snapshot[p] for of_snapshot in memories]
        ids = runs[0].ids
        texts.append(
            {
                "ids": ids.tolist(),
                "tokens": shown_tokens(tokenizer, ids.tolist()) if tokenizer is not None else [f"⟨{i}⟩" for i in ids],
                "predicted": [[shown_token(tokenizer, int(i)) for i in r.predicted] for r in runs]
                if tokenizer is not None
                else [[f"⟨{i}⟩" for i in r.predicted] for r in runs],
                "atoms": [[m.atoms for m in r.layers] for r in runs],
            }
        )
        arrays[f"{p}.logprob"] = np.stack([r.logprob for r in runs]).astype(np.float32)
        for name in ("share", "effect"):
            arrays[f"{p}.{name}"] = np.stack([[getattr(m, name) for m in r.layers] for r in runs]).astype(np.float32)
        for k, first in enumerate(runs[0].layers):
            for name in ("survival", "channels", "weight", "heads"):
                if getattr(first, name) is not None:
                    made = np.stack([getattr(r.layers[k], name) for r in runs])
                    arrays[f"{p}.{k}.{name}"] = made.astype(np.int32 if name == "channels" else np.float16)
    np.savez_compressed(folder / "arrays.npz", **arrays)  # type: ignore[arg-type]
    write_json(folder / "texts.json", texts)
