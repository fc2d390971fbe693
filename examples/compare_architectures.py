"""Are a Transformer and a Mamba alike inside? Match their latents on the same tokens, and export the figure.

    python examples/compare_architectures.py [WORKSPACE]      # complete results there are reused

A small run, from recipes made here; `workbench demo` and the bundled recipes do the same at a size worth reading.
"""

import sys

import workbench
from workbench.activations import HarvestRecipe
from workbench.dictionaries.recipe import TrainRecipe

home = workbench.Workspace(sys.argv[1] if len(sys.argv) > 1 else "workspace")
store = HarvestRecipe(
    id="small", sources=[{"model": "mini-pythia"}, {"model": "mini-mamba"}], hooks=["L1R"], n_seq=192, ctx=128
)
workbench.harvest(home, store)  # activations of both models on the same tokens
for item in workbench.train(home, TrainRecipe(store="small", expansions=(4,), tokens=100_000)).all:
    numbers = item.manifest.numbers
    print(f"{item.id}: explained variance {numbers['explained_variance']:.3f}, n = {numbers['n_heldout']:,}")

matches = workbench.compare(home, ("mini-pythia", "mini-mamba"), tokens=10_000, baselines="shuffle")
cross = matches.manifest.numbers["ab"]["series"]["cross"]
chance = matches.manifest.numbers["ab"]["series"]["shuffle"]
print(f"mean r {cross['mean']:.3f} against {chance['mean']:.3f} by chance (n = {cross['n']:,} latents)")

figure = workbench.export(home, "mppc-distribution", source=f"matches/{matches.id}")
print(f"PDF, SVG, CSV, LaTeX and provenance: {figure.path}")
