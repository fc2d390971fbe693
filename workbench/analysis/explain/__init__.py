"""Labels for latents, each with a score from text it was not made from.

- :mod:`.surface`: what can be read off the text at every token (repeat, bracket, string, indentation, …)
- :mod:`.rules`: the rule-based labeller; needs nothing but the codes
- :mod:`.labels`: what counts as a label
- :mod:`.endpoint`: an OpenAI-compatible endpoint, rate-limited, with its costs; or a local transformers model
- :mod:`.prompts`: the words asked, and how answers are read
- :mod:`.language_model`: labels and detection scores by a language model, stored and resumable
"""
