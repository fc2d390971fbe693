"""Scores of explanations, side by side: does a label tell where its latent fires?

- :mod:`.samples`: the excerpts of an exam, and which of their tokens are marked
- :mod:`.measures`: what a score is, with its interval
- :mod:`.judges`: who is asked: the rule itself, or a language model
- :mod:`.similarity`: words that label and excerpt share; nobody is asked
- :mod:`.run`: ``workbench score``
"""
