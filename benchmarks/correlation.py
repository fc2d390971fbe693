"""The correlation engine at full size: 24,576 x 24,576 latents, 32 active on either side, a million tokens.

    python benchmarks/correlation.py                    # the full size: about 2 GiB and under a minute on two cores
    python benchmarks/correlation.py --quick            # a tenth of the tokens, for `make bench`

Prints seconds and peak memory beside what a dense product would take at this machine's own matrix-multiply speed, and
the time for all layer pairs of two four-layer models. Ends with status 1 where a target is missed at full size.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def made_up_codes(n_tokens: int, n_latents: int, k: int, seed: int) -> sp.csr_array:
    """k draws per token with lognormally spread densities, like a trained dictionary's."""
    rng = np.random.default_rng(seed)
    weight = rng.lognormal(0, 1, n_latents)
    edges = np.cumsum(weight / weight.sum())
    ids = np.searchsorted(edges, rng.random((n_tokens, k), dtype=np.float32)).clip(0, n_latents - 1).astype(np.int32)
    ids.sort(axis=1)
    values = rng.lognormal(0, 0.5, (n_tokens, k)).astype(np.float32)
    x = sp.csr_array(
        (values.ravel(), ids.ravel(), np.arange(0, n_tokens * k + 1, k, dtype=np.int32)), shape=(n_tokens, n_latents)
    )
    x.sum_duplicates()
    return x


def matmul_speed() -> float:
    """Best of three float32 matrix products, in operations per second."""
    import torch

    x = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        x @ x
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times)


def main() -> int:
    """Run, print, compare with the targets."""
    from workbench.analysis.comparison.depth import match_layers
    from workbench.analysis.correlation import max_pairwise_correlation

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--latents", type=int, default=24_576)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--quick", action="store_true", help="a tenth of the tokens")
    o = parser.parse_args()
    if o.quick:
        o.tokens //= 10

    a, b = (made_up_codes(o.tokens, o.latents, o.k, s) for s in (0, 1))
    start = time.perf_counter()
    max_pairwise_correlation(a, b, workers=o.workers)
    seconds = time.perf_counter() - start
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    speed = matmul_speed()
    dense = 2 * o.tokens * o.latents**2 / speed
    print(
        f"sparse   {o.latents:,} x {o.latents:,}, k {o.k}, {o.tokens:,} tokens: {seconds:.1f} s, peak {gib:.2f} GiB"
        " (both directions, second best, co-firings)"
    )
    print(
        f"dense    the same product at this machine's {speed / 1e9:.0f} GFLOP/s in float32: {dense / 3600:.1f} h"
        f" ({dense / seconds:,.0f} times as long)"
    )
    del a, b

    sides = [{layer: made_up_codes(100_000, 1024, 32, 10 * s + layer) for layer in range(4)} for s in (0, 1)]
    start = time.perf_counter()
    match_layers(*sides, workers=o.workers)
    layers = time.perf_counter() - start
    print(f"layers   4 x 4 pairs of 1,024 latents, k 32, 100,000 tokens: {layers:.1f} s")
    full = o.tokens >= 1_000_000 and o.latents >= 24_576
    missed = [
        name
        for name, bad in (("60 s", seconds > 60), ("4 GiB", gib > 4), ("30 s for the layers", layers > 30))
        if full and bad
    ]
    print("targets  " + (f"missed: {', '.join(missed)}" if missed else "met" if full else "apply to the full size"))
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
