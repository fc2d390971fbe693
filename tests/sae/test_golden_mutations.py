"""Whatever is changed in a golden folder is read with unchanged outputs, refused in one line, or caught by its outputs.

A changed key, and a tensor that is added, removed or of another shape, must not even need the outputs: only numbers
that changed in place are beyond what a configuration can promise. `python tests/sae/test_golden_mutations.py 200`
prints how each of 200 mutations per folder ends.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from sae.errors import UserError
from sae.formats import dictionary_learning, published
from sae.formats.parity import EXPECTED, compare_expected, format_table, golden_folders

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = golden_folders(GOLDEN)
IDS = [str(p.relative_to(GOLDEN)).split("/")[0] for p in FOLDERS]
# layouts without a word on whether these tensors belong to them
OPTIONAL = {("circuit-tracer", "W_skip"), ("circuit-tracer", "activation_function.threshold")}


@pytest.mark.parametrize("folder", FOLDERS, ids=IDS)
def test_every_release_s_own_numbers(folder, monkeypatch):
    in_process(monkeypatch)
    found = compare_expected(folder)
    assert found.ok, found


def in_process(monkeypatch):
    """Pickles of these tests are our own: read without the child process, which is tested by itself."""
    for module in (dictionary_learning, published):
        monkeypatch.setattr(module, "read_state_dict", quick)


def quick(path, **_):
    from sae.formats.unpickle import flatten

    return flatten(torch.load(path, weights_only=True))


def load(path):
    if path.suffix == ".npz":
        return {k: torch.from_numpy(v) for k, v in np.load(path).items()}
    return torch.load(path, weights_only=True) if path.suffix in (".pt", ".pth") else load_file(path)


def store(path, tensors):
    if path.suffix == ".npz":
        np.savez(path, **{k: v.numpy() for k, v in tensors.items()})
    elif path.suffix in (".pt", ".pth"):
        torch.save(tensors, path)
    else:
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, path)


def retyped(value, rng):
    if isinstance(value, bool) or value is None:
        return rng.choice([str(value), 7])
    if isinstance(value, int | float):
        return rng.choice([str(value), [value], value + 0.5, True])
    if isinstance(value, str):
        return rng.choice([7, None, [value], value + "_"])
    return rng.choice([None, json.dumps(value), 7])


def mutate_config(path, rng):
    """(what was done, whether only a number changed) to one key, at any depth."""
    text = path.read_text()
    cfg = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    inside = [cfg, *(v for v in cfg.values() if isinstance(v, dict) and v)]
    place = rng.choice(inside)
    key = rng.choice(sorted(place))
    kind = rng.choice(["renamed", "removed", "retyped"])
    number = False
    if kind == "retyped":
        before, place[key] = place[key], retyped(place[key], rng)
        number = type(before) is type(place[key]) is float  # another number, as a scaled tensor is
    else:
        value = place.pop(key)
        if kind == "renamed":
            place[rng.choice([key + "_", key.upper(), "x" + key])] = value
    path.write_text(yaml.safe_dump(cfg) if path.suffix == ".yaml" else json.dumps(cfg))
    return f"{path.name}: {key} {kind}", number


def mutate_tensors(path, rng):
    """(what was done, whether only numbers changed) to one tensor."""
    tensors = load(path)
    name = rng.choice(sorted(tensors))
    t = tensors[name]
    kinds = ["removed", "added", "renamed", "reshaped", "scaled"]
    kinds += ["transposed"] if t.dim() == 2 and t.shape[0] == t.shape[1] else []
    kind = rng.choice(kinds)
    if kind in ("removed", "renamed"):
        del tensors[name]
    if kind == "renamed":
        tensors[name + "_"] = t
    elif kind == "added":
        tensors[rng.choice(["scale", "gain", "mean"])] = torch.ones(3)
    elif kind == "reshaped":
        tensors[name] = t.t() if t.dim() == 2 and t.shape[0] != t.shape[1] else t.reshape(1, *t.shape)
    elif kind == "scaled":
        tensors[name] = (t * 2).to(t.dtype) if t.dtype != torch.bool else t
    elif kind == "transposed":
        tensors[name] = t.t()
    store(path, tensors)
    return f"{path.name}: {name} {kind}", kind in ("scaled", "transposed"), name


def attack(folder, tmp, n, seed):
    """The mutations that were read with other outputs although the files could have told, and how many of each end."""
    silent, ends = [], {"unchanged": 0, "refused": 0, "caught": 0}
    for i in range(n):
        rng = random.Random(f"{seed} {i}")
        copy = tmp / "copy" / folder.name
        shutil.rmtree(tmp / "copy", ignore_errors=True)
        shutil.copytree(folder, copy)
        configs = [p for p in copy.rglob("*") if p.suffix in (".json", ".yaml")]
        weights = [
            p for p in copy.rglob("*") if p.suffix in (".safetensors", ".npz", ".pt", ".pth") and p.name != EXPECTED
        ]
        path = rng.choice(sorted(configs)) if configs and rng.random() < 0.6 else rng.choice(sorted(weights))
        if path.suffix in (".json", ".yaml"):
            done, numbers = mutate_config(path, rng)
            name = ""
        else:
            done, numbers, name = mutate_tensors(path, rng)
        try:
            found = compare_expected(copy)
        except UserError as e:
            ends["refused"] += 1
            if len(str(e).splitlines()) != 1:
                silent.append(f"{done}: refused in several lines: {e}")
            continue
        if found.ok:
            ends["unchanged"] += 1
        else:
            ends["caught"] += 1
            if not numbers and (found.library, name) not in OPTIONAL:
                silent.append(f"{done} (error {found.error:.2g})")
    return silent, ends


@pytest.mark.parametrize("folder", FOLDERS, ids=IDS)
def test_no_change_goes_unnoticed(folder, tmp_path, monkeypatch):
    in_process(monkeypatch)
    silent, ends = attack(folder, tmp_path, 12, seed=folder.name)
    assert not silent and sum(ends.values()) == 12


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS, ids=IDS)
def test_no_change_goes_unnoticed_in_two_hundred(folder, tmp_path, monkeypatch):
    in_process(monkeypatch)
    silent, ends = attack(folder, tmp_path, 200, seed="all")
    assert not silent, (silent, ends)


def test_the_documented_table_is_the_readers_own():
    page = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text()
    assert "\n".join(format_table()) in page


def table(n):
    """The lines of a Markdown table, and whether no mutation was silent."""
    lines, good = (
        ["| folder | read unchanged | refused | caught by its outputs | silent |", "|---|---|---|---|---|"],
        True,
    )
    print("\n".join(lines))
    for name, folder in zip(IDS, FOLDERS, strict=True):
        with tempfile.TemporaryDirectory() as tmp:
            silent, ends = attack(folder, Path(tmp), n, seed="all")
        good &= not silent
        row = [name, ends["unchanged"], ends["refused"], ends["caught"] - len(silent), len(silent)]
        lines.append("| " + " | ".join(map(str, row)) + (f": {'; '.join(silent)} |" if silent else " |"))
        print(lines[-1], flush=True)
    return lines, good


if __name__ == "__main__":
    torch.set_num_threads(1)
    dictionary_learning.read_state_dict = published.read_state_dict = quick
    raise SystemExit(0 if table(int(sys.argv[1]) if sys.argv[1:] else 200)[1] else 1)
