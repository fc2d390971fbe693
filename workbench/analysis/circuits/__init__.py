"""Circuits in both architectures: patching, heads, states, write profiles, and the run of them all on one task."""
