"""Computing the latent records of one dictionary: from a dictionary and a store to a folder the browser reads.

The file format is in :mod:`workbench.results.records`. One pass over the rows encodes them; everything after is
vectorised work on (row, latent, value) triples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from sae.errors import UserError
from sae.files import write_json
from workbench.analysis.latents import contexts as ctx
from workbench.analysis.latents.encoded import Codes, Rows, encode_store, store_rows
from workbench.analysis.latents.histogram import log_histogram, moments
from workbench.analysis.latents.logits import Readout, direct_logit_effects
from workbench.analysis.latents.massive import Massive
from workbench.analysis.latents.neighbours import nearest
from workbench.results.records import GROUPS, N_LOGITS, N_NEIGHBOURS
from workbench.run import QUIET, Run

MANY_TOKENS = 2000  # different ids in the text from which on it says which tokens a model has seen
ULTRA_DENSE = 0.1  # share of tokens above which a latent counts as ultra-dense (Llama Scope, figure 4)


@dataclass(frozen=True)
class BuiltRecords:
    """Everything a records folder holds, still in memory."""

    table: pd.DataFrame
    arrays: dict[str, np.ndarray]
    vocab: list[str]
    metadata: dict[str, Any]
    numbers: dict[str, Any]
    codes: Codes = field(repr=False)

    def write(self, folder: Path) -> None:
        """Write all files but the manifest into an existing folder."""
        folder = Path(folder)
        self.table.to_parquet(folder / "latents.parquet", index=False)
        for name, array in self.arrays.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
        write_json(folder / "vocab.json", self.vocab)


def build_records(
    dictionary: Any,
    store: Rows,
    hook: str | list[str],
    vocab: Sequence[str],
    *,
    source: Any = None,
    read: Readout | None = None,
    directions: torch.Tensor | None = None,
    decoders: torch.Tensor | None = None,
    known: int | None = None,
    n_tokens: int | None = 100_000,
    k: int = 20,
    window: int = 64,
    seed: int = 0,
    run: Run = QUIET,
) -> BuiltRecords:
    """Latent records of a dictionary on rows of a store.

    Args:
        hook, source: what the dictionary was trained on; lists for crosscoders.
        vocab: displayed token strings.
        read: final norm and unembedding (:func:`workbench.analysis.latents.logits.readout`); None leaves logit effects
        absent.
        directions: [F, d_model] what latents write into the residual stream, if not the decoder rows themselves.
        decoders: [F, any] all that latents write, if more than the decoder rows: for neighbours and norms.
        known: how many tokens the tokenizer has; a model's vocabulary may be padded beyond them.
        n_tokens: rows to use, spread evenly over the store; None = all.
        k: contexts per group. window: tokens per window. seed: of the random groups.
    """
    f = int(dictionary.W_dec.shape[0])
    near = ctx.NearMisses(f, k)
    rows = store_rows(store, n_tokens)
    codes = encode_store(dictionary, store, hook, source=source, rows=rows, each_block=near.add, run=run)
    if len(vocab) <= int(codes.ids.max()):
        raise UserError(
            f"the store has token id {int(codes.ids.max())}, the tokenizer {len(vocab)} tokens: they are not of the"
            " same model. Name the right model with --model."
        )
    built = ctx.build(codes, near, k=k, window=window, seed=seed)
    hist, edges = log_histogram(codes)
    W_dec = (dictionary.W_dec if decoders is None else decoders).detach().float().cpu()
    nbr_id, nbr_val = nearest(W_dec, n=N_NEIGHBOURS)
    arrays = {name: getattr(built, name) for name in built.__dataclass_fields__}
    arrays |= {"hist": hist, "edges": edges, "nbr_cos_id": nbr_id, "nbr_cos_val": nbr_val}
    about_logits: dict[str, Any] = {"computed": False, "note": "not computed"}
    if read is not None:
        among, which = ranked_tokens(codes.ids, read.W.shape[1], known)
        arrays["logits_id"], arrays["logits_val"] = direct_logit_effects(
            W_dec if directions is None else directions, read, N_LOGITS, among=among
        )
        note = f"{read.note}{which}"
        about_logits = {"computed": True, "final_norm_folded": read.folded, "note": note}
    n = codes.n_tokens
    fired = codes.n_fired
    there = Massive.of(store, hook, rows, source=source) if isinstance(hook, str) else None
    massive = None if there is None else there.about(codes.ids, codes.pos)
    on_massive = None if there is None else there.firings(codes)
    return BuiltRecords(
        table=_table(codes, W_dec, arrays, vocab, on_massive),
        arrays=arrays,
        vocab=list(vocab),
        metadata={
            "n_tokens": n,
            "n_sequences": len(np.unique(codes.seq)),
            "ctx": int(codes.pos.max()) + 1,
            "window": int(built.contexts_tok.shape[1]),
            "groups": list(GROUPS),
            "contexts_per_group": k,
            "seed": seed,
            "vocab": "vocab.json",
            "logits": about_logits,
            "moments": "over the tokens on which the latent fires",
            "neighbours": "decoder cosine",
            "population": "all rows, massive ones included; n_massive counts a latent's firings on those",
            **({} if massive is None else {"massive": massive}),
        },
        numbers={
            "n_latents": f,
            "n_tokens": n,
            "l0": round(len(codes.value) / n, 4),
            "dead_share": round(float((fired == 0).mean()), 6),
            "ultra_dense_share": round(float((fired > ULTRA_DENSE * n).mean()), 6),
            "n_contexts": len(built.contexts_tok),
            **(
                {}
                if massive is None or on_massive is None
                else {
                    "l0_inliers": round(float((fired - on_massive).sum()) / max(n - massive["n"], 1), 4),
                    "massive_share": round(massive["n"] / massive["n_rows"], 6),
                    "massive_square_share": round(massive["square_share"], 6),
                }
            ),
        },
        codes=codes,
    )


def ranked_tokens(ids: np.ndarray, vocab: int, known: int | None = None) -> tuple[np.ndarray | None, str]:
    """(token ids worth ranking, or None for all; how to say so): those that occur, where the text is long enough to say
    so (50 tokens per id of the vocabulary, or ``MANY_TOKENS`` different ids), else all that the tokenizer has.

    The unembedding of a token that training never showed is arbitrary, and often long; an id beyond the tokenizer's
    stands for no text at all.
    """
    known = vocab if known is None else min(known, vocab)
    found = np.unique(ids)
    if len(ids) >= 50 * vocab or len(found) >= MANY_TOKENS:
        found = found[found < known]
        return found, f"; ranked among the {len(found)} tokens that occur in the text"
    if known < vocab:
        return np.arange(known), f"; ranked among the {known} tokens of the tokenizer"
    return None, ""


def _table(
    codes: Codes,
    W_dec: torch.Tensor,
    arrays: dict[str, np.ndarray],
    vocab: Sequence[str],
    on_massive: np.ndarray | None,
) -> pd.DataFrame:
    """One row per latent; NaN or a null token where a value is not defined. `on_massive`: [F] firings on massive rows,
    where that is known.
    """
    m = moments(codes)
    fired = m.n > 0
    peak_row = _peak_rows(codes)
    peak_token = np.where(fired, codes.ids[peak_row], -1).astype(np.int32)
    table = {
        "latent": np.arange(codes.n_latents, dtype=np.int32),
        "n_fired": m.n.astype(np.int64),
        "n_tokens": np.full(codes.n_latents, codes.n_tokens, np.int64),
        "density": m.n / codes.n_tokens,
        "max": m.max,
        "mean": m.mean,
        "std": m.std,
        "skew": m.skew,
        "kurtosis": m.kurtosis,
        "n_sequences": arrays["group_n"][:, 0],
        "peak_token": peak_token,
        "peak_text": pd.array([vocab[t] if t >= 0 else None for t in peak_token.tolist()], dtype="string"),
        "decoder_norm": W_dec.norm(dim=1).numpy(),
        **({} if on_massive is None else {"n_massive": on_massive.astype(np.int64)}),
        "nearest": arrays["nbr_cos_id"][:, 0],
        "nearest_cos": arrays["nbr_cos_val"][:, 0],
    }
    if "logits_id" in arrays:
        top = arrays["logits_id"][:, 0, 0]
        table["promoted_text"] = pd.array(
            [vocab[t] if 0 <= t < len(vocab) else None for t in top.tolist()], dtype="string"
        )
    return pd.DataFrame(table)


def _peak_rows(codes: Codes) -> np.ndarray:
    """[F] row of each latent's largest activation (0 where it never fires)."""
    out = np.zeros(codes.n_latents, np.int64)
    fired = np.flatnonzero(codes.n_fired > 0)
    if len(fired):
        top = np.maximum.reduceat(codes.value, codes.indptr[:-1][fired])
        hits = np.flatnonzero(codes.value == np.repeat(top, codes.n_fired[fired]))
        owner, first = np.unique(codes.latent[hits], return_index=True)
        out[owner] = codes.row[hits[first]]
    return out
