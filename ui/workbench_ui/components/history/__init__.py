"""The back button: one entry of the browser's history per page and state, complete and no more.

Streamlit makes an entry for every write to the address. A page that is opened writes what it shows (dictionary, latent,
data version) one by one, and on the way to another page the new page's values are first written behind the old page's
path. Going back would lead through all of that. So a write that only completes the address replaces the entry, and one
that belongs to the page to come is left to that page's own entry, which holds it anyway. After a step back, until the
reader does something, nothing that is written can be a step
on: what the server still owed from the page before is left out, however late it comes.
"""

from __future__ import annotations

from workbench_ui.components import mount

COMPLETED = {  # the keys that a page writes by itself
    "results": ("c", "cv"),
    "latents": ("d", "v"),
    "latent": ("d", "v", "i"),
    "probe": ("d", "v", "ds", "dsv"),
    "mppc": ("m", "mv", "tr", "trv"),
    "pair": ("m", "mv", "d", "i", "d2", "i2"),
    "training": ("ev", "evv", "ls"),
    "induction": ("tf", "tfv", "mb", "mbv", "task", "met", "su", "suv"),
    "states": ("st", "stv"),
    "graph": ("gr", "grv"),
    "map": ("map", "mapv"),
    "text": ("st", "stv"),
    "export": ("f", "src", "opts", "look"),
}
LASTING = (
    "d",
    "f",
    "m",
    "ev",
    "gr",
    "map",
    "c",
    "tf",
    "mb",
    "st",
)  # keys that no page takes away while one stays on it


def tidy_history() -> None:
    """Mount the behaviour; once per visit is enough, more do no harm."""
    mount("history")(
        key="wb_history",
        data={"completed": {k: list(v) for k, v in COMPLETED.items()}, "lasting": list(LASTING)},
        height=1,
    )
