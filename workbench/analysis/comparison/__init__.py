"""Latents of two models on the same tokens: codes, partners, baselines, depth, complexity, tables.

The correlation itself is :mod:`workbench.analysis.correlation`.
"""
