"""Measure the images, the network on them, and the machine, before anything is decided."""

from finetune.measure.measuring import measure_evidence

__all__ = ["measure_evidence"]
