"""The numbers of ``docs/start/real-model.md``, from a workspace of ``make demo-real``:

    python docs/real_model.py WORKSPACE [--latents DICTIONARY:LATENT …] [--write docs/start/real-model.md]

Prints, or writes between the page's two marks, what the workspace says of its dictionaries, what evaluation measured,
latents with their label, F1 on tokens the label was not chosen on, and three contexts, and the induction heads by both
criteria. Without ``--latents`` the ones with the best labels are taken that fire on more than one token, at most
``PER_SITE`` a site.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.markup.tokens import visible
from workbench.results.circuits import CircuitResult
from workbench.results.records import Context, LatentRecords
from workbench.workspace import Item, Workspace

BEGIN, END = "<!-- numbers -->", "<!-- end of numbers -->"
LATENTS, PER_SITE, CONTEXTS, AROUND = 10, 4, 3, 8
SIGNS = "&<>|*_`[]#\\"  # what Markdown or HTML would take for their own
COMPLEX = 0.4  # least share of a latent's variance that the token and the one before it do not explain


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--latents", nargs="*", default=[], metavar="DICTIONARY:LATENT")
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    ws = Workspace(args.workspace, create=False)
    dictionaries = [d for d in ws.items("dictionaries") if "explained_variance" in d.manifest.numbers]
    named = [(id, int(i)) for id, _, i in (text.rpartition(":") for text in args.latents)] or chosen(ws, dictionaries)
    how = "Chosen by hand among latents with a good label" if args.latents else "Those with the best labels"
    about = f"{how} (`n`: strong firings on the tokens that F1 is measured on)."
    parts = [quality(ws, dictionaries), about if named else "", latents(ws, named), heads(ws)]
    text = "\n\n".join(p for p in parts if p)
    if args.write is None:
        print(text)
        return
    page = args.write.read_text()
    before, _, rest = page.partition(BEGIN)
    args.write.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}")


def quality(ws: Workspace, dictionaries: list[Item]) -> str:
    """One row per dictionary: what training measured on held-out rows, and what evaluation measured in the model."""
    rows = [
        "| dictionary | latents | k | EV, all rows | EV, without massive rows | massive rows (squared norm) | dead |"
        " CE recovered (zero) | CE recovered (mean) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    counts: set[str] = set()
    for d in sorted(dictionaries, key=lambda d: (d.id.endswith("TC"), d.id)):
        n = d.manifest.numbers
        e = ws.get("evaluations", d.id).manifest.numbers if ws.complete("evaluations", d.id) else {}
        counts.add(f"{n['n_heldout']:,} held-out rows" + (f", CE on {e['ev']['n']:,} tokens" if e else ""))
        rows.append(
            f"| {d.id} | {n['d_sae']:,} | {n['k']} | {n['explained_variance']:.3f} |"
            f" {n['explained_variance_inliers']:.3f} | {n['massive_share']:.2%} ({n['massive_square_share']:.0%}) |"
            f" {n['dead_share']:.1%} | {_estimate(e, 'ce_recovered_zero')} | {_estimate(e, 'ce_recovered_mean')} |"
        )
    return "\n".join([*rows, "", f"EV on {'; '.join(sorted(counts))}; intervals are 95 %."])


def _estimate(numbers: dict[str, Any], name: str) -> str:
    e = numbers.get(name)
    return "–" if not e or e["value"] is None else f"{e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]"


def labels(ws: Workspace, id: str) -> pd.DataFrame:
    """The labels by rule of a dictionary's latents that have one, by latent."""
    table = pd.read_parquet(ws.get("explanations", f"{id}.rules").path / "labels.parquet")
    return table[table["label"].notna()].set_index("latent")


def chosen(ws: Workspace, dictionaries: list[Item]) -> list[tuple[str, int]]:
    """(dictionary, latent) with the best labels among those that need more than the token to be explained."""
    found = []
    for d in dictionaries:
        if not ws.complete("explanations", f"{d.id}.rules") or not ws.complete("latents", d.id):
            continue
        table = labels(ws, d.id)
        table = table[table["complexity"] >= COMPLEX].nlargest(PER_SITE, "f1")
        found += [(float(row["f1"]), d.id, int(str(latent))) for latent, row in table.iterrows()]
    return [(id, latent) for _, id, latent in sorted(found, reverse=True)[:LATENTS]]


def latents(ws: Workspace, named: list[tuple[str, int]]) -> str:
    """One row per latent; nothing where none is labelled yet."""
    if not named:
        return ""
    rows = [
        "| latent | label by rule | F1 | n | fires on | contexts, **the strongest token** marked |",
        "|---|---|---|---|---|---|",
    ]
    for id, latent in named:
        records, table = LatentRecords.open(ws.get("latents", id).path), labels(ws, id)
        if latent not in table.index:
            raise SystemExit(f"latent {latent} of {id} has no label by rule, so it cannot be listed with one.")
        row = table.loc[latent]
        shown = "<br>".join(_context(c) for c in records.contexts(latent, "top", CONTEXTS))
        density = records.row(latent)["density"]
        rows.append(
            f"| {id} #{latent} | {_plain(str(row['label']))} | {row['f1']:.2f} | {row['n_strong']:,} | {density:.2%} |"
            f" {shown} |"
        )
    return "\n".join(rows)


def _context(c: Context) -> str:
    before, after = c.tokens[max(0, c.peak - AROUND) : c.peak], c.tokens[c.peak + 1 : c.peak + 1 + AROUND // 2]
    word = _plain(c.tokens[c.peak])
    inside = word.strip()  # what begins or ends with a space is not set in bold
    marked = word.replace(inside, f"**{inside}**", 1) if inside else f"**{visible(word)}**"
    return f"…{_plain(''.join(before))}{marked}{_plain(''.join(after))}…"


def _plain(text: str) -> str:
    """Text as it stands in a cell of a Markdown table."""
    text = "".join(visible(ch) if ch in "\n\t\r" else ch for ch in text)
    for sign, instead in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        ("|", "&#124;"),
        ("*", "&#42;"),
        ("_", "&#95;"),
        ("`", "&#96;"),
    ):
        text = text.replace(sign, instead)
    return text


def heads(ws: Workspace) -> str:
    """What each criterion says of the induction heads, and the numbers of those that both name."""
    parts = []
    for item in ws.items("circuits"):
        n, result = item.manifest.numbers, CircuitResult.open(item.path)
        if "induction_heads" not in n or result.scores is None:
            continue
        found, about = n["induction_heads"], item.manifest.metadata
        parts += [f"{found['sentence']} {n['previous_token_heads']['sentence']} ({about['n_prompts']} prompts)", ""]
        parts += ["| head | attention from the last token to B | logit difference lost without B's key and value |"]
        parts += ["|---|---|---|"]
        both = [h for h in found["effect"] if h in found["attention"]]
        for layer, unit in both or found["attention"][:4]:
            here = {"layer": layer, "unit": unit}
            looks = _one(result.scores, {**here, "score": "induction"})
            does = _one(result.select(analysis="read_profile", metric="logit_diff", position=about["focus"]), here)
            parts.append(f"| L{layer}H{unit} | {_interval(looks, 'value')} | {_interval(does, 'effect')} |")
    return "\n".join(parts)


def _one(table: pd.DataFrame, equal: dict[str, Any]) -> pd.Series | None:
    for column, value in equal.items():
        table = table[table[column] == value]
    return table.iloc[0] if len(table) else None


def _interval(row: pd.Series | None, value: str) -> str:
    return "not measured" if row is None else f"{row[value]:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


if __name__ == "__main__":
    main()
