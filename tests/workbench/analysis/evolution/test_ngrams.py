"""n-gram statistics against a Markov chain whose entropies are known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workbench.analysis.evolution.ngrams import PhaseMeter, count_ngrams

V = 12


@pytest.fixture(scope="module")
def chain() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Transition matrix, its stationary distribution, and sampled tokens [n_seq, ctx] behind a BOS."""
    rng = np.random.default_rng(0)
    P = rng.dirichlet(np.full(V, 0.4), size=V)
    pi = np.linalg.matrix_power(P, 200)[0]
    cdf = P.cumsum(1)
    x = rng.choice(V, p=pi, size=400)
    rows = [x]
    for _ in range(127):
        x = (cdf[x] > rng.random(400)[:, None]).argmax(1)
        rows.append(x)
    return P, pi, np.column_stack([np.zeros(400, dtype=np.int64), *rows])


def test_entropies_of_a_markov_chain(chain):
    P, pi, tokens = chain
    t = count_ngrams(tokens, V)
    assert t.h1 == pytest.approx(-(pi * np.log(pi)).sum(), abs=0.02)
    safe = np.where(P > 0, P, 1)
    assert t.h2 == pytest.approx(-(pi[:, None] * P * np.log(safe)).sum(), abs=0.02)
    assert t.n_tokens == 400 * 128
    assert np.allclose(t.smoothed.sum(1), 1, atol=1e-5) and np.allclose(t.bigram.sum(1), 1, atol=1e-5)


def meter(chain, logits_of) -> object:
    m = PhaseMeter(count_ngrams(chain[2][:300], V))
    held = torch.from_numpy(chain[2][300:])
    for part in held.split(30):
        m.update(part, logits_of(part))
    return m.result()


def test_a_unigram_model_and_a_bigram_model_have_the_divergences_they_must(chain):
    P, pi, _ = chain
    uniform = meter(chain, lambda x: torch.zeros(*x.shape, V))
    unigram = meter(chain, lambda x: torch.from_numpy(np.log(pi)).expand(*x.shape, V))
    bigram = meter(chain, lambda x: torch.from_numpy(np.log(P + 1e-9))[x])
    assert uniform.kl_unigram == pytest.approx(np.log(V) + (pi * np.log(pi)).sum(), abs=0.01)
    assert unigram.kl_unigram < 1e-3 and bigram.kl_unigram < 5e-3
    mutual = count_ngrams(chain[2], V).h1 - count_ngrams(chain[2], V).h2
    assert unigram.kl_bigram == pytest.approx(mutual, abs=0.05)
    assert bigram.kl_bigram < 0.01 + 2 * bigram.kl_bigram_bias
    assert bigram.kl_to_bigram < 0.02 < unigram.kl_to_bigram
    assert bigram.loss == pytest.approx(bigram.ce_bigram, abs=0.02) and unigram.loss == pytest.approx(
        unigram.ce_unigram, abs=0.02
    )
    assert unigram.n == 100 * 127 and unigram.n_contexts == V


def test_a_model_that_goes_beyond_bigrams_leaves_the_bigram_table(chain):
    """A model that knows the next token keeps kl_bigram small on average but is far from the table token by token."""
    knows = meter(chain, lambda x: 12.0 * torch.nn.functional.one_hot(x.roll(-1, 1), V).float())
    assert knows.loss < 0.01 and knows.kl_bigram < 0.1 and knows.kl_to_bigram > 0.5


def test_padding_and_bad_ids(chain):
    tokens = chain[2].copy()
    tokens[:, 64:] = -1
    assert count_ngrams(tokens, V).n_tokens == 400 * 63
    with pytest.raises(ValueError, match="vocabulary of 5"):
        count_ngrams(tokens, 5)
    with pytest.raises(ValueError, match="no token pairs"):
        count_ngrams(np.full((2, 4), -1), V)
