"""What a reader made of a graph: labels of its nodes, and a subgraph of pinned nodes and groups of them (supernodes);
one JSON file per graph in the workspace's ``labels/``, written atomically.

The graph itself stays as it was made. Each label, and the subgraph, carries the data version of the graph it was made
on, because a graph that is made again may use the same node id for something else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from sae.errors import CorruptError, UsageError
from sae.files import disk_errors, read_json, write_json
from sae.strict import StrictConfig, parse_config
from workbench.workspace import check_id

SCHEMA = 2  # 1 had no subgraph; its files are read
MAX_LABELS = 5_000
MAX_LENGTH = 120
MAX_PINS, MAX_GROUPS = 500, 60


class NodeLabel(StrictConfig):
    """What a reader calls a node, and the data version of the graph on which it was called so."""

    text: str = Field(min_length=1, max_length=MAX_LENGTH)
    version: str = Field(max_length=64)

    def shown(self, version: str) -> str:
        """The text; where the graph is of another ``version`` now, followed by the one the label was given on."""
        return self.text if self.version == version else f"{self.text} (labelled on data version {self.version or '?'})"


class Subgraph(StrictConfig):
    """Nodes a reader pinned, and the groups of them that are drawn as one (supernodes), by name.

    A grouped node is pinned, and is in one group.
    """

    version: str = Field(default="", max_length=64)
    pins: list[str] = Field(default_factory=list, max_length=MAX_PINS)
    groups: dict[str, list[str]] = Field(default_factory=dict, max_length=MAX_GROUPS)

    def group_of(self, node: str) -> str | None:
        """The name of the node's group, or None."""
        return next((name for name, members in self.groups.items() if node in members), None)

    def pinned(self, node: str, yes: bool) -> Subgraph:
        """The same with a node pinned, or taken out, then out of its group too."""
        pins = [n for n in self.pins if n != node] + [node] * yes
        return self.model_copy(update={"pins": pins, "groups": self.groups if yes else self._without(node)})

    def grouped(self, node: str, name: str) -> Subgraph:
        """The same with a node (pinned by it) in the group called ``name``, or in none where that is empty."""
        groups = self._without(node)
        if name:
            groups[name] = [*groups.get(name, []), node]
        return self.model_copy(
            update={"pins": self.pins if node in self.pins else [*self.pins, node], "groups": groups}
        )

    def _without(self, node: str) -> dict[str, list[str]]:
        kept = {name: [n for n in members if n != node] for name, members in self.groups.items()}
        return {name: members for name, members in kept.items() if members}


class GraphLabels(StrictConfig):
    """The labels of a graph by node id, and the subgraph made of it."""

    workbench_schema: int = SCHEMA
    graph: str = Field(max_length=120)
    labels: dict[str, NodeLabel] = Field(default_factory=dict, max_length=MAX_LABELS)
    subgraph: Subgraph = Field(default_factory=Subgraph)


def read_labels(root: Path, graph: str) -> GraphLabels:
    """The labels of a graph; none where there is no such file, or a link or folder in its place.

    Raises:
        CorruptError, ConfigError: the file is not JSON, of a newer schema, of another graph, has unknown keys or too
        many labels.
    """
    path = root / "labels" / f"{check_id(graph)}.json"
    if path.is_symlink() or not path.is_file():
        return GraphLabels(graph=graph)
    values: Any = read_json(path)
    if (
        not isinstance(values, dict)
        or not isinstance(values.get("workbench_schema"), int)
        or values.get("graph") != graph
    ):
        raise CorruptError(f"{path.name} does not hold labels of {graph}. Move it away to label anew.")
    if values["workbench_schema"] > SCHEMA:
        raise CorruptError(
            f"{path.name} was written by a newer version of this program. Upgrade: pip install -U"
            " interpretability-workbench"
        )
    return parse_config(GraphLabels, values, where=path.name)


def save_label(root: Path, graph: str, node: str, text: str, version: str) -> None:
    """Give a node a label, or take it away with an empty text. A file that cannot be read is left alone.

    Raises:
        UsageError: the text is longer than :data:`MAX_LENGTH`, there are :data:`MAX_LABELS` already, or a link lies in
        the file's place. CorruptError, ConfigError: see :func:`read_labels`.
    """
    text = _one_line(text, "a label")
    was = read_labels(root, graph)
    labels = {k: v for k, v in was.labels.items() if k != node}
    if text:
        labels[node] = NodeLabel(text=text, version=version)
    if len(labels) > MAX_LABELS:
        raise UsageError(f"a graph has at most {MAX_LABELS:,} labels. Empty one first.")
    if labels != was.labels:
        _write(root, was.model_copy(update={"labels": labels}))


def save_pin(root: Path, graph: str, node: str, yes: bool, version: str) -> None:
    """Pin a node of a graph, or take it out of the subgraph.

    Raises:
        UsageError: :data:`MAX_PINS` are pinned already. CorruptError, ConfigError: see :func:`read_labels`.
    """
    was = read_labels(root, graph)
    _save_subgraph(root, was, was.subgraph.pinned(node, yes), version)


def save_group(root: Path, graph: str, node: str, name: str, version: str) -> None:
    """Put a node of a graph into a group (a supernode), or with an empty name into none.

    Raises:
        UsageError: the name is longer than :data:`MAX_LENGTH`, or there are :data:`MAX_GROUPS` groups or
        :data:`MAX_PINS` pins already. CorruptError, ConfigError: see :func:`read_labels`.
    """
    was = read_labels(root, graph)
    _save_subgraph(root, was, was.subgraph.grouped(node, _one_line(name, "a group's name")), version)


def _save_subgraph(root: Path, was: GraphLabels, new: Subgraph, version: str) -> None:
    if len(new.pins) > MAX_PINS:
        raise UsageError(f"a graph has at most {MAX_PINS:,} pinned nodes. Unpin one first.")
    if len(new.groups) > MAX_GROUPS:
        raise UsageError(f"a graph has at most {MAX_GROUPS:,} groups. Take one apart first.")
    if new != was.subgraph:
        _write(root, was.model_copy(update={"subgraph": new.model_copy(update={"version": version})}))


def _one_line(text: str, what: str) -> str:
    text = " ".join(text.split())
    if len(text) > MAX_LENGTH:
        raise UsageError(f"{what} has at most {MAX_LENGTH} characters, this one {len(text)}. Shorten it.")
    return text


def _write(root: Path, found: GraphLabels) -> None:
    path = root / "labels" / f"{check_id(found.graph)}.json"
    if path.is_symlink():
        raise UsageError(f"labels/{path.name} is a link; labels are not written through links.")
    with disk_errors(str(path)):
        path.parent.mkdir(exist_ok=True)
    write_json(path, found.model_copy(update={"workbench_schema": SCHEMA}).model_dump(mode="json"))


def with_labels(document: dict[str, Any], found: GraphLabels, version: str) -> dict[str, Any]:
    """A graph's document with the labels as ``clerp`` of their nodes, the name Neuronpedia shows, and the
    subgraph as its ``pinnedIds`` and ``supernodes``; the rest as it was. Pins on nodes that are not there are left out.
    """
    nodes = [
        {**n, "clerp": found.labels[str(n.get("node_id"))].shown(version)}
        if str(n.get("node_id")) in found.labels
        else n
        for n in document["nodes"]
    ]
    there = {str(n.get("node_id")) for n in nodes}
    mine = found.subgraph
    pins = [n for n in mine.pins if n in there]
    if not pins:
        return {**document, "nodes": nodes}
    groups = [[name, *(n for n in members if n in there)] for name, members in mine.groups.items()]
    settings = {**document.get("qParams", {}), "pinnedIds": pins, "supernodes": [g for g in groups if len(g) > 1]}
    return {**document, "nodes": nodes, "qParams": settings}
