"""The bench a claim works at: one workspace, a few seeds, and the expensive steps that claims share, each made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sae.errors import MissingError
from workbench.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor

    from sae import SAE
    from sae.config import TrainingConfig
    from workbench.activations import ActivationStore
    from workbench.matches import MatchRecords

SITE = "blocks.1.hook_resid_post"  # where the dictionary experiments run: the middle of the Transformer
SOURCE = "mini-pythia"
LR = 1e-3  # where an experiment names none: the rate the recorded findings were measured at
VARIANT_TOKENS_PER_MINUTE = 800_000  # pre-training of a miniature model on one quiet core of a small server


@dataclass
class Lab:
    """Shared by all claims of one run. ``seeds``: repetitions of every training; ``quick``: fewer tokens, wider intervals."""

    workspace: Workspace
    seeds: int = 3
    quick: bool = False
    retrain: bool = False  # train the small variants of the bundled models that are not there
    say: Callable[[str], None] = lambda line: None
    _made: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """``make()``, or what it returned the last time in this run."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    @property
    def steps(self) -> int:
        """Training steps of 1,024 rows per dictionary of an experiment."""
        return 200 if self.quick else 500

    def store(self) -> ActivationStore:
        """The demo's store; it and the demo's dictionaries are made where they are missing."""

        def make() -> Any:
            from workbench.activations import ActivationStore
            from workbench.demo import prepare

            prepare(self.workspace, self.say)
            return ActivationStore.open(self.workspace.get("stores", "demo").path)

        return self.once("store", make)

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

    def train(self, config: TrainingConfig, *, log: list[dict[str, float]] | None = None) -> SAE:
        """A dictionary trained on :attr:`steps` batches; the data order follows the config's seed. ``log`` receives every tenth step."""
        from sae import Trainer

        if config.lr is None:
            config = config.model_copy(update={"lr": LR})

        def make() -> Any:
            trainer = Trainer(config, total_steps=self.steps)
            rows = []
            for step, x in zip(range(self.steps), self.rows(seed=config.seed), strict=False):
                report = trainer.step(x)
                if step % 10 == 0:
                    rows.append(report.row())
            return trainer.dictionary(), rows

        dictionary, rows = self.once(("train", type(config).__name__, config.model_dump_json()), make)
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

    def each_seed(self) -> Iterator[int]:
        """Seeds 0 … seeds - 1."""
        yield from range(self.seeds)

    def comparison(self) -> MatchRecords:
        """The comparison of the two bundled models' residual dictionaries, with all its baselines: seeds of both kinds, untrained models."""

        def make() -> Any:
            from workbench.activations import HarvestRecipe, harvest
            from workbench.analysis.compare import CompareRecipe
            from workbench.analysis.compare_run import compare_and_write
            from workbench.config import read_recipe
            from workbench.matches import MatchRecords
            from workbench.models.load import bundled
            from workbench.training import TrainRecipe, train_recipe

            self.store()
            baselines = read_recipe(HarvestRecipe, "baselines-harvest")
            present = tuple(s for s in baselines.sources if s.model in bundled())
            harvest(baselines.model_copy(update={"sources": present}), self.workspace)
            for name in ("seeds-train", "baselines-train"):
                train_recipe(read_recipe(TrainRecipe, name), self.workspace, command=f"workbench train {name}", say=self.say)
            recipe = CompareRecipe(tokens=50_000 if self.quick else 100_000)
            item = compare_and_write(self.workspace, "mini-pythia", "mini-mamba", recipe, command="workbench reproduce", tick=self.say)
            return MatchRecords.open(item.path)

        return self.once("comparison", make)

    def variant(self, name: str) -> str:
        """Where a small variant of a bundled model lies: bundled, in the workspace, or trained now if :attr:`retrain` says so.

        Raises:
            MissingError: none of these; the message names the command and its cost.
        """
        from workbench.config import read_recipe
        from workbench.models.load import bundled
        from workbench.models.pretrain import PretrainRecipe, finish, open_run

        if name in bundled():
            return name
        if not self.workspace.complete("models", name):
            recipe = read_recipe(PretrainRecipe, name)
            if not self.retrain:
                minutes = recipe.steps * recipe.batch * recipe.ctx / VARIANT_TOKENS_PER_MINUTE
                raise MissingError(
                    f"needs the variant {name}, which is not bundled. `workbench reproduce --retrain` trains it "
                    f"({recipe.steps:,} steps, about {minutes:.0f} minutes on one core)."
                )
            self.say(f"training {name}: {recipe.steps:,} steps")
            run = open_run(recipe, self.workspace)
            for out in run.run():
                if out["step"] % 500 == 0:
                    self.say(f"{name}: step {int(out['step']):,} of {recipe.steps:,}")
            finish(run, self.workspace, criteria=False, show=self.say)
        return str(self.workspace.path("models", name))

    def circuits(self, model: str, revision: str | None = None) -> dict[str, Any]:
        """Headline numbers of the induction circuits of one model or snapshot."""

        def make() -> Any:
            from workbench.analysis.circuits_run import make_circuits

            n = 32 if self.quick else 64
            item = make_circuits(self.workspace, model, revision=revision, n_prompts=n, command="workbench reproduce", step=self.say)
            return item.manifest.numbers

        return self.once(("circuits", model, revision), make)

    def evolution(self, seed: int = 0) -> Any:
        """A crosscoder over the snapshots of the bundled Transformer, analysed."""

        def make() -> Any:
            from workbench.config import read_recipe
            from workbench.evolution import Evolution
            from workbench.evolve import EvolveRecipe, evolve

            size = {"tokens": 150_000, "n_seq": 1200, "snapshots": 10, "permutations": 200} if self.quick else {}
            id = f"{'quick' if self.quick else 'claims'}-evolve.s{seed}"
            recipe = read_recipe(EvolveRecipe, "mini-evolve").model_copy(update={"seed": seed, "id": id, **size})
            return Evolution.open(
                self.workspace.get("evolution", evolve(recipe, self.workspace, command="workbench reproduce", say=self.say)).path
            )

        return self.once(("evolution", seed), make)
