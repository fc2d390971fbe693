"""Latents as an HTML file and as Neuronpedia's JSON: complete, deterministic, and nothing hostile
survives as markup.
"""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from sae.errors import MissingError, UsageError
from tests.ui.synthetic import hostile_tokens, make_workspace
from workbench.exporting import FigureSpec, bundle
from workbench.exporting.documents.neuronpedia import batch, place
from workbench.results.lists import LatentList, ListItem, save_list
from workbench.results.records import LatentRecords
from workbench.workspace import Workspace

A, B = "mini-pythia.L2R-8x", "mini-mamba.L2R-8x"
# keys of SAEDashboard's NeuronpediaDashboardFeature.to_dict and NeuronpediaDashboardActivation.to_dict
FEATURE = {
    "feature_index",
    "neuron_alignment_indices",
    "neuron_alignment_values",
    "neuron_alignment_l1",
    "correlated_neurons_indices",
    "correlated_neurons_l1",
    "correlated_neurons_pearson",
    "correlated_features_indices",
    "correlated_features_l1",
    "correlated_features_pearson",
    "neg_str",
    "neg_values",
    "pos_str",
    "pos_values",
    "frac_nonzero",
    "freq_hist_data_bar_values",
    "freq_hist_data_bar_heights",
    "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values",
    "n_prompts_total",
    "n_tokens_in_prompt",
    "dataset",
    "decoder_weights_dist",
    "activations",
    "vector",
}
ACTIVATION = {"bin_min", "bin_max", "bin_contains", "tokens", "values", "qualifying_token_index"}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    ws = make_workspace(tmp_path_factory.mktemp("documents") / "ws", hostile=True)
    bad = hostile_tokens()
    items = tuple(ListItem(dictionary=d, latent=i, note=bad[i]) for d, i in ((A, 3), (B, 1), (A, 0)))
    save_list(ws.root, LatentList(name=bad[1][:100], items=items), "mixed")
    return ws


class Reader(HTMLParser):
    """Tags, attributes and text of a document."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_page_is_one_harmless_file(hostile: Workspace) -> None:
    spec = FigureSpec.model_validate({"figure": "latents_page", "options": {"list": "mixed"}})
    made = bundle(spec, hostile)
    assert made.zip == bundle(spec, hostile).zip
    text = made.files["latents.html"].decode()
    read = Reader(text)
    names = {tag for tag, _ in read.tags}
    assert not names & {"script", "img", "svg", "link", "iframe", "form", "input", "object", "base"}
    assert all(not (k.startswith("on") or k in ("src", "action")) for _, attrs in read.tags for k in attrs)
    assert all(a.get("href", "#").startswith("#") for _, a in read.tags)
    styles = re.findall("<style>(.*?)</style>", text, re.DOTALL) + [str(a.get("style")) for _, a in read.tags]
    assert not any("url(" in x or "@import" in x for x in styles) and "default-src 'none'" in text
    assert not re.search("[\u202e\u200b\u2066\x00]", text)
    said = "".join(read.words)
    for part in ("Latent 3", "Latent 1", "Latent 0", A, B, "Direct logit effect", "Near misses", "data version"):
        assert part in said, part
    assert str(hostile.root) not in text


def test_batch_has_the_schema_of_the_importer(hostile: Workspace) -> None:
    records = LatentRecords.open(hostile.path("latents", A))
    made = batch(records, [3, 0], 4)
    assert set(made) == {"model_id", "layer", "sae_set", "sae_id_suffix", "features"}
    assert (made["model_id"], made["layer"], made["sae_set"]) == ("mini-pythia", 2, "workbench-res-8x")
    assert place(LatentRecords.open(hostile.path("latents", "mini-pythia@step512.L2R-8x")))["source"].endswith(
        "__step512"
    )
    for f, latent in zip(made["features"], (3, 0), strict=True):
        assert set(f) == FEATURE and f["feature_index"] == latent
        assert len(f["freq_hist_data_bar_values"]) == len(f["freq_hist_data_bar_heights"])
        assert sum(f["freq_hist_data_bar_heights"]) == records.row(latent)["n_fired"]
        assert f["pos_values"] == sorted(f["pos_values"], reverse=True) and len(f["pos_str"]) == len(f["pos_values"])
        for a in f["activations"]:
            assert set(a) == ACTIVATION and len(a["tokens"]) == len(a["values"])
        top = [a for a in f["activations"] if a["bin_contains"] == -1]
        assert len(top) == 4 and all(a["values"][a["qualifying_token_index"]] > 0 for a in top)
        shares = {a["bin_max"]: a["bin_contains"] for a in f["activations"] if a["bin_contains"] != -1}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-3)


def test_feature_answers_like_the_interface(hostile: Workspace) -> None:
    made = bundle(
        FigureSpec.model_validate({"figure": "neuronpedia", "options": {"list": "mixed", "contexts": 2}}), hostile
    )
    assert {n for n in made.files if n.endswith(".json") and "/" in n} == {
        "mini-pythia/2-workbench-res-8x/batch-0.json",
        "mini-pythia/2-workbench-res-8x/features/3.json",
        "mini-pythia/2-workbench-res-8x/features/0.json",
        "mini-mamba/2-workbench-res-8x/batch-0.json",
        "mini-mamba/2-workbench-res-8x/features/1.json",
    }
    feature = json.loads(made.files["mini-pythia/2-workbench-res-8x/features/3.json"])
    records = LatentRecords.open(hostile.path("latents", A))
    assert (feature["modelId"], feature["layer"], feature["index"]) == ("mini-pythia", "2-workbench-res-8x", "3")
    first, context = feature["activations"][0], records.contexts(3, "top", 1)[0]
    assert (
        first["maxValue"] == first["values"][first["maxValueTokenIndex"]] == pytest.approx(max(context.acts), rel=1e-6)
    )
    assert feature["topkCosSimIndices"] == [i for i, _ in records.neighbours(3)]
    assert json.loads(made.files["provenance.json"])["data_sha256"] == made.data_sha256


@pytest.mark.parametrize(
    ("options", "source", "error", "words"),
    [
        ({}, f"latents/{A}", UsageError, "say which latents"),
        ({"latents": [1], "list": "mixed"}, f"latents/{A}", UsageError, "say which latents"),
        ({"latents": [10**6]}, f"latents/{A}", UsageError, "1000000"),
        ({"latents": [1]}, "", UsageError, "--source latents/"),
        ({"list": "mixt"}, "", MissingError, "mixed"),
    ],
)
def test_a_wrong_selection_says_so(
    hostile: Workspace, options: dict, source: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=re.escape(words)):
        bundle(FigureSpec.model_validate({"figure": "latents_page", "source": source, "options": options}), hostile)
