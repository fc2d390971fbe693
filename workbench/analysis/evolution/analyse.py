"""The analyses of ``workbench evolve``, one after another, each writing its files into the folder being built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from crosscoders import Crosscoder, evaluate_sources
from crosscoders import evolution as ev
from crosscoders.scaling import Scaling
from sae import TopKSAE
from sae.errors import UsageError
from sae.files import write_json
from workbench.analysis.circuits.tasks import PromptSet, make_prompts, read_task
from workbench.analysis.evolution import architectures, orders
from workbench.analysis.evolution.attribution import attribute
from workbench.analysis.evolution.baselines import measure_gaps
from workbench.analysis.evolution.diffing import measure_scaling
from workbench.analysis.evolution.emergence import emergence_table
from workbench.analysis.evolution.ngrams import Phase, count_ngrams
from workbench.analysis.evolution.own_codes import own_codes
from workbench.analysis.evolution.phases import language_phases, latent_phases, task_accuracies
from workbench.analysis.evolution.rows import to_csr
from workbench.analysis.evolution.scrubber import choose_windows, scrub
from workbench.analysis.evolution.snapshots import OnlineBatches, Snapshots, in_training_order
from workbench.analysis.evolution.source_losses import source_losses
from workbench.analysis.evolution.taxonomy import RepeatMeans, repeat_tokens, taxonomy
from workbench.analysis.evolution.write_diff import write_diff
from workbench.corpus import CorpusConfig, plan_tokens
from workbench.corpus.shown import displayed_vocab
from workbench.results.lines import lines_of
from workbench.run import Run

if TYPE_CHECKING:
    from workbench.analysis.evolution.plan import EvolutionPlan
    from workbench.analysis.evolution.recipe import EvolveRecipe
    from workbench.results.evolution import Evolution

CACHE_BYTES = 600 * 2**20
PROBE_LENGTH, PROBE_SEQUENCES = 24, 48
# columns of the table of latents that suppose the snapshots of one training, in order
IN_ONE_TRAINING = ("class", "first_relative", "emergence", "peak", "decay", "lifespan", "cos_", "turning", "projection")


@dataclass
class HeldOut:
    """Held-out sequences: tokens [n_seq, ctx], their rows on demand, and the crosscoder's codes of every row; tokens
    that are no data have none.
    """

    tokens: np.ndarray
    rows: OnlineBatches
    codes: sparse.csr_array

    def batches(self, sequences: int = 16) -> Iterator[torch.Tensor]:
        """Raw rows that are data, a few sequences at a time, in order."""
        for x, is_row in self._pieces(sequences):
            yield x[torch.from_numpy(is_row)]

    def _pieces(self, sequences: int) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
        for at in range(0, len(self.tokens), sequences):
            chosen = np.arange(at, min(at + sequences, len(self.tokens)))
            yield self.rows.rows_of(chosen), self.rows.is_row[chosen].reshape(-1)

    def encode(self, cc: Crosscoder, run: Run) -> sparse.csr_array:
        """Codes [n_seq * (ctx - 1), F]; those of tokens that are no data are empty."""
        parts = []
        for x, is_row in run.each(self._pieces(16), "held-out text", -(-len(self.tokens) // 16), "batch"):
            values, indices = cc.encode_sparse(x)
            parts.append(to_csr(values * torch.from_numpy(is_row)[:, None], indices, cc.d_sae))
        return sparse.csr_array(sparse.vstack(parts))


def held_out(
    cc: Crosscoder,
    snapshots: Snapshots,
    tokens: np.ndarray,
    run: Run,
    *,
    excluded: tuple[int, ...] = (),
    marked: np.ndarray | None = None,
) -> HeldOut:
    """Run all snapshots on the held-out tokens once; rows are kept where they fit into memory."""
    fits = tokens.size * cc.d_in * 2 <= CACHE_BYTES
    rows = OnlineBatches(snapshots, tokens, 1, seed=0, cache=fits, excluded=excluded, marked=marked)
    out = HeldOut(tokens, rows, sparse.csr_array((0, cc.d_sae)))
    out.codes = out.encode(cc, run)
    return out


@torch.no_grad()
def repeat_means(cc: Crosscoder, snapshots: Snapshots, unigram: np.ndarray, bos: int, *, seed: int) -> RepeatMeans:
    """How every latent responds to random tokens repeated twice, and to the second copy alone (see
    :mod:`workbench.analysis.evolution.taxonomy`).
    """
    sides = repeat_tokens(unigram, n=PROBE_SEQUENCES, length=PROBE_LENGTH, bos=bos, seed=seed)
    f = []
    for side in sides:
        batches = OnlineBatches(snapshots, side, 1, seed=0)
        codes = to_csr(*cc.encode_sparse(batches.rows_of(np.arange(len(side)))), cc.d_sae)
        f.append(codes.toarray().reshape(len(side), 2 * PROBE_LENGTH, cc.d_sae))
    L = PROBE_LENGTH
    second = f[0][:, L + 1 :]  # the first token of the second copy cannot be foreseen
    rate = (second > 0).mean((0, 1))
    return RepeatMeans(
        f[0][:, 1:L].mean((0, 1)), second.mean((0, 1)), f[1][:, L + 1 :].mean((0, 1)), rate.astype(np.float32)
    )


def latent_table(
    recipe: EvolveRecipe,
    cc: Crosscoder,
    snapshots: Snapshots,
    held: HeldOut,
    scaling: Scaling,
    steps: np.ndarray,
    unigram: np.ndarray,
    bos: int,
) -> pd.DataFrame:
    """Emergence, norm-free emergence and taxonomy of every latent."""
    norms, blocks = cc.decoder_norms().numpy(), [b.numpy() for b in cc.decoder_blocks()]
    equal = recipe.common_basis and len(set(cc.widths)) == 1
    table = emergence_table(
        norms,
        steps.tolist(),
        cosines_FSS=ev.cosine_matrices(blocks) if equal else None,
        projections_SF=ev.projections(blocks) if equal else None,
        raw_norms_SF=cc.decoder_norms(raw=True).numpy(),
        n_fired=np.bincount(held.codes.indices, minlength=cc.d_sae),
    )
    free = np.nan_to_num(scaling.own_norms.numpy())
    index = ev.first_above(ev.relative_norms(free), 0.5)
    table["emergence_free_index"] = index
    table["emergence_free_step"] = pd.Series(np.where(index >= 0, steps[np.maximum(index, 0)], 0), dtype="Int64").mask(
        index < 0
    )
    n_seq, ctx = held.tokens.shape
    seq, pos = np.divmod(np.arange(n_seq * (ctx - 1)), ctx - 1)
    repeats = repeat_means(cc, snapshots, unigram, bos, seed=recipe.seed)
    kinds = taxonomy(held.codes, held.tokens, seq, pos + 1, len(unigram), repeats=repeats)
    return pd.concat([table, kinds.rename(columns={"class": "kind"}).drop(columns=["latent", "n_fired"])], axis=1)


def prompt_sets(recipe: EvolveRecipe, vocab: int, tokenizer: Any, run: Run) -> list[PromptSet]:
    """The recipe's tasks as prompts; a task this tokenizer cannot express is left out, with its reason."""
    out = []
    for name in recipe.tasks if recipe.prompts else ():
        try:
            out.append(
                make_prompts(
                    read_task(name),
                    recipe.prompts,
                    vocab_size=vocab,
                    tokenizer=tokenizer,
                    seed=recipe.seed,
                    length=recipe.prompt_length,
                )
            )
        except UsageError as e:
            run.say(f"task {name} is left out: {e}")
    return out


def analyse(
    plan: EvolutionPlan,
    cc: Crosscoder,
    folder: Path,
    *,
    tracked: dict[str, list[Path]],
    beside: dict[str, Evolution],
    run: Run,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Everything the evolution folder holds. Returns (numbers, metadata) for its manifest."""
    recipe, snapshots, tokenizer = plan.recipe, plan.snapshots, plan.tokenizer
    vocab = len(tokenizer)
    ordered = in_training_order(snapshots)
    equal = recipe.common_basis and len(set(cc.widths)) == 1
    lines = lines_of(snapshots.sources)
    in_steps = ordered or bool(lines)
    steps = np.array([s.step if in_steps else i for i, s in enumerate(snapshots.sources)], dtype=np.int64)
    text_plan = plan_tokens(
        recipe.corpus.model_copy(update={"split": "heldout"}), tokenizer, n_seq=recipe.heldout_seqs, ctx=recipe.ctx
    )
    grams = count_ngrams(_text(recipe.corpus, tokenizer, recipe.ngram_seqs, recipe.ctx), vocab)
    assert text_plan.contract is not None
    held = held_out(
        cc,
        snapshots,
        text_plan.tokens,
        run,
        excluded=text_plan.contract.excluded_ids,
        marked=text_plan.rows,
    )
    evaluation = evaluate_sources(cc, held.batches())
    norms_SF = cc.decoder_norms().numpy()
    reference = torch.from_numpy(np.maximum(ev.peak(ev.relative_norms(norms_SF)), 0)) if equal else None
    scaling = measure_scaling(cc, held.batches(), reference=reference)
    bos = int(text_plan.tokens[0, 0])
    table = latent_table(recipe, cc, snapshots, held, scaling, steps, grams.unigram, bos)
    if lines:  # one order of all sources is no time
        table = table.drop(columns=[c for c in table if c.startswith(IN_ONE_TRAINING)])
    alive = table["alive"].to_numpy()
    cosines = ev.cosine_matrices([b.numpy() for b in cc.decoder_blocks()]) if equal else None

    np.save(folder / "steps.npy", steps)
    np.save(folder / "decnorm.npy", np.ascontiguousarray(norms_SF.T))
    np.save(folder / "decnorm_raw.npy", np.ascontiguousarray(cc.decoder_norms(raw=True).numpy().T))
    np.save(folder / "decnorm_free.npy", np.ascontiguousarray(scaling.own_norms.numpy().T))
    if cosines is not None:
        np.save(folder / "cosine.npy", cosines.astype(np.float16))

    text = text_plan.tokens[text_plan.kinds == 0]
    prompts = prompt_sets(recipe, vocab, tokenizer, run)
    phases = _known_language(beside, snapshots, text_plan.digest, recipe)
    if phases is None:
        phases = language_phases(snapshots, grams, text, run=run)
    phases = pd.concat(
        [
            phases,
            task_accuracies(snapshots, prompts),
            latent_phases([b.numpy() for b in cc.decoder_blocks()], cosines, alive),
        ],
        axis=1,
    )
    phases.insert(1, "step", steps)
    phases["ev"] = evaluation.ev_S
    if recipe.loss_seqs:
        phases = phases.merge(
            _losses(recipe, cc, snapshots, held, steps, folder, run), on="source", how="left", validate="1:1"
        )
    claims: list[dict[str, Any]] = []
    diff: dict[str, Any] = {}
    about: dict[str, Any] = {}
    if ordered:
        pooled_SF, pooled = _pooled(norms_SF, table, recipe.site, beside)
        claims += orders.class_orders(pooled_SF, pooled, n=recipe.permutations, seed=recipe.seed)
        claims += orders.latent_claims(norms_SF, table, n=recipe.permutations, seed=recipe.seed)
        claims += orders.phase_claims(phases, cosines, alive, seed=recipe.seed)
    elif lines:
        claims += _architectures(recipe, cc, held, norms_SF, lines, table, folder, run)
        models = [{"model": line.model, "hook": line.hook, "sources": line.sources} for line in lines]
        about["architectures"] = [m | {"steps": line.steps} for m, line in zip(models, lines, strict=True)]
    elif len(snapshots) == 2:
        diff, found = write_diff(cc, held.batches(), folder, common_basis=equal)
        claims += found
    claims += _attribution(recipe, cc, snapshots, prompts, phases, table, folder, run)
    gaps = {
        kind: measure_gaps(cc, [TopKSAE.load(p) for p in paths], [s.name for s in snapshots.sources], held.batches(4))
        for kind, paths in tracked.items()
    }
    if gaps:
        tables = [g.table.assign(step=steps, baseline=kind) for kind, g in gaps.items()]
        pd.concat(tables, ignore_index=True).to_parquet(folder / "baseline.parquet", index=False)
        claims += orders.gap_claims(gaps["alone"], cosines, alive)
    statistics = orders.statistics_table(claims)

    table.to_parquet(folder / "latents.parquet", index=False)
    phases.to_parquet(folder / "phases.parquet", index=False)
    statistics.to_parquet(folder / "statistics.parquet", index=False)
    if recipe.contexts:
        _write_scrubber(recipe, cc, held, folder)
    write_json(folder / "vocab.json", displayed_vocab(tokenizer, vocab))
    numbers = {
        "n_heldout": evaluation.n,
        "explained_variance": [round(v, 4) for v in evaluation.ev_S],
        "l0": round(evaluation.l0, 3),
        "alive": int(alive.sum()),
        **{c: int((alive & (table["class"] == c)).sum()) for c in ("initialisation", "emergent") if "class" in table},
        "kinds": {str(k): int(v) for k, v in table["kind"].value_counts().items()},
        "found": int((statistics["verdict"] == "found").sum()),
        "claims": len(statistics),
    }
    if recipe.loss_seqs:
        numbers |= {
            "delta_loss": [round(v, 4) for v in phases["delta_ce"]],
            "n_loss_sequences": min(recipe.loss_seqs, len(held.tokens)),
        }
    numbers |= diff
    return numbers, about | {
        "tasks": [p.task for p in prompts],
        "steps": steps.tolist(),
        "n_unigram_tokens": grams.n_tokens,
        "plan": text_plan.digest,
    }


def _architectures(
    recipe: EvolveRecipe,
    cc: Crosscoder,
    held: HeldOut,
    norms_SF: np.ndarray,
    lines: list[architectures.Line],
    table: pd.DataFrame,
    folder: Path,
    run: Run,
) -> list[dict[str, Any]]:
    """Each latent's curve over the training of every model, written out; the claims about which comes first where."""
    run.say("own firings of every source")
    own = own_codes(cc, held.batches(), architectures.last_of_others(lines, len(cc.widths)))
    np.save(folder / "own_agreement.npy", np.ascontiguousarray(own.agreement.T))
    np.save(folder / "own_explained.npy", np.ascontiguousarray(own.explained.T))
    frame = architectures.architecture_table(own, norms_SF, lines, table)
    frame.to_parquet(folder / "architectures.parquet", index=False)
    return architectures.architecture_claims(own, norms_SF, lines, table, n=recipe.permutations, seed=recipe.seed)


def _known_language(
    beside: dict[str, Evolution], snapshots: Snapshots, plan: str, recipe: EvolveRecipe
) -> pd.DataFrame | None:
    """What a run beside this one found out about the same models on the same text, or None."""
    for other in beside.values():
        about = other.metadata
        same = about.get("revisions") == [s.revision for s in snapshots.sources] and about.get("model") == recipe.model
        if (
            same
            and about.get("plan") == plan
            and other.manifest.recipe.get("ngram_seqs") == recipe.ngram_seqs
            and other.phases is not None
        ):
            return other.phases[["source", *(f.name for f in fields(Phase)), "h1", "h2"]].copy()
    return None


def _pooled(
    norms_SF: np.ndarray, table: pd.DataFrame, site: str, beside: dict[str, Evolution]
) -> tuple[np.ndarray, pd.DataFrame]:
    """Norms [S, all latents] and kinds of this crosscoder's latents and those of other sites: a kind of latent may live
    elsewhere.
    """
    columns = ["kind", "alive", "emergence_0.5_index"]
    norms, tables = [norms_SF], [table[columns].assign(site=site)]
    for other in beside.values():
        latents = other.table["latent"].to_numpy()
        there = other.norms(latents)
        assert there is not None
        norms.append(there.T)
        tables.append(other.table[columns].assign(site=other.metadata["site"]))
    return np.concatenate(norms, axis=1), pd.concat(tables, ignore_index=True)


def _losses(
    recipe: EvolveRecipe,
    cc: Crosscoder,
    snapshots: Snapshots,
    held: HeldOut,
    steps: np.ndarray,
    folder: Path,
    run: Run,
) -> pd.DataFrame:
    """The loss of every source with its reconstruction in place, written out; the columns that the table of phases
    takes over.
    """
    chosen = slice(recipe.loss_seqs)
    table = source_losses(
        cc,
        snapshots,
        held.rows.rows_of,
        held.tokens[chosen],
        is_row=np.pad(held.rows.is_row, ((0, 0), (1, 0)))[chosen],
        seed=recipe.seed,
        run=run,
    )
    table.insert(1, "step", table["source"].map(dict(zip((s.name for s in snapshots.sources), steps, strict=True))))
    table.to_parquet(folder / "losses.parquet", index=False)
    wide = table.pivot(index="source", columns="metric", values="value")
    return wide[["delta_ce", "ce_recovered_zero", "ce_recovered_mean"]].reset_index()


def _attribution(
    recipe: EvolveRecipe,
    cc: Crosscoder,
    snapshots: Snapshots,
    prompts: list[PromptSet],
    phases: pd.DataFrame,
    table: pd.DataFrame,
    folder: Path,
    run: Run,
) -> list[dict[str, Any]]:
    """Curves of every task at its solved snapshots, written out; the claims that rest on them."""
    if recipe.attribution == "none" or not prompts:
        return []
    curves, latents = [], []
    for p in prompts:
        accuracy = phases[f"accuracy_{p.task}"].to_numpy()
        at = (
            list(range(len(accuracy)))
            if recipe.attribution == "all"
            else [i for i in range(len(accuracy)) if accuracy[i] >= 0.8]
        )
        if not at:
            continue
        done = attribute(
            cc,
            snapshots,
            p,
            at=at,
            draws=recipe.draws,
            seed=recipe.seed,
            run=run,
        )
        curves.append(done.curves.assign(task=p.task))
        latents.append(done.latents.assign(task=p.task))
    if not curves:
        return []
    step_of = dict(zip(phases["source"], phases["step"], strict=True))
    found = pd.concat(curves, ignore_index=True), pd.concat(latents, ignore_index=True)
    for name, frame in zip(("attribution", "attribution_latents"), found, strict=True):
        frame["step"] = frame["source"].map(step_of)
        frame.to_parquet(folder / f"{name}.parquet", index=False)
    claims = orders.curve_claims(found[0])
    return claims + orders.skill_claims(phases, table, found[1]) if in_training_order(snapshots) else claims


def _write_scrubber(recipe: EvolveRecipe, cc: Crosscoder, held: HeldOut, folder: Path) -> None:
    windows = choose_windows(held.codes, held.tokens.shape[1], contexts=recipe.contexts)
    made = scrub(cc, held.rows.rows_of, held.tokens, held.codes, windows, is_row=held.rows.is_row)
    (folder / "act_ck").mkdir()
    np.save(folder / "act_ck" / "tokens.npy", made.tokens)
    np.save(folder / "act_ck" / "peak.npy", windows.peak.astype(np.int16))
    np.save(folder / "act_ck" / "where.npy", np.stack([windows.seq, windows.start], axis=-1).astype(np.int32))
    np.save(folder / "act_ck" / "acts.npy", made.acts)
    np.save(folder / "act_ck" / "code.npy", made.code)
    np.save(folder / "act_ck" / "top.npy", made.top)


def _text(corpus: CorpusConfig, tokenizer: Any, n_seq: int, ctx: int) -> np.ndarray:
    """Tokens of plain training text only: the corpus whose n-grams a model is held against."""
    only = corpus.model_copy(
        update={"split": "train", "tiled_share": 0.0, "snippet_share": 0.0, "agreement_share": 0.0}
    )
    return plan_tokens(only, tokenizer, n_seq=n_seq, ctx=ctx).tokens
