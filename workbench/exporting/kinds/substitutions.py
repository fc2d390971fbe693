"""Figures of a substitution (``substitutions/``): how often an atom in a write's place beats writing nothing."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from sae.strict import StrictConfig
from workbench.exporting.figures import FigureData, Panel, figure
from workbench.exporting.references import of_models
from workbench.results.substitutions import MEASURE_NAMES, SHOWN, SubstitutionRecords
from workbench.workspace import Item, Workspace

HEADINGS = {"win_rate": "wins", "low": "95 % from", "high": "to", "n": "firings", "repaired": "of the damage repaired"}
LABEL = "share of firings nearer to the clean run than with nothing written"


class WinsOptions(StrictConfig):
    """Options of ``substitution_wins``."""

    measure: Literal["kl", "next", "read"] = Field(
        "kl",
        description="what is compared: next-token distributions of the window, the next one alone, or later reads",
    )


class RanksOptions(StrictConfig):
    """``substitution_ranks`` has no options."""


def _about(records: SubstitutionRecords, item: Item, query: str = "") -> dict[str, Any]:
    return {
        "inputs": [item],
        "references": ("writesae", *of_models([str(records.metadata["model"])])),
        "permalink": f"induction?su={item.id}{query}&suv={item.version}",
    }


def _who(records: SubstitutionRecords) -> str:
    m = records.metadata
    where = f"{m['model']}{'' if not m['revision'] else '@' + m['revision']}, {m['site']}"
    chosen = ", where the atom is the strongest of its write" if m.get("strongest") else ""
    return f"atoms of {m['dictionary']} in the place of what the {m['kind']} layer writes ({where}){chosen}"


@figure("substitution_wins", source="substitutions", options=WinsOptions)
def substitution_wins(workspace: Workspace, item: Item, options: WinsOptions) -> FigureData:
    """How often an atom, and its controls, put in a write's place beat writing nothing."""
    records = SubstitutionRecords.open(item.path)
    summary = records.table("summary")
    frame = summary[summary["measure"] == options.measure].reset_index(drop=True)
    frame["arm"] = [SHOWN[a] for a in frame["arm"]]
    return FigureData(
        panels=[Panel("points", frame, x="arm", y="win_rate", low="low", high="high", y_label=LABEL)],
        caption=(
            f"Substitution ({_who(records)}), by {MEASURE_NAMES[options.measure]} over {records.metadata['window']}"
            " positions: share of firings at which what is put in leaves the model nearer to its clean run than"
            " writing nothing. The atom is scaled by its code; controls have the same norm; all atoms of the write"
            " are the dictionary's reconstruction, with its own. 95 % bootstrap intervals over atoms."
        ),
        table=frame[["arm", "n", "atoms", "win_rate", "low", "high", "repaired"]],
        n={"firings": int(item.manifest.numbers["firings"]), "atoms": int(item.manifest.numbers["atoms"])},
        columns=HEADINGS,
        alt=f"Win rates with intervals of: {', '.join(frame['arm'])}.",
        **_about(records, item, f"&by={options.measure}"),
    )


@figure("substitution_ranks", source="substitutions", options=RanksOptions)
def substitution_ranks(workspace: Workspace, item: Item, options: RanksOptions) -> FigureData:
    """The same by how strong the atom is among those of its write."""
    records = SubstitutionRecords.open(item.path)
    frame = records.table("ranks")
    frame = frame[frame["n"] > 0].reset_index(drop=True)
    frame["arm"] = [SHOWN[a] for a in frame["arm"]]
    return FigureData(
        panels=[
            Panel(
                "points",
                frame,
                x="ranks",
                y="win_rate",
                low="low",
                high="high",
                series="arm",
                x_label="rank in its write (1: strongest)",
                y_label=LABEL,
            )
        ],
        caption=(
            f"Substitution by rank ({_who(records)}): an atom that is one of several in a write stands for a part of it"
            " only. 95 % bootstrap intervals over atoms."
        ),
        table=frame[["ranks", "arm", "n", "atoms", "win_rate", "low", "high", "repaired"]],
        n={"firings": len(records.table("firings"))},
        columns=HEADINGS,
        alt="Win rates along the atom's rank among those of its write, for the atom and its controls.",
        **_about(records, item),
    )
