"""``workbench evaluate`` as a function: choose held-out sequences, measure, write ``evaluations/<id>/`` once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae.errors import MissingError, UsageError
from sae.files import write_json
from workbench.config import corpus_name, located, text_digests
from workbench.corpus.config import corpus_config
from workbench.corpus.documents import text_inputs
from workbench.dictionaries.reference import DictionaryRef
from workbench.models.weights import model_inputs
from workbench.results.reuse import reusable
from workbench.run import QUIET, Run
from workbench.workspace import Item, Workspace, check_id

HEADLINE = (
    "l0",
    "ev",
    "ev_uncentred",
    "delta_ce",
    "ce_recovered_zero",
    "ce_recovered_mean",
    "kl",
    "dead_share",
    "ultra_dense_share",
)
FIRING_ROWS = 100_000  # dead: never fired in 100k tokens (Llama Scope, section 4.4)


@dataclass(frozen=True)
class EvaluationRequest:
    """What to measure on. ``ctx`` and ``corpus`` None: the store's own held-out sequences, as the
    dictionary saw them.
    """

    sequences: int = 64
    ctx: int | None = None
    model: str | None = None  # another model than the dictionary's own
    revision: str | None = None
    corpus: str | None = None  # a file or folder of text, JSONL or Parquet; "mini" or "prose": bundled
    seed: int = 0
    probing: bool = False

    def suffix(self) -> str:
        """What distinguishes this evaluation from the plain one, for its id."""
        parts = [
            f"ctx{self.ctx}" if self.ctx else "",
            f"on-{_short(self.model)}" if self.model else "",
            f"at-{self.revision}" if self.revision else "",
        ]
        parts += [f"text-{_short(self.corpus)}" if self.corpus else "", "probing" if self.probing else ""]
        return "".join(f".{p}" for p in parts if p)


def _short(name: str | None) -> str:
    return (
        "".join(c if c.isalnum() or c in "._-" else "-" for c in Path(str(name).rstrip("/")).name).strip(".-")[:40]
        or "x"
    )


def evaluate_dictionary(
    workspace: Workspace,
    reference: DictionaryRef,
    request: EvaluationRequest,
    *,
    model: Any = None,
    run: Run = QUIET,
) -> Item:
    """Measure a dictionary inside its model (or another) and keep the result; a complete equal one is reused.

    Raises:
        UsageError: a dictionary over several sources, or too few held-out sequences for the context asked for.
    """
    if not isinstance(reference.hook, str) or isinstance(reference.source, list):
        raise UsageError(
            f"{reference.id} is a crosscoder (it reads several sources); `workbench evaluate` puts the reconstruction"
            " of one into the model. `workbench evolve` measures crosscoders."
        )
    id = check_id(reference.id + request.suffix())
    recipe = {k: getattr(request, k) for k in request.__dataclass_fields__}
    recipe["corpus"] = corpus_name(request.corpus) if request.corpus else None
    name, revision = (
        request.model or reference.model_name,
        request.revision or (None if request.model else reference.revision),
    )
    inputs = [reference.input, *reference.store_inputs(workspace), *model_inputs([(name, revision)])]
    inputs += text_inputs(request.corpus)
    if (have := reusable(workspace, "evaluations", id, recipe=recipe, inputs=inputs, run=run)) is not None:
        return have
    from workbench.analysis.evaluation.evaluate import (
        decoder_statistics,
        density_quantiles,
        evaluate_in_model,
        latent_shares,
    )
    from workbench.models import load_model

    model = load_model(name, revision) if model is None else model
    tokens, is_row, about = heldout_tokens(workspace, reference, request, model, run)
    dictionary = reference.load()
    result = evaluate_in_model(
        model,
        dictionary,
        reference.hook,
        tokens,
        hook_out=reference.hook_out,
        is_row=is_row,
        seed=request.seed,
        run=run,
    )
    n_fired, n_tokens = _firing(workspace, reference, request, dictionary) or (result.n_fired, result.n_tokens)
    document = {
        "metrics": {k: e.as_dict() for k, e in (result.estimates | latent_shares(n_fired, n_tokens)).items()},
        "density": density_quantiles(n_fired, n_tokens),
        "decoder": decoder_statistics(dictionary),
    }
    probing = None
    if request.probing:
        from workbench.analysis.evaluation.probing import probe_dictionary

        probing = probe_dictionary(model, dictionary, reference.hook, tokens, is_row=is_row, seed=request.seed)
        document["probing"] = probing.summary()
    metadata = {
        "dictionary": reference.id,
        "model": name,
        "revision": revision,
        "hook": reference.hook,
        "site": reference.metadata.get("site"),
        **about,
    }
    numbers = {k: document["metrics"][k] for k in HEADLINE}
    with workspace.create(
        "evaluations",
        id,
        replace=True,
        command=run.command,
        recipe=recipe,
        inputs=inputs,
        numbers=numbers,
        metadata=metadata,
    ) as folder:
        write_json(folder / "metrics.json", document)
        result.bands.to_parquet(folder / "bands.parquet", index=False)
        result.sums.to_parquet(folder / "sequences.parquet", index=False)
        np.save(folder / "n_fired.npy", n_fired.astype(np.int64))
        if probing is not None:
            probing.table.to_parquet(folder / "probing.parquet", index=False)
    return workspace.get("evaluations", id)


def _firing(
    workspace: Workspace, reference: DictionaryRef, request: EvaluationRequest, dictionary: Any
) -> tuple[np.ndarray, int] | None:
    """(firings per latent, rows) on about 100,000 rows of the dictionary's own store; None where something else is
    measured.

    A latent that is silent on a few thousand held-out tokens need not be dead, so shares of latents get more rows than
    losses.
    """
    if (
        request.ctx
        or request.model
        or request.revision
        or request.corpus
        or (store := _store_or_none(workspace, reference)) is None
    ):
        return None
    from workbench.analysis.latents.encoded import encode_store, store_rows

    rows = store_rows(store, FIRING_ROWS)
    codes = encode_store(dictionary, store, reference.hook, source=reference.source, rows=rows)
    return codes.n_fired, codes.n_tokens


def heldout_tokens(
    workspace: Workspace, reference: DictionaryRef, request: EvaluationRequest, model: Any, run: Run = QUIET
) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
    """(tokens [n, ctx], which of them are data, what they are): text no dictionary of the store was trained on.

    Which tokens are data is said by the store's contract and the corpus' roles; None of a store that is older than
    contracts, where the model's own decides.

    Raises:
        UsageError: fewer than two sequences. MissingError: neither store nor corpus is known.
    """
    if request.sequences < 1:
        raise UsageError(f"--sequences {request.sequences} is not positive. Give 1 or more.")
    from workbench.models.limits import check_context

    store = _store_or_none(workspace, reference)
    if request.corpus is None and request.ctx in (None, getattr(store, "ctx", None)) and store is not None:
        chosen = [i for i in store.heldout if i not in set(store.skipped)][: request.sequences]
        if len(chosen) < 2:
            raise UsageError(
                f"the store of {reference.id} keeps {len(chosen)} sequences out of training, and two are needed; give"
                " --ctx or --corpus to cut fresh ones."
            )
        check_context(model, store.ctx, "the model", "the store's ctx")
        if request.model:
            from workbench.models.same_tokens import check_same_tokens

            known = [(s.model, s.revision) for s in store.spec.sources]
            check_same_tokens(
                [*known, (request.model, request.revision)], "give --corpus, to cut a text with the model's own"
            )
        store.check_tokenizer(getattr(model, "tokenizer", None), request.model or "the model", run)
        tokens, is_row = store.sequences_with_rows(chosen)
        return (
            tokens,
            None if store.contract is None else is_row,
            {
                "tokens": "held-out sequences of the store",
                "ctx": store.ctx,
                "n_sequences": len(chosen),
            },
        )
    from workbench.corpus import CorpusConfig, plan_tokens

    if request.corpus is not None:
        config = corpus_config(request.corpus, request.seed)
    elif store is not None:
        config = CorpusConfig.model_validate({**store_corpus(store), "split": "heldout", "seed": request.seed})
    else:
        raise MissingError(
            f"the store of {reference.id} is not in {workspace.root}; give --corpus (a file, a folder, or mini)."
        )
    if getattr(model, "tokenizer", None) is None:
        raise MissingError(
            "the model has no tokenizer, so no text can be cut for it. Use a model folder with tokenizer.json."
        )
    ctx = request.ctx or (store.ctx if store is not None else 128)
    check_context(model, ctx, "the model", "--ctx")
    plan = plan_tokens(config, model.tokenizer, n_seq=request.sequences, ctx=ctx)
    return plan.tokens, plan.is_row(), {"tokens": plan.about, "ctx": ctx, "n_sequences": len(plan.tokens)}


def _store_or_none(workspace: Workspace, reference: DictionaryRef) -> Any:
    return reference.store_or_none(workspace)


def store_corpus(store: Any) -> dict[str, Any]:
    """The corpus configuration a store's token plan was cut from.

    Raises:
        MissingError: the store does not say.
    """
    about = store.spec.plan.get("about", store.spec.plan)
    config = about.get("config") if isinstance(about, dict) else None
    if not isinstance(config, dict):
        raise MissingError(
            "the store does not say which corpus its tokens come from; give --corpus (a file, a folder, or mini)."
        )
    return dict(located(config, text_digests(about)))
