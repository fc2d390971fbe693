"""Latent scaling against a direct least-squares fit, and on latents whose shrinkage is planted."""

from __future__ import annotations

import pytest
import torch

from crosscoders.scaling import ScalingMeter

F, D, B, K = 10, 16, 4000, 3


@pytest.fixture(scope="module")
def world():
    """Codes, a two-source truth, and a decoder whose row 0 was shrunk to nothing in source 0 although the latent is
    there.
    """
    g = torch.Generator().manual_seed(0)
    indices = torch.stack([torch.randperm(F, generator=g)[:K] for _ in range(B)])
    values = torch.rand(B, K, generator=g) + 0.5
    codes = torch.zeros(B, F).scatter_(1, indices, values)
    truth = [torch.randn(F, D, generator=g) for _ in range(2)]
    truth[0][0] = truth[1][0]  # latent 0 is in both sources alike
    truth[0][1] = 0  # latent 1 is truly absent from source 0
    x = torch.cat([codes @ w for w in truth], 1)
    fitted = [w.clone() for w in truth]
    fitted[0][0] = 0
    x_hat = torch.cat([codes @ w for w in fitted], 1)
    return indices, values, codes, fitted, x, x_hat


def metered(world, reference):
    indices, values, _, fitted, x, x_hat = world
    meter = ScalingMeter(fitted, reference)
    for part in torch.arange(B).split(1500):
        meter.update(values[part], indices[part], x[part], x_hat[part], torch.zeros(2 * D))
    return meter.result()


def test_betas_equal_least_squares(world):
    _, _, codes, fitted, x, x_hat = world
    s = metered(world, torch.ones(F, dtype=torch.int64))
    for i in (0, 3):
        for source, cols in enumerate((slice(0, D), slice(D, 2 * D))):
            y = (x - x_hat)[:, cols] + codes[:, i : i + 1] * fitted[source][i]
            z = (codes[:, i : i + 1] * fitted[1][i]).reshape(-1, 1)
            assert float(s.error[source, i]) == pytest.approx(
                float(torch.linalg.lstsq(z, y.reshape(-1, 1)).solution), abs=1e-4
            )


def test_shrinkage_is_told_from_absence(world):
    nu_error, nu_reconstruction = metered(world, torch.ones(F, dtype=torch.int64)).ratio(of=0, to=1)
    assert nu_error[0] > 0.95, "the norm says absent, the data say present"
    assert abs(nu_error[1]) < 0.05
    assert nu_reconstruction[2:].isfinite().all()


def test_own_direction_survives_rotation_and_unequal_widths(world):
    s = metered(world, None)
    assert s.own_error[1] == pytest.approx(torch.ones(F), abs=1e-4), "nothing is left over in source 1"
    assert s.own_error[0, 2:] == pytest.approx(torch.ones(F - 2), abs=0.15), (
        "latents that co-fire with the missing one take a little of it"
    )
    assert s.own_norms[1] == pytest.approx(world[3][1].norm(dim=1), rel=1e-3)
    assert s.own_error[0, 0].isnan(), "a zero row has no direction"
    with pytest.raises(ValueError, match="equal widths"):
        ScalingMeter([torch.ones(2, 3), torch.ones(2, 4)], torch.zeros(2, dtype=torch.int64))


def test_a_latent_that_never_fires_has_no_beta(world):
    meter = ScalingMeter([torch.ones(F + 1, D)], None)
    meter.update(world[1], world[0], world[4][:, :D], world[5][:, :D], torch.zeros(D))
    s = meter.result()
    assert s.error[0, F].isnan() and int(s.n_fired[F]) == 0 and int(s.n_fired.sum()) == B * K
