"""Sites: short names for places in a model, and the one table that knows their hook names.

``L{l}R`` residual stream after block l, ``L{l}A`` attention output, ``L{l}M`` MLP output, ``L{l}TC`` MLP from input to
output (a transcoder's pair), ``L{l}S`` Mamba mixer output.
"""

from __future__ import annotations

import re
from typing import Any

from sae.errors import UsageError
from sae.strict import nearest

_SITE = re.compile(r"L(\d+)(R|A|M|TC|S)")
# kind -> (input hook, output hook) below blocks.{l}; R, A, M and S read and write the same place.
_HOOKS = {
    "R": ("hook_resid_post", "hook_resid_post"),
    "A": ("hook_attn_out", "hook_attn_out"),
    "M": ("hook_mlp_out", "hook_mlp_out"),
    "TC": ("ln2.hook_out", "hook_mlp_out"),
    "S": ("hook_mixer_out", "hook_mixer_out"),
}


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
    """(input hook, output hook) of a site, by name alone: the same for every architecture that has the site."""
    layer, kind = parse_site(site)
    return tuple(f"blocks.{layer}.{hook}" for hook in _HOOKS[kind])  # type: ignore[return-value]


def sites(model: Any) -> list[str]:
    """All sites of a loaded model, layer by layer."""
    kinds = ("R", "S") if _is_mamba(model) else ("R", "A", "M", "TC")
    return [f"L{layer}{kind}" for layer in range(model.cfg.n_layers) for kind in kinds]


def site_hooks(model: Any, site: str) -> tuple[str, str]:
    """(input hook, output hook) of a site of a loaded model; equal but for transcoders.

    Raises:
        UsageError: the model has no such site; the message names the nearest one.
    """
    parse_site(site)
    known = sites(model)
    if site not in known:
        raise UsageError(
            f"{getattr(model.cfg, 'model_name', 'the model')} has no site {site!r} ({nearest(site, known)})"
        )
    return hooks_of(site)


def site_of(hook: str) -> str:
    """The site that a hook name is the output of, for example ``blocks.2.hook_resid_post`` -> ``L2R``.

    Raises:
        UsageError: no site has this output hook.
    """
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    kinds = {
        "hook_resid_post": "R",
        "hook_out": "R",
        "hook_attn_out": "A",
        "attn.hook_out": "A",
        "hook_mlp_out": "M",
        "mlp.hook_out": "M",
    }
    kinds |= {"hook_mixer_out": "S", "mixer.hook_out": "S"}
    if match is None or match[2] not in kinds:
        raise UsageError(
            f"{hook!r} is not the output hook of a site (valid: blocks.<layer>. and {', '.join(sorted(kinds))})"
        )
    return f"L{match[1]}{kinds[match[2]]}"


def transcoder_site(hook_in: str, hook_out: str) -> str | None:
    """The transcoder site with these two hooks, or None: ``blocks.2.ln2.hook_out`` and ``blocks.2.hook_mlp_out`` ->
    ``L2TC``.
    """
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook_in)
    if match is None or match[2] != _HOOKS["TC"][0]:
        return None
    return (
        f"L{match[1]}TC"
        if hook_out in (f"blocks.{match[1]}.{_HOOKS['TC'][1]}", f"blocks.{match[1]}.mlp.hook_out")
        else None
    )


def _is_mamba(model: Any) -> bool:
    return "mamba" in str(getattr(model.cfg, "architecture", "")).lower()
