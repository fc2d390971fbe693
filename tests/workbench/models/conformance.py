"""What this program says of a model, held against the model itself: nine properties, each right or refused.

A property is a function of a :class:`Case` that returns "" where everything it measures is right, or the reason it is
refused with; a wrong number is an AssertionError. ``python -m tests.workbench.models.conformance`` runs all of them on
all architectures and prints ``docs/architectures.md``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from sae.activation import TopK
from sae.errors import UserError
from sae.transcoder import Transcoder
from tests.workbench.models.brute_circuits import circuits_are_brute_force
from tests.workbench.models.test_head import measured_effects
from tests.workbench.models.zoo import ZOO, random_model, save
from workbench.analysis.circuits.tasks import make_prompts, read_task
from workbench.analysis.evaluation.probe import encode_text
from workbench.analysis.graph.trace import Graph, Node, Runner, clean_run
from workbench.analysis.graph.transcoders import Cut, trace_transcoders
from workbench.analysis.latents.logits import readout
from workbench.analysis.splice import Constant, splice
from workbench.corpus import bos_id
from workbench.models import load_model, site_hooks, sites
from workbench.models.anatomy import anatomy_of
from workbench.models.facts import model_facts
from workbench.models.head import head_of
from workbench.models.recurrent import recurrent_layers

TEXT = "def main(self):"


class Case:
    """One architecture: its folder, the model as it is loaded here, and Hugging Face's own."""

    def __init__(self, name: str, root: Path):
        self.name, self.folder = name, root / name
        if not self.folder.is_dir():
            save(name, self.folder)

    @cached_property
    def model(self) -> Any:
        return load_model(self.folder)

    @cached_property
    def hf(self) -> Any:
        return random_model(self.name)

    @cached_property
    def tokens(self) -> torch.Tensor:
        tokens = torch.randint(1, 500, (2, 12), generator=torch.Generator().manual_seed(1))
        tokens[:, 0] = 0
        return tokens

    @cached_property
    def logits(self) -> torch.Tensor:
        return self.run()

    def run(self, *hooks: tuple[str, Any]) -> torch.Tensor:
        with torch.no_grad(), self.model.hooks(fwd_hooks=list(hooks)):
            return self.model(self.tokens, use_cache=False)


class Identity:
    """A dictionary that reconstructs exactly."""

    def __init__(self, width: int):
        self.W_dec = torch.eye(width)

    def encode_sparse(self, x):
        return x, torch.arange(x.shape[-1]).expand(x.shape)

    def decode_sparse(self, values, indices):
        return values


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float, what: str) -> None:
    gap, size = float((a - b).abs().max()), float(b.abs().max())
    assert gap <= tolerance * max(size, 1e-6), f"{what}: off by {gap:.2e} of {size:.2e}"


def logits_are_hugging_faces(case: Case) -> str:
    with torch.no_grad():
        close(case.logits, case.hf(case.tokens).logits, 1e-4, "logits")
    return ""


def sites_fire_and_branches_add_up(case: Case) -> str:
    model, layers = case.model, anatomy_of(case.model).layers
    hooks = [h for site in sites(model) for h in site_hooks(model, site)]
    ends = [f"blocks.{i}.hook_resid_{end}" for i in range(len(layers)) for end in ("pre", "post")]
    with torch.no_grad():
        _, cache = model.run_with_cache(case.tokens, use_cache=False, names_filter=[*hooks, *ends])
    for hook in hooks:
        assert cache[hook].shape == (*case.tokens.shape, 48), hook
    for i, layer in enumerate(layers):
        if branches := [cache[layer.sites[k][1]] for k in "AMS" if k in layer.sites]:
            close(sum(branches) * layer.factor, cache[ends[2 * i + 1]] - cache[ends[2 * i]], 1e-4, f"block {i}")
    return "" if all(len(layer.sites) > 1 for layer in layers) else "some layers show their residual stream alone"


def splices_are_felt(case: Case) -> str:
    """Identity leaves the logits as they are; zeroing the stream is zeroing Hugging Face's own block."""
    model = case.model
    for site in sites(model):
        hook = site_hooks(model, site)[1]
        with torch.no_grad(), splice(model, {hook: Identity(48)}, keep_error=False):
            close(case.run(), case.logits, 1e-4, f"identity at {site}")
        with torch.no_grad(), splice(model, {hook: Constant(torch.zeros(48))}, keep_error=False):
            zeroed = case.run()
        assert (zeroed - case.logits).abs().max() > 1e-5, f"zeroing {site} changes nothing"
        if site.endswith("R"):
            block = case.hf.get_submodule(f"{model.adapter.component_mapping['blocks'].name}.{site[1:-1]}")

            def zero(module, args, out):
                x = (out[0] if isinstance(out, tuple) else out).clone()
                x[:, 1:] = 0  # BOS is left alone
                return (x, *out[1:]) if isinstance(out, tuple) else x

            handle = block.register_forward_hook(zero)
            with torch.no_grad():
                close(zeroed, case.hf(case.tokens).logits, 1e-3, f"zero at {site}")
            handle.remove()
    return ""


def logit_effects_are_measured_changes(case: Case) -> str:
    read = readout(case.model)
    directions, changes = measured_effects(case.model)
    close(directions @ read.W.double(), changes, 1e-2, "direct logit effects")
    return ""


def edges_are_differences(case: Case) -> str:
    """Edges of an unfrozen graph between residual streams against central differences of the forward pass."""
    model, hooks = case.model, ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    dictionaries = {h: Transcoder(48, 32, TopK(4)).requires_grad_(False) for h in hooks}
    for i, made in enumerate(dictionaries.values()):
        for p in made.parameters():
            p.data = 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    tokens = case.tokens[:1]
    clean = clean_run(model, dictionaries, hooks, tokens)
    at = tokens.shape[1] - 2
    gradient = Runner(model, hooks, clean, dictionaries, False).gradients(2, [Node("latent", 2, at, 5)])[0]
    stream, move = clean[hooks[0]][0], torch.randn(1, *gradient.shape, generator=torch.Generator().manual_seed(2))

    def target(x: torch.Tensor) -> float:
        seen = {}
        edits = [(hooks[0], lambda v, hook: x), (hooks[1], lambda v, hook: seen.setdefault("x", v.clone()))]
        with torch.no_grad(), model.hooks(fwd_hooks=edits):
            model(tokens, use_cache=False)
        return float(seen["x"][0, at].double() @ dictionaries[hooks[1]].W_enc[:, 5].double())

    slope = float((gradient * move[0]).sum())
    steps = [(target(stream + e * move) - target(stream - e * move)) / (2 * e) for e in (1e-2, 3e-3)]
    gap = min(abs(s - slope) for s in steps)  # a mixture of experts has kinks: one of the steps may cross one
    assert gap < 2e-2 * float(gradient.norm()), f"edges {slope:.4f}, differences {steps}"
    return ""


def transcoder_graphs_add_up(case: Case) -> str:
    model, made = case.model, {}
    layers = anatomy_of(model).layers
    if missing := [i for i, layer in enumerate(layers) if "TC" not in layer.sites]:
        return f"layer {missing[0]} has no MLP branch to replace"
    for i, layer in enumerate(layers):
        transcoder = Transcoder(48, 32, TopK(4))
        for p in transcoder.parameters():
            p.data = 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
        made[layer.sites["TC"][0]] = transcoder.requires_grad_(False)
    tokens = case.tokens[:1, :7]
    graph = trace_transcoders(model, made, tokens, max_logits=3)
    if any(layer.curved for layer in recurrent_layers(model)):  # edges are slopes: no sum, differences
        assert graph.largest_gap is None
        slopes_are_differences(Cut(model, made, tokens, True), graph)
        return ""
    tolerance = 1e-3 if head_of(model).cap is None else 5e-2  # a soft cap on the logits stays nonlinear
    assert graph.largest_gap is not None and graph.largest_gap < tolerance, f"largest gap {graph.largest_gap}"
    return ""


def slopes_are_differences(cut: Cut, graph: Graph) -> None:
    """Gradients of three latents of the last transcoder and of a logit against central differences of forward passes
    with everything held that the graph holds.
    """
    last = len(graph.hooks)
    targets = [n for n in graph.nodes if n.kind == "latent" and n.stage == last][-3:]
    targets += [n for n in graph.nodes if n.kind == "logit"][:1]
    sources = cut.sources()
    moves = [torch.randn(x.shape, generator=torch.Generator().manual_seed(i)) for i, x in enumerate(sources)]
    for target in targets:
        gradients = cut.gradients(target.stage, [target])
        slope = sum(float((g * moves[stage]).sum()) for stage, g in gradients.items())
        size = max(float(g.norm()) for g in gradients.values())
        gaps = []
        for e in (1e-2, 3e-3):
            ends = [cut.scalars([target], [x + s * e * m for x, m in zip(sources, moves)])[0] for s in (1, -1)]
            gaps.append(abs((ends[0] - ends[1]) / (2 * e) - slope))
        assert min(gaps) < 2e-2 * size, f"slope {slope:.4f} of {target}, off by {min(gaps):.4f}"


def circuits_are_right(case: Case) -> str:
    return circuits_are_brute_force(case.model)


def parameters_are_counted(case: Case) -> str:
    facts = model_facts(str(case.folder))
    assert facts.parameters == sum(p.numel() for p in case.hf.parameters())
    assert facts.resident == sum(p.numel() for p in case.model.parameters())
    assert facts.n_layers == len(case.model.blocks)
    return ""


def prompts_begin_alike(case: Case) -> str:
    model = case.model
    first = bos_id(model.tokenizer)
    prompts = make_prompts(read_task("induction"), 8, vocab_size=512, tokenizer=model.tokenizer, seed=0, length=16)
    begins = {int(model.to_tokens(TEXT)[0, 0]), int(encode_text(model, TEXT)[0][0, 0]), int(prompts.clean[0, 0])}
    assert begins == {first}, begins
    assert model.to_tokens(TEXT)[0].tolist() == encode_text(model, TEXT)[0][0].tolist()
    return ""


PROPERTIES: dict[str, Callable[[Case], str]] = {
    "logits": logits_are_hugging_faces,
    "sites": sites_fire_and_branches_add_up,
    "splice": splices_are_felt,
    "logit effects": logit_effects_are_measured_changes,
    "graph": edges_are_differences,
    "transcoder graph": transcoder_graphs_add_up,
    "circuits": circuits_are_right,
    "plan": parameters_are_counted,
    "BOS": prompts_begin_alike,
}


def verdict(case: Case, name: str) -> str:
    """ "" where a property holds, else what it is refused with."""
    try:
        return PROPERTIES[name](case)
    except UserError as e:
        said = str(e)
    assert said and "\n" not in said
    return said


def measured(case: Case) -> dict[str, str | Exception]:
    """Property -> "" where it holds, what it is refused with, or the error that is wrong."""
    found: dict[str, str | Exception] = {}
    for prop in PROPERTIES:
        try:
            found[prop] = verdict(case, prop)
        except Exception as e:
            found[prop] = e
    return found


def page(cases: list[tuple[Case, dict[str, str | Exception]]]) -> str:
    """``docs/architectures.md``: a row per architecture, ✓ right, – refused (why stands below), ✗ wrong."""
    lines = [
        "# What works on which architecture",
        "",
        "Tiny random models of real Hugging Face configurations, each property held against the model's own forward",
        "pass: ✓ right, – refused in one line (why stands below the table), ✗ wrong. Written by",
        "`python -m tests.workbench.models.conformance --into docs/architectures.md`, and by the test of the same",
        "(`tests/workbench/models/test_architectures.py`) where `ARCHITECTURES_PAGE` names the file.",
        "",
        f"| architecture | layers | {' | '.join(PROPERTIES)} |",
        f"|---|---|{'---|' * len(PROPERTIES)}",
    ]
    reasons: dict[str, list[str]] = {}
    for case, found in cases:
        refused = {p: why.replace(f"{case.folder.parent}/", "") for p, why in found.items() if isinstance(why, str)}
        marks = ["✗" if p not in refused else "–" if refused[p] else "✓" for p in PROPERTIES]
        refused = {p: why for p, why in refused.items() if why}
        if len(refused) == len(PROPERTIES) and len(set(refused.values())) == 1:  # the model itself
            refused = {"all": refused["logits"]}
        for prop, why in refused.items():
            reasons.setdefault(f"{prop}: {why}", []).append(case.name)
        for prop, error in found.items():
            if isinstance(error, Exception):
                print(f"{case.name} {prop}: {type(error).__name__}: {error}", file=sys.stderr)
        kinds = anatomy_of(case.model).describe() if "model" in vars(case) else "–"
        lines.append(f"| {case.name} | {kinds} | {' | '.join(marks)} |")
    lines += ["", "## Why refused", ""]
    lines += [f"- {why.rstrip('.')} ({', '.join(at)})." for why, at in sorted(reasons.items())]
    return "\n".join(lines) + "\n"


def put(into: Path, text: str) -> None:
    """Write rows into a page, in place of those of the same architectures; a page that is not there begins. What it
    lacks is named at its end.
    """
    text = joined(into.read_text(), text) if into.is_file() else text
    left = [name for name in ZOO if name not in rows_of(text)]
    into.write_text(text + (f"\nNot measured yet: {', '.join(left)}.\n" if left else ""))


def joined(kept: str, new: str) -> str:
    """A printed page with the architectures of another one in place of its own rows, in the zoo's order."""
    rows: dict[str, str] = {}
    reasons: dict[str, list[str]] = {}
    for text in (kept, new):
        lines = text.splitlines()
        here = {line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| ")}
        del here["architecture"]
        rows |= here
        reasons = {why: left for why, at in reasons.items() if (left := [n for n in at if n not in here])}
        for line in lines:
            if line.startswith("- "):
                why, _, names = line.removeprefix("- ").removesuffix(").").rpartition(" (")
                reasons.setdefault(why, []).extend(names.split(", "))
    head = new[: new.index("| ", new.index("|---"))]
    order = [n for n in ZOO if n in rows]
    said = [f"- {why} ({', '.join(n for n in ZOO if n in at)})." for why, at in sorted(reasons.items())]
    return head + "\n".join([*(rows[n] for n in order), "", "## Why refused", "", *said]) + "\n"


def rows_of(text: str) -> set[str]:
    """Architectures that a printed page has a row for."""
    return {line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")}


def main() -> None:
    """``conformance [NAME …]`` prints the page of some architectures, all by default; with ``--into FILE`` each is
    written there as soon as it is measured, in place of its row, and with ``--missing`` those that have a row are left.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*ZOO, []], metavar="ARCHITECTURE")
    parser.add_argument("--into", type=Path)
    parser.add_argument("--missing", action="store_true")
    args = parser.parse_args()
    names = args.names or list(ZOO)
    with tempfile.TemporaryDirectory() as folder:
        if args.into is None:
            cases = [Case(name, Path(folder)) for name in names]
            sys.stdout.write(page([(case, measured(case)) for case in cases]))
            return
        for name in names:
            if args.missing and args.into.is_file() and name in rows_of(args.into.read_text()):
                continue
            case = Case(name, Path(folder))
            text = page([(case, measured(case))])
            put(args.into, text)
            print(next(line for line in text.splitlines() if line.startswith(f"| {name} ")), flush=True)


if __name__ == "__main__":
    main()
