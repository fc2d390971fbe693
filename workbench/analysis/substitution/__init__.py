"""Atoms of a dictionary of writes in the place of a recurrent layer's own writes: do they do the work?"""
