"""A crosscoder is the SAE on its concatenated sources, whatever happens to it: training, folding, saving, permuting."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import sae
from crosscoders import Crosscoder, CrosscoderConfig, evaluate_sources, preset
from sae.errors import ConfigError, CorruptError, UserError
from sae.strict import parse_config
from tests.crosscoders.worlds import World

WIDTHS = [12, 20, 16]


@pytest.fixture(scope="module")
def trained():
    """A short run on three sources of different widths and very different scales."""
    world = World(WIDTHS, torch.ones(3, 60), scales=[1.0, 40.0, 0.02])
    trainer = sae.Trainer(CrosscoderConfig(widths=WIDTHS, d_sae=96, k=4, sources=["a", "b", "c"], seed=3, lr=3e-3))
    for _ in range(250):
        trainer.step(world.batch(256)[0])
    return trainer, world


def test_every_source_is_explained_whatever_its_scale(trained):
    trainer, world = trained
    e = evaluate_sources(trainer.dictionary(), [world.batch(500)[0] for _ in range(4)])
    assert min(e.ev_S) > 0.75 and max(e.ev_S) - min(e.ev_S) < 0.08
    assert e.n == 2000 and 2 < e.l0 <= 4
    with pytest.raises(UserError, match="no rows"):
        evaluate_sources(trainer.dictionary(), [])


def test_per_source_ev_adds_up_to_the_sae_measure(trained):
    trainer, world = trained
    cc, x = trainer.dictionary(), world.batch(800)[0]
    e, whole = evaluate_sources(cc, x.split(300)), sae.evaluate(cc, x.split(300))
    variance = torch.stack([p.double().var(0, unbiased=False).sum() for p in cc.split(x)])
    assert float((torch.tensor(e.ev_S) * variance).sum() / variance.sum()) == pytest.approx(whole.ev, abs=1e-6)
    assert torch.equal(e.fired_F, whole.fired_F) and e.l0 == pytest.approx(whole.l0)


def test_folding_saving_and_loading_change_neither_outputs_nor_norms(trained, tmp_path):
    trainer, world = trained
    model, x = trainer.model.eval(), world.batch(400)[0]
    path = model.save(tmp_path / "cc")
    loaded = Crosscoder.load(path)
    assert type(sae.load(path)) is Crosscoder
    assert loaded.sources == ("a", "b", "c") and loaded.widths == tuple(WIDTHS)
    for cc in (trainer.dictionary(), loaded, loaded.folded()):
        for mine, theirs in zip(cc.split(cc(x)), model.split(model(x)), strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-3 * float(theirs.detach().std()))
        for raw in (False, True):
            assert torch.allclose(cc.decoder_norms(raw=raw), model.decoder_norms(raw=raw), rtol=1e-4)
            assert torch.allclose(
                torch.stack([b.norm(dim=1) for b in cc.decoder_blocks(raw=raw)]), cc.decoder_norms(raw=raw), rtol=1e-4
            )
    assert cc.decoder_norms().shape == (3, 96)
    ratio = (loaded.decoder_norms(raw=True) / loaded.decoder_norms()).mean(1)
    assert ratio[1] / ratio[0] == pytest.approx(40, rel=0.3), (
        "raw norms follow the sources' scales, training norms do not"
    )


def test_the_folder_is_an_ordinary_top_k_sae(trained, tmp_path):
    """The documented SAELens formula on the two files alone gives the crosscoder's output."""
    trainer, world = trained
    path = trainer.dictionary().save(tmp_path / "cc")
    cfg, w = json.loads((path / "cfg.json").read_text()), load_file(path / "sae_weights.safetensors")
    assert cfg["architecture"] == "topk" and cfg["d_in"] == sum(WIDTHS) and cfg["metadata"]["kind"] == "crosscoder"
    assert [s["name"] for s in cfg["metadata"]["sources"]] == ["a", "b", "c"]
    x = world.batch(100)[0]
    z = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    v, i = z.topk(cfg["k"], dim=1)
    y = torch.zeros_like(z).scatter_(1, i, v.relu()) @ w["W_dec"] + w["b_dec"]
    assert torch.allclose(y, Crosscoder.load(path)(x), rtol=1e-4, atol=1e-4)


def test_folders_that_contradict_themselves_are_refused(trained, tmp_path):
    path = trained[0].dictionary().save(tmp_path / "cc")
    cfg = json.loads((path / "cfg.json").read_text())
    cfg["metadata"]["sources"][0]["width"] += 1
    (path / "cfg.json").write_text(json.dumps(cfg))
    with pytest.raises(CorruptError, match="do not add up to d_in = 48"):
        Crosscoder.load(path)
    del cfg["metadata"]["sources"]
    (path / "cfg.json").write_text(json.dumps(cfg))
    with pytest.raises(CorruptError, match=r"metadata\.sources"):
        Crosscoder.load(path)
    sae.TopKSAE(8, 16, 2).save(tmp_path / "sae")
    with pytest.raises(ConfigError, match="not a Crosscoder"):
        Crosscoder.load(tmp_path / "sae")


def test_permuting_the_sources_permutes_the_weights():
    """Blocks know nothing of their place: training on permuted sources gives the same run with its blocks permuted."""
    world = World([8, 8, 8], torch.ones(3, 30))
    data = [world.batch(64)[0] for _ in range(30)]
    order = [2, 0, 1]

    def run(permute: bool) -> Crosscoder:
        trainer = sae.Trainer(CrosscoderConfig(widths=[8, 8, 8], d_sae=40, k=3, seed=1, dtype="float64"))
        for x in data:
            trainer.step(torch.cat([x.split(8, 1)[s] for s in order], 1) if permute else x)
        return trainer.dictionary()

    plain, permuted = run(False), run(True)
    assert torch.allclose(permuted.decoder_norms(), plain.decoder_norms()[order], atol=1e-8)
    for new, old in enumerate(order):
        assert torch.allclose(permuted.decoder_blocks()[new], plain.decoder_blocks()[old], atol=1e-8)
        assert torch.allclose(permuted.W_enc.split(8)[new], plain.W_enc.split(8)[old], atol=1e-6)


def test_tied_and_dedicated_latents_stay_what_they_are():
    world = World([10, 10], torch.ones(2, 40))
    trainer = sae.Trainer(
        CrosscoderConfig(widths=[10, 10], d_sae=48, k=4, shared_latents=8, dedicated=6, shared_start=False)
    )
    for _ in range(20):
        trainer.step(world.batch(128)[0])
    cc = trainer.dictionary()
    a, b = cc.decoder_blocks()
    assert torch.allclose(a[:8], b[:8], atol=1e-6) and not torch.allclose(a[8:], b[8:], atol=1e-2)
    norms = cc.decoder_norms()
    assert cc.partition(0) == slice(36, 42) and cc.partition(1) == slice(42, 48)
    assert (norms[1, 36:42] == 0).all() and (norms[0, 42:] == 0).all() and (norms[0, 36:42] > 0).all()


@pytest.mark.parametrize(
    "values, message",
    [
        ({"widths": [4, 0]}, "at least 1"),
        ({"widths": [4, 4], "sources": ["a"]}, "1 sources for 2 widths"),
        ({"widths": [4, 5], "shared_latents": 2, "d_sae": 64}, "equal widths"),
        ({"widths": [4, 4], "dedicated": 40, "d_sae": 64}, "exceed d_sae = 64"),
        ({"widths": [4, 4], "gate": "per-source"}, "goes with activation = 'jumprelu'"),
        ({"widths": [4, 4], "gate": "own-magnitude", "activation": "l1"}, "goes with activation = 'topk'"),
        ({"widths": [4, 4], "gate": "own-magnitude", "bf16_preselect": True}, "one per source"),
    ],
)
def test_contradictions_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        CrosscoderConfig(**values)


def test_the_preset_for_few_steps_is_that_of_saes_at_a_fifth_of_the_rate():
    alone, mine = (
        sae.presets.preset("few-steps", d_in=8, d_sae=4096, k=2),
        preset("few-steps", widths=[4, 4], d_sae=4096, k=2),
    )
    assert mine.lr == pytest.approx(alone["lr"] / 5) and (mine.beta1, mine.beta2) == (alone["beta1"], alone["beta2"])
    assert mine.details.encoder_rate == alone["details"]["encoder_rate"] and mine.dead_after == 50_000
    assert preset("few-steps", widths=[4, 4], lr=0.5).lr == 0.5


def test_presets_and_constant_sources():
    assert preset("batchtopk", widths=[4, 4], d_sae=64).activation.kind == "batchtopk"
    with pytest.raises(ConfigError, match="evolution-paper"):
        preset("evolution-papr")
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    x[:, 4:] = 1.0
    with pytest.raises(UserError, match="'late'"):
        sae.Trainer(CrosscoderConfig(widths=[4, 4], sources=["early", "late"], d_sae=16, k=2)).step(x)


WRITTEN_BY_0_1 = {"coefficient": None, "penalty_warmup": 0, "threshold": 0.1, "threshold_lr": 0.1, "window": 4.0}
WRITTEN_BY_0_1 |= {"scaling": "centred", "start_norm": 1.0, "gate": "shared"}


@pytest.mark.parametrize(
    "old, new",
    [
        ({"activation": "topk"}, {"activation": "topk"}),
        (
            {"activation": "batchtopk", "scaling": "mean-norm"},
            {"activation": "batchtopk", "start": {"scaling": "mean-norm"}},
        ),
        ({"activation": "l1"}, {"activation": {"kind": "l1"}}),
        (
            {"activation": "l1", "coefficient": 3.0, "penalty_warmup": 9, "start_norm": 0.1},
            {"activation": {"kind": "l1", "coefficient": 3.0, "warmup": 9}, "start": {"norm": 0.1}},
        ),
        ({"activation": "jumprelu"}, {"activation": {"kind": "jumprelu", "threshold_lr": 0.1}}),
        (
            {"activation": "jumprelu", "gate": "per-source", "threshold": 0.2, "window": 1.5, "threshold_lr": 0.3},
            {
                "activation": {"kind": "jumprelu", "threshold": 0.2, "window": 1.5, "threshold_lr": 0.3},
                "gate": "per-source",
            },
        ),
    ],
)
def test_settings_of_earlier_files_are_read_by_the_names_that_saes_have_for_them(old, new):
    sizes = {"widths": [4, 4], "d_sae": 8, "k": 2}
    whole, few, today = (CrosscoderConfig(**sizes, **v) for v in (WRITTEN_BY_0_1 | old, old, new))
    built = [c.build() for c in (whole, few, today)]
    assert built[0].activation == built[1].activation == built[2].activation
    assert whole.start == few.start == today.start and whole.gate == today.gate
    assert CrosscoderConfig.of_checkpoint(WRITTEN_BY_0_1 | old | sizes) == whole.model_dump(mode="json")


def test_a_single_setting_changes_that_of_the_preset():
    sizes = {"widths": [4, 4], "d_sae": 8, "k": 2}
    for own in ({"threshold_lr": 0.3}, {"activation": {"threshold_lr": 0.3}}):
        config = preset("evolution-paper", **sizes, **own)
        assert config.activation.threshold_lr == 0.3 and config.activation.warmup == 5000
        assert config.start.norm == 0.5 and config.build().activation.penalty == "tanh-quad"
    plain = preset("evolution-paper", **sizes, activation="l1")
    assert plain.activation.kind == "l1" and plain.activation.warmup is None


@pytest.mark.parametrize(
    "values, words",
    [
        ({"activation": "topk", "window": 2.0}, "no window; it goes with jumprelu"),
        ({"activation": {"kind": "l1", "warmup": 3}, "penalty_warmup": 4}, "are one setting"),
        ({"activation": "matryoshka"}, "not known for a crosscoder"),
        ({"activation": {"kind": "jumprelu", "penalty": "l0"}}, "takes no account of the decoder norms"),
        ({"start": {"encoder": "tied"}}, "always starts with 'fitted'"),
        ({"start": {"norm": 0.5}}, "decoder rows of topk have norm 1"),
        ({"activation": "jumprely"}, "jumprelu"),
    ],
)
def test_settings_a_crosscoder_has_not_are_refused_by_name(values, words):
    with pytest.raises(ConfigError, match=words):
        parse_config(CrosscoderConfig, {"widths": [4, 4], "d_sae": 8, "k": 2} | values, where="[crosscoder]")
