"""Is a dictionary what its configuration says? Measured on a few thousand tokens, beside what its folder claims.

A dictionary that is read at the wrong place, in the wrong units or on other text than it was made for still returns
numbers; only they are poor. So the numbers under the configuration are held against the folder's claims, and against
the same numbers under each usual mistake: rows in other units, neighbouring hooks, with or without a BOS token, other
snapshots of the model. A mistake is named only where its opposite was tried and the numbers fit there.

What a BOS token changes wears off within some tokens, so its trial looks at the first four of each sequence alone, and
asks a bootstrap over sequences whether what is left unexplained is less with the other start.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sae.errors import CorruptError, MissingError, UsageError
from sae.populations import norms, populations_of
from workbench.activations.harvesting.forward import capture
from workbench.models.reading import token_contract
from workbench.run import QUIET, Run
from workbench.stats import resample_weights

if TYPE_CHECKING:
    from workbench.dictionaries.reference import DictionaryRef
    from workbench.workspace import Workspace

TRIAL_ROWS = 1024  # per trial, spread evenly
NEIGHBOURS = 2  # layers on either side
SNAPSHOTS = 12  # of the model, nearest first
EARLY = 4  # tokens of each sequence that the trial of the BOS token looks at
FLOOR = 0.5  # an EV below it is weak: other settings may then buy theirs with a larger L0
# unexplained variance of another setting over that of the configuration, at and below which it is the better one
BETTER = {"scale": 0.85, "factor": 0.75, "hook": 0.75, "revision": 0.75, "BOS": 0.9}
_UNITS = [2 ** (i / 4) for i in range(-28, 29) if i]  # factors without a rule


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
class Trial:
    """The numbers under one setting. ``kind``: ``configuration``, or what is changed (a key of :data:`BETTER`);
    ``cause``: the mistake that this setting undoes; ``setting``: what was tried. ``ev`` leaves massive rows out,
    ``ev_all`` does not; ``unexplained``: what this setting leaves unexplained, over what the configuration does, on
    the same tokens (of the BOS token: the upper end of a bootstrap interval).
    """

    kind: str
    cause: str
    setting: str
    ev: float
    ev_all: float
    l0: float
    n: int
    unexplained: float = 1.0


@dataclass(frozen=True)
class Verification:
    """What was measured, expected and tried. ``metrics``: name -> estimate with n; ``scales``: median lengths."""

    dictionary: str
    setting: dict[str, Any]
    metrics: dict[str, Any]
    scales: dict[str, float]
    checks: tuple[Check, ...]
    trials: tuple[Trial, ...]
    cause: Trial | None

    @property
    def fits(self) -> bool:
        """Whether the numbers look like the dictionary that the configuration describes."""
        return self.cause is None and all(c.ok for c in self.checks)

    @property
    def verdict(self) -> str:
        """One sentence for a person."""
        if self.fits:
            return "these numbers look like the dictionary the configuration describes"
        says = "these numbers do not look like the dictionary the configuration describes"
        if self.cause is None:
            return f"{says}; none of the {len(self.trials) - 1} other settings tried explains them"
        c = self.cause
        return f"{says}: {c.cause}. They fit {c.setting} (EV {c.ev:.3f}, L0 {c.l0:.1f})"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "dictionary": self.dictionary,
            "fits": self.fits,
            "verdict": self.verdict,
            "cause": None if self.cause is None else asdict(self.cause),
            "setting": self.setting,
            "metrics": self.metrics,
            "scales": self.scales,
            "checks": [asdict(c) | {"ok": c.ok} for c in self.checks],
            "trials": [asdict(t) for t in self.trials],
        }


@dataclass(frozen=True)
class Subject:
    """What is verified: a dictionary, where it reads and writes, and what its folder claims.

    ``claimed``: numbers of its manifest (``l0``, ``explained_variance``) or configuration (``claimed_l0``).
    ``bos``: whether sequences begin with a BOS token; None: as the model's tokenizer does.
    """

    id: str
    dictionary: Any
    hook: str
    hook_out: str
    model: str
    revision: str | None
    claimed: dict[str, Any]
    bos: bool | None = None


@torch.inference_mode()
def verify(
    subject: Subject, model: Any, tokens: np.ndarray, *, load: Callable[[str], Any] | None = None, run: Run = QUIET
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
        raise UsageError(f"verify needs sequences of at least {EARLY + 1} tokens, not {list(tokens.shape)}.")
    starts = token_contract(model).first is not None
    bos = starts if subject.bos is None else starts and subject.bos
    given = tokens if bos or not starts else tokens[:, 1:]
    result = evaluate_in_model(model, subject.dictionary, subject.hook, given, hook_out=subject.hook_out, run=run)
    metrics = {k: e.as_dict() for k, e in result.estimates.items()}
    here = (subject.hook, subject.hook_out)
    rows = _rows(model, given, [here])[here]
    base = _measure(subject.dictionary, rows, "configuration", "", _place(subject, *here, bos))
    checks = [*_claims(subject, metrics, base), *_plain(metrics, base)]
    scales = _scales(subject.dictionary, rows)
    checks += _ordering(scales)
    trials = [base]
    for trial in run.each([*_units(rows)], "scales", unit="trial"):
        trials.append(_measure(subject.dictionary, rows, **trial))
    trials += _hooks(subject, model, given, bos)
    if starts:
        trials.append(_start(subject, model, tokens, bos))
    weak = base.ev < FLOOR or not all(c.ok for c in checks)
    if load is not None and weak:
        trials += _revisions(subject, given, bos, load, run)
    trials = [t if t.kind == "BOS" else replace(t, unexplained=(1 - t.ev) / (1 - base.ev)) for t in trials]
    cause = _cause(subject, base, trials, weak)
    setting: dict[str, Any] = {"model": subject.model, "revision": subject.revision, "hook": subject.hook, "bos": bos}
    setting |= {"hook_out": subject.hook_out, "n_sequences": len(tokens), "ctx": int(given.shape[1])}
    return Verification(subject.id, setting, metrics, scales, tuple(checks), tuple(trials), cause)


# --- what is expected --------------------------------------------------------------------------------------------


def _claims(subject: Subject, metrics: dict[str, Any], base: Trial) -> Iterator[Check]:
    """What the folder says of its own numbers."""
    claimed, l0 = subject.claimed, float(metrics["l0"]["value"])
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
        yield Check("EV", base.ev_all, 1 - (1.5 * (1 - c) + 0.02), None, f"EV {c:.3f} on its own held-out text")


def _plain(metrics: dict[str, Any], base: Trial) -> Iterator[Check]:
    """What any dictionary must do: better than the mean row, for the rows and for the model."""
    yield Check("EV", base.ev, 0.0, None, "the mean row")
    recovered = metrics["ce_recovered_mean"]["value"]
    if recovered is not None and metrics["ce_mean"]["value"] - metrics["ce_original"]["value"] > 0.01:
        yield Check("CE recovered", recovered, 0.0, None, "the mean row in its place")


def _ordering(scales: dict[str, float]) -> Iterator[Check]:
    """Lengths that go together: a threshold below what passes it, and neither beyond the rows it is a part of."""
    row = scales["row"]
    yield Check("reconstruction / row", scales["reconstruction"] / row, 0.25, 2.0, "median lengths")
    if "threshold" in scales:
        yield Check("latent at its threshold / row", scales["threshold"] / row, None, 1.0, "median lengths")


def _scales(dictionary: Any, rows: _Rows) -> dict[str, float]:
    """Median lengths: rows, reconstructions, bias, and what a latent adds when it is on and when it just passes."""
    values, indices, y = _coded(dictionary, rows.x)
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


# --- trials ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """What is read [n, d_in], what it stands for [n, d_out], and which of them are not massive [n]."""

    x: Tensor
    y: Tensor
    usual: Tensor


def _rows(model: Any, tokens: np.ndarray, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], _Rows]:
    """The same tokens' rows at pairs of hooks; the first position, BOS and pads are none."""
    kept = token_contract(model).is_row(tokens)
    kept[:, 0] = False
    where = np.flatnonzero(kept)
    if len(where) < 2:
        raise UsageError("fewer than two tokens of these sequences can be scored; give longer or more of them.")
    where = where[np.linspace(0, len(where) - 1, min(TRIAL_ROWS, len(where))).astype(int)]
    given = torch.as_tensor(tokens, dtype=torch.int64)
    names = sorted({h for pair in pairs for h in pair})
    seen: dict[str, list[Tensor]] = {n: [] for n in names}
    for start in range(0, len(given), 8):
        block = given[start : start + 8]
        here = where[(where >= start * given.shape[1]) & (where < (start + len(block)) * given.shape[1])]
        found = capture(model, block, names)
        index = torch.from_numpy(here - start * given.shape[1])
        for n in names:
            seen[n].append(found[n].flatten(0, 1)[index].float().cpu())
    at = {n: torch.cat(v) for n, v in seen.items()}
    out = {}
    for a, b in pairs:
        lengths = norms(at[b])
        out[a, b] = _Rows(at[a], at[b], lengths <= populations_of(lengths).limit)
    return out


def _coded(dictionary: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(values, indices, reconstruction with the skip) of rows, some at a time."""
    parts = []
    for block in x.split(256):
        values, indices = dictionary.encode_sparse(block)
        y, skip = dictionary.decode_sparse(values, indices), dictionary.skip(block)
        parts.append((values.float(), indices, (y if skip is None else y + skip).float()))
    width = max(p[0].shape[-1] for p in parts)
    pad = [(0, width - p[0].shape[-1]) for p in parts]
    values = torch.cat([torch.nn.functional.pad(p[0], d) for p, d in zip(parts, pad, strict=True)])
    indices = torch.cat([torch.nn.functional.pad(p[1], d) for p, d in zip(parts, pad, strict=True)])
    return values, indices, torch.cat([p[2] for p in parts])


def _measure(
    dictionary: Any,
    rows: _Rows,
    kind: str,
    cause: str,
    setting: str,
    factor: float = 1.0,
    factor_out: float = 1.0,
    each: bool = False,
) -> Trial:
    """EV and L0 of a dictionary that is given ``factor * x`` and returns ``factor_out * y``; ``each``: every row
    normalised by itself, as a layer norm without gain does.
    """
    x, back, shift = rows.x * factor, 1 / factor_out, torch.zeros(1)
    if each:
        shift, size = rows.x.mean(-1, keepdim=True), rows.x.std(-1, unbiased=False, keepdim=True).clamp_min(1e-6)
        x = (rows.x - shift) / size
        back = size  # type: ignore[assignment]
    values, _, y = _coded(dictionary, x)
    error = (rows.y - y * back - shift).double().square().sum(-1)
    ev, ev_all = (
        float(1 - error[k].sum() / (rows.y[k] - rows.y[k].mean(0)).double().square().sum())
        for k in (rows.usual, torch.ones_like(rows.usual))
    )
    l0 = float((values > 0).sum(-1).double().mean())
    return Trial(kind, cause, setting, ev, ev_all, l0, int(rows.usual.sum()))


def _start(subject: Subject, model: Any, tokens: np.ndarray, bos: bool) -> Trial:
    """The other start of the sequences: with a BOS token, or without."""
    contract, here = token_contract(model), (subject.hook, subject.hook_out)
    kept = torch.from_numpy(contract.is_row(tokens)[:, 1 : 1 + EARLY])
    sums, of = {}, {}
    for start in (bos, not bos):
        given = torch.as_tensor(tokens[:, : 1 + EARLY] if start else tokens[:, 1 : 1 + EARLY], dtype=torch.int64)
        found = capture(model, given, [*dict.fromkeys(here)])
        x, y = (found[h][:, -EARLY:].float().cpu() for h in here)
        values, _, z = _coded(subject.dictionary, x.flatten(0, 1))
        lengths = norms(y)
        usual = kept & (lengths <= populations_of(lengths[kept]).limit)
        error = (y - z.reshape(y.shape)).double().square().sum(-1)
        centred = (y - y[usual].mean(0)).double().square().sum(-1)
        sums[start] = torch.stack([(error * usual).sum(1), (centred * usual).sum(1)])
        ev = float(1 - sums[start][0].sum() / sums[start][1].sum())
        ev_all = float(1 - error[kept].sum() / centred[kept].sum())
        l0 = float((values > 0).sum(-1)[kept.flatten()].double().mean())
        of[start] = (ev, ev_all, l0, int(usual.sum()))
    weights = torch.from_numpy(resample_weights(len(tokens), resamples=500, seed=0)).double()
    left = {k: (weights @ v[0]) / (weights @ v[1]) for k, v in sums.items()}
    worst = float((left[not bos] / left[bos]).quantile(0.95))
    cause = "a BOS token that it was trained without" if bos else "the BOS token is missing"
    setting = f"{_place(subject, *here, not bos)}, on the first {EARLY} tokens (EV {of[bos][0]:.3f} as configured)"
    return Trial("BOS", cause, setting, *of[not bos], worst)


def _units(rows: _Rows) -> Iterator[dict[str, Any]]:
    """Rows in other units: the rules libraries have, then factors without one."""
    d, d_out = rows.x.shape[-1], rows.y.shape[-1]
    length, length_out = float(norms(rows.x).mean()), float(norms(rows.y).mean())
    square, square_out = float(norms(rows.x).square().mean()), float(norms(rows.y).square().mean())
    rules = {
        "to a mean length of sqrt(d), as SAELens and OpenMOSS do": (d**0.5 / length, d_out**0.5 / length_out),
        "to a mean square length of 1, as dictionary_learning does": (square**-0.5, square_out**-0.5),
        "to a mean length of 1": (1 / length, 1 / length_out),
    }
    cause = "a scale of its input was not folded"
    for name, (a, b) in rules.items():
        setting = f"rows multiplied by {a:.3g}, {name}"
        yield {"kind": "scale", "cause": cause, "setting": setting, "factor": a, "factor_out": b}
    if d == d_out:
        setting = "rows normalised each by itself, as a layer norm does"
        yield {"kind": "scale", "cause": "its input was normalised in training", "setting": setting, "each": True}
    for a in _UNITS:
        setting = f"rows multiplied by about {a:.3g}"
        yield {"kind": "factor", "cause": cause, "setting": setting, "factor": a, "factor_out": a}


def _hooks(subject: Subject, model: Any, given: np.ndarray, bos: bool) -> list[Trial]:
    """Neighbouring hooks of the same widths, read alone or as a transcoder's pair."""
    d_in, d_out = subject.dictionary.d_in, subject.dictionary.d_out
    pairs = [p for p in _neighbours(model, subject.hook, subject.hook_out) if p != (subject.hook, subject.hook_out)]
    found = _rows(model, given, pairs) if pairs else {}
    return [
        _measure(subject.dictionary, r, "hook", f"it does not belong at {_at(*here)}", _place(subject, *pair, bos))
        for here in [(subject.hook, subject.hook_out)]
        for pair, r in found.items()
        if (r.x.shape[-1], r.y.shape[-1]) == (d_in, d_out)
    ]


def _neighbours(model: Any, hook: str, hook_out: str) -> list[tuple[str, str]]:
    from workbench.models.sites import site_hooks, sites

    match = re.match(r"blocks\.(\d+)\.", hook)
    layer = int(match[1]) if match else 0
    pairs: list[tuple[str, str]] = []
    for site in sites(model):
        if abs(int(re.findall(r"\d+", site)[0]) - layer) <= NEIGHBOURS:
            pairs.append(site_hooks(model, site))
    ends = {h for pair in pairs for h in pair}
    ends |= {
        name
        for h in ("hook_resid_pre", "hook_resid_mid", "ln2.hook_in", "ln2.hook_out", "ln2.hook_normalized")
        if (name := f"blocks.{layer}.{h}") in model.hook_dict
    }
    alone = [(h, h) for h in sorted(ends)]
    across = [(h, hook_out) for h in sorted(ends) if h.startswith(f"blocks.{layer}.")] if hook != hook_out else []
    return [p for p in dict.fromkeys([*pairs, *alone, *across]) if all(_fires(model, h) for h in p)]


def _fires(model: Any, hook: str) -> bool:
    """Whether a hook gives one row per token; some of a model's are off or give something else."""
    try:
        capture(model, torch.zeros(1, 3, dtype=torch.int64), [hook])
    except (UsageError, ValueError):
        return False
    return True


def _revisions(subject: Subject, given: np.ndarray, bos: bool, load: Callable[[str], Any], run: Run) -> list[Trial]:
    """Other snapshots of the same model, where they lie on this machine."""
    from workbench.models import resolve_revision, revisions

    try:
        known, own = revisions(subject.model), resolve_revision(subject.model, subject.revision)
    except (UsageError, MissingError):
        return []
    own = own if own in known else known[-1] if known else None
    if own is None:
        return []
    place = known.index(own)
    others = sorted((r for r in known if r != own), key=lambda r: abs(known.index(r) - place))[:SNAPSHOTS]
    here = (subject.hook, subject.hook_out)
    out = []
    for other in run.each(others, "snapshots", unit="snapshot"):
        rows = _rows(load(other), given, [here])[here]
        cause = f"it belongs to another revision of the model than {subject.revision or 'the last'}"
        setting = _place(replace(subject, revision=other), *here, bos)
        out.append(_measure(subject.dictionary, rows, "revision", cause, setting))
    return out


def _at(hook: str, hook_out: str) -> str:
    return hook if hook == hook_out else f"{hook} -> {hook_out}"


def _place(subject: Subject, hook: str, hook_out: str, bos: bool) -> str:
    at = f" at {subject.revision}" if subject.revision else ""
    return f"{_at(hook, hook_out)} of {subject.model}{at}, {'with' if bos else 'without'} a BOS token"


# --- verdict -----------------------------------------------------------------------------------------------------


def _cause(subject: Subject, base: Trial, trials: list[Trial], weak: bool) -> Trial | None:
    """The setting under which the numbers fit and clearly better than under the configuration; None: there is none.

    Another setting must not buy its EV with a larger L0, unless the configuration's own numbers are weak. Among those
    that explain almost as much (a tenth more left over), one with a rule goes before a factor without.
    """
    good = []
    for t in trials:
        if t.kind == "configuration" or t.unexplained > BETTER[t.kind]:
            continue
        if t.ev <= 0 or (not weak and t.l0 > 1.5 * base.l0):
            continue
        if t.kind == "BOS" or all(c.ok for c in _claims(subject, {"l0": {"value": t.l0}}, t)):
            good.append(t)
    if not good:
        return None
    best = min(t.unexplained for t in good)
    near = [t for t in good if t.unexplained <= 1.1 * best]
    return min(near, key=lambda t: (t.kind == "factor", t.unexplained))


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
        raise UsageError(f"{reference.id} reads several places; `workbench verify` looks at dictionaries of one hook.")
    name, about = reference.model_name, reference.metadata
    loaded = load_model(name, reference.revision)
    if corpus is None and reference.store_or_none(workspace) is None:
        corpus = "mini" if name in bundled() and "prose" not in name else "prose"
    request = EvaluationRequest(sequences=sequences, ctx=ctx, corpus=corpus, seed=seed)
    tokens, _ = heldout_tokens(workspace, reference, request, loaded, run)
    said = {"k": dictionary.k if dictionary.thresholds() is None else None, "claimed_l0": about.get("claimed_l0")}
    bos = about.get("prepend_bos")
    subject = Subject(
        reference.id,
        dictionary,
        reference.hook,
        reference.hook_out,
        name,
        reference.revision,
        {k: v for k, v in {**said, **numbers}.items() if v is not None},
        bos if isinstance(bos, bool) else None,
    )
    return verify(subject, loaded, tokens, load=lambda r: load_model(name, r), run=run)


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
