"""Substitutions in models whose writes are known: with a convolution that sees one token, a layer's write is a function
of the token alone, so a dictionary can hold them all. The right atom then wins everywhere, a random write does not.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sae.activation import TopK
from sae.errors import UsageError
from sae.writes import WriteSAE, outer
from tests.workbench.bridges import tiny, tokens
from workbench.activations.harvesting.forward import capture
from workbench.analysis.substitution.firings import Codes, choose, codes_of
from workbench.analysis.substitution.run import SubstituteRecipe, operate
from workbench.analysis.substitution.stand_ins import StandIns, norms, permuted
from workbench.analysis.substitution.surgery import Place, layer_of
from workbench.analysis.substitution.tables import rates, tables_of
from workbench.cli import app
from workbench.models.load import bridge
from workbench.models.recurrent import recurrent_layers
from workbench.results.substitutions import STAND_INS

VOCAB, LENGTH, WINDOW = 50, 24, 6


def token_writes(kind="mamba"):
    """A model whose first layer writes what the token alone decides."""
    model = tiny(kind, scale=0.3)
    with torch.no_grad():
        model.backbone.layers[0].mixer.conv1d.weight[..., :-1] = 0
    return bridge(model)


def dictionary_of(model, layer):
    """Every token's write as an atom, found by the largest inner product of unit writes."""
    every = torch.arange(VOCAB)[:, None]
    seen = capture(model, every, [layer.hook("write_key"), layer.hook("write_value")])
    shape = layer.heads, layer.keys, layer.values
    key, value = (seen[layer.hook(n)][:, 0].unflatten(-1, (layer.heads, -1)) for n in ("write_key", "write_value"))
    unit = torch.nn.functional.normalize(outer(key, value), dim=1)
    made = WriteSAE(shape, VOCAB, TopK(1))
    with torch.no_grad():
        made.enc_FD.copy_(unit)
        made.dec_FD.copy_(unit)
    return made


@pytest.fixture(scope="module", params=["mamba", "mamba2"])
def planted(request):
    model = token_writes(request.param)
    layer = recurrent_layers(model)[0]
    return model, layer, dictionary_of(model, layer)


def tried(planted, **changes):
    model, layer, made = planted
    text = tokens(12, LENGTH).numpy()
    recipe = SubstituteRecipe(**{"atoms": 20, "firings": 4, "window": WINDOW, **changes})
    hooks = layer.hook("write_key"), layer.hook("write_value")
    codes = codes_of(model, made, hooks, text, np.ones(text.shape, bool))
    chosen = choose(codes, atoms=recipe.atoms, firings=recipe.firings, window=WINDOW, seed=recipe.seed)
    key, value = (capture(model, torch.from_numpy(text), [h])[h].unflatten(-1, (layer.heads, -1)) for h in hooks)
    stand_ins = StandIns.of(made, outer(key, value).flatten(0, 1), codes.alive(VOCAB), 0)
    return codes, chosen, *operate(model, layer, text, chosen, codes, stand_ins, recipe)


def test_the_right_atom_wins_everywhere_and_a_random_write_does_not(planted):
    _, chosen, frame, moved = tried(planted)
    assert moved < 1e-5 and len(frame) == len(chosen) >= 40
    assert (frame["rank"] == 0).all() and frame["cosine_atom"].min() > 0.9999
    _, numbers = tables_of(frame)
    ours, controls = numbers["win_rate"], numbers["controls"]
    assert ours["win_rate"] == 1.0 and ours["repaired"] > 0.999 and ours["n"] >= 40
    assert controls["random"]["win_rate"] < 0.5 and controls["permuted"]["win_rate"] < 0.6
    assert numbers["reads"]["atom"]["win_rate"] == 1.0 and numbers["reads"]["random"]["win_rate"] < 0.2
    assert numbers["whole"]["win_rate"] == 1.0 and numbers["cosine_whole"] > 0.9999  # one atom is all there is
    assert numbers["whole"]["repaired"] == pytest.approx(ours["repaired"], abs=1e-4)
    assert numbers["against_permuted"]["win_rate"] > 0.95 and numbers["mean_over_atoms"] == 1.0
    assert numbers["leading"]["atom"]["n"] == ours["n"] and numbers["matched"]["win_rate"] == 1.0
    text = tokens(12, LENGTH).numpy()
    assert (text[frame["sequence"], frame["position"]] == frame["atom"]).all()  # the atom is the token's own
    assert (frame["position"] + WINDOW <= LENGTH).all()


def test_what_is_put_in_has_the_codes_norm_and_every_atom_another_stand_in(planted):
    _, layer, made = planted
    g = torch.Generator().manual_seed(0)
    key = torch.randn(9, layer.heads, layer.keys, generator=g)
    value = torch.randn(9, layer.heads, layer.values, generator=g)
    alive = torch.arange(VOCAB) % 3 > 0
    stand_ins = StandIns.of(made, outer(key, value), alive, 0)
    for arm in (a for a in STAND_INS if a != "whole"):
        codes = torch.linspace(0.5, 2, 9)
        new = stand_ins.instead(arm, key, value, torch.arange(9), codes, np.random.default_rng(0))
        torch.testing.assert_close(norms(new), norms((key, value)) if arm == "matched" else codes)
    which, size = torch.randint(0, VOCAB, (9, 3), generator=g), torch.rand(9, 3, generator=g)
    dense = torch.zeros(9, VOCAB).scatter_add_(1, which, size)
    torch.testing.assert_close(stand_ins.whole(size, which).flatten(1), dense @ made.W_dec)
    order = permuted(alive, 3)
    assert (order[alive] != torch.arange(VOCAB)[alive]).all() and (order[~alive] == torch.arange(VOCAB)[~alive]).all()
    assert sorted(order.tolist()) == list(range(VOCAB)) and alive[order[alive]].all()


def test_an_edit_is_a_fresh_run_with_the_write_replaced(planted):
    """Against whole forward passes, one replacement at a time, through the hook of the write itself."""
    model, layer, _ = planted
    text = tokens(3, LENGTH)
    place = Place(model, layer, text, WINDOW)
    rows, positions = torch.tensor([0, 2, 2]), torch.tensor([4, 7, 11])
    g = torch.Generator().manual_seed(1)
    key = torch.randn(3, layer.heads, layer.keys, generator=g)
    value = torch.randn(3, layer.heads, layer.values, generator=g)
    found = place.put(rows, positions, key, value)
    with torch.no_grad():
        clean = model(text).log_softmax(-1)
        for n, (row, at) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):

            def instead(write, hook, n=n, at=at):
                write = write.clone()
                write[0, at] = key[n, :, :, None] * value[n, :, None, :]
                return write

            with model.hooks(fwd_hooks=[(layer.hook("write"), instead)]):
                after = model(text[row : row + 1])[0].log_softmax(-1)
            kl = (clean[row].exp() * (clean[row] - after)).sum(-1)
            assert float(found.next[n]) == pytest.approx(float(kl[at]), rel=1e-3, abs=1e-6)
            assert float(found.kl[n]) == pytest.approx(float(kl[at : at + WINDOW].sum()), rel=1e-3, abs=1e-6)


def test_the_closed_form_is_what_the_layer_adds_carried_straight_to_the_logits(planted):
    model, layer, _ = planted
    text = tokens(2, LENGTH)
    place = Place(model, layer, text, WINDOW)
    rows, positions = torch.tensor([0, 1]), torch.tensor([5, 9])
    g = torch.Generator().manual_seed(2)
    key = torch.randn(2, layer.heads, layer.keys, generator=g)
    value = torch.randn(2, layer.heads, layer.values, generator=g)
    seen = {}

    def keep(name):
        return lambda v, hook: seen.__setitem__(name, v.detach())

    last = f"blocks.{len(model.blocks) - 1}.hook_resid_post"
    with torch.no_grad():
        with model.hooks(fwd_hooks=[(layer.branch, keep("clean")), (last, keep("resid"))]):
            model(text)
        for n in range(2):

            def instead(write, hook, n=n):
                write = write.clone()
                write[n, positions[n]] = key[n, :, :, None] * value[n, :, None, :]
                return write

            hooks = [(layer.hook("write"), instead), (layer.branch, keep("moved"))]
            with model.hooks(fwd_hooks=hooks):
                model(text)
            at = n, int(positions[n])
            resid = seen["resid"][at]
            there = resid + seen["moved"][at] - seen["clean"][at]
            logits = (model.ln_final(there[None, None]) - model.ln_final(resid[None, None]))[0, 0] @ model.W_U
            predicted = place.predicted(rows[n : n + 1], positions[n : n + 1], key[n : n + 1], value[n : n + 1])[0]
            torch.testing.assert_close(predicted, logits - logits.mean(), rtol=2e-3, atol=2e-4)


def test_the_closed_form_is_the_change_itself_in_the_last_layer():
    from workbench.analysis.substitution.surgery import centred
    from workbench.models import load_model
    from workbench.models.recurrent import recurrent_layers

    model = load_model("mini-mamba")
    text = tokens(4, 24)
    place = Place(model, recurrent_layers(model)[-1], text, WINDOW)
    rows, positions = torch.arange(4).repeat(2), torch.tensor([3, 7, 11, 20, 5, 9, 13, 17])
    for size in (0.0, 0.99, 3.0):  # no write, one that hardly differs, a large one
        key, value = place.key[rows, positions], size * place.value[rows, positions]
        found = place.put(rows, positions, key, value).logits - place.logits[rows, positions]
        predicted = place.predicted(rows, positions, key, value)
        assert found.abs().max() > 1e-3
        torch.testing.assert_close(predicted, centred(found), rtol=1e-3, atol=1e-4)


def test_only_the_strongest_of_each_write_where_asked():
    values = torch.tensor([[[3.0, 2.0], [1.0, 0.0], [5.0, 4.0]]])
    codes = Codes(values, torch.tensor([[[0, 1], [1, 0], [1, 0]]]))
    every = choose(codes, atoms=9, firings=9, window=1, seed=0)
    assert len(every) == 5 and (every["rank"] == 1).sum() == 2
    some = choose(codes, atoms=9, firings=9, window=1, seed=0, strongest=True)
    assert sorted(zip(some["position"], some["atom"], strict=True)) == [(0, 0), (1, 1), (2, 1)]
    assert (some["rank"] == 0).all()


def test_rates_count_what_they_say():
    import pandas as pd

    frame = pd.DataFrame(
        {
            "atom": [0, 0, 1, 1],
            "kl_ablated": [1.0, 1.0, 2.0, 0.0],  # the last does no damage and tells nothing
            "kl_atom": [0.5, 2.0, 0.0, 5.0],
            "kl_permuted": [1.0, 3.0, 1.0, 5.0],
        }
    )
    found = rates(frame, "atom", "kl", 0)
    assert (found["n"], found["atoms"]) == (3, 2)
    assert found["win_rate"] == pytest.approx(2 / 3) and found["repaired"] == pytest.approx(1 - 2.5 / 4)
    assert found["low"] == pytest.approx(0.5) and found["high"] == pytest.approx(1.0)
    assert rates(frame, "permuted", "kl", 0)["win_rate"] == pytest.approx(0.5)  # a tie counts half
    assert rates(frame, "atom", "kl", 0, against="permuted")["win_rate"] == 1.0
    assert rates(frame[frame["atom"] > 5], "atom", "kl", 0)["n"] == 0


def test_a_layer_without_writes_is_refused(planted):
    model, layer, _ = planted
    with pytest.raises(UsageError, match=r"shows nothing written into a state at 'blocks\.7"):
        layer_of(model, "blocks.7.mixer.recurrence.hook_write_key")
    assert layer_of(model, layer.hook("write_key")).index == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workspace with a small store of the miniature Mamba's writes and a dictionary trained on it."""
    root = tmp_path_factory.mktemp("writes")
    (root / "h.toml").write_text(
        'id = "small"\nhooks = ["L3W"]\nn_seq = 20\nctx = 32\nseqs_per_shard = 10\nbatch_size = 10\n[corpus]\nkind ='
        ' "mini"\n[[sources]]\nmodel = "mini-mamba"\n'
    )
    (root / "t.toml").write_text(
        f'store = "small"\nharvest = "{root}/h.toml"\nsites = ["*W"]\nexpansions = [1]\nks = [4]\nbatch_size = 256\n'
        'tokens = 5120\n[sae]\npreset = "few-steps"\n'
    )
    out = CliRunner().invoke(app, ["train", str(root / "t.toml"), "--workspace", str(root / "ws")])
    assert out.exit_code == 0, out.output
    return root / "ws"


def run(*command):
    return CliRunner().invoke(app, [str(c) for c in command])


def test_verbs_train_and_substitute_and_reuse(made):
    id = "mini-mamba.L3W-1x"
    command = ["substitute", id, "-w", made, "--atoms", 6, "--firings", 3, "--sequences", 12, "--window", 6, "--json"]
    out = run(*command)
    assert out.exit_code == 0, out.output
    about = json.loads(out.stdout)
    assert about["id"] == id and set(about["controls"]) == {"permuted", "random", "pca"}
    assert 0 <= about["win_rate"]["win_rate"] <= 1 and about["win_rate"]["n"] <= 18
    assert about["metadata"]["shape"] == [1, 16, 256] and about["metadata"]["kind"] == "Mamba"
    assert json.loads(run(*command).stdout)["version"] == about["version"]  # reused
    strongest = about["leading"]["atom"]
    told = f"where the atom is the strongest of its write (n {strongest['n']}): the atom that fires"
    assert (told in run(*command[:-1]).output) == (strongest["n"] > 0)
    other = run(*command[:-1], "--seed", 1)
    assert other.exit_code == 1 and "seed" in other.output


def test_other_verbs_say_what_reads_writes(made):
    for verb in ("features", "evaluate"):
        out = run(verb, "mini-mamba.L3W-1x", "-w", made)
        assert out.exit_code == 2 and "dictionary of writes" in out.output and "workbench substitute" in out.output
    out = run("substitute", "nothing", "-w", made)
    assert out.exit_code == 1 and "nothing" in out.output
