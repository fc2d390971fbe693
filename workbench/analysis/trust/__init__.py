"""A card of evidence for every latent of a dictionary: what speaks for its being real, each number beside chance."""
