"""Circuits of a model held against plain forward passes with hooks made by hand, whatever kinds of layers it has."""

from typing import Any

import numpy as np
import torch

from workbench.analysis.circuits.heads import head_to_head, head_to_logit, read_profile
from workbench.analysis.circuits.layers import attention_layers, check_circuits, left_out, state_layers
from workbench.analysis.circuits.off_by_one import write_profile
from workbench.analysis.circuits.paths import FrozenPaths
from workbench.analysis.circuits.states import state_to_logit
from workbench.analysis.circuits.tail import Tail
from workbench.analysis.circuits.tasks import make_prompts, read_task
from workbench.models.anatomy import anatomy_of

P, LENGTH = 8, 16
METRICS = ("logit_diff",)


class Brute:
    """Prompts, and forward passes in which all layers but one remember the clean run."""

    def __init__(self, model: Any):
        self.model = model
        self.prompts = make_prompts(
            read_task("induction"), P, vocab_size=model.cfg.d_vocab, tokenizer=model.tokenizer, seed=0, length=LENGTH
        )
        self.rows, self.at = torch.arange(P), torch.as_tensor(self.prompts.marks["B"])
        self.recurrent = {layer.index: layer for layer in state_layers(model)}
        self.written = {l: anatomy_of(model).layers[l].written for l in attention_layers(model)}
        self.written |= {l: anatomy_of(model).layers[l].sites["A"][1] for l in left_out(model)}
        self.clean = self.run(self.prompts.clean, self.names())
        self.corrupt = self.run(self.prompts.corrupt, self.names())
        self.control = self.run(self.prompts.control, self.names())
        self.base = self.difference(self.clean["logits"])

    def names(self) -> list[str]:
        names = list(self.written.values())
        names += [f"blocks.{l}.attn.hook_{k}" for l in attention_layers(self.model) for k in "kvz"]
        for layer in self.recurrent.values():
            erase = ("erase_key", "erase_strength") if layer.erases else ()
            names += [layer.branch, *(layer.hook(n) for n in ("state", "write", "decay", *erase))]
        return names

    def run(self, tokens: np.ndarray, keep: list[str] = (), edits: list = ()) -> dict[str, torch.Tensor]:
        seen = {}
        hooks = [*edits, *((n, lambda v, hook, n=n: seen.update({n: v.detach().clone()})) for n in keep)]
        with torch.no_grad(), self.model.hooks(fwd_hooks=hooks):
            logits = self.model(torch.as_tensor(tokens), use_cache=False)
        return seen | {"logits": logits[:, -1]}

    def difference(self, logits: torch.Tensor) -> np.ndarray:
        p = self.prompts
        return (logits[np.arange(P), p.answer] - logits[np.arange(P), p.wrong]).double().numpy()

    def effect(self, layer: int, edits: list, *, of_heads: bool = False) -> np.ndarray:
        """Of edits inside one mixer, when all other heads and states at the last position stay clean."""
        hooks = []
        for l, recurrent in self.recurrent.items():
            if l != layer or of_heads:
                hooks.append((recurrent.hook("state"), self.last(self.clean[recurrent.hook("state")])))
        hooks += [(w, self.last(self.clean[w])) for l, w in self.written.items() if l != layer]
        return self.difference(self.run(self.prompts.clean, edits=[*edits, *hooks])["logits"]) - self.base

    def last(self, source: torch.Tensor):
        def edit(value, hook):
            value = value.clone()
            value[:, -1] = source[:, -1]
            return value

        return edit

    def but_last(self, source: torch.Tensor):
        def edit(value, hook):
            kept = source.clone()
            kept[:, -1] = value[:, -1]
            return kept

        return edit

    def put(self, source: torch.Tensor, at: torch.Tensor):
        def edit(value, hook):
            value = value.clone()
            value[self.rows, at] = source[self.rows, at]
            return value

        return edit


def close(a: np.ndarray, b: np.ndarray, what: str) -> None:
    gap, size = float(np.abs(a - b).max()), float(np.abs(b).max())
    # 2e-5: single precision of the logits; where an effect is zero, the two ways differ by up to 1.0e-5 (Qwen3.5)
    assert gap <= 2e-3 * size + 2e-5, f"{what}: off by {gap:.2e} of {size:.2e}"


def heads_are_brute_force(brute: Brute, paths: FrozenPaths) -> None:
    model, prompts = brute.model, brute.prompts
    layers = attention_layers(model)
    last, heads = layers[-1], anatomy_of(model).layers[layers[-1]].heads
    z = f"blocks.{last}.attn.hook_z"
    direct = head_to_logit(model, prompts, paths, metrics=METRICS)["logit_diff"][:, -1]
    profile = read_profile(model, prompts, paths, ["B"], metrics=METRICS)["logit_diff"][:, -1, :, 0]
    kv = [
        (f"blocks.{last}.attn.hook_{k}", brute.put(brute.corrupt[f"blocks.{last}.attn.hook_{k}"], brute.at))
        for k in "kv"
    ]
    # all heads' keys: OLMo-2 norms them together; a head's output has its own keys alone
    moved = brute.run(prompts.clean, [z], kv)[z]
    for head in range(heads):

        def one(source, head=head):
            def edit(value, hook):
                value = value.clone()
                value[:, -1, head] = source[:, -1, head]
                return value

            return edit

        close(direct[:, head], brute.effect(last, [(z, one(brute.control[z]))], of_heads=True), "head to logit")
        close(profile[:, head], brute.effect(last, [(z, one(moved))], of_heads=True), "read profile")
    if len(layers) > 1:
        largest = []
        for inputs, position in (("k", "B"), ("v", "B"), ("q", "last")):  # last query head: the last key-value head
            found = head_to_head(
                model, prompts, paths, (last, heads - 1), inputs=inputs, position=position, metrics=METRICS
            )
            assert np.isfinite(found["logit_diff"]).all()
            largest.append(np.abs(found["logit_diff"]).max())
        assert max(largest) > 0  # B may lie outside a window of attention, the last position never does


def states_are_brute_force(brute: Brute, paths: FrozenPaths) -> None:
    model, prompts = brute.model, brute.prompts
    labels = ["B", "B+1", "last-1", "last"]  # random models forget fast: the last ones have an effect in all of them
    profile = write_profile(model, prompts, paths, labels, metrics=METRICS)["logit_diff"]
    states = state_to_logit(model, prompts, paths, metrics=METRICS)["logit_diff"]
    assert max(np.abs(profile).max(), np.abs(states).max()) > 1e-4
    for i, layer in enumerate(brute.recurrent.values()):
        only = (layer.branch, brute.but_last(brute.clean[layer.branch]))
        names = ["write", "decay", *(("erase_key", "erase_strength") if layer.erases else ())]
        for o, label in enumerate(labels):
            at = torch.as_tensor(prompts.position(label))
            edits = [(layer.hook(n), brute.put(brute.corrupt[layer.hook(n)], at)) for n in names]
            close(profile[:, i, o], brute.effect(layer.index, [*edits, only]), f"write profile of layer {layer.index}")
        before = torch.full((P,), LENGTH - 2)
        edit = (layer.hook("state"), brute.put(brute.corrupt[layer.hook("state")], before))
        close(states[:, i], brute.effect(layer.index, [edit, only]), f"state to logit of layer {layer.index}")


def circuits_are_brute_force(model: Any) -> str:
    """What a :class:`tests.workbench.models.conformance.Case` asks."""
    check_circuits(model)
    brute = Brute(model)
    paths = FrozenPaths(model, Tail(model, brute.prompts.clean))
    if attention_layers(model):
        heads_are_brute_force(brute, paths)
    if state_layers(model):
        states_are_brute_force(brute, paths)
    return ""
