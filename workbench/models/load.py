"""Loading models by name: bundled ones, those of the package registry, folders, GGUF files, and the Hugging Face hub,
all as TransformerLens' ``TransformerBridge``.

Weights are float32, in eval mode and unprocessed (no folding, no centring), so logits equal Hugging Face's. Nothing is
downloaded unless ``HF_HUB_OFFLINE=0`` is set.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sae.errors import CorruptError, MissingError, UsageError
from sae.files import read_json
from sae.strict import nearest
from workbench.config import data_dir
from workbench.corpus.contract import contract_of
from workbench.hub import fetch_command, offline
from workbench.models.digests import has_weights, last_digest, snapshots_of
from workbench.models.gguf import gguf_folder
from workbench.models.limits import longest_context
from workbench.models.packaged import PACKAGED, packaged_folder
from workbench.models.places import in_workspace
from workbench.models.reading import reads_text
from workbench.workspace import check_id

FINAL = "final"


def bundled() -> list[str]:
    """Names of the bundled models."""
    folder = data_dir() / "models"
    return sorted(p.name for p in folder.iterdir() if (p / "config.json").is_file()) if folder.is_dir() else []


def model_id(name: str) -> str:
    """The id a model has inside ids of results: ``EleutherAI/pythia-160m`` -> ``pythia-160m``, a folder's or a GGUF
    file's own name.
    """
    path = Path(str(name)).expanduser()
    if path.is_dir():
        return check_id(path.resolve().name)
    last = str(name).rstrip("/").split("/")[-1]
    return check_id(last.removesuffix(".gguf") if path.is_file() else last)


def find_folder(name: str | Path) -> Path | None:
    """The folder that ``name`` means: a local one, a bundled model's, one that an open workspace made or points to
    (by its id), or what a GGUF file was converted to (a path, or the name of a packaged model); None for a name
    of the hub.

    Raises:
        MissingError: ``name`` is written as a path and there is no such folder, or is a packaged model that is not
            installed. Others: see :func:`workbench.models.gguf.gguf_folder`.
    """
    path = Path(name).expanduser()
    if str(name) in bundled():
        return data_dir() / "models" / str(name)
    if str(name) in PACKAGED:
        return packaged_folder(str(name))
    if (known := in_workspace(str(name), _folder_at, last_digest)) is not None:
        return known
    if path.suffix == ".gguf" and path.is_file():
        return gguf_folder(path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise MissingError(f"{name} holds no config.json, so it is not a model folder.")
        return path
    written_as_path = path.is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") > 1
    if written_as_path or path.exists():
        near = (
            [p.name for p in path.parent.iterdir() if p.is_dir() and p.name[0] != "."] if path.parent.is_dir() else []
        )
        hint = f" ({nearest(path.name, near)})" if near else ""
        raise MissingError(f"model folder {str(name)!r} does not exist{hint}.")
    return None


def _folder_at(place: Path) -> Path:
    return gguf_folder(place) if place.suffix == ".gguf" and place.is_file() else place


def revisions(name: str | Path) -> list[str]:
    """Snapshots of a bundled model or folder, in training order (``step0`` …, ``checkpoint-500`` …); empty where there
    is only one set of weights.
    """
    folder = find_folder(name)
    if folder is None:
        raise UsageError(f"{name!r} is a hub model; its revisions are listed on huggingface.co, not here.")
    return snapshots_of(folder)


def resolve_revision(name: str | Path, revision: str | None = None) -> str | None:
    """The revision that is loaded: ``None`` and ``"final"`` mean the weights in the folder itself (a trainer puts its
    final ones there, beside its checkpoints), else the last snapshot; None for the folder's own weights.

    Raises:
        MissingError: no such snapshot; the message names the nearest one.
    """
    folder = find_folder(name)
    if folder is None:
        return revision
    known = snapshots_of(folder)
    if revision in (None, FINAL):
        return known[-1] if known and not has_weights(folder) else None
    if revision in known:
        return revision
    hint = nearest(str(revision), known) if known else "it has only one set of weights; leave the revision out"
    raise MissingError(f"model {str(name)!r} has no revision {revision!r} ({hint})")


def load_model(name: str | Path, revision: str | None = None) -> Any:
    """Load a model as a ``TransformerBridge``: float32, eval, unprocessed weights.

    Args:
        name: a bundled name (``mini-pythia``), a packaged one (``smollm2-135m``), a folder, a GGUF file, or a hub id
            (``EleutherAI/pythia-160m``).
        revision: a snapshot (``step512``) or hub revision; the last one by default.

    Raises:
        MissingError: no such folder, revision, or hub model in the local cache (the message says how to fetch it).
        CorruptError: the weights do not fit the configuration. UsageError: an architecture without a bridge.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("WANDB_MODE", "offline")
    folder = find_folder(name)
    revision = resolve_revision(name, revision)
    import torch

    with torch.random.fork_rng(devices=[]):  # the initialisations that the weights replace draw random numbers
        hf_model = load_hf(name, revision)
        if folder is None:
            tokenizer = _hub_tokenizer(name, revision)
        else:
            tokenizer = load_tokenizer(folder) if _has_tokenizer(folder) else None
        return bridge(hf_model, tokenizer, str(name))


_SAME = 1e-3  # share of the largest logit by which a bridge's may differ from transformers' own
_NO_BRIDGE = "TransformerLens' bridge for {} does not work on this configuration ({}). Use another model."


def bridge(hf_model: Any, tokenizer: Any = None, name: str = "model") -> Any:
    """Wrap a Hugging Face model, which is changed in place, as a ``TransformerBridge``, and compare their logits.

    Raises:
        UsageError: an architecture without a bridge, or a bridge that fails or computes something else.
    """
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    from workbench.models import attention
    from workbench.models.few_logits import few_logits, same_logits
    from workbench.models.parts import name_parts
    from workbench.models.quiet_norms import quiet_norms
    from workbench.models.recurrent import attach

    architecture = (hf_model.config.architectures or [type(hf_model).__name__])[0]
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise UsageError(
            f"TransformerLens has no bridge for {architecture} ({nearest(architecture, list(SUPPORTED_ARCHITECTURES))})"
        )
    contract = None if tokenizer is None else contract_of(tokenizer, longest=longest_context(hf_model))
    said = few_logits(hf_model)
    try:
        model = build_bridge_from_module(
            hf_model, architecture, hf_config=hf_model.config, tokenizer=tokenizer, model_name=name
        )
        name_parts(model)
        attach(model)
        attention.attach(model)
        quiet_norms(model)
        close = same_logits(said, few_logits(model), share=_SAME)
    except Exception as e:  # whatever a library meets in a configuration it was not made for
        raise UsageError(_NO_BRIDGE.format(architecture, f"{type(e).__name__}: {str(e).splitlines()[0][:160]}")) from e
    if not close:
        raise UsageError(_NO_BRIDGE.format(architecture, "its logits are not those of transformers"))
    if (
        contract is not None and contract.first is None
    ):  # TransformerLens gives it a BOS that the vocabulary does not have
        model.tokenizer.bos_token = model.tokenizer.eos_token = None
    for config in {id(c): c for c in (hf_model.config, hf_model.config.get_text_config())}.values():
        config.use_cache = (
            False  # nothing here continues a text: a cache costs memory, and with it some hooks stay silent
        )
    model.eval()
    return model if contract is None else reads_text(model, contract)


def load_hf(name: str | Path, revision: str | None = None) -> Any:
    """The plain Hugging Face model behind :func:`load_model`: float32, eval, eager attention, Mamba mixers repaired."""
    import torch

    from workbench.models.mamba_ssm_format import import_mamba_ssm, is_mamba_ssm_folder

    folder = find_folder(name)
    if folder is not None and is_mamba_ssm_folder(folder):
        hf_model = import_mamba_ssm(folder)
    else:
        snapshot = None if folder is None else resolve_revision(name, revision)
        if folder is not None and snapshot is not None and not (folder / snapshot / "config.json").is_file():
            hf_model = _from_snapshot(folder, snapshot)
        else:
            hf_model = _hub(
                name if folder is None else folder / (snapshot or ""),
                revision if folder is None else None,
                "AutoModelForCausalLM",
                dtype=torch.float32,
                attn_implementation="eager",
            )
    from workbench.models.mamba import repair_mamba

    return repair_mamba(hf_model).eval()


def _from_snapshot(folder: Path, revision: str) -> Any:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    path = folder / revision / "model.safetensors"
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    try:
        weights = {k: v.float() for k, v in load_file(path).items()}
    except (SafetensorError, OSError) as e:
        raise CorruptError(
            f"{path} cannot be read: {e}. Make it again with `workbench pretrain`, or reinstall the package."
        ) from e
    config.dtype = torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as e:
        raise CorruptError(f"{path} does not fit {folder / 'config.json'}: {e}") from e
    model.tie_weights()
    tied = {"lm_head.weight", "embed_out.weight"} if config.tie_word_embeddings else set()
    if set(missing) - tied or unexpected:
        raise CorruptError(
            f"{path} does not fit {folder / 'config.json'}: missing {sorted(set(missing) - tied)[:3]}, unknown"
            f" {list(unexpected)[:3]}."
        )
    return model


def load_tokenizer(name: str | Path, revision: str | None = None) -> Any:
    """The tokenizer of a model, as a ``PreTrainedTokenizerFast``; ``revision`` counts for hub models only.

    Raises:
        MissingError: the folder has none, or the hub model is not in the local cache.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    folder = find_folder(name)
    if folder is None:
        return _hub_tokenizer(name, revision)
    if not _has_tokenizer(folder):
        raise MissingError(f"{name} holds no tokenizer (no tokenizer.json).")
    if (folder / "tokenizer_config.json").is_file():
        return _hub(folder, None, "AutoTokenizer")
    from workbench.models.tokenizer import read_tokenizer

    return read_tokenizer(folder)


def _hub_tokenizer(name: str | Path, revision: str | None) -> Any:
    """A hub model's tokenizer that remembers the cached snapshot it comes from: TransformerLens reads it again, without
    the revision.
    """
    from huggingface_hub import try_to_load_from_cache

    tokenizer = _hub(name, revision, "AutoTokenizer")
    for file in ("tokenizer_config.json", "tokenizer.json"):
        cached = try_to_load_from_cache(str(name), file, revision=revision)
        if isinstance(cached, str):
            tokenizer.init_kwargs["name_or_path"] = str(Path(cached).parent)
            break
    return tokenizer


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / f).is_file() for f in ("tokenizer.json", "tokenizer_config.json"))


def _hub(name: str | Path, revision: str | None, auto: str, **options: Any) -> Any:
    """Call ``transformers.<auto>.from_pretrained`` without the network unless it was asked for."""
    import transformers

    where = {} if revision is None else {"revision": revision}
    try:
        return getattr(transformers, auto).from_pretrained(
            str(name), local_files_only=offline(), trust_remote_code=False, **where, **options
        )
    except Exception as e:
        if Path(name).is_dir():
            raise CorruptError(f"{name} cannot be loaded: {str(e).splitlines()[0]}") from e
        known = [*bundled(), *PACKAGED]
        near = f" (known here: {nearest(str(name), known)})" if "/" not in str(name) else ""
        if offline():
            raise MissingError(
                f"model {str(name)!r}{f' at {revision!r}' if revision else ''} is not bundled, not a folder "
                f"and not in the local Hugging Face cache{near}. "
                f"Fetch it once: {fetch_command(str(name), revision)}"
            ) from e
        raise MissingError(f"model {str(name)!r} could not be fetched{near}: {str(e).splitlines()[0]}") from e


def describe(name: str | Path) -> dict[str, Any]:
    """The model's ``card.json``: recipe, tokens, loss per snapshot, criteria, digests.

    Raises:
        MissingError: the model has no card.
    """
    folder = find_folder(name)
    if folder is None or not (folder / "card.json").is_file():
        raise MissingError(f"model {str(name)!r} has no card.json; only models made by `workbench pretrain` have one.")
    return read_json(folder / "card.json")
