"""``workbench features`` as a function: find what is needed, build the records, write the folder once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sae.errors import UserError
from workbench.analysis.latents.live import live_rows
from workbench.analysis.latents.logits import Readout, readout
from workbench.analysis.latents.records_build import build_records
from workbench.config import corpus_name
from workbench.corpus.documents import text_inputs
from workbench.corpus.shown import displayed_vocab
from workbench.dictionaries.cross_layers import all_decoders
from workbench.dictionaries.reference import DictionaryRef
from workbench.models.weights import model_inputs
from workbench.results.reuse import reusable
from workbench.run import QUIET, Run
from workbench.workspace import Item, Workspace

if TYPE_CHECKING:
    import torch

    from workbench.activations import ActivationStore


def make_records(
    workspace: Workspace,
    reference: DictionaryRef,
    *,
    model: Any = None,
    n_tokens: int | None = 100_000,
    k: int = 20,
    window: int = 64,
    seed: int = 0,
    corpus: str | None = None,
    ctx: int = 128,
    run: Run = QUIET,
) -> Item:
    """Latent records of a dictionary in ``latents/<id>/``; complete records of the same dictionary are reused.

    Args:
        model: the language model, if the caller has loaded it already (needed for logit effects and token strings).
        corpus: text to run the model on instead of reading a store (``mini``, ``prose``, a file or folder), in
        sequences of ``ctx`` tokens.
    """
    recipe: dict[str, Any] = {"n_tokens": n_tokens, "k": k, "window": window, "seed": seed}
    recipe |= {"corpus": corpus_name(corpus), "ctx": ctx} if corpus else {}
    store: Any = None if corpus else reference.store_or_none(workspace)
    if store is None and not corpus and not reference.metadata.get("model_name"):
        reference.store(workspace)  # says what is missing
    source = None if store is None else reference.source_in(store)
    name, revision = (
        (reference.model_name, reference.revision) if store is None else _reading_model(reference, store, source)
    )
    stores = text_inputs(corpus) if corpus else reference.store_inputs(workspace)
    inputs = [reference.input, *stores, *model_inputs([(name, revision)])]
    words = {"n_tokens": "tokens", "k": "contexts"}
    have = reusable(workspace, "latents", reference.id, recipe=recipe, inputs=inputs, run=run, words=words)
    if have is not None:
        return have
    from workbench.models import load_model

    if corpus:
        model = load_model(name, revision) if model is None else model
        store = live_rows(model, str(reference.hook), corpus, n_tokens=n_tokens or 100_000, ctx=ctx, seed=seed)
    else:
        store = reference.store(workspace)  # says what is missing
        model = load_model(name, revision) if model is None else model
        store.check_tokenizer(getattr(model, "tokenizer", None), name, run)
    dictionary = reference.load(latents_only=True)
    decoders = all_decoders(dictionary, reference.path) if reference.metadata.get("cross_layer") else None
    read = _readout(reference, model)
    built = build_records(
        dictionary,
        store,
        reference.hook,
        model_vocab(model),
        source=source,
        read=read,
        directions=_directions(dictionary) if decoders is None else decoders.sum(1),
        decoders=None if decoders is None else decoders.flatten(1),
        known=None if getattr(model, "tokenizer", None) is None else len(model.tokenizer),
        n_tokens=n_tokens,
        k=k,
        window=window,
        seed=seed,
        run=run,
    )
    about = {
        "dictionary": reference.id,
        "model": reference.model_name,
        "revision": reference.revision,
        "hook": reference.hook,
        "site": reference.metadata.get("site"),
        "source": source,
        "text": corpus_name(corpus) if corpus else reference.metadata.get("store"),
        "logits_of": f"{name}@{revision}" if revision else name,
        "model_layers": int(model.cfg.n_layers),
        **({} if decoders is None else {"cross_layer": reference.metadata["cross_layer"]}),
        **built.metadata,
    }
    with workspace.create(
        "latents",
        reference.id,
        replace=True,
        command=run.command,
        recipe=recipe,
        inputs=inputs,
        numbers=built.numbers,
        metadata=about,
    ) as folder:
        built.write(folder)
    return workspace.get("latents", reference.id)


def _reading_model(reference: DictionaryRef, store: ActivationStore, source: Any) -> tuple[str, str | None]:
    """Model and revision whose unembedding reads the latents; of several sources, the last one's."""
    if isinstance(source, list):
        last = next((s for s in store.spec.sources if s.name == source[-1]), None)
        if last is not None:
            return last.model, last.revision
    return reference.model_name, reference.revision


def _directions(dictionary: Any) -> torch.Tensor:
    """[F, D] what a latent writes, in the model's own units; of several sources, into the last one."""
    blocks = getattr(dictionary, "decoder_blocks", None)
    return dictionary.W_dec if blocks is None else blocks(raw=True)[-1]


def model_vocab(model: Any) -> list[str]:
    """Displayed token strings of a bridge."""
    return displayed_vocab(getattr(model, "tokenizer", None), int(model.cfg.d_vocab))


def _readout(reference: DictionaryRef, model: Any) -> Readout | None:
    """The readout where the dictionary writes into the residual stream, else None (not computed)."""
    if not isinstance(reference.hook, str):
        return None
    from workbench.models import site_of

    try:
        if ".hook_resid_" not in reference.hook_out:
            site_of(reference.hook_out)  # every site writes into the residual stream
        return readout(model)
    except UserError:
        return None
