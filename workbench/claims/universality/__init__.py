"""Claims of *Towards Universality* (arXiv 2410.06672)."""
