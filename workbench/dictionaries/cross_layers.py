"""Cross-layer transcoders in a workspace: one dictionary per layer, and back out as one, in circuit-tracer's layout.

The latents of layer l are those of a transcoder that reads there, so each layer is kept as one (``<id>.L<l>``) with
what they write at their own layer, and with ``cross_layer.safetensors`` beside it: what they write at every later one.
Their values are exact, so records and labels are; what they write at their own layer is no reconstruction of anything,
so whatever would decode them alone is refused (:meth:`workbench.dictionaries.reference.DictionaryRef.load`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor

from sae.errors import CorruptError, MissingError, UsageError
from sae.files import write_bytes
from workbench.workspace import Workspace

if TYPE_CHECKING:
    from sae.formats import CrossLayer
    from sae.model import SAE

LATER = "cross_layer.safetensors"
# a hook name here -> what TransformerLens 1 and 2, and so circuit-tracer, call the same place
_THEIRS = {"ln2.hook_out": "mlp.hook_in"}


def layer_id(id: str, layer: int) -> str:
    """The dictionary of one layer of a cross-layer transcoder."""
    return f"{id}.L{layer}"


def write_later(folder: Path, clt: CrossLayer, layer: int) -> None:
    """``W_later`` [F, L - layer - 1, D]: the decoders into every later layer, in the precision of the files."""
    later = clt.W_dec[layer][:, 1:].to(clt.dtype).contiguous()
    write_bytes(folder / LATER, save({"W_later": later}))


def all_decoders(dictionary: SAE, folder: Path) -> Tensor:
    """[F, layers, D] what the latents of one layer write at it and at every later one.

    Raises:
        MissingError, CorruptError: the file of the later layers is not there, or not of this dictionary.
    """
    from sae.formats.tensors import read_safetensors

    about = dictionary.metadata["cross_layer"]
    f, d = dictionary.W_dec.shape
    later = read_safetensors(folder / LATER, own=True).get("W_later")
    want = (f, about["n_layers"] - about["layer"] - 1, d)
    if later is None or tuple(later.shape) != want:
        found = "no W_later" if later is None else tuple(later.shape)
        raise CorruptError(f"{folder / LATER} holds {found}; this dictionary wants {want}. Import it again.")
    return torch.cat([dictionary.W_dec.detach().float()[:, None], later.float()], 1)


def gathered(workspace: Workspace, id: str) -> CrossLayer:
    """The cross-layer transcoder whose layers are ``<id>.L0`` … in the workspace.

    Raises:
        MissingError: a layer is not there. CorruptError: layers of different imports.
    """
    import sae
    from sae.formats import CrossLayer, to_normal

    forms, decoders, digests, layers = [], [], set(), 1
    about: dict[str, Any] = {}
    dtype = torch.float32
    i = 0
    while i < layers:
        if not workspace.complete("dictionaries", layer_id(id, i)):
            raise MissingError(
                f"dictionaries/{layer_id(id, i)} is not in {workspace.root}, so the cross-layer transcoder {id} is not"
                " whole. Import it again."
            )
        item = workspace.get("dictionaries", layer_id(id, i))
        found = sae.load(item.path)
        place = found.metadata.get("cross_layer")
        if not isinstance(place, dict) or place.get("layer") != i:
            raise UsageError(
                f"dictionaries/{item.id} is not layer {i} of a cross-layer transcoder. Import the transcoder again"
                " with --replace."
            )
        layers, about, dtype = int(place["n_layers"]), found.metadata, found.enc_FD.dtype
        decoders.append(all_decoders(found, item.path))
        forms.append(to_normal(found.float()))
        digests.add(tuple(x.digest for x in item.manifest.inputs if x.kind == "imported"))
        i += 1
    if len(digests) != 1:
        raise CorruptError(
            f"the layers of {id} are of {len(digests)} different imports. Import it again with --replace."
        )
    threshold = [f.threshold for f in forms if f.threshold is not None]
    skip = [f.W_skip for f in forms if f.W_skip is not None]
    hooks = _ends([f.metadata for f in forms])
    return CrossLayer(
        torch.stack([f.W_enc for f in forms]),
        torch.stack([f.b_enc for f in forms]),
        tuple(decoders),
        torch.stack([f.b_dec for f in forms]),
        torch.stack(threshold) if threshold else None,
        torch.stack(skip) if skip else None,
        {"imported_from": about["imported_from"], "model_name": about.get("model_name"), **hooks},
        dtype,
    ).checked(f"dictionaries/{id}")


def _ends(metadata: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Where every layer reads and writes, below its block, in circuit-tracer's words.

    Raises:
        UsageError: a layer that does not say, or says something else than the others.
    """
    found: dict[str, str] = {}
    for key, name in (("hook_name", "feature_input_hook"), ("hook_name_out", "feature_output_hook")):
        said = {re.sub(r"^blocks\.\d+\.", "", str(m.get(key) or "")) for m in metadata}
        if len(said) != 1 or said == {""}:
            raise UsageError(
                f"circuit-tracer asks for one {key}; the layers of this transcoder say {sorted(said)}. Import it again"
                " with that option given."
            )
        hook = said.pop()
        found[name] = _THEIRS.get(hook, hook)
    return found


def export_circuit_tracer(workspace: Workspace, ids: Sequence[str], out: Path) -> list[str]:
    """Write what circuit-tracer loads: the cross-layer transcoder ``ids[0]``, or the set of transcoders ``ids`` of
    layers 0, 1, … Returns the names of the files.

    Raises:
        UsageError: ``out`` is there already, or what its files cannot hold, by name. MissingError: no such dictionary.
    """
    from sae.formats import to_normal, write_cross_layer, write_transcoder_set

    if out.exists():
        raise UsageError(f"{out} is there already. Name a folder that is not.")
    if not out.parent.is_dir():
        raise MissingError(
            f"{out.parent} does not exist or is no folder, so {out.name} cannot be written into it. Make it first."
        )
    whole = len(ids) == 1 and workspace.complete("dictionaries", layer_id(ids[0], 0))
    if whole and not workspace.complete("dictionaries", ids[0]):
        write_cross_layer(gathered(workspace, ids[0]), out)
    else:
        from workbench.dictionaries.reference import find_dictionary

        forms = []
        for id in ids:
            reference = find_dictionary(workspace, id)
            dictionary = reference.load()
            if dictionary.kind != "transcoder":
                raise UsageError(
                    f"dictionaries/{id} is of kind {dictionary.kind}; circuit-tracer reads transcoders (and"
                    " cross-layer ones) only. Give one of those."
                )
            form = to_normal(dictionary)
            ends = {k: _renamed(str(reference.metadata.get(k) or "")) for k in ("hook_name", "hook_name_out")}
            forms.append(form.about(**{**reference.metadata, **ends}))
        write_transcoder_set(forms, out)
    return sorted(p.name for p in out.iterdir())


def _renamed(hook: str) -> str:
    """A hook name in circuit-tracer's words."""
    match = re.fullmatch(r"(blocks\.\d+\.)(.+)", hook)
    return hook if match is None else match[1] + _THEIRS.get(match[2], match[2])
