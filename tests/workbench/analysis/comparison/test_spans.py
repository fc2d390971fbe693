"""Models with different tokenizers are compared where their tokens end at the same character."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sae import TopKSAE
from sae.errors import UsageError
from workbench.activations import ActivationStore, HarvestRecipe, harvest
from workbench.analysis.comparison.aligned import choose_tokens
from workbench.analysis.comparison.compare import CompareRecipe
from workbench.analysis.comparison.run import compare_and_write
from workbench.analysis.comparison.spans import spans_of
from workbench.config import data_dir
from workbench.corpus import contract_of
from workbench.models import load_tokenizer
from workbench.provenance import write_manifest
from workbench.results.matches import MatchRecords
from workbench.workspace import Workspace

D, F, K = 128, 64, 8
SOURCE = data_dir() / "models" / "mini-pythia"
HOOK = "blocks.1.hook_resid_post"
RECIPE = CompareRecipe(tokens=1800, min_firings=10, baselines=("random", "shuffle"), candidates=10, shifts=(0,))


def copy_of(folder, tokenizer: dict, weights: dict) -> str:
    folder.mkdir()
    (folder / "config.json").write_bytes((SOURCE / "config.json").read_bytes())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """mini-pythia under a permuted vocabulary, and with half of its merges (its other tokens are never read)."""
    home = tmp_path_factory.mktemp("models")
    weights = load_file(SOURCE / "step9000" / "model.safetensors")
    tokenizer = json.loads((SOURCE / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    order = np.concatenate([[0], 1 + np.random.default_rng(0).permutation(len(vocab) - 1)])  # old id -> new id
    permuted = json.loads(json.dumps(tokenizer))
    permuted["model"]["vocab"] = {t: int(order[i]) for t, i in vocab.items()}
    back = torch.from_numpy(np.argsort(order))
    embedded = {
        k: v[back] if v.shape[:1] == (len(vocab),) and v.ndim == 2 and "embed" in k else v for k, v in weights.items()
    }
    halved = json.loads(json.dumps(tokenizer))
    merges = halved["model"]["merges"]
    halved["model"]["merges"] = merges[: len(merges) // 2]
    gone = {"".join(m.split(" ") if isinstance(m, str) else m) for m in merges[len(merges) // 2 :]}
    halved["model"]["vocab"] = {t: i for t, i in vocab.items() if t not in gone}
    return {
        "permuted": copy_of(home / "permuted", permuted, embedded),
        "halved": copy_of(home / "halved", halved, weights),
    }


@pytest.fixture(scope="module")
def workspace(models, tmp_path_factory) -> Workspace:
    ws = Workspace(tmp_path_factory.mktemp("ws"))
    recipe = {"id": "tiny", "hooks": ["L1R"], "n_seq": 32, "ctx": 64, "seqs_per_shard": 8}
    harvest(HarvestRecipe.model_validate({**recipe, "sources": [{"model": "mini-pythia"}]}), ws)
    mean = ActivationStore.open(ws.path("stores", "tiny")).read(HOOK).mean(0)
    g = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(F, D, generator=g), dim=1)
    for name, model in {"own": "mini-pythia", "twin": "mini-pythia", **models}.items():
        sae = TopKSAE(D, F, K)
        with torch.no_grad():
            sae.enc_FD.copy_(directions)
            sae.dec_FD.copy_(directions)
            sae.b_dec.copy_(mean)
        about = {"model_name": model, "revision": None, "hook_name": HOOK, "site": "L1R", "seed": len(name)}
        sae.metadata = about | ({"store": "tiny", "source": "mini-pythia"} if model == "mini-pythia" else {})
        sae.save(ws.path("dictionaries", name))
        write_manifest(
            ws.path("dictionaries", name), "dictionaries", name, command="x", metadata=sae.metadata | {"kind": "sae"}
        )
    return ws


def compared(ws: Workspace, a: str, b: str) -> MatchRecords:
    return MatchRecords.open(compare_and_write(ws, a, b, RECIPE, store="tiny").path)


def matched(found: MatchRecords):
    best = found.best[(found.best["direction"] == "ab") & found.best["r"].notna()]
    return best["r"].to_numpy(), (best["latent"] == best["partner"]).mean()


def test_a_permuted_vocabulary_changes_nothing(workspace):
    within, own = matched(compared(workspace, "own", "twin"))
    found = compared(workspace, "own", "permuted")
    r, same = matched(found)
    spans = found.metadata["spans"]
    assert spans["matched"] == spans["of_a"] == spans["of_b"] == found.metadata["n_tokens"] > 1500
    assert same == own == 1 and len(r) == len(within) and (r > 0.999).all() and np.allclose(r, within, atol=2e-3)
    assert found.pair("own", 3, "permuted", 3).r > 0.999 and "neurons" not in found.metadata["series"]


def test_half_the_merges_match_where_tokens_end_together(workspace):
    found = compared(workspace, "own", "halved")
    r, same = matched(found)
    spans = found.metadata["spans"]
    assert (
        spans["of_b"] > spans["of_a"] >= spans["matched"] > 0.9 * spans["of_a"]
    )  # smaller pieces end wherever larger do
    assert found.metadata["n_tokens"] == spans["matched"] and 0.3 < np.median(r) < 0.99 and same > 0.9
    _, pos, ids = found.places()
    assert found._is_row.sum() == spans["matched"] and len(ids) == len(pos)


def test_rows_end_at_the_same_character(workspace, models):
    a, b = load_tokenizer("mini-pythia"), load_tokenizer(models["halved"])
    one = spans_of(choose_tokens(ActivationStore.open(workspace.path("stores", "tiny")), 600), a, b)
    two = one.other
    assert two is not None and len(one) == len(two) and (one.seq == two.seq).all()
    for i in range(0, len(one), 37):
        s = int(np.searchsorted(one.sequences, one.seq[i]))
        texts = [
            t.decode(x.grid[s, 1 : x.pos[i] + 1], clean_up_tokenization_spaces=False) for t, x in ((a, one), (b, two))
        ]
        assert texts[0] == texts[1]
    with pytest.raises(UsageError, match="neither model's"):
        one.read_by(contract_of(load_tokenizer(models["permuted"])).words, "x")
