"""``workbench score``: scores of labels, side by side."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from workbench.cli.common import (
    DEFAULT_WORKSPACE,
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
def score(
    dictionary: Annotated[str, typer.Argument(help="Id of a dictionary of the workspace, or the path of a saved one.")],
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    explainer: Annotated[
        str, typer.Option(help="Whose labels: rules, or the model that `workbench explain --llm` asked.")
    ] = "rules",
    llm: Annotated[
        str | None,
        typer.Option(
            help="Model that judges: its name at the endpoint; without an endpoint, one on this machine. Without it the"
            " rule judges itself, where labels are rules."
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="Base address of an OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1."),
    ] = None,
    scorers: Annotated[
        str,
        typer.Option(
            help="Some of detection, hard_detection, fuzzing, fuzzing_active, similarity, simulation, with commas"
            " between them (default: all)."
        ),
    ] = "",
    latents: Annotated[
        str, typer.Option(help="Latents whose labels are scored, such as 3,17,40 (default: a random sample).")
    ] = "",
    sample: Annotated[int, typer.Option(help="Size of the random sample.", min=1)] = 100,
    examples: Annotated[
        int, typer.Option(help="Excerpts on which a latent fires, and as many silent ones.", min=4)
    ] = 20,
    per_minute: Annotated[float, typer.Option(help="Requests per minute.", min=0.01)] = 60.0,
    key_env: Annotated[str, typer.Option(help="Environment variable that holds the key.")] = "OPENAI_API_KEY",
    seed: Annotated[int, typer.Option(help="Seed of the sample, the excerpts and the wrong marks.")] = 0,
    store: Annotated[str | None, typer.Option(help="Store to read instead of the one the dictionary names.")] = None,
    model: Annotated[str | None, typer.Option(help="Model, where the dictionary does not name it.")] = None,
    hook: Annotated[str | None, typer.Option(help="Hook name, where the dictionary does not name it.")] = None,
    replace: ReplaceOption = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Does a label say where its latent fires? Several scorers side by side, each with its interval and chance, on text
    the label was not made from.

    A score speaks of the label and of the judge: a weak judge gives chance to every label. Answers of a model are kept
    as they come, so an interrupted run goes on.

    Example: `workbench score mini-pythia.L1R-8x`, or
    `workbench score mini-pythia.L1R-8x --llm NAME --endpoint http://127.0.0.1:8000/v1 --sample 20`
    """
    from workbench.cli.explain import numbers_of
    from workbench.results.scores import SCORERS, ScoreRecords
    from workbench.verbs.measuring import score as run

    item = run(
        workspace,
        dictionary,
        explainer=explainer,
        llm=llm,
        endpoint=endpoint,
        scorers=[s.strip() for s in scorers.split(",") if s.strip()],
        latents=numbers_of(latents),
        sample=sample,
        examples=examples,
        per_minute=per_minute,
        key_env=key_env,
        seed=seed,
        store=store,
        model=model,
        hook=hook,
        replace=replace,
        run=terminal_run(),
    )
    records = ScoreRecords.open(item.path)
    about = item.manifest.metadata
    say(f"{item.path}: labels of {about['explanation']}, judged by {about['judge']}")
    rows = records.summary.to_dict("records")
    for row in rows:
        known = SCORERS[row["scorer"]]
        ends = f" [{row['low']:.3f}, {row['high']:.3f}]" if row["low"] == row["low"] else ""
        value = "not measured" if row["mean"] != row["mean"] else f"{row['mean']:.3f}{ends}"
        unread = f", {row['unreadable']} excerpts without a readable answer" if row["unreadable"] else ""
        say(
            f"  {known.name:24} {value}  {known.unit}, chance {row['chance']:g}; {row['n']} latents,"
            f" {row['excerpts']:,} excerpts{unread}"
        )
    return result_of(item) | {"numbers": item.manifest.numbers, "summary": [_plain(r) for r in rows]}


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and v != v else v for k, v in row.items()}
