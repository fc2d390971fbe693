"""Reading substitutions: ``substitutions/<dictionary>/``, made by ``workbench substitute DICTIONARY``. Neither torch
nor h5py is needed.

At a firing of an atom of a dictionary of writes, the recurrent layer's own write is replaced by the atom scaled by
its code (the arm ``atom``), by the atom at the write's norm (``matched``), by the sum of all atoms of the write
(``whole``; no longer of rank one), by controls of the code's norm (``permuted``, ``random``, ``pca``) or by nothing
(``ablated``), and the model goes on. Three distances from the clean run are measured: ``kl``, nats summed over the
next-token distributions of the window that begins at the write; ``next``, those of the write's own position alone;
``read``, squared distance of what the layer's later positions in the window read. An arm wins where it leaves less of a
distance than ``ablated``. Tables (Parquet):

``firings``  one row per firing tried: atom, sequence, position, rank (0: the strongest atom of its write), value
             (of the code), norm (of the write), per arm kl_<arm>, next_<arm>, read_<arm>, cosine_<arm> with the
             write; shift, shift_predicted, shift_product: squared change of the logits at the position as measured
             (atom for write), in closed form, and their product
``summary``  per arm and measure, over all firings: n, atoms, win_rate, low, high (95 % bootstrap over atoms),
             repaired (share of all damage)
``ranks``    the same for kl per range of ranks
``atoms``    per atom: n, cosine, norm, win_<arm> (share won)
"""

from __future__ import annotations

from workbench.results.result import TabledResult

TABLES = ("firings", "summary", "ranks", "atoms")
CONTROLS = ("permuted", "random", "pca")
STAND_INS = ("atom", "matched", "whole", *CONTROLS)
MEASURES = ("kl", "next", "read")
SHOWN = {
    "atom": "the atom that fires",
    "matched": "the same at the write's norm",
    "whole": "all atoms of the write",
    "permuted": "another atom",
    "random": "random write",
    "pca": "principal direction",
}
MEASURE_NAMES = {
    "kl": "next tokens of the window",
    "next": "next token alone",
    "read": "later reads",
}


class SubstitutionRecords(TabledResult):
    """One substitution; open with :meth:`open`.

    ``metadata``: dictionary, model, revision, site, kind (of layer), shape (heads, keys, values), alive (atoms that
    fire), strongest (whether only firings at which the atom is the strongest of its write were tried; older ones
    lack it: it was not so), n_sequences, native_moves (nats by which the model's own writes, put back, move it),
    window.
    """

    kind, noun, verb = "substitutions", "a substitution", "substitute DICTIONARY"
    tables = TABLES
