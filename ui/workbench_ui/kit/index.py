"""What a workspace holds, read once per change: dictionaries with where they sit, everything else by kind.

Pages look ids up here and never build a path from an address. A result that cannot be read is listed with the reason,
and the rest stays usable.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sae.errors import CorruptError, UserError
from sae.files import read_json, sha256_file
from sae.strict import parse_config
from workbench.markup.names import id_parts, place
from workbench.provenance import Manifest
from workbench.results.family import UNKNOWN, family_of
from workbench.results.stale import Known, Stale, stale_results
from workbench.workspace import KINDS, Item, Workspace

_SITE = re.compile(r"L(\d+)(TC|[RAMSW])")


@dataclass(frozen=True)
class Entry:
    """One complete result of any kind: its manifest and where it lies."""

    kind: str
    id: str
    path: Path
    manifest: Manifest
    version: str

    @property
    def numbers(self) -> dict[str, Any]:
        return self.manifest.numbers

    @property
    def metadata(self) -> dict[str, Any]:
        return self.manifest.metadata


@dataclass(frozen=True)
class Dictionary:
    """A dictionary as the pages show it. ``records`` is None while its latent records are not computed."""

    id: str
    model: str
    architecture: str
    revision: str
    site: str
    layer: int
    variant: str
    entry: Entry | None
    records: Entry | None
    evaluation: Entry | None = None
    labels: str = ""  # versions of the explanations that the records join
    stale: str = ""  # why, where it or its records rest on something that was made again since

    @property
    def version(self) -> str:
        """Data version shown beside its numbers: that of the records, else that of the dictionary."""
        found = self.records or self.entry
        return found.version if found else ""

    @property
    def key(self) -> str:
        """What opened records are kept under: they change with the explanations that are joined to them."""
        return f"{self.version}.{self.labels}"

    @property
    def place(self) -> str:
        """``layer 2, residual stream``, in words."""
        return place(self.site)

    @property
    def numbers(self) -> dict[str, Any]:
        """Headline numbers of the dictionary and of its records."""
        return {**(self.records.numbers if self.records else {}), **(self.entry.numbers if self.entry else {})}

    @property
    def about(self) -> dict[str, Any]:
        """Metadata of the dictionary and of its records (the records win)."""
        return {**(self.entry.metadata if self.entry else {}), **(self.records.metadata if self.records else {})}

    @property
    def has_rows(self) -> bool:
        """Whether latent records can be made: not where several models were read while they ran, and no store holds
        their rows.
        """
        return bool(self.about.get("store")) or not self.about.get("sources")


@dataclass(frozen=True)
class Index:
    """Everything complete in a workspace, plus what could not be read."""

    root: Path
    entries: dict[str, dict[str, Entry]] = field(repr=False)
    problems: tuple[tuple[str, str], ...]

    def of(self, kind: str) -> list[Entry]:
        """All entries of a kind, by id."""
        return list(self.entries.get(kind, {}).values())

    def find(self, kind: str, id: str | None) -> Entry | None:
        """The entry of that kind and id, if it exists. Any string is safe to ask for."""
        return self.entries.get(kind, {}).get(id or "")

    @cached_property
    def stale(self) -> dict[tuple[str, str], Stale]:
        """Results that rest on something that was made again since, by (kind, id)."""
        return stale_results(
            {(kind, id): Known(e.manifest, e.version) for kind, of in self.entries.items() for id, e in of.items()}
        )

    @cached_property
    def dictionaries(self) -> dict[str, Dictionary]:
        """By id, ordered as people look for them: model, snapshot, layer, site."""
        ids = {*self.entries.get("dictionaries", {}), *self.entries.get("latents", {})}
        found = [self._dictionary(i) for i in ids]
        return {
            d.id: d
            for d in sorted(
                found,
                key=lambda d: (
                    architecture_order(d.architecture),
                    d.model,
                    step(d.revision),
                    d.layer,
                    d.site,
                    _width(d.id),
                    d.variant,
                    d.id,
                ),
            )
        }

    def _dictionary(self, id: str) -> Dictionary:
        entry, records = self.find("dictionaries", id), self.find("latents", id)
        about = {**(entry.metadata if entry else {}), **(records.metadata if records else {})}
        parts = id_parts(id)
        model = str(about.get("model") or about.get("model_name") or parts.get("model") or id)
        model = Path(model).name if Path(model).is_absolute() else model  # an older workspace may hold a path
        site = str(about.get("site") or parts.get("site") or "")
        revision = about.get("revision") or parts.get("revision") or "final"
        found = _SITE.fullmatch(site)
        seed = f" seed {parts['seed']}" if parts.get("seed") else ""
        kind = str(about.get("kind") or "sae")
        variant = (f"{kind} {parts['n']}×{seed}" if parts.get("n") else f"{kind} {id}").replace("sae ", "SAE ")
        return Dictionary(
            id=id,
            model=model,
            architecture=self.architecture(model, site),
            revision=str(revision),
            site=site,
            layer=int(found[1]) if found else -1,
            variant=variant,
            entry=entry,
            records=records,
            evaluation=next((e for e in self.of("evaluations") if id in (e.id, e.metadata.get("dictionary"))), None),
            labels=".".join(e.version for e in self.of("explanations") if e.metadata.get("dictionary") == id),
            stale="; ".join(str(s) for kind in ("dictionaries", "latents") if (s := self.stale.get((kind, id)))),
        )

    def architecture(self, model: str, site: str = "") -> str:
        """``Transformer``, ``Mamba``, ``hybrid``, … by the kinds of layer that the model's record names; where there is
        no record, what the site says (a Mamba mixer's output, attention's output), else ``other``.
        """
        known = self._families.get(model)
        if known is None:
            entry = self.find("models", model)
            known = family_of(entry.path if entry else None, entry.metadata if entry else {}, model)
            self._families[model] = known
        if known == UNKNOWN and site.endswith(("S", "A")):
            return "Mamba" if site.endswith("S") else "Transformer"
        return known

    @cached_property
    def _families(self) -> dict[str, str]:
        """What :meth:`architecture` has read."""
        return {}


def _width(id: str) -> float:
    """Latents per dimension as the id says them (``-8x``), so that 8x comes before 32x; the rest comes last."""
    n = id_parts(id).get("n", "")
    return float(n) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", n) else float("inf")


def architecture_order(name: str) -> int:
    """Transformers first, Mambas second."""
    return {"Transformer": 0, "Mamba": 1, "Mamba-2": 1}.get(name, 2)


def architecture_css(name: str) -> str:
    """The class of an architecture's colour; none for what is neither."""
    return {"Transformer": "t", "Mamba": "m", "Mamba-2": "m"}.get(name, "")


def step(revision: str) -> float:
    """Training step of a snapshot name (``step512`` -> 512); the final one comes last."""
    m = re.fullmatch(r"step(\d+)", revision)
    return float(m[1]) if m else float("inf")


def signature(root: Path) -> tuple[tuple[str, int, int], ...]:
    """Changes whenever a result appears, goes, or is made again. A few stat calls, no reading."""
    found = []
    for kind in KINDS:
        try:
            entries = list(os.scandir(root / kind))
        except OSError:
            continue
        for e in entries:
            try:
                stat = os.stat(os.path.join(e.path, "seal.json" if kind == "stores" else "manifest.json"))
            except OSError:
                continue
            found.append((f"{kind}/{e.name}", stat.st_mtime_ns, stat.st_ino))
    return tuple(sorted(found))


def read_index(root: str | Path) -> Index:
    """Read every manifest of a workspace.

    Raises:
        UserError: the workspace itself is missing, a file, or of a newer schema.
    """
    ws = Workspace(root, create=False)
    entries: dict[str, dict[str, Entry]] = {}
    problems: list[tuple[str, str]] = []
    for kind in KINDS:
        for item in ws.items(kind):
            try:
                entries.setdefault(kind, {})[item.id] = _entry(kind, item)
            except (UserError, OSError) as e:
                problems.append((f"{kind}/{item.id}", str(e)))
    return Index(ws.root, entries, tuple(problems))


def _entry(kind: str, item: Item) -> Entry:
    if kind == "stores":
        return _store_entry(item)
    return Entry(kind, item.id, item.path, item.manifest, item.version)


def _store_entry(item: Item) -> Entry:
    """A store's seal in a manifest's shape: stores have their own specification and no manifest."""
    seal = item.path / "seal.json"
    values = read_json(seal)
    if not isinstance(values, dict):
        raise CorruptError(
            f"{seal} is not the seal of a store (the list of its files and their digests, written last). `workbench"
            f" check {item.path}` says more."
        )
    taken = {k: values[k] for k in ("command", "numbers", "metadata") if k in values}
    manifest = parse_config(Manifest, {"kind": "stores", "id": item.id, **taken}, where=str(seal))
    return Entry("stores", item.id, item.path, manifest, sha256_file(seal)[:8])
