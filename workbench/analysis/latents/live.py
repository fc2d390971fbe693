"""Rows computed while they are read: a dictionary without a store (imported, say) on text chosen on the spot.

Offers what analyses ask of an activation store and keeps nothing on disk. Reading twice computes twice, so anything
that needs many passes wants a harvest instead.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from sae.errors import UsageError
from workbench.models.reading import token_contract


class LiveRows:
    """Activations of ``hook`` on token sequences [n_seq, ctx], at the tokens that are data by the model's contract.

    Args:
        model: a TransformerBridge. batch: sequences per forward pass.

    Raises:
        UsageError: the model has no such hook.
    """

    skipped: tuple[int, ...] = ()

    def __init__(self, model: Any, hook: str, tokens: np.ndarray, *, batch: int = 16):
        if hook not in model.hook_dict:
            raise UsageError(
                f"the model has no hook {hook!r}. The dictionary is of another model, or names a wrong hook: --hook."
            )
        self.model, self.hook, self.batch = model, hook, batch
        self._tokens = np.asarray(tokens, np.int64)
        self.ctx = int(self._tokens.shape[1])
        self.spec = SimpleNamespace(rows_per_seq=self.ctx - 1)
        self._at = np.flatnonzero(token_contract(model).is_row(self._tokens))  # sequence * ctx + position of each row
        self._first, self._kept = -1, torch.empty(0)

    def __len__(self) -> int:
        return len(self._at)

    def read(self, hook: Any, rows: slice | None = None, source: Any = None) -> torch.Tensor:
        """Rows [n, d] of a contiguous slice, in float32; ``hook`` must be the one this was opened for."""
        if hook != self.hook:
            raise UsageError(f"these rows are of {self.hook!r}, not {hook!r}.")
        first, last, step = (rows or slice(None)).indices(len(self))
        if step != 1:
            raise UsageError("rows computed while they are read must be read in order.")
        wanted, per_group = torch.from_numpy(self._at[first:last]), self.batch * self.ctx
        groups = wanted // per_group
        pieces = [self._group(int(g))[wanted[groups == g] - g * per_group] for g in groups.unique()]
        return torch.cat(pieces) if pieces else self._group(0)[:0]

    def tokens(self, rows: Any = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(token ids, sequence, position) of rows."""
        seq, pos = np.divmod(self._at[slice(None) if rows is None else rows], self.ctx)
        return self._tokens[seq, pos].astype(np.int32), seq, pos

    def _group(self, group: int) -> torch.Tensor:
        """All positions of one group of sequences [n * ctx, d]; the last group stays in memory, because blocks of rows
        straddle groups.
        """
        if group != self._first:
            caught: list[torch.Tensor] = []

            def catch(x: torch.Tensor, hook: Any) -> None:
                caught.append(x.flatten(2).detach().float().cpu())

            tokens = torch.from_numpy(self._tokens[group * self.batch : (group + 1) * self.batch])
            with torch.inference_mode(), self.model.hooks(fwd_hooks=[(self.hook, catch)]):
                self.model(tokens, return_type="logits")
            self._first, self._kept = group, caught[0].reshape(-1, caught[0].shape[-1])
        return self._kept


def live_rows(model: Any, hook: str, corpus: str, *, n_tokens: int, ctx: int, seed: int = 0) -> LiveRows:
    """About ``n_tokens`` rows of text named on the command line (``mini``, ``prose``, or local files).

    Raises:
        UsageError: the model has no tokenizer to cut text with, or a local text is shorter than two windows. A short
        text is not repeated.
    """
    from workbench.corpus import plan_tokens, text_stream
    from workbench.corpus.config import corpus_config
    from workbench.corpus.heldout import windows_in
    from workbench.models.limits import check_context

    if getattr(model, "tokenizer", None) is None:
        raise UsageError(
            "the model has no tokenizer, so no text can be cut for it. Use a model folder with tokenizer.json."
        )
    check_context(model, ctx, "the model", "--ctx")
    config, n_seq = corpus_config(corpus, seed), max(2, -(-n_tokens // (ctx - 1)))
    if config.paths:
        there = len(text_stream(config, model.tokenizer).tokens)
        if there < 2 * ctx:
            raise UsageError(
                f"corpus {corpus!r} has {there:,} tokens; two windows of --ctx {ctx} need {2 * ctx:,}. Give more text,"
                " or a smaller --ctx."
            )
        n_seq = min(n_seq, windows_in(there, ctx - 1))
    plan = plan_tokens(config, model.tokenizer, n_seq=n_seq, ctx=ctx)
    return LiveRows(model, hook, plan.tokens)
