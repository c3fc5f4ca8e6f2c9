"""Export a trained model as one graph of everything after the decoding of an image, and check that it agrees."""

from finetune.export.agreement import Agreement
from finetune.export.exporting import Format, export_run

__all__ = ["Agreement", "Format", "export_run"]
