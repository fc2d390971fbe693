"""Which layers of a model an analysis of circuits reads: attention, recurrence, or both, layer by layer."""

from __future__ import annotations

from typing import Any

from sae.errors import UsageError
from workbench.models.anatomy import anatomy_of
from workbench.models.recurrent import RecurrentLayer, recurrent_layers


def attention_layers(model: Any) -> list[int]:
    """Layers with attention heads whose parts are shown and can be edited, in order."""
    return [i for i, layer in enumerate(anatomy_of(model).layers) if layer.heads and not layer.not_patched]


def left_out(model: Any) -> dict[int, str]:
    """Attention layers whose heads cannot be told apart -> why; their branch is known as a whole."""
    layers = enumerate(anatomy_of(model).layers)
    return {i: layer.not_patched for i, layer in layers if "attention" in layer.kind.split("+") and layer.not_patched}


def state_layers(model: Any) -> list[RecurrentLayer]:
    """Recurrent layers, in order."""
    return recurrent_layers(model)


def heads_of(model: Any) -> int:
    """Heads per attention layer; 0 without attention.

    Raises:
        UsageError: not all attention layers have as many.
    """
    found = {anatomy_of(model).layers[i].heads for i in attention_layers(model)}
    if len(found) > 1:
        raise UsageError(
            f"the attention layers of {model.cfg.architecture} have {' and '.join(map(str, sorted(found)))} heads;"
            " circuits are analysed only in models whose layers all have as many."
        )
    return next(iter(found), 0)


def architecture_of(model: Any) -> str:
    """``transformer``, ``mamba`` (any recurrent mixer throughout), or ``hybrid``."""
    attention, states = attention_layers(model) or left_out(model), state_layers(model)
    return "hybrid" if attention and states else "mamba" if states else "transformer"


def check_circuits(model: Any) -> None:
    """Refuse a model whose layers cannot all be analysed: every layer is attention whose parts are shown and can be
    edited, a recurrent mixer whose states are shown, or a feed-forward part alone. In a hybrid, attention whose parts
    are not shown is held as a whole, and its heads are left out (:func:`left_out`).

    Raises:
        UsageError: the first layer where that is not so, and why.
    """
    anatomy, name = anatomy_of(model), model.cfg.architecture
    recurrent = {layer.index for layer in state_layers(model)}
    for i, layer in enumerate(anatomy.layers):
        said = ""
        if layer.not_shown:
            said = layer.not_shown
        elif "attention" in layer.kind.split("+"):
            said = "" if recurrent and "A" in layer.sites else layer.not_patched
        elif i not in recurrent and layer.kind != "MLP":
            said = f"a layer of kind {layer.kind!r} shows neither attention nor a state"
        elif layer.kind == "MLP" and len(layer.sites) < 2:
            said = "TransformerLens does not show its parts"
        if said:
            raise UsageError(f"circuits of {name} cannot be analysed (block {i}: {said}).")
    if not attention_layers(model) and not recurrent:
        raise UsageError(f"circuits of {name} cannot be analysed: no layer passes anything between positions.")
    heads_of(model)
