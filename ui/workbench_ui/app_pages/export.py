"""One click to a paper: choose a figure, its source and its style; see it; take everything as one zip."""

from __future__ import annotations

import base64
import json
import shlex
from typing import Any

import streamlit as st

from workbench.exporting import FigureSpec, Style, bundle, bundle_of, figure_kinds
from workbench.exporting.figures import Kind, build
from workbench.exporting.kinds.circuits import NAMES, metric_name
from workbench.markup.latent import GROUP_TITLES
from workbench.markup.tags import div
from workbench.markup.tokens import escape, visible
from workbench.workspace import Workspace
from workbench_ui.kit import data, panels, state
from workbench_ui.kit.commands import absolute
from workbench_ui.kit.documents import contents, selection_form, share_buttons, try_document
from workbench_ui.kit.figures import axes_line, table
from workbench_ui.kit.index import Entry
from workbench_ui.views.options import form
from workbench_ui.views.thumbnails import gallery


@st.fragment(key="export_body")
def body() -> None:
    """Choices on the left, the figure on the right."""
    with panels.guarded("The export"):
        panels.page_title(
            "Export", "the same bytes as <code>workbench export</code>, with provenance inside every file"
        )
        index = data.index()
        usable = {
            name: kind
            for name, kind in sorted(figure_kinds().items(), key=lambda x: _place(x[1]))
            if index.of(kind.source)
        }
        if not usable:
            panels.not_computed(
                "Anything to export", "workbench demo", "Figures are drawn from the results of this workspace."
            )
            return
        views = ["one figure", "all figures"]
        view = st.segmented_control(
            "View", views, required=True, label_visibility="collapsed", **state.tie_choice("view", views, views[0])
        )
        if view == views[1]:
            gallery(list(usable.values()))
            return
        kind, source = choose(usable)
        if kind.document:
            document_page(kind, source)
            return
        options = form(kind.options, f"opt_{kind.name}", _from_address(kind), _known(kind, source))
        style, caption = styling()
        keep(options, style, caption)
        spec = FigureSpec.model_validate(
            {"figure": kind.name, "source": source, "options": options, "style": style, "caption": caption}
        )
        preview(spec)


LINKED = 1500  # characters of options or style that go into the address
ORDER = ("latents", "matches", "circuits", "evolution", "maps", "claims", "evaluations")  # as people look for figures


def _place(kind: Kind) -> tuple[int, str, bool, str]:
    known = ORDER.index(kind.source) if kind.source in ORDER else len(ORDER)
    return known, kind.source, kind.document, kind.name


def _titled(kind: Kind) -> str:
    """What a figure shows, after the kind of result it is of."""
    return f"{kind.source[0].upper()}{kind.source[1:]} · {kind.title}"


def choose(usable: dict[str, Kind]) -> tuple[Kind, str]:
    """The figure and the result it shows; both live in the address."""
    index = data.index()
    names = list(usable)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        name = state.get_choice("f", names, names[0])
        st.session_state["ex_figure"] = name  # the address decides, so that Back leads to the figure before
        st.selectbox(
            "Figure",
            names,
            key="ex_figure",
            format_func=lambda n: _titled(usable[n]),
            width=520,
            on_change=_other_figure,
        )
        kind = usable[name]
        ids = [e.id for e in index.of(kind.source)]
        wanted = (state.get("src") or "").partition("/")[2] or state.get("d") or ""
        if kind.many and not kind.document:  # shows all results of its kind
            state.put(f=name, src=None)
            return kind, ""
        id = wanted if wanted in ids else ids[0]
        st.session_state["ex_source"] = id
        st.selectbox(
            f"Result ({kind.source})",
            ids,
            key="ex_source",
            format_func=visible,
            width=380,
            on_change=lambda: state.put(src=f"{kind.source}/{st.session_state['ex_source']}"),
        )
    source = f"{kind.source}/{id}"
    state.put(f=name, src=source)
    return kind, source


def _other_figure() -> None:
    state.put(f=st.session_state["ex_figure"], src=None, opts=None)


def document_page(kind: Kind, source: str) -> None:
    """A document: which latents, then its files."""
    options = selection_form(state.get_int("i", 0, 10**9))
    where = "" if options.get("list") else source
    files = try_document(kind.name, where, options)
    if files is None:
        return
    spec = FigureSpec.model_validate({"figure": kind.name, "source": where, "options": options})
    left, right = st.columns([5, 3], gap="large")
    with left:
        st.html(contents(files))
        st.html(div("wb-head", div("sub", escape(files["caption.txt"].decode().strip()))))
    with right:
        with st.container(horizontal=True, gap="small"):
            share_buttons(where, options, "ex_share")
        panels.heading("With provenance, from a shell")
        st.code(command(spec), language=None, wrap_lines=True)


def _from_address(kind: Kind) -> dict[str, Any]:
    """Options the address names: those of its own link, else the latent one came from."""
    asked = _said("opts")
    if asked:
        try:
            kind.options.model_validate(asked)
        except ValueError:
            return {}
        return asked
    latent = state.get_int("i", 0, 10**9)
    return {"latent": latent} if latent is not None and "latent" in kind.options.model_fields else {}


def _said(key: str) -> dict[str, Any]:
    """A small document of the address; empty where there is none or it is something else."""
    try:
        found = json.loads((st.query_params.get(key) or "")[:LINKED] or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def keep(options: dict[str, Any], style: dict[str, Any], caption: str) -> None:
    """Write what was chosen into the address, so that the figure is a link."""
    plain = {k: v for k, v in style.items() if v != Style().model_dump()[k]} | ({"caption": caption} if caption else {})
    texts = [json.dumps(x, sort_keys=True) if x else None for x in (options, plain)]
    fit = [t if t is None or len(t) <= LINKED else None for t in texts]
    state.put(opts=fit[0], look=fit[1])


def _known(kind: Kind, source: str) -> dict[str, dict[str, str]]:
    """Values that the text options of a figure can take on this result, and what to call them."""
    found = data.index().find(kind.source, source.partition("/")[2])
    if found is None or kind.source not in ("circuits", "latents"):
        return {}
    if kind.source == "latents":
        return {"group": {name: title for name, (title, _) in GROUP_TITLES.items()}}
    with panels.guarded("The effects of this result"):
        effects = data.open_circuit(str(found.path), found.version).effects
        profiles = kind.name == "circuit_profile"
        analyses = [
            a
            for a in NAMES
            if a in set(effects["analysis"]) and a.endswith("_profile") == profiles and a != "conv_profile"
        ]
        return {
            "analysis": {a: NAMES[a] for a in analyses},
            "metric": {m: metric_name(m) for m in dict.fromkeys(effects["metric"])},
        }
    return {}


def styling() -> tuple[dict[str, Any], str]:
    """How the figure is set; defaults are those of ``workbench export``."""
    asked = _said("look")
    start = {
        "ex_width": asked.get("width") if asked.get("width") in ("single", "double") else "single",
        "ex_size": min(24.0, max(5.0, float(asked["font_size"]))) if _number(asked.get("font_size")) else 8.0,
        "ex_palette": asked.get("palette") if asked.get("palette") in ("okabe-ito", "greys") else "okabe-ito",
        "ex_caption": str(asked.get("caption") or "")[:600],
    }
    for key, value in start.items():
        st.session_state.setdefault(key, value)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        width = st.segmented_control(
            "Width", ["single", "double"], key="ex_width", required=True, help="3.25 or 6.75 inches"
        )
        size = st.number_input("Type size, points", 5.0, 24.0, step=0.5, key="ex_size", width=150)
        palette = st.segmented_control(
            "Colours",
            ["okabe-ito", "greys"],
            key="ex_palette",
            required=True,
            format_func=lambda p: {"okabe-ito": "for all eyes (Okabe–Ito)", "greys": "greys"}[p],
        )
        caption = st.text_input(
            "Caption (first sentence)",
            key="ex_caption",
            max_chars=600,
            placeholder="written from the data unless you write one",
            width=420,
        )
    return {"width": width, "font_size": size, "palette": palette}, caption or ""


def preview(spec: FigureSpec) -> None:
    """The figure as it will print, its caption, its data, and the button."""
    workspace = Workspace(data.workspace_folder(), create=False)
    version = ".".join(e.version for e in sources(spec))
    shown = _preview(str(workspace.root), version, spec.model_dump_json())
    left, right = st.columns([5, 3], gap="large")
    with left:
        # drawn by matplotlib from the same data as the files; white paper in both themes
        picture = base64.b64encode(shown["png"]).decode()
        width: Any = "stretch" if spec.style.width == "double" else 560
        st.image(f"data:image/png;base64,{picture}", width=width, alt=shown["alt"])
        st.html(div("wb-head", div("sub", escape(shown["caption"]))))
        if shown["axes"]:
            st.html(shown["axes"])
        with st.expander("Show as table", on_change="rerun", key="ex_table", type="compact") as box:
            if box.open:
                made = build(spec, workspace)
                table(made.data, made.tokens)
    with right:
        st.download_button(
            "Download the bundle",
            lambda: bundle(spec, workspace).zip,
            file_name=f"{shown['name']}.zip",
            mime="application/zip",
            icon=":material/download:",
            on_click="ignore",
            key="ex_download",
            type="primary",
            shortcut="E",
        )
        st.html(panels.table(["in the zip", ""], [[f"<code>{name}</code>", about] for name, about in FILES]))
        panels.heading("The same from a shell")
        st.code(command(spec), language=None, wrap_lines=True)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


FILES = (
    ("figure.pdf .svg .png", "vector, fonts embedded; 300 dpi"),
    ("data.csv .parquet", "what is drawn"),
    ("table.tex refs.bib", "booktabs table, BibTeX"),
    ("caption.txt", "what, n, data version"),
    ("provenance.json", "inputs, digests, versions"),
    ("spec.json reproduce.sh", "makes it again and compares"),
)


@st.cache_data(show_spinner="drawing …", max_entries=24)
def _preview(root: str, version: str, spec_json: str) -> dict[str, Any]:
    """Everything the page shows of a spec; keyed by the spec and its source's data version."""
    spec = FigureSpec.model_validate_json(spec_json)
    workspace = Workspace(root, create=False)
    made = build(spec, workspace)
    files = bundle_of(made, spec, workspace, formats=("png",))  # the others when they are downloaded
    return {
        "png": files.files["figure.png"],
        "caption": files.files["caption.txt"].decode().strip(),
        "alt": made.alt or made.caption,
        "name": files.name,
        "axes": axes_line(made.panels, made.explained),
    }


def sources(spec: FigureSpec) -> list[Entry]:
    """The results a spec rests on, as the workspace holds them now."""
    if not spec.source:
        return data.index().of(figure_kinds()[spec.figure].source)
    found = data.index().find(*spec.source.split("/", 1))
    return [found] if found else []


def command(spec: FigureSpec) -> str:
    """The command line that writes the same bundle into the workspace."""
    defaults = Style().model_dump()
    styled = any(spec.style.model_dump()[k] != defaults[k] for k in defaults) or spec.caption
    sets = "".join(
        f" --set {shlex.quote(f'{k}={json.dumps(v) if isinstance(v, list) else v}')}" for k, v in spec.options.items()
    )
    source = f" --source {spec.source}" if spec.source else ""
    root = data.workspace_folder()
    if styled:
        return f"{absolute('workbench export spec.json', root)}   # spec.json is in the zip"
    return absolute(f"workbench export {spec.figure}{source}{sets}", root)


body()
