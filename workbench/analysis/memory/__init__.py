"""What a layer keeps of each token for later ones: writes into a state, keys and values of attention."""
