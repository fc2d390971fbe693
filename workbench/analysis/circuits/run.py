"""`workbench circuits` as a function: load the model, analyse, write `circuits/<model>[@revision].<task>/` once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sae.errors import UsageError
from sae.files import write_json
from sae.strict import nearest
from workbench.analysis.circuits.analyse import analyse, compare_to_control
from workbench.analysis.circuits.effects import METRICS, check_metrics
from workbench.analysis.circuits.layers import architecture_of, attention_layers, heads_of, left_out, state_layers
from workbench.analysis.circuits.table import EXAMPLES, OFFSETS, Circuits
from workbench.analysis.circuits.tasks import make_prompts, read_task
from workbench.corpus.shown import displayed_vocab
from workbench.models.weights import model_inputs
from workbench.provenance import Input
from workbench.results.reuse import reusable
from workbench.run import QUIET, Run
from workbench.workspace import Item, Workspace, check_id


def make_circuits(
    workspace: Workspace,
    model_name: str,
    *,
    revision: str | None = None,
    task: str | Path = "induction",
    n_prompts: int = 64,
    length: int | None = None,
    metrics: Sequence[str] = METRICS,
    seed: int = 0,
    control: str | None = "step0",
    model: Any = None,
    run: Run = QUIET,
) -> Item:
    """Analyse one model on one task; a complete result of the same weights and settings is reused.

    Args:
        control: a snapshot of the same model to compare the largest effect with, where the model has it and is not it.
        model: a loaded bridge, if the caller has it already.

    Raises:
        UsageError, MissingError: an unknown task, model or snapshot.
    """
    from workbench.models.load import load_model, model_id, resolve_revision
    from workbench.models.pointers import by_id

    model_name = by_id(workspace, model_name, run=run)
    config = read_task(task)
    check_metrics(metrics)
    id = check_id(f"{model_id(model_name)}{f'@{revision}' if revision else ''}.{config.name}")
    bridge = load_model(model_name, revision=revision) if model is None else model
    source = Input(kind="models", id=model_id(model_name), digest=weights_digest(bridge))
    known = _snapshots(model_name)
    if control not in (None, "step0", *known):
        raise UsageError(f"control {control!r} is not a snapshot of {model_name} ({nearest(str(control), known)})")
    control = control if control in known and control != resolve_revision(model_name, revision) else None
    recipe = {
        "task": config.model_dump(mode="json"),
        "n_prompts": n_prompts,
        "length": length,
        "metrics": list(metrics),
    }
    recipe |= {"seed": seed, "control": control, "share_intervals": "signs kept"}
    words = {"n_prompts": "prompts"}
    if (have := reusable(workspace, "circuits", id, recipe=recipe, inputs=[source], run=run, words=words)) is not None:
        return have
    prompts = make_prompts(
        config, n_prompts, vocab_size=bridge.cfg.d_vocab, tokenizer=bridge.tokenizer, seed=seed, length=length
    )
    found = analyse(bridge, prompts, metrics=tuple(dict.fromkeys(["logit_diff", *metrics])), run=run)
    if control is not None:
        run.say(f"comparison with {control}")
        compare_to_control(found, load_model(model_name, revision=control), control)
    about = {
        "model": model_name,
        "revision": revision,
        "architecture": architecture_of(bridge),
        "task": config.name,
        "about": config.about,
        "focus": prompts.focus,
        "n_prompts": len(prompts),
        "rendered": prompts.rendered,
        "length": int(prompts.clean.shape[1]),
        "n_layers": len(bridge.blocks),
        "n_heads": heads_of(bridge),
        "attention_layers": attention_layers(bridge),
        "heads_left_out": left_out(bridge),
        "recurrent_layers": {layer.index: layer.kind for layer in state_layers(bridge)},
        "offsets": list(OFFSETS),
        "metrics": list(found.metrics),
    }
    about |= {"weights": read[0].digest} if (read := model_inputs([(model_name, revision)])) else {}
    with workspace.create(
        "circuits",
        id,
        replace=True,
        command=run.command,
        recipe=recipe,
        inputs=[source],
        numbers=found.numbers,
        metadata=about,
    ) as folder:
        write_result(folder, found)
    return workspace.get("circuits", id)


def _snapshots(model_name: str) -> list[str]:
    """Snapshots at hand; none for hub models and for names of models that the caller loaded."""
    from workbench.models.load import find_folder, revisions

    return revisions(model_name) if find_folder(model_name) is not None else []


def write_result(folder: Path, found: Circuits) -> None:
    """The files that `workbench.results.circuits.CircuitResult` reads."""
    found.effects().to_parquet(folder / "effects.parquet", index=False)
    if found.scores is not None:
        found.scores.to_parquet(folder / "scores.parquet", index=False)
    if found.lifetimes is not None:
        found.lifetimes.to_parquet(folder / "lifetimes.parquet", index=False)
    np.savez(folder / "arrays.npz", **found.arrays)  # type: ignore[arg-type]
    write_json(folder / "prompts.json", _examples(found))


def _examples(found: Circuits) -> list[dict[str, Any]]:
    vocab, p = displayed_vocab(found.model.tokenizer, found.model.cfg.d_vocab), found.prompts
    return [
        {
            "tokens": [vocab[t] for t in p.clean[i]],
            "corrupt": [vocab[t] for t in p.corrupt[i]],
            "answer": vocab[p.answer[i]],
            "wrong": vocab[p.wrong[i]],
            "predicted": vocab[found.arrays["predicted"][i]],
            "correct": bool(found.arrays["predicted"][i] == p.answer[i]),
            "logit_diff": float(found.arrays["clean_logit_diff"][i]),
            "marks": {name: int(at[i]) for name, at in p.marks.items()},
        }
        for i in range(min(EXAMPLES, len(p)))
    ]


def weights_digest(model: Any) -> str:
    """SHA-256 over a bridge's parameters, in the model's own order."""
    digest = hashlib.sha256()
    for parameter in model.original_model.parameters():
        digest.update(np.ascontiguousarray(parameter.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()
