"""What makes a dictionary find more of the features there are, at the same L0: a small designed search, and its result
beside the preset ``few-steps`` on worlds that took no part in it.

    python benchmarks/faithful.py --out DIR                                    # search and comparison
    python benchmarks/faithful.py --out DIR --stage screen --kind matryoshka   # one factor at a time
    python benchmarks/faithful.py --out DIR --stage again                      # then, combine: what helped, together
    python benchmarks/faithful.py --out DIR --stage short                      # the comparison on 300 steps
    python benchmarks/faithful.py --out DIR --stage final --write docs/benchmarks-faithful.md

Every finished run is a line of ``DIR/<world>-<latents>-<k>.jsonl``; those that are there are not run again, so it may
be stopped at any time. Each world's rows are drawn once and shared by all. Settings are chosen on worlds with seeds
below 100 (``sae.worlds.benchmark.HELD_OUT``), the comparison is on later ones.

L0 is made equal: BatchTopK's and Matryoshka's thresholds are multiplied by the one factor at which k latents are on
over 8,192 training rows (what they are on their own stands beside it), L1's weight is searched, JumpReLU's penalty
aims at k by itself.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sae import SAEConfig
from sae.config import TopKConfig
from sae.presets import merged, preset
from sae.worlds.benchmark import HELD_OUT, KINDS, Budget, Pool, at_l0, equal_l0, trained
from sae.worlds.config import WORLDS, WorldConfig
from sae.worlds.scoring import score
from sae.worlds.world import World
from workbench.claims.measured import Measured

BUDGET = Budget(steps=1000, tries=3)
SEARCH = {"screen": 400, "again": 400, "then": 400, "combine": 1000}  # steps
SEARCH_ROWS = 10_000  # scored, half of the comparison's
SHORT = 300  # steps of the second comparison
OF_BATCH = ("batchtopk", "matryoshka")
CALIBRATION_ROWS = 8192
OVER_ALL = ("f1", "mcc", "ev", "l0", "dead")


def before(width: int) -> dict[str, Any]:
    """``few-steps`` as it was for every kind when the search began; the search varies this."""
    lr = TopKConfig(d_in=width, d_sae=BUDGET.latents, k=BUDGET.k).peak_lr
    return {"lr": min(0.01, 2.5 * lr), "beta1": 0.5, "beta2": 0.95, "details": {"encoder_rate": 0.6, "bias_rate": 0.1}}


def _act(**settings: Any) -> dict[str, Any]:
    return {"activation": settings}


# one factor at a time from ``before``; an activation's settings go under the kind at hand
SHARED: dict[str, dict[str, Any]] = {
    "before": {},
    "rate x 2": {"lr": 0.02},
    "rate / 2": {"lr": 0.005},
    "rate / 4": {"lr": 0.0025},
    "beta1 .9": {"beta1": 0.9},
    "beta2 .99": {"beta2": 0.99},
    "encoders as fast": {"details": {"encoder_rate": 1.0}},
    "encoders at .3": {"details": {"encoder_rate": 0.3}},
    "bias as fast": {"details": {"bias_rate": 1.0}},
    "no AuxK": {"k_aux": 0},
    "AuxK x 8": {"aux_coefficient": 0.25},
    "AuxK of 2": {"k_aux": 2},
    "dead after 2,000": {"dead_after": 2000},
    "dead after 5,000": {"dead_after": 5000},
    "dead after 100,000": {"dead_after": 100_000},
    "no revival": {"revive": False},
    "decay over half": {"decay_share": 0.5},
    "tied start": {"start": {"encoder": "tied"}},
    "k from 36": {"k_start": 36, "k_anneal_share": 0.3},
    "k from 128": {"k_start": 128, "k_anneal_share": 0.3},
}
NESTED: dict[str, dict[str, Any]] = {
    "prefixes 1/4, 1/2": _act(prefixes=(1 / 4, 1 / 2)),
    "prefixes 1/32 ... 1/2": _act(prefixes=(1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)),
    "nine even prefixes": _act(prefixes=tuple(i / 10 for i in range(1, 10))),
}
SCREENED: dict[str, dict[str, dict[str, Any]]] = {
    "matryoshka": SHARED | NESTED,
    "batchtopk": SHARED,
    "topk": SHARED,
    "jumprelu": {"before": {}},
}
SOON: dict[str, Any] = {"dead_after": 5000}
AGAIN: dict[str, dict[str, Any]] = {
    "soon": SOON,
    "soon, rate x 2": SOON | {"lr": 0.02},
    "soon, rate x 4": SOON | {"lr": 0.04},
    "soon, rate / 2": SOON | {"lr": 0.005},
    "soon, beta1 0": SOON | {"beta1": 0.0},
    "soon, beta2 .9": SOON | {"beta2": 0.9},
    "soon, encoders at .3": SOON | {"details": {"encoder_rate": 0.3}},
    "soon, rate x 2, encoders at .3": SOON | {"lr": 0.02, "details": {"encoder_rate": 0.3}},
    "soon, AuxK x 8": SOON | {"aux_coefficient": 0.25},
    "soon, no AuxK": SOON | {"k_aux": 0},
    "soon, k from 36": SOON | {"k_start": 36, "k_anneal_share": 0.3},
    "soon, decay over half": SOON | {"decay_share": 0.5},
}
FAST: dict[str, Any] = SOON | {"lr": 0.02, "details": {"encoder_rate": 0.3}}
THIRD: dict[str, dict[str, Any]] = {
    "fast": FAST,
    "fast, dead after 2,000": FAST | {"dead_after": 2000},
    "fast, beta2 .9": FAST | {"beta2": 0.9},
    "fast, rate x 3, encoders at .2": FAST | {"lr": 0.03, "details": {"encoder_rate": 0.2}},
    "fast, encoders at .15": FAST | {"details": {"encoder_rate": 0.15}},
    "fast, bias as slow": FAST | {"details": {"encoder_rate": 0.3, "bias_rate": 0.05}},
    "fast, decay over half": FAST | {"decay_share": 0.5},
}
FOURTH = {
    "fast, prefixes 1/32 ... 1/2": FAST | NESTED["prefixes 1/32 ... 1/2"],
    "fast, nine even prefixes": FAST | NESTED["nine even prefixes"],
}
SECOND: dict[str, dict[str, dict[str, Any]]] = {
    "matryoshka": AGAIN
    | {
        "soon, prefixes 1/32 ... 1/2": SOON | NESTED["prefixes 1/32 ... 1/2"],
        "soon, nine even prefixes": SOON | NESTED["nine even prefixes"],
    },
    "batchtopk": AGAIN,
    "topk": AGAIN,
}
THEN: dict[str, dict[str, dict[str, Any]]] = {
    "matryoshka": THIRD | FOURTH,
    **{kind: {"soon": SOON} | THIRD for kind in ("topk", "norm-topk", "batchtopk", "l1", "jumprelu")},
}
COMBINED: dict[str, dict[str, dict[str, Any]]] = {
    "matryoshka": {
        "before": {},
        "soon": SOON,
        "fast": FAST,
        "fast, dead after 2,000": FAST | {"dead_after": 2000},
        "fast, nine even prefixes": FOURTH["fast, nine even prefixes"],
    },
    "batchtopk": {"before": {}, "soon": SOON, "fast": FAST},
    "topk": {"before": {}, "soon": SOON, "fast": FAST},
    "jumprelu": {"before": {}, "soon": SOON, "fast": FAST},
}


@dataclass(frozen=True)
class Job:
    """One training: an arm of a kind on a world."""

    stage: str
    kind: str
    arm: str
    world: int
    own: dict[str, Any]  # fields of SAEConfig
    steps: int = BUDGET.steps

    @property
    def key(self) -> str:
        """Equal for equal runs, whatever they are called."""
        return json.dumps([self.kind, self.world, self.steps, self.own], sort_keys=True)


def jobs(stage: str, kinds: tuple[str, ...], search: int, held: int, d: int) -> list[Job]:
    """All of a stage, worlds outermost."""
    if stage in SEARCH:
        table = {"screen": SCREENED, "again": SECOND, "then": THEN, "combine": COMBINED}[stage]
        return [
            Job(stage, kind, arm, world, merged(before(d), own), SEARCH[stage])
            for world in range(search)
            for kind in kinds
            for arm, own in table.get(kind, {}).items()
        ]
    steps = SHORT if stage == "short" else BUDGET.steps
    return [
        Job(stage, kind, arm, HELD_OUT + world, own, steps)
        for world in range(held)
        for kind in kinds
        for arm, own in arms(kind, d).items()
    ]


def arms(kind: str, d: int) -> dict[str, dict[str, Any]]:
    """The arms of the comparison."""
    sizes = {"d_in": d, "d_sae": BUDGET.latents, "k": BUDGET.k}
    return {"before": before(d)} | {name: preset(name, kind=kind, **sizes) for name in ("few-steps", "faithful")}


def config_of(job: Job, d: int, weight: float | None) -> SAEConfig:
    """The dictionary of a job."""
    own = dict(job.own)
    activation = {**own.pop("activation", {}), "kind": job.kind} | ({} if weight is None else {"coefficient": weight})
    sizes = {"d_in": d, "d_sae": BUDGET.latents, "k": BUDGET.k, "seed": job.world}
    return SAEConfig(**{**own, **sizes, "activation": activation})


def run(job: Job, world: World, pool: Pool, first_weight: float) -> dict[str, Any]:
    """The record of a job."""
    budget, d = pool.budget, world.config.width

    def make(weight: float | None) -> dict[str, Any]:
        made, seconds = trained(config_of(job, d, weight), pool)
        alone = equal = score(made, world, rows=budget.scored)
        if job.kind in OF_BATCH:
            equal_l0(made, pool.rows[:CALIBRATION_ROWS], budget.k)
            equal = score(made, world, rows=budget.scored)
        about = {"l0_alone": alone.l0, "f1_alone": alone.f1, "dead_alone": alone.dead, "weight": weight}
        return {**asdict(job), "key": job.key, "score": equal.row(), **about, "cpu_s": seconds}

    if job.kind != "l1":
        return make(None)
    found: dict[str, Any] = at_l0(make, lambda r: r["score"]["l0"], budget.k, first_weight, budget.tries)
    return found


def read(path: Path) -> list[dict[str, Any]]:
    """The runs there are; a last line that was cut off is left out."""
    out = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            out.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"{path}: a line that was cut off is run again")
    return out


def rows_of(world: World, path: Path) -> Pool:
    """The rows of a world; drawn once, then read from a file."""
    if path.exists():
        return Pool(torch.load(path, mmap=True), BUDGET, world.config.seed)
    pool = Pool.drawn(world, BUDGET, world.config.seed)
    torch.save(pool.rows, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)
    return pool


def work(todo: list[Job], path: Path, world_name: str) -> None:
    """Run what is missing, a line each."""
    seen = {r["key"] for r in read(path)}
    left: list[Job] = []
    for job in todo:
        if job.key not in seen:
            seen.add(job.key)
            left.append(job)
    print(f"{len(left)} runs to do, {len(todo) - len(left)} there already", flush=True)
    begin, world, pool = time.time(), None, None
    weights: dict[str, float] = {}  # of L1, by arm: where the search begins on the next world
    for n, job in enumerate(sorted(left, key=lambda j: j.world)):
        if world is None or pool is None or world.config.seed != job.world:
            world = World(WorldConfig(**{**WORLDS[world_name], "seed": job.world}))
            pool = rows_of(world, path.with_name(f"rows-{world_name}-{job.world}.pt"))
        pool.budget = replace(
            BUDGET, world=world_name, steps=job.steps, scored=SEARCH_ROWS if job.stage in SEARCH else BUDGET.scored
        )
        record = run(job, world, pool, weights.get(job.arm, 2.0))
        if record["weight"] is not None:
            weights[job.arm] = record["weight"]
        with path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(record) + "\n")
        s, spent = record["score"], time.time() - begin
        print(
            f"{n + 1}/{len(left)}  {job.kind:10} {job.arm:22} world {job.world}:  F1 {s['f1']:.3f}  MCC {s['mcc']:.3f} "
            f" EV {s['ev']:.3f}  L0 {s['l0']:.2f} ({record['l0_alone']:.2f})  dead {s['dead']:.3f} "
            f" {record['cpu_s']:.1f} s;  {spent / (n + 1) * (len(left) - n - 1) / 60:.0f} min left",
            flush=True,
        )


# --- what came out -------------------------------------------------------------------------------------------------


def grouped(todo: list[Job], path: Path) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """(kind, arm, its runs by world) of those jobs whose runs are there."""
    runs = {r["key"]: r for r in read(path)}
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for job in {(job.kind, job.arm, job.key): job for job in todo}.values():  # an arm of two stages is one run
        if job.key in runs:
            found.setdefault((job.kind, job.arm), []).append(runs[job.key] | {"arm": job.arm})
    for (kind, arm), rows in found.items():
        yield kind, arm, sorted(rows, key=lambda r: int(r["world"]))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def interval(values: list[float]) -> tuple[float, float]:
    """(mean, half of Student's 95 % interval) over worlds; NaN of one alone."""
    m = Measured.of(values)
    return m.value, math.nan if m.high is None else m.high - m.value


def paired(rows: list[dict[str, Any]], base: list[dict[str, Any]], name: str) -> tuple[float, float]:
    """Mean and half interval of the difference of a score to another arm's on the same worlds."""
    theirs = {r["world"]: r["score"][name] for r in base}
    return interval([r["score"][name] - theirs[r["world"]] for r in rows if r["world"] in theirs])


def gains(todo: list[Job], path: Path) -> Iterator[tuple[int, str, str, list[dict[str, Any]], list[float]]]:
    """(steps, kind, arm, runs, [F1, MCC] gained over ``before`` at as many steps), most F1 first."""
    for steps in sorted({j.steps for j in todo}):
        groups = list(grouped([j for j in todo if j.steps == steps], path))
        bases = {kind: rows for kind, arm, rows in groups if arm == "before"}
        found = [
            (steps, kind, arm, rows, [paired(rows, bases[kind], c)[0] for c in ("f1", "mcc")])
            for kind, arm, rows in groups
            if kind in bases
        ]
        yield from sorted(found, key=lambda g: (g[1], -g[4][0]))


def show(todo: list[Job], path: Path) -> None:
    """Every arm beside ``before``, on the worlds both were run on."""
    for steps, kind, arm, rows, (f1, mcc) in gains(todo, path):
        means = {c: mean([r["score"][c] for r in rows]) for c in OVER_ALL}
        told = "  ".join(f"{c} {v:.3f}" for c, v in means.items())
        print(f"{steps:5} {kind:10} {arm:32} n {len(rows)}  dF1 {f1:+.3f}  dMCC {mcc:+.3f}   {told}")


def told(values: list[float], digits: int = 3) -> str:
    """A mean and half its interval."""
    m, half = interval(values)
    return f"{m:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def compared(groups: list[tuple[str, str, list[dict[str, Any]]]]) -> list[str]:
    """Lines of a comparison: every arm, and differences on the same worlds."""
    out = [
        "| kind | setting | worlds | F1 | MCC | EV | L0 | L0 alone | dead | ms a step |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kind, arm, rows in groups:
        scores = " | ".join(told([r["score"][c] for r in rows]) for c in ("f1", "mcc", "ev"))
        l0, alone, dead = (
            mean(v)
            for v in (
                [r["score"]["l0"] for r in rows],
                [r["l0_alone"] for r in rows],
                [r["score"]["dead"] for r in rows],
            )
        )
        ms = mean([1000 * r["cpu_s"] / r["steps"] for r in rows])
        out.append(
            f"| {kind} | {arm} | {len(rows)} | {scores} | {l0:.2f} | {alone:.2f} | {100 * dead:.1f} % | {ms:.1f} |"
        )
    by = {(kind, arm): rows for kind, arm, rows in groups}
    out += [
        "",
        "Differences on the same worlds (paired):",
        "",
        "| what | worlds | F1 | MCC | EV | step |",
        "|---|---|---|---|---|---|",
    ]
    pairs = [((k, "faithful"), (k, "few-steps")) for k in KINDS] + [((k, "few-steps"), (k, "before")) for k in KINDS]
    pairs.append((("matryoshka", "faithful"), ("topk", "few-steps")))
    for one, other in pairs:
        if one in by and other in by and [r["key"] for r in by[one]] != [r["key"] for r in by[other]]:
            named = f"{one[0]}: {one[1]} − {other[1]}" if one[0] == other[0] else f"{' '.join(one)} − {' '.join(other)}"
            cells = (paired(by[one], by[other], c) for c in ("f1", "mcc", "ev"))
            cost = mean([r["cpu_s"] for r in by[one]]) / mean([r["cpu_s"] for r in by[other]])
            told_ = " | ".join(f"{m:+.3f}" + ("" if math.isnan(half) else f" ± {half:.3f}") for m, half in cells)
            n = len({r["world"] for r in by[one]} & {r["world"] for r in by[other]})
            out.append(f"| {named} | {n} | {told_} | x {cost:.2f} |")
    return out


def markdown(final: list[Job], short: list[Job], search: list[Job], path: Path, world: str) -> str:
    """The page of the documentation: the comparison, short runs, what was tried."""
    import platform
    from datetime import date

    planted = WorldConfig(**WORLDS[world])
    out = [
        "# The preset `faithful`",
        "",
        f"Written by `python benchmarks/faithful.py --out DIR --write FILE` on {date.today().isoformat()}:"
        f" {platform.machine()}, torch {torch.__version__}, one thread. World `{world}`"
        f" ({planted.n_features:,} planted features in {planted.width} dimensions), {BUDGET.latents} latents,"
        f" {BUDGET.steps:,} steps of {BUDGET.batch:,} rows, scored on {BUDGET.scored:,} fresh rows at an L0 of"
        f" {BUDGET.k}: thresholds of BatchTopK and Matryoshka are multiplied by one factor to reach it (*L0 alone* is"
        " what they give by themselves), L1's weight is searched, JumpReLU aims at it. All settings were chosen on"
        f" world 0; the worlds here have seeds from {HELD_OUT} on. Numbers are means over worlds with Student's 95 %"
        " intervals. What is counted: `sae/worlds/scoring.py`.",
        "",
        "`before` is `few-steps` as it was: the same for every kind. Now BatchTopK, Matryoshka and JumpReLU count a"
        " latent as dead after fewer rows. `faithful` without an activation of your own is Matryoshka. One choice was"
        f" made on a world held out: that `few-steps` of L1 stays as it was (world {HELD_OUT}, 300 steps).",
        "",
        "## On worlds held out",
        "",
    ]
    out += compared(list(grouped(final, path)))
    out += ["", f"## {SHORT} steps", "", "The same of shorter runs; fewer kinds and worlds where a row says so.", ""]
    out += compared(list(grouped(short, path)))
    out += [
        "",
        "## What was tried",
        "",
        "On worlds with seeds below 100, F1 and MCC gained over `before` at as many steps. `soon` is dead after"
        f" {SOON['dead_after']:,} rows (before: 20,000), `fast` that with twice the rate and encoders at .3 of it"
        " (which leaves encoders as they were and doubles the rate of decoders).",
        "",
        "| kind | steps | what | worlds | F1 | MCC | EV | dead |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for steps, kind, arm, rows, (f1, mcc) in gains(search, path):
        ev, dead = (mean([r["score"][c] for r in rows]) for c in ("ev", "dead"))
        out.append(
            f"| {kind} | {steps} | {arm} | {len(rows)} | {f1:+.3f} | {mcc:+.3f} | {ev:.3f} | {100 * dead:.1f} % |"
        )
    return "\n".join(out) + "\n"


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--out", type=Path, help="folder of finished runs (kept), needed without --quick")
    a.add_argument("--quick", action="store_true", help="Matryoshka on one world held out and 300 steps, nothing kept")
    a.add_argument("--stage", choices=("screen", "again", "then", "combine", "short", "final", "all"), default="all")
    a.add_argument("--kind", action="append", choices=KINDS, help="only this kind; may be repeated")
    a.add_argument("--arm", action="append", help="only this arm; may be repeated")
    a.add_argument("--world", choices=sorted(WORLDS), default="small")
    a.add_argument("--search", type=int, default=2, help="worlds of the search")
    a.add_argument("--held", type=int, default=3, help="worlds of the comparison")
    a.add_argument("--show", action="store_true", help="run nothing, print what is there")
    a.add_argument("--write", type=Path, help="the page of the comparison")
    args = a.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        with tempfile.TemporaryDirectory() as folder:
            todo = jobs("short", ("matryoshka",), 0, 1, WorldConfig(**WORLDS[args.world]).width)
            work(todo, Path(folder) / "runs.jsonl", args.world)
            show(todo, Path(folder) / "runs.jsonl")
        return
    if args.out is None:
        a.error("--out DIR is needed: runs are kept there, and not run again")
    args.out.mkdir(parents=True, exist_ok=True)
    # what a run's own key does not say is in the name of the file
    path = args.out / f"{args.world}-{BUDGET.latents}-{BUDGET.k}.jsonl"
    d = WorldConfig(**WORLDS[args.world]).width
    stages = ("screen", "again", "then", "combine", "short", "final") if args.stage == "all" else (args.stage,)
    kinds = tuple(k for k in KINDS if not args.kind or k in args.kind)
    todo = [j for stage in stages for j in jobs(stage, kinds, args.search, args.held, d)]
    todo = [j for j in todo if not args.arm or j.arm in args.arm]
    if not args.show:
        work(todo, path, args.world)
    show(todo, path)
    if args.write is not None:
        every = {s: jobs(s, KINDS, args.search, args.held, d) for s in (*SEARCH, "short", "final")}
        search = [j for s in SEARCH for j in every[s]]
        page = markdown(every["final"], every["short"], search, path, args.world)
        args.write.write_text(page, encoding="utf-8")
        print(f"{args.write}: written")


if __name__ == "__main__":
    main()
