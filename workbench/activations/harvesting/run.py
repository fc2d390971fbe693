"""From a recipe to a complete store: load the models, plan the tokens, fill the shards.

Any number of processes may run the same recipe on the same workspace, on one machine or several; they share the work
(see :mod:`workbench.activations.write.fill`). What exists is never made twice.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sae.changes import Change, changes, said
from sae.errors import MissingError, UsageError, UserError
from workbench.activations.format.errors import StoreMismatch
from workbench.activations.format.seal import SEAL_JSON
from workbench.activations.format.spec import STORE_JSON, Source, StoreSpec, Stream, read_spec
from workbench.activations.harvesting.recipe import HarvestRecipe, SourceRecipe
from workbench.activations.read.store import say_old_rule
from workbench.activations.write.fill import check_writable, fill, missing
from workbench.corpus import TokenContract, TokenPlan, plan_tokens
from workbench.corpus.documents import corpus_inputs, plan_digests, remember_corpus
from workbench.corpus.plan import HELDOUT_SHARE
from workbench.results.reuse import by_name, mismatch, plain
from workbench.run import QUIET, Run
from workbench.version import __version__
from workbench.workspace import Workspace

if TYPE_CHECKING:
    from workbench.corpus.look import TextLook

OnShard = Callable[[int, int], None]


def harvest(
    recipe: HarvestRecipe,
    workspace: Workspace,
    *,
    workers: int | None = None,
    plan: TokenPlan | None = None,
    run: Run = QUIET,
) -> Path:
    """Make the store of a recipe, or what is missing of it; returns its folder. A complete one of the same recipe,
    weights and text is reused as it is; another one is refused, or stays until the new one is whole (``run.replace``).

    Args:
        workers: processes to share the work (default: the recipe's).
        plan: the tokens, where they are not to come from the recipe's corpus.

    Raises:
        StoreMismatch: a store of this id was made from another recipe, other weights or other tokens. StoreBusy,
        ReadOnlyStore, OutOfSpace, NonFiniteActivation: see their messages. UsageError, MissingError: no such device.
    """
    from sae.devices import check_device

    recipe = with_ids(recipe, workspace, run)
    folder = workspace.path("stores", recipe.id)
    target = _where(workspace, recipe, run)
    if target is None:
        say_old_rule(read_spec(folder), run)
        return folder
    check_writable(target)
    check_device(recipe.device)
    command = run.command or f"workbench harvest {recipe.id}"
    with run.bar(f"harvest {recipe.id}", None, "shard") as bar:
        if (workers or recipe.workers) > 1:
            _run_workers(recipe, workspace, target, workers or recipe.workers, command, bar.reach)
        else:
            harvest_here(recipe, target, plan=plan, command=command, on_shard=bar.reach)
    if target != folder:
        workspace.take_place("stores", recipe.id)
    remember_corpus(recipe.corpus, read_spec(folder).plan.get("about", {}))
    return folder


def with_ids(recipe: HarvestRecipe, workspace: Workspace, run: Run = QUIET) -> HarvestRecipe:
    """The recipe with its model folders called by their ids: a store holds no path."""
    from workbench.models.pointers import by_id

    sources = tuple(s.model_copy(update={"model": by_id(workspace, s.model, run=run)}) for s in recipe.sources)
    return recipe.model_copy(update={"sources": sources})


def harvest_here(
    recipe: HarvestRecipe,
    folder: Path,
    *,
    plan: TokenPlan | None = None,
    slot: int = 0,
    slots: int = 1,
    command: str = "",
    on_shard: OnShard | None = None,
) -> Path:
    """Fill the store in ``folder`` in this process, as worker ``slot`` of ``slots``."""
    import torch

    from workbench.activations.harvesting.forward import ModelProducer

    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.threads)
    try:
        spec, plan, models = prepare(recipe, plan)
        producer = ModelProducer(spec, plan.tokens, models, device=recipe.device)
        fill(
            folder,
            spec,
            plan.tokens,
            producer,
            doc_ids=plan.doc_ids,
            kinds=plan.kinds,
            rows=plan.rows,
            slot=slot,
            slots=slots,
            command=command,
            on_shard=on_shard,
        )
    finally:
        torch.set_num_threads(threads)
    return folder


def prepare(recipe: HarvestRecipe, plan: TokenPlan | None = None) -> tuple[StoreSpec, TokenPlan, dict[str, Any]]:
    """Load the models of a recipe and make its token plan and store document: (spec, plan, models by source name)."""
    names = [s.source for s in recipe.sources]
    if len(set(names)) != len(names):
        raise UsageError(
            f"two sources are called {max(names, key=names.count)!r}. Give each its own name (name = '…')."
        )
    plan = plan or _plan(recipe)
    _check_plan(recipe, plan)
    models: dict[str, Any] = {}
    sources: list[Source] = []
    streams: list[Stream] = []
    for s in recipe.sources:
        models[s.source], source, found = _load(s, recipe, plan)
        sources.append(source)
        streams += [
            Stream(key=f"h{len(streams) + i:03d}", source=s.source, hook=h, at=at, width=w)
            for i, (h, at, w) in enumerate(found)
        ]
    contract = _contract(recipe, plan, models)
    excluded = recipe.exclude_ids or () if contract is None else contract.excluded_ids
    kept = np.delete(plan.tokens, list(recipe.exclude), axis=1)
    spec = StoreSpec(
        id=recipe.id,
        sources=tuple(sources),
        streams=tuple(streams),
        plan={"digest": plan.digest, "about": plan.about}
        | ({} if contract is None else {"contract": contract.model_dump(mode="json")}),
        exclude_ids=tuple(i for i in excluded if (kept == i).any()),
        row_mask=plan.rows is not None,
        n_seq=recipe.n_seq,
        ctx=recipe.ctx,
        exclude=recipe.exclude,
        seqs_per_shard=recipe.seqs_per_shard,
        batch_size=recipe.batch_size,
        dtype=recipe.dtype,
        block_rows=recipe.block_rows,
        heldout_seqs=recipe.n_seq // HELDOUT_SHARE,
        non_finite=recipe.non_finite,
        recipe=recipe.content(),
        made_by=made_by(),
    )
    return spec, plan, models


def _contract(recipe: HarvestRecipe, plan: TokenPlan, models: dict[str, Any]) -> TokenContract | None:
    """The plan's contract as this recipe and these models have it; None for tokens that came without one."""
    from workbench.models.limits import longest_context

    if plan.contract is None:
        return None
    limits = [n for model in models.values() if (n := longest_context(model)) is not None]
    changed: dict[str, Any] = {"excluded_positions": recipe.exclude, "longest": min(limits, default=None)}
    if recipe.exclude_ids is not None:
        changed["excluded_ids"] = tuple(sorted(set(recipe.exclude_ids)))
    return plan.contract.model_copy(update=changed)


def _load(s: SourceRecipe, recipe: HarvestRecipe, plan: TokenPlan) -> tuple[Any, Source, list[tuple[str, str, int]]]:
    """One source of a recipe: its model, what the store says of it, and (hook, this model's own hook, width) of its
    streams.

    Raises:
        UsageError: it names no hooks, cannot read the plan's tokens, or has fewer positions than ``ctx``.
    """
    from workbench.activations.harvesting.forward import resolve_hooks, widths
    from workbench.models import load_model
    from workbench.models.limits import check_context
    from workbench.models.weights import weights_of_files, weights_of_model

    model = _to(load_model(s.model, s.revision), recipe)
    check_context(model, recipe.ctx, s.source)
    wanted, renamed = recipe.hooks_of(s)
    if not wanted:
        raise UsageError(
            f"the recipe names no hooks for source {s.source!r}. Give hooks = ['L2R'], or under the source."
        )
    hooks = resolve_hooks(model, wanted, renamed)
    size = widths(model, int(plan.tokens[0, 0]), list(dict.fromkeys(hooks.values())))
    weights = weights_of_files(s.model, s.revision) or weights_of_model(model)
    vocab = int(getattr(model.cfg, "d_vocab", 0))
    if vocab and int(plan.tokens.max()) >= vocab:
        raise UsageError(
            f"the tokens reach id {int(plan.tokens.max())}, beyond the {vocab} of {s.model!r}. All sources of a store"
            " must share one vocabulary."
        )
    source = Source(name=s.source, model=s.model, revision=s.revision, weights=weights, about=_about(model))
    return model, source, [(hook, at, size[at]) for hook, at in hooks.items()]


def _to(model: Any, recipe: HarvestRecipe) -> Any:
    """The model where, and in the precision in which, the recipe runs it."""
    import torch

    if recipe.model_dtype != "float32":
        model = model.to(getattr(torch, recipe.model_dtype))
    return model if recipe.device == "cpu" else model.to(recipe.device)


def _plan(recipe: HarvestRecipe) -> TokenPlan:
    """The token plan by the recipe's tokenizer."""
    heldout = recipe.n_seq // HELDOUT_SHARE
    return plan_tokens(recipe.corpus, _tokenizer(recipe), n_seq=recipe.n_seq, ctx=recipe.ctx, heldout=heldout)


def _tokenizer(recipe: HarvestRecipe) -> Any:
    """The tokenizer of the first source that has one; the others must have the same vocabulary."""
    from workbench.models import load_tokenizer
    from workbench.models.load import find_folder

    tokenizers: dict[str, Any] = {}
    revisions: dict[str, str | None] = {}
    for s in recipe.sources:
        revisions.setdefault(s.model, s.revision)
    for model, revision in revisions.items():
        find_folder(model)  # a folder that does not exist is the real reason, not a missing tokenizer
        try:
            tokenizers[model] = load_tokenizer(model, revision)
        except MissingError:
            continue
    if not tokenizers:
        raise MissingError(
            f"none of the models {', '.join(s.model for s in recipe.sources)} has a tokenizer, so the corpus cannot be"
            " turned into tokens."
        )
    first, tokenizer = next(iter(tokenizers.items()))
    for model, other in tokenizers.items():
        if other.get_vocab() != tokenizer.get_vocab():
            raise UsageError(
                f"{model!r} and {first!r} have different tokenizers; all models of one store must read the same"
                " tokens. Harvest them into two stores."
            )
    return tokenizer


def look(recipe: HarvestRecipe, *, shown: int = 5, seed: int = 0) -> TextLook:
    """What the recipe's text becomes, without loading a model's weights (see :mod:`workbench.corpus.look`).

    Raises:
        UsageError: ``ctx`` is longer than a model has positions, or what the harvest itself would say of the text.
    """
    from workbench.corpus.look import look_at_text
    from workbench.models.facts import model_config
    from workbench.models.limits import check_context, longest_context

    configs = {s.source: model_config(s.model, s.revision) for s in recipe.sources}
    for name, config in configs.items():
        check_context(config, recipe.ctx, name)
    limits = [n for config in configs.values() if (n := longest_context(config)) is not None]
    return look_at_text(
        recipe.corpus,
        _tokenizer(recipe),
        n_seq=recipe.n_seq,
        ctx=recipe.ctx,
        exclude=recipe.exclude,
        exclude_ids=recipe.exclude_ids,
        longest=min(limits, default=None),
        shown=shown,
        seed=seed,
    )


def _check_plan(recipe: HarvestRecipe, plan: TokenPlan) -> None:
    if plan.tokens.shape != (recipe.n_seq, recipe.ctx):
        raise UsageError(
            f"the plan of tokens has shape {plan.tokens.shape}, the recipe n_seq = {recipe.n_seq} and ctx ="
            f" {recipe.ctx}. Cut it with the recipe's numbers."
        )


def _about(model: Any) -> dict[str, Any]:
    import torch

    cfg = model.cfg
    kept = {
        k: getattr(cfg, k)
        for k in ("architecture", "n_layers", "d_model", "d_vocab")
        if isinstance(getattr(cfg, k, None), (int, str))
    }
    from workbench.models.sites import write_shapes

    heads = {hook: heads for hook, (heads, _) in write_shapes(model).items()}
    return {
        **kept,
        **({"write_heads": heads} if heads else {}),
        "compute_dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "device": torch.device(next(model.parameters()).device).type,
    }


def made_by() -> dict[str, str]:
    """Versions on which the bytes of a shard may depend."""
    import h5py
    import torch

    out = {
        "workbench": __version__,
        "h5py": h5py.__version__,
        "hdf5": h5py.version.hdf5_version,
        "numpy": np.__version__,
        "torch": torch.__version__,
    }
    for name in ("transformers", "transformer-lens"):
        from importlib.metadata import version

        out[name] = version(name)
    return out


def _where(workspace: Workspace, recipe: HarvestRecipe, run: Run) -> Path | None:
    """Where the store of a recipe is filled; None where it is there already.

    Raises:
        StoreMismatch: one exists that was made from something else, and the run does not say ``replace``.
    """
    folder, anew = workspace.new_path("stores", recipe.id), workspace.next_path("stores", recipe.id)
    complete = workspace.complete("stores", recipe.id)
    if not complete and (not run.replace or not (folder / STORE_JSON).exists()):
        return folder  # an interrupted harvest goes on; one by another plan is refused there
    stored = read_spec(folder)
    found = _differences(stored, recipe)
    if complete and not found:
        made = stored.made_by.get("workbench", __version__)
        run.say(f"{recipe.id}: complete, {'' if made == __version__ else f'made by version {made}, '}reused")
        return None
    if not complete and not found and stored.made_by == made_by():
        return folder
    if not run.replace:
        raise StoreMismatch(str(mismatch(f"store {recipe.id!r}", found, "or give the recipe another id")), found)
    run.say(f"{recipe.id}: harvested anew ({said(found) or 'with other libraries'})")
    if (anew / STORE_JSON).exists():
        other = read_spec(anew)
        if _differences(other, recipe) or other.made_by != made_by() or (anew / SEAL_JSON).exists():
            shutil.rmtree(anew)  # an interrupted replacement by something else
    return anew


def _differences(stored: StoreSpec, recipe: HarvestRecipe) -> list[Change]:
    """In what a store is not what a recipe asks for: the recipe, the weights of its models, the text of its files."""
    from workbench.models.weights import weights_of_files

    found = changes(by_name(plain(stored.recipe)), plain(recipe.content()))
    if found:
        return found
    for have, s in zip(stored.sources, recipe.sources, strict=True):
        weights = weights_of_files(s.model, s.revision)
        if weights is not None and weights != have.weights:
            found.append(Change(f"weights of {s.source}", have.weights[:12], weights[:12]))
    texts = plan_digests(stored.plan.get("about", {}))
    now = corpus_inputs(recipe.corpus) if texts else []
    gone = ", ".join(sorted(t[:12] for t in texts if t not in {i.digest for i in now}))
    return found + [Change(f"text of {i.id}", gone, i.digest[:12]) for i in now if i.digest not in texts]


def _run_workers(
    recipe: HarvestRecipe, workspace: Workspace, folder: Path, n: int, command: str, on_shard: OnShard
) -> None:
    """Run ``n`` worker processes to the end, telling how many shards there are meanwhile; on Ctrl-C they are stopped
    too.
    """
    program = [sys.executable, "-m", "workbench.activations.harvesting.worker"]
    logs = [tempfile.TemporaryFile() for _ in range(n)]  # noqa: SIM115 (read after the workers end)
    processes = []
    try:
        for slot in range(n):
            p = subprocess.Popen(
                [*program, str(workspace.root), str(folder), str(slot), str(n), command],
                stdin=subprocess.PIPE,
                stderr=logs[slot],
                stdout=logs[slot],
            )
            processes.append(p)
            assert p.stdin is not None
            p.stdin.write(json.dumps(recipe.model_dump()).encode())  # as JSON a recipe holds names, not places
            p.stdin.close()
        while any(p.poll() is None for p in processes):
            if any(p.poll() for p in processes):
                break
            time.sleep(0.2)
            if (folder / "shards").is_dir() and (folder / "store.json").exists():
                spec = read_spec(folder)
                on_shard(spec.n_shards - len(missing(folder, spec)), spec.n_shards)
    finally:
        for p in processes:
            if p.poll() is None:
                p.terminate()
        for p in processes:
            p.wait()
    for slot, p in enumerate(processes):
        if p.returncode:
            logs[slot].seek(0)
            raise UserError(f"harvest worker {slot + 1} of {n} failed: {_last_line(logs[slot].read())}")


def _last_line(output: bytes) -> str:
    lines = [line for line in output.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else "it was killed. Run the same command again to go on."
