"""The limited child: ``python -m sae.formats.unpickle IN OUT LIMIT`` turns a pickled state dict into safetensors.

Runs with its own memory limit; only ``torch.load(weights_only=True)`` touches the file, which refuses code.
"""

from __future__ import annotations

import sys

from sae import system

CHILD_SECONDS = 120


def flatten(value: object, prefix: str = "") -> dict[str, object]:
    """Tensors of nested dicts under dotted names; whole numbers and floats become tensors, the rest is left out."""
    import torch

    if isinstance(value, torch.Tensor):
        return {prefix: value.detach().cpu().contiguous().clone()}
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return {}
    if isinstance(value, int | float):
        return {prefix: torch.tensor(value)}
    if isinstance(value, dict):
        out: dict[str, object] = {}
        for key, item in value.items():
            out.update(flatten(item, f"{prefix}.{key}" if prefix else str(key)))
        return out
    return {}


def main() -> None:
    import torch
    from safetensors.torch import save_file

    source, target, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
    system.limit_process(cpu_seconds=CHILD_SECONDS, file_size=limit)
    system.limit_memory(limit)
    tensors = flatten(torch.load(source, map_location="cpu", weights_only=True))
    if not tensors:
        raise SystemExit("no tensors inside")
    save_file(tensors, target)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
