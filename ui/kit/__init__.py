"""What every page shares.

``tokens`` is the one place that turns a token into markup; ``index`` says what a workspace holds; ``state`` keeps the
selection in the address; ``data`` opens files once; ``panels`` says "not computed – run …"; ``charts`` and ``figures``
draw, each with its table; ``theme.css`` is the look.
"""
