"""The colours of figures, on paper and on the screen alike."""

from __future__ import annotations

# Okabe and Ito's colours, which differ for the colour-blind, those with most contrast on white first; grey stands for
# their black, which a dark page would swallow.
PALETTES = {
    "okabe-ito": ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A7A7A"),
    "greys": ("#000000", "#555555", "#888888", "#AAAAAA", "#333333", "#777777", "#BBBBBB"),
}
DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "x", "cross")
# cividis (Nuñez, Anderton and Renslow 2018) and a grey ramp, in eleven equal steps
SEQUENTIAL = {
    "okabe-ito": (
        *("#00224e", "#083370", "#35456c", "#4f576c", "#666970", "#7d7c78"),
        *("#948e77", "#aea371", "#c8b866", "#e5cf52", "#fee838"),
    ),
    "greys": (
        *("#ffffff", "#f3f3f3", "#e2e2e2", "#cecece", "#b5b5b5", "#959595"),
        *("#7a7a7a", "#5f5f5f", "#404040", "#1d1d1d", "#000000"),
    ),
}
# about zero: the middle is 13 % grey over whatever lies below, so that it is nearly the page in light and dark
GROUND = ("rgba(127,127,127,.13)", "#EEEEEE")
SIGNED = {"okabe-ito": ("#0072B2", GROUND, "#D55E00"), "greys": ("#000000", GROUND, "#777777")}
# the nine steps in which tokens are shaded: those of ``--t0`` to ``--t8`` in ``markup/look.css``, light
RAMP = ("#fcf2db", "#f9e7c0", "#f6dda4", "#f3d389", "#f1c86e", "#eebe52", "#ebb437", "#e9a91b", "#e69f00")
UNDERLINE = "#0072B2"


def colour_map(palette: str, *, signed: bool, ramp: bool, paper: bool) -> tuple[str, ...]:
    """Equally spaced colours of a scale: about zero where ``signed``, the tokens' own with ``ramp``, else sequential;
    ``paper`` chooses the middle of signed ones for white ground.
    """
    if signed:
        low, middle, high = SIGNED[palette]
        return low, middle[1 if paper else 0], high
    if ramp and palette == "okabe-ito":
        return RAMP
    return SEQUENTIAL[palette]


SHADE = ("rgba(122,122,122,.10)", "rgba(122,122,122,.45)")  # few and many points, over any ground
