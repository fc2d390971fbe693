"""How far a language model is from its corpus' own n-gram statistics: the statistical phase of pre-training.

Counts come from one set of tokens (the training split), predictions from another (held out). Three divergences, in
nats:

- ``kl_unigram``   KL( p(v) || mean_x q(v|x) ): has the model the corpus' token frequencies?
- ``kl_bigram``    mean over frequent u of KL( p(v|u) || mean_{x: x_t = u} q(v|x) ): has it the bigram table, on
                   average?
- ``kl_to_bigram`` mean_x KL( q(.|x) || p~(.|x_t) ): is it *only* the bigram table? Falls, then rises as context is
  used.

Finite tables bias ``kl_bigram`` upwards by about (distinct successors - 1) / 2 count(u), which is given beside it. p~
is the bigram table smoothed with the unigram (Witten-Bell), so no prediction is infinitely surprising.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True)
class NgramTable:
    """Unigram and bigram statistics of a corpus. V vocabulary, C frequent contexts (most frequent first).

    ``unigram`` [V] is add-one smoothed; ``bigram`` [C, V] holds raw conditional frequencies, ``smoothed`` [C, V] their
    Witten-Bell mixture with the unigram. ``h1`` and ``h2`` are the entropies -sum p log p and -sum p(u,v) log p(v|u) of
    the counts themselves (nats): what a perfect unigram or bigram model would lose on the counted text.
    """

    unigram: npt.NDArray[np.float64]
    contexts: npt.NDArray[np.int64]
    bigram: npt.NDArray[np.float32]
    smoothed: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int64]
    bias: npt.NDArray[np.float64]
    h1: float
    h2: float
    n_tokens: int

    @property
    def vocab(self) -> int:
        """Vocabulary size V."""
        return len(self.unigram)


def count_ngrams(
    tokens: npt.ArrayLike, vocab: int, *, first: int = 1, min_count: int = 50, max_contexts: int = 4096
) -> NgramTable:
    """Count tokens [n_seq, ctx]; pairs do not cross sequences, negative ids are padding.

    Args:
        first: first position that counts (1 leaves out BOS, as context and as token).
        min_count: occurrences a context needs to have a row in the bigram table.
        max_contexts: at most so many contexts get a row, the most frequent ones.

    Raises:
        ValueError: an id at or above ``vocab``, or no pair left to count.
    """
    ids = np.asarray(tokens, dtype=np.int64)[:, first:]
    if ids.size and ids.max() >= vocab:
        raise ValueError(f"token id {int(ids.max())} in a vocabulary of {vocab}: the tokens are another model's")
    u, v = ids[:, :-1], ids[:, 1:]
    ok = (u >= 0) & (v >= 0)
    if not ok.any():
        raise ValueError("no token pairs to count")
    pairs, n_pair = np.unique(u[ok] * vocab + v[ok], return_counts=True)
    pu, pv = pairs // vocab, pairs % vocab
    n_u = np.bincount(pu, weights=n_pair, minlength=vocab)
    raw = np.bincount(ids[ids >= 0], minlength=vocab).astype(np.float64)
    p = raw[raw > 0] / raw.sum()
    joint = n_pair / n_pair.sum()
    unigram = (raw + 1) / (raw.sum() + vocab)

    frequent = np.flatnonzero(n_u >= min_count)
    contexts = frequent[np.argsort(-n_u[frequent], kind="stable")][:max_contexts]
    row = np.full(vocab, -1)
    row[contexts] = np.arange(len(contexts))
    kept = row[pu] >= 0
    table = np.zeros((len(contexts), vocab), dtype=np.float32)
    table[row[pu[kept]], pv[kept]] = n_pair[kept]
    n, distinct = table.sum(1, keepdims=True), (table > 0).sum(1, keepdims=True)
    smoothed = (table + distinct * unigram[None, :].astype(np.float32)) / (n + distinct)
    return NgramTable(
        unigram=unigram,
        contexts=contexts,
        bigram=table / np.maximum(n, 1),
        smoothed=smoothed.astype(np.float32),
        counts=n[:, 0].astype(np.int64),
        bias=(distinct[:, 0] - 1) / (2 * np.maximum(n[:, 0], 1)).astype(np.float64),
        h1=float(-(p * np.log(p)).sum()),
        h2=float(-(joint * np.log(n_pair / n_u[pu])).sum()),
        n_tokens=int(raw.sum()),
    )


@dataclass(frozen=True)
class Phase:
    """One snapshot beside the n-gram statistics; nats, over ``n`` predicted tokens (``n_contexts`` contexts in
    kl_bigram).

    ``ce_unigram`` and ``ce_bigram`` are what the smoothed tables lose on the same held-out tokens as ``loss``.
    """

    loss: float
    kl_unigram: float
    kl_bigram: float
    kl_bigram_bias: float
    kl_to_bigram: float
    ce_unigram: float
    ce_bigram: float
    n: int
    n_contexts: int


class PhaseMeter:
    """Accumulates a snapshot's predictions over batches; :meth:`result` gives a :class:`Phase`.

    >>> meter = PhaseMeter(table)
    >>> meter.update(tokens, logits)     # tokens [b, T] int, logits [b, T, V]
    """

    def __init__(self, table: NgramTable, *, first: int = 1, min_seen: int = 20, device: str | torch.device = "cpu"):
        self.table, self.first, self.min_seen = table, first, min_seen
        V, C = table.vocab, len(table.contexts)
        self.row = torch.full((V,), -1, dtype=torch.int64, device=device)
        self.row[torch.from_numpy(table.contexts).to(device)] = torch.arange(C, device=device)
        self.log_smoothed = torch.from_numpy(table.smoothed).log().to(device)
        self.log_unigram = torch.from_numpy(np.log(table.unigram)).float().to(device)
        self.q_V = torch.zeros(V, dtype=torch.float64, device=device)
        self.q_CV = torch.zeros(C, V, device=device)
        self.seen_C = torch.zeros(C, dtype=torch.int64, device=device)
        self.sums = dict.fromkeys(("loss", "to_bigram", "ce_unigram", "ce_bigram"), 0.0)
        self.n = self.n_known = 0

    @torch.no_grad()
    def update(self, tokens: torch.Tensor, logits: torch.Tensor) -> None:
        """Add one batch: ``logits[:, t]`` predicts ``tokens[:, t + 1]``; positions before ``first`` and padding are
        left out.
        """
        u, v = tokens[:, self.first : -1].long(), tokens[:, self.first + 1 :].long()
        ok = (u >= 0) & (v >= 0)
        u, v = u[ok], v[ok]
        logq = logits[:, self.first : -1][ok].float().log_softmax(-1)  # [N, V]
        q = logq.exp()
        self.q_V += q.sum(0).double()
        self.n += len(u)
        self.sums["loss"] -= float(logq.gather(1, v[:, None]).sum())
        self.sums["ce_unigram"] -= float(self.log_unigram[v].sum())
        row = self.row[u]
        known = row >= 0
        self.sums["ce_bigram"] -= float(self.log_unigram[v[~known]].sum())  # a rare context falls back on the unigram
        row, logq, q, v = row[known], logq[known], q[known], v[known]
        log_p = self.log_smoothed[row]
        self.q_CV.index_add_(0, row, q)
        self.seen_C += torch.bincount(row, minlength=len(self.seen_C))
        self.sums["to_bigram"] += float((q * (logq - log_p)).sum())
        self.sums["ce_bigram"] -= float(log_p.gather(1, v[:, None]).sum())
        self.n_known += len(row)

    def result(self) -> Phase:
        """The averages so far.

        Raises:
            ValueError: nothing was added.
        """
        if not self.n:
            raise ValueError("no predictions were added to the phase meter")
        t = self.table
        q = (self.q_V / self.q_V.sum()).cpu().numpy()
        kl_1 = float((t.unigram * np.log(t.unigram / np.maximum(q, 1e-30))).sum())
        seen = self.seen_C.cpu().numpy()
        use = seen >= self.min_seen
        p = t.bigram[use].astype(np.float64)
        q_CV = np.maximum(self.q_CV.cpu().numpy()[use] / np.maximum(seen[use, None], 1), 1e-30)
        kl_rows = np.where(p > 0, p * np.log(np.maximum(p, 1e-30) / q_CV), 0).sum(1)
        weight = t.counts[use] / max(int(t.counts[use].sum()), 1)
        some = bool(use.any())
        return Phase(
            loss=self.sums["loss"] / self.n,
            kl_unigram=kl_1,
            kl_bigram=float(weight @ kl_rows) if some else float("nan"),
            kl_bigram_bias=float(weight @ t.bias[use]) if some else float("nan"),
            kl_to_bigram=self.sums["to_bigram"] / self.n_known if self.n_known else float("nan"),
            ce_unigram=self.sums["ce_unigram"] / self.n,
            ce_bigram=self.sums["ce_bigram"] / self.n,
            n=self.n,
            n_contexts=int(use.sum()),
        )
