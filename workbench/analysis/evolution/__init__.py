"""Latents over snapshots, layers or models: when they emerge, what kind they are, what they are worth to a task, what
two sources share.
"""
