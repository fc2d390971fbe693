"""What seeds, the width of the convolution, the size of the state and the number of layers change about induction in
the Mamba.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from sae.errors import MissingError
from workbench.claims.base import Claim, Finding, Measured, Rule, untestable
from workbench.claims.lab import Lab
from workbench.claims.universality.mamba_state import profile_of, words, writes

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
        milder = _copying(lab, COUNTERPART[0], "step0") if control is None else gaps[control]
        if control is None:
            note += f"; untrained {milder.mean():.2f}"
            lost = milder - milder.mean()  # what draws of the prompts alone make of a model that does not copy
        else:
            lost = full - milder
        return Finding(
            Measured.of(full - gaps[variant], unit="nats of copying lost"), Measured.of(lost, unit="nats"), table, note
        )

    return measure


def _profiles(lab: Lab, models: dict[str, tuple[str, str | None]]) -> pd.DataFrame:
    """One row per model: what it is called, accuracy, the writes in words, and the least sharp of them."""
    rows = []
    for name, (model, revision) in models.items():
        result, accuracy = profile_of(lab, model, revision), lab.circuits(model, revision)["accuracy"]["value"]
        found = writes(result)
        least = min(found, key=lambda w: w.sharpness.value)
        rows.append({"model": name, "accuracy": accuracy, "writes": words(found)} | least.sharpness.as_dict())
    return pd.DataFrame(rows)


def _least(table: pd.DataFrame) -> Measured:
    row = table.loc[table["value"].idxmin()]
    return Measured(float(row["value"]), row["low"], row["high"], int(row["n"]), "share of the layer's profile")


def _untrained(lab: Lab) -> Measured | None:
    found = writes(profile_of(lab, COUNTERPART[0], "step0"))
    return max((w.sharpness for w in found), key=lambda m: m.value, default=None)


def seeds(lab: Lab) -> Finding:
    """Sharpness of the least sharp write in the seed where it is least; control: of the untrained model."""
    from workbench.models.load import bundled

    names = [n for n in ("mini-mamba", "mini-mamba-s1") if n in bundled()]
    if len(names) < 2:
        raise MissingError("a second seed of the Mamba is not bundled")
    table = _profiles(lab, {n: (n, None) for n in names})
    note = "; ".join(f"{r.model}: {r.writes}" for r in table.itertuples())
    if (table.accuracy < SOLVED).any():
        return untestable(
            f"one seed copies from a single match with accuracy {table.accuracy.min():.2f} only;"
            f" needs a second seed of the Mamba that copies",
            n=int(table["n"].min()),
            control=_untrained(lab),
            table=table,
        )
    return Finding(_least(table), _untrained(lab), table, note)


def widths(lab: Lab) -> Finding:
    """The same over widths of the convolution, of those that copy; offsets are reported, not asserted."""
    models = {name: lab.variant(name) for name in WIDTHS if name != COUNTERPART[0]}
    table = _profiles(lab, {n: (models[n], None) if n in models else COUNTERPART for n in WIDTHS})
    note = "; ".join(f"width {WIDTHS[r.model]}: accuracy {r.accuracy:.2f}, {r.writes}" for r in table.itertuples())
    solved = table[table.accuracy >= SOLVED]
    if len(solved) < 2:
        return untestable(
            f"fewer than two widths copy from a single match at this length of training ({note})",
            n=int(table["n"].min()),
            control=_untrained(lab),
            table=table,
        )
    return Finding(_least(solved), _untrained(lab), table, note)


CLAIMS = [
    Claim(
        id="universality.off-by-one-seeds",
        paper="universality",
        section="5.2; open: over seeds",
        statement="In every seed of the Mamba each layer that writes the value token writes it at one sharp position.",
        paper_number="one model only: +1",
        experiment=(
            "Write profile of each bundled seed; the least sharp peak. Layers and offsets are reported, not asserted."
        ),
        control="The sharpest layer of the untrained model.",
        rule=Rule("above", 0.5, "beaten"),
        unit="prompt; two trained Mambas",
        measure=seeds,
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
        control="The sharpest layer of the untrained model.",
        rule=Rule("above", 0.5, "beaten"),
        unit="prompt; one trained Mamba per width",
        measure=widths,
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
        rule=Rule("above", 0.0, "beaten"),
        unit="draw of the prompts; one trained model per variant",
        measure=_against("mini-mamba-c1", "mini-mamba-c2"),
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
        control="What draws of the prompts alone make of the untrained model, which does not copy.",
        rule=Rule("above", 0.0, "beaten"),
        unit="draw of the prompts; one trained model per variant",
        measure=_against("mini-mamba-n4", None),
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
        control="What draws of the prompts alone make of the untrained model, which does not copy.",
        rule=Rule("above", 0.0, "beaten"),
        unit="draw of the prompts; one trained model per variant",
        measure=_against("mini-mamba-l2", None),
        needs=("variant mini-mamba-l2",),
        cost=20,
    ),
]
