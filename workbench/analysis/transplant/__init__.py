"""Causal universality: does a latent's partner in another model do its work?"""
