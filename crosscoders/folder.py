"""A crosscoder on disk: the two files of an ordinary SAE on concatenated rows, and one more for what only a crosscoder
has.

``cfg.json`` and ``sae_weights.safetensors`` load in SAELens as a Top-K (or JumpReLU) SAE with ``d_in = sum(widths)``;
``metadata.sources`` names the blocks. ``crosscoder.safetensors`` holds ``source_scale`` [S] and ``gain`` [F], with
which decoder norms are given in training scale. A gate per source is not an SAE: such a folder names the architecture
``jumprelu-per-source``, which SAELens refuses rather than misreads; so does a magnitude per source
(``topk-own-magnitude``), whose ``own_bias`` and ``rank`` [F, S] stand in ``crosscoder.safetensors``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crosscoders.gates import OwnMagnitude, PerSource
from crosscoders.model import Crosscoder
from sae import folder as sae_folder
from sae.activation import Activation, Threshold, TopK
from sae.errors import CorruptError
from sae.files import write_bytes, write_json
from sae.folder import CFG, WEIGHTS, register
from sae.model import SAE

EXTRAS = "crosscoder.safetensors"
PER_SOURCE, OWN_MAGNITUDE = PerSource.architecture, OwnMagnitude.architecture


def save(cc: Crosscoder, path: str | Path) -> Path:
    """Fold, write, read back and compare outputs and norms. A new folder appears whole; in an existing one files are
    replaced.

    Raises:
        CorruptError: what was read back is not what was written. OutOfSpace: the disk is full; nothing half-written
        stays.
    """
    out = cc.folded()
    compare(cc, out, where="folding")
    return sae_folder.place(Path(path), lambda folder: _write(folder, out))


def _write(folder: Path, out: Crosscoder) -> None:
    from safetensors.torch import save as to_bytes

    extras = {"source_scale": out.source_scale_S, "gain": out.gain_F}
    if isinstance(out.activation, OwnMagnitude):
        extras |= {"own_bias": out.own_FS, "rank": out.rank_FS}
    weights = sae_folder.tensors_of(out)
    cfg = sae_folder.cfg_of(out)
    cfg["metadata"] = {**cfg["metadata"], **out.about(), "k": out.k}
    write_bytes(folder / EXTRAS, to_bytes({n: t.detach().cpu().contiguous() for n, t in extras.items()}))
    write_bytes(folder / WEIGHTS, to_bytes(weights))
    write_json(folder / CFG, cfg)
    compare(out, Crosscoder.load(folder), where=str(folder))


@torch.no_grad()
def compare(a: Crosscoder, b: Crosscoder, *, where: str) -> None:
    """Raise :class:`CorruptError` unless both reconstruct alike and have the same norms in training scale and in raw
    units.
    """
    sae_folder.compare(a, b, where=where)
    for raw in (False, True):
        if not torch.allclose(a.decoder_norms(raw=raw), b.decoder_norms(raw=raw), rtol=1e-4, atol=1e-7):
            raise CorruptError(
                f"{where}: the form that would be saved has other decoder norms than the dictionary in memory, so"
                " nothing was kept. Save it again; if it stays so, check memory and disk."
            )


def read(cfg: dict[str, Any], tensors: dict[str, Tensor], where: str) -> SAE:
    """The reader that :func:`sae.load` calls for crosscoder folders.

    Raises:
        CorruptError: sources that do not add up to ``d_in``, or tensors of other shapes than promised.
    """
    metadata = cfg.get("metadata", {})
    try:
        d_in, d_sae = int(cfg["d_in"]), int(cfg["d_sae"])
        names, widths = [str(s["name"]) for s in metadata["sources"]], [int(s["width"]) for s in metadata["sources"]]
        k = int(cfg.get("k", metadata.get("k", 0)))
    except (KeyError, TypeError, ValueError) as e:
        raise CorruptError(
            f"{where}/{CFG}: d_in, d_sae, k and metadata.sources (name, width) are needed ({e!r})."
        ) from e
    if sum(widths) != d_in or min(widths, default=0) < 1:
        raise CorruptError(
            f"{where}/{CFG}: sources of widths {widths} do not add up to d_in = {d_in}. Restore the folder from a"
            " copy, or train it again."
        )
    expected: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, d_sae),
        "W_dec": (d_sae, d_in),
        "b_enc": (d_sae,),
        "b_dec": (d_in,),
    }
    own = cfg["architecture"] == OWN_MAGNITUDE
    gated = cfg["architecture"] != "topk" and not own
    if gated:
        expected["threshold"] = (d_sae,)
    elif not 1 <= k <= d_sae:
        raise CorruptError(
            f"{where}/{CFG}: k = {k} is not between 1 and d_sae = {d_sae}. Restore the folder from a copy, or train it"
            " again."
        )
    sae_folder.check_shapes(tensors, expected, where)
    extras = sae_folder.read_tensors(Path(where) / EXTRAS)
    beside: dict[str, tuple[int, ...]] = {"source_scale": (len(widths),), "gain": (d_sae,)}
    if own:
        beside |= dict.fromkeys(("own_bias", "rank"), (d_sae, len(widths)))
    sae_folder.check_shapes(extras, beside, where)
    activation: Activation = OwnMagnitude(k) if own else TopK(k)
    if gated:
        activation = PerSource(k) if cfg["architecture"] == PER_SOURCE else Threshold(k)
    cc = Crosscoder(widths, d_sae, activation, sources=names, dtype=tensors["W_enc"].dtype)
    with torch.no_grad():
        cc.enc_FD.copy_(tensors["W_enc"].t())
        cc.dec_FD.copy_(tensors["W_dec"])
        cc.b_enc.copy_(tensors["b_enc"])
        cc.b_dec.copy_(tensors["b_dec"])
        cc.source_scale_S.copy_(extras["source_scale"])
        cc.gain_F.copy_(extras["gain"])
        if own:
            cc.own_FS.copy_(extras["own_bias"])
            cc.rank_FS.copy_(extras["rank"])
            cc.usual_FS.fill_(1.0)
        if gated:
            cc.threshold_F.copy_(tensors["threshold"])
    cc.shared_latents, cc.dedicated = int(metadata.get("shared_latents", 0)), int(metadata.get("dedicated_latents", 0))
    cc.folded_in = True
    return cc


for _architecture in ("topk", "jumprelu", PER_SOURCE, OWN_MAGNITUDE):
    register(_architecture, "crosscoder", read)
