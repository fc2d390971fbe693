"""``workbench pretrain``: train a miniature language model, with snapshots."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from workbench.cli.common import (
    DEFAULT_WORKSPACE,
    DebugOption,
    JsonOption,
    ReplaceOption,
    WorkspaceOption,
    say,
    terminal_run,
    verb,
)


@verb
def pretrain(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a bundled recipe such as mini-pythia.")],
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    criteria: Annotated[
        bool, typer.Option(help="Measure copying, agreement and the trigram margin of every snapshot for the card.")
    ] = True,
    replace: ReplaceOption = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Train a miniature model into `models/<name>`: snapshots in half precision, configuration, tokenizer, card.

    Interrupted, it goes on where it was when the same command runs again, bit for bit. A complete model is reused.

    Example: `workbench pretrain mini-mamba`; `workbench plan mini-mamba` says what that costs.
    """
    import torch

    from workbench.config import read_recipe
    from workbench.models.card import finish
    from workbench.models.pretrain import PretrainRecipe
    from workbench.models.pretrained import open_run, trained_model
    from workbench.run import command_of
    from workbench.workspace import Workspace, new_id

    torch.set_num_threads(1)  # bit-exact resume, and small matrices gain nothing from more
    plan = read_recipe(PretrainRecipe, recipe)
    home = Workspace(workspace)
    new_id(plan.name)
    shown = terminal_run(replace=replace)
    if trained_model(plan, home, criteria=criteria, run=shown) is None:
        run = open_run(plan, home, replace=replace)
        if run.step:
            say(f"going on from step {run.step:,}")
        for out in shown.each(run.run(), f"pretrain {plan.name}", plan.steps - run.step, "step"):
            if "heldout" in out:
                say(f"step {int(out['step']):,}: held-out text {out['heldout']:.3f} nats")
        options = {} if criteria else {"criteria": False}
        finish(run, home, criteria=criteria, command=command_of("pretrain", [recipe], options, {}), show=say)
    card = home.get("models", plan.name)
    numbers = card.manifest.numbers
    if not json_output:
        say(
            f"{card.path}: {numbers['parameters']:,} parameters, {numbers['tokens']:,} tokens, {numbers['snapshots']}"
            " snapshots"
        )
    return {"id": plan.name, "version": card.version, **numbers}
