"""What pages share.

``index`` says what a workspace holds; ``state`` keeps the selection in the address; ``data`` opens files once;
``panels`` says "not computed – run …"; ``plotting`` and ``figures`` draw, each figure with its table; ``theme.css`` is
the look. Tokens become markup in :mod:`workbench.markup.tokens` and nowhere else.
"""
