"""Figure of the massive activations of a store: where they are, what they hold, and what they do to explained variance.

Everything shown was measured when the latents of the store's dictionaries were recorded, and when they were trained.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from sae.errors import MissingError
from sae.strict import StrictConfig
from workbench.exporting.figures import FigureData, Panel, figure
from workbench.exporting.references import of_models
from workbench.markup.tokens import visible
from workbench.results.records import LatentRecords
from workbench.workspace import Item, Workspace

SHOWN = 12  # places, those that hold most at any site


class MassiveOptions(StrictConfig):
    """No options."""


@figure("massive_activations", source="stores", options=MassiveOptions)
def massive_activations(workspace: Workspace, item: Item, options: MassiveOptions) -> FigureData:
    """Where massive activations are, site by site, and explained variance with and without them."""
    sites = massive_sites(workspace, item)
    if not sites:
        raise MissingError(
            f"where store {item.id!r} has massive rows is said by the latent records of its dictionaries, and none"
            " are there. `workbench features DICTIONARY` does it."
        )
    if old := [s for s in sites if s["n"] and "places" not in s["massive"]]:
        raise MissingError(
            f"the latents of {old[0]['dictionary']} were recorded by an earlier version, which did not keep what each"
            f" place holds. `workbench features {old[0]['dictionary']} --replace` does it."
        )
    order = [s["site"] for s in sites]
    places = _places(sites)
    panels = []
    if len(places):
        panels.append(
            Panel(
                "heat",
                places,
                x="site",
                y="place",
                value="share",
                x_label="site",
                y_label="position: token",
                value_label="share of all squared norm",
                title="Where they are",
                z_range=(0.0, max(1e-9, float(places["share"].max()))),
            )
        )
    shares = pd.DataFrame(
        [
            {"site": s["site"], "what": what, "value": s[key]}
            for what, key in NUMBERS.items()
            for s in sites
            if s[key] is not None
        ]
    )
    panels.append(
        Panel(
            "heat",
            shares,
            x="site",
            y="what",
            value="value",
            x_label="site",
            y_label=" ",
            value_label="share",
            title="What they do to numbers",
            z_range=(0.0, 1.0),
        )
    )
    table = pd.DataFrame([{k: s[k] for k in ("site", "dictionary", "n_rows", "n", *NUMBERS.values())} for s in sites])
    most = max(sites, key=lambda s: s["square_share"])
    said = (
        f" At {most['site']} {most['n']:,} of {most['n_rows']:,} rows hold {most['square_share']:.0%} of all squared"
        " norm."
        if most["n"]
        else " There are none."
    )
    factor = round(max(s["massive"]["limit"] / (s["massive"]["median_norm"] or 1.0) for s in sites), 6)
    models = sorted({str(s["model"]) for s in sites})
    return FigureData(
        panels=panels,
        caption=(
            f"Massive activations of store {item.id}: rows longer than {factor:g} times the median norm of their site,"
            f" as found among the rows on which latents were recorded.{said} Training leaves them out; explained"
            f" variance on held-out rows is given with and without them. Sites: {', '.join(order)}."
        ),
        table=table,
        n={"sites": len(sites), "rows": min(int(s["n_rows"]) for s in sites)},
        inputs=[item, *(s["records"] for s in sites)],
        references=("massive", *of_models(models)),
        tokens=("place",),
        permalink=f"text?st={item.id}&stv={item.version}",
        alt=f"Heat maps by site.{said}",
        columns={"n_rows": "rows", "n": "massive", **{v: k for k, v in NUMBERS.items()}},
    )


NUMBERS = {
    "of the rows": "share",
    "of all squared norm": "square_share",
    "EV, all rows": "ev",
    "EV, without them": "ev_inliers",
}


def massive_sites(workspace: Workspace, item: Item) -> list[dict[str, Any]]:
    """One row per site of a store whose latents are recorded, shallow layers first: what the records say of massive
    rows (``massive``), ``words`` (token id -> text), and explained variance as training measured it, with and without
    them.
    """
    from workbench.models.sites import parse_site  # how models are loaded comes with it

    found: dict[str, dict[str, Any]] = {}
    for dictionary in workspace.items("dictionaries"):
        about, numbers = dictionary.manifest.metadata, dictionary.manifest.numbers
        if about.get("store") != item.id or not workspace.complete("latents", dictionary.id):
            continue
        records = workspace.get("latents", dictionary.id)
        massive = records.manifest.metadata.get("massive")
        name = f"{about['source']} {about['site']}" if about.get("source") else str(about["site"])
        if not massive or name in found:  # what a site's rows are does not depend on the dictionary
            continue
        found[name] = {
            "site": name,
            "order": (str(about.get("source")), *parse_site(str(about["site"]))),
            "model": str(about.get("model_name", "")),
            "dictionary": dictionary.id,
            "records": records,
            "massive": massive,
            "words": LatentRecords.open(records.path).vocab if massive["n"] else [],
            "n": int(massive["n"]),
            "n_rows": int(massive["n_rows"]),
            "share": massive["n"] / massive["n_rows"],
            "square_share": float(massive["square_share"]),
            "ev": numbers.get("explained_variance"),
            "ev_inliers": numbers.get("explained_variance_inliers"),
        }
    sites = sorted(found.values(), key=lambda s: s["order"])
    if len({s["order"][0] for s in sites}) == 1:  # one model: its name at every site says nothing
        for s in sites:
            s["site"] = s["site"].rsplit(" ", 1)[-1]
    return sites


def _places(sites: list[dict[str, Any]]) -> pd.DataFrame:
    """``site, place, position, token, rows, share`` of the places that hold most; zero where a site has none there."""
    rows = [
        {"site": s["site"], "position": p, "token": t, "rows": n, "share": share, "place": f"{p}: {_word(s, t)}"}
        for s in sites
        for p, t, n, share in s["massive"].get("places", [])
    ]
    if not rows:
        return pd.DataFrame()
    frame = pd.DataFrame(rows)
    top = frame.groupby("place")["share"].max().nlargest(SHOWN).index
    frame = frame[frame["place"].isin(top)]
    every = pd.MultiIndex.from_product([[s["site"] for s in sites], top], names=["site", "place"])
    whole = frame.set_index(["site", "place"])[["rows", "share"]].reindex(every, fill_value=0).reset_index()
    return whole[["site", "place", "rows", "share"]]


def _word(site: dict[str, Any], token: int) -> str:
    words = site["words"]
    return visible(words[token]) if 0 <= token < len(words) else f"⟨{token}⟩"
