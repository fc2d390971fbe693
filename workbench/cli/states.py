"""``workbench states``: what each layer keeps of each token, how long it lives and who reads it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from workbench.cli.common import (
    DEFAULT_WORKSPACE,
    DebugOption,
    JsonOption,
    ReplaceOption,
    WorkspaceOption,
    result_of,
    say,
    terminal_run,
    verb,
)


@verb
def states(
    model: Annotated[
        str, typer.Argument(help="A bundled model (mini-mamba, mini-pythia), a folder, or a Hugging Face id.")
    ],
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    text: Annotated[list[str] | None, typer.Option(help="A text to follow; repeat for several.")] = None,
    task: Annotated[str, typer.Option(help="Without a text: prompts of this task, bundled or a TOML file.")] = (
        "induction"
    ),
    prompts: Annotated[int, typer.Option(help="How many prompts of the task.", min=1, max=64)] = 4,
    length: Annotated[
        int | None,
        typer.Option(help="Tokens per prompt of induction tasks; the task's own by default.", min=8, max=128),
    ] = None,
    revision: Annotated[
        list[str] | None, typer.Option(help="A snapshot; repeat for several, in order. Default: --snapshots of them.")
    ] = None,
    snapshots: Annotated[
        int, typer.Option(help="So many snapshots at even distances, the last included; 1 = the last.", min=1, max=32)
    ] = 6,
    dictionary: Annotated[
        list[str] | None,
        typer.Option(help="A dictionary of what a layer writes (site W): writes are told by its atoms."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the prompts.")] = 0,
    replace: ReplaceOption = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """What is written and read: per token and layer what a model keeps, how long, who reads it, and what of the
    prediction depends on it.

    Recurrent layers: writes into the state, their decay, what later positions receive of them. Attention: who attends
    to whom. For both the exact effect on every later prediction when what is kept of one token is removed. Run it for
    two models on the same text to see them side by side.

    Example: `workbench states mini-mamba --text "def read(self): return self"`
    """
    from workbench.verbs.analysing import states as run

    item = run(
        workspace,
        model,
        text=text or (),
        task=task,
        prompts=prompts,
        length=length,
        revision=revision or (),
        snapshots=snapshots,
        dictionary=dictionary or (),
        seed=seed,
        replace=replace,
        run=terminal_run(),
    )
    about, numbers = item.manifest.metadata, item.manifest.numbers
    best = numbers["largest_effect"]
    layers = ", ".join(f"{x['layer']} ({x['kind']})" for x in about["layers"])
    say(f"{about['model']}: {numbers['n_texts']} texts, {numbers['n_tokens']} tokens, layers {layers}.")
    say(
        f"Largest effect: what layer {best['layer']} keeps of token {best['written']} of text {best['text']} is worth"
        f" {best['nats']:.2f} nats to what follows token {best['reader']}."
    )
    say(f"{item.path} (version {item.version})")
    return result_of(item) | {"numbers": numbers, "metadata": about}
