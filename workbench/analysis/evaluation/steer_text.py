"""``workbench steer`` as a function: read what is asked for, continue the text with and without it, measure doses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sae.errors import UsageError
from workbench.analysis.evaluation.probe import encode_text, one_hook
from workbench.analysis.evaluation.steering import Change, Continuation, Dose, Steered, dose_response
from workbench.corpus.shown import shown_token
from workbench.dictionaries.reference import find_dictionary
from workbench.run import QUIET, Run
from workbench.workspace import Workspace


@dataclass(frozen=True)
class SteeredText:
    """Continuations of one prompt, by seed, without and with the changes; doses of them."""

    plain: list[Continuation]
    steered: list[Continuation]
    changes: list[Change]
    doses: list[Dose] = field(default_factory=list)
    target: str = ""
    read_once: bool = True  # whether the model went on from a running state

    def rows(self) -> list[dict[str, Any]]:
        """One plain record for each continuation and dose."""
        made = [(False, c) for c in self.plain] + [(True, c) for c in self.steered]
        out: list[dict[str, Any]] = [
            {
                "kind": "continuation",
                "steered": steered,
                "seed": c.seed,
                "text": c.text,
                "ids": c.ids,
                "perplexity": c.perplexity,
            }
            for steered, c in made
        ]
        return out + [
            {
                "kind": "dose",
                "amount": d.amount,
                "kl": d.kl,
                "target": self.target,
                "logit": d.logit,
                "probability": d.probability,
                "perplexity": d.perplexity,
            }
            for d in self.doses
        ]


def parse_changes(add: Sequence[str], sets: Sequence[str]) -> list[Change]:
    """``LATENT=AMOUNT`` texts as changes.

    Raises:
        UsageError: not of this form, or a latent that is changed twice.
    """
    found: dict[int, Change] = {}
    for option, texts in (("add", add), ("set", sets)):
        for text in texts:
            latent, sign, amount = text.partition("=")
            try:
                change = Change(int(latent), float(amount), option == "set")
            except ValueError:
                change = None
            if change is None or not sign or not math.isfinite(change.amount):
                raise UsageError(f"--{option} {text!r}: say LATENT=NUMBER, such as --{option} 17=4.")
            if change.latent in found:
                raise UsageError(f"latent {change.latent} is changed twice. Say one value.")
            found[change.latent] = change
    return list(found.values())


def steer_text(
    workspace: Workspace,
    dictionary: str,
    prompt: str,
    *,
    add: Sequence[str] = (),
    sets: Sequence[str] = (),
    tokens: int = 40,
    temperature: float = 0.0,
    samples: int = 1,
    seed: int = 0,
    dose: Sequence[str | float] = (),
    target: str = "",
    run: Run = QUIET,
) -> SteeredText:
    """See :func:`workbench.steer`."""
    from workbench.models import load_model

    changes = parse_changes(add, sets)
    pushed = [c.latent for c in changes if not c.replace]
    amounts = _amounts(dose)
    if amounts and not pushed:
        raise UsageError("--dose varies what --add pushes. Say which latents: --add LATENT=AMOUNT.")
    reference = find_dictionary(workspace, dictionary)
    hook = one_hook(reference)
    at, model = {hook: reference.load()}, load_model(reference.model_name, reference.revision)
    ids, _, cut = encode_text(model, prompt)
    if cut:
        raise UsageError(f"the prompt is longer than a text is read ({ids.shape[1]} tokens). Shorten it.")
    if target and len(model.tokenizer(target, add_special_tokens=False)["input_ids"]) != 1:
        raise UsageError(f"--target {target!r} is not one token of this model.")
    followed = model.tokenizer(target, add_special_tokens=False)["input_ids"][0] if target else None
    base, steered = Steered(model, at, ids), Steered(model, at, ids, changes)
    seeds = range(seed, seed + samples)
    with run.bar("continuations", len(seeds) * (1 + bool(changes)), "text") as bar:

        def made(of: Steered) -> list[Continuation]:
            out = []
            for one in seeds:
                out.append(of.continuation(tokens, temperature=temperature, seed=one))
                bar.update()
            return out

        plain, changed = made(base), made(steered) if changes else []
    doses: list[Dose] = []
    if amounts:
        doses, followed = dose_response(model, at, ids, pushed, amounts, target=followed, tokens=tokens, seed=seed)
    return SteeredText(
        plain,
        changed,
        changes,
        doses,
        "" if followed is None else shown_token(model.tokenizer, followed),
        bool(base.reads_once),
    )


def _amounts(dose: Sequence[str | float]) -> list[float]:
    try:
        found = [float(x) for x in dose]
    except ValueError:
        found = [math.nan]
    if not all(math.isfinite(x) for x in found):
        raise UsageError(f"--dose {','.join(str(x) for x in dose)!r}: numbers with commas between them, such as 0,2,4.")
    return list(dict.fromkeys(found))
