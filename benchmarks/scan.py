"""Race of the CPU scans: one training step of a Mamba (d 128, 4 layers, N 16, 256 tokens), one thread.

    python benchmarks/scan.py            # ours and Hugging Face's own loop; mambapy too where it is installed
    python benchmarks/scan.py --batch 16 --steps 3

Every competitor runs in its own process, so peak memory is its own; time is processor time of that one thread, so other
work on the machine matters little. Hugging Face's loop takes minutes per step and runs on fewer sequences (its time is
proportional to them). Prints tokens per second, the memory a step adds, and ratios.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import time


def race(kind: str, batch: int, steps: int) -> dict[str, float]:
    """Best of `steps` training steps (forward, backward) of one competitor, in this process."""
    import torch
    from transformers import MambaConfig, MambaForCausalLM

    from workbench.models.mamba import repair_mamba

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=512, hidden_size=128, num_hidden_layers=4, state_size=16, use_mambapy=kind == "mambapy"
    )
    model = MambaForCausalLM(config).train()
    if kind == "workbench":
        repair_mamba(model, hooks=False)
    tokens = torch.randint(0, 512, (batch, 256), generator=torch.Generator().manual_seed(0))
    model(tokens[:1, :8], labels=tokens[:1, :8]).loss.backward()  # lazy initialisation and compilation
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(steps):
        start = time.process_time()
        model.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        times.append(time.process_time() - start)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"tokens_per_second": batch * 256 / min(times), "step_mib": (after - before) / 1024}


def main() -> None:
    """Run every competitor and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="sequences per step")
    parser.add_argument("--loop-batch", type=int, default=4, help="sequences per step of Hugging Face's loop")
    parser.add_argument("--steps", type=int, default=3, help="steps per competitor; the best counts")
    parser.add_argument("--quick", action="store_true", help="one step of each, one sequence for Hugging Face's loop")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.steps = args.loop_batch = 1
    if args.only:
        print(json.dumps(race(args.only, args.batch, args.steps)))
        return
    kinds = ["workbench", "huggingface", *(["mambapy"] if importlib.util.find_spec("mambapy") else [])]
    results = {}
    for kind in kinds:
        steps, batch = (1, args.loop_batch) if kind == "huggingface" else (args.steps, args.batch)
        command = [sys.executable, __file__, "--only", kind, "--batch", str(batch), "--steps", str(steps)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        results[kind] = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{kind:12} {results[kind]['tokens_per_second']:9,.0f} tokens/s   step memory"
            f" {results[kind]['step_mib']:7,.0f} MiB",
            flush=True,
        )
    ours = results["workbench"]
    for kind in kinds[1:]:
        speed = ours["tokens_per_second"] / results[kind]["tokens_per_second"]
        memory = (
            "" if kind == "huggingface" else f", in {ours['step_mib'] / results[kind]['step_mib']:.2f} of its memory"
        )
        print(f"workbench is {speed:.1f}x as fast as {kind}{memory}")


if __name__ == "__main__":
    main()
