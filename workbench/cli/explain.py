"""``workbench explain``: labels for latents, by rule or by a language model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from workbench.cli.common import DEFAULT_WORKSPACE, DebugOption, JsonOption, WorkspaceOption, progress, say, verb


@verb
def explain(
    dictionary: Annotated[str, typer.Argument(help="Id of a dictionary of the workspace, or the path of a saved one.")],
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    endpoint: Annotated[
        str | None,
        typer.Option(help="Base address of an OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1."),
    ] = None,
    llm: Annotated[
        str | None, typer.Option(help="Model to ask: its name at the endpoint; without an endpoint, a local model.")
    ] = None,
    latents: Annotated[
        str, typer.Option(help="Latents to ask about, such as 3,17,40 (default: a random sample).")
    ] = "",
    sample: Annotated[int, typer.Option(help="Size of the random sample.", min=1)] = 100,
    tokens: Annotated[int, typer.Option(help="Rows of the store to use; 0 = all.", min=0)] = 100_000,
    corpus: Annotated[
        str | None,
        typer.Option(help="Run the model on text instead of reading a store: a file or folder, mini, or prose."),
    ] = None,
    ctx: Annotated[int, typer.Option(help="Tokens per sequence with --corpus.", min=3)] = 128,
    min_f1: Annotated[float, typer.Option(help="A rule below this F1 is no label.", min=0, max=1)] = 0.5,
    estimate: Annotated[bool, typer.Option("--estimate", help="Only say what asking would cost.")] = False,
    max_usd: Annotated[float | None, typer.Option(help="Refuse to start where the estimate is above this.")] = None,
    price_in: Annotated[float | None, typer.Option(help="USD per million tokens asked.")] = None,
    price_out: Annotated[float | None, typer.Option(help="USD per million tokens answered.")] = None,
    per_minute: Annotated[float, typer.Option(help="Requests per minute.", min=0.01)] = 60.0,
    key_env: Annotated[str, typer.Option(help="Environment variable that holds the key.")] = "OPENAI_API_KEY",
    seed: Annotated[int, typer.Option(help="Seed of the sample and of the excerpts.")] = 0,
    store: Annotated[str | None, typer.Option(help="Store to read instead of the one the dictionary names.")] = None,
    model: Annotated[str | None, typer.Option(help="Model, where the dictionary does not name it.")] = None,
    hook: Annotated[str | None, typer.Option(help="Hook name, where the dictionary does not name it.")] = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Label latents. Without --llm: by rule, with precision and recall. With it: by a language model, scored by
    detection on held-out text.

    The cost is said before anything is asked; --estimate stops there. Answers are kept as they come, so an interrupted
    run goes on.

    Example: `workbench explain mini-pythia.L1R-8x`, or
    `workbench explain mini-pythia.L1R-8x --llm NAME --endpoint http://127.0.0.1:8000/v1 --sample 20 --estimate`
    """
    from dataclasses import asdict

    from sae.errors import UsageError
    from workbench.analysis.explain import run
    from workbench.analysis.explain.endpoint import Endpoint, EndpointConfig, local_model
    from workbench.analysis.latents.live import corpus_name
    from workbench.dictionaries.reference import find_dictionary
    from workbench.workspace import Workspace

    ws = Workspace(workspace)
    planned = find_dictionary(ws, dictionary, store=store, model_name=model, hook_name=hook)
    command = f"workbench explain {dictionary} --tokens {tokens}" + (
        f" --corpus {corpus} --ctx {ctx}" if corpus else ""
    )
    command += "".join(
        f" --{name} {value}" for name, value in (("store", store), ("model", model), ("hook", hook)) if value
    )
    if llm is None:
        if endpoint or estimate or latents:
            raise UsageError(
                "--endpoint, --estimate and --latents go with --llm, the name of the model to ask. Rules label all"
                " latents."
            )
        item = run.explain_by_rule(
            ws,
            planned,
            n_tokens=tokens or None,
            min_f1=min_f1,
            corpus=corpus,
            ctx=ctx,
            command=f"{command} --min-f1 {min_f1}",
        )
        n = item.manifest.numbers
        say(
            f"{item.path}: {n['n_labelled']:,} of {n['n_latents']:,} latents have a rule with F1 ≥ {min_f1} on"
            f" {n['n_tokens']:,} tokens"
        )
        return {"id": item.id, "path": str(item.path), "version": item.version, "numbers": n}

    config = EndpointConfig(
        base_url=endpoint or "local",
        model=llm,
        key_env=key_env,
        requests_per_minute=per_minute,
        usd_per_million_in=price_in,
        usd_per_million_out=price_out,
    )
    completer = Endpoint(config) if endpoint else None
    wanted = _numbers(latents)
    have = run.encode_subject(ws, planned, n_tokens=tokens or None, corpus=corpus, ctx=ctx)
    chosen = run.choose_latents(have.codes, wanted, sample, seed)
    materials = run.materials_of(have, chosen, seed=seed)
    if not materials:
        raise UsageError(
            f"none of the {len(chosen)} latents fires often enough in both halves of the text; use more --tokens or"
            " other --latents."
        )
    cost = run.cost_of(materials, config)
    usd = "price unknown (give --price-in and --price-out)" if cost.usd is None else f"at most {cost.usd:.2f} USD"
    say(
        f"{len(materials)} latents: {cost.requests} requests, about {cost.tokens_in:,} tokens asked and at most"
        f" {cost.tokens_out:,} answered; {usd}"
    )
    if estimate:
        return {"latents": len(materials), **asdict(cost)}
    if max_usd is not None and (cost.usd is None or cost.usd > max_usd):
        raise UsageError(
            f"the estimate ({usd}) is not known to stay within --max-usd {max_usd}. Use fewer latents, or give the"
            " prices."
        )
    recipe = {
        "n_tokens": tokens or None,
        "latents": [m.latent for m in materials],
        "seed": seed,
        "model": llm,
        "corpus": corpus_name(corpus) if corpus else None,
    }
    item = run.explain_by_model(
        ws,
        planned,
        have.codes,
        materials,
        completer or local_model(llm),
        recipe=recipe,
        command=f"{command} --llm {llm} --sample {sample} --seed {seed}" + (f" --latents {latents}" if latents else ""),
        seed=seed,
        progress=lambda items: progress(items, label=f"asking {llm}", unit="latent"),
    )
    n = item.manifest.numbers
    score = "not computed" if n["mean_score"] is None else f"{n['mean_score']:.3f}"
    say(
        f"{item.path}: {n['n_labelled']} labels, {n['n_refused']} refused; mean detection score {score} (n ="
        f" {n['n_scored']}, chance 0.5)"
    )
    return {"id": item.id, "path": str(item.path), "version": item.version, "numbers": n, "estimate": asdict(cost)}


def _numbers(text: str) -> list[int] | None:
    from sae.errors import UsageError

    if not text.strip():
        return None
    try:
        return [int(x) for x in text.replace(" ", "").split(",")]
    except ValueError as e:
        raise UsageError(f"--latents {text!r} is not a list of numbers such as 3,17,40.") from e
