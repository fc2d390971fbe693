"""Makes the golden folders ``<library>-<version>-<kind>`` with the libraries' own releases (never needed by the tests).

Each release lies in a folder of its own, installed without its dependencies, which this project's environment has:

    pip install --no-deps --target releases/saelens-5.11.0 sae-lens==5.11.0
    pip install --no-deps --target releases/tl-2.11.0 transformer-lens==2.11.0
    pip install --no-deps --target releases/extras better-abc simple-parsing docstring-parser
    export PYTHONPATH=releases/saelens-5.11.0:releases/tl-2.11.0:releases/extras
    python tests/sae/golden/releases.py saelens 5.11.0

What is imported by a release and installed nowhere (plotting, logging) is replaced by an empty stand-in. Each folder is
what the release saves; ``expected.safetensors`` holds rows ``x`` and the release's own ``f`` and ``y`` of them.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import os
import shutil
import sys
import types
from pathlib import Path
from typing import Any

os.environ |= {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "SPARSIFY_DISABLE_TRITON": "1"}


class Stand(types.ModuleType):
    """A module that is not installed: any attribute is a class that accepts anything."""

    __path__: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *a, **k: None, "__class_getitem__": lambda cls, k: cls})


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds, last of all, what releases import and this project has not."""

    absent = ("automated_interpretability", "plotly", "nltk", "trl", "nnsight", "pytest_profiling", "schedulefree")

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        stands = name.split(".")[0] in self.absent
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if stands else None

    def create_module(self, spec: Any) -> Stand:
        return Stand(spec.name)

    def exec_module(self, module: Any) -> None:
        return None


try:
    import huggingface_hub.errors
    import torch
    import transformers
    from safetensors.torch import load_file, save_file
except ImportError as e:
    raise SystemExit(f"this needs the project's own environment: {e}") from e
transformers.TRANSFORMERS_CACHE = ""  # releases of 2024 import it
sys.modules["huggingface_hub.utils._errors"] = huggingface_hub.errors  # where it was then
sys.meta_path.append(StandIns())

HERE = Path(os.environ.get("GOLDEN", Path(__file__).parent))
D, F, K, N = 6, 12, 3, 16
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
ABOUT = {"model_name": "pythia-70m-deduped", "hook_name": "blocks.3.hook_resid_post", "context_size": 128}


def fill(module: Any, seed: int = 0) -> Any:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_((torch.randn(p.shape, generator=g) * 0.5).to(p))
            if "threshold" in name:
                p.abs_()
    return module


def rows(width: int = D) -> torch.Tensor:
    return torch.randn(N, width, generator=torch.Generator().manual_seed(1)) + 0.3


def fresh(name: str) -> Path:
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def expected(folder: Path, f: torch.Tensor, y: torch.Tensor, x: torch.Tensor | None = None) -> None:
    x = rows() if x is None else x
    tensors = {"x": x, "f": f, "y": y}
    save_file({k: v.detach().float().contiguous().clone() for k, v in tensors.items()}, folder / "expected.safetensors")
    print(folder.name, f"L0 {float((f > 0).float().sum(-1).mean()):.2f}")


def outputs(folder: Path, sae: Any) -> None:
    with torch.no_grad():
        f = sae.encode(rows())
        expected(folder, f, sae.decode(f) if not hasattr(sae, "W_skip") or sae.W_skip is None else sae(rows()))


# --- SAELens ---------------------------------------------------------------------------------------------------------


def saelens_2(version: str) -> None:
    import wandb.util
    from sae_lens.training.config import LanguageModelSAERunnerConfig
    from sae_lens.training.sparse_autoencoder import SparseAutoencoder

    wandb.util.generate_id = lambda: "golden"  # newer releases of wandb have it elsewhere

    for kind in ("standard", "finetuned", "no-pre-bias"):
        cfg = LanguageModelSAERunnerConfig(
            model_name="pythia-70m-deduped", hook_point="blocks.3.hook_resid_post", hook_point_layer=3, d_in=D,
            expansion_factor=F // D, log_to_wandb=False, checkpoint_path="checkpoints", context_size=128,
            apply_b_dec_to_input=kind != "no-pre-bias", dtype="torch.float32",
        )  # fmt: skip
        sae = fill(SparseAutoencoder(cfg))
        with torch.no_grad():
            sae.scaling_factor.copy_(sae.scaling_factor.abs() + 0.5 if kind == "finetuned" else torch.ones(F))
        folder = fresh(f"saelens-{version}-{kind}")
        sae.save_model(str(folder))
        cfg_file = folder / "cfg.json"
        said = json.loads(cfg_file.read_text())
        said |= {"checkpoint_path": "checkpoints", "run_name": "golden"}
        cfg_file.write_text(json.dumps(said))
        outputs(folder, sae)


FLAT = {
    "standard": {"architecture": "standard"},
    "gated": {"architecture": "gated"},
    "jumprelu": {"architecture": "jumprelu"},
    "topk": {"architecture": "topk", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}},
    "topk-as-standard": {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}},
    "finetuned": {"architecture": "standard", "finetuning_scaling_factor": True},
    "no-pre-bias": {"architecture": "jumprelu", "apply_b_dec_to_input": False},
}


def saelens_flat(version: str) -> None:
    """3 to 5."""
    import dataclasses

    from sae_lens.sae import SAE, SAEConfig

    fields = {f.name for f in dataclasses.fields(SAEConfig)}
    age = tuple(int(n) for n in version.split("."))
    for kind, options in FLAT.items():
        if age < (3, 3) and kind != "standard":
            continue
        if kind == "topk" and age < (4,):
            continue
        values = {
            "d_in": D, "d_sae": F, "activation_fn_str": "relu", "apply_b_dec_to_input": True,
            "finetuning_scaling_factor": False, "context_size": 128, "model_name": "pythia-70m-deduped",
            "hook_name": "blocks.3.hook_resid_post", "hook_layer": 3, "hook_head_index": None, "prepend_bos": True,
            "dataset_path": "monology/pile-uncopyrighted", "dataset_trust_remote_code": True,
            "normalize_activations": False if age < (3, 3) else "none", "dtype": "float32", "device": "cpu",
            "sae_lens_training_version": version, **options,
        }  # fmt: skip
        sae = fill(SAE(SAEConfig(**{k: v for k, v in values.items() if k in fields})))
        folder = fresh(f"saelens-{version}-{kind}")
        sae.save_model(str(folder))
        outputs(folder, sae)


def saelens_6(version: str) -> None:
    import sae_lens as lens

    meta = lens.saes.sae.SAEMetadata(**ABOUT, prepend_bos=True)
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "standard": ("StandardSAE", {}),
        "topk": ("TopKSAE", {"k": K}),
        "gated": ("GatedSAE", {}),
        "jumprelu": ("JumpReLUSAE", {}),
    }
    if version > "6.5":
        kinds |= {
            "transcoder": ("Transcoder", {"d_out": 4, "apply_b_dec_to_input": False}),
            "skip-transcoder": ("SkipTranscoder", {"d_out": 4, "apply_b_dec_to_input": False}),
            "jumprelu-transcoder": ("JumpReLUTranscoder", {"d_out": 4, "apply_b_dec_to_input": False}),
            "jumprelu-skip-transcoder": ("JumpReLUSkipTranscoder", {"d_out": 4, "apply_b_dec_to_input": False}),
            "batchtopk-checkpoint": ("BatchTopKTrainingSAE", {"k": float(K)}),
            "matryoshka-checkpoint": ("MatryoshkaBatchTopKTrainingSAE", {"k": float(K), "matryoshka_widths": [4, F]}),
            "topk-float16": ("TopKSAE", {"k": K, "dtype": "float16"}),
            "topk-bfloat16": ("TopKSAE", {"k": K, "dtype": "bfloat16", "rescale_acts_by_decoder_norm": True}),
            "jumprelu-bfloat16": ("JumpReLUSAE", {"dtype": "bfloat16"}),
            "topk-scaler": ("TopKTrainingSAE", {"k": K, "normalize_activations": "expected_average_only_in"}),
        }
    for kind, (cls, options) in kinds.items():
        made = getattr(lens, cls, None) or getattr(__import__("sae_lens.saes.transcoder", fromlist=[cls]), cls)
        config = getattr(lens, f"{cls}Config", None) or getattr(
            __import__("sae_lens.saes.transcoder", fromlist=[cls]), f"{cls.replace('Transcoder', '')}TranscoderConfig"
        )
        sae = fill(made(config(d_in=D, d_sae=F, metadata=meta, **options)))
        folder = fresh(f"saelens-{version}-{kind}")
        if "checkpoint" in kind:  # in use these are JumpReLU dictionaries: their own inference folder gives the outputs
            sae.topk_threshold.fill_(1.5)
            sae.save_model(folder)
            sae.save_inference_model(folder / "inference")
            use = lens.SAE.load_from_disk(folder / "inference")
            shutil.rmtree(folder / "inference")
            outputs(folder, use)
        elif kind == "topk-scaler":
            from sae_lens.training.activation_scaler import ActivationScaler

            scaler = ActivationScaler(scaling_factor=0.25)
            sae.save_model(folder)
            scaler.save(str(folder / "activation_scaler.json"))
            with torch.no_grad():
                f = sae.encode(scaler.scale(rows()))
                expected(folder, f, scaler.unscale(sae.decode(f)))
        else:
            sae.save_model(folder)
            outputs(folder, sae)


# --- the others ------------------------------------------------------------------------------------------------------


def sparsify(version: str) -> None:
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    kinds: dict[str, dict[str, Any]] = {"sae": {}, "transcoder": {"transcode": True}}
    if version > "1.3":
        kinds |= {
            "sae-num-latents": {"num_latents": 10},
            "skip-transcoder": {"transcode": True, "skip_connection": True},
        }
    for kind, options in kinds.items():
        for name, dtype in {"": torch.float32, **(HALVES if version > "1.3" and kind == "sae" else {})}.items():
            coder = fill(SparseCoder(D, SparseCoderConfig(expansion_factor=F // D, k=K, **options), dtype=dtype))
            folder = fresh(f"sparsify-{version}-{kind}{f'-{name}' if name else ''}")
            coder.save_to_disk(folder)
            _coder_outputs(folder, coder)


def _coder_outputs(folder: Path, coder: Any) -> None:
    x = rows().to(coder.dtype)
    with torch.no_grad():
        encoded = coder.encode(x)
        encoded = coder.select_topk(encoded) if isinstance(encoded, torch.Tensor) else encoded  # until 2024-10
        f = torch.zeros(N, len(coder.encoder.bias), dtype=coder.dtype).scatter(1, encoded.top_indices, encoded.top_acts)
        y = coder.decode(encoded.top_acts, encoded.top_indices)
        skip = getattr(coder, "W_skip", None)
        expected(folder, f, y if skip is None else y + x @ skip.mT)


def eleuther_sae(version: str) -> None:
    """EleutherAI/sae before it was named sparsify, from its repository's history."""
    from sae.sae import Sae

    from sae.config import SaeConfig

    coder = fill(Sae(D, SaeConfig(expansion_factor=F // D, k=K)))
    folder = fresh(f"eleuther-sae-{version}-sae")
    coder.save_to_disk(folder)
    _coder_outputs(folder, coder)


def dictionary_learning(version: str) -> None:
    from dictionary_learning import dictionary
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    kinds = {
        "gated": dictionary.GatedAutoEncoder(D, F),
        "new": dictionary.AutoEncoderNew(D, F),
        "matryoshka": MatryoshkaBatchTopKSAE(D, F, K, group_sizes=[4, 8]),
        "topk-bfloat16": AutoEncoderTopK(D, F, K).bfloat16(),
    }
    for kind, ae in kinds.items():
        fill(ae)
        if kind == "matryoshka":
            ae.threshold.fill_(0.4)
        folder = fresh(f"dl-{version}-{kind}")
        torch.save(ae.state_dict(), folder / "ae.pt")
        trainer = {
            "trainer_class": "Trainer", "dict_class": type(ae).__name__, "lr": 1e-3, "steps": 1000, "seed": 0,
            "activation_dim": D, "dict_size": F, "layer": 3, "lm_name": "EleutherAI/pythia-70m-deduped",
            "submodule_name": "resid_post_layer_3", **({"k": K} if "TopK" in type(ae).__name__ else {}),
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}, indent=2))
        with torch.no_grad():
            f = ae.encode(rows().to(next(ae.parameters()).dtype))
            expected(folder, f, ae.decode(f))


def circuit_tracer(version: str) -> None:
    import torch.nn.functional as nnf
    from circuit_tracer.transcoder.activation_functions import JumpReLU
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder

    for kind in ("relu", "skip", "jumprelu"):
        gate: Any = JumpReLU(torch.zeros(F), 0.1) if kind == "jumprelu" else nnf.relu
        made = fill(
            SingleLayerTranscoder(D, F, gate, 3, kind == "skip", dtype=torch.float32, device=torch.device("cpu"))
        )
        folder = fresh(f"circuit-tracer-{version}-{kind}")
        made.to_safetensors(str(folder / "layer_3.safetensors"))
        (folder / "config.yaml").write_text(
            "model_name: meta-llama/Llama-3.2-1B\nmodel_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\n"
            "feature_output_hook: hook_mlp_out\nscan: llama-3\n"
        )
        with torch.no_grad():
            expected(folder, made.encode(rows()), made(rows()))


def circuit_tracer_clt(version: str) -> None:
    from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder, load_clt

    for kind, dtype in (("relu", torch.float32), ("jump_relu", torch.float32), ("relu", torch.bfloat16)):
        cpu = torch.device("cpu")
        made = fill(CrossLayerTranscoder(3, F, D, kind, lazy_decoder=False, dtype=torch.float32, device=cpu))
        if kind == "jump_relu":
            made.activation_function.threshold.data.abs_()
        half = "-bfloat16" if dtype == torch.bfloat16 else ""
        folder = fresh(f"circuit-tracer-{version}-clt-{kind.replace('_', '')}{half}")
        made.to(dtype).to_safetensors(str(folder))
        (folder / "config.yaml").write_text(
            "model_name: meta-llama/Llama-3.2-1B\nmodel_kind: cross_layer_transcoder\n"
            "feature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\nscan: llama-3-clt\n"
        )
        back = load_clt(str(folder), lazy_decoder=False, device=cpu, dtype=dtype)
        x = torch.stack([rows() * (1 + i) for i in range(3)])
        with torch.no_grad():
            f = back.encode(x.to(dtype))
            y = back.decode(f)
        tensors = {"x": x, "f": f.float().contiguous(), "y": y.float().contiguous()}
        save_file(tensors, folder / "expected.safetensors")


def gemma_scope_2_clt(version: str) -> None:
    """Gemma Scope 2's CLTs as they are published, read by circuit-tracer's own loader for them."""
    from circuit_tracer.transcoder.cross_layer_transcoder import load_gemma_scope_2_clt

    layers = 3
    for affine, dtype in ((False, torch.float32), (True, torch.float32), (True, torch.bfloat16)):
        g = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(*shape, generator=g) * 0.5  # noqa: E731, B023
        half = "-bfloat16" if dtype == torch.bfloat16 else ""
        folder = fresh(f"gemma-scope-2-clt{'-affine' if affine else ''}{half}")
        for i in range(layers):
            later = (torch.arange(layers) >= i)[None, :, None]
            part = {"w_enc": draw(D, F), "w_dec": draw(F, layers, D) * later, "b_enc": draw(F), "b_dec": draw(D)}
            part |= {"threshold": draw(F).abs()} | ({"affine_skip_connection": draw(D, D)} if affine else {})
            save_file({k: v.to(dtype).contiguous() for k, v in part.items()}, folder / f"params_layer_{i}.safetensors")
        # its loop runs over range(max(paths)), so that the last layer is read only if a key lies beyond it
        paths = {i: str(folder / f"params_layer_{i}.safetensors") for i in range(layers)} | {layers: ""}
        back = load_gemma_scope_2_clt(paths, device=torch.device("cpu"), dtype=dtype)
        x = torch.stack([rows() * (1 + i) for i in range(layers)])
        with torch.no_grad():
            f = back.encode(x.to(dtype))
            y = back.decode(f, x.to(dtype))
        tensors = {"x": x, "f": f.float().contiguous(), "y": y.float().contiguous()}
        save_file(tensors, folder / "expected.safetensors")


def llamascopium(version: str) -> None:
    """OpenMOSS, formerly lm_saes. Its packages' own ``__init__`` import trainers and databases, so only the modules of
    its dictionaries are; they need TransformerLens 2.
    """
    root = next(Path(p) / "llamascopium" for p in sys.path if (Path(p) / "llamascopium").is_dir())
    for name, place in (("llamascopium", root), ("llamascopium.models", root / "models")):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(place)]
    StandIns.absent += ("more_itertools", "pymongo", "gridfs", "lm_eval")
    from llamascopium.models.sae import SAEConfig, SparseAutoEncoder

    here, out = "blocks.3.hook_resid_post", "blocks.3.hook_mlp_out"
    kinds: dict[str, dict[str, Any]] = {
        "relu": {"act_fn": "relu", "norm_activation": "inference"},
        "jumprelu": {"act_fn": "jumprelu", "norm_activation": "dataset-wise"},
        "jumprelu-unweighted": {
            "act_fn": "jumprelu", "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": False
        },
        "topk": {"act_fn": "topk", "top_k": K, "norm_activation": "dataset-wise"},
        "transcoder": {
            "act_fn": "jumprelu", "norm_activation": "dataset-wise", "hook_point_in": "blocks.3.ln2.hook_normalized",
            "hook_point_out": out, "use_decoder_bias": True,
        },
        "jumprelu-bfloat16": {"act_fn": "jumprelu", "norm_activation": "dataset-wise", "dtype": torch.bfloat16},
    }  # fmt: skip
    for kind, options in kinds.items():
        ends = {"hook_point_in": here, "hook_point_out": here}
        cfg = SAEConfig(d_model=D, expansion_factor=F / D, device="cpu", **{"dtype": torch.float32} | ends | options)
        sae = fill(SparseAutoEncoder(cfg))
        averages = {cfg.hook_point_in: 3.0, cfg.hook_point_out: 3.0 if kind != "transcoder" else 5.0}
        sae.set_dataset_average_activation_norm(averages)
        folder = fresh(f"llamascopium-{version}-{kind}")
        cfg.save_hyperparameters(folder)
        sae.save_pretrained(folder)
        with torch.no_grad():
            x = sae.normalize_activations({cfg.hook_point_in: rows().to(cfg.dtype)})
            f = sae.encode(x[cfg.hook_point_in])
            back = sae.compute_norm_factor(rows(), hook_point=cfg.hook_point_out)
            y = sae.denormalize_activations({cfg.hook_point_out: sae.decode(f)}, {cfg.hook_point_out: back})
            expected(folder, f, y[cfg.hook_point_out])


def lm_saes(version: str) -> None:
    """OpenMOSS as Llama Scope was released: commit 384b6e8c (2024-11) of its repository, its dictionary's module alone,
    and outputs as its own loader reads what it wrote.
    """
    root = next(Path(p) / "lm_saes" for p in sys.path if (Path(p) / "lm_saes" / "sae.py").is_file())
    sys.modules["lm_saes"] = types.ModuleType("lm_saes")
    sys.modules["lm_saes"].__path__ = [str(root)]
    sys.modules["lm_saes.activation"] = Stand("lm_saes.activation")
    sys.modules["lm_saes.activation.activation_store"] = Stand("lm_saes.activation.activation_store")
    from lm_saes.config import SAEConfig
    from lm_saes.sae import SparseAutoEncoder

    average = {"in": 3.0, "out": 3.0}
    kinds: dict[str, dict[str, Any]] = {
        "jumprelu": {"act_fn": "jumprelu", "jump_relu_threshold": 0.5},
        "jumprelu-unweighted": {
            "act_fn": "jumprelu", "jump_relu_threshold": 0.5, "sparsity_include_decoder_norm": False
        },
        "topk": {"act_fn": "topk", "top_k": K},
        "relu": {"act_fn": "relu", "norm_activation": "inference", "dataset_average_activation_norm": None},
        "transcoder": {
            "act_fn": "jumprelu", "jump_relu_threshold": 0.5, "hook_point_in": "blocks.3.ln2.hook_normalized",
            "hook_point_out": "blocks.3.hook_mlp_out", "dataset_average_activation_norm": {"in": 3.0, "out": 5.0},
        },
    }  # fmt: skip
    for kind, options in kinds.items():
        common = {"hook_point_in": "blocks.3.hook_resid_post", "norm_activation": "dataset-wise", "d_model": D}
        common |= {"apply_decoder_bias_to_pre_encoder": False, "expansion_factor": F // D}
        cfg = SAEConfig(**common | {"dataset_average_activation_norm": average} | options)
        sae = fill(SparseAutoEncoder(cfg))
        folder = fresh(f"lm-saes-{version}-{kind}")
        (folder / "checkpoints").mkdir()
        cfg.save_hyperparameters(str(folder))
        save_file(sae.get_full_state_dict(), folder / "checkpoints" / "final.safetensors")
        back = SparseAutoEncoder.from_pretrained(str(folder))
        with torch.no_grad():
            f = back.encode(rows())
            expected(folder, f, back.decode(f))


def published(version: str) -> None:
    """Layouts published without a folder of a training library, read by SAELens' own loaders."""
    import numpy as np
    import sae_lens.loading.pretrained_sae_loaders as loaders
    from sae_lens import SAE

    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g) * 0.5  # noqa: E731
    five = {"W_enc": draw(D, F), "W_dec": draw(F, D), "b_enc": draw(F), "b_dec": draw(D), "threshold": draw(F).abs()}

    def local(folder: Path) -> None:
        loaders.hf_hub_download = lambda repo_id=None, filename=None, *a, **k: str(folder / Path(filename).name)

    def theirs(cfg: dict[str, Any], state: dict[str, torch.Tensor], folder: Path) -> None:
        cfg = loaders.handle_config_defaulting({**cfg, "d_in": D, "d_sae": F})
        sae = SAE.get_sae_class_for_architecture(cfg["architecture"])(
            SAE.get_sae_config_class_for_architecture(cfg["architecture"]).from_dict({**cfg, "device": "cpu"})
        )
        sae.load_state_dict(dict(state))
        outputs(folder, sae)

    folder = fresh("gemma-scope-1-jumprelu/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71")
    np.savez(folder / "params.npz", **{k: v.numpy() for k, v in five.items()})
    local(folder)
    cfg, state, _ = loaders.gemma_2_sae_huggingface_loader(
        "google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71"
    )
    theirs(cfg, state, folder)
    for affine in (False, True):
        folder = fresh(f"gemma-scope-2-transcoder{'-affine' if affine else ''}")
        raw = {k.replace("W_", "w_"): v for k, v in five.items()}
        if affine:
            raw["affine_skip_connection"] = draw(D, D)
        save_file({k: v.contiguous() for k, v in raw.items()}, folder / "params.safetensors")
        about = {
            "architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "affine_connection": affine,
            "width": F, "l0": 20,
            "hf_hook_point_in": "model.layers.3.pre_feedforward_layernorm.output",
            "hf_hook_point_out": "model.layers.3.post_feedforward_layernorm.output",
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(about))
        local(folder)
        loaders.get_safetensors_tensor_shapes = lambda *a, raw=raw, **k: {n: list(v.shape) for n, v in raw.items()}
        cfg, state, _ = loaders.gemma_3_sae_huggingface_loader(
            "google/gemma-scope-2-1b-pt", "transcoder/layer_3_width_16k"
        )
        theirs(cfg, state, folder)
    folder = fresh("goodfire-1-relu")
    raw = {"encoder_linear.weight": five["W_enc"].T, "encoder_linear.bias": five["b_enc"]}
    raw |= {"decoder_linear.weight": five["W_dec"].T, "decoder_linear.bias": five["b_dec"]}
    file = "Llama-3.1-8B-Instruct-SAE-l19.pth"
    torch.save({k: v.contiguous() for k, v in raw.items()}, folder / file)
    local(folder)
    cfg, state, _ = loaders.get_goodfire_huggingface_loader("Goodfire/Llama-3.1-8B-Instruct-SAE-l19", file)
    theirs(cfg, state, folder)


MAKERS = {
    "sparsify": sparsify,
    "dl": dictionary_learning,
    "circuit-tracer": circuit_tracer,
    "circuit-tracer-clt": circuit_tracer_clt,
    "gemma-scope-2-clt": gemma_scope_2_clt,
    "llamascopium": llamascopium,
    "lm-saes": lm_saes,
    "published": published,
}

if __name__ == "__main__":
    library, version = sys.argv[1:3]
    if library == "saelens":
        {"2": saelens_2, "6": saelens_6}.get(version[0], saelens_flat)(version)
    elif library == "eleuther-sae":
        eleuther_sae(version)
    else:
        MAKERS[library](version)
    assert load_file
