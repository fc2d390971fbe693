"""Labels a reader gave to the nodes of a graph: one JSON file per graph in the workspace's ``labels/``, written
atomically.

The graph itself stays as it was made. Each label carries the data version of the graph it was given on, because a graph
that is made again may use the same node id for something else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from sae.errors import CorruptError, UsageError
from sae.files import disk_errors, read_json, write_json
from sae.strict import StrictConfig, parse_config
from workbench.workspace import check_id

SCHEMA = 1
MAX_LABELS = 5_000
MAX_LENGTH = 120


class NodeLabel(StrictConfig):
    """What a reader calls a node, and the data version of the graph on which it was called so."""

    text: str = Field(min_length=1, max_length=MAX_LENGTH)
    version: str = Field(max_length=64)

    def shown(self, version: str) -> str:
        """The text; where the graph is of another ``version`` now, followed by the one the label was given on."""
        return self.text if self.version == version else f"{self.text} (labelled on data version {self.version or '?'})"


class GraphLabels(StrictConfig):
    """The labels of a graph by node id."""

    workbench_schema: int = SCHEMA
    graph: str = Field(max_length=120)
    labels: dict[str, NodeLabel] = Field(default_factory=dict, max_length=MAX_LABELS)


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
        raise CorruptError(f"{path.name} does not hold labels of {graph}.")
    if values["workbench_schema"] > SCHEMA:
        raise CorruptError(f"{path.name} was written by a newer version of this program.")
    return parse_config(GraphLabels, values, where=path.name)


def save_label(root: Path, graph: str, node: str, text: str, version: str) -> None:
    """Give a node a label, or take it away with an empty text. A file that cannot be read is left alone.

    Raises:
        UsageError: the text is longer than :data:`MAX_LENGTH`, there are :data:`MAX_LABELS` already, or a link lies in
        the file's place. CorruptError, ConfigError: see :func:`read_labels`.
    """
    text = " ".join(text.split())
    if len(text) > MAX_LENGTH:
        raise UsageError(f"a label has at most {MAX_LENGTH} characters, this one {len(text)}.")
    was = read_labels(root, graph)
    labels = {k: v for k, v in was.labels.items() if k != node}
    if text:
        labels[node] = NodeLabel(text=text, version=version)
    if len(labels) > MAX_LABELS:
        raise UsageError(f"a graph has at most {MAX_LABELS:,} labels.")
    if labels == was.labels:
        return
    path = root / "labels" / f"{check_id(graph)}.json"
    if path.is_symlink():
        raise UsageError(f"labels/{path.name} is a link; labels are not written through links.")
    with disk_errors(str(path)):
        path.parent.mkdir(exist_ok=True)
    write_json(path, was.model_copy(update={"labels": labels}).model_dump(mode="json"))


def with_labels(document: dict[str, Any], found: GraphLabels, version: str) -> dict[str, Any]:
    """A graph's document with the labels as ``clerp`` of their nodes, the name Neuronpedia shows; the
    rest as it was.
    """
    nodes = [
        {**n, "clerp": found.labels[str(n.get("node_id"))].shown(version)}
        if str(n.get("node_id")) in found.labels
        else n
        for n in document["nodes"]
    ]
    return {**document, "nodes": nodes}
