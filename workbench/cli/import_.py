"""``workbench import``: dictionaries of other libraries."""

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
def import_(
    reference: Annotated[
        str,
        typer.Argument(
            help="A folder on this machine, or REPOSITORY:FOLDER of the hub, such as fnlp/Llama-Scope:L15R-8x.",
            metavar="REF",
        ),
    ],
    id: Annotated[str | None, typer.Option("--id", help="Its name in the workspace.")] = None,
    library: Annotated[
        str | None,
        typer.Option(
            help="saelens, sparsify, dictionary-learning, openmoss, llama-scope, gemma-scope, gemma-scope-2, goodfire"
            " or circuit-tracer; found by its files if not given."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model it was trained on, where it does not say.")] = None,
    hook: Annotated[str | None, typer.Option(help="Hook name it reads, where it does not say.")] = None,
    revision: Annotated[
        str | None, typer.Option(help="Snapshot or hub revision of the model, where it does not say.")
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="Store of the workspace with activations of that hook (for `features`).")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Source of that store.")] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    replace: ReplaceOption = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Bring a dictionary of SAELens, sparsify, dictionary_learning, OpenMOSS or Llama Scope into the workspace.

    Scales, norms and thresholds are folded, so it takes raw activations and returns raw activations. A file with a key
    or tensor that is not known is refused by its name. Pickles are read
    by a limited child process only. A cross-layer transcoder becomes one dictionary per layer (ID.L0, ID.L1, …) for
    `features` and `explain`; `export --circuit-tracer` puts it together again.
    Nothing is downloaded unless HF_HUB_OFFLINE=0 is set.

    Example: `HF_HUB_OFFLINE=0 workbench import fnlp/Llama-Scope:L15R-8x`, or
    `workbench import downloads/trainer_0 --id theirs --model mini-pythia --hook blocks.1.hook_resid_post --store demo`
    """
    from workbench.verbs.making import import_dictionary

    item = import_dictionary(
        workspace,
        reference,
        id=id,
        library=library,
        model=model,
        hook=hook,
        revision=revision,
        store=store,
        source=source,
        replace=replace,
        run=terminal_run(),
    )
    about = item.manifest
    m = about.metadata
    layers = item.all
    say(
        ("" if len(layers) == 1 else f"{len(layers)} layers, {layers[0].id} to {layers[-1].id}; of the first: ")
        + f"{item.id}: {about.numbers['d_sae']:,} latents of width {about.numbers['d_in']:,} from {m['imported_from']},"
        f" hook {m.get('hook_name', 'not named')}"
        + (f" of {m['model_name']}" if m.get("model_name") else "")
        + (f" at {m['revision']}" if m.get("revision") else "")
        + (", input centred as its model's was" if m.get("centred_input") else "")
        + ("" if m.get("prepend_bos") is not False else ", trained without a BOS token")
    )
    return result_of(item) | about.numbers | {"metadata": m, "ids": [i.id for i in layers]}
