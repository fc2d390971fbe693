"""A table of mistakes and dictionaries: the cause that is named is the mistake that was made, or none is."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch

import sae
from workbench.activations.harvesting.forward import capture
from workbench.analysis.evaluation.mistakes import ConfiguredDictionary
from workbench.analysis.evaluation.verifying import _first, verify
from workbench.corpus import CorpusConfig, plan_tokens
from workbench.models import load_model

HOOK = "blocks.1.hook_resid_post"
CTX, F, K = 64, 512, 16


@cache
def model(name, revision=None):
    return load_model(name, revision)


@cache
def text(name, split, n):
    config = CorpusConfig(kind="mini", split=split, seed=0)
    return plan_tokens(config, model(name).tokenizer, n_seq=n, ctx=CTX).tokens


@cache
def trained(name, kind, bos=True):
    """A dictionary of rows with or without a BOS token before them, the first token among them."""
    given = torch.as_tensor(text(name, "train", 250) if bos else text(name, "train", 250)[:, 1:], dtype=torch.int64)
    blocks = [capture(model(name), b, [HOOK])[HOOK][:, int(bos) :].float() for b in given.split(25)]
    rows = torch.cat([b.flatten(0, 1) for b in blocks])
    config = sae.SAEConfig(d_in=128, d_sae=F, k=K, seed=0, lr=2e-3, activation=kind)
    trainer, order = sae.Trainer(config, total_steps=200), torch.Generator().manual_seed(0)
    for _ in range(200):
        trainer.step(rows[torch.randperm(len(rows), generator=order)[:512]])
    return trainer.dictionary().folded()


def units(part, s):
    """In other units: both ends as before a folding, the encoder alone, or the decoder alone."""

    def change(d):
        with torch.no_grad():
            if part == "both":
                d.b_dec *= s
                d.b_enc *= s
                if hasattr(d, "threshold_F"):
                    d.threshold_F *= s
            elif part == "encoder":
                d.enc_FD *= s
            else:
                d.dec_FD *= s

    return change


def shuffled(d):
    with torch.no_grad():
        d.dec_FD.copy_(d.dec_FD[torch.randperm(F, generator=torch.Generator().manual_seed(0))])


UNITS = ("scale", "factor")
FITS, NONE = (None,), ("not established",)
# mistake -> (what was done to the dictionary, how the subject differs, kinds of cause that are right)
MISTAKES = {
    "none": (None, {}, FITS),
    **{
        f"{part} x {s}": (units(part, s), {}, UNITS)
        for part in ("both", "encoder", "decoder")
        for s in (0.05, 0.25, 4, 20)
    },
    "layer before": (None, {"hook": "blocks.0.hook_resid_post"}, ("hook",)),
    "layer after": (None, {"hook": "blocks.2.hook_resid_post"}, ("hook",)),
    "BOS missing": (None, {"bos": False}, ("BOS",)),
    "BOS too many": (None, {"trained": False, "bos": True}, ("BOS",)),
    "no BOS": (None, {"trained": False, "bos": False}, FITS),
    "first snapshot": (None, {"revision": "step0"}, ("revision",)),
    "another seed": (None, {"model": "s1"}, NONE),
    "decoders shuffled": (shuffled, {}, NONE),
}
QUICK = [
    *(
        ("mini-pythia", "topk", m)
        for m in ("both x 0.05", "encoder x 0.25", "decoder x 0.05", "BOS too many", "no BOS")
    ),
    *(("mini-pythia", "jumprelu", m) for m in ("both x 4", "BOS missing")),
    *(("mini-mamba", "topk", m) for m in ("none", "another seed")),
]
ALL = [(n, k, m) for n in ("mini-pythia", "mini-mamba") for k in ("topk", "jumprelu", "l1") for m in MISTAKES]
SLOW = [pytest.param(*c, marks=pytest.mark.slow) for c in ALL if c not in QUICK]


@pytest.mark.parametrize(("name", "kind", "mistake"), [*QUICK, *SLOW])
def test_the_mistake_that_was_made_is_named(name, kind, mistake):
    change, other, right = MISTAKES[mistake]
    dictionary = copy.deepcopy(trained(name, kind, other.get("trained", True)))
    if change:
        change(dictionary)
    at, revision = f"{name}-s1" if other.get("model") else name, other.get("revision")
    claimed = {"topk": {"k": K}, "jumprelu": {"claimed_l0": K}, "l1": {}}[kind]
    hook = other.get("hook", HOOK)
    subject = ConfiguredDictionary("theirs", dictionary, hook, hook, at, revision, claimed, other.get("bos"))
    found = verify(subject, model(at, revision), text(name, "heldout", 24), load=lambda r: model(at, r))
    named = found.cause.kind if found.cause else None if found.fits else "not established"
    if "BOS" in mistake and name == "mini-mamba":
        assert named is None and "do not tell" in found.start, found.verdict  # it forgets its first token at once
        return
    if kind == "l1" and mistake == "BOS missing":
        right = ("BOS", None)  # its shrinkage hides what the first tokens lose
    assert named in right, found.verdict
    if found.cause:
        assert found.cause.ev > found.cause.before or found.cause.kind == "BOS"
        assert "->" in found.verdict
    if mistake == "first snapshot":
        assert "step0" not in found.cause.setting and found.cause.ev > 0.75
    if mistake == "decoders shuffled":
        assert "cause not established" in found.verdict


def test_numbers_before_and_after_are_of_the_same_tokens():
    dictionary = copy.deepcopy(trained("mini-pythia", "topk"))
    units("both", 4)(dictionary)
    subject = ConfiguredDictionary("theirs", dictionary, HOOK, HOOK, "mini-pythia", None, {"k": K})
    found = verify(subject, model("mini-pythia"), text("mini-pythia", "heldout", 12))
    base, cause = found.trials[0], found.cause
    assert cause.before == base.ev and cause.n == base.n
    assert f"EV {base.ev:.3f} -> {cause.ev:.3f}, L0 {base.l0:.1f} -> {cause.l0:.1f}" in found.verdict
    assert cause.unexplained == pytest.approx((1 - cause.ev) / (1 - base.ev))
    assert found.start is None  # all tokens are wrong: the first ones tell nothing of the BOS token


def test_whether_the_first_token_was_trained_on():
    assert _first(None, True) and _first([None], True) and _first([0, None], False) and _first([1, None], True)
    assert not _first([1, None], False) and not _first([2, -1], True)
    dictionary = trained("mini-pythia", "topk")
    subject = ConfiguredDictionary("theirs", dictionary, HOOK, HOOK, "mini-pythia", None, {"k": K}, True, first=False)
    found = verify(subject, model("mini-pythia"), text("mini-pythia", "heldout", 12))
    assert found.fits and "tokens 2 to 4" in next(t.setting for t in found.trials if t.kind == "BOS")


def test_a_bias_that_belongs_before_the_encoder_is_named():
    """Read as if its input kept the decoder's bias, which in training was subtracted from it."""
    dictionary = copy.deepcopy(trained("mini-pythia", "jumprelu"))
    with torch.no_grad():
        dictionary.b_enc += dictionary.enc_FD @ dictionary.b_dec
    subject = ConfiguredDictionary("theirs", dictionary, HOOK, HOOK, "mini-pythia", None, {"claimed_l0": K})
    found = verify(subject, model("mini-pythia"), text("mini-pythia", "heldout", 12))
    assert found.cause.kind == "bias", found.verdict
    assert "belongs before its encoder" in found.verdict and "subtracted from its input" in found.cause.setting
