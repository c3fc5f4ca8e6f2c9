"""Publish a trained model on the Hugging Face hub, in timm's format and with a model card."""

from finetune.publish.pushing import Publication, prepare, push

__all__ = ["Publication", "prepare", "push"]
