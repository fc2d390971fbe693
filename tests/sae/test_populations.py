"""Massive rows: counted, left out, and both numbers given."""

from __future__ import annotations

import pytest
import torch

from sae.errors import UserError
from sae.populations import populations


def _rows(n=200, d=6, massive=3):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    x[:massive] *= 1000
    return x


def test_massive_rows_are_counted_with_the_share_of_square_they_hold():
    x = _rows()
    found = populations(x.split(32))
    assert (found.n, found.n_massive, found.n_inliers) == (200, 3, 197)
    square = x.double().square().sum(1)
    assert found.square_share == pytest.approx(float(square[:3].sum() / square.sum()))
    assert found.square_share > 0.99
    kept = torch.cat(list(found.inliers(x.split(2))))  # the first batch is massive throughout
    assert torch.equal(kept, x[3:])


def test_ordinary_rows_are_one_population():
    found = populations([_rows(massive=0)])
    assert found.n_massive == 0 and found.square_share == 0.0
    with pytest.raises(UserError, match="no rows"):
        populations([])
