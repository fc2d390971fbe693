"""Claims of *Llama Scope* (arXiv 2410.20526)."""
