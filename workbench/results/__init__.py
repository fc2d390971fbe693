"""Readers of the folders a workspace holds: latent records, matches, circuits, evolutions, lists.

Neither torch nor h5py is needed.
"""
