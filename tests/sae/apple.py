"""A GPU that is not here: tensors that say they lie on a GPU, computed on the CPU, which refuse what Apple's refuse.

64-bit numbers, sparse tensors, embedding bags, fused Adam and pinned memory raise what PyTorch raises there, and so
does an operation on tensors of both devices. What a real one does otherwise under the same names, this cannot show.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from sae import devices

ABSENT = ("embedding_bag", "sparse", "fused_adam", "pin_memory", "kthvalue")
ACROSS = ("copy_", "_to_copy", "index.", "index_put")  # operations that take tensors of both devices


class Apple(torch.Tensor):
    """A tensor that says it lies on that GPU; ``inner`` holds its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Apple:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="apple:0",
            requires_grad=inner.requires_grad,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Mode(TorchDispatchMode):
    """Lets ``device="apple"`` in any call make such tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Moves(TorchFunctionMode):
    """``tensor.to("apple")`` and ``torch.tensor(…, device="apple")``, which ask for the device's memory directly."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is torch.tensor and torch.device(given.get("device") or "cpu").type == "apple":
            return torch.tensor(*args, **{**given, "device": "cpu"}).to("apple")
        if func is torch.Tensor.to:
            t, where = args[0], [*args[1:], *given.values()]
            like = [w for w in where if isinstance(w, torch.Tensor)]
            places = [torch.device(w) for w in where if isinstance(w, str | torch.device)] + [w.device for w in like]
            types_ = [w for w in where if isinstance(w, torch.dtype)] + [w.dtype for w in like]
            if places and places[0].type == "apple":
                dtype = types_[0] if types_ else t.dtype
                if t.device.type == "apple" and t.dtype == dtype:
                    return t
                return torch.ops.aten._to_copy.default(t, dtype=dtype, device=places[0])
        return func(*args, **given)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, given = (
        str(func).removeprefix("aten."),
        [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)],
    )
    asked = kwargs.get("device")
    there = (torch.device(asked).type == "apple") if asked is not None else any(isinstance(t, Apple) for t in given)
    if any(isinstance(t, Apple) for t in given):
        if any(word in name for word in ABSENT):
            raise NotImplementedError(f"The operator 'aten::{name}' is not currently implemented for the MPS device.")
        if any(t.dim() for t in given if not isinstance(t, Apple)) and not name.startswith(ACROSS):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found apple and cpu")
    plain = {**kwargs, "device": torch.device("cpu")} if asked is not None else kwargs
    inner = lambda t: t.inner if isinstance(t, Apple) else t  # noqa: E731
    out = func(*tree_map(inner, args), **tree_map(inner, plain))

    def wrapped(t: Any) -> Any:
        if not isinstance(t, torch.Tensor) or not there:
            return t
        if t.dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        return Apple(t)

    return return_and_correct_aliasing(func, args, kwargs, tree_map(wrapped, out))


@contextmanager
def apple() -> Iterator[None]:
    """Within it there is such a device."""
    devices._tried.cache_clear()
    with Moves(), Mode():
        yield


def _config(kind: str) -> Any:
    from crosscoders.config import CrosscoderConfig
    from sae import SAEConfig, TranscoderConfig

    same = {"d_sae": 48, "k": 4, "aux_every": 2, "dead_after": 100, "backend": "fallback"}
    if kind == "transcoder":
        return TranscoderConfig(d_in=12, d_out=8, skip=True, **same)
    if kind.startswith("crosscoder"):
        activation = kind.partition("-")[2]
        return CrosscoderConfig(widths=[12, 8], activation={"kind": activation}, **same)
    return SAEConfig(d_in=20, activation=kind, **same)


def _outcome(kind: str, place: str) -> dict[str, Any]:
    """Training, dead latents revived, then all that is measured of a dictionary and fitted to it; as plain numbers."""
    from crosscoders.metrics import evaluate_sources
    from crosscoders.scaling import ScalingMeter
    from sae import Trainer
    from sae.metrics import evaluate
    from sae.populations import populations
    from sae.refitting import refit
    from sae.threshold import to_jumprelu

    generator = torch.Generator().manual_seed(1)
    rows = [(torch.randn(96, 20, generator=generator) * torch.linspace(1, 3, 20)).to(place) for _ in range(4)]
    rows[-1][0] *= 100
    trainer = Trainer(_config(kind), total_steps=12, device=place)
    for i in range(10):
        if i == 6:  # some latents are lost: AuxK, then a fresh start
            trainer.since_F[:5] = 10**6
        trainer.step(rows[i % 3])
    out: dict[str, Any] = {"where": trainer.model.enc_FD.device.type, "backend": trainer.backend.name}
    dictionary = trainer.dictionary()
    crosscoder = kind.startswith("crosscoder")
    out["ev"] = evaluate_sources(dictionary, rows).ev_S if crosscoder else evaluate(dictionary, rows).ev
    if kind != "transcoder":
        out["refitted"] = refit(dictionary, rows).dec_FD.cpu().tolist()
    out["decoder"] = dictionary.dec_FD.cpu().tolist()
    seen = populations(rows)
    out["massive"] = seen.n_massive
    out["kept"] = [len(x) for x in seen.inliers(rows)]
    if kind == "topk":
        out["threshold"] = to_jumprelu(dictionary, rows).threshold_F.cpu().tolist()
    if crosscoder:
        y, values, indices = dictionary.reconstructed(rows[0])
        meter = ScalingMeter(list(dictionary.dec_FD.split(dictionary.widths, dim=1)))
        meter.update(values, indices, rows[0], y, dictionary.b_dec)
        out["own_norms"] = meter.result().own_norms.cpu().nan_to_num(-1).tolist()
    return out


if __name__ == "__main__":
    _setup_privateuseone_for_python_backend("apple")
    with apple():
        places = ("apple", "cpu")
        found: dict[str, Any] = {kind: {place: _outcome(kind, place) for place in places} for kind in sys.argv[1:]}
        found["abilities"] = {place: asdict(devices.abilities(place)) for place in places}
    print(json.dumps(found))
