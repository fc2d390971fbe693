"""``workbench steer`` as a function: read what is asked for, continue the text with and without it, measure doses, and
keep them as ``doses/<id>/`` where that is asked for.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from sae.errors import UsageError
from sae.files import sha256_json, write_bytes
from workbench.analysis.evaluation.probe import encode_text, one_hook
from workbench.analysis.evaluation.steering import Change, Continuation, Dose, Steered, dose_response, over_texts
from workbench.corpus.shown import shown_token
from workbench.dictionaries.reference import DictionaryRef, find_dictionary
from workbench.models.weights import model_inputs
from workbench.results.reuse import reusable
from workbench.run import QUIET, Run
from workbench.workspace import Item, Workspace, check_id


@dataclass(frozen=True)
class SteeredText:
    """Continuations of one prompt, by seed, without and with the changes; doses of them."""

    plain: list[Continuation]
    steered: list[Continuation]
    changes: list[Change]
    doses: list[Dose] = field(default_factory=list)
    target: str = ""
    read_once: bool = True  # whether the model went on from a running state
    kept: Item | None = None  # the doses as a result of the workspace

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
                **{k: v for k, v in asdict(d).items() if k.endswith(("_low", "_high")) and v is not None},
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
    texts: int = 0,
    keep: bool = False,
    loaded: Loaded | None = None,
    run: Run = QUIET,
) -> SteeredText:
    """See :func:`workbench.steer`. ``loaded``: the dictionary and its model, where they are at hand."""
    changes = parse_changes(add, sets)
    pushed = [c.latent for c in changes if not c.replace]
    amounts = _amounts(dose)
    if amounts and not pushed:
        raise UsageError("--dose varies what --add pushes. Say which latents: --add LATENT=AMOUNT.")
    if texts and not amounts:
        raise UsageError("--texts says after how many texts --dose measures. Say which amounts: --dose 0,2,4,8.")
    if keep and not amounts:
        raise UsageError("--keep keeps what --dose measures. Say which amounts: --dose 0,2,4,8.")
    found = loaded or load(workspace, dictionary)
    model, at = found.model, {one_hook(found.reference): found.dictionary}
    ids, _, cut = encode_text(model, prompt)
    if cut:
        raise UsageError(f"the prompt has {ids.shape[1]} tokens, more than are read here. Shorten it.")
    if target and len(model.tokenizer(target, add_special_tokens=False)["input_ids"]) != 1:
        raise UsageError(
            f"--target {target!r} is not one token of this model. Give a word that is (often with its space, such as '"
            " dog')."
        )
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
    held = [c for c in changes if c.replace]
    if amounts:
        after = _heldout(workspace, found.reference, texts, seed) if texts else [ids]
        with run.bar("doses", len(amounts) * len(after), "amount") as bar:

            def measured(text: torch.Tensor, target: int | None, tokens: int) -> tuple[list[Dose], int]:
                return dose_response(
                    model,
                    at,
                    text,
                    pushed,
                    amounts,
                    target=target,
                    tokens=tokens,
                    seed=seed,
                    held=held,
                    step=bar.update,
                )

            if texts:  # the token is one for all of them: that which is raised most after the prompt
                if followed is None:
                    followed = dose_response(model, at, ids, pushed, amounts, target=None, seed=seed, held=held)[1]
                doses = over_texts([measured(text, followed, tokens)[0] for text in after], seed=seed)
            else:
                doses, followed = measured(ids, followed, tokens)
    made_all = SteeredText(
        plain,
        changed,
        changes,
        doses,
        "" if followed is None else shown_token(model.tokenizer, followed),
        bool(base.reads_once),
    )
    if not keep:
        return made_all
    recipe = {
        "prompt": prompt,
        "latents": pushed,
        "held": [[c.latent, c.amount] for c in held],
        "amounts": amounts,
        "target": target,
        "tokens": tokens,
        "texts": texts,
        "seed": seed,
    }
    return replace(made_all, kept=_keep(workspace, found.reference, made_all, recipe, run))


def _heldout(workspace: Workspace, reference: DictionaryRef, n: int, seed: int) -> list[torch.Tensor]:
    """The beginnings [1, S] of so many held-out sequences of the dictionary's store, each cut somewhere.

    Raises:
        MissingError: the store is not there. UsageError: it holds fewer.
    """
    store = reference.store(workspace)
    usable = np.setdiff1d(np.array(store.heldout, np.int64), np.array(store.skipped, np.int64))
    if n > len(usable):
        raise UsageError(f"--texts {n}: the store of {reference.id} has {len(usable)} held-out sequences.")
    rng = np.random.default_rng([seed, 13])
    made = []
    for seq in np.sort(rng.choice(usable, n, replace=False)):
        ids = torch.as_tensor(store.sequence_tokens(int(seq)).astype(np.int64))[None]
        made.append(ids[:, : int(rng.integers(min(8, ids.shape[1]), min(64, ids.shape[1]) + 1))])
    return made


@dataclass(frozen=True)
class Loaded:
    """A dictionary with the model that it is read from."""

    reference: DictionaryRef
    dictionary: Any
    model: Any


def load(workspace: Workspace, dictionary: str) -> Loaded:
    """See :class:`Loaded`."""
    from workbench.models import load_model

    reference = find_dictionary(workspace, dictionary)
    return Loaded(reference, reference.load(), load_model(reference.model_name, reference.revision))


def _keep(workspace: Workspace, reference: DictionaryRef, made: SteeredText, recipe: dict[str, Any], run: Run) -> Item:
    """The doses as a result; one that is there with the same recipe and inputs is kept."""
    inputs = [reference.input, *model_inputs([(reference.model_name, reference.revision)])]
    slug = re.sub(r"[^a-z0-9]+", "-", str(recipe["prompt"]).lower()).strip("-")[:24] or "prompt"
    id = check_id(f"{reference.id}.{slug}.{sha256_json([recipe, [i.digest for i in inputs]])[:8]}")
    old = reusable(workspace, "doses", id, recipe=recipe, inputs=inputs, run=run)
    if old is not None:
        return old
    about = {
        "dictionary": reference.id,
        "model": reference.model_name,
        "revision": reference.revision,
        "latents": recipe["latents"],
        "held": recipe["held"],
        "prompt": recipe["prompt"],
        "target": made.target,
        "tokens": recipe["tokens"],
        "texts": recipe["texts"],
    }
    numbers = {"amounts": len(made.doses), "largest_kl": max(d.kl for d in made.doses)}
    table = pd.DataFrame([asdict(d) for d in made.doses]).astype(float)
    table = table[[c for c in table if not c.endswith(("_low", "_high")) or table[c].notna().any()]]
    with workspace.create(
        "doses",
        id,
        replace=True,
        command=_command(reference, recipe),
        recipe=recipe,
        inputs=inputs,
        numbers=numbers,
        metadata=about,
    ) as folder:
        table.to_parquet(folder / "doses.parquet", index=False)
        lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in made.rows())
        write_bytes(folder / "steered.jsonl", lines.encode())
    return workspace.get("doses", id)


def _amounts(dose: Sequence[str | float]) -> list[float]:
    try:
        found = [float(x) for x in dose]
    except ValueError:
        found = [math.nan]
    if not all(math.isfinite(x) for x in found):
        raise UsageError(f"--dose {','.join(str(x) for x in dose)!r}: numbers with commas between them, such as 0,2,4.")
    return list(dict.fromkeys(found))


def _command(reference: DictionaryRef, recipe: dict[str, Any]) -> str:
    """The command that measures the same doses."""
    words = ["workbench", "steer", reference.id]
    for latent in recipe["latents"]:
        words += ["--add", f"{latent}=1"]
    for latent, value in recipe["held"]:
        words += ["--set", f"{latent}={value:g}"]
    words += ["--dose", ",".join(f"{a:g}" for a in recipe["amounts"]), "--tokens", str(recipe["tokens"])]
    words += ["--target", recipe["target"]] if recipe["target"] else []
    words += ["--texts", str(recipe["texts"])] if recipe["texts"] else []
    words += ["--seed", str(recipe["seed"])] if recipe["seed"] else []
    return shlex.join([*words, "--keep", "--", recipe["prompt"]])
