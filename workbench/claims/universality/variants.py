"""What seeds, the width of the convolution, the size of the state and the number of layers change about induction in
the Mamba.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from sae.errors import MissingError
from workbench.claims.base import Claim, Finding, Measured, positive_beyond_control, untestable
from workbench.claims.lab import Lab

COUNTERPART = ("mini-mamba", "step8192")  # the variants are trained on the same batches for as many steps
PROMPT_SEEDS = 5
WIDTHS = {"mini-mamba-c1": 1, "mini-mamba-c2": 2, "mini-mamba": 4}
SOLVED = 0.2  # accuracy on single-match prompts from which a model's write profile is read


def _copying(lab: Lab, model: str, revision: str | None = None) -> np.ndarray:
    """[PROMPT_SEEDS] gaps in nats between the permuted and the ordered second copy of chunks, one per draw of the
    prompts.
    """

    def make() -> np.ndarray:
        from workbench.corpus import CorpusConfig, bos_id, frequencies, text_stream
        from workbench.models.criteria import copy_losses, copy_prompts
        from workbench.models.load import load_model

        bridge = load_model(model, revision=revision)
        tokenizer = bridge.tokenizer
        probabilities = lab.once(
            "token frequencies", lambda: frequencies(text_stream(CorpusConfig(), tokenizer), len(tokenizer))
        )
        n = 32 if lab.quick else 64
        draws = [
            copy_prompts(probabilities, bos_id(tokenizer), n, np.random.default_rng([s, 41]))
            for s in range(PROMPT_SEEDS)
        ]
        losses = [copy_losses(bridge, prompts) for prompts in draws]
        return np.array([permuted - ordered for ordered, permuted in losses])

    return lab.once(("copying", model, revision), make)


def _against(variant: str, control: str | None) -> Callable[[Lab], Finding]:
    def measure(lab: Lab) -> Finding:
        """Copying of the full model minus that of the variant, over draws of the prompts; control: the same for a
        milder variant, or none.
        """
        models = {name: lab.variant(name) for name in (variant, control) if name is not None}
        full, gaps = _copying(lab, *COUNTERPART), {name: _copying(lab, model) for name, model in models.items()}
        table = pd.DataFrame({"prompts": range(PROMPT_SEEDS), "full": full} | gaps)
        note = "copying gap in nats: full " + ", ".join(
            f"{name} {values.mean():.2f}" for name, values in ({"model": full} | gaps).items()
        )
        if control is None:
            untrained = full - _copying(lab, COUNTERPART[0], "step0")
            note += f"; untrained loses {untrained.mean():.2f}"
            held = Measured(0.0, None, None, PROMPT_SEEDS, "nats")
        else:
            held = Measured.of(full - gaps[control], unit="nats")
        return Finding(Measured.of(full - gaps[variant], unit="nats of copying lost"), held, table, note)

    return measure


def seeds(lab: Lab) -> Finding:
    """Peak share of the write profile in the seed where it is least sharp; control: an even profile."""
    from workbench.models.load import bundled

    names = [n for n in ("mini-mamba", "mini-mamba-s1") if n in bundled()]
    if len(names) < 2:
        raise MissingError("a second seed of the Mamba is not bundled")
    rows = []
    for name in names:
        numbers = lab.circuits(name)
        peak, conv = numbers["write_peak"], numbers["conv_peak"]
        rows.append(
            {"model": name, "accuracy": numbers["accuracy"]["value"], "layer": peak["layer"], "offset": peak["offset"]}
            | peak["share"]
        )
        rows[-1] |= {"conv_layer": conv["layer"], "conv_write_offset": conv["write_offset"]}
    table = pd.DataFrame(rows)
    if (table.accuracy < SOLVED).any():
        return untestable(f"accuracy on single-match prompts {table.accuracy.min():.2f} in one seed")
    worst = table.loc[table.value.idxmin()]
    note = "; ".join(
        f"{r.model}: layer {r.layer}, offset {r.offset:+d}, share {r.value:.2f}" for r in table.itertuples()
    )
    share = Measured(float(worst.value), worst.low, worst.high, int(worst.n), "share of the profile")
    return Finding(share, Measured(1 / 12, None, None, int(worst.n), "even over 12 offsets"), table, note)


def widths(lab: Lab) -> Finding:
    """Peak share of the write profile in the width where it is least sharp, of those that copy; offsets are reported,
    not asserted.
    """
    rows, models = [], {name: lab.variant(name) for name in WIDTHS if name != COUNTERPART[0]}
    for name, width in WIDTHS.items():
        numbers = lab.circuits(models[name]) if name in models else lab.circuits(*COUNTERPART)
        peak, accuracy = numbers["write_peak"], numbers["accuracy"]["value"]
        rows.append(
            {"width": width, "accuracy": accuracy, "layer": peak["layer"], "offset": peak["offset"]} | peak["share"]
        )
    table = pd.DataFrame(rows)
    solved = table[table.accuracy >= SOLVED]
    said = "; ".join(
        f"width {r.width}: accuracy {r.accuracy:.2f}, peak at {r.offset:+d}, share {r.value:.2f}"
        for r in table.itertuples()
    )
    if len(solved) < 2:
        return untestable(f"fewer than two widths copy from a single match at this length of training ({said})")
    least = solved.loc[solved.value.idxmin()]
    share = Measured(float(least.value), least.low, least.high, int(least.n), "share of the profile")
    return Finding(share, Measured(1 / 12, None, None, int(least.n), "even over 12 offsets"), table, said)


CLAIMS = [
    Claim(
        id="universality.off-by-one-seeds",
        paper="universality",
        section="5.2; open: over seeds",
        statement="In every seed of the Mamba the value token is written at one sharply located position.",
        paper_number="one model only: +1",
        experiment=(
            "Write profile of each bundled seed; the least sharp peak. Layers and offsets are reported, not asserted."
        ),
        control="An even profile.",
        criterion="Peak share's interval above 0.5 in the worst seed.",
        measure=seeds,
        holds=lambda f: f.effect.floor > 0.5 and f.control is not None and f.effect.floor > f.control.value,
        needs=("circuits mini-mamba", "circuits mini-mamba-s1"),
    ),
    Claim(
        id="universality.off-by-one-widths",
        paper="universality",
        section="5.2; open: over convolution widths",
        statement=(
            "Whatever the width of its convolution, a Mamba that copies writes the value token at one sharply located"
            " position."
        ),
        paper_number="width 4 only: +1",
        experiment=(
            "Write profile at widths 1, 2 and 4, all after 8,192 steps on the same batches; the least sharp peak of"
            " those that copy. Offsets are reported, not asserted."
        ),
        control="An even profile.",
        criterion=(
            "Peak share's interval above 0.5 in the worst width; at least two widths must copy from a single match"
            " (accuracy 0.2)."
        ),
        measure=widths,
        holds=lambda f: f.effect.floor > 0.5 and f.control is not None and f.effect.floor > f.control.value,
        needs=("variant mini-mamba-c1", "variant mini-mamba-c2"),
        cost=30,
    ),
    Claim(
        id="universality.convolution-needed",
        paper="universality",
        section="5.2; open: convolution width",
        statement="Without a convolution to look back with, the Mamba copies less from its context.",
        paper_number="width 4 only",
        experiment=(
            "Copying gap (ordered against permuted second copies, in nats) of width 4 minus width 1, both after 8,192"
            " steps on the same batches."
        ),
        control="Width 4 minus width 2.",
        criterion="95 % interval over draws of the prompts above zero and above the control's.",
        measure=_against("mini-mamba-c1", "mini-mamba-c2"),
        holds=positive_beyond_control,
        needs=("variant mini-mamba-c1", "variant mini-mamba-c2"),
        cost=20,
    ),
    Claim(
        id="universality.state-size",
        paper="universality",
        section="open: state size",
        statement="A smaller state copies less from its context.",
        paper_number="state size 16 only",
        experiment=(
            "Copying gap of 16 state numbers per channel minus that of 4, both after 8,192 steps on the same batches."
        ),
        control="No difference; what an untrained model loses is in the note.",
        criterion="95 % interval over draws of the prompts above zero.",
        measure=_against("mini-mamba-n4", None),
        holds=positive_beyond_control,
        needs=("variant mini-mamba-n4",),
        cost=20,
    ),
    Claim(
        id="universality.layers-needed",
        paper="universality",
        section="open: depth",
        statement="A Mamba of half the depth copies less from its context.",
        paper_number="24 layers only",
        experiment="Copying gap of four layers minus that of two, both after 8,192 steps on the same batches.",
        control="No difference; what an untrained model loses is in the note.",
        criterion="95 % interval over draws of the prompts above zero.",
        measure=_against("mini-mamba-l2", None),
        holds=positive_beyond_control,
        needs=("variant mini-mamba-l2",),
        cost=20,
    ),
]
