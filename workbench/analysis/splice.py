"""The one way a dictionary enters a forward pass.

Loss differences, steering, ablation and attribution all go through :func:`splice`: at each named hook the activation is
encoded, the codes may be edited, and the decoded result takes the activation's place, with the reconstruction error
kept or dropped by name. What is kept is kept exactly: with ``keep_error=True`` and no edit the forward pass is the
original one to the last bit.

Shapes: B sequences, S positions, F latents, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sae.errors import ConfigError, UsageError
from sae.transcoder import Transcoder

Edit = Callable[[Tensor, str], Tensor]
"""(codes [..., F], hook name) -> codes [..., F]; must not change its argument in place."""


@dataclass
class Seen:
    """What passed through one splice in the last forward pass (positions that were left alone included)."""

    x: Tensor  # [B, S, D] what the dictionary read
    target: Tensor  # [B, S, D] what it stands for; differs from x for transcoders
    y: Tensor  # [B, S, D] its reconstruction, without any edit
    values: Tensor  # [B, S, K]
    indices: Tensor  # [B, S, K]


@dataclass
class Spliced:
    """Handle of an open splice; ``seen[hook]`` is filled by every forward pass if asked for."""

    model: Any
    seen: dict[str, Seen] = field(default_factory=dict)


class Constant:
    """A stand-in for a dictionary that reconstructs every activation as the same vector: zero- and mean-ablation."""

    def __init__(self, vector: Tensor):
        self.vector = vector

    def encode_sparse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """No latents."""
        return x.new_zeros(*x.shape[:-1], 0), torch.zeros(*x.shape[:-1], 0, dtype=torch.int64, device=x.device)

    def decode_sparse(self, values: Tensor, indices: Tensor) -> Tensor:
        """The vector, at every position."""
        return self.vector.to(values).expand(*values.shape[:-1], -1)


@contextmanager
def splice(
    model: Any,
    at: Mapping[str, Any],
    edit: Edit | None = None,
    *,
    keep_error: bool,
    first_position: int = 1,
    rows: Tensor | None = None,
    record: bool = False,
) -> Iterator[Spliced]:
    """Replace activations by their reconstructions while the context is open.

    Args:
        model: a TransformerBridge.
        at: hook name -> dictionary. A transcoder is listed under the hook it reads; its output hook is
        ``hook_name_out`` of its metadata.
        edit: change of the codes before decoding; None leaves them.
        keep_error: True adds back what the unedited reconstruction misses, so only the edit changes the forward pass
            (steering, ablation, attribution); False drops it (loss of the reconstruction).
        first_position: positions before this one are left as they are (1: BOS, which no dictionary here was trained
        on).
        rows: bool [B, S], instead of ``first_position``: which positions are replaced; the others are left as they are.
        record: fill :attr:`Spliced.seen`.

    Raises:
        UsageError: an unknown hook. ConfigError: a dictionary whose width does not fit its hook, or a transcoder that
            does not say where it writes.
    """
    handle = Spliced(model)
    hooks: list[tuple[str, Callable[..., Tensor | None]]] = []
    for name, dictionary in at.items():
        out = str((getattr(dictionary, "metadata", None) or {}).get("hook_name_out") or name)
        if out == name and isinstance(dictionary, Transcoder):
            raise ConfigError(
                f"the transcoder at {name} does not say where it writes. Add hook_name_out to the metadata in its"
                " cfg.json."
            )
        for hook in {name, out}:
            if hook not in model.hook_dict:
                raise UsageError(
                    f"the model has no hook {hook!r}. `workbench info` lists the hooks of a model's sites."
                )
        hooks += _hooks(handle, name, out, dictionary, edit, keep_error, first_position, rows, record)
    try:
        opened = model.hooks(fwd_hooks=hooks)
        opened.__enter__()
    except ValueError as e:  # a hook that exists but is switched off
        raise UsageError(f"the model's hook cannot be used: {str(e).splitlines()[0]}") from e
    try:
        yield handle
    finally:
        opened.__exit__(None, None, None)


def _hooks(
    handle: Spliced,
    name: str,
    out: str,
    dictionary: Any,
    edit: Edit | None,
    keep_error: bool,
    first: int,
    rows: Tensor | None,
    record: bool,
) -> list[tuple[str, Callable[..., Tensor | None]]]:
    """The hook functions of one dictionary: one, or two where it reads and writes at different places."""
    read: dict[str, Tensor] = {}

    def remember(x: Tensor, hook: Any) -> None:
        read["x"] = x.flatten(2)

    def replace(whole: Tensor, hook: Any) -> Tensor | None:
        target = whole.flatten(2)  # heads side by side, where the hook keeps them apart
        x = target if out == name else read.pop("x")
        y_edited, y, values, indices = _reconstruct(dictionary, x, edit, name)
        if y.shape != target.shape:
            raise ConfigError(
                f"the dictionary at {name} gives rows of width {y.shape[-1]}, {out} has width {target.shape[-1]}: it"
                " is of another model or hook."
            )
        if record:
            handle.seen[name] = Seen(x.detach(), target.detach(), y.detach(), values.detach(), indices.detach())
        if keep_error and y_edited is y:
            return None
        new = target + (y_edited - y) if keep_error else y_edited
        new = new.to(target.dtype)
        if rows is not None:
            new = torch.where(rows.to(new.device)[..., None], new, target)
        elif first:
            new = torch.cat([target[:, :first], new[:, first:]], dim=1)
        return new.reshape(whole.shape)

    return [(name, replace)] if out == name else [(name, remember), (out, replace)]


def _reconstruct(dictionary: Any, x: Tensor, edit: Edit | None, hook: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(edited reconstruction, reconstruction, values, indices); the first two are one tensor without an edit."""
    values, indices = dictionary.encode_sparse(x)
    skip = dictionary.skip(x) if hasattr(dictionary, "skip") else None
    y = dictionary.decode_sparse(values, indices)
    y = y if skip is None else y + skip
    if edit is None:
        return y, y, values, indices
    codes = values.new_zeros(*x.shape[:-1], dictionary.W_dec.shape[0]).scatter(-1, indices, values)
    edited = edit(codes, hook)
    if edited.shape != codes.shape:
        raise ConfigError(
            f"the edit at {hook} returned shape {tuple(edited.shape)}. It must return what it was given,"
            f" {tuple(codes.shape)}, changed."
        )
    y_edited = dictionary.decode(edited)
    return (y_edited if skip is None else y_edited + skip), y, values, indices


def ablate(latents: Sequence[int], to: float | Tensor = 0.0) -> Edit:
    """An edit that sets latents to a value (0, or their means [len(latents)])."""
    return clamp(latents, to)


def clamp(latents: Sequence[int], to: float | Tensor) -> Edit:
    """An edit that holds latents at a value on every position."""

    def edit(codes: Tensor, hook: str) -> Tensor:
        out = codes.clone()
        out[..., list(latents)] = to if isinstance(to, int | float) else to.to(codes)
        return out

    return edit


def steer(amounts: Mapping[int, float]) -> Edit:
    """An edit that adds to latents on every position; with ``keep_error=True`` this adds multiples of decoder
    directions.
    """

    def edit(codes: Tensor, hook: str) -> Tensor:
        out = codes.clone()
        for latent, amount in amounts.items():
            out[..., latent] += amount
        return out

    return edit
