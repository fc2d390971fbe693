"""Foreign dictionaries against their library's own numbers, and what is known of each format, as tables.

``python -m sae.formats.parity FOLDER`` prints one line for every folder below FOLDER in which an
``expected.safetensors`` lies: rows ``x`` and what the library itself made of them, latents ``f`` and outputs ``y``.
``python -m sae.formats.parity --formats`` prints what is read: library, versions, dates, kinds, what is refused.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sae.errors import CorruptError, UserError
from sae.formats import cross_layer, dictionary_learning, openmoss, published, saelens, sparsify
from sae.formats.libraries import detect, read
from sae.formats.tensors import read_safetensors

EXPECTED = "expected.safetensors"
LAYOUTS = (
    *saelens.LAYOUTS,
    *sparsify.LAYOUTS,
    *dictionary_learning.LAYOUTS,
    *openmoss.LAYOUTS,
    *published.LAYOUTS,
    *cross_layer.LAYOUTS,
)


@dataclass(frozen=True)
class Parity:
    """``error``: largest difference of the outputs over their largest entry; ``same``: whether the same latents are on
    in every row; ``tolerance``: rounding of the folder's precision.
    """

    name: str
    library: str
    act: str
    dtype: str
    error: float
    same: bool
    tolerance: float

    @property
    def ok(self) -> bool:
        """Equal within rounding: in float32 the same latents everywhere, too."""
        return self.error <= self.tolerance and (self.same or self.tolerance > 1e-3)


@torch.no_grad()
def compare_expected(folder: Path) -> Parity:
    """A folder as it is read here, against the outputs of its own library that lie beside it.

    Raises:
        MissingError: no such outputs. CorruptError, UntrustedFile: see :func:`sae.formats.read`.
    """
    want = read_safetensors(folder / EXPECTED)
    if cross_layer.is_cross_layer(folder):
        clt = cross_layer.read_cross_layer(folder)
        act = "relu" if clt.threshold is None else "jumprelu"
        f = clt.encode(want["x"].float())
        library = f"{clt.metadata['imported_from']} CLT"
        return _parity(folder, library, act, clt.dtype, f, clt.decode(f, want["x"].float()), want)
    found = sorted(folder.glob("layer_*.safetensors"))
    path = found[0] if found else folder
    form = read(path)
    x = want["x"].float()
    f = form.encode(x)
    return _parity(folder, detect(path), form.act, form.dtype, f, form.decode(f, x), want)


def _parity(
    folder: Path, library: str, act: str, dtype: torch.dtype, f: Tensor, z: Tensor, want: dict[str, Tensor]
) -> Parity:
    """Latents ``f`` and outputs ``z`` beside the library's own."""
    y = want["y"].float()
    error = float((z - y).abs().max() / y.abs().max()) if z.shape == y.shape else torch.inf
    same = f.shape == want["f"].shape and torch.equal(f > 1e-6, want["f"] > 1e-6)
    tolerance = 1e-5 if dtype == torch.float32 else 8 * torch.finfo(dtype).eps
    return Parity(folder.name, library, act, str(dtype).removeprefix("torch."), error, same, tolerance)


def check_outputs(path: Path) -> None:
    """Hold a dictionary against its own library's outputs, where ``expected.safetensors`` lies beside it; nothing where
    there is none.

    Raises:
        CorruptError: it gives others as it is read here, so a number in its files is not what it was.
    """
    folder = path if path.is_dir() else path.parent
    if not (folder / EXPECTED).is_file():
        return
    found = compare_expected(folder)
    if not found.ok:
        raise CorruptError(
            f"{folder} does not give the outputs of its own library that lie beside it ({EXPECTED}): they differ by"
            f" {found.error:.2g} of the largest, with {'the same' if found.same else 'other'} latents on."
        )


def golden_folders(root: Path) -> list[Path]:
    """Folders below ``root`` with a library's outputs in them."""
    return sorted(p.parent for p in root.rglob(EXPECTED))


def parity_table(root: Path) -> tuple[list[str], bool]:
    """(the lines of a Markdown table, whether all agree) for every folder of :func:`golden_folders`."""
    lines = ["| folder | reader | activation | precision | largest relative difference | same latents |"]
    lines.append("|---|---|---|---|---|---|")
    good = True
    for folder in golden_folders(root):
        name = folder.relative_to(root).parts[0]
        try:
            p = compare_expected(folder)
        except UserError as e:
            lines.append(f"| {name} | refused: {e} | | | | |")
            good = False
            continue
        good &= p.ok
        agrees = "yes" if p.same else "no"
        lines.append(
            f"| {name} | {p.library} | {p.act} | {p.dtype} | {p.error:.1e}{'' if p.ok else ' (!)'} | {agrees} |"
        )
    return lines, good


def format_table() -> list[str]:
    """The lines of a Markdown table of all layouts that are read, made from the readers' own tables."""
    lines = ["| library | versions | dates | configuration | kinds | refused by name |", "|---|---|---|---|---|---|"]
    for x in LAYOUTS:
        kinds, refused = ", ".join(x.kinds), ", ".join(x.refused) or "what is not in its table"
        lines.append(f"| {x.library} | {x.versions} | {x.dates} | `{x.file}` | {kinds} | {refused} |")
    return lines


def main(arguments: list[str]) -> int:
    """The command; 1 where a folder does not agree."""
    if arguments == ["--formats"]:
        print("\n".join(format_table()))
        return 0
    lines, good = parity_table(Path(arguments[0] if arguments else "."))
    print("\n".join(lines))
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
