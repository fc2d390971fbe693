"""From rows to kept latents, tile by tile: the pre-activations of a tile stay in cache and are gone before the next.

With ``bf16_preselect`` the dense product runs in bfloat16 and proposes 2k candidates per row; these are computed again
in full precision and the best k of them kept. A row is *certain* where the k-th kept value beats the lowest proposal by
more than the largest rounding error seen among that row's candidates; ``plan.doubts`` collects how many rows are not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as nnf
from torch import Tensor

from sae.backends import Backend
from sae.backends.select import top_columns, top_k
from sae.parallel import SINGLE_PROCESS, Ranks


@dataclass(frozen=True)
class StepPlan:
    """What a step keeps, and who computes it."""

    k: int
    backend: Backend
    selection_F: Tensor | None = None  # positive factors under which latents compete
    dead_N: Tensor | None = None  # indices of dead latents, ascending; None: no AuxK
    k_aux: int = 0
    aux_every: int = 1
    aux_rows: Tensor | None = None  # the rows AuxK looks at, ascending; None: every ``aux_every``-th
    tile_rows: int = 0
    bf16_preselect: bool = False
    candidates: int = 0  # offered by each row where k counts for the whole batch (see sae.batch); 0: k for each row
    centred: bool = True  # the decoder's bias is subtracted from the input
    ranks: Ranks = SINGLE_PROCESS  # who holds the other latents, and the other rows
    rows: int = 0  # rows of all processes; 0: those given are all
    doubts: list[int] = field(
        default_factory=list, compare=False
    )  # encode() with bf16_preselect appends how many rows are not certain

    def for_aux(self, t: Tensor, start: int = 0) -> Tensor:
        """Those rows of ``t`` that AuxK looks at; ``t`` begins at row ``start`` (a multiple of ``aux_every``) of the
        batch.
        """
        if self.aux_rows is None:
            return t[:: self.aux_every]
        return t[self.aux_rows[(self.aux_rows >= start) & (self.aux_rows < start + len(t))] - start]


# kept pre-activations (values, indices) [B, K], latents ascending; then the same for dead latents of every n-th row, or
# None
Kept = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def tile_size(n_latents: int, itemsize: int = 4, cache_bytes: int = 4 * 2**20) -> int:
    """Rows whose pre-activations fill ``cache_bytes``, between 128 and 1024."""
    return int(min(1024, max(128, cache_bytes // (n_latents * itemsize))))


def encode(x_BD: Tensor, W_enc_FD: Tensor, bias_F: Tensor, plan: StepPlan) -> Kept:
    """Pre-activations ``x @ W_enc.T + bias`` of the kept latents, not yet rectified.

    Where the dictionary is dealt to several processes these are this one's, numbered from its first latent: those of
    its candidates that are among the k best of all, each row padded with others at -inf.
    """
    weight, bias = (
        (W_enc_FD, bias_F)
        if plan.selection_F is None
        else (W_enc_FD * plan.selection_F[:, None], bias_F * plan.selection_F)
    )
    fast = (weight.bfloat16(), bias.bfloat16()) if plan.bf16_preselect else None
    rows = plan.tile_rows or tile_size(len(weight), 2 if fast else x_BD.element_size())
    rows += -rows % plan.aux_every
    dead, padding = (None, 0) if plan.dead_N is None else _padded(plan.dead_N)
    parts: list[tuple[Tensor, Tensor]] = []
    aux: list[tuple[Tensor, Tensor]] = []
    uncertain = 0
    for start in range(0, max(1, len(x_BD)), rows):
        x = x_BD[start : start + rows]
        if fast is None:
            pre = plan.backend.linear(x, weight, bias)
            parts.append(plan.backend.top_k(pre, min(plan.k, len(weight))))
        else:
            pre = plan.backend.linear(x.bfloat16(), *fast)
            values, indices, uncertain_rows = _rescored(pre, x, weight, bias, plan)
            parts.append((values, indices))
            uncertain += uncertain_rows
        if dead is not None:
            aux.append(_of_dead(plan.for_aux(pre, start).to(x.dtype), dead, padding, plan))
    if fast is not None:
        plan.doubts.append(uncertain)
    values, indices = _joined(parts, plan, plan.k)
    if dead is None:
        return values, indices, None, None
    aux_values, aux_indices = _joined(aux, plan, plan.k_aux)
    if fast is not None:
        rescored = plan.backend.dots(plan.for_aux(x_BD).contiguous(), W_enc_FD, aux_indices)
        aux_values = torch.where(aux_values == -torch.inf, aux_values, rescored + bias_F[aux_indices])
    return values, indices, aux_values, aux_indices


def strongest(pre_BF: Tensor, plan: StepPlan) -> tuple[Tensor, Tensor]:
    """(values, indices) [B, K] of the k largest of dense scores, latents ascending. Where several processes compete
    these are this one's, the rest of a row at -inf.
    """
    return _joined([plan.backend.top_k(pre_BF, min(plan.k, pre_BF.shape[1]))], plan, plan.k)


def strongest_dead(pre_BF: Tensor, plan: StepPlan) -> tuple[Tensor, Tensor] | None:
    """(values, indices) [ceil(B / aux_every), k_aux] of the largest dead latents among dense pre-activations; None
    where AuxK has nothing to do. Where several processes compete, those that another holds stand at -inf.
    """
    if plan.dead_N is None:
        return None
    dead, padding = _padded(plan.dead_N)
    return _joined([_of_dead(plan.for_aux(pre_BF), dead, padding, plan)], plan, plan.k_aux)


def _of_dead(pre_BF: Tensor, dead: Tensor, padding: int, plan: StepPlan) -> tuple[Tensor, Tensor]:
    """The k_aux largest of the dead latents; where other processes hold some too, as many candidates from each, at -inf
    if need be.
    """
    n = len(dead) - padding
    of_dead = pre_BF.gather(1, dead.expand(len(pre_BF), len(dead)))
    of_dead[:, n:] = -torch.inf
    _, place = plan.backend.top_k(of_dead, min(plan.k_aux, n)) if n else (None, dead.new_zeros(len(pre_BF), 0))
    missing = plan.k_aux - place.shape[1] if plan.ranks.latents > 1 else 0
    return nnf.pad(of_dead.gather(1, place), (0, missing), value=-torch.inf), nnf.pad(dead[place], (0, missing))


def _padded(dead_N: Tensor) -> tuple[Tensor, int]:
    """The dead latents repeated up to a multiple of 64, so that they can be seen as groups; and how many were added."""
    padding = -len(dead_N) % 64
    return torch.cat([dead_N, dead_N[:1].expand(padding)]), padding


def _joined(parts: list[tuple[Tensor, Tensor]], plan: StepPlan, k: int) -> tuple[Tensor, Tensor]:
    """The tiles together: the kept latents of every row, after those of all processes have competed."""
    scores, indices = torch.cat([v for v, _ in parts]), torch.cat([i for _, i in parts])
    if plan.ranks.latents > 1:
        scores, indices = _best_of_all(scores, indices, k, plan.ranks)
    return (scores if plan.selection_F is None else scores / plan.selection_F[indices]), indices


def _best_of_all(scores: Tensor, indices: Tensor, k: int, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """This process's candidates [B, K'] that are among the k best of all; as wide as the fullest row,
    the rest at -inf.
    """
    kept = ranks.global_top_k(scores, k)
    width = max(1, int(kept.sum(1).max())) if len(kept) else 1
    place = (
        kept.byte().sort(dim=1, descending=True, stable=True).indices[:, :width].sort(dim=1).values
    )  # latents ascend
    return torch.where(kept, scores, -torch.inf).gather(1, place), indices.gather(1, place)


def _untied(x_BN: Tensor) -> Tensor:
    """bfloat16 as float32 whose low bits, zero until then, hold the column: same order, no ties."""
    bits = x_BN.float().view(torch.int32)
    return bits.bitwise_or_(torch.arange(x_BN.shape[1], dtype=torch.int32, device=x_BN.device)).view(torch.float32)


def _rescored(
    pre_BF: Tensor, x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor, plan: StepPlan
) -> tuple[Tensor, Tensor, int]:
    """The k best of 2k bfloat16 candidates in full precision, and in how many rows those candidates may not have been
    enough.
    """
    n = pre_BF.shape[1]
    m, k = min(2 * plan.k, n), min(plan.k, n)
    proposed, candidates = bf16_candidates(pre_BF, m)
    exact = plan.backend.dots(x_BD, weight_FD, candidates) + bias_F[candidates]
    chosen = top_columns(exact, k)
    values = exact.gather(1, chosen)
    error = (exact - proposed).abs().amax(1)
    uncertain_rows = 0 if m == n else int((values.amin(1) <= proposed.amin(1) + error).sum())
    return values, candidates.gather(1, chosen), uncertain_rows


def bf16_candidates(pre_BF: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """The m largest of bfloat16 rows in two stages (see :mod:`sae.backends.select`): (values as float32, ascending
    columns).
    """
    rows, n = pre_BF.shape
    if n % 16 or n // 16 < m or n // 16 > 2**16:
        return top_k(_untied(pre_BF) if n <= 2**16 else pre_BF.float(), m)
    groups = top_columns(_untied(pre_BF.view(rows, 16, n // 16).amax(1)), m)
    columns = (groups[:, None, :] + torch.arange(0, n, n // 16, device=pre_BF.device)[:, None]).view(rows, 16 * m)
    among = _untied(pre_BF.gather(1, columns))
    chosen = top_columns(among, m)
    return among.gather(1, chosen), columns.gather(1, chosen)
