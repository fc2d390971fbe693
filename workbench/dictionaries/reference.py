"""The dictionary a command is about, and what it was trained on.

DICTIONARY on a command line is the id of one in the workspace, or the path of a saved folder. What model, hook and
store it belongs to is read from its own metadata; options override what a foreign folder does not say.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.errors import MissingError, UsageError
from sae.files import read_json, sha256_file, sha256_json
from sae.strict import nearest
from workbench.provenance import MANIFEST, Input, manifest_digest, read_manifest
from workbench.workspace import Workspace, check_id

if TYPE_CHECKING:
    from workbench.activations import ActivationStore


@dataclass(frozen=True)
class DictionaryRef:
    """A dictionary folder with the names it goes by; nothing heavy is loaded yet."""

    id: str
    path: Path
    metadata: dict[str, Any]
    input: Input

    def load(self, *, latents_only: bool = False, writes: bool = False) -> Any:
        """The dictionary itself; one kept in half precision computes in float32 here, on the weights as they are.

        Args:
            latents_only: whoever asks takes the latents' values and decodes nothing. writes: whoever asks knows
                dictionaries of writes, whose rows are a layer's keys and values.

        Raises:
            UsageError: one layer of a cross-layer transcoder that would be decoded: earlier layers write there, too; or
                a dictionary of writes where rows of the residual stream are expected.
        """
        import torch

        import sae

        if self.metadata.get("kind") == "write" and not writes:
            raise UsageError(
                f"{self.id} is a dictionary of writes (site {self.metadata.get('site')}): it reads a recurrent layer's"
                f" keys and values, not rows of one hook. `workbench substitute {self.id}` tries its atoms."
            )
        if self.metadata.get("cross_layer") and not latents_only:
            about = self.metadata["cross_layer"]
            raise UsageError(
                f"{self.id} is layer {about['layer']} of a cross-layer transcoder of {about['n_layers']} layers: what"
                " its latents write at their own layer reconstructs nothing without those of the others. `workbench"
                " features` and `explain` take its latents as they are, `export --circuit-tracer` writes the whole."
            )
        if self.metadata.get("kind") == "crosscoder":
            from crosscoders import Crosscoder

            return Crosscoder.load(self.path)
        found = sae.load(self.path)
        return found.float() if found.enc_FD.dtype in (torch.float16, torch.bfloat16) else found

    def need(self, key: str, option: str) -> Any:
        """A metadata entry.

        Raises:
            UsageError: the folder does not say; the message names the option that does.
        """
        value = self.metadata.get(key)
        if value in (None, "", []):
            raise UsageError(f"{self.path} does not say its {key}. Give it with {option}.")
        return value

    @property
    def model_name(self) -> str:
        return str(self.need("model_name", "--model"))

    @property
    def revision(self) -> str | None:
        return self.metadata.get("revision") or None

    @property
    def hook(self) -> Any:
        """Hook name the dictionary reads; a list for a crosscoder over several hooks."""
        return self.metadata.get("hook_names") or self.need("hook_name", "--hook")

    @property
    def hook_out(self) -> str:
        """Hook name the dictionary reconstructs: the same, except for transcoders."""
        return str(self.metadata.get("hook_name_out") or self.need("hook_name", "--hook"))

    @property
    def source(self) -> Any:
        """Source of the store (None = its only one); a list for a crosscoder over several sources."""
        return self.metadata.get("sources") or self.metadata.get("source") or None

    def source_in(self, store: ActivationStore) -> Any:
        """:attr:`source` as this store names it: a crosscoder over snapshots may say ``step512`` for
        ``mini-pythia@step512``.

        A dictionary that names none reads its own model, where the store has that once.
        """
        if self.source is None:
            own = [
                s.name
                for s in store.spec.sources
                if s.model == self.metadata.get("model_name") and self.revision in (None, s.revision)
            ]
            return own[0] if len(own) == 1 else None
        if not isinstance(self.source, list):
            return self.source
        names = [s["name"] if isinstance(s, dict) else str(s) for s in self.source]
        model = str(self.metadata.get("model_name") or "").rstrip("/").split("/")[-1]
        return [n if n in store.sources or f"{model}@{n}" not in store.sources else f"{model}@{n}" for n in names]

    def store(self, workspace: Workspace) -> ActivationStore:
        """Open the store the dictionary names (an id of the workspace, or a path)."""
        from workbench.activations import ActivationStore

        return ActivationStore.open(self.store_path(workspace))

    def store_or_none(self, workspace: Workspace) -> ActivationStore | None:
        """:meth:`store`, or None where the dictionary names none or it is not there."""
        if not self.metadata.get("store"):
            return None
        try:
            return self.store(workspace)
        except MissingError:
            return None

    def store_inputs(self, workspace: Workspace) -> list[Input]:
        """The dictionary's store as an input of what is made with it; empty where the workspace holds none."""
        return [i.as_input() for i in workspace.items("stores") if i.id == self.metadata.get("store")]

    def store_path(self, workspace: Workspace) -> Path:
        """Folder of the store; see :meth:`store`."""
        if isinstance(self.source, list) and not self.metadata.get("store"):
            raise UsageError(
                f"{self.id} reads {len(self.source)} sources and names no store that holds them all. Harvest them into"
                " one and give it with --store."
            )
        name = str(self.need("store", "--store (or choose text with --corpus)"))
        if Path(name).is_dir() and not _is_id(name):
            return Path(name)
        return workspace.get("stores", name).path


def find_dictionary(workspace: Workspace, reference: str | Path, **overrides: Any) -> DictionaryRef:
    """The dictionary ``reference`` means: an id of ``workspace``, or a saved folder. ``overrides`` win where not None.

    Raises:
        MissingError: neither; the message names the nearest id.
    """
    text = str(reference)
    if _is_id(text) and workspace.complete("dictionaries", text):
        item = workspace.get("dictionaries", text)
        path, id, given = item.path, item.id, item.as_input()
    elif (Path(text) / "cfg.json").is_file():
        path = Path(text).resolve()
        id = path.name
        check_id(id)
        digest = (
            manifest_digest(path)
            if (path / MANIFEST).is_file()
            else sha256_json({p.name: sha256_file(p) for p in sorted(path.glob("*.safetensors"))})
        )
        given = Input(kind="dictionaries", id=id, digest=digest)
    else:
        known = [i.id for i in workspace.items("dictionaries")]
        hint = (
            nearest(text, known)
            if known
            else f"{workspace.root.name}/dictionaries is empty; `workbench train` or `workbench import` fills it"
        )
        raise MissingError(f"dictionary {text!r} is neither in {workspace.root} nor a folder with cfg.json ({hint})")
    cfg = read_json(path / "cfg.json")
    metadata = dict(cfg.get("metadata") or {})
    if (path / MANIFEST).is_file():
        metadata |= {k: v for k, v in read_manifest(path).metadata.items() if v is not None}
    metadata |= {k: v for k, v in overrides.items() if v is not None}
    return DictionaryRef(id, path, metadata, given)


def _is_id(text: str) -> bool:
    try:
        check_id(text)
    except UsageError:
        return False
    return True
