"""Links: what an export calls its permalink opens the page that shows it, and a link made on other data says so."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qsl, urlsplit

import pytest
from streamlit.testing.v1 import AppTest

from sae.errors import MissingError, UserError
from tests.ui.conftest import page_text, param
from workbench.exporting import FigureSpec
from workbench.exporting.figures import Kind, figure_kinds, make
from workbench.workspace import Workspace
from workbench_ui.kit.pages import PAGES
from workbench_ui.views import thumbnails

Open = Callable[..., AppTest]
OPTIONS = {
    "latents_page": {"latents": [3]},
    "neuronpedia": {"latents": [3]},
    "evolution_norms": {"latents": [5, 9]},
    "pair": {"latent": 3},
}
VERSIONS = ("v", "mv", "trv", "tfv", "mbv", "evv", "grv", "mapv", "cv", "dsv", "stv", "suv")


def link_of(ws: Workspace, kind: Kind) -> tuple[str, dict[str, str]] | None:
    """Page and query of a figure's permalink, for the first result that can show it."""
    for item in ws.items(kind.source):
        spec = FigureSpec(figure=kind.name, source=f"{kind.source}/{item.id}", options=OPTIONS.get(kind.name, {}))
        try:
            link = urlsplit(make(spec, ws).permalink)
        except (UserError, KeyError, ValueError):
            continue  # the synthetic result does not hold what this figure shows
        return link.path, dict(parse_qsl(link.query))
    return None


@pytest.mark.parametrize("name", sorted(n for n, k in figure_kinds().items() if not k.live))
def test_permalink_opens_what_was_exported(name: str, open_page: Open, full: Workspace) -> None:
    found = link_of(full, figure_kinds()[name])
    if found is None:
        assert not full.items(figure_kinds()[name].source) or name in UNSHOWN, name
        return
    page, query = found
    assert page in {p.stem for p in PAGES}
    at = open_page(full, page, **query)
    text = page_text(at)
    assert not at.exception and "cannot be shown" not in text
    assert "made on data version" not in text and "is not in this workspace" not in text
    for key, value in query.items():  # nothing of the link was thrown away
        if key not in ("way", "base", "g", "along"):  # defaults leave the address
            assert param(at, key) == value, key
    versions = [k for k in query if k in VERSIONS]
    for key in versions:
        at = open_page(full, page, **{**query, key: "deadbeef"})
        assert "made on data version <code>deadbeef</code>" in page_text(at), key
    assert versions or page in ("results",)


# the synthetic results hold no evaluations, nulls, depths, attribution, sizes or widths, and no claim with a curve
UNSHOWN = (
    "claim_curve",
    "mppc_chance",
    "mppc_depth",
    "evolution_attribution",
    "suite_summary",
    "evolution_emergence",
    "massive_activations",
)


@pytest.mark.parametrize(
    "page, key",
    (
        ("mppc", "m"),
        ("training", "ev"),
        ("graph", "gr"),
        ("map", "map"),
        ("results", "c"),
        ("induction", "mb"),
        ("states", "st"),
    ),
)
def test_old_and_foreign_links_to_results(page: str, key: str, open_page: Open, full: Workspace) -> None:
    at = open_page(full, page)
    id, version = param(at, key), param(at, f"{key}v")
    at = open_page(full, page, **{key: id, f"{key}v": "deadbeef"})
    assert "made on data version <code>deadbeef</code>" in page_text(at)
    at.button(key=f"wb_use_{key}").click().run()
    assert "deadbeef" not in page_text(at) and param(at, f"{key}v") == version
    for bad in ("../../etc/passwd", "<script>window.__pwn=1</script>", "x" * 100_000):
        at = open_page(full, page, **{key: bad, f"{key}v": bad})
        text = page_text(at)
        assert not at.exception and "is not in this workspace" in text and "<script" not in text and "root:" not in text
        assert param(at, key) == id and len(param(at, f"{key}v")) == 8


def test_export_shows_the_figure_of_the_address(open_page: Callable[..., AppTest], full: Workspace) -> None:
    """Back leads to the figure before: what the address says wins over what was chosen last."""
    at = open_page(full, "export", f="latent_contexts", src="latents/mini-pythia.L1R-8x")
    at.selectbox(key="ex_figure").set_value("latent_densities").run()
    assert not at.exception and at.query_params["f"] in ("latent_densities", ["latent_densities"])
    at.query_params["f"], at.query_params["src"] = "latent_contexts", "latents/mini-pythia.L2R-8x"
    at.run()
    assert at.selectbox(key="ex_figure").value == "latent_contexts"
    assert at.selectbox(key="ex_source").value == "mini-pythia.L2R-8x"


def test_the_gallery_leads_to_every_figure(open_page: Open, full: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card for each figure the workspace can show, with its picture in small, or with why there is none."""
    drawn: list[str] = []

    def small(root: str, version: str, figure: str, sources: tuple[str, ...]) -> tuple[bytes, str]:
        drawn.append(figure)
        raise MissingError("not here")

    real = thumbnails._thumbnail
    monkeypatch.setattr(thumbnails, "_thumbnail", small)
    text = page_text(open_page(full, "export", view="all figures"))
    shown = {n: k for n, k in figure_kinds().items() if full.items(k.source)}
    assert len(shown) > 20 and all(f'href="export?f={name}"' in text for name in shown)
    assert set(drawn) == {n for n, k in shown.items() if not (k.document or k.live)}  # nothing runs a model for it
    assert "runs the language model" in text and "files to open" in text and "not here" in text
    headings = [f"{k.source[0].upper()}{k.source[1:]}" for k in shown.values()]
    assert all(text.count(f"<h2>{h}</h2>") == 1 for h in set(headings)), "figures of one kind of result stand together"
    found = real(str(full.root), "v", "latent_densities", ("latents/mini-pythia.L1R-8x",))
    assert isinstance(found, tuple) and found[0].startswith(b"\x89PNG") and "densities" in found[1]
    with pytest.raises(UserError, match="follows one model"):  # raised, so not kept: what is missing may come
        real(str(full.root), "v", "evolution_architectures", ("evolution/mini-pythia.L1R",))


def test_the_front_door_offers_what_fits_the_models_at_hand(
    open_page: Open, minimal: Workspace, full: Workspace
) -> None:
    """No recipe of another model, no claims about other models in this workspace."""
    text = page_text(open_page(minimal))
    assert "needs a recipe over several snapshots" in text and "come with the program" in text
    assert "mini-evolve" not in text and "reproduce all" not in text and "Transformers are compared" not in text
    assert "Transformers are compared" in page_text(open_page(full))
