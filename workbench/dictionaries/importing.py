"""Dictionaries of other libraries into a workspace, and ours onto the hub.

A reference is a local folder, or ``<hub repository>:<folder in it>``:

    fnlp/Llama-Scope:L15R-8x                       Llama Scope by the paper's names (any layer, R/A/M/TC, 8x or 32x)
    EleutherAI/sae-pythia-160m-32k:layers.6        sparsify
    some-user/my-saes:blocks.3.hook_resid_post     a SAELens folder
    ./downloads/trainer_0                          dictionary_learning, OpenMOSS, … on disk
    ./transcoders/layer_3.safetensors              one layer of a circuit-tracer set
    mntss/clt-gemma-2-2b-426k:.                    a cross-layer transcoder: one dictionary per layer

Nothing is downloaded unless ``HF_HUB_OFFLINE=0`` is set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.errors import MissingError, UsageError
from sae.files import sha256_file, sha256_json
from sae.strict import nearest
from workbench.hub import offline
from workbench.provenance import Input
from workbench.results.reuse import reusable
from workbench.run import QUIET, Run
from workbench.workspace import Item, Workspace, all_of, new_id

if TYPE_CHECKING:
    from sae.model import SAE

LLAMA_SCOPE = re.compile(r"L(\d+)(R|A|M|TC)-(8|32)x")


@dataclass(frozen=True)
class Reference:
    """What a reference means. ``repository`` is None for a local folder; ``known`` holds metadata the reference itself
    implies.
    """

    folder: str
    repository: str | None = None
    id: str = ""
    known: dict[str, Any] = field(default_factory=dict)


def parse_reference(text: str) -> Reference:
    """Understand a reference (see the module's docstring).

    Raises:
        UsageError: neither an existing folder (or one layer's file of a transcoder set) nor ``repository:folder``.
    """
    local = Path(text).expanduser()
    if local.is_dir() or (local.is_file() and local.suffix == ".safetensors"):
        return Reference(str(local), id=_slug(local.resolve().name.removesuffix(".safetensors")))
    match = re.fullmatch(r"([\w.-]+/[\w.-]+):([\w./-]+)", text)
    if match is None or ".." in match[2]:
        raise UsageError(
            f"{text!r} is neither an existing folder nor <hub repository>:<folder>, for example"
            " fnlp/Llama-Scope:L15R-8x."
        )
    repository, folder = match[1], match[2].strip("/")
    if repository == "fnlp/Llama-Scope":
        scope = LLAMA_SCOPE.fullmatch(folder)
        if scope is None:
            raise UsageError(
                f"{folder!r} is not a Llama Scope dictionary. They are named L<layer><R|A|M|TC>-<8|32>x, for example"
                " L15R-8x."
            )
        layer, site, width = scope.groups()
        return Reference(
            f"Llama3_1-8B-Base-L{layer}{site}-{width}x",
            f"fnlp/Llama3_1-8B-Base-LX{site}-{width}x",
            id=f"Llama-3.1-8B.L{layer}{site}-{width}x",
            known={"model_name": "meta-llama/Llama-3.1-8B", "site": f"L{layer}{site}"},
        )
    return Reference(folder, repository, id=_slug(f"{repository.split('/')[1]}.{folder}"))


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9@.+-]+", "-", name).strip("-.")[:120] or "imported"


def locate(reference: Reference) -> Path:
    """The folder on this disk: as given, or from the hub's cache (downloaded where ``HF_HUB_OFFLINE=0`` allows it).

    Raises:
        MissingError: not in the cache; the message says how to fetch it.
    """
    if reference.repository is None:
        return Path(reference.folder)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        root = snapshot_download(
            reference.repository,
            allow_patterns=None if reference.folder == "." else [f"{reference.folder}/*"],
            local_files_only=offline(),
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as e:
        how = " Fetch it: HF_HUB_OFFLINE=0 workbench import …" if offline() else ""
        raise MissingError(
            f"{reference.repository}:{reference.folder} is not on this machine ({type(e).__name__}).{how}"
        ) from e
    folder = Path(root) / reference.folder
    if not folder.is_dir():
        raise MissingError(
            f"{reference.repository} has no folder {reference.folder!r} here. Fetch it: HF_HUB_OFFLINE=0 workbench"
            " import …"
        )
    return folder


def read_reference(reference: Reference, library: str | None = None, *, hook: str | None = None, **given: Any) -> SAE:
    """The dictionary a reference means, as one of ours; its metadata says where it reads and writes, in our hook names.

    Args:
        library: found by its files if not given. hook, given: what its files do not say, or say wrongly.

    Raises:
        MissingError, CorruptError, UntrustedFile: what its files get wrong, by name.
    """
    from sae.formats import detect, read, to_dictionary

    folder = locate(reference)
    library = library or detect(folder)
    return _told(to_dictionary(read(folder, library)), reference, library, hook=hook, **given)


def _told(dictionary: SAE, reference: Reference, library: str, *, hook: str | None = None, **given: Any) -> SAE:
    """A dictionary with where it reads and writes in its metadata."""
    from workbench.dictionaries.hooks import dictionary_hooks

    about = {**dictionary.metadata, **reference.known}
    about |= {k: v for k, v in given.items() if v}
    if hook:
        about = {k: v for k, v in about.items() if "hook_name" not in k and k != "site"} | {"hook_name": hook}
    where = dictionary_hooks({**about, "kind": dictionary.kind})
    about |= {"hook_name": where.read, "site": where.site or about.get("site")}
    about["hook_name_out"] = where.write if dictionary.kind == "transcoder" else None
    dictionary.metadata = {k: v for k, v in about.items() if v is not None}
    dictionary.metadata |= {"kind": dictionary.kind, "imported_from": library}
    return dictionary


def import_dictionary(
    workspace: Workspace,
    text: str,
    *,
    id: str | None = None,
    library: str | None = None,
    model: str | None = None,
    hook: str | None = None,
    revision: str | None = None,
    store: str | None = None,
    source: str | None = None,
    run: Run = QUIET,
) -> Item:
    """Read a dictionary of another library and keep it as one of ours; a complete one of the same files is reused.

    Returns:
        The dictionary; of a cross-layer transcoder that of layer 0, ``.all`` has every layer's.

    Raises:
        UsageError, MissingError, CorruptError, UntrustedFile: what the reference or its files get wrong, by name.
    """
    from sae.formats import detect
    from sae.formats.cross_layer import is_cross_layer
    from sae.formats.libraries import READERS
    from workbench.models.pointers import by_id

    if library not in (None, *READERS):
        raise UsageError(
            f"library {library!r} is not one of those that are read here ({nearest(str(library), list(READERS))})"
        )
    reference = parse_reference(text)
    name = new_id(id or reference.id)
    if store is not None:
        workspace.get("stores", store)
    folder = locate(reference)
    layered = is_cross_layer(folder)
    if layered and (library or hook):
        option = f"--library {library}" if library else f"--hook {hook}"
        raise UsageError(
            f"{folder.name} is a cross-layer transcoder, whose files say that themselves: leave {option} out."
        )
    library = library or ("" if layered else detect(folder))
    digest = sha256_json(
        {
            p.name: sha256_file(p)
            for p in sorted([folder, *folder.parent.glob("config.yaml")] if folder.is_file() else folder.rglob("*"))
            if p.is_file() and p.suffix in (".safetensors", ".pt", ".pth", ".npz", ".json", ".yaml")
        }
    )
    origin = Input(kind="imported", id=text if reference.repository else folder.name, digest=digest)
    model = None if model is None else by_id(workspace, model, run=run)
    asked = {
        "library": library or None,
        "model": model,
        "hook": hook,
        "revision": revision,
        "store": store,
        "source": source,
    }
    recipe = {k: v for k, v in asked.items() if v is not None}
    given = {"model_name": model, "revision": revision, "store": store, "source": source}
    if layered:
        return _import_layers(workspace, reference, folder, name, recipe, origin, run, **given)
    have = _there(workspace, name, recipe, origin, run)
    if have is not None:
        return have
    dictionary = read_reference(reference, library, hook=hook, **given)
    with _kept(workspace, name, dictionary, recipe, origin, run):
        pass
    return workspace.get("dictionaries", name)


def _there(workspace: Workspace, name: str, recipe: dict[str, Any], origin: Input, run: Run) -> Item | None:
    """A complete dictionary of the same files and options."""
    became = {"library": "imported_from", "model": "model_name", "hook": "hook_name"}
    return reusable(
        workspace,
        "dictionaries",
        name,
        recipe=recipe,
        inputs=[origin],
        run=run,
        # what was said then and is not said now is a difference, too; what the files say themselves is none
        recorded=lambda m: {**m.recipe, **{k: m.recipe.get(k, m.metadata.get(became.get(k, k))) for k in recipe}},
        otherwise="or give another name with --id",
    )


@contextmanager
def _kept(
    workspace: Workspace, name: str, dictionary: SAE, recipe: dict[str, Any], origin: Input, run: Run
) -> Iterator[Path]:
    """The folder of an imported dictionary, with it in it; complete at the end."""
    numbers = {"d_in": dictionary.d_in, "d_sae": dictionary.d_sae} | ({"k": dictionary.k} if dictionary.k else {})
    with workspace.create(
        "dictionaries",
        name,
        replace=True,
        command=run.command,
        recipe=recipe,
        inputs=[origin],
        numbers=numbers,
        metadata=dictionary.metadata,
    ) as folder:
        dictionary.save(folder)
        yield folder


def _import_layers(
    workspace: Workspace,
    reference: Reference,
    folder: Path,
    id: str,
    recipe: dict[str, Any],
    origin: Input,
    run: Run,
    **given: Any,
) -> Item:
    """A cross-layer transcoder as one dictionary per layer, ``<id>.L0`` …"""
    from sae.formats import read_cross_layer, to_dictionary
    from workbench.dictionaries.cross_layers import layer_id, write_later

    clt = read_cross_layer(folder)
    items = []
    for layer in run.each(range(clt.n_layers), "layers", total=clt.n_layers, unit="layer"):
        name = new_id(layer_id(id, layer))
        have = _there(workspace, name, recipe, origin, run)
        if have is None:
            form = clt.layer(layer)
            form = form.about(cross_layer={**form.metadata["cross_layer"], "id": id})
            dictionary = _told(to_dictionary(form), reference, str(form.metadata["imported_from"]), **given)
            with _kept(workspace, name, dictionary, recipe, origin, run) as place:
                write_later(place, clt, layer)
            have = workspace.get("dictionaries", name)
        items.append(have)
    return all_of(items)


def push_to_hub(workspace: Workspace, id: str, repository: str, *, private: bool = True, api: Any = None) -> str:
    """Upload a dictionary's SAELens folder and manifest to ``repository`` under its id; returns the commit's address.

    Needs ``HF_HUB_OFFLINE=0`` and a token (``hf auth login``). ``api`` replaces :class:`huggingface_hub.HfApi` in
    tests.

    Raises:
        MissingError: no such dictionary. UsageError: the hub is switched off.
    """
    item = workspace.get("dictionaries", id)
    if api is None:
        if offline():
            raise UsageError("the hub is switched off. Set HF_HUB_OFFLINE=0 to upload.")
        from huggingface_hub import HfApi

        api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repository,
        folder_path=str(item.path),
        path_in_repo=id,
        allow_patterns=["cfg.json", "*.safetensors", "manifest.json"],
        commit_message=f"{id}, data version {item.version}",
    )
    return str(commit)
