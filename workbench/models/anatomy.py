"""What a loaded model is made of, measured: its layers' kinds, the hooks that fire, the branches that make up the
residual stream, and which of its parts can be read, held and patched.

One short forward pass of a few rows says it all. Every block is given the same residual stream x in all rows (with some
noise, so that nothing is zero by chance): rows differ in one block at a time. Row 0 is left alone; rows 1 and 2 get
x + v and x + 2v with everything that decides where information goes held at row 0's values (what is left is linear, or
it is not); row 3 gets x + v with what convolutions give held as well (of a recurrent mixer nothing may be left: the
nonlinearity behind its convolution enters by its gradient); each further row edits one kind of hook (the block's output
answers, or the edit is not felt).

Names of architectures decide nothing. What cannot be established is refused by whoever needs it, with the reason given
here.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from workbench.models.head import norms_edited, probe_tokens
from workbench.models.recurrent.hooks import MIXERS
from workbench.models.recurrent.kinds import refused

_ATTRIBUTE = "_measured_anatomy"
_LENGTH = 8
# the hooks that may show a branch as it is added to the residual stream, the first that adds up counts
_BRANCHES = {
    "A": ("hook_attn_out", "ln1_post.hook_out", "attn.hook_out"),
    "S": ("hook_mixer_out", *(f"{m}.hook_out" for m in ("mixer", "mamba", "linear_attn", "ssm", "conv", "time_mix"))),
    "M": ("hook_mlp_out", "ln2_post.hook_out", "channel_mix.hook_out"),
}
_MIXERS = ("attn", "mixer", "mamba", "linear_attn", "ssm", "conv", "time_mix")
_MAMBA = tuple(f"mixer.hook_{name}" for name in ("dt", "B", "C", "gate"))  # Δ fixes the decay
_STATES = tuple(  # the same of every kind of recurrent layer (workbench.models.recurrent)
    f"{m}.recurrence.hook_{name}"
    for m in MIXERS
    for name in ("strength", "log_decay", "read", "write_key", "erase_key", "erase_strength", "gain")
)
_CONVOLVED = ".recurrence.hook_conv"
_GATES = ("attn.hook_q_gate", "attn.hook_gate")  # what a head's output is multiplied by, before the sigmoid
_HELD = ("attn.hook_pattern", *_GATES, *_MAMBA, *_STATES)
_AS_LARGE_AS_STATES = (
    "hook_state",
    "hook_carried",
    "hook_write",
    "hook_decay",
    "hook_h",
    "hook_ssm_write",
    "hook_ssm_state",
)
_EDITED = (*(f"attn.hook_{name}" for name in ("pattern", "v", "z")), "attn.o.hook_out", "attn.hook_out")


@dataclass(frozen=True)
class Layer:
    """One block.

    Attributes:
        kind: ``attention``, ``Mamba``, ``Mamba-2``, ``gated delta net``, …, two joined by ``+`` where they stand side
            by side, ``MLP``, or ``unknown`` where TransformerLens shows nothing of it.
        sites: kind of site (R, A, M, TC, S) -> (input hook, output hook).
        factor: what the branches are multiplied by as they are added; None where they do not add up.
        held: hooks that hold attention patterns, norms' scales and gates. not_held: why the mixer is not linear with
            them held; empty where it is.
        heads, kv_heads: 0 without attention. not_patched: why the parts of its attention are not what an analysis of
            heads supposes (pattern = softmax of the scores, output of a head = pattern · values, all of them read and
            edited); empty where they are.
        query_rows: heads that the hook of queries shows: twice as many where each query stands before its gate.
        gated: hook of what a head's output is multiplied by, before the sigmoid; empty without.
        written: hook that shows the sum of its heads through W_O, before anything else.
        neurons: hooks that show the MLP's activations after the nonlinearity, or a Mamba's x and gate.
        not_shown: why the states of a recurrent mixer are not shown; empty where they are.
        feed_forward: ``MLP``, ``mixture of experts``, or empty.
    """

    kind: str
    sites: dict[str, tuple[str, str]]
    factor: float | None
    held: tuple[str, ...]
    not_held: str
    heads: int = 0
    kv_heads: int = 0
    not_patched: str = "it has no attention"
    query_rows: int = 0
    gated: str = ""
    written: str = ""
    neurons: tuple[str, ...] = ()
    not_shown: str = ""
    feed_forward: str = ""


@dataclass(frozen=True)
class Anatomy:
    """All blocks of a model, and the scales of norms outside of them."""

    layers: tuple[Layer, ...]
    held: tuple[str, ...] = field(default=())

    @property
    def kinds(self) -> dict[str, list[int]]:
        """Kind -> its layers."""
        out: dict[str, list[int]] = {}
        for i, layer in enumerate(self.layers):
            out.setdefault(layer.kind, []).append(i)
        return out

    def describe(self) -> str:
        """``attention``, or ``Mamba-2 (layers 0, 1, 3) and attention (layer 2)``."""
        if len(self.kinds) == 1:
            return next(iter(self.kinds))
        some = [f"{k} (layer{'s' * (len(at) > 1)} {', '.join(map(str, at))})" for k, at in self.kinds.items()]
        return f"{', '.join(some[:-1])} and {some[-1]}"

    @property
    def experts(self) -> list[int]:
        """Layers whose feed-forward part is a mixture of experts."""
        return [i for i, layer in enumerate(self.layers) if layer.feed_forward == "mixture of experts"]

    def why_not_held(self) -> str:
        """Why attention patterns and gates cannot be held, of the first such layer; empty where all can."""
        return next((f"block {i}: {layer.not_held}" for i, layer in enumerate(self.layers) if layer.not_held), "")

    def frozen(self) -> list[str]:
        """All hooks to hold."""
        return [*(h for layer in self.layers for h in layer.held), *self.held]

    def why_not_patched(self) -> str:
        """Why heads cannot be analysed, of the first layer where they cannot; empty where all can."""
        return next((f"block {i}: {layer.not_patched}" for i, layer in enumerate(self.layers) if layer.not_patched), "")


def anatomy_of(model: Any) -> Anatomy:
    """The anatomy of a loaded model, measured once (see the module docstring).

    A model on the meta device cannot be run: what it names is taken at its word there.
    """
    found = vars(model).get(_ATTRIBUTE)
    if found is None:
        found = vars(model)[_ATTRIBUTE] = _measure(model)
    return found


def _measure(model: Any) -> Anatomy:
    if next(model.parameters()).device.type == "meta":
        return Anatomy(tuple(_named(model, i) for i in range(len(model.blocks))))
    try:
        seen, failed = _Pass(model, edit=True), ""
    except (
        RuntimeError,
        AttributeError,
        TypeError,
        ValueError,
        IndexError,
    ) as e:  # an edit TransformerLens cannot take
        failed = f"TransformerLens fails where hooks are edited ({type(e).__name__}: {str(e).splitlines()[0][:100]})"
        seen = _Pass(model, edit=False)
    layers = tuple(_Block(model, seen, i, failed).layer() for i in range(len(model.blocks)))
    outside = tuple(h for h in seen.values if h.endswith("hook_scale") and not h.startswith("blocks."))
    return Anatomy(layers, outside)


def _named(model: Any, index: int) -> Layer:
    """A block of a model that cannot be run, by the names of its hooks."""
    at, block = f"blocks.{index}.", model.blocks[index]
    mixers = [m for m in _MIXERS if hasattr(block, m)]
    found = {role: [h for h in hooks if at + h in model.hook_dict] for role, hooks in _BRANCHES.items()}
    there = {"A": "attn" in mixers, "S": set(mixers) - {"attn"}, "M": True}
    sites = {"R": ("hook_resid_post",) * 2} | {k: (found[k][0],) * 2 for k in "AMS" if found[k] and there[k]}
    if "M" in sites:
        into = next((h for h in ("ln2.hook_out", "mlp.hook_in") if at + h in model.hook_dict), None)
        sites |= {"TC": (into, sites["M"][1])} if into else {}
    return Layer(
        kind=_kind(block, mixers),
        sites={k: (at + sites[k][0], at + sites[k][1]) for k in ("R", "A", "M", "TC", "S") if k in sites},
        factor=None,
        held=(),
        not_held="the model has no weights",
        not_patched="the model has no weights",
    )


def _kind(block: Any, mixers: list[str]) -> str:
    names = []
    for mixer in mixers:
        module = getattr(block, mixer)
        original = getattr(module, "original_component", module)
        own = type(original).__name__
        known = module.recurrence.kind.name if hasattr(module, "recurrence") else (refused(original) or ("",))[0]
        if mixer == "attn" or ("Attention" in own and mixer != "time_mix"):
            names.append("attention")
        elif any(word in own for word in ("MLP", "MoE", "Moe")):
            names.append("MLP")
        else:
            names.append(known or {"time_mix": "RWKV", "conv": "short convolution"}.get(mixer, own))
    hidden = _recurrence(block)
    return "+".join(names) or (hidden[0] if hidden else "MLP" if hasattr(block, "mlp") else "unknown")


def _recurrence(block: Any) -> tuple[str, str] | None:
    """(kind, why its states are not shown) of a recurrent module anywhere in a block that shows none of it."""
    whole = getattr(block, "original_component", block)
    return next((found for module in whole.modules() if (found := refused(module)) is not None), None)


def _feed_forward(block: Any) -> str:
    """What stands behind the mixer, by its parts."""
    whole = getattr(block, "original_component", block)
    names = {name.rsplit(".", 1)[-1] for name, _ in whole.named_modules()}
    if "experts" in names or any("Moe" in type(m).__name__ or "MoE" in type(m).__name__ for m in whole.modules()):
        return "mixture of experts"
    return "MLP" if "mlp" in block._modules or names & {"mlp", "feed_forward", "channel_mixer"} else ""


@contextmanager
def _edits_tried() -> Iterator[None]:
    """No warning that an edit is not felt, or that a norm is made from edited values: that is what is asked here."""
    with norms_edited():
        warnings.filterwarnings("ignore", message="A hook on .* returned a modified tensor, but this attention")
        yield


class _Pass:
    """The forward pass: ``values[hook]`` [rows, T, …] of every hook that fired, in order."""

    CLEAN, ONE, TWO, FIXED = 0, 1, 2, 3

    def __init__(self, model: Any, edit: bool):
        self.edited = edit
        outputs = tuple(dict.fromkeys(n for names in _BRANCHES.values() for n in names))
        self.row = {name: 4 + i for i, name in enumerate((*_EDITED, *outputs))}
        self.n_rows = 4 + len(self.row)
        self.values: dict[str, Tensor] = {}
        self.inputs: list[Tensor] = []
        self.generator = torch.Generator().manual_seed(0)
        tokens = probe_tokens(model, 1, _LENGTH).expand(self.n_rows, -1)
        ends = ("_input", "hook_mlp_in", "hook_attn_in", "hook_result", *_AS_LARGE_AS_STATES)
        names = [h for h in model.hook_dict if not h.endswith(ends)]
        handles = [b.register_forward_pre_hook(self._start, with_kwargs=True) for b in model.blocks]
        try:
            with torch.no_grad(), model.hooks(fwd_hooks=[(h, self._see(h)) for h in names]), _edits_tried():
                model(tokens, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()

    def _start(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Give every row of a block the clean residual stream, rows 1 and 2 moved by v and 2v."""
        x = args[0] if args else kwargs["hidden_states"]
        if not self.edited:
            self.inputs.append(x[:1].detach())
            return None
        self.generator = torch.Generator().manual_seed(len(self.inputs))
        clean = x[:1] + self._noise(x[:1])  # what a sparse model leaves at zero could not be felt
        move = 0.1 * self._noise(clean)[0]
        x = clean.repeat(len(x), *[1] * (x.dim() - 1))
        x[self.ONE] += move
        x[self.TWO] += 2 * move
        x[self.FIXED] += move
        self.inputs.append(clean)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    def _noise(self, like: Tensor) -> Tensor:
        """Noise of a value's own size, 1 where it is nothing."""
        size = float(like.float().square().mean().sqrt()) if bool(torch.isfinite(like).all()) else 0.0
        return (size or 1.0) * torch.randn(like.shape, generator=self.generator).to(like)

    def _see(self, name: str) -> Any:
        part = name.split(".", 2)[-1] if name.startswith("blocks.") else name
        holds = part in _HELD or name.endswith("hook_scale")
        fixes = holds or name.endswith(_CONVOLVED)

        def hook(value: Any, hook: Any = None) -> Tensor | None:
            if not isinstance(value, Tensor) or value.dim() < 2:
                return None
            rows = value if value.shape[0] != self.n_rows * _LENGTH else value.unflatten(0, (self.n_rows, _LENGTH))
            if rows.shape[0] != self.n_rows:
                return None
            # one hook may be called by several names: each sees what the earlier left
            self.values.setdefault(name, rows.detach().clone())
            if not self.edited or not rows.is_floating_point():
                return None
            new = rows.clone()
            if holds:
                new[self.ONE], new[self.TWO] = rows[self.CLEAN], rows[self.CLEAN]
            if fixes:
                new[self.FIXED] = rows[self.CLEAN]
            if part in self.row:
                new[self.row[part]] += self._noise(rows[self.row[part]])
            return new.reshape(value.shape) if fixes or part in self.row else None

        return hook


class _Block:
    """What a pass says of one block."""

    def __init__(self, model: Any, seen: _Pass, index: int, failed: str):
        self.model, self.seen, self.index, self.failed = model, seen, index, failed
        self.block, self.at = model.blocks[index], f"blocks.{index}."
        self.values = {h[len(self.at) :]: v for h, v in seen.values.items() if h.startswith(self.at)}
        exact = next(model.parameters()).dtype in (torch.float32, torch.float64)
        self.tolerance = 1e-3 if exact else 5e-2
        self._written = self._gated = ""

    def layer(self) -> Layer:
        mixers = [m for m in _MIXERS if f"{m}.hook_out" in self.values]
        kind = _kind(self.block, mixers)
        branches, factor = self._branches(mixers)
        sites = {"R": ("hook_resid_post",) * 2} | {k: (h, h) for k, h in branches.items()}
        if "M" in branches and (into := self._mlp_input(branches["M"])):
            sites["TC"] = (into, branches["M"])
        order = [k for k in ("R", "A", "M", "TC", "S") if k in sites]
        attention = "attn" in mixers and "attn.hook_pattern" in self.values
        pattern = self.values.get("attn.hook_pattern")
        q, v = self.values.get("attn.hook_q"), self.values.get("attn.hook_v")
        not_patched = self._why_not_patched() if attention else "it has no attention whose parts are shown"
        return Layer(
            kind=kind,
            sites={k: (self.at + sites[k][0], self.at + sites[k][1]) for k in order},
            factor=factor,
            held=self._held(),
            not_held=self._why_not_held(kind, branches),
            heads=int(pattern.shape[1]) if attention and pattern is not None else 0,
            kv_heads=int(v.shape[2]) if attention and v is not None and v.dim() == 4 else 0,
            not_patched=not_patched,
            query_rows=int(q.shape[2]) if attention and q is not None and q.dim() == 4 else 0,
            gated=self._gated and self.at + self._gated,
            written=self.at + self._written,
            neurons=self._neurons(),
            not_shown=self._why_not_shown(),
            feed_forward=_feed_forward(self.block),
        )

    def _held(self) -> tuple[str, ...]:
        """All that is held; what a Mamba's own hooks hold is not held twice."""
        own = all(h in self.values for h in _MAMBA)
        names = [h for h in self.values if (h in _HELD and not (own and h in _STATES)) or h.endswith("hook_scale")]
        return tuple(self.at + h for h in names)

    def _why_not_shown(self) -> str:
        found = _recurrence(self.block)
        return "" if found is None else f"the states of {found[0]} are not shown: {found[1]}"

    def _branches(self, mixers: list[str]) -> tuple[dict[str, str], float | None]:
        """({A, S, M: hook that shows the branch}, factor) whose sum is what the block adds to the stream."""
        into, out = self.seen.inputs[self.index], self.values.get("hook_resid_post")
        if out is None:
            return {}, None
        found = {
            role: [
                h for h in _BRANCHES[role] if h in self.values and self.values[h].shape == out.shape and self._felt(h)
            ]
            for role, there in {"A": "attn" in mixers, "S": set(mixers) - {"attn"}, "M": True}.items()
            if there
        }
        found = {role: hooks for role, hooks in found.items() if hooks}
        added = out[:1].float() - into.float()
        # all of them, or those that are left when some end inside the block (Zamba2's attention feeds its mixer)
        for roles in (r for size in range(len(found), 0, -1) for r in itertools.combinations(found, size)):
            for chosen in itertools.product(*(found[role] for role in roles)):
                total = sum((self.values[h][:1].float() for h in chosen), torch.zeros_like(added))
                factor = float((total * added).sum() / total.square().sum().clamp_min(1e-30))
                if (total * factor - added).abs().max() <= self.tolerance * added.abs().max():
                    return dict(zip(roles, chosen, strict=True)), 1.0 if abs(factor - 1) < 1e-4 else factor
        return {}, None

    def _felt(self, hook: str, branch: str = "hook_resid_post") -> bool:
        """Whether an edit at a hook reaches the residual stream."""
        row, out = self.seen.row.get(hook), self.values.get(branch)
        if row is None or out is None:
            return False
        return not self.seen.edited or bool((out[row] - out[0]).abs().max() > 1e-6 * out[0].abs().max())

    def _mlp_input(self, out: str) -> str | None:
        """The hook that shows what the MLP reads: the norm's output where that is it."""
        order = list(self.values)
        for hook in ("ln2.hook_out", "mlp.hook_in", "channel_mix.hook_in"):
            value, read = self.values.get(hook), self.values.get(out)
            if value is None or read is None or value.dim() != 3 or order.index(hook) > order.index(out):
                continue
            true = self.values.get("mlp.hook_in", value)
            if value.shape == true.shape and torch.equal(value[0], true[0]):
                return hook
        return None

    def _why_not_held(self, kind: str, branches: dict[str, str]) -> str:
        if self.failed:
            return self.failed
        if kind == "unknown" or not branches:
            return "TransformerLens does not show its parts"
        if "attn.hook_pattern" in self.values and not self._felt("attn.hook_pattern"):
            return (
                "edits at attn.hook_pattern are not felt, because TransformerLens lets transformers compute attention"
            )
        if "attn.hook_out" in self.values and "A" not in branches:
            return "what its attention writes goes into its other mixer, through norms that are not shown"
        convolved = [h for h in self.values if h.endswith(_CONVOLVED)]
        if "S" in branches and convolved:
            clean, _, two, fixed = (self.values[branches["S"]][i].float() for i in range(4))
            if (fixed - clean).abs().max() > self.tolerance * (two - clean).abs().max():
                return f"{kind} is not held by the hooks of its gates, norms and factors"
        linear = [
            *convolved,
            *(h for role, h in branches.items() if role == "A" or (role == "S" and not convolved and kind != "MLP")),
        ]
        for h in linear:
            clean, one, two = (self.values[h][i].float() for i in range(3))
            if ((two - clean) - 2 * (one - clean)).abs().max() > self.tolerance * (two - clean).abs().max():
                return f"{kind} is not linear with attention patterns, norms and gates held"
        return ""

    def _why_not_patched(self) -> str:
        """Whether the parts of attention are what an analysis of heads supposes."""
        need = ("q", "k", "v", "z", "attn_scores", "pattern")
        got = {n: self.values.get(f"attn.hook_{n}") for n in need}
        if missing := [n for n, v in got.items() if v is None]:
            return f"attn.hook_{missing[0]} does not fire"
        scores, pattern, v, z = (got[n][0].float() for n in ("attn_scores", "pattern", "v", "z"))  # type: ignore[index]
        if got["q"].dim() != 4 or v.dim() != 3 or z.dim() != 3 or pattern.shape[0] % v.shape[1]:  # type: ignore[union-attr]
            return "its queries, keys and values are not one row per head"
        if self.failed:
            return self.failed
        if lost := [n for n in ("pattern", "v", "z") if not self._felt(f"attn.hook_{n}")]:
            return f"edits at attn.hook_{lost[0]} are not felt: TransformerLens lets transformers compute attention"
        if not _near(scores.softmax(-1), pattern, self.tolerance):
            return "its pattern is not the softmax of its scores"
        values = v.repeat_interleave(pattern.shape[0] // v.shape[1], 1)
        read = torch.einsum("hqk,khe->qhe", pattern, values)
        gates = {n: self.values[n][0].float().sigmoid().reshape(z.shape) for n in _GATES if n in self.values}
        self._gated = next((n for n, gate in gates.items() if _near(read * gate, z, self.tolerance)), "")
        if not self._gated and not _near(read, z, self.tolerance):
            return "a head's output is not its pattern times the values"
        if got["q"].shape[2] not in (len(pattern), len(pattern) * (1 + bool(self._gated))):  # type: ignore[union-attr]
            return "its queries are not one row per head"
        written = torch.einsum("qhe,hed->qd", z, self.block.attn.W_O.detach().float())
        bias = getattr(self.block.attn, "b_O", None)
        written = written if bias is None else written + bias.detach().float()
        shown = [h for h in ("attn.o.hook_out", "attn.hook_out") if h in self.values and self._felt(h)]
        self._written = next((h for h in shown if _near(written, self.values[h][0].float(), self.tolerance)), "")
        return "" if self._written else "its output is not the sum of its heads through W_O"

    def _neurons(self) -> tuple[str, ...]:
        for names in (("mixer.hook_x", "mixer.hook_gate"), ("mlp.hook_post",), ("mlp.out.hook_in",)):
            if not all(n in self.values and self.values[n].dim() == 3 for n in names):
                continue
            out = self.values.get("mlp.hook_out")
            same = out is not None and out.shape == self.values[names[0]].shape
            if not (same and torch.equal(out[0], self.values[names[0]][0])):  # type: ignore[index]
                return tuple(self.at + n for n in names)
        return ()


def _near(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max())
