"""Train a Top-K SAE on a model's activations, without a store: model, rows, dictionary, explained variance.

python examples/train_an_sae.py [FOLDER]      # the dictionary goes to FOLDER (default: my-sae)
"""

import sys

import torch

import sae
from workbench import load_model
from workbench.corpus import CorpusConfig, plan_tokens
from workbench.models import load_tokenizer

HOOK = "blocks.1.hook_resid_post"

model = load_model("mini-mamba")  # also "EleutherAI/pythia-160m", a local folder, …
plan = plan_tokens(CorpusConfig(), load_tokenizer("mini-mamba"), n_seq=128, ctx=128)
rows = []
with torch.no_grad():
    for tokens in torch.from_numpy(plan.tokens).long().split(32):
        _, cache = model.run_with_cache(tokens, names_filter=[HOOK])
        rows.append(cache[HOOK][:, 1:].flatten(0, 1))  # position 0 is BOS, the same for every text
x = torch.cat(rows)

# batches can be any iterable of [B, d_in] tensors of raw activations
generator = torch.Generator().manual_seed(0)
batches = (x[torch.randint(len(x), (1024,), generator=generator)] for _ in range(200))
config = sae.SAEConfig(d_in=x.shape[1], d_sae=1024, k=16)
dictionary = sae.train(config, batches, total_steps=200)

error = (x - dictionary(x)).square().sum() / (x - x.mean(0)).square().sum()
print(f"explained variance {1 - error:.3f} with {dictionary.k} of {dictionary.d_sae} latents per token")
print(dictionary.save(sys.argv[1] if len(sys.argv) > 1 else "my-sae"))  # loads in SAELens as it is
