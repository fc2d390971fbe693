"""Is a dictionary what its configuration says? Measured on a few thousand tokens, beside what its folder claims.

A dictionary that is read at the wrong place, in the wrong units or on other text than it was made for still returns
numbers; only they are poor. So the numbers under the configuration are held against the folder's claims, and against
the same numbers under each usual mistake (:mod:`workbench.analysis.evaluation.mistakes`). A mistake is named only where
its opposite was tried and repairs the numbers; where none does, the cause is not established, and that is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sae.errors import CorruptError, UsageError
from workbench.analysis.evaluation.mistakes import (
    BETTER,
    EARLY,
    NOT_FOLDED,
    ConfiguredDictionary,
    Rows,
    Trial,
    all_trials,
    as_configured,
    coded,
)
from workbench.models.reading import token_contract
from workbench.run import QUIET, Run

if TYPE_CHECKING:
    from workbench.dictionaries.reference import DictionaryRef
    from workbench.workspace import Workspace

FLOOR = 0.5  # an EV below it is weak: another setting may then have a larger L0, and must itself reach it
POOR = 0.3  # an EV that no dictionary in use is below
UNITS = ("scale", "factor")
NEAR = 1.1  # times what the best setting leaves unexplained: others below it fit as well


@dataclass(frozen=True)
class Check:
    """One number beside what is expected of it. ``source`` says who expects it."""

    name: str
    measured: float
    low: float | None
    high: float | None
    source: str

    @property
    def ok(self) -> bool:
        """Within what is expected."""
        return (self.low is None or self.measured >= self.low) and (self.high is None or self.measured <= self.high)

    def __str__(self) -> str:
        low, high = (None if v is None else f"{v:.4g}" for v in (self.low, self.high))
        span = f"{low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}"
        return f"{self.name} is {self.measured:.4g}, expected {span} ({self.source})"


@dataclass(frozen=True)
class Verification:
    """What was measured, expected and tried. ``metrics``: name -> estimate with n; ``scales``: median lengths;
    ``cause``: the setting that repairs the numbers, ``also``: those of another kind that repair them as well.
    """

    dictionary: str
    setting: dict[str, Any]
    metrics: dict[str, Any]
    scales: dict[str, float]
    checks: tuple[Check, ...]
    trials: tuple[Trial, ...]
    cause: Trial | None
    also: tuple[Trial, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the numbers look like the dictionary that the configuration describes."""
        return self.cause is None and all(c.ok for c in self.checks)

    @property
    def verdict(self) -> str:
        """One sentence for a person; where they do not fit, what repairs them, with the numbers before and after."""
        if self.fits:
            return "these numbers look like the dictionary the configuration describes"
        says = "these numbers do not look like the dictionary the configuration describes"
        if self.cause is None:
            return f"{says}; cause not established: none of the {len(self.trials) - 1} other settings repairs them"
        c, base = self.cause, self.trials[0]
        l0 = "" if c.kind == "BOS" else f", L0 {base.l0:.1f} -> {c.l0:.1f}"
        others = "".join(f"; {t.setting} fits as well (EV {t.ev:.3f}): {t.cause}" for t in self.also)
        return f"{says}: {c.cause}. They fit {c.setting}: EV {c.before:.3f} -> {c.ev:.3f}{l0}{others}"

    @property
    def start(self) -> str | None:
        """What the first tokens say of the BOS token; None where the model has none, or all tokens are wrong for
        another reason.
        """
        t = next((t for t in self.trials if t.kind == "BOS"), None)
        if t is None or t.least is None or not (self.fits or self.cause is t):
            return None
        ends = f"{t.least:.2f} to {t.unexplained:.2f} times the unexplained variance with the other start, n = {t.n:,}"
        if t.unexplained <= BETTER["BOS"]:
            return f"the other start fits better ({ends})"
        if t.least >= 1 / BETTER["BOS"]:
            return f"the start that is configured fits better ({ends})"
        return f"these tokens do not tell whether it was trained with a BOS token ({ends})"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "dictionary": self.dictionary,
            "fits": self.fits,
            "verdict": self.verdict,
            "cause": None if self.cause is None else asdict(self.cause),
            "also": [asdict(t) for t in self.also],
            "start": self.start,
            "setting": self.setting,
            "metrics": self.metrics,
            "scales": self.scales,
            "checks": [asdict(c) | {"ok": c.ok} for c in self.checks],
            "trials": [asdict(t) for t in self.trials],
        }


@torch.inference_mode()
def verify(
    subject: ConfiguredDictionary,
    model: Any,
    tokens: np.ndarray,
    *,
    load: Callable[[str], Any] | None = None,
    run: Run = QUIET,
) -> Verification:
    """Measure a dictionary on ``tokens`` [n, ctx] that begin as its model's tokenizer begins them.

    Args:
        model: the loaded model. load: makes the model at another snapshot; None tries none.

    Raises:
        UsageError: sequences too short, a hook that the model does not have, or a width that is not the hook's.
    """
    from workbench.analysis.evaluation.evaluate import evaluate_in_model

    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or tokens.shape[1] < EARLY + 1:
        raise UsageError(
            f"verify needs sequences of at least {EARLY + 1} tokens; these have the shape {list(tokens.shape)}. Give a"
            " larger --ctx."
        )
    starts = token_contract(model).first is not None
    bos = starts if subject.bos is None else starts and subject.bos
    given = tokens if bos or not starts else tokens[:, 1:]
    result = evaluate_in_model(
        model,
        subject.dictionary,
        subject.hook,
        given,
        hook_out=subject.hook_out,
        is_row=subject.data_of(given),
        run=run,
    )
    metrics = {k: e.as_dict() for k, e in result.estimates.items()}
    rows = subject.rows(model, given)
    base = as_configured(subject, rows, bos)
    scales = _scales(subject.dictionary, rows)
    checks = [*_claims(subject, base.ev_all, float(metrics["l0"]["value"])), *_plain(subject, metrics, base)]
    checks += _ordering(scales)
    weak = base.ev < FLOOR or not all(c.ok for c in checks)
    others = all_trials(subject, model, tokens, bos, rows, base, load=load if weak else None, run=run)
    cause, also = _cause(subject, base, others, weak)
    trials = (base, *others)
    setting: dict[str, Any] = {"model": subject.model, "revision": subject.revision, "hook": subject.hook, "bos": bos}
    setting |= {"hook_out": subject.hook_out, "n_sequences": len(tokens), "ctx": int(given.shape[1])}
    return Verification(subject.id, setting, metrics, scales, tuple(checks), trials, cause, also)


# --- what is expected --------------------------------------------------------------------------------------------


def _claims(subject: ConfiguredDictionary, ev_all: float, l0: float) -> Iterator[Check]:
    """What the folder says of its own numbers."""
    claimed = subject.claimed
    if k := subject.claimed.get("k"):
        yield Check("L0", l0, k / 2, k * 1.001, f"k = {k}")
    if claimed.get("claimed_l0"):
        c = float(claimed["claimed_l0"])
        yield Check("L0", l0, c / 2, c * 2, f"published L0 {c:g}, on other text")
    if claimed.get("l0"):
        c = float(claimed["l0"])
        yield Check("L0", l0, c / 1.5, c * 1.5, f"L0 {c:g} on its own held-out text")
    if claimed.get("explained_variance") is not None:
        c = float(claimed["explained_variance"])
        yield Check("EV", ev_all, 1 - (1.5 * (1 - c) + 0.02), None, f"EV {c:.3f} on its own held-out text")


def _plain(subject: ConfiguredDictionary, metrics: dict[str, Any], base: Trial) -> Iterator[Check]:
    """What any dictionary must do: better than the mean row, for the rows and for the model, and, where its folder
    claims no EV, about what the worst of those in use do.
    """
    claims = subject.claimed.get("explained_variance") is not None
    yield Check("EV", base.ev, 0.0 if claims else POOR, None, "the mean row" if claims else "dictionaries in use")
    recovered = metrics["ce_recovered_mean"]["value"]
    if recovered is not None and metrics["ce_mean"]["value"] - metrics["ce_original"]["value"] > 0.01:
        yield Check("CE recovered", recovered, 0.0, None, "the mean row in its place")


def _ordering(scales: dict[str, float]) -> Iterator[Check]:
    """Lengths that go together: a threshold below what passes it, and neither beyond the rows it is a part of."""
    row = scales["row"]
    yield Check("reconstruction / row", scales["reconstruction"] / row, 0.25, 2.0, "median lengths")
    if "threshold" in scales:
        yield Check("latent at its threshold / row", scales["threshold"] / row, None, 1.0, "median lengths")


def _scales(dictionary: Any, rows: Rows) -> dict[str, float]:
    """Median lengths: rows, reconstructions, bias, and what a latent adds when it is on and when it just passes."""
    values, indices = dictionary.encode_sparse(rows.x)
    y = coded(dictionary, rows.x)[1]
    size = dictionary.W_dec.float().norm(dim=1)
    out = {"row": rows.y.norm(dim=-1).median(), "reconstruction": y.norm(dim=-1).median()}
    out["bias"] = dictionary.b_dec.float().norm()
    on = values > 0
    if on.any():
        out["active_latent"] = (values * size[indices])[on].median()
    threshold = dictionary.thresholds()
    fired = torch.zeros(len(size), dtype=torch.bool)
    fired[indices[on]] = True
    if threshold is not None and bool((threshold > 0).any()):
        out["threshold"] = (threshold.float() * size)[fired if fired.any() else threshold > 0].median()
    return {k: float(v) for k, v in out.items()}


# --- verdict -----------------------------------------------------------------------------------------------------


def _cause(
    subject: ConfiguredDictionary, base: Trial, trials: list[Trial], weak: bool
) -> tuple[Trial | None, tuple[Trial, ...]]:
    """(the setting that repairs the numbers, the best of each other kind that repairs them as well); (None, ()): none.

    What is tried on all rows goes before the BOS token, which changes the first tokens only: where all rows are wrong,
    it is the cause only if they are right with the other start. Of the rest the one that leaves least unexplained is
    the cause; among units that leave about as little, one with a rule goes before a factor without, and a scale that
    was forgotten at both ends before one at one end.
    """
    good = [t for t in trials if t.kind != "BOS" and _repairs(subject, base, t, weak)]
    if not good:
        other = next((t for t in trials if t.kind == "BOS"), None)
        return (other if other is not None and _other_start(subject, other, weak) else None), ()
    best = min(t.unexplained for t in good)
    near = sorted((t for t in good if t.unexplained <= NEAR * best), key=lambda t: t.unexplained)
    of_units = [t for t in near if t.kind in UNITS]
    cause = near[0] if near[0].kind not in UNITS else min(of_units, key=lambda t: (t.kind == "factor") + _one_end(t))
    kinds = {"units" if t.kind in UNITS else t.kind: t for t in reversed(near)}
    return cause, tuple(t for t in kinds.values() if t.kind != cause.kind and not {t.kind, cause.kind} <= set(UNITS))


def _one_end(t: Trial) -> bool:
    """Whether a scale is that of one end only."""
    return t.kind == "factor" and t.cause != NOT_FOLDED


def _repairs(subject: ConfiguredDictionary, base: Trial, t: Trial, weak: bool) -> bool:
    """Whether a setting leaves clearly less unexplained and agrees with what the folder claims. It must not buy that
    with a larger L0, unless the configuration's own numbers are weak; a factor that was fitted must explain most.
    """
    if t.unexplained > BETTER[t.kind] or t.ev <= 0 or (not weak and t.l0 > 1.5 * base.l0):
        return False
    if t.kind == "factor" and t.ev < FLOOR and "explained_variance" not in subject.claimed:
        return False
    return all(c.ok for c in _claims(subject, t.ev_all, t.l0))


def _other_start(subject: ConfiguredDictionary, t: Trial, weak: bool) -> bool:
    """Whether the other start fits the first tokens better, and, where all rows are wrong, sets them right."""
    if t.unexplained > BETTER["BOS"] or t.ev_rows is None or t.l0_rows is None:
        return False
    right = t.ev_rows >= FLOOR and all(c.ok for c in _claims(subject, t.ev_rows, t.l0_rows))
    return right or not weak


# --- what the command line names ---------------------------------------------------------------------------------


def verify_dictionary(
    workspace: Workspace,
    text: str,
    *,
    library: str | None = None,
    sequences: int = 32,
    ctx: int | None = None,
    model: str | None = None,
    revision: str | None = None,
    hook: str | None = None,
    corpus: str | None = None,
    seed: int = 0,
    run: Run = QUIET,
) -> Verification:
    """Verify the dictionary ``text`` means: an id of the workspace, a folder of any library, or one of the hub.

    Text: ``corpus``, else held-out sequences of its store, else the held-out split of the bundled corpus.

    Before any model is loaded its files are held against the digests of their manifest, and against outputs of its own
    library where these lie beside it (``expected.safetensors``).

    Raises:
        UsageError: it reads several places, or does not say its model or hook. CorruptError: its files are not what
        they were. MissingError, CorruptError, UntrustedFile: see
        :func:`workbench.dictionaries.importing.read_reference`.
    """
    from workbench.analysis.evaluation.run import EvaluationRequest, heldout_tokens
    from workbench.models import bundled, load_model

    reference, dictionary, numbers = _found(workspace, text, library, model=model, revision=revision, hook=hook)
    _check_files(reference.path)
    if not isinstance(reference.hook, str) or isinstance(reference.source, list):
        raise UsageError(
            f"{reference.id} is a crosscoder (it reads several places); `workbench verify` looks at dictionaries of"
            " one hook."
        )
    name, about = reference.model_name, reference.metadata
    loaded = load_model(name, reference.revision)
    if corpus is None and reference.store_or_none(workspace) is None:
        corpus = "mini" if name in bundled() and "prose" not in name else "prose"
    request = EvaluationRequest(sequences=sequences, ctx=ctx, corpus=corpus, seed=seed)
    tokens, is_row, _ = heldout_tokens(workspace, reference, request, loaded, run)
    said = {"k": dictionary.k if dictionary.thresholds() is None else None, "claimed_l0": about.get("claimed_l0")}
    bos = about.get("prepend_bos")
    subject = ConfiguredDictionary(
        reference.id,
        dictionary,
        reference.hook,
        reference.hook_out,
        name,
        reference.revision,
        {k: v for k, v in {**said, **numbers}.items() if v is not None},
        bos if isinstance(bos, bool) else None,
        first=_first(about.get("seqpos_slice"), bos is not False),
        is_row=is_row,
    )
    return verify(subject, loaded, tokens, load=lambda r: load_model(name, r), run=run)


def _first(seqpos_slice: Any, bos: bool) -> bool:
    """Whether a library's ``seqpos_slice`` ([start, …], positions of a sequence) keeps the first token of the text."""
    begin = seqpos_slice[0] if isinstance(seqpos_slice, list) and len(seqpos_slice) > 1 else None
    return not isinstance(begin, int) or 0 <= begin <= int(bos)


def _check_files(path: Path) -> None:
    """Refuse files that are not what their manifest, or their own library's outputs beside them, say."""
    from sae.formats.parity import check_outputs
    from workbench.provenance import MANIFEST, check_files

    if (path / MANIFEST).is_file() and (wrong := check_files(path)):
        raise CorruptError(
            f"{path} is not what its manifest says: {'; '.join(wrong)}. Make it anew, or import it again."
        )
    if path.exists():
        check_outputs(path)


def _found(
    workspace: Workspace, text: str, library: str | None, *, model: str | None, revision: str | None, hook: str | None
) -> tuple[DictionaryRef, Any, dict[str, Any]]:
    """(reference, dictionary, the numbers that our own training noted of it)."""
    from sae.files import read_json
    from workbench.dictionaries.importing import parse_reference, read_reference
    from workbench.dictionaries.reference import DictionaryRef, find_dictionary
    from workbench.models.pointers import by_id
    from workbench.provenance import MANIFEST, Input, read_manifest

    model = None if model is None else by_id(workspace, model, run=QUIET)
    folder = Path(text).expanduser()
    ours = folder / "cfg.json"
    if library is None and ours.is_file() and "kind" in (dict(read_json(ours)).get("metadata") or {}):
        pass
    elif library is not None or folder.exists() or ":" in text:
        reference = parse_reference(text)
        given = {"model_name": model, "revision": revision}
        dictionary = read_reference(reference, library, hook=hook, **given)
        if dictionary.enc_FD.dtype != torch.float32:
            dictionary = dictionary.float()
        found = DictionaryRef(
            reference.id, folder, dictionary.metadata, Input(kind="imported", id=reference.id, digest="")
        )
        return found, dictionary, {}
    given = {"model_name": model, "revision": revision, "hook_name": hook}
    found = find_dictionary(workspace, text, **given)
    numbers = read_manifest(found.path).numbers if (found.path / MANIFEST).is_file() else {}
    wanted = ("l0", "explained_variance")
    return found, found.load(), {k: numbers[k] for k in wanted if k in numbers}
