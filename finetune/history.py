"""Define the rows of a training's history."""

Row = dict[str, float | int | str]
"""Quantities measured at one step, by name; one line of `history.jsonl`."""
