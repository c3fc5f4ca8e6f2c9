"""Images and their labels: where they come from, how they are split, how their pixels are read."""

from finetune.images.decoding import read_image
from finetune.images.sources import ImageSplits, Unreadable, load_images, load_scored_images
from finetune.images.splitting import stratified_folds, stratified_holdout, stratified_subset

__all__ = [
    "ImageSplits",
    "Unreadable",
    "load_images",
    "load_scored_images",
    "read_image",
    "stratified_folds",
    "stratified_holdout",
    "stratified_subset",
]
