"""One dictionary in two forms through SAEBench's core and sae-probes' probing, in their environment (saebench.py)."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from _peers_model import hooked


class Tokens:
    """What the core evaluation asks of an activation store: the same batches of tokens for every dictionary."""

    def __init__(self, tokens: Any, batch: int):
        self.tokens, self.store_batch_size_prompts, self.context_size, self.next = tokens, batch, tokens.shape[1], 0

    def reset_input_dataset(self) -> None:
        self.next = 0

    def get_batch_tokens(self, n: int) -> Any:
        import torch

        rows = (torch.arange(self.next, self.next + n)) % len(self.tokens)
        self.next += n
        return self.tokens[rows]


def core(sae: Any, model: Any, tokens: Any) -> dict[str, float]:
    """SAEBench's core numbers, flat."""
    import torch
    from sae_bench.evals.core.eval_config import CoreEvalConfig
    from sae_bench.evals.core.main import run_evals
    from sae_bench.sae_bench_utils.general_utils import load_and_format_sae

    load_and_format_sae("", sae, "cpu")
    batch = min(16, len(tokens))
    config = CoreEvalConfig(
        batch_size_prompts=batch,
        n_eval_reconstruction_batches=max(1, len(tokens) // batch),
        n_eval_sparsity_variance_batches=max(1, len(tokens) // batch),
        compute_kl=True,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
    )
    torch.manual_seed(0)
    found, _ = run_evals(sae, Tokens(tokens, batch), model, config)
    groups = {k: v for k, v in found.items() if k != "token_stats"}
    return {f"core, {name}": float(v) for group in groups.values() for name, v in group.items()}


def probes(sae: Any, job: dict[str, Any], cache: Path, out: Path) -> dict[str, float]:
    """sae-probes' test AUC and F1 of probes on k latents, for every data set."""
    from sae_probes.run_sae_evals import run_sae_evals

    run_sae_evals(
        sae=sae,
        model_name="model",
        hook_name=job["hook"],
        reg_type="l1",
        setting="normal",
        ks=list(job["ks"]),
        results_path=out,
        model_cache_path=cache,
        datasets=job["datasets"],
        device="cpu",
    )
    found: dict[str, float] = {}
    for file in sorted(out.rglob("*.json")):
        for row in json.loads(file.read_text(encoding="utf-8")):
            for number in ("test_auc", "test_f1"):
                found[f"probes, {row['dataset']}, k = {row['k']}, {number}"] = float(row[number])
    return found


def main() -> None:
    import numpy as np
    import torch
    from sae_lens import SAE
    from sae_probes.generate_model_activations import ensure_dataset_activations

    import sae
    from sae.formats import BenchSAE

    job = json.loads(sys.argv[1])
    scratch, out = Path(job["scratch"]), sys.stdout
    sys.stdout = sys.stderr  # theirs print
    model = hooked(Path(job["model"]))
    tokens = torch.from_numpy(np.load(job["tokens"]))
    cache = scratch / "cache"
    ensure_dataset_activations(
        model_name="model",
        dataset_short_names=job["datasets"],
        hook_names=[job["hook"]],
        model_cache_path=cache,
        device="cpu",
        max_seq_len=min(256, model.cfg.n_ctx),
        model=model,
    )
    theirs = SAE.load_from_disk(job["dictionary"], device="cpu")
    theirs.cfg.metadata.hook_name = job["hook"]
    subjects = {
        "ours": BenchSAE(sae.load(job["dictionary"]), model_name=job["name"], hook_name=job["hook"]),
        "theirs": theirs,
    }
    numbers = {
        name: core(subject, model, tokens) | probes(subject, job, cache, scratch / name)
        for name, subject in subjects.items()
    }
    if numbers["ours"].keys() != numbers["theirs"].keys():
        raise SystemExit("the two forms gave different numbers: " + str(numbers.keys()))
    rows = []
    for what, a in numbers["ours"].items():
        b = numbers["theirs"][what]
        rows.append({"what": what, "ours": a, "theirs": b, "off": abs(a - b) / max(abs(a), abs(b), 1e-12)})
    versions = {p: version(p) for p in ("sae-bench", "sae-probes", "sae-lens")}
    print(json.dumps({"rows": rows, "versions": versions}), file=out)


if __name__ == "__main__":
    main()
