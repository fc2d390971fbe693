"""Pre-training miniature language models, with snapshots, so that every batch and every number can be made again.

A run is a pure function of its recipe and the running Python's standard library: batches depend on (corpus seed, step)
alone, so an architecture or an initialisation seed can be changed with the batches unchanged. State is written
atomically; a resumed run gives the same bits as an uninterrupted one. The schedule is warm-up, constant,
linear decay to zero over the last ``decay_share`` of the steps.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, field_serializer, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from sae.changes import Change, changes
from sae.errors import CorruptError, NonFiniteError
from sae.files import sha256_json, write_bytes
from sae.strict import StrictConfig
from workbench.config import corpus_name
from workbench.corpus import CorpusConfig, bos_id, mixed_windows, text_stream
from workbench.models.mamba import repair_mamba
from workbench.results.reuse import mismatch

STATE_SECONDS = 30.0


class PretrainRecipe(StrictConfig):
    """Everything that decides a miniature model. Steps are batches of ``batch`` windows of ``ctx`` tokens."""

    name: str = Field(description="name of the model: it is written to models/NAME")
    architecture: Literal["gpt_neox", "mamba", "olmo_hybrid"] = Field(
        description=(
            "gpt_neox (a Transformer shaped like Pythia), mamba, or olmo_hybrid (three Gated DeltaNet layers, then one"
            " of attention)"
        )
    )
    d_model: int = Field(default=128, ge=8, description="width of the residual stream")
    n_layers: int = Field(default=3, ge=1, description="layers")
    n_heads: int = Field(default=4, ge=1, description="Transformer and hybrid: heads of a layer")
    state_size: int = Field(default=16, ge=1, description="Mamba and hybrid: state variables of a channel")
    conv_kernel: int = Field(default=4, ge=1, description="Mamba and hybrid: tokens its convolution sees")
    ctx: int = Field(default=256, ge=8, description="tokens of a window")
    batch: int = Field(default=16, ge=1, description="windows of a step")
    steps: int = Field(ge=1, description="training steps")
    lr: float = Field(default=2e-3, gt=0, description="peak learning rate of AdamW")
    warmup: int = Field(default=100, ge=1, description="steps of linear warm-up")
    decay_share: float = Field(default=0.25, ge=0, le=1, description="last share of the steps: linear decay to zero")
    weight_decay: float = Field(default=0.05, ge=0, description="weight decay of AdamW")
    clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient of all parameters together")
    seed: int = Field(0, description="of the initial weights")
    no_bos_share: float = Field(default=0.1, ge=0, le=1, description="share of the windows that do not begin with BOS")
    cycles: tuple[tuple[NonNegativeInt, PositiveFloat], ...] = Field(
        (),
        description=(
            "rows (first step, rate): from each step the learning rate starts over at the rate and falls linearly"
        ),
    )
    kind_weights: tuple[tuple[NonNegativeInt, PositiveFloat, PositiveFloat, PositiveFloat], ...] = Field(
        (),
        description=(
            "rows (first step, text, repeats, agreement): how much a window of each kind counts in the"
            " loss from that step on"
        ),
    )
    start: str | None = Field(None, description="model whose weights it goes on from; none = from scratch")
    snapshots: tuple[int, ...] = Field((0,), description="steps after which weights are kept; the last is always")
    corpus: CorpusConfig = Field(CorpusConfig(), description="the text, as a table of its own")

    @field_serializer("start", when_used="json")
    def _named(self, value: str | None) -> str | None:
        """As results keep it: a folder by its name."""
        return corpus_name(value) if value and Path(value).expanduser().is_absolute() else value

    @model_validator(mode="after")
    def _consistent(self) -> PretrainRecipe:
        if self.architecture != "mamba" and self.d_model % (2 * self.n_heads):
            raise ValueError(
                f"d_model = {self.d_model} is not a multiple of 2 × n_heads = {2 * self.n_heads} (rotary positions"
                " need an even width per head)"
            )
        if self.architecture == "olmo_hybrid" and self.n_layers < 2:
            raise ValueError(f"n_layers = {self.n_layers}: a hybrid has at least 2, one of each kind")
        if list(self.kind_weights) != sorted(self.kind_weights, key=lambda row: row[0]):
            raise ValueError("kind_weights must be in the order of their first steps")
        firsts = [0, *(first for first, _ in self.cycles), self.steps]
        if self.cycles and any(a >= b for a, b in pairwise(firsts)):
            raise ValueError(f"cycles must begin at steps in ascending order, between 0 and steps = {self.steps}")
        late = [s for s in self.snapshots if s > self.steps or s < 0]
        if late:
            raise ValueError(f"snapshots {late} lie outside 0 … steps = {self.steps}")
        return self

    @property
    def saved_steps(self) -> tuple[int, ...]:
        """Steps that get a snapshot: the chosen ones and the last."""
        return tuple(sorted({*self.snapshots, self.steps}))

    @property
    def decay_start(self) -> int:
        """First step at which the learning rate falls."""
        end = self.cycles[0][0] if self.cycles else self.steps
        return end - round(end * self.decay_share)

    def learning_rate(self, step: int) -> float:
        """Learning rate of the update number ``step`` (from 0).

        Rows (first step, rate) of ``cycles`` start over: from each the rate falls linearly, to zero at the next one or
        the end.
        """
        ends = [first for first, _ in self.cycles] + [self.steps]
        begun = sum(first <= step for first, _ in self.cycles)
        if begun:
            first, rate = self.cycles[begun - 1]
            return rate * (ends[begun] - step) / (ends[begun] - first)
        decay = (ends[0] - step) / max(ends[0] - self.decay_start, 1)
        return self.lr * min(1.0, (step + 1) / self.warmup, decay)

    def weight(self, kind: int, step: int) -> float:
        """How much a window of a kind (0 text, 1 repeats, 2 agreement) counts in the loss of update ``step``.

        ``kind_weights`` holds rows (first step, text, repeats, agreement); the last row that has begun counts, before
        the first all count 1.
        """
        begun = [row for row in self.kind_weights if row[0] <= step]
        return begun[-1][1 + kind] if begun else 1.0

    def trajectory(self) -> dict[str, Any]:
        """What decides the weights beside the learning rates: all but the length of the run and the choice of
        snapshots.
        """
        return self.model_dump(mode="json", exclude={"steps", "snapshots", "decay_share", "cycles", "name"})


def hf_config(recipe: PretrainRecipe, vocab: int) -> Any:
    """The Hugging Face configuration of the recipe's architecture; embeddings are tied."""
    ids: dict[str, Any] = {
        "vocab_size": vocab,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    }
    if recipe.architecture == "gpt_neox":
        from transformers import GPTNeoXConfig

        return GPTNeoXConfig(
            hidden_size=recipe.d_model,
            num_hidden_layers=recipe.n_layers,
            num_attention_heads=recipe.n_heads,
            intermediate_size=4 * recipe.d_model,
            max_position_embeddings=1024,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
            architectures=["GPTNeoXForCausalLM"],
            **ids,
        )
    if recipe.architecture == "olmo_hybrid":
        return _hybrid_config(recipe, ids)
    from transformers import MambaConfig

    return MambaConfig(
        hidden_size=recipe.d_model,
        num_hidden_layers=recipe.n_layers,
        state_size=recipe.state_size,
        conv_kernel=recipe.conv_kernel,
        expand=2,
        initializer_range=0.02,
        residual_in_fp32=True,
        architectures=["MambaForCausalLM"],
        **ids,
    )


def _hybrid_config(recipe: PretrainRecipe, ids: dict[str, Any]) -> Any:
    """OLMo Hybrid: every fourth layer attends, the others are Gated DeltaNets (Yang et al. 2024, arXiv 2412.06464)
    with one state of ``state_size`` x ``d_model / n_heads`` per head. Gated MLPs as wide as the residual stream leave
    it the parameters of a Mamba of this depth.
    """
    from transformers import OlmoHybridConfig

    return OlmoHybridConfig(
        hidden_size=recipe.d_model,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        intermediate_size=recipe.d_model,
        linear_num_key_heads=recipe.n_heads,
        linear_num_value_heads=recipe.n_heads,
        linear_key_head_dim=recipe.state_size,
        linear_value_head_dim=recipe.d_model // recipe.n_heads,
        linear_conv_kernel_dim=recipe.conv_kernel,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        architectures=["OlmoHybridForCausalLM"],
        **ids,
    )


def build_model(config: Any, seed: int = 0) -> nn.Module:
    """A freshly initialised float32 model of a Hugging Face configuration; the global random state is
    left as it was.
    """
    from transformers import GPTNeoXForCausalLM, MambaForCausalLM, OlmoHybridForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.model_type == "gpt_neox":
            return GPTNeoXForCausalLM(config)
        if config.model_type == "mamba":
            return repair_mamba(MambaForCausalLM(config))
        model = OlmoHybridForCausalLM(config)
        for module in model.modules():
            if isinstance(module, nn.Conv1d):  # transformers draws the taps at 0.02, which all but closes the mixer
                module.reset_parameters()
        return model


def batch_at(recipe: PretrainRecipe, tokenizer: Any, step: int) -> tuple[Tensor, np.ndarray]:
    """The batch of one step: tokens int64 [batch, ctx] and their kinds. Most windows start with BOS, a few do not."""
    first = step * recipe.batch
    tokens, _, kinds = mixed_windows(recipe.corpus, tokenizer, first=first, n=recipe.batch, length=recipe.ctx)
    for i in range(recipe.batch):
        if np.random.default_rng([recipe.corpus.seed, 9, first + i]).random() >= recipe.no_bos_share:
            tokens[i, 1:] = tokens[i, :-1].copy()
            tokens[i, 0] = bos_id(tokenizer)
    return torch.from_numpy(tokens.astype(np.int64)), kinds


def token_losses(model: nn.Module, tokens: Tensor) -> Tensor:
    """Next-token losses [n, ctx - 1] in nats."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")


def make_optimizer(model: nn.Module, recipe: PretrainRecipe) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only (not on norms, biases, embeddings, or a Mamba's A and D)."""
    decayed = [
        p
        for n, p in model.named_parameters()
        if p.ndim >= 2 and "embed" not in n and not n.endswith(("A_log", "conv1d.weight"))
    ]
    ids = {id(p) for p in decayed}
    plain = [p for p in model.parameters() if id(p) not in ids]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95), fused=True)


def half_precision(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters in float16, tied ones once.

    Raises:
        NonFiniteError: a weight is not finite, or does not fit float16.
    """
    out = {}
    for name, p in model.named_parameters():
        half = p.detach().to(torch.float16).contiguous()
        if not torch.isfinite(half).all():
            raise NonFiniteError(
                f"weight {name} is not finite in float16: training diverged. Lower lr and start again."
            )
        out[name] = half
    return out


class Pretraining:
    """One run in a work folder: ``state.safetensors``, finished snapshots and losses.

    Creating it resumes what is there.
    """

    def __init__(self, recipe: PretrainRecipe, work: str | Path, tokenizer: Any, *, start: nn.Module | None = None):
        self.recipe, self.work, self.tokenizer = recipe, Path(work), tokenizer
        self.config = start.config if start is not None else hf_config(recipe, len(tokenizer))
        self.model = start if start is not None else build_model(self.config, recipe.seed)
        self.model.train()
        self.optimizer = make_optimizer(self.model, recipe)
        self.step = 0
        self.losses = np.zeros((0, 4), np.float32)
        self.work.mkdir(parents=True, exist_ok=True)
        if (self.work / "state.safetensors").exists():
            self._resume()

    def _resume(self) -> None:
        path = self.work / "state.safetensors"
        try:
            tensors = load_file(path)
            with safe_open(path, framework="pt") as f:
                about = f.metadata() or {}
            self.step = int(tensors["step"])
            self._check_past(about)
            self.losses = tensors["losses"].numpy()
            for i, (name, p) in enumerate(self.model.named_parameters()):
                p.data.copy_(tensors[f"model.{name}"])
                if self.step:
                    self.optimizer.state[p] = {k: tensors[f"{k}.{i}"] for k in ("step", "exp_avg", "exp_avg_sq")}
        except (KeyError, RuntimeError, ValueError, OSError, SafetensorError) as e:
            raise CorruptError(f"{path} cannot be resumed: {e}. Remove {self.work} to train from the start.") from e

    def _check_past(self, about: dict[str, str]) -> None:
        """Refuse a state that another recipe, text or tokenizer led to.

        Raises:
            MismatchError: naming what differs.
        """
        past = json.loads(about["contract"]) if "contract" in about else {}
        mine = self._contract()
        found = changes(
            {k: v for k, v in past.items() if k != "schedule"}, {k: mine[k] for k in past if k != "schedule"}
        )
        if not found and about.get("past") != self._past():  # the rates up to here
            found = changes(past.get("schedule", {}), mine["schedule"]) or [
                Change("learning rates", "other ones", "these")
            ]
        if found:
            raise mismatch(
                f"an unfinished run of {self.recipe.name!r} at step {self.step} (in {self.work.name})",
                [c._replace(key=c.key.removeprefix("recipe.").removeprefix("schedule.")) for c in found],
                "or give the recipe another name",
            )

    def _contract(self) -> dict[str, Any]:
        """What a run must have in common with an interrupted one to go on from it, beside the learning rates so far."""
        schedule = self.recipe.model_dump(mode="json", include={"steps", "decay_share", "cycles"})
        stream = text_stream(self.recipe.corpus, self.tokenizer)
        values = {
            "recipe": self.recipe.trajectory(),
            "schedule": schedule,
            "text": stream.digest,
            "tokens": hashlib.sha256(stream.tokens.tobytes()).hexdigest(),
        }
        return dict(json.loads(json.dumps(values)))

    def _past(self) -> str:
        """What decided the weights so far; a longer or otherwise decayed run may go on from here while this stays the
        same.
        """
        rates = [self.recipe.learning_rate(step) for step in range(self.step)]
        return sha256_json([self.step, self.recipe.trajectory(), rates])

    def save_state(self) -> None:
        """Write everything needed to go on from here, atomically."""
        tensors: dict[str, Tensor] = {"step": torch.tensor(self.step), "losses": torch.from_numpy(self.losses.copy())}
        for i, (name, p) in enumerate(self.model.named_parameters()):
            tensors[f"model.{name}"] = p.detach().contiguous()
            tensors |= {f"{k}.{i}": v for k, v in self.optimizer.state.get(p, {}).items()}
        write_bytes(
            self.work / "state.safetensors",
            save(tensors, metadata={"past": self._past(), "contract": json.dumps(self._contract())}),
        )

    def update(self) -> float:
        """One optimizer step; returns its mean loss in nats.

        Raises:
            NonFiniteError: the loss is not finite.
        """
        tokens, kinds = batch_at(self.recipe, self.tokenizer, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate(self.step)
        losses = token_losses(self.model, tokens)
        weights = torch.tensor([self.recipe.weight(int(kind), self.step) for kind in kinds])
        loss = (losses.mean(1) * weights).sum() / weights.sum()
        if not torch.isfinite(loss):
            raise NonFiniteError(
                f"the loss is {float(loss)} at step {self.step}: training diverged. Lower lr and start again."
            )
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        per_window = losses.detach().mean(1).numpy()
        row = [
            float(per_window.mean()),
            *(float(per_window[kinds == k].mean()) if (kinds == k).any() else np.nan for k in range(3)),
        ]
        self.losses = np.concatenate([self.losses, np.asarray([row], np.float32)])
        self.step += 1
        return row[0]

    def save_snapshot(self) -> float:
        """Write the weights of this step in half precision; returns the held-out text loss in nats."""
        folder = self.work / f"step{self.step}"
        folder.mkdir(exist_ok=True)
        loss = self.heldout_loss()
        write_bytes(folder / "model.safetensors", save(half_precision(self.model), metadata={"format": "pt"}))
        return loss

    def heldout_loss(self, n: int = 32) -> float:
        """Mean loss in nats of ``n`` fixed windows of held-out text."""
        config = self.recipe.corpus.model_copy(
            update={"split": "heldout", "tiled_share": 0.0, "snippet_share": 0.0, "agreement_share": 0.0}
        )
        tokens, _, _ = mixed_windows(config, self.tokenizer, first=0, n=n, length=self.recipe.ctx - 1)
        bos = np.full((n, 1), bos_id(self.tokenizer))
        self.model.eval()
        with torch.inference_mode():
            loss = float(
                token_losses(self.model, torch.from_numpy(np.concatenate([bos, tokens], 1).astype(np.int64))).mean()
            )
        self.model.train()
        return loss

    def run(self, until: int | None = None) -> Iterator[dict[str, float]]:
        """Train to the end (or to step ``until``), yielding after every step; snapshots and state are written on the
        way.
        """
        until = self.recipe.steps if until is None else min(until, self.recipe.steps)
        saved = set(self.recipe.saved_steps)
        written = time.monotonic()
        if self.step == 0 and 0 in saved:
            yield {"step": 0, "heldout": self.save_snapshot()}
        while self.step < until:
            out = {"loss": self.update(), "step": self.step}
            if self.step in saved:
                out["heldout"] = self.save_snapshot()
            if self.step in saved or self.step == until or time.monotonic() - written > STATE_SECONDS:
                self.save_state()
                written = time.monotonic()
            yield out
