"""``workbench compare``: match the latents of two dictionaries or models, with baselines."""

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
def compare(
    a: Annotated[str, typer.Argument(help="A dictionary, or a model: all its residual dictionaries.")],
    b: Annotated[str, typer.Argument(help="The other one.")],
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    tokens: Annotated[int, typer.Option(help="Tokens to compare on, held-out ones first.", min=100)] = 100_000,
    min_firings: Annotated[int, typer.Option(help="Latents that fire less take no part.", min=1)] = 30,
    baselines: Annotated[
        str,
        typer.Option(
            help=(
                "Baselines to compute: 'all', 'none', or some of random, random partner, shuffle, shift, neurons,"
                " untrained, even, model seed, sae seed, token-conditional, separated by commas."
            )
        ),
    ] = "all",
    pattern: Annotated[
        str, typer.Option(help="Part of the ids to choose by, where a model has several dictionaries per layer.")
    ] = "",
    store: Annotated[
        str | None, typer.Option(help="Store whose tokens to compare on, where A does not name one of this workspace.")
    ] = None,
    codes: Annotated[
        bool,
        typer.Option(
            help="Keep which latent was how strong on which token, so that any pair can be seen side by side."
        ),
    ] = True,
    seed: Annotated[int, typer.Option(help="Seed of permutations, random encoders and bootstraps.")] = 0,
    replace: ReplaceOption = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Match the latents of two dictionaries or models on the same tokens (MPPC), beside every available baseline.

    Each latent gets its best partner on the other side by Pearson correlation (r). That maximum is large by chance, and
    both sides read the same text, so r stands beside baselines: random encoders and partners, shuffled or shifted
    tokens, neurons, untrained models, other seeds, and what is left given the token. A baseline that lacks what it
    needs is left out, and the summary says what was missing.

    Example: `workbench compare mini-pythia mini-mamba`, or `workbench compare mini-pythia.L1R-8x mini-mamba.L2R-8x
    --baselines shuffle`
    """
    from workbench.verbs.analysing import compare as run

    item = run(
        workspace,
        (a, b),
        tokens=tokens,
        min_firings=min_firings,
        baselines=baselines,
        pattern=pattern,
        store=store,
        codes=codes,
        seed=seed,
        replace=replace,
        run=terminal_run(),
    )
    numbers, about = item.manifest.numbers, item.manifest.metadata
    for d, (x, y) in (("ab", ("a", "b")), ("ba", ("b", "a"))):
        n = numbers[d]
        cross = n["series"]["cross"]
        say(
            f"{about[x]['name']} → {about[y]['name']}: {n['n']:,} latents, mean r {_shown(cross['mean'])},"
            f" {n['matched']:,} matched, {n['mutual']:,} mutual"
        )
        for name, s in n["series"].items():
            say(
                f"  {name:32} mean {_shown(s['mean'])} [{_shown(s['low'])}, {_shown(s['high'])}]  r ≥ .5:"
                f" {_shown(s['share_50'])}  (n {s['n']:,})"
            )
        for how in ("raw", "token-conditional"):
            order = [o for o in n["order"] if o["reading"] == how]
            broken = [f"{o['lower']} < {o['higher']}" for o in order if not o["holds"]]
            say(
                f"  order, {how}:"
                f" {'does not hold at ' + ', '.join(broken) if broken else 'holds' if order else 'not computed'}"
            )
    if spans := about.get("spans"):
        say(
            f"  the tokenizers differ: compared on {spans['matched']:,} tokens that end at the same character, of"
            f" {spans['of_a']:,} and {spans['of_b']:,}"
        )
    for name, why in about["missing"].items():
        say(f"  {name} not computed: {why}")
    say(f"{item.path} (version {item.version})")
    return result_of(item) | {"numbers": numbers, "metadata": about}


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
