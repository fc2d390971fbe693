"""The bench a claim works at: one workspace, a few seeds, and the expensive steps that claims share, each made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sae.errors import MissingError, UsageError
from sae.strict import nearest
from workbench.run import Run, command_of
from workbench.workspace import Item, Workspace

if TYPE_CHECKING:
    from torch import Tensor

    from sae import SAE
    from sae.config import TrainingConfig
    from workbench.activations import ActivationStore
    from workbench.analysis.evolution.recipe import EvolveRecipe
    from workbench.results.matches import MatchRecords
    from workbench.results.transplants import TransplantRecords

SITE = "blocks.1.hook_resid_post"  # where the dictionary experiments run: the middle of the Transformer
SOURCE = "mini-pythia"
VARIANT_TOKENS_PER_MINUTE = (
    600_000  # pre-training of a miniature model, per core: 9,700 (Mamba) to 11,600 tokens per second of CPU time
)

# Shared experiments, each made once and kept in the workspace: name -> (what must be there before, seconds on one core
# in a quick run).
# "evolution" and "architectures" are one per seed; "circuits MODEL[@REVISION]" and "variant MODEL" name a model.
SHARED: dict[str, tuple[tuple[str, ...], float]] = {
    "demo store": ((), 25),
    "baselines store": (("demo store",), 30),
    "demo dictionaries": (("demo store",), 35),
    "seed dictionaries": (("demo store",), 35),
    "baseline dictionaries": (("baselines store",), 70),
    "comparison": (("demo dictionaries", "seed dictionaries", "baseline dictionaries"), 65),
    "transplants": (("comparison",), 75),
    "evolution": ((), 135),
    "architectures": ((), 140),
    "circuits": ((), 10),
    "variant": ((), 1500),
}
BOTH_CORES = ("demo store", "baselines store")  # their recipes say how many threads, which belongs to what they contain


@dataclass
class Lab:
    """Shared by all claims of one run. ``seeds``: repetitions of every training; ``quick``: fewer tokens, wider
    intervals.
    """

    workspace: Workspace
    seeds: int = 3
    quick: bool = False
    retrain: bool = False  # train the small variants of the bundled models that are not there
    say: Callable[[str], None] = lambda line: None
    replace: bool = False  # make claims and shared dictionaries and stores anew that are there with other settings
    threads: int = 0  # torch threads of every training here; 0 = as they are
    _made: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """``make()``, or what it returned the last time in this run."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    @property
    def steps(self) -> int:
        """Training steps of 1,024 rows per dictionary of an experiment."""
        return 120 if self.quick else 500

    def make(self, name: str) -> None:
        """Make one of the shared experiments (see :data:`SHARED`) where the workspace lacks it.

        Raises:
            UsageError: no such experiment.
        """
        what, _, which = name.partition(" ")
        if what in ("evolution", "architectures"):
            # one after another in one process: they run the same snapshots on the same text
            for seed in self.each_seed():
                (self.evolution if what == "evolution" else self.architectures)(seed)
            for kept in ("rows of snapshots", "rows of architectures"):
                self._made.pop(kept, None)
        elif what == "circuits":
            model, _, revision = which.partition("@")
            self.circuits(model, revision or None)
        elif what == "variant":
            self.variant(which)
        elif name in SHARED:
            {
                "demo store": lambda: self._harvest("demo-harvest"),
                "baselines store": lambda: self._harvest("baselines-harvest"),
                "demo dictionaries": lambda: self._train("demo-train"),
                "seed dictionaries": lambda: self._train("seeds-train"),
                "baseline dictionaries": lambda: self._train("baselines-train"),
                "comparison": self.comparison,
                "transplants": self.transplants,
            }[name]()
        else:
            raise UsageError(f"{name!r} is not an experiment that claims share ({nearest(name, list(SHARED))})")

    def run(self, verb: str, *what: str, **options: Any) -> Run:
        """How a part of an experiment runs: recorded as the command that makes it alone.

        Comparisons, transplants and circuits come out as the claims need them, whatever smaller ones are there.
        """
        anew = self.replace or verb in ("compare", "transplant", "circuits")
        return Run(command=command_of(verb, what, options, {}), say=self.say, replace=anew)

    def _harvest(self, name: str) -> None:
        """The store of a recipe, of those of its sources that are bundled."""
        from workbench.activations import HarvestRecipe, harvest
        from workbench.config import read_recipe
        from workbench.models.load import bundled
        from workbench.models.pointers import register_bundled

        register_bundled(self.workspace, ("mini-pythia", "mini-mamba"))
        recipe = read_recipe(HarvestRecipe, name)
        if not self.workspace.complete("stores", recipe.id):
            self.say(f"harvesting {recipe.id}")
        present = tuple(s for s in recipe.sources if s.model in bundled())
        harvest(recipe.model_copy(update={"sources": present}), self.workspace, run=self.run("harvest", name))

    def _train(self, name: str) -> None:
        """The dictionaries of a recipe."""
        from workbench.config import read_recipe
        from workbench.dictionaries.recipe import TrainRecipe
        from workbench.dictionaries.train import train_recipe

        train_recipe(read_recipe(TrainRecipe, name), self.workspace, run=self.run("train", name))

    def store(self) -> ActivationStore:
        """The demo's store."""

        def make() -> Any:
            from workbench.activations import ActivationStore

            self.make("demo store")
            return ActivationStore.open(self.workspace.get("stores", "demo").path)

        return self.once("store", make)

    def demo(self) -> ActivationStore:
        """The demo's store, with the demo's dictionaries made."""

        def make() -> Any:
            store = self.store()
            self.make("demo dictionaries")
            return store

        return self.once("demo", make)

    def rows(
        self,
        *,
        split: Literal["train", "heldout"] = "train",
        seed: int = 0,
        epochs: int | None = None,
        batch: int = 1024,
        source: str = SOURCE,
        hook: str = SITE,
    ) -> Any:
        """Batches of raw rows of the site the dictionary experiments use."""
        return self.store().batches(hook, batch, seed=seed, source=source, split=split, epochs=epochs)

    def train(
        self, config: TrainingConfig, *, steps: int | None = None, log: list[dict[str, float]] | None = None
    ) -> SAE:
        """A dictionary trained on ``steps`` batches (:attr:`steps` where None), at the learning rate its config has by
        default.

        The data order follows the config's seed. ``log`` receives every tenth step.
        """
        from sae import Trainer

        n = steps or self.steps

        def make() -> Any:
            trainer = Trainer(config, total_steps=n)
            rows = []
            for step, x in zip(range(n), self.rows(seed=config.seed), strict=False):
                report = trainer.step(x)
                if step % 10 == 0:
                    rows.append(report.row())
            return trainer.dictionary(), rows

        dictionary, rows = self.once(("train", n, type(config).__name__, config.model_dump_json()), make)
        if log is not None:
            log.extend(rows)
        return dictionary

    def heldout(self) -> Tensor:
        """All held-out rows of the site, [n, d]."""

        def make() -> Any:
            import torch

            return torch.cat(list(self.rows(split="heldout", epochs=1, batch=4096)))

        return self.once("heldout", make)

    def score(self, dictionary: SAE) -> dict[str, float]:
        """Explained variance (centred) and L0 on the held-out rows, with their number."""
        from sae import evaluate

        found = evaluate(dictionary, self.heldout().split(4096))
        return {"ev": found.ev, "l0": found.l0, "n": float(found.n)}

    def added_loss(self, dictionary: SAE) -> float:
        """ΔLM loss: cross-entropy with the dictionary's reconstruction in place minus without, nats per token of the
        store's held-out text.
        """
        import torch
        from torch.nn.functional import cross_entropy

        from workbench.analysis.splice import splice

        def make() -> Any:
            from workbench.models import load_model

            store = self.store()
            chosen = [i for i in store.heldout if i not in set(store.skipped)][: 48 if self.quick else 144]
            model, tokens = (
                load_model(SOURCE),
                torch.stack([torch.as_tensor(store.sequence_tokens(i)).long() for i in chosen]),
            )
            return model, tokens, loss(model, tokens)

        def loss(model: Any, tokens: Tensor) -> float:
            with torch.inference_mode():
                parts = [
                    cross_entropy(
                        model(t, return_type="logits")[:, 1:-1].flatten(0, 1), t[:, 2:].flatten(), reduction="sum"
                    )
                    for t in tokens.split(16)
                ]
            return float(sum(parts)) / (
                len(tokens) * (tokens.shape[1] - 2)
            )  # position 0 is BOS, which is neither spliced nor scored

        model, tokens, plain = self.once("loss without a dictionary", make)
        with splice(model, {SITE: dictionary}, keep_error=False):
            return loss(model, tokens) - float(plain)

    def each_seed(self) -> Iterator[int]:
        """Seeds 0 … seeds - 1."""
        yield from range(self.seeds)

    def comparison(self) -> MatchRecords:
        """The comparison of the two bundled models' residual dictionaries, with all its baselines: seeds of both kinds,
        untrained models.
        """

        def make() -> Any:
            from workbench.analysis.comparison.compare import CompareRecipe
            from workbench.analysis.comparison.run import compare_and_write
            from workbench.results.matches import MatchRecords

            for name in (
                "demo store",
                "baselines store",
                "demo dictionaries",
                "seed dictionaries",
                "baseline dictionaries",
            ):
                self.make(name)
            recipe = CompareRecipe(tokens=40_000 if self.quick else 100_000)
            pair = ("mini-pythia", "mini-mamba")
            run = self.run("compare", *pair, tokens=recipe.tokens)
            item = compare_and_write(self.workspace, *pair, recipe, run=run)
            return MatchRecords.open(item.path)

        return self.once("comparison", make)

    def transplants(self) -> list[TransplantRecords]:
        """Transplants into every layer of both bundled models, from the other's layer of the same relative depth."""

        def make() -> Any:
            from workbench.analysis.transplant.run import TransplantRecipe, transplant_and_write
            from workbench.results.transplants import TransplantRecords

            sides = [self.comparison().metadata[side]["dictionaries"] for side in ("a", "b")]
            size = {"sequences": 8, "below": 24, "latents": 24} if self.quick else {}
            found = []
            for sources, targets in (sides, sides[::-1]):
                for i, target in enumerate(targets):
                    depth = i / max(1, len(targets) - 1)
                    source = sources[round(depth * (len(sources) - 1))]
                    recipe = TransplantRecipe(**size)
                    run = self.run("transplant", source, target, **size)
                    item = transplant_and_write(self.workspace, source, target, recipe, run=run)
                    found.append(TransplantRecords.open(item.path))
            return found

        records: list[TransplantRecords] = self.once("transplants", make)
        return records

    def variant(self, name: str) -> str:
        """Where a small variant of a bundled model lies: bundled, in the workspace, or trained now if :attr:`retrain`
        says so.

        Raises:
            MissingError: none of these; the message names the command and its cost.
        """
        from workbench.config import read_recipe
        from workbench.models.card import finish
        from workbench.models.pretrain import PretrainRecipe
        from workbench.models.pretrained import open_run

        if (minutes := self.to_train(name)) > 0:
            recipe = read_recipe(PretrainRecipe, name)
            if not self.retrain:
                raise MissingError(
                    f"needs the variant {name}, which is not bundled. `workbench reproduce --retrain` trains it "
                    f"({recipe.steps:,} steps, about {minutes:.0f} minutes on one core)."
                )
            self.say(f"training {name}: {recipe.steps:,} steps")
            run = open_run(recipe, self.workspace, replace=self.replace)
            for out in run.run():
                if out["step"] % 500 == 0:
                    self.say(f"{name}: step {int(out['step']):,} of {recipe.steps:,}")
            finish(
                run, self.workspace, criteria=False, command=f"workbench pretrain {name} --no-criteria", show=self.say
            )
        return name

    def to_train(self, name: str) -> float:
        """Minutes on one core that training a variant would take; 0 where it is bundled or in the workspace."""
        from workbench.config import read_recipe
        from workbench.models.load import bundled
        from workbench.models.pretrain import PretrainRecipe
        from workbench.models.pretrained import trained_model

        if name in bundled():
            return 0.0
        recipe = read_recipe(PretrainRecipe, name)
        if trained_model(recipe, self.workspace, run=Run(replace=self.replace)) is not None:
            return 0.0
        return recipe.steps * recipe.batch * recipe.ctx / VARIANT_TOKENS_PER_MINUTE

    def circuits(self, model: str, revision: str | None = None) -> dict[str, Any]:
        """Headline numbers of the induction circuits of one model or snapshot."""
        return self.circuits_item(model, revision).manifest.numbers

    def circuits_item(self, model: str, revision: str | None = None) -> Item:
        """The induction circuits of one model or snapshot."""

        def make() -> Any:
            from workbench.analysis.circuits.run import make_circuits

            n = 32 if self.quick else 64
            run = self.run("circuits", model, revision=revision, prompts=n)
            return make_circuits(self.workspace, model, revision=revision, n_prompts=n, run=run)

        item: Item = self.once(("circuits", model, revision), make)
        return item

    def evolution(self, seed: int = 0) -> Any:
        """A crosscoder over the snapshots of the bundled Transformer, analysed."""

        def make() -> Any:
            from workbench.analysis.evolution.plan import make_plan
            from workbench.analysis.evolution.run import run_plan
            from workbench.analysis.evolution.snapshots import RowCache
            from workbench.models.sites import hooks_of
            from workbench.results.evolution import Evolution

            recipe = self.evolution_recipe(seed)
            hooks = [hooks_of(site)[1] for site in (recipe.site, *recipe.also)]
            cache = self.once(
                "rows of snapshots", lambda: RowCache(hooks) if self.quick else None
            )  # of a full run they fill the memory
            plan = make_plan(recipe, cache=cache)
            return Evolution.open(run_plan(plan, self.workspace, run=self.run("reproduce", "evolution")).path)

        return self.once(("evolution", seed), make)

    def evolution_recipe(self, seed: int) -> EvolveRecipe:
        """The recipe of :meth:`evolution`."""
        from workbench.analysis.evolution.recipe import EvolveRecipe
        from workbench.config import read_recipe

        size: dict[str, Any] = {"loss_seqs": 0, "contexts": 0}  # for the browser only; no claim reads them
        if self.quick:
            size |= {"tokens": 300_000, "n_seq": 600, "snapshots": 10, "permutations": 200}
            size |= {"refit": 32_768, "heldout_seqs": 128}
        id = f"{'quick' if self.quick else 'claims'}-evolve.s{seed}"
        return read_recipe(EvolveRecipe, "mini-evolve").model_copy(update={"seed": seed, "id": id, **size})

    def architectures(self, seed: int = 0) -> Any:
        """A crosscoder over the snapshots of the bundled Transformer and the bundled Mamba, analysed."""

        def make() -> Any:
            from workbench.analysis.evolution.plan import make_plan
            from workbench.analysis.evolution.recipe import EvolveRecipe, resolve_sources
            from workbench.analysis.evolution.run import run_plan
            from workbench.analysis.evolution.snapshots import RowCache
            from workbench.config import read_recipe
            from workbench.results.evolution import Evolution

            size: dict[str, Any] = {"contexts": 0}  # for the browser only
            if self.quick:
                size |= {"tokens": 80_000, "n_seq": 640, "refit": 32_768, "heldout_seqs": 128, "permutations": 200}
            id = f"{'quick' if self.quick else 'claims'}-architectures.s{seed}"
            found = read_recipe(EvolveRecipe, "mini-architectures")
            two = tuple(s for s in found.sources if s.model in (SOURCE, "mini-mamba"))
            recipe = found.model_copy(update={"seed": seed, "id": id, "sources": two, **size})
            hooks = list(dict.fromkeys(s.hook for s in resolve_sources(recipe)))
            cache = self.once("rows of architectures", lambda: RowCache(hooks) if self.quick else None)
            plan = make_plan(recipe, cache=cache)
            return Evolution.open(run_plan(plan, self.workspace, run=self.run("reproduce", "architectures")).path)

        return self.once(("architectures", seed), make)
