"""Load images and their labels, split them, and read their pixels as batches.

The modules, in the order in which an image passes through them:

- `sources`: loads labelled images from anywhere; `folder` scans a folder, `table` reads a table, `hub` and `streaming`
  read Hugging Face data sets, `demo` writes the embedded demo.
- `labels`: reads class names; `label_sets` reads and writes sets of them, and `iterative` divides images with sets;
  `cleaning` leaves out what must not count: missing labels, unreadable files, copies.
- `known_groups`: gives each image the group that the recipe names; `grouping` reads groups from paths.
- `image_splits`: makes train, validation and test splits; `splitting` chooses which images are held out.
- `pictures`: keeps copies of one picture on one side of the splits that are made here.
- `identity`: identifies the images of a run, so that it is not continued on other data.
- `decoding`: decodes an image file; `pixels` caches decoded images.
- `formats`: opens a file of any format; `raster` turns values of any depth, channels and pages into 8-bit RGB or other
  channels; `tiff` and `dicom` read them; `kinds` says what kinds of images there are, `all_channels` how many channels
  they have, and `value_range` finds the range of their values.
- `paths`: checks the given data before anything is read, and makes a table of image files without labels; `listing`
  lists the image files to predict.
- `augmentation`: resizes, crops and varies an image; `batches` makes batches of images.

A name is imported when it is first used, so that a prediction does not wait for what reads data sets.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune.data.cleaning import RANKS, same_content
    from finetune.data.decoding import (
        ImageSource,
        UndecodableError,
        Unreadable,
        decode,
        in_threads,
        native_size,
        read_header,
        read_image,
        read_pixels,
        reason_of,
    )
    from finetune.data.folder import describe_overlooked, files_below
    from finetune.data.identity import DataIdentity, identify
    from finetune.data.image_splits import ImageSplits, groups_of, labels_of, paths_of, together_of, without_undecodable
    from finetune.data.known_groups import groups_by_rule
    from finetune.data.listing import check_images, list_images
    from finetune.data.paths import check_data
    from finetune.data.pictures import tie_copies
    from finetune.data.pixels import Pixels
    from finetune.data.scanning import read_or_explain, why_undecodable, why_unreadable
    from finetune.data.sources import (
        group_training_images,
        label_paths,
        load_images,
        load_plan_images,
        load_scored_images,
        load_with_copies,
    )
    from finetune.data.splitting import (
        Ties,
        Together,
        even_sample,
        stratified_folds,
        stratified_holdout,
        stratified_subset,
    )
    from finetune.data.streaming import ImageStream

_HOMES = {
    "ImageSource": "decoding",
    "UndecodableError": "decoding",
    "Unreadable": "decoding",
    "decode": "decoding",
    "in_threads": "decoding",
    "native_size": "decoding",
    "read_header": "decoding",
    "read_image": "decoding",
    "read_pixels": "decoding",
    "read_or_explain": "scanning",
    "reason_of": "decoding",
    "why_undecodable": "scanning",
    "why_unreadable": "scanning",
    "RANKS": "cleaning",
    "same_content": "cleaning",
    "describe_overlooked": "folder",
    "files_below": "folder",
    "DataIdentity": "identity",
    "identify": "identity",
    "ImageSplits": "image_splits",
    "groups_of": "image_splits",
    "labels_of": "image_splits",
    "paths_of": "image_splits",
    "without_undecodable": "image_splits",
    "groups_by_rule": "known_groups",
    "check_images": "listing",
    "list_images": "listing",
    "check_data": "paths",
    "Pixels": "pixels",
    "group_training_images": "sources",
    "label_paths": "sources",
    "load_images": "sources",
    "load_plan_images": "sources",
    "load_scored_images": "sources",
    "load_with_copies": "sources",
    "even_sample": "splitting",
    "stratified_folds": "splitting",
    "Ties": "splitting",
    "Together": "splitting",
    "stratified_holdout": "splitting",
    "tie_copies": "pictures",
    "together_of": "image_splits",
    "stratified_subset": "splitting",
    "ImageStream": "streaming",
}
"""Module of the folder that defines each name."""

__all__ = [
    "RANKS",
    "DataIdentity",
    "ImageSource",
    "ImageSplits",
    "ImageStream",
    "Pixels",
    "Ties",
    "Together",
    "UndecodableError",
    "Unreadable",
    "check_data",
    "check_images",
    "decode",
    "describe_overlooked",
    "even_sample",
    "files_below",
    "group_training_images",
    "groups_by_rule",
    "groups_of",
    "identify",
    "in_threads",
    "label_paths",
    "labels_of",
    "list_images",
    "load_images",
    "load_plan_images",
    "load_scored_images",
    "load_with_copies",
    "native_size",
    "paths_of",
    "read_header",
    "read_image",
    "read_or_explain",
    "read_pixels",
    "reason_of",
    "same_content",
    "stratified_folds",
    "stratified_holdout",
    "stratified_subset",
    "tie_copies",
    "together_of",
    "why_undecodable",
    "why_unreadable",
    "without_undecodable",
]


def __getattr__(name: str) -> object:
    """Import a name from the module that defines it.

    Raises:
        AttributeError: the folder has no such name.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'finetune.data' has no attribute '{name}'")
    return getattr(import_module(f"finetune.data.{_HOMES[name]}"), name)
