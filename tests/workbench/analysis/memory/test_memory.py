"""What a layer keeps of each token: against Hugging Face's own attention, and a recurrence written out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import workbench
from sae.errors import CorruptError, MismatchError, UsageError
from tests.workbench.bridges import bridge, tiny, tokens
from workbench.analysis.memory import measure
from workbench.analysis.memory.measure import text_memories, text_memory
from workbench.analysis.memory.run import read_texts, snapshots_of
from workbench.exporting import FigureSpec
from workbench.exporting.figures import build
from workbench.models import load_model
from workbench.models.recurrent import recurrent_layers
from workbench.results.states import States, half_lives
from workbench.workspace import Workspace

TEXT = "def read(self):\n    return self"


def ids(length: int = 12) -> np.ndarray:
    return tokens(1, length)[0].numpy()


def following(logits: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    return logits[0, :-1].log_softmax(-1).gather(-1, at[0, 1:, None])[:, 0]


@pytest.mark.parametrize("kind", ["mamba", "falcon", "mamba2", "neox"])
def test_effects_come_after_and_shares_are_shares(kind):
    model = bridge(tiny(kind, scale=0.3))
    found = text_memory(model, ids())
    assert [m.layer for m in found.layers] == [0, 1] and len(found.logprob) == 11
    want = model(tokens(1, 12), return_type="logits")
    assert np.allclose(found.logprob, following(want, tokens(1, 12)).detach().numpy(), atol=1e-5)
    assert (found.predicted == want[0].argmax(-1).numpy()).all()
    for m in found.layers:
        assert np.allclose(m.share.sum(1), 1, atol=1e-5) and np.allclose(np.triu(m.share, 1), 0)
        assert np.isnan(m.effect[:, -1]).all() and np.abs(np.tril(m.effect[:, :-1], -1)).max() < 1e-4
        assert np.abs(np.diag(m.effect)[:-1]).max() > 1e-4, "what is written is read at once"
        assert (m.survival is None) == (m.heads is not None) == (kind == "neox")


def test_attention_is_hugging_faces_own_and_its_effect_a_value_left_out():
    own = tiny("neox", scale=0.3)
    found = text_memory(bridge(own), ids())
    own.set_attn_implementation("eager")
    attentions = own(tokens(1, 12), output_attentions=True).attentions
    for m, want in zip(found.layers, attentions, strict=True):
        assert np.allclose(m.heads, want[0].detach().numpy(), atol=1e-5)
        assert np.allclose(m.share, want[0].mean(0).detach().numpy(), atol=1e-5)
    attention, j = own.gpt_neox.layers[1].attention, 4

    def without_value(module, args, out):
        heads, width = own.config.num_attention_heads, own.config.hidden_size // own.config.num_attention_heads
        made = out.clone().view(*out.shape[:-1], heads, 3 * width)  # GPT-NeoX packs q, k, v head by head
        made[:, j, :, 2 * width :] = 0
        return made.view_as(out)

    clean = following(own(tokens(1, 12)).logits, tokens(1, 12))
    handle = attention.query_key_value.register_forward_hook(without_value)
    less = following(own(tokens(1, 12)).logits, tokens(1, 12))
    handle.remove()
    assert np.allclose(found.layers[1].effect[j, :-1], (clean - less).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_a_write_left_out_is_the_same_by_its_product(kind):
    """The factor of a write and the write itself are two hooks of two scans; leaving out either is one thing."""
    model, at = bridge(tiny(kind, scale=0.3)), tokens(1, 12)
    found = text_memory(model, at[0].numpy())
    layer, j = recurrent_layers(model)[0], 3
    clean = following(model(at, return_type="logits"), at)

    def without(value, hook):
        value = value.clone()
        value[:, j] = 0
        return value

    logits = model.run_with_hooks(at, fwd_hooks=[(layer.hook("write"), without)])
    want = (clean - following(logits, at)).detach().numpy()
    assert np.allclose(found.layers[0].effect[j, :-1], want, atol=1e-5) and np.abs(want).max() > 1e-3


def test_a_mambas_write_lives_as_its_recurrence_written_out_says():
    model, at = bridge(tiny("mamba", scale=0.3)), tokens(1, 12)
    found = text_memory(model, at[0].numpy()).layers[1]
    seen = {}
    names = [f"blocks.1.mixer.hook_{n}" for n in ("dt", "B", "C", "x")]
    model.run_with_hooks(at, fwd_hooks=[(n, lambda v, hook: seen.update({hook.name: v.detach()})) for n in names])
    dt, B, C, x = (seen[n][0].double().numpy() for n in names)
    A = -np.exp(model.blocks[1].mixer.original_component.A_log.detach().double().numpy())  # [channels, states]
    T = len(dt)
    norms = np.zeros((T, T))
    for j in range(T):
        state = (dt[j] * x[j])[:, None] * B[j]
        whole = np.linalg.norm(state)
        assert set(found.channels[j]) == set(np.argsort(-np.square(state).sum(1))[: found.channels.shape[1]])
        for i in range(j, T):
            if i > j:
                state = state * np.exp(dt[i][:, None] * A)
            assert found.survival[j, i - j] == pytest.approx(np.linalg.norm(state) / whole, abs=1e-4)
            norms[i, j] = np.linalg.norm(state @ C[i])
    assert np.allclose(found.share, norms / norms.sum(1, keepdims=True), atol=1e-4)
    assert np.isnan(found.survival[3, T - 3 :]).all()


def test_half_lives():
    left = np.array([[1, 0.6, 0.4, np.nan], [1, 0.9, 0.8, 0.7], [np.nan] * 4])
    assert half_lives(left)[:2].tolist() == [2, np.inf] and np.isnan(half_lives(left)[2])


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "neox", "mini-hybrid"])
def test_effects_are_those_of_whole_passes(kind):
    """Of several texts together, from the layer up, by what is read: as the model run anew with the factor left out."""
    model = load_model(kind).double() if kind == "mini-hybrid" else bridge(tiny(kind, scale=0.3).double())
    at = tokens(3, 10)
    states = {layer.index: layer for layer in recurrent_layers(model)}
    for text, found in zip(at, text_memories(model, list(at.numpy())), strict=True):
        clean = following(model(text[None], return_type="logits"), text[None])
        for m in found.layers:
            recurrent = states.get(m.layer)
            name = recurrent.hook("write_value") if recurrent else f"blocks.{m.layer}.attn.hook_v"
            for j in range(len(text)):

                def without(value, hook, j=j):
                    value = value.clone()
                    value[:, j] = 0
                    return value

                logits = model.run_with_hooks(text[None], fwd_hooks=[(name, without)], use_cache=False)
                want = (clean - following(logits, text[None])).detach().numpy()
                # transformers' own scan of a gated delta net is single precision whatever the model is
                close = 2e-4 if kind == "mini-hybrid" else 2e-6
                assert np.allclose(m.effect[j, :-1], want, atol=close), (m.layer, j)


@pytest.mark.parametrize(("off", "said"), [(None, "nothing"), (-1, "what came before it")])
def test_a_hook_that_is_not_where_it_is_read_is_refused(monkeypatch, off, said):
    def wrong(self, value, text, written):
        value = value.clone()
        if off is not None:
            value[torch.arange(len(value)), (written + off).clamp_min(0)] = 0
        return value

    monkeypatch.setattr(measure._Unread, "__call__", wrong)
    with pytest.raises(UsageError, match=f"changes {said}: what"):
        text_memory(bridge(tiny("mamba", scale=0.3)), ids())


@pytest.mark.parametrize("n", [2, 129])
def test_a_text_of_no_length_that_is_shown_is_refused(n):
    with pytest.raises(UsageError, match=f"a text of {n} tokens: 3 to 128 can be followed"):
        text_memory(bridge(tiny("mamba")), ids(n))


def test_both_bundled_models_are_followed_on_the_same_tokens(tmp_path):
    ws = Workspace(tmp_path)
    made = {
        m: States.open(
            workbench.states(
                ws, m, text=[TEXT], revision=["step512", "step9000" if m == "mini-pythia" else "step8192"]
            ).path
        )
        for m in ("mini-pythia", "mini-mamba")
    }
    a, b = made["mini-pythia"], made["mini-mamba"]
    assert a.texts[0]["ids"] == b.texts[0]["ids"] and a.metadata["texts"] == b.metadata["texts"]
    assert "".join(a.texts[0]["tokens"][1:]) == TEXT
    assert [x["kind"] for x in b.layers] == ["Mamba"] * 4 and [x["kind"] for x in a.layers] == ["attention"] * 3
    T = len(a.texts[0]["ids"])
    assert b.array(0, "share").shape == (2, 4, T, T) and a.of_layer(0, 1, "heads").shape[:2] == (
        2,
        a.of_layer(0, 0, "heads").shape[1],
    )
    assert a.of_layer(0, 0, "survival") is None and b.of_layer(0, 3, "survival").shape == (2, T, T)
    best = b.manifest.numbers["largest_effect"]
    k = [x["layer"] for x in b.layers].index(best["layer"])
    assert b.array(0, "effect")[-1, k, best["written"], best["reader"]] == pytest.approx(best["nats"], abs=1e-4)
    for what in ("share", "effect", "survival"):
        drawn = build(FigureSpec(figure="state_reads", source=f"states/{b.id}", options={"what": what}), ws)
        assert len(drawn.data) == T * (T + 1) // 2
    with pytest.raises(UsageError, match="has no survival"):
        build(FigureSpec(figure="state_reads", source=f"states/{a.id}", options={"what": "survival"}), ws)
    with pytest.raises(UsageError, match=r"layer 7 of .* keeps nothing from token to token; layers 0, 1, 2, 3 do"):
        build(FigureSpec(figure="state_reads", source=f"states/{b.id}", options={"layer": 7}), ws)
    assert b.manifest.command == (f"workbench states mini-mamba --text '{TEXT}' --revision step512 --revision step8192")
    again = workbench.states(ws, "mini-mamba", text=[TEXT], revision=["step512", "step8192"])
    assert again.version == b.version
    with pytest.raises(MismatchError, match="revisions"):
        workbench.states(ws, "mini-mamba", text=[TEXT], revision=["step512"])
    (b.folder / "texts.json").unlink()
    with pytest.raises(CorruptError, match=r"texts.json is missing. Remove the folder and run: workbench states"):
        States.open(b.folder)


def test_texts_and_snapshots_that_are_asked_for():
    from workbench.models.load import load_tokenizer

    tokenizer = load_tokenizer("mini-pythia")
    kept = {"prompts": 3, "length": 16, "seed": 0, "size": len(tokenizer)}
    prompts = read_texts(tokenizer, (), task="induction", **kept)
    assert prompts.name == prompts.task == "induction" and len(prompts.ids) == 3
    own = read_texts(tokenizer, ["a", "b c"], task="induction", **kept)
    assert (
        own.task == ""
        and own.name.startswith("text-")
        and own.name != read_texts(tokenizer, ["a"], task="", **kept).name
    )
    for texts, said in ((["a", "  "], "is empty"), (["a"] * 65, "at most 64")):
        with pytest.raises(UsageError, match=said):
            read_texts(tokenizer, texts, task="", **kept)
    found = snapshots_of("mini-mamba", (), 4)
    assert found[0] == "step0" and found[-1] == "step27000" and len(found) == 4
    assert snapshots_of("mini-mamba", ("step16",), 4) == ["step16"] and snapshots_of("mini-mamba", (), 1) == [
        "step27000"
    ]


def test_a_dictionary_that_reads_no_writes_is_refused(tmp_path):
    ws = Workspace(tmp_path)
    with ws.create("dictionaries", "d", metadata={"site": "L1R", "model_name": "mini-mamba"}) as out:
        (out / "cfg.json").write_text(json.dumps({}))
    with pytest.raises(UsageError, match="d reads L1R, not what a layer writes"):
        workbench.states(ws, "mini-mamba", text=["a b"], dictionary=["d"], snapshots=1)
    with pytest.raises(UsageError, match="d is a dictionary of mini-mamba, not of mini-pythia"):
        workbench.states(ws, "mini-pythia", text=["a b"], dictionary=["d"], snapshots=1)
