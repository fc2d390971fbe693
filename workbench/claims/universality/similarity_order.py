"""Across architectures < model seed <= SAE seed, once the token is known; and neurons beside their chance."""

from __future__ import annotations

from typing import Any

from workbench.claims.base import Claim, Finding, Measured, Rule
from workbench.claims.lab import Lab
from workbench.claims.universality.similarity import UNIT, by_layer, difference, missing, readings, said

TC, NULL = "token-conditional", "token-conditional null"


def neurons(lab: Lab) -> Finding:
    """Neurons' raw correlation; control: the same neurons on text moved on by half of the sequences."""
    if (why := missing(lab, ("neurons", "neurons shift"))) is not None:
        return why
    table = by_layer(lab, ("neurons", "neurons shift"))
    return Finding(
        Measured.of(table["neurons"].to_numpy(), unit="correlation"),
        Measured.of(table["neurons shift"].to_numpy(), unit="correlation"),
        table.reset_index(),
        f"latents: {said(readings(lab))}",
        more=readings(lab),
    )


def above_neurons(lab: Lab) -> Finding:
    """Latents given the token, above their null, minus neurons given the token, above theirs; control: the same for
    encoders with random weights in place of the latents' partners.
    """
    series = (TC, NULL, f"neurons {TC}", f"neurons {NULL}", f"random partner {TC}", f"random partner {NULL}")
    if (why := missing(lab, series)) is not None:
        return why
    t = by_layer(lab, series)
    own = t[f"neurons {TC}"] - t[f"neurons {NULL}"]
    return Finding(
        Measured.of((t[TC] - t[NULL] - own).to_numpy(), unit="correlation"),
        Measured.of((t[f"random partner {TC}"] - t[f"random partner {NULL}"] - own).to_numpy(), unit="correlation"),
        t.reset_index(),
        f"given the token, above null: latents {(t[TC] - t[NULL]).mean():.3f}, neurons {own.mean():.3f}",
        more=readings(lab),
    )


_COMMON: dict[str, Any] = {
    "paper": "universality",
    "section": "4.1-4.3",
    "paper_number": "mean MPPC 0.74 across architectures; neurons almost none; slightly below the seed skylines",
    "unit": UNIT,
    "needs": ("comparison",),
    "cost": 1.0,
}
CLAIMS = [
    Claim(
        id="universality.neurons-above-chance",
        statement="Neurons of the two models correlate above their own chance level.",
        experiment="Mean maximal correlation of neurons over all layers of the other model, by layer.",
        control="The same neurons against the other model's on text moved on by half of the sequences.",
        rule=Rule("above", 0.05, "beaten"),
        would_change="Neurons that correlate no more with the same text than with other text.",
        measure=neurons,
        **_COMMON,
    ),
    Claim(
        id="universality.latents-above-neurons",
        statement="Given the token, latents match across architectures better than neurons do, each above its chance.",
        experiment="Token-conditional correlation above its null, latents minus neurons, by layer.",
        control="The same with random-weight encoders of the same firing rates as the latents' partners.",
        rule=Rule("above", 0.02, "beaten"),
        would_change="Random-weight encoders that do as well, or neurons that do.",
        measure=above_neurons,
        **_COMMON,
    ),
    Claim(
        id="universality.architecture-below-seed",
        statement=(
            "Given the token, a second seed of the same architecture is more similar than the other architecture."
        ),
        experiment="Token-conditional correlation with the other model seed minus that with the other architecture.",
        control="The same difference of their nulls (tokens exchanged), which differ in candidates only.",
        rule=Rule("above", 0.01, "beaten"),
        would_change="A difference that one of the two models does not show.",
        measure=lambda lab: difference(lab, f"model seed {TC}", TC, (f"model seed {NULL}", NULL)),
        **_COMMON,
    ),
    Claim(
        id="universality.model-seed-below-sae-seed",
        statement="Given the token, a second seed of the dictionary is more similar than a second seed of the model.",
        experiment="Token-conditional correlation with the other SAE seed minus that with the other model seed.",
        control="The same difference of their nulls (tokens exchanged).",
        rule=Rule("above", 0.0, "beaten"),
        would_change="Models of two seeds that agree as well as two dictionaries of one model.",
        measure=lambda lab: difference(
            lab, f"sae seed {TC}", f"model seed {TC}", (f"sae seed {NULL}", f"model seed {NULL}")
        ),
        **_COMMON,
    ),
]
