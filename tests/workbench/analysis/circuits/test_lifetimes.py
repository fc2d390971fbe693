"""How long a write lives is found exactly where it is known, for decay and for erasure."""

import numpy as np
import pytest
import torch

from tests.workbench.bridges import bridge
from tests.workbench.handmade import VOCAB, storing_mamba
from workbench.analysis.circuits.effects import locate_peak
from workbench.analysis.circuits.lifetimes import _kind, lifetimes
from workbench.analysis.circuits.off_by_one import conv_profile, write_profile
from workbench.analysis.circuits.paths import FrozenPaths
from workbench.analysis.circuits.tail import Tail
from workbench.analysis.circuits.tasks import make_prompts, read_task
from workbench.models.recurrent.algebra import half_life, survival
from workbench.models.recurrent.factors import Factors

LABELS = ["B-1", "B", "B+1", "B+2", "B+3"]


@pytest.mark.parametrize(("offset", "lifetime"), [(0, 3), (1, 5), (2, 7)])
def test_a_known_write_and_its_lifetime_are_found_exactly(offset: int, lifetime: int) -> None:
    model = bridge(storing_mamba(offset, lifetime))
    prompts = make_prompts(read_task("induction"), 8, vocab_size=VOCAB, length=14)
    profile = write_profile(model, prompts, FrozenPaths(model, Tail(model, prompts.clean)), LABELS)["logit_diff"]
    peak = locate_peak(profile)
    assert peak.index == (0, LABELS.index("B") + offset)
    assert peak.share.value > 0.999 and peak.same == 1.0 and peak.effect.high < 0
    taps = conv_profile(model, prompts, FrozenPaths(model, Tail(model, prompts.clean)), LABELS)["logit_diff"]
    assert locate_peak(taps).index == (*peak.index, offset)
    found = lifetimes(model, prompts.clean)
    written = np.isfinite(found.half_lives[:, 0])
    assert (found.half_lives[:, 0][written] == lifetime).all() and written.any()
    assert found.numbers()["0"]["unit"] == "positions"
    curve = found.table[found.table.content == "all"].set_index("offset")["survival"]
    expected = 0.5 ** (curve.index.to_numpy() / (lifetime - 0.5))
    np.testing.assert_allclose(curve.to_numpy(), expected, rtol=1e-4)


def test_what_erasure_leaves_of_a_write_is_found_exactly() -> None:
    """A key written at 2 is erased, in part at 4 and wholly at 6; another key never."""
    T, K, V = 9, 4, 3
    key = torch.zeros(1, T, 1, K)
    key[:, :, :, 3] = 1.0  # all other positions write and erase a key of their own
    key[0, [2, 4, 6], 0] = torch.eye(K)[0]
    key[0, 1, 0] = torch.eye(K)[1]
    strength = torch.zeros(1, T, 1)
    strength[0, 4], strength[0, 6] = 0.25, 1.0
    f = Factors(
        read=key,
        write_key=key,
        write_value=torch.ones(1, T, 1, V),
        decay=lambda: torch.ones(1, T, 1, 1, 1),
        fused=lambda: pytest.fail("not asked for"),
        skip=None,
        gate=key,
        strength=strength[..., None],
        erase_key=key,
        erase_strength=strength,
    )
    left = survival(f)
    torch.testing.assert_close(left[0, 2, :7], torch.tensor([1.0, 1.0, 0.75, 0.75, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(left[0, 1, :8], torch.ones(8))
    lives = half_life(left)[0]
    assert lives[2] == 4 and lives[1] == torch.inf


def test_tokens_are_told_apart_by_what_they_are() -> None:
    kinds = [_kind(t) for t in (" the", "ing", "The", "42", " 3.5", "    ", "\n", "):", "⟨7⟩")]
    assert kinds == [
        "word start",
        "inside a word",
        "word start",
        "number",
        "number",
        "space",
        "space",
        "sign",
        "sign",
    ]
