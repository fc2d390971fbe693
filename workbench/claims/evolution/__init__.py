"""Claims of *Evolution of Concepts in Language Model Pre-Training* (arXiv 2509.17196)."""
