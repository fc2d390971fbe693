"""Asking a language model for labels: what is asked and what it may cost, settled before the first request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sae.errors import UsageError
from workbench.analysis.explain.endpoint import Cost, Endpoint, EndpointConfig, local_model
from workbench.analysis.explain.language_model import Material
from workbench.analysis.explain.run import (
    choose_latents,
    cost_of,
    encode_subject,
    explain_by_model,
    materials_of,
)
from workbench.analysis.latents.encoded import Codes
from workbench.config import corpus_name
from workbench.dictionaries.reference import DictionaryRef
from workbench.run import Run
from workbench.workspace import Item, Workspace


@dataclass(frozen=True)
class Asking:
    """What to ask which model; see :func:`workbench.explain`."""

    llm: str
    endpoint: str | None
    latents: tuple[int, ...] = ()
    sample: int = 100
    tokens: int = 100_000
    corpus: str | None = None
    ctx: int = 128
    seed: int = 0
    price_in: float | None = None
    price_out: float | None = None
    per_minute: float = 60.0
    key_env: str = "OPENAI_API_KEY"

    @property
    def config(self) -> EndpointConfig:
        """The endpoint and its prices."""
        return EndpointConfig(
            base_url=self.endpoint or "local",
            model=self.llm,
            key_env=self.key_env,
            requests_per_minute=self.per_minute,
            usd_per_million_in=self.price_in,
            usd_per_million_out=self.price_out,
        )


@dataclass(frozen=True)
class Questions:
    """The material of every latent that fires often enough, and what asking about them costs at most."""

    codes: Codes
    materials: list[Material]
    cost: Cost

    def __str__(self) -> str:
        return (
            f"{len(self.materials)} latents: {self.cost.requests} requests, about {self.cost.tokens_in:,} tokens asked"
            f" and at most {self.cost.tokens_out:,} answered; {self.price}"
        )

    @property
    def price(self) -> str:
        """The cost in words."""
        usd = self.cost.usd
        return "price unknown (give --price-in and --price-out)" if usd is None else f"at most {usd:.2f} USD"


def prepare(workspace: Workspace, reference: DictionaryRef, asking: Asking) -> Questions:
    """Collect what would be asked; nothing is sent.

    Raises:
        UsageError: no chosen latent fires often enough.
    """
    config = asking.config
    if asking.endpoint:
        Endpoint(config)  # a bad address is said before the text is encoded
    have = encode_subject(workspace, reference, n_tokens=asking.tokens or None, corpus=asking.corpus, ctx=asking.ctx)
    chosen = choose_latents(have.codes, list(asking.latents) or None, asking.sample, asking.seed)
    materials = materials_of(have, chosen, seed=asking.seed)
    if not materials:
        raise UsageError(
            f"none of the {len(chosen)} latents fires often enough in both halves of the text; use more --tokens or"
            " other --latents."
        )
    return Questions(have.codes, materials, cost_of(materials, config))


def ask(workspace: Workspace, reference: DictionaryRef, asking: Asking, *, max_usd: float | None, run: Run) -> Item:
    """Ask about every latent, and keep labels and scores.

    Raises:
        UsageError: the cost is not known to stay within ``max_usd``; or see :func:`prepare`.
    """
    questions = prepare(workspace, reference, asking)
    run.say(str(questions))
    if max_usd is not None and (questions.cost.usd is None or questions.cost.usd > max_usd):
        raise UsageError(
            f"the estimate ({questions.price}) is not known to stay within --max-usd {max_usd}. Use fewer latents, or"
            " give the prices."
        )
    recipe = {
        "n_tokens": asking.tokens or None,
        "latents": [m.latent for m in questions.materials],
        "seed": asking.seed,
        "model": asking.llm,
        "corpus": corpus_name(asking.corpus) if asking.corpus else None,
        "ctx": asking.ctx if asking.corpus else None,
        "endpoint": asking.endpoint,
    }
    completer = Endpoint(asking.config) if asking.endpoint else local_model(asking.llm)
    return explain_by_model(
        workspace,
        reference,
        questions.codes,
        questions.materials,
        completer,
        recipe=recipe,
        corpus=asking.corpus,
        seed=asking.seed,
        run=run,
    )


def refuse_without_model(*, endpoint: str | None, latents: Sequence[int], estimate: bool = False) -> None:
    """Rules label all latents and ask nobody: options about asking do not go with them.

    Raises:
        UsageError: one was given.
    """
    if endpoint or estimate or latents:
        raise UsageError(
            "--endpoint, --estimate and --latents go with --llm, the name of the model to ask. Rules label all latents."
        )
