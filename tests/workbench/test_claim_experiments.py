"""Claims whose experiments train or patch: each run whole on a bench with made-up dictionaries and circuits, in which
the effect is there, and in which it is not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from workbench.claims import all_claims
from workbench.claims.base import Finding, Measured, verdict
from workbench.claims.rules import CONTRADICTED, INCONCLUSIVE, NOT_TESTABLE, SUPPORTED

BY_ID = {c.id: c for c in all_claims()}
D = 128


def kind(config: Any) -> str:
    activation = getattr(config, "activation", "topk")
    return str(getattr(activation, "kind", activation))


class Bench:
    """A lab whose dictionaries are only their settings: what they reach is told by functions of these."""

    seeds, quick, steps = 3, True, 200

    def __init__(
        self,
        ev: Callable[[Any], float] = lambda m: 0.9,
        l0: Callable[[Any], float] = lambda m: float(m.config.k),
        loss: Callable[[Any], float] = lambda m: 0.1,
        dead: Callable[[Any], float] = lambda c: 0.1,
        decoder: Callable[[Any], torch.Tensor] = lambda c: torch.eye(D),
    ):
        self.ev, self.l0, self.loss, self.dead, self.decoder = ev, l0, loss, dead, decoder
        self.made: dict[Any, Any] = {}

    def each_seed(self) -> range:
        return range(self.seeds)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def heldout(self) -> torch.Tensor:
        return torch.randn(512, D, generator=torch.Generator().manual_seed(9))

    def rows(self, **_: Any) -> list[torch.Tensor]:
        return [self.heldout()]

    def train(self, config: Any, *, steps: int | None = None, log: list[dict[str, float]] | None = None) -> Any:
        if log is not None:
            jitter = 1e-3 * (config.seed % 7)
            log += [{"step": s, "dead": (self.dead(config) + jitter) * config.d_sae} for s in range(0, steps or 1, 10)]
        return SimpleNamespace(
            config=config,
            W_dec=self.decoder(config),
            threshold=1.0,
            encode=lambda x: (torch.arange(config.d_sae) < config.k).float().expand(len(x), -1),
        )

    def score(self, made: Any) -> dict[str, float]:
        jitter = 2e-4 * (made.config.seed % 7)
        return {"ev": self.ev(made) + jitter, "l0": self.l0(made)}

    def added_loss(self, made: Any) -> float:
        return self.loss(made) + 2e-4 * (made.config.seed % 7)


def said(claim_id: str, lab: Any) -> str:
    claim = BY_ID[claim_id]
    return verdict(claim, claim.measure(lab))


def test_wider_is_better_only_where_it_gains() -> None:
    wide = Bench(ev=lambda m: 0.9 + 0.02 * (m.config.d_sae > 1024), loss=lambda m: 0.1 - 0.02 * (m.config.d_sae > 1024))
    for claim in ("llama-scope.wider-better", "llama-scope.wider-cheaper"):
        assert said(claim, wide) == SUPPORTED and said(claim, Bench()) == CONTRADICTED


def test_annealing_counts_latents_alive_and_what_they_cost() -> None:
    def half(m: Any) -> float:
        return 0.05 * (m.config.k < 16)

    annealed = Bench(ev=lambda m: 0.9 - half(m), dead=lambda c: 0.11 - 0.06 * (c.k_start > 0))
    costly = Bench(ev=lambda m: 0.9 - half(m) - 0.03 * (m.config.k_start > 0))
    assert said("llama-scope.k-annealing", annealed) == SUPPORTED
    assert said("llama-scope.k-annealing", costly) == CONTRADICTED
    assert said("llama-scope.k-annealing-error", annealed) == SUPPORTED
    assert said("llama-scope.k-annealing-error", costly) == CONTRADICTED
    assert said("llama-scope.k-annealing-error", Bench()) != SUPPORTED, "half the k changes nothing here: no power"


def test_selection_by_norm_is_the_same_within_a_margin_that_half_the_k_leaves() -> None:
    def of(extra: float, half: float) -> Bench:
        return Bench(ev=lambda m: 0.9 + extra * (kind(m.config) == "norm-topk") - half * (m.config.k < 16))

    assert said("llama-scope.norm-selection", of(0.0, 0.03)) == SUPPORTED
    assert said("llama-scope.norm-selection", of(-0.02, 0.03)) == CONTRADICTED
    assert said("llama-scope.norm-selection", of(0.0, 0.0)) == INCONCLUSIVE


@pytest.mark.parametrize("claim", ["llama-scope.topk-frontier", "llama-scope.topk-frontier-loss"])
def test_the_frontier_is_read_at_equal_l0(claim: str) -> None:
    l0s = {0.5: 80.0, 1.0: 40.0, 2.0: 20.0, 4.0: 6.0}

    def bench(gap: float) -> Bench:
        def l0(m: Any) -> float:
            return l0s[m.config.activation.coefficient] if kind(m.config) == "l1" else float(m.config.k)

        def ev(m: Any) -> float:
            return float(0.4 + 0.1 * np.log(l0(m)) - gap * (kind(m.config) == "l1"))

        return Bench(ev=ev, l0=l0, loss=lambda m: 1 - ev(m))

    assert said(claim, bench(0.05)) == SUPPORTED and said(claim, bench(-0.05)) == CONTRADICTED
    assert said(claim, bench(0.0)) != SUPPORTED


def test_directions_are_near_only_beyond_the_datas_covariance() -> None:
    def drawn(seed: int) -> torch.Tensor:
        return torch.randn(256, D, generator=torch.Generator().manual_seed(seed))

    alike = Bench(decoder=lambda c: drawn(10_000) + 0.3 * drawn(c.seed + 5000))
    assert said("llama-scope.geometry", alike) == SUPPORTED
    assert said("llama-scope.geometry", Bench(decoder=lambda c: drawn(c.seed + 5000))) != SUPPORTED


def test_a_conversion_is_free_only_within_its_margins(monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.claims.llama_scope import jumprelu_conversion

    def converted(made: Any, _: Any) -> Any:
        return SimpleNamespace(config=made.config, threshold_F=torch.ones(1))

    monkeypatch.setattr(jumprelu_conversion, "to_jumprelu", converted)

    def bench(off: float) -> Bench:
        def l0(m: Any) -> float:
            return 16.0 if not hasattr(m, "threshold_F") else 16 * (1 + off) / float(m.threshold_F)

        return Bench(l0=l0)

    assert said("llama-scope.jumprelu-conversion", bench(0.001)) == SUPPORTED
    assert said("llama-scope.jumprelu-conversion", bench(0.1)) == CONTRADICTED


# --- circuits --------------------------------------------------------------------------------------------------------


class Profile:
    """Write profile of a Mamba: peaks (layer, offset, size) over noise; and the taps of its convolution at +0 and
    +1.
    """

    def __init__(self, peaks: list[tuple[int, int, float]], tap: int = 1, flat: float = 0.01):
        self.peaks, self.tap, self.flat = peaks, tap, flat

    def array(self, name: str) -> np.ndarray:
        out = np.random.default_rng(0).normal(0, self.flat, (64, 4, 12))
        for layer, offset, size in self.peaks:
            out[:, layer, offset + 2] += size
        return out

    def select(self, **equal: Any) -> pd.DataFrame:
        if equal["analysis"] == "write_profile":
            return pd.DataFrame({"offset": list(range(-2, 10))})
        carries = 0 if equal["offset"] == 0 else self.tap
        rows = [(t, -4.0, -4.2, -3.8, 64) if t == carries else (t, 0.0, -0.01, 0.01, 64) for t in range(4)]
        return pd.DataFrame(rows, columns=["tap", "effect", "low", "high", "n"])


PAPER = [(2, 0, -6.6), (3, 1, -4.3)]  # what the bundled Mamba does
SMEARED = [(layer, offset, -1.0) for layer in (2, 3) for offset in range(-2, 10)]


def circuits(two: float, untrained: float, accuracy: float = 0.9) -> Any:
    def of(model: str, revision: str | None = None) -> dict[str, Any]:
        v = untrained if revision else two
        share = {"value": v, "low": v - 0.02, "high": min(v + 0.02, 1.0), "n": 64}
        return {
            "accuracy": {"value": accuracy, "n": 64},
            "state_layers": {"layers": [2, 3], "two_strongest": share},
            "read_peak": {"share": share},
            "induction_heads": {"attention": [[2, 3]], "agree": True, "sentence": "Heads L2H3."},
            "previous_token_heads": {"attention": [[1, 0]], "sentence": "L1H0 looks back."},
        }

    return SimpleNamespace(circuits=of)


def mamba(monkeypatch: pytest.MonkeyPatch, trained: Profile, start: Profile | None = None) -> Any:
    from workbench.claims.universality import mamba_state

    begin = start or Profile([], flat=1.0)
    monkeypatch.setattr(mamba_state, "profile_of", lambda lab, model="", revision=None: begin if revision else trained)
    return circuits(0.99, 0.6)


def test_few_layers_are_few_only_beyond_the_untrained_model() -> None:
    claim = "universality.mamba-few-layers"
    assert said(claim, circuits(0.99, 0.6)) == SUPPORTED
    assert said(claim, circuits(0.5, 0.5)) == CONTRADICTED and said(claim, circuits(0.9, 0.9)) != SUPPORTED
    assert said(claim, circuits(0.99, 0.6, accuracy=0.1)) == NOT_TESTABLE


def test_heads_carry_copying_only_beyond_the_untrained_model() -> None:
    claim = "universality.transformer-induction"
    assert said(claim, circuits(0.5, 0.1)) == SUPPORTED
    assert said(claim, circuits(0.1, 0.1)) == CONTRADICTED and said(claim, circuits(0.5, 0.5)) != SUPPORTED


def test_off_by_one_is_judged_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = mamba(monkeypatch, Profile(PAPER))
    for claim in ("off-by-one", "off-by-one-relay", "convolution-carries"):
        found = BY_ID[f"universality.{claim}"].measure(lab)
        assert verdict(BY_ID[f"universality.{claim}"], found) == SUPPORTED, claim
        assert found.more["writes"] == ["layer 2 at +0", "layer 3 at +1"]
    lab = mamba(monkeypatch, Profile(SMEARED))
    assert said("universality.off-by-one", lab) == CONTRADICTED == said("universality.off-by-one-relay", lab)
    assert said("universality.convolution-carries", lab) != SUPPORTED
    lab = mamba(monkeypatch, Profile([(2, 0, -6.6)]))
    assert said("universality.off-by-one", lab) == SUPPORTED
    assert said("universality.off-by-one-relay", lab) == CONTRADICTED, "one sharp write at the token is no relay"
    assert said("universality.convolution-carries", lab) == NOT_TESTABLE
    lab = mamba(monkeypatch, Profile(PAPER, tap=3))
    assert said("universality.convolution-carries", lab) == CONTRADICTED, "another tap carries it"


# --- token-determination ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "sign"), [("complexity", -1), ("monosemanticity", 1)])
def test_proxies_need_a_correlation_once_the_token_is_known(name: str, sign: int) -> None:
    tc, random = "token-conditional", "random partner token-conditional"

    def lab(given_token: float, given_random: float) -> Any:
        rng, frames = np.random.default_rng(1), []
        for direction, layers in (("ab", 3), ("ba", 4)):
            for layer in range(layers):
                proxy = rng.standard_normal(300)
                noise = rng.standard_normal((4, 300))
                frames.append(
                    pd.DataFrame(
                        {
                            "direction": direction,
                            "layer": layer,
                            "n_fired": rng.integers(30, 3000, 300),
                            name: proxy,
                            tc: given_token * sign * proxy + noise[0],
                            random: given_random * sign * proxy + noise[1],
                            "cross": sign * proxy + noise[2],
                            "random partner": sign * proxy + noise[3],
                            "same-token": sign * proxy + noise[3],
                        }
                    )
                )
        table = pd.concat(frames, ignore_index=True)
        records = SimpleNamespace(metadata={"series": [tc, random], "missing": {}})
        return SimpleNamespace(comparison=lambda: records, once=lambda key, make: table)

    claim = f"universality.{name}"
    assert said(claim, lab(1.0, 0.0)) == SUPPORTED
    assert said(claim, lab(-1.0, 0.0)) == CONTRADICTED, "raw similarity, which goes the claimed way, decides nothing"
    assert said(claim, lab(0.8, 0.8)) != SUPPORTED, "random-weight partners give as much"


# --- variants and runs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", ["convolution-needed", "state-size", "layers-needed"])
def test_a_variant_copies_less_or_not(claim: str) -> None:
    def lab(variant: float) -> Any:
        draws = np.array([-0.02, -0.01, 0.0, 0.01, 0.02])

        def once(key: Any, make: Any) -> np.ndarray:
            model, revision = key[1], key[2]
            if revision == "step0":
                return draws
            full = model == "mini-mamba" or model == "mini-mamba-c2"
            return (2.0 if full else variant) + draws * (1 if model == "mini-mamba" else 1.1)

        return SimpleNamespace(variant=lambda name: name, once=once, quick=True)

    assert said(f"universality.{claim}", lab(0.5)) == SUPPORTED
    assert said(f"universality.{claim}", lab(3.0)) == CONTRADICTED
    assert said(f"universality.{claim}", lab(2.0)) != SUPPORTED


def test_the_gap_to_a_single_dictionary_is_held_against_a_real_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.claims.evolution import single_sae

    def lab(gap: float, double: float) -> Any:
        monkeypatch.setattr(
            single_sae, "_explained", lambda lab, e, seed, ks: [0.85 + gap + 1e-3 * seed, 0.85 + gap + double]
        )
        evolution = SimpleNamespace(
            manifest=SimpleNamespace(recipe={"k": 16}, numbers={"l0": 16.0}), phases={"ev": pd.Series([0.8, 0.85])}
        )
        return SimpleNamespace(each_seed=lambda: range(3), evolution=lambda seed=0: evolution)

    assert said("evolution.single-sae-gap", lab(0.01, 0.05)) == SUPPORTED
    assert said("evolution.single-sae-gap", lab(0.06, 0.05)) == CONTRADICTED
    assert said("evolution.single-sae-gap", lab(0.01, 0.0)) == INCONCLUSIVE


def test_a_longer_warm_up_moves_the_phase_or_not() -> None:
    def lab(end: int) -> Any:
        table = pd.DataFrame({"step": [0, 1]})
        return SimpleNamespace(
            variant=lambda name: name, once=lambda key, make: (800 if key[1] == "mini-pythia" else end, table)
        )

    assert said("evolution.warm-up", lab(1000)) == SUPPORTED and said("evolution.warm-up", lab(1700)) == CONTRADICTED
    assert said("evolution.warm-up", lab(1300)) == INCONCLUSIVE


def test_every_claim_says_what_one_of_its_n_is() -> None:
    from workbench.claims.run import describe

    for claim in BY_ID.values():
        made = describe(claim, Finding(Measured.of([1.0, 2.0, 3.0]), Measured.of([0.0, 0.1, 0.2])))
        assert made["control"] and made["unit"] and made["n"] == 3, claim.id


RATE_OF = {1024: 4e-3, 4096: 2e-3}  # 0.001 * sqrt(16384 / latents)
OWN_RATES = {"llama-scope.topk-frontier": {4e-3, 1e-2}, "llama-scope.k-annealing": {4e-3}}


@pytest.mark.parametrize(
    "claim", ["geometry", "jumprelu-conversion", "norm-selection", "wider-better", "topk-frontier", "k-annealing"]
)
def test_defaults_of_the_program_do_not_reach_a_claims_dictionaries(claim: str, monkeypatch: Any) -> None:
    """Every dictionary a claim trains says rate, memories of Adam and relative rates itself, at the values that the
    published results were measured with.
    """
    seen = []
    bench = Bench()
    trained = bench.train

    def train(config: Any, **how: Any) -> Any:
        seen.append(config)
        return trained(config, **how)

    monkeypatch.setattr(bench, "train", train)
    monkeypatch.setattr("workbench.claims.llama_scope.jumprelu_conversion.to_jumprelu", lambda *_: 1 / 0)
    with contextlib.suppress(ZeroDivisionError):
        BY_ID[f"llama-scope.{claim}"].measure(bench)
    assert seen
    for config in seen:
        own = config.details
        assert (config.beta1, config.beta2, own.encoder_rate, own.bias_rate) == (0.9, 0.999, 1, 1)
        assert {"lr", "beta1", "beta2", "details"} <= config.model_fields_set
        assert config.lr in OWN_RATES.get(f"llama-scope.{claim}", {RATE_OF[config.d_sae]})
        assert (config.warmup_steps, config.decay_share, config.k_aux) in ((100, 0.2, None), (100, 0.2, 0))


def test_nor_the_dictionary_of_first_positions(monkeypatch: Any) -> None:
    from workbench.claims.llama_scope.longer_context import _of_first_positions

    class Store:
        heldout = ()

        def __len__(self) -> int:
            return 8

        def tokens(self, rows: Any) -> Any:
            return rows, np.zeros(8), np.zeros(8)

        def read(self, *_: Any) -> torch.Tensor:
            return torch.zeros(8, 4)

    seen = []

    def trainer(config: Any, **_: Any) -> Any:
        seen.append(config)
        return SimpleNamespace(step=lambda x: None, dictionary=lambda: None)

    monkeypatch.setattr("sae.Trainer", trainer)
    _of_first_positions(SimpleNamespace(store=Store, steps=1))
    (config,) = seen
    assert (config.lr, config.beta1, config.beta2) == (4e-3, 0.9, 0.999)
    assert {"lr", "beta1", "beta2", "details"} <= config.model_fields_set
