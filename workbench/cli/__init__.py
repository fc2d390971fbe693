"""The command line: one file per verb.

Verb files import heavy libraries inside their functions, so ``--help`` is quick.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from workbench.cli.common import print_document
from workbench.markup.glossary import used_in

# verb -> (one line for --help, panel). The function is workbench.cli.<module>.<verb>; `import` lives in import_.py.
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("Run the whole main job on the bundled models, then open the browser.", "Start here"),
    "ui": ("Browse a workspace in the browser.", "Start here"),
    "serve": ("Answer an agent's questions about a workspace (Model Context Protocol).", "Start here"),
    "info": ("Say what a workspace holds, with its numbers.", "Start here"),
    "docs": ("Show the documentation in the browser, offline.", "Start here"),
    "pretrain": ("Train a miniature language model, with snapshots.", "Make"),
    "harvest": ("Write a model's activations into an HDF5 store.", "Make"),
    "train": ("Train SAEs and transcoders on a store.", "Make"),
    "features": ("Compute a dictionary's latent records for the browser.", "Make"),
    "import": ("Bring a dictionary of another library into the workspace.", "Make"),
    "verify": ("Does a dictionary behave as its configuration says? If not, why?", "Analyse"),
    "evaluate": ("Measure a dictionary: L0, explained variance, loss recovered, …", "Analyse"),
    "compare": ("Match the latents of two dictionaries or models (MPPC), with baselines.", "Analyse"),
    "transplant": ("Put what a latent's partner writes in its place: does it do the work?", "Analyse"),
    "substitute": ("Put an atom in the place of a recurrent layer's own write: does it do the work?", "Analyse"),
    "circuits": ("Path patching, induction and the off-by-one motif in both architectures.", "Analyse"),
    "states": ("What each layer keeps of each token, how long, and who reads it.", "Analyse"),
    "evolve": ("Follow latents over pre-training snapshots with a crosscoder.", "Analyse"),
    "explain": ("Label latents by rule or with a language model, with scores.", "Analyse"),
    "score": ("Score labels side by side: detection, near misses, fuzzing, simulation.", "Analyse"),
    "trust": ("Is this latent real? A card of evidence for each, beside chance.", "Analyse"),
    "graph": ("Attribution graph of a prompt through dictionaries.", "Analyse"),
    "steer": ("Continue a text with latents pushed or held, and measure the dose.", "Analyse"),
    "map": ("Geometry of decoder directions: neighbours, families, UMAP.", "Analyse"),
    "reproduce": ("Re-run the findings of the three papers and print verdicts.", "Publish"),
    "export": ("Write a figure as a bundle for a paper.", "Publish"),
    "benchmark": ("Score every kind of dictionary on worlds whose features are known.", "Publish"),
    "models": ("List a workspace's models, or say where one lies on this machine.", "Care"),
    "refresh": ("Make again what rests on inputs that were made again.", "Care"),
    "check": ("Verify an activation store, and say what to re-make.", "Care"),
    "plan": ("Say what a recipe costs before it runs.", "Care"),
    "bench": ("Time a training step on a device, and compare it with the CPU's.", "Care"),
    "text": ("Show what a recipe's text becomes: tokens, lengths, copies, windows.", "Care"),
}


def _module(verb: str) -> str:
    return "workbench.cli.import_" if verb == "import" else f"workbench.cli.{verb}"


def available() -> list[str]:
    """Verbs whose module is present, in the order of the table of contents."""
    return [v for v in VERBS if importlib.util.find_spec(_module(v)) is not None]


KNOWN = frozenset(
    {"token", "workspace", "loss", "activation", "label", "null", "chance"}
)  # every reader's, or said by their own option


def words_of(command: TyperCommand) -> list[tuple[str, str]]:
    """Words of the glossary that the help of a verb uses, with their lines."""
    said = [command.help or "", *(getattr(p, "help", None) or "" for p in command.params)]
    return [(word, line) for word, line in used_in(" ".join(" ".join(said).split())) if word not in KNOWN]


class _Verb(TyperCommand):
    """A verb whose help ends with what its words mean, as the pages and the documentation say it."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Add the words, then print all of it."""
        told = [f"**{word}**: {line}" for word, line in words_of(self)]
        more = f"More on each: `workbench docs {ctx.info_name}`, `workbench docs WORD`."
        self.epilog = "\n\n".join([*told, more])
        super().format_help(ctx, formatter)


_Misuse: Any = typer.BadParameter.__bases__[0]  # click's UsageError: of the click that this typer carries or imports


@contextmanager
def _misuse_documented(asked: bool) -> Iterator[None]:
    """Print what typer itself refuses (an option, an argument, a verb) as a document where ``--json`` asked for one;
    the lines for a person are still its own. Errors of a verb's work are documented in workbench.cli.common.verb.
    """
    try:
        yield
    except _Misuse as e:
        if asked:
            print_document({"error": " ".join(e.format_message().split()), "exit_code": e.exit_code})
        raise


class _Program(TyperGroup):
    """All verbs. Misuse is found before a verb's options are known, so ``--json`` is looked for among the words."""

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Parse the words before the verb."""
        asked = "--json" in args[: args.index("--") if "--" in args else None]
        with _misuse_documented(asked):
            context = super().make_context(info_name, args, parent, **extra)
        context.meta["workbench.json"] = asked
        return context

    def invoke(self, ctx: Any) -> Any:
        """Parse the rest, and run the verb."""
        with _misuse_documented(bool(ctx.meta.get("workbench.json"))):
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Program,
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
for _name in available():
    _function = getattr(importlib.import_module(_module(_name)), "import_" if _name == "import" else _name)
    app.command(_name, cls=_Verb, short_help=VERBS[_name][0], rich_help_panel=VERBS[_name][1])(_function)


def _version(asked: bool) -> None:
    """Print the version where it is asked for, and end."""
    if asked:
        from workbench.version import __version__

        print(f"workbench {__version__}")
        raise typer.Exit


@app.callback(
    invoke_without_command=False,
    help=(
        "**Interpretability Workbench**: latents of Transformers and Mambas across layers, architectures and"
        " training.\n\nNew here? `workbench demo`, then `workbench VERB --help`."
    ),
)
def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
) -> None:
    """Root of all verbs."""


def main() -> None:
    """Entry point of the ``workbench`` console script and of ``python -m workbench``."""
    app(prog_name="workbench")
