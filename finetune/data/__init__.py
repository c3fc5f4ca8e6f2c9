"""Images and their labels: where they come from, how they are split, how their pixels are read."""

from finetune.data.decoding import ImageSource, decode, in_threads, native_size, read_image, why_unreadable
from finetune.data.pixels import Pixels
from finetune.data.sources import (
    ImageSplits,
    Unreadable,
    files_below,
    groups_of,
    label_paths,
    labels_of,
    load_images,
    load_scored_images,
    paths_of,
    table_of_paths,
)
from finetune.data.splitting import even_sample, stratified_folds, stratified_holdout, stratified_subset
from finetune.data.streaming import ImageStream

__all__ = [
    "ImageSource",
    "ImageSplits",
    "ImageStream",
    "Pixels",
    "Unreadable",
    "decode",
    "even_sample",
    "files_below",
    "groups_of",
    "in_threads",
    "label_paths",
    "labels_of",
    "load_images",
    "load_scored_images",
    "native_size",
    "paths_of",
    "read_image",
    "stratified_folds",
    "stratified_holdout",
    "stratified_subset",
    "table_of_paths",
    "why_unreadable",
]
