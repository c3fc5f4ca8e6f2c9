"""Define what the server answers: labels with probabilities, and reasons."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from finetune.decide.answers import AnswerRule, best_answers
from finetune.predict.rows import DIGITS
from finetune.predict.set_metrics import give_labels
from finetune.value import FrozenModel, is_none

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
    """Name of the most probable class, or of that with the least expected cost, if confusions have costs."""
    probability: float
    """Probability of this class, from 0 to 1, with 4 significant digits, as in the output of `finetune predict`."""
    top: tuple[ClassProbability, ...]
    """The five most probable classes, or all of them if there are fewer; the most probable one is the first."""
    labels: Annotated[tuple[ClassProbability, ...] | None, Field(exclude_if=is_none)] = None
    """All labels of the image, the most probable one first; left out by models that give each image one label."""


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


def label(
    name: str,
    class_names: Sequence[str],
    probabilities: NDArray[np.float64],
    thresholds: Sequence[float] | None = None,
    rule: AnswerRule | None = None,
) -> LabelledImage:
    """Return the answer for an image.

    Args:
        name: name of the file.
        class_names: names of the classes.
        probabilities: probability of each class, (n_classes,).
        thresholds: probability from which each label of a set is given; None: each image has one label.
        rule: rule by which the answer follows from the probabilities; None: it is the most probable class.
    """
    order = np.argsort(-probabilities)
    # The digits of the CSV that `finetune predict` prints.
    ranked = tuple(
        ClassProbability(label=class_names[place], probability=float(f"{probabilities[place]:{DIGITS}}"))
        for place in order
    )
    labels = None
    if thresholds is not None:
        given = give_labels(probabilities, thresholds)[order]
        labels = tuple(each for each, is_given in zip(ranked, given, strict=True) if is_given)
    (best,) = best_answers(probabilities[None], rule).tolist()
    answer = ranked[order.tolist().index(best)]
    return LabelledImage(
        name=name, label=answer.label, probability=answer.probability, top=ranked[:MOST_NAMED], labels=labels
    )
