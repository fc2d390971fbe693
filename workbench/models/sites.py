"""Sites: short names for places in a model.

``L{l}R`` residual stream after block l, ``L{l}A`` attention's branch, ``L{l}M`` the MLP's, ``L{l}TC`` the MLP from its
input to its output (a transcoder's pair), ``L{l}S`` the branch of another mixer (Mamba, delta net, short convolution).
Which of them a layer has, and at which hooks, is measured (:mod:`workbench.models.anatomy`); A, M and S are what is
added to the residual stream. ``L{l}W`` is what a recurrent layer writes into its state, its keys and values apart
(:mod:`workbench.models.recurrent`): no part of the stream, so only what reads writes takes it.
"""

from __future__ import annotations

import re
from typing import Any

from sae.errors import UsageError
from sae.strict import nearest

_SITE = re.compile(r"L(\d+)(R|A|M|TC|S|W)")
_WRITE = re.compile(r"blocks\.(\d+)\.(\w+)\.recurrence\.hook_write_(key|value)")
# kind -> (input hook, output hook) below blocks.{l}, where no model is at hand
_HOOKS = {
    "R": ("hook_resid_post", "hook_resid_post"),
    "A": ("hook_attn_out", "hook_attn_out"),
    "M": ("hook_mlp_out", "hook_mlp_out"),
    "TC": ("ln2.hook_out", "hook_mlp_out"),
    "S": ("hook_mixer_out", "hook_mixer_out"),
}
_OUTPUTS = {  # output hook -> kind
    "hook_resid_post": "R",
    "hook_out": "R",
    "hook_attn_out": "A",
    "attn.hook_out": "A",
    "ln1_post.hook_out": "A",
    "hook_mlp_out": "M",
    "mlp.hook_out": "M",
    "ln2_post.hook_out": "M",
    "channel_mix.hook_out": "M",
    "hook_mixer_out": "S",
    **{f"{mixer}.hook_out": "S" for mixer in ("mixer", "mamba", "linear_attn", "ssm", "conv", "time_mix")},
}
_MLP_INPUTS = ("ln2.hook_out", "mlp.hook_in", "channel_mix.hook_in")


def parse_site(site: str) -> tuple[int, str]:
    """``"L2R"`` -> (2, "R").

    Raises:
        UsageError: not a site name.
    """
    match = _SITE.fullmatch(site)
    if match is None:
        raise UsageError(
            f"{site!r} is not a site. A site is L, the layer's number and what is read there: R (residual stream), A"
            " (attention or Mamba output), M (MLP output), TC (transcoder), S (state) or W (writes into it); for"
            " example L2R."
        )
    return int(match[1]), match[2]


def hooks_of(site: str) -> tuple[str, str]:
    """(input hook, output hook) of a site by name alone, as most models have it; :func:`site_hooks` asks the model.

    Raises:
        UsageError: not a site name, or what a recurrent layer writes, whose hooks no name tells.
    """
    layer, kind = parse_site(site)
    if kind == "W":
        raise UsageError(f"the hooks of {site} depend on the kind of layer. Give the dictionary's own hook names.")
    return tuple(f"blocks.{layer}.{hook}" for hook in _HOOKS[kind])  # type: ignore[return-value]


def sites(model: Any) -> list[str]:
    """All sites of a loaded model, layer by layer."""
    from workbench.models.anatomy import anatomy_of  # the pages name sites without a model, and load no torch for it

    return [f"L{i}{kind}" for i, layer in enumerate(anatomy_of(model).layers) for kind in layer.sites]


def write_sites(model: Any) -> dict[str, tuple[str, str]]:
    """Site -> (hook of the keys, hook of the values) of what each recurrent layer of a loaded model writes."""
    from workbench.models.recurrent import recurrent_layers

    return {
        f"L{layer.index}W": (layer.hook("write_key"), layer.hook("write_value")) for layer in recurrent_layers(model)
    }


def write_shapes(model: Any) -> dict[str, tuple[int, int]]:
    """Hook of keys or values that a recurrent layer writes -> (heads, numbers per head), without running the model."""
    from workbench.models.recurrent import recurrent_layers

    return {
        layer.hook(f"write_{name}"): (layer.heads, size)
        for layer in recurrent_layers(model)
        for name, size in (("key", layer.keys), ("value", layer.values))
    }


def site_hooks(model: Any, site: str) -> tuple[str, str]:
    """(input hook, output hook) of a site of a loaded model; equal but for transcoders, and for writes (keys, values).

    Raises:
        UsageError: the model has no such site; the message says what that layer is and names the nearest.
    """
    from workbench.models.anatomy import anatomy_of

    index, kind = parse_site(site)
    anatomy = anatomy_of(model)
    if kind == "W":
        writes = write_sites(model)
        if site in writes:
            return writes[site]
        what = anatomy.describe() if index >= len(anatomy.layers) else anatomy.layers[index].kind
        some = f"writes are at {', '.join(writes)}" if writes else "none of its layers has a state"
        raise UsageError(
            f"{getattr(model.cfg, 'model_name', 'the model')} has no site {site!r}: that is {what}; {some}."
        )
    if index < len(anatomy.layers) and kind in anatomy.layers[index].sites:
        return anatomy.layers[index].sites[kind]
    known, name = sites(model), getattr(model.cfg, "model_name", "the model")
    if index >= len(anatomy.layers):
        raise UsageError(f"{name} has no site {site!r}: it has {len(anatomy.layers)} layers ({nearest(site, known)})")
    layer = anatomy.layers[index]
    raise UsageError(
        f"{name} has no site {site!r}: layer {index} is {layer.kind}, with the sites"
        f" {', '.join(f'L{index}{k}' for k in layer.sites)} ({nearest(site, known)})"
    )


def site_of(hook: str) -> str:
    """The site that a hook name is the output of, for example ``blocks.2.hook_resid_post`` -> ``L2R``.

    Raises:
        UsageError: no site has this output hook.
    """
    if (match := _WRITE.fullmatch(hook)) is not None:
        return f"L{match[1]}W"
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    if match is None or match[2] not in _OUTPUTS:
        raise UsageError(
            f"{hook!r} is not the output hook of a site (valid: blocks.<layer>. and {', '.join(sorted(_OUTPUTS))})"
        )
    return f"L{match[1]}{_OUTPUTS[match[2]]}"


def reads_mlp(hook: str) -> bool:
    """Whether a hook's name is one that an MLP's input has."""
    return hook.split(".", 2)[-1] in _MLP_INPUTS


def transcoder_site(hook_in: str, hook_out: str) -> str | None:
    """The transcoder site with these two hooks, or None: ``blocks.2.ln2.hook_out`` and ``blocks.2.hook_mlp_out`` ->
    ``L2TC``.
    """
    layer = ".".join(hook_in.split(".")[:2])
    if not reads_mlp(hook_in) or not hook_out.startswith(f"{layer}."):
        return None
    return f"L{layer.split('.')[1]}TC" if _OUTPUTS.get(hook_out.split(".", 2)[-1]) == "M" else None


def write_site(hook_key: str, hook_value: str) -> str | None:
    """The site of writes with these two hooks, or None: keys and values of one layer -> ``L2W``."""
    key, value = _WRITE.fullmatch(hook_key), _WRITE.fullmatch(hook_value)
    if key is None or value is None or (key[1], key[2], key[3], value[3]) != (value[1], value[2], "key", "value"):
        return None
    return f"L{key[1]}W"


def is_write(hook: str) -> bool:
    """Whether a hook shows keys or values that a recurrent layer writes."""
    return _WRITE.fullmatch(hook) is not None


def pair_site(hook_in: str, hook_out: str) -> str | None:
    """The site of two different hooks: a transcoder's, or a write's; None where they make none."""
    return transcoder_site(hook_in, hook_out) or write_site(hook_in, hook_out)
