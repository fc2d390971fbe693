"""Which latents carry a task at each snapshot: integrated gradients, and curves that break or keep them.

For source s the residual is written a = a_clean + (f' - f) W_s, f the crosscoder's code of the clean prompt (it sees
all sources) and f' what takes its place; the reconstruction error stays as it is. With f~ the code of the
counterfactual prompt, the attribution of latent i is

    attr_i = sum over positions of (f_i - f~_i) * mean_k d m / d f_i  at  f~ + (k / K) (f - f~),   k = 1 .. K

(integrated gradients; attributions add up to m(f) - m(f~) as K grows). m = logit(answer) - logit(wrong).

Latents are ranked by |attr| on one half of the prompts and tested on the other. *destroy*: the top k take their
counterfactual values; *keep*: all others do. With m_full the clean metric and m_empty the metric with every latent at
its counterfactual value:  faithfulness(k) = (m(keep k) - m_empty) / (m_full - m_empty), completeness(k) the same for
m(destroy k). Three controls beside them, all drawn from latents active on the ranking prompts: random k, k latents of
the same firing frequency, and the top k by |f - f~| * |W_s| (a large change is not yet a cause).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from sae.errors import UsageError
from workbench.analysis.circuits.effects import interval
from workbench.analysis.circuits.tasks import PromptSet
from workbench.analysis.evolution.snapshots import Snapshots
from workbench.analysis.splice import splice
from workbench.run import QUIET, Run

KS = (1, 2, 4, 8, 16, 32, 64)
CONTROLS = ("random", "frequency", "magnitude")


class SnapshotView:
    """A crosscoder seen from one source, on given prompts: the dictionary that :func:`splice` sees.

    Its codes are those of the prompts (they depend on all sources, so they cannot be computed from this one's
    activations), restricted to A latents that are active there. ``codes`` [B, T, A], ``W_dec`` [A, D_s] in raw units.
    """

    def __init__(self, codes: Tensor, W_dec: Tensor):
        self.codes, self.W_dec = codes, W_dec

    def encode_sparse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """All A codes of every position, whatever ``x`` is."""
        return self.codes, torch.arange(self.codes.shape[-1]).expand(self.codes.shape)

    def decode_sparse(self, values: Tensor, indices: Tensor) -> Tensor:
        """The part of the reconstruction that the codes make (biases cancel where the error is kept)."""
        return values @ self.W_dec

    def decode(self, f: Tensor) -> Tensor:
        """As :meth:`decode_sparse`."""
        return f @ self.W_dec


@dataclass(frozen=True)
class Encoded:
    """Codes of P prompts, clean and counterfactual, restricted to the A latents active in either: [P, T, A];
    ``latents`` [A]. ``own``: both for every source, where each has magnitudes of its own.
    """

    clean: Tensor
    corrupt: Tensor
    latents: Tensor
    own: tuple[tuple[Tensor, Tensor], ...] = ()

    def rows(self, rows: slice) -> Encoded:
        """Some prompts, same latents."""
        own = tuple((clean[rows], corrupt[rows]) for clean, corrupt in self.own)
        return Encoded(self.clean[rows], self.corrupt[rows], self.latents, own)

    def at(self, crosscoder: Any, source: int) -> Encoded:
        """The codes as one source receives them."""
        if self.own:
            return Encoded(*self.own[source], self.latents)
        clean, corrupt = (crosscoder.codes_at(f, source, self.latents) for f in (self.clean, self.corrupt))
        return Encoded(clean, corrupt, self.latents)


@torch.no_grad()
def encode_prompts(crosscoder: Any, snapshots: Snapshots, prompts: PromptSet, *, chunk: int = 32) -> Encoded:
    """The crosscoder's codes of the prompts; position 0 (BOS) has none."""
    from crosscoders.gates import OwnMagnitude

    own = isinstance(crosscoder.activation, OwnMagnitude)
    sides: list[Tensor] = []
    kept: list[list[tuple[list[Tensor], Tensor]]] = []  # of each side and chunk: what reaches each source, indices
    for ids in (prompts.clean, prompts.corrupt):
        parts, sources = [], []
        for at in range(0, len(ids), chunk):
            x = snapshots.activations(torch.from_numpy(ids[at : at + chunk]))
            f = crosscoder.encode(x)
            f[:, 0] = 0
            parts.append(f)
            if own:
                sources.append(crosscoder.source_values(x))
        sides.append(torch.cat(parts))
        kept.append(sources)
    active = ((sides[0] > 0) | (sides[1] > 0)).flatten(0, 1).any(0).nonzero().flatten()

    def dense(side: int, source: int) -> Tensor:
        """[P, T, A] of one source."""
        parts = []
        for values, indices in kept[side]:
            f = values[source].new_zeros(*indices.shape[:-1], crosscoder.d_sae).scatter(-1, indices, values[source])
            f[:, 0] = 0
            parts.append(f[..., active])
        return torch.cat(parts)

    each = tuple((dense(0, s), dense(1, s)) for s in range(len(crosscoder.widths) if own else 0))
    return Encoded(sides[0][..., active], sides[1][..., active], active, each)


def _metric(last: Tensor, prompts: PromptSet) -> Tensor:
    """m [P] of logits [P, V] at the last position."""
    rows, last = torch.arange(len(last)), last.float()
    return last[rows, torch.from_numpy(prompts.answer)] - last[rows, torch.from_numpy(prompts.wrong)]


def last_logits(model: Any, hook: str, tokens: np.ndarray) -> Callable[[], Tensor]:
    """A function that runs the model on tokens [P, T] and returns logits [P, V] at the last position.

    An intervention at ``hook`` leaves the blocks before it as they were, so they are run once, here.
    """
    from workbench.analysis.circuits.tail import Tail

    ids, block = torch.from_numpy(tokens), re.match(r"blocks\.(\d+)\.", hook)
    if block is None or block[1] == "0":
        return lambda: model(ids, return_type="logits")[:, -1]
    tail, every = Tail(model, ids), torch.arange(len(ids))
    return lambda: tail.run(int(block[1]), every, grad=torch.is_grad_enabled())


def run_with(
    model: Any,
    hook: str,
    prompts: PromptSet,
    codes: Tensor,
    replaced: Tensor,
    W: Tensor,
    logits: Callable[[], Tensor] | None = None,
) -> Tensor:
    """m [P] with ``codes`` replaced by ``replaced`` [P, T, A] at the hook, error kept; ``logits`` as
    :func:`last_logits` gives it.
    """
    logits = last_logits(model, hook, prompts.clean) if logits is None else logits
    with splice(model, {hook: SnapshotView(codes, W)}, lambda f, name: replaced, keep_error=True):
        return _metric(logits(), prompts)


def integrated_gradients(
    model: Any, hook: str, prompts: PromptSet, encoded: Encoded, W: Tensor, *, steps: int = 10
) -> Tensor:
    """Attributions [P, A], summed over positions, for one source; ``W`` [A, D_s] are its decoder rows in raw units."""
    delta = encoded.clean - encoded.corrupt
    total, logits = torch.zeros_like(delta), last_logits(model, hook, prompts.clean)
    for k in range(1, steps + 1):
        f = (encoded.corrupt + (k / steps) * delta).requires_grad_(True)
        with torch.enable_grad():
            run_with(model, hook, prompts, encoded.clean, f, W, logits).sum().backward()
        assert f.grad is not None
        total += f.grad
    return (delta * total / steps).sum(1).detach()


def matched_by_frequency(
    top: npt.NDArray[np.int64],
    frequency: npt.NDArray[np.float64],
    pool: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """For each latent of ``top`` another one of the pool, without repeats, at random among its five nearest in
    frequency.
    """
    free = [int(i) for i in pool if i not in set(top.tolist())]
    out = []
    for i in top:
        if not free:
            break
        near = sorted(free, key=lambda j: abs(np.log(frequency[j]) - np.log(frequency[i])))[:5]
        out.append(near[int(rng.integers(len(near)))])
        free.remove(out[-1])
    return np.array(out, dtype=np.int64)


@dataclass(frozen=True)
class Ranking:
    """What is intervened on at each k: ``name`` (attribution or a control) and k -> positions in ``Encoded.latents``
    [k].
    """

    name: str
    sets: dict[int, npt.NDArray[np.int64]]


def rankings(
    attribution: Tensor, encoded: Encoded, W: Tensor, *, ks: Sequence[int] = KS, draws: int = 3, seed: int = 0
) -> list[Ranking]:
    """The top k by |mean attribution| and the controls for every k; random and frequency-matched ones ``draws`` times
    each.

    A frequency-matched set avoids its own top k and nothing else; a random one may contain any latent that changes.
    """
    rng = np.random.default_rng(seed)
    delta = (encoded.clean - encoded.corrupt).abs()
    on = ((encoded.clean > 0) | (encoded.corrupt > 0)).flatten(0, 1)
    frequency = np.maximum(on.sum(0).double().numpy(), 0.5)
    pool = np.flatnonzero(delta.flatten(0, 1).sum(0).numpy() > 0)
    best = np.argsort(-attribution.mean(0).abs().numpy(), kind="stable")
    largest = np.argsort(-(delta.mean((0, 1)) * W.norm(dim=1)).numpy(), kind="stable")
    usable = [k for k in ks if k <= len(pool)]
    out = [
        Ranking("attribution", {k: best[:k] for k in usable}),
        Ranking("magnitude", {k: largest[:k] for k in usable}),
    ]
    for _ in range(draws):
        shuffled = rng.permutation(pool)
        out.append(Ranking("random", {k: shuffled[:k] for k in usable}))
        matched = {k: matched_by_frequency(best[:k], frequency, pool, rng) for k in usable}
        out.append(Ranking("frequency", {k: m for k, m in matched.items() if len(m) == k}))
    return out


@torch.no_grad()
def curves(
    model: Any, hook: str, prompts: PromptSet, encoded: Encoded, W: Tensor, order: Sequence[Ranking]
) -> pd.DataFrame:
    """destroy and keep curves of every ranking on these prompts.

    One row per (mode, ranking, k): ``metric`` with its bootstrap interval over prompts, ``share`` = (metric - m_empty)
    / (m_full - m_empty), n prompts. Several draws of a control are averaged prompt by prompt. Rows of mode ``full`` and
    ``empty`` hold the two ends.
    """
    codes, other, logits = encoded.clean, encoded.corrupt, last_logits(model, hook, prompts.clean)
    full = run_with(model, hook, prompts, codes, codes, W, logits).double().numpy()
    empty = run_with(model, hook, prompts, codes, other, W, logits).double().numpy()
    values: dict[tuple[str, str, int], list[np.ndarray]] = {("full", "all", 0): [full], ("empty", "all", 0): [empty]}
    for ranking in order:
        for k, members in ranking.sets.items():
            chosen = torch.zeros(codes.shape[-1], dtype=torch.bool)
            chosen[torch.from_numpy(members)] = True
            for mode, at_corrupt in (("destroy", chosen), ("keep", ~chosen)):
                m = run_with(model, hook, prompts, codes, torch.where(at_corrupt, other, codes), W, logits)
                values.setdefault((mode, ranking.name, k), []).append(m.double().numpy())
    span = full.mean() - empty.mean()
    rows = []
    for (mode, name, k), draws in values.items():
        per_prompt = np.mean(draws, axis=0)
        low, high = interval(per_prompt[:, None])
        share = (per_prompt.mean() - empty.mean()) / span if abs(span) > 1e-9 else np.nan
        rows.append(
            (mode, name, k, per_prompt.mean(), float(low[0]), float(high[0]), share, len(per_prompt), len(draws))
        )
    return pd.DataFrame(rows, columns=["mode", "ranking", "k", "metric", "low", "high", "share", "n", "draws"])


def area_over(table: pd.DataFrame, control: str) -> float:
    """Mean over k (log-spaced) of how much further the attribution's top k move the metric than the control's, in
    shares.

    Destroying counts downwards and keeping upwards; positive means that the ranking beats the control.
    """
    t = table[table["mode"].isin(["destroy", "keep"])].pivot_table(
        index=["mode", "k"], columns="ranking", values="share"
    )
    if control not in t or "attribution" not in t:
        return float("nan")
    gap = (t["attribution"] - t[control]).dropna()
    sign = np.where(gap.index.get_level_values("mode") == "destroy", -1.0, 1.0)
    return float((gap * sign).mean()) if len(gap) else float("nan")


@dataclass(frozen=True)
class TaskAttribution:
    """A task at every source: ``curves`` and ``latents`` (mean attribution of each active latent) with a ``source``
    column; ``accuracy`` [S].
    """

    task: str
    curves: pd.DataFrame
    latents: pd.DataFrame
    accuracy: npt.NDArray[np.float64]


@torch.no_grad()
def accuracies(snapshots: Snapshots, prompts: PromptSet) -> npt.NDArray[np.float64]:
    """Share of prompts solved at every source [S]: the answer's logit exceeds the wrong one's, and by more than on the
    corrupted prompt.

    Without the second condition a model that prefers one of two words everywhere would solve half of all tasks.
    """
    out = []
    for i in range(len(snapshots)):
        clean, corrupt = (
            _metric(snapshots.model(i)(torch.from_numpy(ids), return_type="logits")[:, -1], prompts)
            for ids in (prompts.clean, prompts.corrupt)
        )
        out.append(float(((clean > 0) & (clean > corrupt)).double().mean()))
    return np.array(out)


def attribute(
    crosscoder: Any,
    snapshots: Snapshots,
    prompts: PromptSet,
    *,
    at: Sequence[int] | None = None,
    steps: int = 10,
    ks: Sequence[int] = KS,
    draws: int = 3,
    seed: int = 0,
    run: Run = QUIET,
) -> TaskAttribution:
    """Attributions and curves of one task at the sources ``at`` (default: all), ranked on the first half of the
    prompts, tested on the second.

    Raises:
        UsageError: fewer than 8 prompts.
    """
    if len(prompts) < 8:
        raise UsageError(
            "attribution needs at least 8 prompts, half to rank latents and half to test the ranking; task"
            f" {prompts.task!r} gave {len(prompts)}. Ask for more prompts."
        )
    half = len(prompts) // 2
    rank, test = slice(0, half), slice(half, len(prompts))
    encoded = encode_prompts(crosscoder, snapshots, prompts)
    blocks = crosscoder.split(crosscoder.W_dec.detach())
    tables, latents = [], []
    chosen = list(range(len(snapshots)) if at is None else at)
    for i in run.each(chosen, f"attribution: {prompts.task}", unit="snapshot"):
        source, model = snapshots.sources[i], snapshots.model(i)
        W = blocks[i][encoded.latents].contiguous()
        here = encoded.at(crosscoder, i)
        attribution = integrated_gradients(model, source.hook, prompts[rank], here.rows(rank), W, steps=steps)
        order = rankings(attribution, here.rows(rank), W, ks=ks, draws=draws, seed=seed)
        table = curves(model, source.hook, prompts[test], here.rows(test), W, order)
        tables.append(table.assign(source=source.name))
        mean = attribution.mean(0).numpy()
        latents.append(
            pd.DataFrame({"source": source.name, "latent": encoded.latents.numpy(), "attribution": mean, "n": half})
        )
    return TaskAttribution(
        prompts.task,
        pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(),
        pd.concat(latents, ignore_index=True) if latents else pd.DataFrame(),
        accuracies(snapshots, prompts),
    )
