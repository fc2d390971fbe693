"""Sites: short names for places in a model.

``L{l}R`` residual stream after block l, ``L{l}A`` attention's branch, ``L{l}M`` the MLP's, ``L{l}TC`` the MLP from its
input to its output (a transcoder's pair), ``L{l}S`` the branch of another mixer (Mamba, delta net, short convolution).
Which of them a layer has, and at which hooks, is measured (:mod:`workbench.models.anatomy`); A, M and S are what is
added to the residual stream.
"""

from __future__ import annotations

import re
from typing import Any

from sae.errors import UsageError
from sae.strict import nearest

_SITE = re.compile(r"L(\d+)(R|A|M|TC|S)")
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
        raise UsageError(f"{site!r} is not a site. Sites are L<layer> and R, A, M, TC or S, for example L2R.")
    return int(match[1]), match[2]


def hooks_of(site: str) -> tuple[str, str]:
    """(input hook, output hook) of a site by name alone, as most models have it; :func:`site_hooks` asks the model."""
    layer, kind = parse_site(site)
    return tuple(f"blocks.{layer}.{hook}" for hook in _HOOKS[kind])  # type: ignore[return-value]


def sites(model: Any) -> list[str]:
    """All sites of a loaded model, layer by layer."""
    from workbench.models.anatomy import anatomy_of  # the pages name sites without a model, and load no torch for it

    return [f"L{i}{kind}" for i, layer in enumerate(anatomy_of(model).layers) for kind in layer.sites]


def site_hooks(model: Any, site: str) -> tuple[str, str]:
    """(input hook, output hook) of a site of a loaded model; equal but for transcoders.

    Raises:
        UsageError: the model has no such site; the message says what that layer is and names the nearest.
    """
    from workbench.models.anatomy import anatomy_of

    index, kind = parse_site(site)
    anatomy = anatomy_of(model)
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
