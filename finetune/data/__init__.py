"""Load images and their labels, split them, and read their pixels as batches.

The modules, in the order in which an image passes through them:

- `sources`: loads labelled images from anywhere; `folder` scans a folder, `table` reads a table, `hub` and `streaming`
  read Hugging Face data sets, `demo` writes the embedded demo.
- `known_groups`: gives each image the group that the recipe names; `grouping` reads groups from paths.
- `image_splits`: makes train, validation and test splits; `splitting` chooses which images are held out.
- `decoding`: decodes an image file; `pixels` caches decoded images.
- `augmentation`: resizes, crops and varies an image; `batches` makes batches of images.
"""

from finetune.data.decoding import ImageSource, decode, in_threads, native_size, read_image, why_unreadable
from finetune.data.folder import files_below
from finetune.data.image_splits import ImageSplits, Unreadable, groups_of, labels_of, paths_of
from finetune.data.known_groups import groups_by_rule
from finetune.data.pixels import Pixels
from finetune.data.sources import group_training_images, label_paths, load_images, load_scored_images, table_of_paths
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
    "group_training_images",
    "groups_by_rule",
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
