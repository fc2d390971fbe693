"""A crosscoder over two snapshots of one model, trained from Python: which latents does training add?

python examples/own_crosscoder.py
"""

import torch

from crosscoders import Crosscoder, CrosscoderConfig
from sae import train
from workbench import load_model
from workbench.corpus import CorpusConfig, plan_tokens
from workbench.models import load_tokenizer

HOOK = "blocks.2.hook_resid_post"
SNAPSHOTS = ("step512", "step9000")

plan = plan_tokens(CorpusConfig(), load_tokenizer("mini-pythia"), n_seq=96, ctx=128)
sides = []
for revision in SNAPSHOTS:
    model = load_model("mini-pythia", revision=revision)
    with torch.no_grad():
        _, cache = model.run_with_cache(torch.from_numpy(plan.tokens).long(), names_filter=[HOOK])
    sides.append(cache[HOOK][:, 1:].flatten(0, 1))
x = torch.cat(sides, dim=1)  # rows of both snapshots side by side: [tokens, D_1 + D_2]

generator = torch.Generator().manual_seed(0)
batches = (x[torch.randint(len(x), (512,), generator=generator)] for _ in range(150))
config = CrosscoderConfig(widths=[s.shape[1] for s in sides], sources=SNAPSHOTS, d_sae=512, k=16)
crosscoder = train(config, batches, total_steps=150)
assert isinstance(crosscoder, Crosscoder)

norms = crosscoder.decoder_norms()  # [sources, d_sae], in training scale
share = norms[1] / norms.sum(0).clamp_min(1e-9)  # 0: only the early snapshot, 1: only the late one
fires = crosscoder.encode(x).gt(0).any(0)
for low, high, name in ((0, 0.2, "only early"), (0.2, 0.8, "in both"), (0.8, 1.01, "only late")):
    print(f"{name}: {int(((share >= low) & (share < high) & fires).sum())} of {int(fires.sum())} latents that fire")
