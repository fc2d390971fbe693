"""Three findings about training, read off SAEs of single snapshots that are chained by what they share given the token:
see :mod:`workbench.analysis.evolution.chains` and ``findings.py``.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from crosscoders.evolution import turning_point
from sae import TopKSAE
from workbench.analysis.comparison.given_token import TokenCells, TokenConditionalSide
from workbench.analysis.evolution.baselines import track
from workbench.analysis.evolution.chains import chains, kinship
from workbench.analysis.evolution.phases import end_of_ngram_phase
from workbench.analysis.evolution.plan import make_plan
from workbench.analysis.evolution.rows import to_csr
from workbench.claims.base import Finding, Measured, untestable
from workbench.claims.evolution.probe import held_rows
from workbench.claims.evolution.two_groups import dip
from workbench.claims.lab import Lab

FIRINGS = 30  # on the held-out text, for a latent to take part
LEAST = 30  # latents another seed must know


def sides_of(lab: Lab, seed: int) -> tuple[list[TokenConditionalSide], list[TokenConditionalSide]]:
    """The codes of one seed's SAEs on held-out text, a side per snapshot; and the same with rows exchanged among rows
    of the same token.
    """
    evolution, run = lab.evolution(seed), lab.run("evolve", "single SAEs")
    ids = track(make_plan(lab.evolution_recipe(seed)), lab.workspace, kinds=("alone",), run=run)["alone"]
    rows, tokens = held_rows(lab, evolution)
    cells = TokenCells.of(tokens.reshape(-1), np.repeat(np.arange(len(tokens)), tokens.shape[1]))
    exchanged = cells.rows[cells.exchanged(np.random.default_rng(seed))]
    sides: list[TokenConditionalSide] = []
    strangers: list[TokenConditionalSide] = []
    at = 0
    for id in ids:
        sae = TopKSAE.load(lab.workspace.path("dictionaries", id))
        parts = [to_csr(*sae.encode_sparse(x[:, at : at + sae.d_in]), sae.d_sae) for x in rows]
        codes, at = sparse.csr_array(sparse.vstack(parts)), at + sae.d_in
        sides.append(TokenConditionalSide(codes[cells.rows], cells, id, FIRINGS))
        strangers.append(TokenConditionalSide(codes[exchanged], cells, id, FIRINGS))
    return sides, strangers


def chained(lab: Lab, *, by_chain: bool) -> tuple[dict[str, Finding], str]:
    """(the findings that can be asked of chains, how many latents they rest on); every seed's latents are followed
    through the next seed's SAEs, from partner to partner (``by_chain``) or to the best partner of each snapshot, which
    cannot lose its way and may be another latent every time.

    Every seed stands in two pairs, so intervals are narrow. Emergence is the share of the last snapshot's latents, its
    control that of the first's: two populations, each as far as another seed knows it.
    """
    if lab.seeds < 3:  # of two, each pair would be the other one again
        return {}, "chains need three seeds"
    every = {seed: sides_of(lab, seed) for seed in lab.each_seed()}
    found: dict[str, list[tuple[float, float]]] = {
        "emergent-latents": [],
        "initialisation-dip": [],
        "turning-point": [],
    }
    known = []
    for seed in every:
        ours, (theirs, strangers) = every[seed][0], every[(seed + 1) % len(every)]
        back = chains(ours[-1], theirs, strangers, backwards=True)
        forth = chains(ours[0], theirs, strangers, backwards=False)
        few = min(int(back.known.sum()), int(forth.known.sum()))
        if few < LEAST:
            why = untestable(f"another seed knows {few} latents; {LEAST} are needed")
            return dict.fromkeys(found, why), f"seed {seed}: another seed knows {few} latents"
        found["emergent-latents"].append((back.absent(0, chained=by_chain), forth.absent(-1, chained=by_chain)))
        found["initialisation-dip"].append(dip(forth.relative(chained=by_chain), seed=seed))
        phases = lab.evolution(seed).phases
        end, middle = end_of_ngram_phase(phases["kl_to_bigram"]), len(phases) // 2
        turn = turning_point(kinship(ours, theirs)).index
        found["turning-point"].append((abs(float(turn) - end), float(abs(middle - end))))
        known.append(
            f"seed {seed}: {back.known.sum()} of {len(back.known)} latents of the last snapshot are known to another"
            f" seed, {forth.known.sum()} of {len(forth.known)} of the first; turning point {turn}, n-gram phase ends at"
            f" {end}"
        )
    findings = {
        name: Finding(*(Measured.of([pair[i] for pair in pairs]) for i in (0, 1))) for name, pairs in found.items()
    }
    return findings, "; ".join(known)
