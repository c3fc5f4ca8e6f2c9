"""Carry out a run, from a recipe to a finished run folder."""
