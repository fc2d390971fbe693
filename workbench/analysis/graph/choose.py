"""Which dictionaries of a workspace a graph is drawn over: all of one kind of a model, or those named.

Two kinds make graphs: SAEs on the residual stream (``R``) and transcoders (``TC``). They cut a model at different
places, so one graph holds one kind.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sae.errors import MissingError, UsageError
from workbench.models.sites import hooks_of, transcoder_site
from workbench.workspace import Item, Workspace

KINDS = {"R": "residual-stream SAE", "TC": "transcoder"}
_TRAINED_BY = {
    "R": "`workbench demo --no-ui` trains them.",
    "TC": "Train them at sites such as L0TC: `workbench train mini-llama-scope`.",
}


def place_of(item: Item) -> tuple[str, str] | None:
    """(kind, hook it reads) of a dictionary that a graph can hold, or None."""
    about = item.manifest.metadata
    site, kind, hook = str(about.get("site")), about.get("kind"), about.get("hook_name")
    if kind == "sae" and hook and re.fullmatch(r"L\d+R", site):
        return "R", str(hook)
    if kind == "transcoder":
        out = about.get("hook_name_out")
        found = transcoder_site(str(hook), str(out)) if hook and out else site
        if found and re.fullmatch(r"L\d+TC", found):
            return "TC", str(hook) if hook and out else hooks_of(found)[0]
    return None


def dictionaries_of(workspace: Workspace, model: str, revision: str | None, kind: str) -> dict[str, Item]:
    """Dictionaries of one kind (``R`` or ``TC``) of a model, one per layer: hook it reads -> item. The first by name
    where several fit.

    Raises:
        UsageError: another kind. MissingError: the workspace has none; the message says how to train them.
    """
    if kind not in KINDS:
        raise UsageError(
            f"{kind!r} is no kind of site that graphs are drawn over. Use R (residual stream) or TC (transcoders)."
        )
    found: dict[str, Item] = {}
    for item in workspace.items("dictionaries"):
        about = item.manifest.metadata
        if about.get("model_name") != model or (about.get("revision") or None) != (revision or None):
            continue
        place = place_of(item)
        if place is not None and place[0] == kind:
            found.setdefault(place[1], item)
    if not found:
        at = f"{model}@{revision}" if revision else model
        raise MissingError(f"{workspace.root.name} has no {KINDS[kind]}s of {at}. {_TRAINED_BY[kind]}")
    return found


def dictionaries_named(
    workspace: Workspace, ids: Sequence[str], model: str, revision: str | None
) -> tuple[str, dict[str, Item]]:
    """(kind, hook it reads -> item) of dictionaries given by id.

    Raises:
        UsageError: of another model or snapshot, at a place no graph holds, of both kinds, or two at one place.
        MissingError: no such dictionary.
    """
    found: dict[str, Item] = {}
    kinds: dict[str, str] = {}
    for id in dict.fromkeys(ids):
        item = workspace.get("dictionaries", id)
        about = item.manifest.metadata
        if not about.get("model_name"):
            raise UsageError(f"{id} does not say its model. Import it again with --model, or give another dictionary.")
        if about["model_name"] != model or (about.get("revision") or None) != (revision or None):
            its = f"--model {about['model_name']}" + (
                f" --revision {about['revision']}" if about.get("revision") else ""
            )
            raise UsageError(f"{id} is a dictionary of another model or snapshot. Give `{its}`, or another dictionary.")
        place = place_of(item)
        if place is None:
            raise UsageError(
                f"{id} ({about.get('kind')} at {about.get('site')}) is neither a residual-stream SAE nor a transcoder; "
                "graphs are drawn over one of these."
            )
        kind, hook = place
        if hook in found:
            raise UsageError(f"{found[hook].id} and {id} are at the same place, {hook}. Give one dictionary per layer.")
        found[hook] = item
        kinds.setdefault(kind, id)
    if len(kinds) > 1:
        raise UsageError(
            f"{kinds['R']} is a {KINDS['R']} and {kinds['TC']} a {KINDS['TC']}; one graph holds one kind. Give"
            " dictionaries of one kind."
        )
    return next(iter(kinds)), found
