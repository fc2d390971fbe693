"""A finished run as a model folder: snapshots, configuration, tokenizer, and a card with every number and how to make
it again.

``python -m workbench.models.card FOLDER`` measures the criteria of a folder again and rewrites its card.
"""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sae.files import read_json, sha256_file, write_bytes, write_json
from workbench.models.card_figure import draw
from workbench.models.criteria import TARGETS, Criteria, met, table
from workbench.models.pretrain import Pretraining, PretrainRecipe, hf_config
from workbench.models.pretrained import inputs_of
from workbench.workspace import Workspace

SCHEMA = 1
KINDS = {  # architecture of a recipe -> what its card calls it
    "gpt_neox": "Pythia-shaped Transformer (GPT-NeoX, rotary positions, parallel residual)",
    "mamba": "Mamba",
    "olmo_hybrid": "hybrid (OLMo Hybrid: three Gated DeltaNet layers, then one of attention)",
}
TOLERANCE = 0.1  # nats, per mean of ten steps: other processors round differently, and early training amplifies it


def assemble(
    recipe: PretrainRecipe,
    work: Path,
    target: Path,
    tokenizer: Any,
    criteria: Criteria | None,
    show: Callable[[str], None],
) -> dict[str, Any]:
    """Fill ``target`` from a finished work folder; returns the card. ``criteria=None`` leaves the criteria out of the
    card.

    What a person wrote into the work folder's ``notes.txt`` (a run lengthened by hand, say) is kept in the card.
    """
    config = hf_config(recipe, len(tokenizer))
    config.save_pretrained(target)
    tokenizer.backend_tokenizer.save(str(target / "tokenizer.json"))
    for step in recipe.saved_steps:
        (target / f"step{step}").mkdir()
        shutil.copyfile(work / f"step{step}" / "model.safetensors", target / f"step{step}" / "model.safetensors")
    card = facts(recipe, np.load(work / "losses.npy"), tokenizer)
    card["files"] = digests(target)
    if (work / "notes.txt").is_file():
        card["notes"] = (work / "notes.txt").read_text(encoding="utf-8").strip()
    write_json(target / "card.json", card)
    if criteria is not None:
        card = measure(target, criteria, card, show)
    _write_pages(target, card)
    return card


def _write_pages(folder: Path, card: dict[str, Any]) -> None:
    write_bytes(folder / "README.md", readme(card).encode())
    write_bytes(folder / "card.svg", draw(card))


def facts(recipe: PretrainRecipe, losses: np.ndarray, tokenizer: Any) -> dict[str, Any]:
    """What is known without measuring: recipe, sizes, corpus, interpreter, and the training loss in steps of ten."""
    from workbench.corpus import text_stream
    from workbench.models.pretrain import build_model

    model = build_model(hf_config(recipe, len(tokenizer)))
    stream = text_stream(recipe.corpus, tokenizer)
    per = recipe.batch * recipe.ctx
    return {
        "schema": SCHEMA,
        "name": recipe.name,
        "recipe": recipe.model_dump(mode="json"),
        "command": f"workbench pretrain {recipe.name}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": recipe.steps * per,
        "tokens_per_step": per,
        "interpreter": platform.python_version(),
        "corpus_digest": stream.digest,
        "corpus_tokens": len(stream.tokens),
        "loss_curve": {"every": 10, "tolerance": TOLERANCE, "loss": [round(float(x), 4) for x in _means(losses[:, 0])]},
        "final": f"step{recipe.steps}",
    }


def _means(values: np.ndarray, every: int = 10) -> np.ndarray:
    n = len(values) // every * every
    return values[:n].reshape(-1, every).mean(1)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every weight file, of the configuration and of the tokenizer."""
    return {
        p.relative_to(folder).as_posix(): sha256_file(p)
        for p in sorted(folder.rglob("*"))
        if p.suffix == ".safetensors" or p.name in ("config.json", "tokenizer.json")
    }


def measure(folder: Path, criteria: Criteria, card: dict[str, Any], show: Callable[[str], None]) -> dict[str, Any]:
    """Measure the criteria of every snapshot of a folder; returns the card with them and writes it."""
    from workbench.models.load import load_hf, revisions

    rows = {}
    for revision in revisions(folder):
        rows[revision] = {k: round(v, 4) for k, v in criteria.measure(load_hf(folder, revision)).items()}
        show(f"{card['name']} {revision}: " + ", ".join(f"{k} {v:.3f}" for k, v in rows[revision].items()))
    mamba = card["recipe"]["architecture"] == "mamba"
    final = rows[list(rows)[-1]]
    card = card | {
        "criteria": rows,
        "criteria_about": criteria.about,
        "targets": {k: t[mamba] for k, t in TARGETS.items()},
        "met": met(final, mamba=mamba),
    }
    write_json(folder / "card.json", card)
    return card


def readme(card: dict[str, Any]) -> str:
    """The card for people: Markdown."""
    r = card["recipe"]
    kind = KINDS[r["architecture"]]
    origin = (
        f"continues {r['start']!r} on the documentation of the standard library alone"
        if r["start"]
        else "is trained from scratch"
    )
    lines = [
        f"# {card['name']}",
        "",
        (
            f"A {kind} with {r['n_layers']} layers, width {r['d_model']} and {card['parameters']:,} parameters. It"
            f" {origin}, on {card['tokens']:,} tokens ({r['steps']:,} steps of {r['batch']} windows of {r['ctx']}"
            f" tokens). Its text is the standard library of Python {card['interpreter']} ({card['corpus_tokens']:,}"
            f" tokens, digest `{card['corpus_digest'][:16]}`), mixed with repeated chunks, copied snippets and"
            " templated agreement sentences."
        ),
        "",
        f"Make it again: `{card['command']}`. Weights are float16; `load_model({card['name']!r})` gives float32.",
        "",
        f"Revisions: {', '.join(f'`{s}`' for s in _snapshots(card))}. Training loss over the"
        " first tenth: "
        + ", ".join(
            f"{x:.2f}" for x in card["loss_curve"]["loss"][: max(len(card["loss_curve"]["loss"]) // 10, 1)][::10]
        )
        + " nats (means of ten steps, every hundredth step); "
        f"a run from scratch stays within {card['loss_curve']['tolerance']:g} nats of it on the same Python.",
        "",
        "![Training loss, and criteria per snapshot](card.svg)",
    ]
    for step, rate in r.get("cycles", ()):
        lines += [
            "",
            (
                f"At step {step:,}, after its decay, the learning rate starts again at {rate:g} and falls to zero once"
                " more."
            ),
        ]
    for step, *weights in r["kind_weights"]:
        lines += [
            "",
            (
                f"From step {step:,} on, windows of text, repeats and agreement count"
                f" {' : '.join(f'{w:g}' for w in weights)} in the loss."
            ),
        ]
    if "criteria" in card:
        about = card["criteria_about"]
        lines += [
            "",
            "## Criteria",
            "",
            (
                f"Losses in nats. `loss` on {about['text_tokens']:,} held-out text tokens (interpolated trigram:"
                f" {about['trigram_loss']:.3f}); `copy` and `permuted` on the second copy of {about['copies']} chunks"
                f" of {' and '.join(map(str, about['chunks']))} tokens, lengths never trained on; accuracies of"
                f" {about['single_match']} single-match prompts and {about['agreement']} held-out agreement sentences."
            ),
            "",
            table(card["criteria"]),
            "",
            "Targets of the final snapshot: "
            + ", ".join(f"{k} ≥ {v:g} ({'met' if card['met'][k] else 'not met'})" for k, v in card["targets"].items())
            + ".",
        ]
    if "notes" in card:
        lines += ["", card["notes"]]
    lines += ["", "## Digests (SHA-256)", ""] + [f"- `{name}` {digest}" for name, digest in card["files"].items()]
    return "\n".join(lines) + "\n"


def _snapshots(card: dict[str, Any]) -> list[str]:
    """The snapshots there are, in training order."""
    names = {name.split("/")[0] for name in card["files"] if name.endswith(".safetensors")}
    return sorted(names, key=lambda name: int(name.removeprefix("step")))


def finish(
    run: Pretraining, workspace: Workspace, *, criteria: bool, command: str, show: Callable[[str], None]
) -> None:
    """Turn a finished run into ``models/<name>`` with its card and manifest, and remove the work folder."""
    recipe = run.recipe
    card: dict[str, Any] = {}
    np.save(run.work / "losses.npy", run.losses)
    about: dict[str, Any] = {"command": command, "recipe": recipe.model_dump(mode="json")}
    about["inputs"] = inputs_of(recipe, workspace)
    with workspace.create("models", recipe.name, replace=True, numbers=lambda: _numbers(card), **about) as target:
        measured = Criteria(run.tokenizer) if criteria else None
        card = assemble(recipe, run.work, target, run.tokenizer, measured, show)
    shutil.rmtree(run.work)


def _numbers(card: dict[str, Any]) -> dict[str, Any]:
    out = {k: card[k] for k in ("parameters", "tokens", "final")}
    out["snapshots"] = sum(name.endswith(".safetensors") for name in card["files"])
    if "criteria" in card:
        out |= {"criteria": card["criteria"][card["final"]], "met": card["met"]}
    return out


def main(folder: str) -> None:
    """Measure a folder's criteria again and rewrite its card."""
    from workbench.models.load import load_tokenizer

    path = Path(folder)
    card = measure(
        path, Criteria(load_tokenizer(path)), read_json(path / "card.json"), lambda line: print(line, flush=True)
    )
    _write_pages(path, card)


if __name__ == "__main__":
    main(sys.argv[1])
