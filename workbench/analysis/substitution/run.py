"""``workbench substitute`` as a function: find the firings, operate, write ``substitutions/<dictionary>/``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import Field

from sae.errors import UsageError
from sae.strict import StrictConfig
from sae.writes import WriteSAE
from workbench.analysis.comparison.aligned import choose_tokens
from workbench.analysis.substitution.firings import BLOCK, Codes, choose, codes_of
from workbench.analysis.substitution.stand_ins import ARMS, PCA_ROWS, Factors, StandIns, norms
from workbench.analysis.substitution.surgery import Outcome, Place, centred, layer_of
from workbench.analysis.substitution.tables import tables_of
from workbench.dictionaries.reference import DictionaryRef, find_dictionary
from workbench.models.weights import model_inputs
from workbench.results.reuse import reusable
from workbench.results.substitutions import MEASURES
from workbench.run import QUIET, Run
from workbench.workspace import Item, Workspace

if TYPE_CHECKING:
    from workbench.activations import ActivationStore

ROWS = 48  # replacements that run together
# Stands in every result: one made while the norm's scale was held is not taken for one of today.
CLOSED_FORM = {"closed_form": "through the final norm"}


class SubstituteRecipe(StrictConfig):
    """How atoms are tried."""

    atoms: int = Field(64, ge=1)  # at most so many, evenly over how often they fire
    firings: int = Field(24, ge=1)  # per atom
    sequences: int = Field(128, ge=1)  # held-out ones first
    window: int = Field(16, ge=2)  # positions that are looked at, from the write on
    strongest: bool = False  # only firings at which the atom is the strongest of its write, as WriteSAE tries them
    seed: int = 0


def substitute_and_write(workspace: Workspace, what: str, recipe: SubstituteRecipe, *, run: Run = QUIET) -> Item:
    """Try atoms of a dictionary of writes in the model and write ``substitutions/<id>/``; a complete one is reused.

    Raises:
        UsageError: no dictionary of writes, or its atoms fire nowhere. MissingError: the dictionary, its store or its
        model is not there. MismatchError: one made otherwise is there.
    """
    ref = find_dictionary(workspace, what)
    if ref.metadata.get("kind") != "write":
        raise UsageError(
            f"{ref.id} is no dictionary of writes (site W of a recurrent layer), so its latents cannot replace what a"
            " layer writes into its state. `workbench train mini-write` makes one."
        )
    inputs = [ref.input, *ref.store_inputs(workspace), *model_inputs([(ref.model_name, ref.revision)])]
    # results of all firings are those of before there was a choice
    wanted = recipe.model_dump(mode="json", exclude=set() if recipe.strongest else {"strongest"}) | CLOSED_FORM
    if (have := reusable(workspace, "substitutions", ref.id, recipe=wanted, inputs=inputs, run=run)) is not None:
        return have
    frame, about = _measure(workspace, ref, recipe, run)
    made, numbers = tables_of(frame, seed=recipe.seed)
    with workspace.create(
        "substitutions",
        ref.id,
        replace=True,
        command=run.command,
        recipe=wanted,
        inputs=inputs,
        numbers=numbers,
        metadata=about | {"window": recipe.window},
    ) as folder:
        for name, table in made.items():
            table.to_parquet(folder / f"{name}.parquet", index=False)
    return workspace.get("substitutions", ref.id)


def _measure(
    workspace: Workspace, ref: DictionaryRef, recipe: SubstituteRecipe, run: Run
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """(one row per firing with what every arm did, what the result is about)."""
    from workbench.models import load_model

    store, dictionary = ref.store(workspace), ref.load(writes=True)
    hooks = str(ref.hook), ref.hook_out
    model = load_model(ref.model_name, revision=ref.revision)
    layer = layer_of(model, hooks[0])
    tokens, is_row = text_of(store, recipe.sequences)
    if recipe.window > tokens.shape[1]:
        raise UsageError(
            f"window = {recipe.window} is more than the {tokens.shape[1]} positions of a sequence. Lower window."
        )
    codes = codes_of(model, dictionary, hooks, tokens, is_row)
    alive = codes.alive(dictionary.d_sae)
    size = {"atoms": recipe.atoms, "firings": recipe.firings, "window": recipe.window}
    chosen = choose(codes, **size, seed=recipe.seed, strongest=recipe.strongest)
    if chosen.empty:
        raise UsageError(
            f"no latent of {ref.id} fires at least {recipe.window} positions before the end of a sequence. Lower"
            " window, or give more text."
        )
    stand_ins = StandIns.of(dictionary, _training_writes(store, ref, dictionary), alive, recipe.seed)
    frame, moved = operate(model, layer, tokens, chosen, codes, stand_ins, recipe, run=run)
    about = {
        "dictionary": ref.id,
        "model": ref.model_name,
        "revision": ref.revision,
        "site": str(ref.metadata.get("site") or ""),
        "kind": layer.kind,
        "shape": list(dictionary.shape),
        "alive": int(alive.sum()),
        "strongest": recipe.strongest,
        "n_sequences": len(tokens),
        "native_moves": moved,
    }
    return frame, about


def text_of(store: ActivationStore, sequences: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(tokens [S, T], bool [S, T] which are rows of the store) of up to so many sequences, held-out ones first."""
    usable = np.setdiff1d(np.arange(store.n_seq), np.array(store.skipped, dtype=np.int64))[-sequences:]
    rows = choose_tokens(store, None)
    mine = np.isin(rows.seq, usable)
    tokens = np.stack([store.sequence_tokens(int(s)) for s in usable]).astype(np.int64)
    is_row = np.zeros(tokens.shape, bool)
    is_row[np.searchsorted(usable, rows.seq[mine]), rows.pos[mine]] = True
    return tokens, is_row


def _training_writes(store: ActivationStore, ref: DictionaryRef, dictionary: WriteSAE) -> torch.Tensor:
    """Writes [n, H·K·V] of the training text, for principal directions."""
    hooks = [str(ref.hook), ref.hook_out]
    batches = store.batches(hooks, 1024, seed=0, source=ref.source_in(store), split="train", epochs=1)
    rows: list[torch.Tensor] = []
    for batch in batches:
        rows.append(dictionary.writes(batch))
        if sum(map(len, rows)) >= PCA_ROWS:
            break
    return torch.cat(rows)[:PCA_ROWS]


def operate(
    model: Any,
    layer: Any,
    tokens: NDArray[np.int64],
    chosen: pd.DataFrame,
    codes: Codes,
    stand_ins: StandIns,
    recipe: SubstituteRecipe,
    *,
    run: Run = QUIET,
) -> tuple[pd.DataFrame, float]:
    """(the firings with what every arm did, nats by which the model's own writes move it). Columns beside those of
    :func:`workbench.analysis.substitution.firings.choose`: see :mod:`workbench.results.substitutions`.
    """
    parts, moved = [], 0.0
    rng = np.random.default_rng([recipe.seed, 11])
    with run.bar("substituting", len(chosen), "firing") as bar:
        for lo in range(0, len(tokens), BLOCK):
            mine = chosen[(chosen["sequence"] >= lo) & (chosen["sequence"] < lo + BLOCK)]
            if mine.empty:
                continue
            place = Place(model, layer, torch.from_numpy(tokens[lo : lo + BLOCK]), recipe.window)
            for some in _split(mine):
                rows = torch.tensor(some["sequence"].to_numpy() - lo)
                positions = torch.tensor(some["position"].to_numpy())
                moved = moved or place.check(rows, positions)
                parts.append(_tried(place, rows, positions, some, codes, stand_ins, rng))
                bar.update(len(some))
    return pd.concat(parts, ignore_index=True), moved


def _split(frame: pd.DataFrame) -> Iterator[pd.DataFrame]:
    for lo in range(0, len(frame), ROWS):
        yield frame.iloc[lo : lo + ROWS]


def _tried(
    place: Place,
    rows: torch.Tensor,
    positions: torch.Tensor,
    firings: pd.DataFrame,
    every: Codes,
    stand_ins: StandIns,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """All arms at a few firings."""
    native: Factors = place.key[rows, positions], place.value[rows, positions]
    atoms = torch.tensor(firings["atom"].to_numpy())
    codes = torch.tensor(firings["value"].to_numpy())
    out = firings.assign(norm=norms(native).numpy())
    where = torch.tensor(firings["sequence"].to_numpy()), positions  # copies: pandas gives out read-only arrays
    whole = stand_ins.whole(every.values[where], every.indices[where])
    out = out.assign(**_distances("whole", place.put_writes(rows, positions, whole)))
    dots = torch.einsum("nhkv,nhk,nhv->n", whole, *native)
    out["cosine_whole"] = (dots / (whole.flatten(1).norm(dim=1) * norms(native)).clamp_min(1e-30)).double().numpy()
    for arm in ARMS:
        key, value = stand_ins.instead(arm, *native, atoms, codes, rng)
        found = place.put(rows, positions, key, value)
        out = out.assign(**_distances(arm, found))
        if arm != "ablated":
            out[f"cosine_{arm}"] = _cosine(native, (key, value))
        if arm == "atom":
            predicted = place.predicted(rows, positions, key, value).double()
            measured = centred(found.logits - place.logits[rows, positions].float()).double()
            out = out.assign(
                shift=measured.square().sum(1).numpy(),
                shift_predicted=predicted.square().sum(1).numpy(),
                shift_product=(measured * predicted).sum(1).numpy(),
            )
    return out


def _distances(arm: str, found: Outcome) -> dict[str, NDArray[np.float64]]:
    return {f"{n}_{arm}": getattr(found, n).double().numpy() for n in MEASURES}


def _cosine(a: Factors, b: Factors) -> NDArray[np.float64]:
    """Cosines of writes, over all heads."""
    dots = ((a[0] * b[0]).sum(-1) * (a[1] * b[1]).sum(-1)).sum(-1)
    return (dots / (norms(a) * norms(b)).clamp_min(1e-30)).double().numpy()
