"""``workbench explain``: labels for latents, by rule or by a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.common import (
    DEFAULT_WORKSPACE,
    TEXTS,
    DebugOption,
    JsonOption,
    ReplaceOption,
    WorkspaceOption,
    result_of,
    say,
    terminal_run,
    verb,
)


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
        typer.Option(help=f"Run the model on text instead of reading a store: {TEXTS}"),
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
    replace: ReplaceOption = False,
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

    from workbench.verbs.measuring import explain as run

    chosen = numbers_of(latents)
    if estimate:
        from workbench.analysis.explain.asking import Asking, prepare, refuse_without_model
        from workbench.dictionaries.reference import find_dictionary
        from workbench.workspace import Workspace

        ws = Workspace(workspace)
        reference = find_dictionary(ws, dictionary, store=store, model_name=model, hook_name=hook)
        if llm is None:
            refuse_without_model(endpoint=endpoint, latents=chosen, estimate=True)
        assert llm is not None
        questions = prepare(
            ws,
            reference,
            Asking(
                llm,
                endpoint,
                tuple(chosen),
                sample,
                tokens,
                corpus,
                ctx,
                seed,
                price_in,
                price_out,
                per_minute,
                key_env,
            ),
        )
        say(str(questions))
        return {"latents": len(questions.materials), **asdict(questions.cost)}
    item = run(
        workspace,
        dictionary,
        llm=llm,
        endpoint=endpoint,
        latents=chosen,
        sample=sample,
        tokens=tokens,
        corpus=corpus,
        ctx=ctx,
        min_f1=min_f1,
        max_usd=max_usd,
        price_in=price_in,
        price_out=price_out,
        per_minute=per_minute,
        key_env=key_env,
        seed=seed,
        store=store,
        model=model,
        hook=hook,
        replace=replace,
        run=terminal_run(),
    )
    n = item.manifest.numbers
    if llm is None:
        say(
            f"{item.path}: {n['n_labelled']:,} of {n['n_latents']:,} latents have a rule with F1 ≥ {min_f1} on"
            f" {n['n_tokens']:,} tokens"
        )
    else:
        score = "not scored" if n["mean_score"] is None else f"mean detection score {n['mean_score']:.2f}"
        refused = f", {n['n_refused']} refused" if n["n_refused"] else ""
        say(f"{item.path}: {n['n_labelled']:,} of {n['n_latents']:,} latents labelled, {score}{refused}")
    for line in best_labels(item.path):
        say(line)
    return result_of(item) | {"numbers": n}


def best_labels(folder: Path, n: int = 5) -> list[str]:
    """One line for each of the ``n`` labels with the highest score, so that a user sees what kind of label was made."""
    import pandas as pd

    from workbench.markup.tokens import clip

    table = pd.read_parquet(folder / "labels.parquet", columns=["latent", "label", "label_score"])
    best = table.dropna(subset=["label", "label_score"]).nlargest(n, "label_score")
    return [f"  #{r.latent}  {clip(str(r.label), 80)}  {r.label_score:.2f}" for r in best.itertuples()]


def numbers_of(text: str) -> list[int]:
    """Numbers with commas between them.

    Raises:
        UsageError: something else.
    """
    from sae.errors import UsageError

    if not text.strip():
        return []
    try:
        return [int(x) for x in text.replace(" ", "").split(",")]
    except ValueError as e:
        raise UsageError(f"--latents {text!r} is not a list of numbers such as 3,17,40.") from e
