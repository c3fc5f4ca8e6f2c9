"""Count the models that have scored the same test images: the best of many looks better than it is.

The counts are in a folder of the user's cache, not in the run folders: runs are moved and deleted, and have no common
place. They are not a part of the cache's size, and `finetune cache --clear` leaves them. A model is an empty file
whose name is a digest of its weights, below a folder whose name is a digest of the images, so that processes can count
at the same time, and a model that is evaluated again counts once.
"""

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from finetune.cache import cache_folder, size_limit
from finetune.errors import CacheError
from finetune.network.outputs import digest_weights
from finetune.predict.model import Ensemble, Predictor, TrainedModel

FOLDER = "test-reads"
"""Name of the folder in the cache."""

OFTEN = 5
"""Number of models from which on their number is said: the best of 5 equally good models is 1.2 standard errors of the
accuracy above their mean (the expected maximum of 5 normal draws)."""


def remember_model(images: Iterable[str], model: Predictor) -> int:
    """Remember that a model has scored some images, and return how many models have, this one included.

    If the cache is switched off or cannot be written to, nothing is remembered.

    Args:
        images: what identifies the content of each image, as `DataIdentity.contents` returns it.
        model: the model that has scored them.
    """
    folder, own = _folder_of(images), _digest(_weights_of(model))
    with suppress(OSError, CacheError):
        if size_limit():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / own).touch()
    return len(_names_in(folder) | {own})


def count_models(images: Iterable[str]) -> int:
    """Return how many models are known to have scored some images."""
    return len(_names_in(_folder_of(images)))


def describe_models(count: int, num_images: int, images: str) -> str:
    """Return a sentence about how many models have scored the same images; "" if they are few.

    >>> describe_models(14, 269, "test images")
    'these 269 test images have been scored by 14 models, and the best of them looks better than it is: choose on \
held-out images'

    Args:
        count: number of models.
        num_images: number of images.
        images: the images, in words.
    """
    if count < OFTEN:
        return ""
    return (
        f"these {num_images:,} {images} have been scored by {count} models, and the best of them looks better than it "
        f"is: choose on held-out images"
    )


def _folder_of(images: Iterable[str]) -> Path:
    return cache_folder() / FOLDER / _digest(sorted(set(images)))


def _names_in(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in folder.iterdir()}
    except OSError:  # nothing is known, or the folder cannot be read
        return set()


def _weights_of(model: Predictor) -> list[str]:
    """Return a digest of the weights of each network of a model."""
    members = model.members if isinstance(model, Ensemble) else (model,)
    return [digest_weights(member.network) for member in members if isinstance(member, TrainedModel)]


def _digest(texts: Iterable[str]) -> str:
    return hashlib.blake2b("\n".join(texts).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
