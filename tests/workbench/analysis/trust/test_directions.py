"""Directions on dictionaries written by hand: the cosine, who takes whose place, and twins of direction."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from workbench.analysis.trust.directions import absorption, agreement, siblings


def _dictionary(decoder: torch.Tensor, encoder: torch.Tensor | None = None) -> SimpleNamespace:
    encoder = decoder if encoder is None else encoder
    return SimpleNamespace(W_dec=decoder, W_enc=encoder.T, b_dec=torch.zeros(decoder.shape[1]))


def test_agreement_is_the_cosine_and_chance_the_other_latents() -> None:
    decoder = 2 * torch.eye(6)
    encoder = torch.eye(6)
    encoder[0] = torch.tensor([0.5, 0.75**0.5, 0, 0, 0, 0])  # 60 degrees from its own, 30 from the next
    encoder[1] = -encoder[1]
    cosine, chance = agreement(_dictionary(decoder, encoder))
    assert cosine == pytest.approx([0.5, -1, 1, 1, 1, 1])
    assert chance == pytest.approx([0.75**0.5, 0, 0, 0, 0, 0])


def test_what_training_scales_the_input_by_belongs_to_the_encoder() -> None:
    d = _dictionary(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    d.scale_D = torch.tensor([1.0, 0.0])
    assert agreement(d)[0] == pytest.approx([0.5**0.5] * 2)


def _parent_and_child() -> tuple[SimpleNamespace, sp.csr_array, torch.Tensor]:
    """Latent 0 stands for e0 and fires on rows 0–9; on rows 10–14 the activation is e0 + e1 and only latent 1, whose
    decoder holds both, fires. Latent 2 stands for e2 and fires alone on rows 15–19.
    """
    e = torch.eye(4)
    x = torch.cat([e[[0]].repeat(10, 1), (e[0] + e[1])[None].repeat(5, 1), e[[2]].repeat(5, 1)])
    codes = np.zeros((20, 3), np.float32)
    codes[:10, 0], codes[10:15, 1], codes[15:, 2] = 1, 1, 1
    return _dictionary(torch.stack([e[0], e[0] + e[1], e[2]])), sp.csr_array(codes), x


def test_the_child_is_named_for_what_it_takes_from_its_parent() -> None:
    dictionary, codes, x = _parent_and_child()
    a = absorption(dictionary, codes, lambda at: x[at])
    assert a.should.tolist() == [15, 5, 5] and a.missed.tolist() == [5, 0, 0]
    assert a.absorbed.tolist() == [5, 0, 0]
    assert a.takers == [[(1, 5)], [], []]


def test_a_latent_that_only_is_weak_there_is_not_absorbed() -> None:
    """Silent where its direction is there, but no other latent carries it: missed, not absorbed."""
    dictionary, codes, x = _parent_and_child()
    dictionary.W_dec = torch.stack([torch.eye(4)[0], torch.eye(4)[1], torch.eye(4)[2]])
    a = absorption(dictionary, codes, lambda at: x[at])
    assert a.missed[0] == 5 and a.absorbed[0] == 0 and a.takers[0] == []


def test_a_latent_that_never_fires_should_fire_nowhere() -> None:
    dictionary, codes, x = _parent_and_child()
    silent = sp.csr_array(codes.toarray() * np.array([0, 1, 1], np.float32))
    a = absorption(dictionary, silent, lambda at: x[at])
    assert (a.should[0], a.missed[0], a.absorbed[0]) == (0, 0, 0)


def test_siblings_are_those_nearer_than_chance() -> None:
    decoder = torch.randn(60, 32, generator=torch.Generator().manual_seed(0))
    decoder[7] = 3 * decoder[4] + 0.01 * decoder[5]
    near, counts, limit = siblings(_dictionary(decoder))
    assert [j for j, _ in near[4]] == [7] and [j for j, _ in near[7]] == [4]
    assert counts[4] == counts[7] == 1 and counts.sum() <= 4 and 0.3 < limit < 0.99
