"""A store of one role's words: harvested, streamed, trained on, recorded, evaluated, compared; no other row."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from workbench import compare, evaluate, features, harvest, train
from workbench.activations import ActivationStore, HarvestRecipe, StreamingStore, check
from workbench.activations.read.look import look_at_store
from workbench.analysis.comparison.aligned import Activations, LiveRows, choose_tokens
from workbench.analysis.comparison.spans import spans_of
from workbench.analysis.latents.encoded import store_rows
from workbench.cli import app
from workbench.config import data_dir
from workbench.dictionaries.recipe import TrainRecipe
from workbench.models import load_tokenizer
from workbench.workspace import Workspace

SOURCE = data_dir() / "models" / "mini-pythia"
HOOK = "blocks.1.hook_resid_post"
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>\n{% endfor %}"
N, CTX = 60, 48
TRAIN = {"store": "digits", "sites": ["L1R"], "expansions": [1], "ks": [8], "batch_size": 128, "tokens": 4000}


def chat_model(folder, template=TEMPLATE, merges=None):
    """mini-pythia with a chat template; with ``merges`` it reads text by so many of them."""
    folder.mkdir()
    tokenizer = json.loads((SOURCE / "tokenizer.json").read_text())
    if merges is not None:
        model = tokenizer["model"]
        gone = {"".join(m.split(" ") if isinstance(m, str) else m) for m in model["merges"][merges:]}
        model["merges"] = model["merges"][:merges]
        model["vocab"] = {t: i for t, i in model["vocab"].items() if t not in gone}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "config.json").write_bytes((SOURCE / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes((SOURCE / "step9000" / "model.safetensors").read_bytes())
    bos = "<|bos|>"
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": bos, "pad_token": bos}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("roles")
    chat_model(home / "talker")
    rng, lines = np.random.default_rng(0), []
    for _ in range(150):  # a token's last character says whose it is: users say letters, assistants digits
        turns = [
            {"role": role, "content": " ".join(rng.choice(words, int(rng.integers(4, 12))))}
            for role, words in (("user", ["self", "return", "the", "value"]), ("assistant", ["12", "7", "3.14", "0"]))
            * 2
        ]
        lines.append(json.dumps({"messages": turns}))
    (home / "a.jsonl").write_text("\n".join(lines))
    return home


def recipe(home, id="digits", roles=("assistant",), **more):
    corpus = {"kind": "chat", "paths": [str(home / "a.jsonl")], "split": "all", "roles": list(roles)}
    values = {"id": id, "hooks": ["L1R"], "n_seq": N, "ctx": CTX, "seqs_per_shard": 16, "corpus": corpus}
    return HarvestRecipe.model_validate({**values, "sources": [{"model": str(home / "talker")}], **more})


@pytest.fixture(scope="module")
def workspace(home):
    ws = Workspace(home / "ws")
    harvest(ws, recipe(home))
    harvest(ws, recipe(home, "everybody", ()))
    return ws


@pytest.fixture(scope="module")
def store(workspace):
    return ActivationStore.open(workspace.path("stores", "digits"))


@pytest.fixture(scope="module")
def dictionary(workspace):
    return train(workspace, TrainRecipe.model_validate(TRAIN))


def of_the_role(home, ids):
    tokenizer = load_tokenizer(str(home / "talker"))
    ends = np.array([tokenizer.decode([i])[-1:].isdigit() for i in range(len(tokenizer))])
    spaces = np.array([tokenizer.decode([i]) in (" ", ".") for i in range(len(tokenizer))])
    return ends[ids], (ends | spaces)[ids]


def test_rows_are_the_words_of_the_role(store, workspace, home):
    ids, _, _ = store.tokens()
    surely, possibly = of_the_role(home, ids)
    assert possibly.all() and surely.mean() > 0.4
    grid, is_row = store.sequences_with_rows(range(N))
    assert is_row.sum() == len(store) == len(ids) and of_the_role(home, grid)[0][~is_row].sum() == 0  # none is missing
    everybody = ActivationStore.open(workspace.path("stores", "everybody"))
    assert (grid == everybody.sequences_with_rows(range(N))[0]).all() and len(everybody) > 2 * len(store)
    at = np.flatnonzero(everybody.sequences_with_rows(range(N))[1].ravel())
    same = np.searchsorted(at, np.flatnonzero(is_row.ravel()))
    assert np.allclose(store.read(HOOK), everybody.read(HOOK)[same])  # the same text in the model, fewer rows
    assert store.contract.roles == ("assistant",) and everybody.contract.roles == ()
    assert store.spec.recipe["corpus"]["roles"] == ["assistant"] and "row_mask" not in everybody.spec.model_dump()
    assert set(store.spec.plan["about"]["roles"]) == {"user", "assistant"}
    assert check(store.path, deep=True).ok and json.loads((store.path / "seal.json").read_text())["numbers"][
        "rows"
    ] == len(store)


def test_training_and_held_out_rows_are_of_the_role(store):
    rows = store.read(HOOK).numpy()
    inside = {r.tobytes() for r in rows}
    n = 0
    for split in ("train", "heldout"):
        for batch in store.batches(HOOK, 64, seed=0, split=split, epochs=1):
            assert all(r.tobytes() in inside for r in batch.numpy())
            n += len(batch)
    assert n == len(rows)


def test_a_stream_has_the_same_rows(store, home):
    with StreamingStore.from_recipe(recipe(home, "streamed"), Workspace(home / "ws2"), capacity=2) as stream:
        assert len(stream) == len(store)
        one = next(iter(stream.batches(HOOK, 64, seed=3, window=1)))
    two = next(iter(store.batches(HOOK, 64, seed=3, window=1)))
    assert np.allclose(one, two, atol=1e-5)


def test_records_evaluation_and_comparison_rest_on_the_role(workspace, store, dictionary, home):
    records = features(workspace, dictionary.id)
    assert records.manifest.numbers["n_tokens"] == len(store)
    part = sum(s.stop - s.start for s in store_rows(store, len(store) // 2))
    assert 0.3 * len(store) < part < 0.7 * len(store)
    held = int(store.sequences_with_rows(store.heldout)[1][:, 1:-1].sum())
    done = evaluate(workspace, dictionary.id, sequences=len(store.heldout))
    assert json.loads((done.path / "metrics.json").read_text())["metrics"]["ev"]["n"] == held
    fresh = evaluate(workspace, dictionary.id, sequences=8, ctx=32)  # cut anew from the store's own corpus
    assert 0 < json.loads((fresh.path / "metrics.json").read_text())["metrics"]["ev"]["n"] < 0.5 * 8 * 30
    chosen = choose_tokens(store, 300)
    assert 300 <= len(chosen) < 500 and of_the_role(home, chosen.ids)[1].all()
    live = LiveRows(chosen, Activations(workspace, chosen).model(store.spec.sources[0].model, None))
    assert np.allclose(live.read(HOOK), store.read(HOOK, chosen.numbers), atol=1e-4)
    twin = TrainRecipe.model_validate({**TRAIN, "seeds": [1]})
    other = train(workspace, twin)
    found = compare(workspace, (dictionary.id, other.id), tokens=400)
    assert 300 < found.manifest.metadata["n_tokens"] < len(store)


def test_two_tokenizers_meet_at_the_words_of_the_role(store, home):
    a = load_tokenizer(str(home / "talker"))
    b = load_tokenizer(
        chat_model(
            home / "halved", merges=len(json.loads((SOURCE / "tokenizer.json").read_text())["model"]["merges"]) // 2
        )
    )
    one = spans_of(choose_tokens(store, None), a, b)
    for side, tokenizer in ((one, a), (one.other, b)):
        assert side.of >= len(side) > 0.9 * len(store)
        assert all(tokenizer.decode([i])[-1] in " .0123456789" for i in side.ids)


def test_a_look_counts_what_is_data(store, workspace, home):
    found = look_at_store(store.path, shown=3)
    assert found.rows == len(store) and found.contract.roles == ("assistant",)
    for w in found.windows:
        assert (w.is_row == store.sequences_with_rows([w.number])[1][0]).all()
    model, talks = json.dumps(str(home / "talker")), json.dumps(str(home / "a.jsonl"))
    (home / "r.toml").write_text(
        f'id = "digits"\nhooks = ["L1R"]\nn_seq = {N}\nctx = {CTX}\nsources = [{{model = {model}}}]\n'
        f'[corpus]\nkind = "chat"\npaths = [{talks}]\nsplit = "all"\nroles = ["assistant"]\n'
    )
    out = CliRunner().invoke(app, ["text", str(home / "r.toml"), "--json"])
    assert out.exit_code == 0, out.stderr
    said = json.loads(out.stdout)
    assert said["rows"] == len(store) and said["contract"] == store.spec.plan["contract"]
    assert said["roles"] == said["corpora"][0]["roles"] == store.spec.plan["about"]["roles"]
    lines = CliRunner().invoke(app, ["text", str(home / "r.toml")]).stderr
    assert "rows of roles: the words of assistant alone" in lines and "⟦" in lines
    bad = (home / "r.toml").read_text().replace('["assistant"]', '["bot"]')
    (home / "bad.toml").write_text(bad)
    out = CliRunner().invoke(app, ["text", str(home / "bad.toml")])
    assert out.exit_code == 2 and "'bot'" in out.stderr and "'assistant'" in out.stderr


def test_what_decides_the_rows_decides_reuse(workspace, home):
    from workbench.activations.format.errors import StoreMismatch

    with pytest.raises(StoreMismatch, match="roles"):
        harvest(workspace, recipe(home, roles=("user",)))
