"""``workbench steer``: a text continued with latents pushed or held."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.common import DEFAULT_WORKSPACE, DebugOption, JsonOption, WorkspaceOption, say, terminal_run, verb


@verb
def steer(
    dictionary: Annotated[str, typer.Argument(help="Id of a dictionary of the workspace, or the path of a saved one.")],
    prompt: Annotated[str, typer.Argument(help="The text that is continued.")],
    add: Annotated[
        list[str] | None,
        typer.Option(help="LATENT=AMOUNT, added to its activation at every position; may be repeated."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="LATENT=VALUE, put in its place at every position (0: ablated); may be repeated."),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens that are made.", min=1)] = 40,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token, 1 draws as the model says.", min=0)
    ] = 0,
    samples: Annotated[int, typer.Option(help="Continuations of each kind, with seeds one after another.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the first.")] = 0,
    dose: Annotated[
        str,
        typer.Option(
            help="Also amounts of --add's latents, such as 0,2,4,8: KL, the target's logit, perplexity of each."
        ),
    ] = "",
    target: Annotated[str, typer.Option(help="With --dose: the token whose logit is followed.")] = "",
    texts: Annotated[
        int,
        typer.Option(
            help="Measure --dose after so many held-out texts of the dictionary's store instead of after the prompt:"
            " means with 95 % intervals.",
            min=0,
        ),
    ] = 0,
    keep: Annotated[
        bool,
        typer.Option("--keep", help="Keep the doses in the workspace: a panel of the page Text probe, and a figure."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Also write every continuation and dose to this file, as JSON lines.")
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Continue a text with latents pushed or held, beside the model as it is: what the model then says, and what the
    unchanged model thinks of it (perplexity).

    The dictionary's reconstruction error is kept, so that only the latents asked for change. The prompt is read once,
    by Transformers and Mambas alike.

    Example: `workbench steer mini-pythia.L1R-8x "def __init__(self" --add 17=6 --dose 0,3,6,12 --out steered.jsonl`
    """
    import json

    from sae.files import disk_errors, write_bytes
    from workbench.verbs.measuring import steer as run

    found = run(
        workspace,
        dictionary,
        prompt=prompt,
        add=add or [],
        set=set_ or [],
        tokens=tokens,
        temperature=temperature,
        samples=samples,
        seed=seed,
        dose=[x for x in dose.split(",") if x.strip()],
        target=target,
        texts=texts,
        keep=keep,
        run=terminal_run(),
    )
    rows = found.rows()
    for row in rows:
        if row["kind"] == "continuation":
            how = "steered" if row["steered"] else "as it is"
            fit = "" if row["perplexity"] is None else f", perplexity {row['perplexity']:.3g}"
            say(f"{how} (seed {row['seed']}{fit}): {row['text']!r}")
    for row in rows:
        if row["kind"] == "dose":
            fit = "" if row["perplexity"] is None else f"  perplexity {row['perplexity']:9.3g}"
            say(
                f"{row['amount']:>+9.3g}  KL {row['kl']:8.4f}{_between(row)}  {row['target']!r}: logit"
                f" {row['logit']:+7.3f}, {row['probability']:7.2%}{fit}"
            )
    if out is not None:
        with disk_errors(str(out)):
            out.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(out, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode())
        say(f"{len(rows)} lines in {out}")
    if found.kept is not None:
        say(f"kept: {found.kept.path} (`workbench export dose-response --source doses/{found.kept.id}`)")
    about = {"dictionary": dictionary, "prompt": prompt, "read_once": found.read_once, "rows": rows}
    return about | ({} if found.kept is None else {"kept": found.kept.id, "path": str(found.kept.path)})


def _between(row: dict[str, Any]) -> str:
    """The interval of a mean over texts."""
    return "" if row.get("kl_low") is None else f" [{row['kl_low']:.4f}, {row['kl_high']:.4f}]"
