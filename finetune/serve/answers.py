"""Define what the server answers: labels with probabilities, and reasons."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finetune.predict.rows import DIGITS
from finetune.value import FrozenModel

MOST_NAMED = 5
"""Largest number of classes that are named for an image."""


class ClassProbability(FrozenModel):
    """A class and its probability."""

    label: str
    """Name of the class."""
    probability: float
    """Probability of the class, from 0 to 1, with 4 significant digits."""


class LabelledImage(FrozenModel):
    """The prediction of an image."""

    name: str
    """Name of the file, as it was sent."""
    label: str
    """Name of the most probable class."""
    probability: float
    """Probability of this class, from 0 to 1, with 4 significant digits, as in the output of `finetune predict`."""
    top: tuple[ClassProbability, ...]
    """The five most probable classes, or all of them if there are fewer; the most probable one is the first."""


class FailedImage(FrozenModel):
    """A file that was not labelled."""

    name: str
    """Name of the file, as it was sent."""
    error: str
    """Reason why it was not labelled."""


class Answer(FrozenModel):
    """The predictions of the images of a request, in their order."""

    images: tuple[LabelledImage | FailedImage, ...]
    """The prediction of each image, or the reason why there is none."""


class Refusal(FrozenModel):
    """The answer to a request that was refused as a whole."""

    detail: str
    """Reason, and what to do."""


class Health(FrozenModel):
    """The state of the server."""

    status: str
    """Always `ok`: a server that has stopped does not answer."""
    model: str
    """Path of the run folder or of the exported file."""
    classes: tuple[str, ...]
    """Names of the classes."""
    images_in_work: int
    """Number of images that are waiting or being predicted."""
    version: str
    """Version of finetune."""


def label(name: str, class_names: Sequence[str], probabilities: NDArray[np.float64]) -> LabelledImage:
    """Return the answer for an image from its probabilities (n_classes,)."""
    best = np.argsort(-probabilities)[:MOST_NAMED]
    # The digits of the CSV that `finetune predict` prints.
    top = tuple(
        ClassProbability(label=class_names[place], probability=float(f"{probabilities[place]:{DIGITS}}"))
        for place in best
    )
    return LabelledImage(name=name, label=top[0].label, probability=top[0].probability, top=top)
