"""The k * B best of a batch, without ever holding more than a tile of its pre-activations."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sae.encode import Kept, StepPlan, encode


def batch_top_k(x: Tensor, W_enc: Tensor, bias: Tensor, plan: StepPlan) -> Kept:
    """Exactly the k * B highest positive scores of the batch, as (values, indices) [B, K] with K the fullest row's count.

    Each row offers its best ``plan.candidates``; should a row use all of them, the search is repeated with twice as many, so the
    result does not depend on that number. (Half again as many as the fullest row of the last batch needed is seldom too few.)
    """
    weights = torch.ones_like(bias) if plan.selection_F is None else plan.selection_F
    width = min(max(plan.candidates, plan.k + 1), len(bias))
    while True:
        v, i, v_aux, i_aux = encode(x, W_enc, bias, replace(plan, k=width))
        scores = v.clamp_min(0) * weights[i]
        cut = scores.flatten().kthvalue(max(1, scores.numel() - plan.k * len(x) + 1)).values
        on = (scores >= cut) & (scores > 0)
        counts = on.sum(1)
        if width == len(bias) or int(counts.max()) < width:
            break
        width = min(2 * width, len(bias))
    place = torch.topk(torch.where(on, scores, torch.zeros_like(scores)), max(1, int(counts.max())), dim=1, sorted=False).indices
    place = place.sort(dim=1).values  # latents ascending within a row, as the backends expect
    v, i = torch.where(on, v, torch.zeros_like(v)).gather(1, place), i.gather(1, place)
    return v.contiguous(), i.contiguous(), v_aux, i_aux
