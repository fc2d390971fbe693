"""The k * B best of a batch, without ever holding more than a tile of its pre-activations."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as nnf
from torch import Tensor

from sae.devices import abilities
from sae.encode import Kept, StepPlan, encode
from sae.parallel import SINGLE_PROCESS, Ranks


def batch_top_k(x: Tensor, W_enc: Tensor, bias: Tensor, plan: StepPlan) -> Kept:
    """Exactly the k * B highest positive scores of the batch, as (values, indices) [B, K] with K the fullest row's
    count.

    Each row offers its best ``plan.candidates``; should a row use all of them, the search is repeated with twice as
    many, so the result does not depend on that number. (Half again as many as the fullest row of the last batch needed
    is seldom too few.)
    """
    ranks, n_latents, rows = plan.ranks, len(bias) * plan.ranks.latents, plan.rows or len(x)
    weights = torch.ones_like(bias) if plan.selection_F is None else plan.selection_F
    width = min(max(plan.candidates, plan.k + 1), n_latents)
    while True:
        v, i, v_aux, i_aux = encode(x, W_enc, bias, replace(plan, k=width))
        scores = v.clamp_min(0) * weights[i]
        on = (scores >= kth_largest(scores.flatten(), plan.k * rows, ranks)) & (scores > 0)
        if width == n_latents or fullest(on, ranks) < width:
            break
        width = min(2 * width, n_latents)
    place = torch.topk(
        torch.where(on, scores, torch.zeros_like(scores)), max(1, fullest(on)), dim=1, sorted=False
    ).indices
    place = place.sort(dim=1).values  # latents ascending within a row, as the backends expect
    v, i = torch.where(on, v, torch.zeros_like(v)).gather(1, place), i.gather(1, place)
    return v.contiguous(), i.contiguous(), v_aux, i_aux


def fullest(on_BK: Tensor, ranks: Ranks = SINGLE_PROCESS) -> int:
    """The largest number of latents that are on in a row, of all processes."""
    counts = ranks.all_reduce_latents(on_BK.sum(1))
    return int(ranks.all_reduce_max_data(counts.amax() if len(counts) else counts.new_zeros(())))


def kth_largest(scores: Tensor, k: int, ranks: Ranks) -> Tensor:
    """The k-th largest of the scores (none negative) of all processes; the smallest where there are fewer."""
    if ranks.world > 1:
        longest = int(ranks.all_reduce_max(torch.tensor(len(scores), device=scores.device)))
        scores = ranks.gather_data(ranks.gather_latents(nnf.pad(scores, (0, longest - len(scores))))).flatten()
    place = max(1, len(scores) - k + 1)
    return scores.kthvalue(place).values if abilities(scores.device).kth else scores.sort().values[place - 1]
