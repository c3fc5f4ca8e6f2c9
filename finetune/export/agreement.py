"""Compare the predictions of an exported model with those of its run, and refuse a model that differs."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from finetune.data import read_pixels
from finetune.decide.answers import AnswerRule, best_answers
from finetune.decide.plan import Plan
from finetune.errors import ExportError
from finetune.export.images import CheckImages, reading_of_decoded
from finetune.predict.model import Ensemble, Predictor, TrainedModel
from finetune.predict.neighbours import Neighbours
from finetune.predict.set_metrics import give_labels
from finetune.value import FrozenModel

LEAST_EQUAL_LABELS = 0.99
"""Smallest share of images for which an exported model must name the same class."""

MOST_DIFFERENCE = 0.02
"""Largest difference between probabilities, except for one image in twenty."""

Predict = Callable[[NDArray[np.uint8]], NDArray[np.float64]]
"""Function that returns the probabilities (num_classes) of an image (height, width, channels), followed by the distance
from its nearest training image where there are neighbours, (num_classes + 1)."""


class Difference(FrozenModel):
    """Differences between two predictions of the same images."""

    equal_labels: float
    """Share of images for which both give the same answer; of sets of labels, share of labels on which both agree."""
    percentile95: float
    """95th percentile, over the images, of the largest difference between the two probabilities of a class."""
    largest: float
    """Largest difference between the two probabilities of a class, over all images."""

    def is_small(self) -> bool:
        """Return whether the two predictions agree."""
        return self.equal_labels >= LEAST_EQUAL_LABELS and self.percentile95 <= MOST_DIFFERENCE

    def __str__(self) -> str:
        """Return the figures as a text."""
        return (
            f"{self.equal_labels:.1%} of labels equal, 95th percentile of |dp| {self.percentile95:.5f}, "
            f"largest {self.largest:.5f}"
        )


class Agreement(FrozenModel):
    """Agreement of an exported model with its run, which predicts in float32."""

    origin: str
    """Description of the compared images."""
    num_images: int
    """Number of compared images."""
    num_shapes: int
    """Number of different heights and widths."""
    exported: Difference
    """Difference if files are decoded as for a prediction of the run: large ones at a reduced size."""
    decoded_in_full: Difference
    """Difference if the exported model gets every file at its full size."""
    own_precision: Difference | None
    """Difference between the run in its own number format and in float32; None if its own is float32."""
    distance: float | None
    """95th percentile of the difference between the distances from the nearest training image; None without them."""

    def lines(self) -> list[str]:
        """Return the figures as lines to print."""
        lines = [
            f"compared with the run in float32 on {self.num_images} images of {self.num_shapes} shapes "
            f"({self.origin}):",
            f"  files decoded as by finetune predict: {self.exported}",
            f"  files decoded at their full size:     {self.decoded_in_full}",
        ]
        if self.distance is not None:
            lines.append(f"  distance from the nearest training image: 95th percentile of |dd| {self.distance:.5f}")
        if self.own_precision is not None:
            lines.append(f"  the run itself, in its own precision: {self.own_precision}")
        return lines


def compare(
    model: Predictor, predict: Predict, shorter_side: int, images: CheckImages, neighbours: Neighbours | None = None
) -> Agreement:
    """Return how an exported model agrees with the model that it was made from.

    Args:
        model: the model of the run.
        predict: the exported model.
        shorter_side: shorter side from which large files may be reduced when they are decoded, in pixels.
        images: images to compare on.
        neighbours: training images that the exported model returns the distance from; None: it returns none.
    """
    table, exact, count = images.table(), in_float32(model), len(model.class_names)
    expected, reading = exact.probabilities(table), model.reading

    def rows(side: int | None) -> NDArray[np.float64]:
        return np.stack([predict(read_pixels(source, side, reading)) for source in images.sources])

    found = rows(shorter_side)
    distance = None
    if neighbours is not None:
        gaps = np.abs(found[:, count] - neighbours.distances(exact.features_of(table)))
        distance = float(np.percentile(gaps, 95))
    is_float32 = all(member.plan.forward.precision == "float32" for member in _members(model))
    return Agreement(
        origin=images.origin,
        num_images=len(images.sources),
        num_shapes=images.num_shapes,
        exported=difference(found[:, :count], expected, model.thresholds, model.rule),
        decoded_in_full=difference(rows(None)[:, :count], expected, model.thresholds, model.rule),
        own_precision=None
        if is_float32
        else difference(model.probabilities(table), expected, model.thresholds, model.rule),
        distance=distance,
    )


def difference(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    thresholds: Sequence[float] | None = None,
    rule: AnswerRule | None = None,
) -> Difference:
    """Return the differences between two predictions (n_images, n_classes).

    Args:
        first: probabilities of one model.
        second: probabilities of the other one.
        thresholds: probability from which each label of a set is given; None: each image has one label.
        rule: rule by which the answers follow from the probabilities; None: they are the most probable classes.
    """
    gaps = np.abs(first - second).max(axis=1)
    equal = (
        best_answers(first, rule) == best_answers(second, rule)
        if thresholds is None
        else give_labels(first, thresholds) == give_labels(second, thresholds)
    )
    return Difference(
        equal_labels=float(equal.mean()),
        percentile95=float(np.percentile(gaps, 95)),
        largest=float(gaps.max()),
    )


def refuse_if_different(agreement: Agreement) -> None:
    """Refuse an exported model that does not agree with its run.

    Raises:
        ExportError: too many labels differ, or the probabilities or the distances differ too much.
    """
    if agreement.distance is not None and agreement.distance > MOST_DIFFERENCE:
        raise ExportError(
            f"the exported model does not agree with the run on the distance of {agreement.num_images} images from the "
            f"training images (95th percentile of the differences {agreement.distance:.3g}; expected at most "
            f"{MOST_DIFFERENCE}), so nothing was written; predict with the run instead"
        )
    if agreement.exported.is_small():
        return
    raise ExportError(
        f"the exported model does not agree with the run on {agreement.num_images} images ({agreement.exported}; "
        f"expected at least {LEAST_EQUAL_LABELS:.0%} and at most {MOST_DIFFERENCE}), so nothing was written; predict "
        f"with the run instead, or export a run of another network"
    )


def in_float32(model: Predictor) -> Predictor:
    """Return a model that predicts in float32, whatever the number format of its run is."""
    return _with_plans(model, lambda plan: plan.changed(forward=plan.forward.changed(precision="float32")))


def of_decoded_images(model: Predictor) -> Predictor:
    """Return a model that predicts from the files that `choose_images` writes, whatever the images of its run are."""
    reading = reading_of_decoded(model.reading)
    return _with_plans(model, lambda plan: plan.changed(preprocessing=plan.preprocessing.changed(reading=reading)))


def _with_plans(model: Predictor, change: Callable[[Plan], Plan]) -> Predictor:
    """Return a model whose plans, of all its networks, are changed."""
    if isinstance(model, Ensemble):
        members = tuple(replace(member, plan=change(member.plan)) for member in model.members)
        return replace(model, plan=change(model.plan), members=members)
    assert isinstance(model, TrainedModel)
    return replace(model, plan=change(model.plan))


def _members(model: Predictor) -> tuple[TrainedModel, ...]:
    if isinstance(model, Ensemble):
        return model.members
    assert isinstance(model, TrainedModel)
    return (model,)
