"""From the residual stream after the last block to the logits: what a model does there, asked of the model itself.

Norms multiply by w (Llama), by 1 + w (Gemma, Zhang & Sennrich 2019's RMSNorm with an offset) or by nothing (OLMo-1);
some subtract the mean; the logits may be scaled (Cohere, Granite) and softly capped (Gemma-2: c·tanh(z/c)). None of it
is read off names: the final norm is shown vectors whose answer tells its gain and whether it centres, the rest is
compared with the logits, and what was found must give the gradient that the model's own head has on a real row.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae.errors import UserError

_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logits_soft_cap", "final_logit_softcap")
_ATTRIBUTE = "_measured_head"


@dataclass(frozen=True)
class Head:
    """Final norm and unembedding of a model.

    Attributes:
        W: [d_model, vocab] unembedding, everything linear after the final norm included.
        gain: [d_model] what the norm multiplies by, None without a norm. centred: whether it subtracts the mean.
        offset: whether the gain is 1 + the norm's weight. factor: what the logits are multiplied by.
        cap: c where the logits are c·tanh(z/c).
    """

    W: Tensor
    gain: Tensor | None
    centred: bool
    offset: bool
    factor: float
    cap: float | None

    @property
    def norm(self) -> str:
        """``LayerNorm`` or ``RMSNorm``, after what it does; empty without a norm."""
        return "" if self.gain is None else "LayerNorm" if self.centred else "RMSNorm"

    def linear(self) -> Tensor:
        """[d_model, vocab]: what a direction of the residual stream adds to the logits, but for the division by the
        residual's scale and a soft cap.
        """
        W = self.W if self.gain is None else self.gain[:, None] * self.W
        return W - W.mean(0, keepdim=True) if self.centred else W

    def note(self) -> str:
        """A sentence on what :meth:`linear` has in it."""
        if self.gain is None:
            said = "final norm not folded: the model shows none"
        else:
            gain = "gain 1 + w applied" if self.offset else "gain applied"
            centred = "mean removed and " if self.centred else ""
            said = f"final {self.norm} folded ({centred}{gain}, division by the residual's scale left out)"
        said += f"; logits multiplied by {self.factor:g}" if self.factor != 1.0 else ""
        said += f"; soft cap of {self.cap:g} left out" if self.cap is not None else ""
        return f"{said}; logits centred over the vocabulary"


def head_of(model: Any) -> Head:
    """The head of a loaded model, measured once (see the module docstring).

    Raises:
        UserError: the model has no unembedding, or its logits are not norm, linear map, factor and soft cap.
    """
    found = vars(model).get(_ATTRIBUTE)
    if found is None:
        if getattr(model, "W_U", None) is None:
            raise UserError(
                f"{type(model).__name__} has no unembedding (lm_head), so what a latent does to the next token's"
                " logits is not defined."
            )
        found = _measure(model)
        vars(model)[_ATTRIBUTE] = found
    return found


def raw_logits(model: Any, resid: Tensor) -> Tensor:
    """[..., vocab] logits of the residual stream after the last block, before factor and cap."""
    norm, out = getattr(model, "ln_final", None), _projection(model)
    x = resid if norm is None else norm(resid)
    return model.unembed(x if out is None else out(x))


def finished(raw: Tensor, factor: float, cap: float | None) -> Tensor:
    """Logits from :func:`raw_logits`."""
    z = raw if factor == 1.0 else raw * factor
    return z if cap is None else cap * torch.tanh(z / cap)


@contextmanager
def norms_edited() -> Iterator[None]:
    """No warning that a norm is made from its edited values: that is meant (rounding differs, nothing else)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A forward hook edited hook_scale")
        yield


def probe_tokens(model: Any, rows: int = 2, length: int = 8) -> Tensor:
    """[rows, length] token ids spread over the vocabulary: a short text no model is special about."""
    device = next(model.parameters()).device
    vocab = int(model.cfg.d_vocab)
    return (1 + 7919 * torch.arange(rows * length, device=device)).remainder(max(vocab - 1, 1)).reshape(rows, length)


def _measure(model: Any) -> Head:
    tokens, last = probe_tokens(model), f"blocks.{len(model.blocks) - 1}.hook_resid_post"
    seen: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: Any) -> None:
        seen["x"] = value.detach()

    with torch.no_grad(), model.hooks(fwd_hooks=[(last, keep)]):
        logits = model(tokens, use_cache=False).float()
        x = seen["x"]
        gain, centred, offset = _norm(model, x)
        raw = raw_logits(model, x).float()
    factor, cap = _after(model, raw, logits)
    W = model.W_U.detach().float()
    out = _projection(model)
    if out is not None:
        W = out.weight.detach().float().t() @ W
    head = Head(W if factor == 1.0 else W * factor, gain, centred, offset, factor, cap)
    _check(model, head, x[-1:, -1:])
    return head


def _projection(model: Any) -> Any:
    """OPT-350m's linear map between the last block and the unembedding, where a model has one."""
    for module in getattr(model, "original_model", torch.nn.Module()).modules():
        found = getattr(module, "project_out", None)
        if found is not None:
            return found
    return None


def _norm(model: Any, like: Tensor) -> tuple[Tensor | None, bool, bool]:
    """(gain, whether it centres, whether the gain is 1 + weight) of the final norm, by what it makes of ±1: mean 0 and
    mean square 1, so that the norm divides by 1.
    """
    norm = getattr(model, "ln_final", None)
    if norm is None:
        return None, False, False
    x = torch.ones(1, 1, like.shape[-1], dtype=like.dtype, device=like.device)
    x[..., 1::2] = -1
    up, down, moved = norm(x).float(), norm(-x).float(), norm(x + 1).float()
    gain = ((up - down) / 2 * x.float())[0, 0]
    # a norm that subtracts the mean answers x + 1 as it answers x
    centred = bool(torch.allclose(up, moved, atol=1e-3 * float(up.abs().max()), rtol=1e-3))
    weight = getattr(getattr(norm, "original_component", norm), "weight", None)
    if weight is not None and weight.shape == gain.shape:
        exact = weight.detach().float()  # free of the norm's epsilon and of rounding
        for candidate, offset in ((exact, False), (1.0 + exact, True)):
            if torch.allclose(candidate, gain, atol=1e-3 * float(gain.abs().max()), rtol=1e-2):
                return candidate, centred, offset
    return gain, centred, False


def _after(model: Any, raw: Tensor, logits: Tensor) -> tuple[float, float | None]:
    """(factor, soft cap) that turn raw logits into the model's own.

    Raises:
        UserError: neither does.
    """
    size = float(logits.abs().max())
    factor = _ratio(logits, raw, 1e-4)
    tolerance = 1e-3 if raw.dtype == torch.float32 and next(model.parameters()).dtype == torch.float32 else 3e-2
    if torch.allclose(raw * factor, logits, atol=tolerance * size, rtol=tolerance):
        return factor, None
    configs = (getattr(getattr(model, "original_model", None), "config", None), model.cfg)
    for cap in [float(c) for config in configs for n in _CAPS if (c := getattr(config, n, None))]:
        z = cap * torch.atanh((logits / cap).clamp(-0.999, 0.999))  # atanh loses digits near ±1
        safe = (logits / cap).abs() < 0.9
        factor = _ratio(z[safe], raw[safe], 1e-3)
        if torch.allclose(finished(raw, factor, cap), logits, atol=tolerance * size, rtol=tolerance):
            return factor, cap
    raise UserError(
        f"the logits of {model.cfg.architecture} are not its final norm and unembedding, times a factor and softly"
        " capped; direct logit effects (decoder row times unembedding) and circuits are not defined for it."
    )


def _ratio(a: Tensor, b: Tensor, tolerance: float) -> float:
    """a over b by least squares; exactly 1 where it is close, or where both are nothing."""
    size = float(b.square().sum())
    ratio = float((a * b).sum()) / size if size else 1.0
    return 1.0 if abs(ratio - 1) < tolerance else ratio


def _check(model: Any, head: Head, x: Tensor) -> None:
    """The head's gradient near a real row [1, 1, d_model] against the model's own.

    Raises:
        UserError: they differ in what the norm's division does not touch.
    """
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(head.W.shape[1], generator=generator).to(x.device)
    noise = torch.randn(x.shape, generator=generator).to(x)  # a row may be nothing but zeros
    x = x + noise * (0.1 * x.square().mean().sqrt() if bool(x.any()) else 1.0)
    size = float(x.float().square().mean().sqrt())
    if head.gain is not None and 0 < size < 1:
        x = (
            x / size
        )  # the norm answers the same, and its epsilon, a share of an untrained model's small rows, is nothing
    leaf = x.clone().requires_grad_(True)
    with torch.enable_grad():
        logits = finished(raw_logits(model, leaf), head.factor, head.cap).float()
        (measured,) = torch.autograd.grad((logits * u).sum(), leaf)
    slope = u if head.cap is None else u * (1 - (logits.detach()[0, 0] / head.cap).square())
    expected, measured, at = head.linear() @ slope, measured[0, 0].float(), x[0, 0].float()
    if head.gain is not None:  # the division by the residual's scale acts along the residual alone
        at = at - at.mean() if head.centred else at
        expected, measured = (v - (v @ at) / (at @ at) * at for v in (expected, measured))
    near = torch.nn.functional.cosine_similarity(expected, measured, dim=0)
    scale = measured.norm() / expected.norm()
    rms = 1.0 if head.gain is None else 1 / float(at.square().mean().sqrt())
    tolerance = 1e-3 if x.dtype == torch.float32 else 3e-2
    if float(near) < 1 - tolerance or abs(float(scale) / rms - 1) > 10 * tolerance:
        raise UserError(
            f"the final norm of {model.cfg.architecture} is no LayerNorm or RMSNorm (its gradient agrees with one at a"
            f" cosine of {float(near):.3f}); direct logit effects are not defined for it."
        )
