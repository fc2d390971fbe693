"""Reading an evolution folder: how the latents of a crosscoder change over the snapshots of a model's training.

``evolution/<id>/`` is made by ``workbench evolve``. Opening reads the manifest and the small tables; arrays are
memory-mapped. Neither torch nor h5py is needed. A part that was not computed is absent, and its method returns
``None``.

Axis letters: F latents, S snapshots in training order, K contexts per latent, T tokens of a window.

===========================  ==================================================================================
file                         content
===========================  ==================================================================================
``steps.npy``                int64 [S] training steps (source positions where the sources are not snapshots); of
                             several models those of one after those of the other
``decnorm.npy``              float32 [F, S] decoder norms in the scale the crosscoder trained in (every snapshot alike)
``decnorm_raw.npy``          float32 [F, S] the same in the model's own units: also follows the residual stream's growth
``decnorm_free.npy``         float32 [F, S] norm-free norms by latent scaling (held-out rows); NaN: the latent never
                             fired
``cosine.npy``               float16 [F, S, S] cosines between a latent's decoder rows; NaN: a zero row
``latents.parquet``          a row per latent (without what supposes one training, where several models are
                             followed): emergence (0.1, 0.5, 0.9), peak, decay, lifespan, class, rotation,
                             turning
                             point (``*_step``, missing where it does not happen), kind (taxonomy) with the numbers
                             behind it, complexity, n_fired, alive
``phases.parquet``           a row per snapshot: step, tokens seen (where known), loss, kl_unigram, kl_bigram,
                             kl_bigram_bias, kl_to_bigram, ce_unigram, ce_bigram, h1, h2, ev, dimensionality,
                             mean_norm, cosine_next, accuracy_<task> for every task, delta_ce, ce_recovered_zero and
                             _mean
``losses.parquet``           source, step, metric, value, low, high, n, unit, interval: loss of every source with its
                             share of the
                             reconstruction spliced in (delta_ce, ce_recovered_zero, ce_recovered_mean, kl, ev, l0, ...)
``statistics.parquet``       a row per claim: claim, value, low, high, n, null, null_mean, null_low, null_high, p,
                             verdict; the
                             order of kinds counts the latents of the sites in ``metadata.also`` (evolutions of their
                             own) too
``attribution.parquet``      task, source, step, mode (destroy, keep, full, empty), ranking (attribution, magnitude,
                             random,
                             frequency), k, metric, low, high, share, n, draws
``attribution_latents.parquet``  task, source, step, latent, attribution (mean over prompts), n
``baseline.parquet``         source, step, baseline, ev_crosscoder, ev_sae, gap, low, high, l0_crosscoder, l0_sae, n,
                             rows: beside
                             one SAE per snapshot, ``alone`` (as long in training) or ``warm`` (started from the one
                             before, the last S times as long); recipes with ``baseline = true``
``diff.parquet``             two sources that are no snapshots of one training: a row per latent: norms, relative_norm,
                             class,
                             cosine (equal widths), nu_error, nu_reconstruction, confirmed, n_fired
``own_agreement.npy``        float32 [F, S], several models over their training: a latent's own firings at a source
                             against the other models' finished ones, above chance; NaN: it does not fire
``own_explained.npy``        float32 [F, S] share of the source's variance it explains where the other models find it
``architectures.parquet``    a row per latent and model: model, shared, open (1 - v_token), emergence_own, _norm and
                             _explained (training step between snapshots; missing where never), agreement (at the last
                             snapshot), n_fired
``act_ck/tokens.npy``        int32 [F, K, T] token ids of each latent's contexts; -1 = padding
``act_ck/peak.npy``          int16 [F, K] place of the context's strongest token; -1 = no such context
``act_ck/where.npy``         int32 [F, K, 2] (held-out sequence, position of the window's first token)
``act_ck/acts.npy``          uint8 [F, K, S, T] the latent's reading of the same context at every snapshot, 255 = its
                             ``top``
``act_ck/code.npy``          uint8 [F, K, T] the latent's activation itself, which all snapshots share, on the same
                             scale
``act_ck/top.npy``           float32 [F] what 255 stands for
``vocab.json``               list of token strings as displayed
===========================  ==================================================================================

The *reading* of snapshot s is max(0, S c_s + b), c_s being the part of the latent's pre-activation that comes from
snapshot s: what the latent would be if all snapshots looked like this one. Readings below the smallest activation with
which the latent was ever kept on the held-out tokens are shown as 0. Their mean over snapshots is the pre-activation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae.errors import CorruptError, UsageError
from sae.files import read_json
from workbench.results.characters import whole_characters
from workbench.results.result import Result


@dataclass(frozen=True)
class SnapshotContext:
    """One window of held-out text and a latent's reading of it at every snapshot.

    ``readings`` [S, T] and ``code`` [T] are in the latent's own units; ``peak`` is the place of the strongest token.
    """

    tokens: list[str]
    ids: list[int]
    readings: np.ndarray
    code: np.ndarray
    peak: int
    seq: int
    start: int


class Evolution(Result):
    """An evolution folder. Open it with :meth:`open`. ``metadata``: dictionary, model, sources, site, tasks, tokens."""

    kind, noun, verb = "evolution", "an evolution", "evolve"

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = False) -> Evolution:
        """Open a folder; with ``verify`` every file's digest is compared with the manifest.

        Raises:
            MissingError: no such folder, or it is incomplete. CorruptError: it holds something else, or a file changed.
        """
        return cls(Path(folder), cls.read_manifest(Path(folder), verify=verify))

    @property
    def sources(self) -> list[str]:
        """Names of the snapshots, in training order."""
        return list(self.metadata["sources"])

    def __len__(self) -> int:
        return int(self._need("decnorm").shape[0])

    @cached_property
    def steps(self) -> np.ndarray:
        """Training steps, int64 [S]."""
        return np.asarray(self._need("steps"))

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per latent."""
        return self._table("latents")

    @cached_property
    def phases(self) -> pd.DataFrame | None:
        """One row per snapshot."""
        return self._table("phases", optional=True)

    @cached_property
    def statistics(self) -> pd.DataFrame | None:
        """One row per claim, each with its interval and its null."""
        return self._table("statistics", optional=True)

    @cached_property
    def losses(self) -> pd.DataFrame | None:
        """What the reconstruction costs every source model; one row per source and metric."""
        return self._table("losses", optional=True)

    @cached_property
    def baseline(self) -> pd.DataFrame | None:
        """Explained variance beside one SAE per snapshot, alone and warm-started; one row per baseline and source."""
        return self._table("baseline", optional=True)

    @cached_property
    def diff(self) -> pd.DataFrame | None:
        """What two sources share, latent by latent."""
        return self._table("diff", optional=True)

    @cached_property
    def architectures(self) -> pd.DataFrame | None:
        """When each latent emerges in each model, where the sources are snapshots of several."""
        return self._table("architectures", optional=True)

    @property
    def lines(self) -> list[tuple[str, list[int]]]:
        """(model, its places among the sources in training order) of every model that is followed; one without a name
        where it is a single one.
        """
        several = self.metadata.get("architectures")
        if not several:
            return [("", list(range(len(self.steps))))]
        return [(str(m["model"]), [int(i) for i in m["sources"]]) for m in several]

    @property
    def snapshot_names(self) -> list[str]:
        """``step 512`` of every source, with its model where several are followed."""
        models = {i: f"{model}, " if model else "" for model, places in self.lines for i in places}
        return [f"{models[i]}step {int(s):,}" for i, s in enumerate(self.steps)]

    def own(self, kind: str = "agreement") -> np.ndarray | None:
        """[F, S] what each source shows of each latent by itself: ``agreement`` or ``explained``."""
        if kind not in ("agreement", "explained"):
            raise UsageError(f"own firings have no {kind!r}; they have 'agreement' and 'explained'.")
        return self._array(f"own_{kind}")

    @cached_property
    def attribution(self) -> pd.DataFrame | None:
        """Destroy and keep curves of every task at every snapshot."""
        return self._table("attribution", optional=True)

    @cached_property
    def attribution_latents(self) -> pd.DataFrame | None:
        """Attribution of every active latent, per task and snapshot."""
        return self._table("attribution_latents", optional=True)

    @cached_property
    def vocab(self) -> list[str]:
        """Token strings as displayed, index = id."""
        return read_json(self.folder / "vocab.json")

    def norms(self, latents: list[int] | np.ndarray, kind: str = "training") -> np.ndarray | None:
        """Norm curves [len(latents), S]: ``training`` scale, ``raw`` units, or ``free`` of the decoder norm."""
        names = {"training": "decnorm", "raw": "decnorm_raw", "free": "decnorm_free"}
        if kind not in names:
            raise UsageError(f"norms of kind {kind!r} do not exist; kinds are {', '.join(names)}.")
        array = self._array(names[kind])
        return None if array is None else np.asarray(array[self._checked(latents)])

    def cosines(self, latent: int) -> np.ndarray | None:
        """Cosines [S, S] between a latent's decoder rows."""
        array = self._array("cosine")
        return None if array is None else np.asarray(array[self._checked([latent])[0]], dtype=np.float32)

    def contexts(self, latent: int) -> list[SnapshotContext] | None:
        """The latent's strongest held-out contexts with its reading at every snapshot; empty if it never fired."""
        parts = {n: self._array(f"act_ck/{n}") for n in ("tokens", "peak", "where", "acts", "code", "top")}
        if any(p is None for p in parts.values()):
            return None
        (i,) = self._checked([latent])
        scale = float(parts["top"][i]) / 255  # type: ignore[index]
        out = []
        for k in range(parts["peak"].shape[1]):  # type: ignore[union-attr]
            if parts["peak"][i, k] < 0:  # type: ignore[index]
                continue
            ids = np.asarray(parts["tokens"][i, k])  # type: ignore[index]
            n = int((ids >= 0).sum())
            readings = np.asarray(parts["acts"][i, k, :, :n], dtype=np.float32) * scale  # type: ignore[index]
            code = np.asarray(parts["code"][i, k, :n], dtype=np.float32) * scale  # type: ignore[index]
            seq, start = (int(v) for v in parts["where"][i, k])  # type: ignore[index]
            words = whole_characters([self.vocab[int(t)] for t in ids[:n]])
            out.append(SnapshotContext(words, ids[:n].tolist(), readings, code, int(parts["peak"][i, k]), seq, start))  # type: ignore[index]
        return out

    def _checked(self, latents: list[int] | np.ndarray) -> np.ndarray:
        chosen = np.asarray(latents, dtype=np.int64)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise UsageError(
                f"latent {int(chosen.max() if chosen.max() >= len(self) else chosen.min())} is not in {self.id}: it has"
                f" {len(self)}"
            )
        return chosen

    def _array(self, name: str) -> np.ndarray | None:
        path = self.folder / f"{name}.npy"
        if not path.is_file():
            return None
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError) as e:
            raise CorruptError(
                f"{path} is not a whole array ({e}). Remove {self.folder} and run `workbench evolve` again."
            ) from e

    def _need(self, name: str) -> np.ndarray:
        array = self._array(name)
        if array is None:
            raise CorruptError(
                f"{self.folder / name}.npy is missing. Remove {self.folder} and run `workbench evolve` again."
            )
        return array

    def _table(self, name: str, *, optional: bool = False) -> Any:
        path = self.folder / f"{name}.parquet"
        if not path.is_file():
            if optional:
                return None
            raise CorruptError(f"{path} is missing. Remove {self.folder} and run `workbench evolve` again.")
        return pd.read_parquet(path)
