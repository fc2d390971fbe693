"""What every recurrent layer did on some prompts, small enough to keep: its inputs and its convolution's, from which
the terms of the recurrence are made again, a few prompts at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.analysis.circuits.layers import state_layers
from workbench.analysis.circuits.paths import collect
from workbench.models.recurrent import Factors, RecurrentLayer

_NUMBERS = 1 << 26  # of states at all positions of the prompts worked on at once


@dataclass(frozen=True)
class LayerRun:
    """One recurrent layer on P prompts.

    Attributes:
        x: [P,T,d_model] the mixer's input. conv_in, conv: [P,T,C] the convolution's input, and its output before the
            nonlinearity.
    """

    layer: RecurrentLayer
    x: Tensor
    conv_in: Tensor
    conv: Tensor

    def batches(self) -> Iterator[slice]:
        """Prompts whose states at all positions are held at once."""
        per_prompt = self.x.shape[1] * self.layer.heads * self.layer.keys * self.layer.values
        size = max(1, min(16, _NUMBERS // per_prompt))
        for start in range(0, len(self.x), size):
            yield slice(start, start + size)

    def factors(self, rows: slice) -> Factors:
        """The terms of the recurrence."""
        return self.layer.factors_of(self.x[rows], self.conv[rows])

    def with_tap(self, other: LayerRun, tap: int, rows: slice) -> Factors:
        """The same, if the convolution's inputs ``tap`` positions back (0 = the position itself) alone came from
        another run.
        """
        length, weight = self.x.shape[1], self.layer.taps[:, self.layer.width - 1 - tap]
        moved = torch.nn.functional.pad(other.conv_in[rows] - self.conv_in[rows], (0, 0, tap, 0))[:, :length]
        return self.layer.factors_of(self.x[rows], self.conv[rows] + moved * weight)


@torch.no_grad()
def layer_runs(model: Any, tokens: np.ndarray) -> list[LayerRun]:
    """Every recurrent layer of a model on prompts [P,T]."""
    layers = state_layers(model)
    names = {layer.index: (f"{layer.path}.hook_in", layer.hook("conv_in"), layer.hook("conv")) for layer in layers}
    seen = collect(model, tokens, dict.fromkeys([h for hooks in names.values() for h in hooks], lambda v, rows: v))
    return [LayerRun(layer, *(seen[h] for h in names[layer.index])) for layer in layers]
