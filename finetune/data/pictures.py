"""Keep the copies of one picture on one side of the splits that are made here."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from datasets import concatenate_datasets
from numpy.typing import NDArray

from finetune.data.identity import contents_of
from finetune.data.image_splits import LEAST_TO_TEST, PICTURE, ImageSplits, labels_of, together_of, with_pictures
from finetune.data.splitting import are_in_small_classes, stratified_holdout, stratified_subset


def tie_copies(
    splits: ImageSplits, copies: Sequence[Sequence[str]], seed: int, limit: int | None = None
) -> ImageSplits:
    """Return splits that divide no picture, as far as they are made here: the test split, and those of the training.

    Given splits stay as they are. A test split that was made is made anew, of about the same size.

    Args:
        splits: labelled images.
        copies: contents (size and digest, as text) of the images that show one picture, for each picture.
        seed: seed of the test split.
        limit: largest number of training images; None: no limit.
    """
    if not copies:
        return splits
    numbers = {content: number for number, contents in enumerate(copies) for content in contents}
    known = replace(splits, copies=tuple(tuple(contents) for contents in copies))
    if splits.test is None or not splits.test_was_made:
        return replace(known, train=with_pictures(splits.train, _pictures(splits.train, numbers)))
    parts = [
        part.remove_columns(PICTURE) if PICTURE in part.column_names else part for part in (splits.train, splits.test)
    ]
    everything = concatenate_datasets(parts)
    everything = with_pictures(everything, _pictures(everything, numbers))
    labels = labels_of(everything)
    # Only classes with enough images have test images.
    fraction = len(splits.test) / int((~are_in_small_classes(labels, LEAST_TO_TEST)).sum())
    stay, held_out = stratified_holdout(labels, fraction, seed, together_of(everything), LEAST_TO_TEST)
    if limit is not None and len(stay) > limit:
        stay = stay[stratified_subset(labels[stay], limit, seed)]
    # Under a limit, most images are in neither split, and the share stays about what it was.
    share = splits.test_share if limit is not None else len(held_out) / len(everything)
    return replace(known, train=everything.select(stay), test=everything.select(held_out), test_share=share)


def _pictures(dataset: object, numbers: dict[str, int]) -> NDArray[np.int64]:
    """Return the number of the picture of each image, (n_images,): the first image that shows it.

    Args:
        dataset: a split.
        numbers: number of the picture that the images of a content show, where they are changed copies.
    """
    first: dict[int | str, int] = {}
    texts = [content.text for content in contents_of(dataset)]
    return np.asarray([first.setdefault(numbers.get(text, text), row) for row, text in enumerate(texts)], np.int64)
