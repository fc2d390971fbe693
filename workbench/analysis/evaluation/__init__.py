"""A dictionary inside its language model: losses and intervals, probing and absorption, a text typed by hand."""
