"""What EleutherAI's delphi makes of shared excerpts: ``delphi.json``, which ``test_scorers.py`` holds ours against.

Run where eai-delphi 0.1.3 is installed (its wheel needs vllm, which is not called and may be missing):

    python tests/workbench/analysis/explain/make_delphi.py tests/workbench/analysis/explain/delphi.json
"""

from __future__ import annotations

import asyncio
import importlib.abc
import importlib.machinery
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np

ABSENT = ("vllm", "bitsandbytes")  # imported by delphi, not called by its scorers


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Empty modules in the place of those that are not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] in ABSENT else None

    def create_module(self, spec: Any) -> ModuleType:
        module: Any = MagicMock(name=spec.name)
        module.__path__, module.__spec__ = [], spec
        return module

    def exec_module(self, module: ModuleType) -> None: ...


WORDS = [" cat", " dog", " tree", " the", "(", ")", ",", " runs", " big", "ing", " self", "\n"]
LENGTH, N = 24, 12


def excerpts() -> list[dict[str, Any]]:
    """Half of them active on some " cat"s, strongly and weakly; the others without a firing, though some have cats."""
    rng = np.random.default_rng(5)
    made = []
    for k in range(2 * N):
        ids = rng.integers(1, len(WORDS), LENGTH)
        cats = rng.permutation(LENGTH)[: rng.integers(1, 5)] if k < N or k % 3 == 0 else []
        ids[cats] = 0
        values = np.zeros(LENGTH)
        if k < N:
            values[cats] = np.round(rng.uniform(0.5, 8, len(cats)), 3)
        made.append({"tokens": [WORDS[i] for i in ids], "values": values.tolist(), "active": k < N})
    return made


def says(text: str) -> bool:
    """A judge that reads: marked excerpts fit if every mark holds a cat, others if there is more than one."""
    marked = re.findall(r"<<(.*?)>>", text, re.S)
    return all("cat" in m for m in marked) if marked else text.count("cat") > 1


def main(out: str) -> None:
    """Ask delphi's detection and fuzzing scorers and its simulation about the excerpts."""
    sys.meta_path.insert(0, _Absent())
    import torch
    from delphi import __version__
    from delphi.clients.client import Client, Response
    from delphi.latents.latents import ActivatingExample, Latent, LatentRecord, NonActivatingExample
    from delphi.log.result_analysis import compute_classification_metrics, compute_confusion
    from delphi.scorers.classifier.detection import DetectionScorer
    from delphi.scorers.classifier.fuzz import FuzzingScorer
    from delphi.scorers.simulator.simulation.data_models import ActivationRecord
    from delphi.scorers.simulator.simulation.llm_interface import compute_predicted_activation_stats_for_token
    from delphi.scorers.simulator.simulation.scoring import simulate_and_score
    from pandas import DataFrame

    seen: list[str] = []

    class Reader(Client):
        async def generate(self, prompt: Any, **options: Any) -> Response:
            text = prompt[-1]["content"].split("examples:\n\n", 1)[1].rstrip("\n")
            shown = re.split(r"(?:^|\n)Example \d+: ", text)[1:]
            seen.extend(shown)
            return Response(json.dumps([int(says(t)) for t in shown]))

    made = excerpts()
    active, silent = [], []
    for e in made:
        ids = torch.tensor([WORDS.index(t) for t in e["tokens"]])
        values = torch.tensor(e["values"])
        if e["active"]:
            levels = (values * 10 / 8).ceil().clamp(0, 10)
            active.append(ActivatingExample(ids, values, normalized_activations=levels, str_tokens=e["tokens"]))
        else:
            silent.append(NonActivatingExample(ids, values, str_tokens=e["tokens"], distance=-1.0))
    found: dict[str, Any] = {"delphi": __version__, "excerpts": made}
    for name, scorer in (
        ("detection", DetectionScorer(Reader("m"), n_examples_shown=1)),
        ("fuzzing", FuzzingScorer(Reader("m"), n_examples_shown=1)),
        ("fuzzing_active", FuzzingScorer(Reader("m"), n_examples_shown=1, fuzz_type="active")),
    ):
        seen.clear()
        record = LatentRecord(Latent("m", 0), test=active, not_active=silent, explanation="cats")
        said = scorer.call_sync(record).score
        frame = DataFrame([{"activating": s.activating, "prediction": s.prediction} for s in said])
        metrics = compute_classification_metrics(compute_confusion(frame))
        found[name] = {
            "answers": [
                {"text": t, "activating": bool(s.activating), "prediction": bool(s.prediction)}
                for t, s in zip(seen, said, strict=True)
            ],
            "metrics": {k: float(metrics[k]) for k in ("accuracy", "precision", "recall", "f1_score")},
        }
    rng = np.random.default_rng(1)
    guesses = [np.round(rng.uniform(0, 10, LENGTH), 3).tolist() for _ in made]

    class Guesser:
        async def simulate(self, tokens: list[str]) -> list[float]:
            return guesses[next(i for i, e in enumerate(made) if e["tokens"] == tokens)]

    records = [ActivationRecord(e["tokens"], np.ceil(np.array(e["values"]) * 10 / 8).tolist(), 0) for e in made]
    scores = asyncio.run(simulate_and_score(Guesser(), records[:N], records[N:]))
    whole = next(s for s in scores if s.distance == 0)  # of all excerpts together
    logprobs = {str(k): float(v) for k, v in enumerate(np.log(rng.dirichlet(np.ones(10))))} | {" the": -1.0}
    expected = compute_predicted_activation_stats_for_token(logprobs)[1]
    found["simulation"] = {
        "guesses": guesses,
        "correlation": float(whole.ev_correlation_score),
        "logprobs": logprobs,
        "expected": float(expected),
    }
    Path(out).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
