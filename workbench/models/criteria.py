"""What makes a miniature model worth interpreting, measured: better than n-grams, copying in context, single-match
induction, agreement.

``python -m workbench.models.criteria MODEL [REVISION …]`` prints the table for every snapshot. All prompts are drawn
from fixed seeds and, where they need text, from the held-out split.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.corpus import CorpusConfig, bos_id, frequencies, mixed_windows, text_stream
from workbench.corpus.synthetic import sentence, tiled_window
from workbench.models.trigram import InterpolatedTrigram

# Criterion -> (transformer, mamba): what the final snapshot has to reach.
TARGETS = {"below_trigram": (0.2, 0.2), "copy_gap": (5.0, 4.0), "single_match": (0.5, 0.3), "agreement": (0.9, 0.9)}
UNSEEN_CHUNKS = (29, 37)


class Criteria:
    """The fixed prompts and the trigram baseline, shared by all snapshots of all models of one tokenizer."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        ctx: int = 256,
        n_text: int = 64,
        n_copy: int = 64,
        n_single: int = 512,
        n_pairs: int = 400,
        seed: int = 0,
    ):
        self.tokenizer = tokenizer
        bos = bos_id(tokenizer)
        train = text_stream(CorpusConfig(), tokenizer)
        self.probabilities = frequencies(train, len(tokenizer))
        heldout = CorpusConfig(split="heldout", tiled_share=0, snippet_share=0, agreement_share=0)
        self.text = _with_bos(mixed_windows(heldout, tokenizer, first=0, n=n_text, length=ctx - 1)[0], bos)
        self.trigram_loss = float(InterpolatedTrigram.fit(train.tokens, len(tokenizer)).losses(self.text).mean())
        rng = np.random.default_rng([seed, 31])
        self.copies = copy_prompts(self.probabilities, bos, n_copy, rng)
        self.single, self.successor = self._single(n_single, rng)
        self.pairs = [sentence(rng, "heldout")[:3] for _ in range(n_pairs)]

    def _single(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """BOS and 64 tokens by frequency whose last one occurred exactly once before, in the first half: [n, 65],
        successors [n].
        """
        prompts: list[np.ndarray] = []
        targets: list[int] = []
        cumulative = np.cumsum(self.probabilities)
        while len(prompts) < n:
            window = np.minimum(np.searchsorted(cumulative, rng.random(64), side="right"), len(cumulative) - 1)
            source = int(rng.integers(0, 32))
            window[-1] = window[source]
            if (window[:-1] == window[-1]).sum() == 1:
                prompts.append(window)
                targets.append(int(window[source + 1]))
        return _with_bos(np.stack(prompts), bos_id(self.tokenizer)), np.asarray(targets)

    @torch.inference_mode()
    def measure(self, model: Any) -> dict[str, float]:
        """All criteria of one model (a bridge or a Hugging Face model), losses in nats:

        ``loss`` on held-out text and ``below_trigram`` (how far it is below the trigram's); ``copy`` and ``permuted``
        (loss on the second copy) and ``copy_gap``; ``single_match`` and ``agreement`` accuracies.
        """
        loss = float(_losses(model, self.text).mean())
        ordered, permuted = copy_losses(model, self.copies)
        top = np.concatenate(
            [_logits(model, part)[:, -1].argmax(-1).numpy() for part in np.array_split(self.single, 8)]
        )
        return {
            "loss": loss,
            "below_trigram": self.trigram_loss - loss,
            "copy": ordered,
            "permuted": permuted,
            "copy_gap": permuted - ordered,
            "single_match": float((top == self.successor).mean()),
            "agreement": self._agreement(model),
        }

    def _agreement(self, model: Any) -> float:
        """Share of held-out sentences in which the right verb form is likelier than the wrong one."""
        bos, rows = bos_id(self.tokenizer), []
        for prefix, right, wrong in self.pairs:
            before = len(self.tokenizer(prefix, add_special_tokens=False)["input_ids"])
            for verb in (right, wrong):
                rows.append((before, [bos, *self.tokenizer(prefix + verb, add_special_tokens=False)["input_ids"]]))
        width = max(len(ids) for _, ids in rows)
        padded = np.asarray([ids + [bos] * (width - len(ids)) for _, ids in rows])
        losses = torch.cat([_losses(model, part) for part in np.array_split(padded, 4)]).numpy()
        scores = np.asarray([losses[i, before : len(ids) - 1].sum() for i, (before, ids) in enumerate(rows)]).reshape(
            -1, 2
        )
        return float((scores[:, 0] < scores[:, 1]).mean())

    @property
    def about(self) -> dict[str, Any]:
        """Numbers of prompts behind each figure, and the trigram's loss."""
        counts = {
            "text_tokens": int(self.text[:, 1:].size),
            "copies": sum(len(o) for o, _ in self.copies),
            "chunks": list(UNSEEN_CHUNKS),
        }
        return {
            **counts,
            "single_match": len(self.single),
            "agreement": len(self.pairs),
            "trigram_loss": self.trigram_loss,
        }


def copy_prompts(
    probabilities: np.ndarray, bos: int, n: int, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Chunks of each unseen length, twice, and the same with the second copy permuted: two arrays [n, 1 + 2·length] per
    length.
    """
    out = []
    for size in UNSEEN_CHUNKS:
        ordered = np.stack([tiled_window(probabilities, 2 * size, rng, size) for _ in range(n)])
        permuted = ordered.copy()
        for row in permuted:
            row[size:] = rng.permutation(row[size:])
        out.append((_with_bos(ordered, bos), _with_bos(permuted, bos)))
    return out


@torch.inference_mode()
def copy_losses(model: Any, copies: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """(ordered, permuted): mean loss in nats on the second copies of :func:`copy_prompts`."""
    pairs = list(zip(UNSEEN_CHUNKS, copies, strict=True))
    ordered, permuted = ([float(_losses(model, pair[i])[:, size:].mean()) for size, pair in pairs] for i in (0, 1))
    return float(np.mean(ordered)), float(np.mean(permuted))


def met(measured: dict[str, float], *, mamba: bool) -> dict[str, bool]:
    """Which targets of a final model are reached."""
    return {name: measured[name] >= target[mamba] for name, target in TARGETS.items()}


def table(rows: dict[str, dict[str, float]]) -> str:
    """The criteria of all snapshots as a Markdown table."""
    columns = ["loss", "below_trigram", "copy", "permuted", "copy_gap", "single_match", "agreement"]
    lines = ["| snapshot | " + " | ".join(columns) + " |", "|---|" + "--:|" * len(columns)]
    lines += [f"| {name} | " + " | ".join(f"{row[c]:.3f}" for c in columns) + " |" for name, row in rows.items()]
    return "\n".join(lines)


def _with_bos(windows: np.ndarray, bos: int) -> np.ndarray:
    return np.concatenate([np.full((len(windows), 1), bos), windows], axis=1).astype(np.int64)


def _logits(model: Any, tokens: np.ndarray) -> Tensor:
    ids = torch.from_numpy(tokens)
    out = (
        model(ids)
        if not hasattr(model, "config") or hasattr(model, "hook_dict")
        else model(input_ids=ids, use_cache=False)
    )
    return out if isinstance(out, Tensor) else out.logits


def _losses(model: Any, tokens: np.ndarray, chunk: int = 32) -> Tensor:
    """Next-token losses [n, length - 1]."""
    parts = []
    for part in np.split(tokens, range(chunk, len(tokens), chunk)):
        logits = _logits(model, part)[:, :-1]
        parts.append(
            nn.functional.cross_entropy(logits.transpose(1, 2), torch.from_numpy(part[:, 1:]), reduction="none")
        )
    return torch.cat(parts)


def main(arguments: list[str]) -> None:
    """Print the table of a model's snapshots."""
    from workbench.models.load import load_hf, load_tokenizer, revisions

    if not arguments:
        raise SystemExit("usage: python -m workbench.models.criteria MODEL [REVISION ...]")
    name, chosen = arguments[0], arguments[1:]
    criteria = Criteria(load_tokenizer(name))
    rows = {r: criteria.measure(load_hf(name, r)) for r in chosen or revisions(name) or ["final"]}
    print(table(rows))
    print(f"trigram: {criteria.trigram_loss:.3f} nats")


if __name__ == "__main__":
    main(sys.argv[1:])
