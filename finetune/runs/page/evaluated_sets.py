"""Describe the predicted sets of labels of one split for a report: classes, errors and the probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray

from finetune.data.label_sets import as_text, divided, names_in
from finetune.predict.metrics import Metrics, describe_not_evaluated
from finetune.predict.set_metrics import USUAL_THRESHOLD, SetMetrics
from finetune.runs.image_tables import probabilities_of
from finetune.runs.page.charts import reliability
from finetune.runs.page.evaluated import MOST_ERRORS, MOST_ROWS, Illustrator
from finetune.runs.page.figures import interval_bar
from finetune.runs.page.pictures import LARGE, Picture


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRow:
    """The results of one label."""

    name: str
    """Name of the class."""
    count: int
    """Number of images with the label."""
    average_precision: float
    """Average precision."""
    interval: tuple[float, float]
    """95 % bootstrap interval of the average precision."""
    f1: float
    """F1 at the threshold."""
    threshold: float
    """Probability from which the label is given."""
    missed: int
    """Number of images with the label that do not get it."""
    added: int
    """Number of images without the label that get it."""
    bar: Markup
    """Figure of the average precision and its interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetError:
    """An image with a wrong label."""

    name: str
    """Name of the image file."""
    label: str
    """The right labels."""
    predicted: str
    """The labels that it gets."""
    probability: float
    """Probability of the labels that it gets, all together."""
    about: str
    """The most confident of its errors, in words."""
    picture: Picture
    """The image as the network sees it, and the map of the label of that error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedSets:
    """Everything that a report says about the predicted sets of labels of one split."""

    split: str
    """`validation` or `test`."""
    images: str
    """The images, in words."""
    metrics: Metrics
    """Metrics of the split."""
    sets: SetMetrics
    """Metrics of the sets."""
    classes: tuple[LabelRow, ...]
    """Results of the classes, the lowest average precision first."""
    num_classes: int
    """Number of classes that have images in this split."""
    reliability: Markup
    """Chart of the reliability of the probabilities."""
    num_wrong: int
    """Number of images with a wrong label."""
    errors: tuple[SetError, ...]
    """The images with the most confident errors."""

    @property
    def not_evaluated(self) -> str:
        """Which classes have no image in this split, in a sentence; empty: all have one."""
        return describe_not_evaluated(self.metrics)

    @property
    def has_maps(self) -> bool:
        """Whether any error has a class activation map."""
        return any(error.picture.shade for error in self.errors)


def describe_sets_of_split(
    rows: pd.DataFrame, split: str, images: str, metrics: Metrics, illustrator: Illustrator
) -> EvaluatedSets:
    """Return what a report says about the predicted sets of labels of one split.

    Args:
        rows: predictions of the split.
        split: `validation` or `test`.
        images: the images, in words.
        metrics: metrics of the split, as in metrics.json.
        illustrator: turns predictions into pictures.

    Raises:
        ValueError: the metrics are not those of sets of labels.
    """
    if metrics.sets is None:
        raise ValueError("the metrics are not those of sets of labels")
    names = [row.name for row in metrics.per_class]
    right, given = divided(rows["label"], names) > 0, divided(rows["predicted"], names) > 0
    probabilities = probabilities_of(rows, names)
    # How sure a wrong answer is: the probability of a label that is not there, or one less that of one that is.
    gaps = np.where(right != given, np.abs(probabilities - right), -1.0)
    wrong = np.flatnonzero((right != given).any(axis=1))
    worst = wrong[np.argsort(-gaps[wrong].max(axis=1), kind="stable")]
    confidence = np.maximum(probabilities, 1.0 - probabilities)
    answers = (probabilities >= USUAL_THRESHOLD) == right
    return EvaluatedSets(
        split=split,
        images=images,
        metrics=metrics,
        sets=metrics.sets,
        classes=_list_classes(metrics, metrics.sets, right, given),
        num_classes=int(right.any(axis=0).sum()),
        reliability=reliability(confidence.reshape(-1), answers.reshape(-1)),
        num_wrong=len(wrong),
        errors=_show_errors(rows, worst[:MOST_ERRORS], gaps, right, given, names, illustrator),
    )


def _list_classes(
    metrics: Metrics, sets: SetMetrics, right: NDArray[np.bool_], given: NDArray[np.bool_]
) -> tuple[LabelRow, ...]:
    """Return a row for each class that has images, the lowest average precision first, at most `MOST_ROWS` rows."""
    missed, added = (right & ~given).sum(axis=0), (given & ~right).sum(axis=0)
    found = []
    for place, (own, ranked) in enumerate(zip(metrics.per_class, sets.per_class, strict=True)):
        if ranked.average_precision is None or ranked.interval is None:
            continue
        found.append(
            LabelRow(
                name=own.name,
                count=own.num_images,
                average_precision=ranked.average_precision,
                interval=ranked.interval,
                f1=own.f1,
                threshold=ranked.threshold,
                missed=int(missed[place]),
                added=int(added[place]),
                bar=interval_bar(ranked.average_precision, ranked.interval),
            )
        )
    found.sort(key=lambda row: (row.average_precision, row.name))
    return tuple(found[:MOST_ROWS])


def _show_errors(
    rows: pd.DataFrame,
    places: NDArray[np.intp],
    gaps: NDArray[np.float64],
    right: NDArray[np.bool_],
    given: NDArray[np.bool_],
    names: Sequence[str],
    illustrator: Illustrator,
) -> tuple[SetError, ...]:
    """Return the images in some rows with their most confident error."""
    labels = gaps[places].argmax(axis=1)
    drawn = illustrator.draw(rows.iloc[places], LARGE, labels)
    found = []
    for place, worst, shown in zip(places, labels.tolist(), drawn, strict=True):
        name, sure = names[worst], 100 * gaps[place, worst]
        verb = "is given" if given[place, worst] else "is not given"
        found.append(
            SetError(
                name=shown.name,
                label=as_text(names_in(right[place], names)),
                predicted=as_text(names_in(given[place], names)),
                probability=shown.probability,
                about=f"{name} {verb}, {sure:.0f} % sure",
                picture=shown.picture,
            )
        )
    return tuple(found)
