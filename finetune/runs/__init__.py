"""Carry out a run: the chain from a recipe to a finished run folder."""
