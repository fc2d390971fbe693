"""Verbs about one dictionary: what it costs the model, where its latents fire, what they are called, how they lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sae.errors import UsageError
from workbench.run import Run, opened, recorded
from workbench.workspace import Item, Workspace

if TYPE_CHECKING:
    from workbench.analysis.evaluation.steer_text import SteeredText
    from workbench.analysis.evaluation.verifying import Verification
    from workbench.analysis.explain.endpoint import Completer


def _id(workspace: Workspace, model: str | None, run: Run) -> str | None:
    """What results call a model that a person may name by its folder."""
    from workbench.models.pointers import by_id

    return None if model is None else by_id(workspace, model, run=run)


@recorded("evaluate")
def evaluate(
    workspace: Workspace | str | Path,
    dictionary: str,
    *,
    sequences: int = 64,
    ctx: int | None = None,
    model: str | None = None,
    revision: str | None = None,
    corpus: str | None = None,
    probing: bool = False,
    hook: str | None = None,
    seed: int = 0,
    replace: bool = False,
    run: Run | None = None,
) -> Item:
    """Measure a dictionary inside its model: L0, explained variance, CE recovered, delta LM loss (nats), KL, dead and
    dense latents, each with n and interval (Llama Scope, arXiv 2410.20526, section 4).

    Args:
        dictionary: an id of the workspace, or the path of a saved one. sequences: held-out ones of its store. ctx:
            tokens per sequence, for longer contexts. model, revision: another model to splice into. corpus: text to
            evaluate on (a file or folder, ``mini``, ``prose``). probing: also k-sparse probing and absorption. hook:
            where the dictionary does not name it.

    Raises:
        MismatchError: one is there with another recipe or other inputs, and not ``replace``.
        UsageError: a dictionary over several sources, or too few held-out sequences.

    Examples:
        >>> evaluate("workspace", "mini-pythia.L1R-8x").manifest.numbers["ce_recovered_zero"]["value"]
    """
    from workbench.analysis.evaluation.run import EvaluationRequest, evaluate_dictionary
    from workbench.dictionaries.reference import find_dictionary

    workspace, run = opened(workspace, run, replace_results=replace)
    request = EvaluationRequest(
        sequences=sequences,
        ctx=ctx,
        model=_id(workspace, model, run),
        revision=revision,
        corpus=corpus,
        seed=seed,
        probing=probing,
    )
    return evaluate_dictionary(workspace, find_dictionary(workspace, dictionary, hook_name=hook), request, run=run)


def verify(
    workspace: Workspace | str | Path,
    dictionary: str,
    *,
    library: str | None = None,
    sequences: int = 32,
    ctx: int | None = None,
    model: str | None = None,
    revision: str | None = None,
    hook: str | None = None,
    corpus: str | None = None,
    seed: int = 0,
    run: Run | None = None,
) -> Verification:
    """Does a dictionary behave as its configuration says? Nothing is kept: the answer is the return value.

    Args:
        dictionary: an id of the workspace, a folder of any library, or ``REPOSITORY:FOLDER`` of the hub. library:
            found by its files if not given. sequences, ctx: how much text. model, revision, hook: where its files do
            not say. corpus: text (a file or folder, ``mini``, ``prose``); held-out text of its store if not given.

    Returns:
        ``.fits``, ``.verdict`` (a sentence), ``.cause`` (the setting under which the numbers fit, or None),
        ``.checks``, ``.trials``, ``.as_dict()``.

    Raises:
        UsageError, MissingError, CorruptError, UntrustedFile: what the dictionary needs and does not say, or gets
        wrong, by name.

    Example:
        >>> print(verify("workspace", "mini-pythia.L1R-8x").verdict)
    """
    from workbench.analysis.evaluation.verifying import verify_dictionary

    home, run = opened(workspace, run)
    return verify_dictionary(
        home,
        dictionary,
        library=library,
        sequences=sequences,
        ctx=ctx,
        model=model,
        revision=revision,
        hook=hook,
        corpus=corpus,
        seed=seed,
        run=run,
    )


@recorded("features")
def features(
    workspace: Workspace | str | Path,
    dictionary: str,
    *,
    tokens: int = 100_000,
    contexts: int = 20,
    window: int = 64,
    seed: int = 0,
    store: str | None = None,
    corpus: str | None = None,
    ctx: int = 128,
    model: str | None = None,
    hook: str | None = None,
    replace: bool = False,
    run: Run | None = None,
) -> Item:
    """Latent records of a dictionary: contexts, histograms, densities, logit effects, neighbours.

    Args:
        tokens: rows to use, spread evenly; 0 = all. contexts: kept per group. window: tokens of a context. store: to
            read instead of the dictionary's own. corpus: run the model on text instead, ``ctx`` tokens per sequence.
            model, hook: where the dictionary does not name them.

    Raises:
        MismatchError: one is there with another recipe or other inputs, and not ``replace``.
        UsageError, MissingError: what the dictionary needs and does not say.

    Examples:
        >>> records = features("workspace", "mini-pythia.L1R-8x")
    """
    from workbench.analysis.latents.records_run import make_records
    from workbench.dictionaries.reference import find_dictionary

    workspace, run = opened(workspace, run, replace_results=replace)
    reference = find_dictionary(
        workspace, dictionary, store=store, model_name=_id(workspace, model, run), hook_name=hook
    )
    return make_records(
        workspace,
        reference,
        n_tokens=tokens or None,
        k=contexts,
        window=window,
        seed=seed,
        corpus=corpus,
        ctx=ctx,
        run=run,
    )


@recorded("explain")
def explain(
    workspace: Workspace | str | Path,
    dictionary: str,
    *,
    llm: str | None = None,
    endpoint: str | None = None,
    latents: Sequence[int] = (),
    sample: int = 100,
    tokens: int = 100_000,
    corpus: str | None = None,
    ctx: int = 128,
    min_f1: float = 0.5,
    max_usd: float | None = None,
    price_in: float | None = None,
    price_out: float | None = None,
    per_minute: float = 60.0,
    key_env: str = "OPENAI_API_KEY",
    seed: int = 0,
    store: str | None = None,
    model: str | None = None,
    hook: str | None = None,
    replace: bool = False,
    run: Run | None = None,
) -> Item:
    """Label latents: by rule with precision and recall, or (``llm``) by a language model, scored by detection on
    held-out text (Bills et al. 2023; Paulo et al. 2024, arXiv 2410.13928).

    Args:
        llm: the model to ask, at ``endpoint`` (OpenAI-compatible) or on this machine. latents: whom to ask about;
            empty = a random ``sample``. min_f1: a rule below it is no label. max_usd: refuse to start above it.

    Raises:
        MismatchError: one is there with another recipe or other inputs, and not ``replace``.
        UsageError: options that do not go together, a price above ``max_usd``, or latents that fire too seldom.

    Examples:
        >>> labels = explain("workspace", "mini-pythia.L1R-8x")
    """
    from workbench.analysis.explain.asking import Asking, ask, refuse_without_model
    from workbench.analysis.explain.run import explain_by_rule
    from workbench.dictionaries.reference import find_dictionary

    workspace, run = opened(workspace, run, replace_results=replace)
    reference = find_dictionary(
        workspace, dictionary, store=store, model_name=_id(workspace, model, run), hook_name=hook
    )
    if llm is None:
        refuse_without_model(endpoint=endpoint, latents=latents)
        return explain_by_rule(
            workspace, reference, n_tokens=tokens or None, min_f1=min_f1, corpus=corpus, ctx=ctx, run=run
        )
    asking = Asking(
        llm, endpoint, tuple(latents), sample, tokens, corpus, ctx, seed, price_in, price_out, per_minute, key_env
    )
    return ask(workspace, reference, asking, max_usd=max_usd, run=run)


@recorded("score")
def score(
    workspace: Workspace | str | Path,
    dictionary: str,
    *,
    explainer: str = "rules",
    llm: str | None = None,
    endpoint: str | None = None,
    scorers: Sequence[str] = (),
    latents: Sequence[int] = (),
    sample: int = 100,
    examples: int = 20,
    per_minute: float = 60.0,
    key_env: str = "OPENAI_API_KEY",
    seed: int = 0,
    store: str | None = None,
    model: str | None = None,
    hook: str | None = None,
    replace: bool = False,
    run: Run | None = None,
) -> Item:
    """Score the labels of a dictionary's latents side by side, on text they were not made from: detection, detection
    among near misses, fuzzing, shared words, simulation (Paulo et al. 2024, arXiv 2410.13928; Bills et al. 2023).

    Args:
        explainer: whose labels: ``rules``, or the model that :func:`explain` asked. llm: who judges, at ``endpoint`` or
            on this machine; None: the rule itself, where labels are rules. scorers: names of
            :data:`workbench.results.scores.SCORERS`; empty = all. latents: empty = a random ``sample`` of the labelled.
            examples: excerpts on which a latent fires, and as many silent ones.

    Raises:
        MissingError: no labels by ``explainer``. MismatchError: scores are there with another recipe or other inputs,
            and not ``replace``. UsageError: see :mod:`workbench.analysis.explain.scorers.run`.

    Examples:
        >>> score("workspace", "mini-pythia.L1R-8x").manifest.numbers["fuzzing"]
    """
    from workbench.analysis.explain.endpoint import Endpoint, EndpointConfig, local_model
    from workbench.analysis.explain.scorers.run import score_explanations
    from workbench.dictionaries.reference import find_dictionary

    workspace, run = opened(workspace, run, replace_results=replace)
    reference = find_dictionary(
        workspace, dictionary, store=store, model_name=_id(workspace, model, run), hook_name=hook
    )
    if endpoint and llm is None:
        raise UsageError("--endpoint goes with --llm, the name of the model that judges.")
    judge: Completer | None = None
    if llm and endpoint:
        judge = Endpoint(EndpointConfig(base_url=endpoint, model=llm, key_env=key_env, requests_per_minute=per_minute))
    elif llm:
        judge = local_model(llm)
    return score_explanations(
        workspace,
        reference,
        explainer,
        judge,
        scorers=scorers,
        latents=latents,
        sample=sample,
        examples=examples,
        seed=seed,
        run=run,
    )


@recorded("map")
def map(
    workspace: Workspace | str | Path,
    dictionaries: str | Sequence[str],
    *,
    layout: bool = True,
    seed: int = 0,
    replace: bool = False,
    run: Run | None = None,
) -> Item:
    """Nearest neighbours of decoder directions against measured chance, feature-splitting families between widths,
    and a UMAP for the browser.

    Args:
        dictionaries: one, or several of one space. layout: compute the UMAP, too.

    Raises:
        MismatchError: one is there with another recipe or other inputs, and not ``replace``.
        UsageError: dictionaries of different widths or models.

    Examples:
        >>> families = map("workspace", ["mini-pythia.L1R-8x", "mini-pythia.L1R-32x"], layout=False)
    """
    from workbench.analysis.latents.geometry_run import make_map
    from workbench.dictionaries.reference import find_dictionary

    workspace, run = opened(workspace, run, replace_results=replace)
    ids = [dictionaries] if isinstance(dictionaries, str) else dictionaries
    if layout:
        run.say("neighbours, chance and layout (the layout takes most of the time, more so the first time) …")
    return make_map(workspace, [find_dictionary(workspace, d) for d in ids], layout=layout, seed=seed, run=run)


def steer(
    workspace: Workspace | str | Path,
    dictionary: str,
    *,
    prompt: str,
    add: Sequence[str] = (),
    set: Sequence[str] = (),
    tokens: int = 40,
    temperature: float = 0.0,
    samples: int = 1,
    seed: int = 0,
    dose: Sequence[str | float] = (),
    target: str = "",
    texts: int = 0,
    keep: bool = False,
    run: Run | None = None,
) -> SteeredText:
    """Continue a text with latents of a dictionary pushed or held, beside the model as it is. Nothing is written but
    with ``keep``.

    Args:
        add: ``LATENT=AMOUNT``, added at every position. set: ``LATENT=VALUE``, put in its place (0: ablated). tokens:
            how many are made. temperature: 0 takes the likeliest. samples: continuations of each kind, with seeds
            ``seed``, ``seed + 1``, … dose: amounts of all latents of ``add``, for which KL, a token's logit and the
            perplexity of the continuation under the unchanged model are measured. target: that token; empty: the one
            that the largest amount raises most. texts: measure doses after so many held-out texts of the dictionary's
            store instead of after the prompt, as means with 95 % intervals. keep: write the doses to ``doses/`` of the
            workspace, for the page *Text probe* and the figure ``dose_response``.

    Raises:
        MissingError: no such dictionary. UsageError: a bad change, an unknown latent, a dictionary of several hooks, a
            target that is not one token, or more tokens than the model has positions for.

    Examples:
        >>> steer("workspace", "mini-pythia.L1R-8x", prompt="def f(", add=["17=6"]).steered[0].ids
    """
    from workbench.analysis.evaluation.steer_text import steer_text

    workspace, run = opened(workspace, run)
    return steer_text(
        workspace,
        dictionary,
        prompt,
        add=add,
        sets=set,
        tokens=tokens,
        temperature=temperature,
        samples=samples,
        seed=seed,
        dose=dose,
        target=target,
        texts=texts,
        keep=keep,
        run=run,
    )
