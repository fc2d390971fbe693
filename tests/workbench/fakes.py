"""Small stand-ins for a store and a dictionary, whose content is known exactly."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class FakeStore:
    """Rows [n_seq * (ctx - 1), d] of sequences whose position 0 (BOS) is not stored."""

    x: torch.Tensor
    ids: np.ndarray  # [n_seq, ctx]
    ctx: int

    @classmethod
    def random(cls, n_seq: int = 40, ctx: int = 33, d: int = 16, vocab: int = 50, seed: int = 0) -> FakeStore:
        rng = np.random.default_rng(seed)
        g = torch.Generator().manual_seed(seed)
        return cls(
            torch.randn(n_seq * (ctx - 1), d, generator=g), rng.integers(1, vocab, (n_seq, ctx)).astype(np.int32), ctx
        )

    def __len__(self) -> int:
        return len(self.x)

    def read(self, hook, rows=None, source=None) -> torch.Tensor:
        return self.x[rows]

    def tokens(self, rows):
        at = np.arange(len(self))[rows]
        seq, pos = at // (self.ctx - 1), at % (self.ctx - 1) + 1
        return self.ids[seq, pos], seq.astype(np.int32), pos.astype(np.int32)


class FakeDictionary:
    """Top-K with plain dense linear algebra."""

    def __init__(self, d: int = 16, f: int = 48, k: int = 4, seed: int = 1, W_dec: torch.Tensor | None = None):
        g = torch.Generator().manual_seed(seed)
        self.W_dec = torch.randn(f, d, generator=g) if W_dec is None else W_dec
        self.W_enc = self.W_dec.T.contiguous()
        self.b_enc = torch.zeros(len(self.W_dec))
        self.b_dec = torch.zeros(d)
        self.k = k

    def pre_activations(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.W_enc + self.b_enc

    def encode_sparse(self, x: torch.Tensor):
        values, indices = self.pre_activations(x).topk(self.k, dim=-1)
        return values.clamp_min(0), indices

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        values, indices = self.encode_sparse(x)
        return torch.zeros(*x.shape[:-1], len(self.W_dec)).scatter_(-1, indices, values)

    def decode_sparse(self, values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return (values[..., None] * self.W_dec[indices]).sum(-2) + self.b_dec

    def decode(self, f: torch.Tensor) -> torch.Tensor:
        return f @ self.W_dec + self.b_dec


class FakeBridge(torch.nn.Module):
    """Two residual layers of a language model with the hook interface of a bridge; every hook sees [B, S, d]."""

    def __init__(self, d: int = 16, vocab: int = 50, seed: int = 0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.W_E = torch.randn(vocab, d, generator=g)
        self.mix = [0.5 * torch.randn(d, d, generator=g) for _ in range(2)]
        self.W_U = torch.randn(d, vocab, generator=g)
        self.hook_dict = {
            f"blocks.{layer}.{kind}": []
            for layer in range(2)
            for kind in ("hook_resid_post", "hook_mlp_in", "hook_mlp_out")
        }

    @contextmanager
    def hooks(self, fwd_hooks):
        for name, fn in fwd_hooks:
            self.hook_dict[name].append(fn)
        try:
            yield self
        finally:
            for name, fn in fwd_hooks:
                self.hook_dict[name].remove(fn)

    def point(self, name: str, x: torch.Tensor) -> torch.Tensor:
        for fn in self.hook_dict[name]:
            new = fn(x, hook=None)
            x = x if new is None else new
        return x

    def forward(self, tokens, return_type="logits"):
        x = self.W_E[tokens]
        for layer, weight in enumerate(self.mix):
            read = self.point(f"blocks.{layer}.hook_mlp_in", x)
            mean = read.cumsum(1) / torch.arange(1, read.shape[1] + 1)[:, None]
            x = x + self.point(f"blocks.{layer}.hook_mlp_out", torch.tanh(mean @ weight))
            x = self.point(f"blocks.{layer}.hook_resid_post", x)
        return x @ self.W_U


class Identity(FakeDictionary):
    """Reconstructs perfectly: latents are plus and minus each coordinate."""

    def __init__(self, d: int = 16):
        super().__init__(d, 2 * d, d, W_dec=torch.cat([torch.eye(d), -torch.eye(d)]))
