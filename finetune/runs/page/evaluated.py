"""Describe the predictions of one split for a report: classes, confusions, the most confident errors, similar
classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray

from finetune.decide.plan import Plan
from finetune.predict.intervals import wilson_interval
from finetune.predict.metrics import Metrics, describe_not_evaluated
from finetune.predict.model import TrainedModel
from finetune.runs.image_tables import indices_of
from finetune.runs.page.charts import accuracy_against_share, reliability
from finetune.runs.page.confusions import ConfusionMatrix, Pair, count_confusions, make_matrix, most_confused
from finetune.runs.page.figures import interval_bar
from finetune.runs.page.pictures import LARGE, SMALL, FindSource, Picture, draw_picture, map_images, view_images

MOST_ERRORS = 12
"""Largest number of errors that are shown one by one."""

MOST_PAIRS = 4
"""Largest number of pairs of classes that are shown side by side."""

STRIP = 4
"""Largest number of images in a row of one class of a pair."""

MOST_ROWS = 300
"""Largest number of classes in the table of classes; of more classes, those with the lowest recall are listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRow:
    """The results of one class."""

    name: str
    """Name of the class."""
    count: int
    """Number of its images."""
    recall: float
    """Share of its images that are predicted as this class."""
    interval: tuple[float, float]
    """95 % interval of the recall (Wilson)."""
    precision: float
    """Share of the images predicted as this class that are of this class."""
    f1: float
    """Harmonic mean of precision and recall."""
    bar: Markup
    """Figure of the recall and its interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePrediction:
    """A prediction with its picture."""

    name: str
    """Name of the image file."""
    label: str
    """The right class."""
    predicted: str
    """The most probable class."""
    probability: float
    """Probability of the predicted class."""
    label_probability: float
    """Probability of the right class."""
    picture: Picture
    """The image and the map of the prediction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSide:
    """One class of a confused pair."""

    name: str
    """Name of the class."""
    other: str
    """Name of the class that it is taken for."""
    count: int
    """Number of its images."""
    wrong: int
    """Number of its images that are taken for the other class."""
    right_pictures: tuple[ImagePrediction, ...]
    """Images that are predicted correctly, the most confident ones first."""
    wrong_pictures: tuple[ImagePrediction, ...]
    """Images that are taken for the other class, the most confident ones first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """Everything that a report says about the predictions of one split."""

    split: str
    """`validation` or `test`."""
    images: str
    """The images, in words."""
    metrics: Metrics
    """Metrics of the split."""
    classes: tuple[ClassRow, ...]
    """Results of the classes, the lowest recall first."""
    num_classes: int
    """Number of classes that have images in this split."""
    matrix: ConfusionMatrix
    """Confusion matrix."""
    reliability: Markup
    """Chart of the reliability of the probabilities."""
    withheld: Markup
    """Chart of the accuracy against the share of images that is labelled."""
    num_wrong: int
    """Number of images that are predicted wrongly."""
    errors: tuple[ImagePrediction, ...]
    """The most confident errors."""
    pairs: tuple[tuple[PairSide, PairSide], ...]
    """The most confused pairs of classes, side by side."""

    @property
    def not_evaluated(self) -> str:
        """Which classes have no image in this split, in a sentence; empty: all have one."""
        return describe_not_evaluated(self.metrics)

    @property
    def has_maps(self) -> bool:
        """Whether any error has a class activation map."""
        return any(error.picture.shade for error in self.errors)


class Illustrator:
    """Turn predictions into pictures of their images."""

    def __init__(self, find: FindSource, plan: Plan, model: TrainedModel | None) -> None:
        """Find images with `find`; `model` explains predictions, unless it is None."""
        self._find, self._plan, self._model = find, plan, model

    def draw(
        self, rows: pd.DataFrame, side: int, explained: NDArray[np.int64] | None = None
    ) -> tuple[ImagePrediction, ...]:
        """Return the predictions of some rows with pictures of at most `side` pixels, and with the map of a class of
        each, (n,), if such are given."""
        views = view_images(self._find, rows, self._plan)
        heats: list[NDArray[np.float32] | None] = [None] * len(rows)
        if explained is not None and self._model is not None:
            heats = map_images(self._model, views, explained)
        return tuple(
            ImagePrediction(
                name=Path(row["path"]).name,
                label=row["label"],
                predicted=row["predicted"],
                probability=row["probability"],
                label_probability=row["label_probability"],
                picture=draw_picture(view, side, heat),
            )
            for row, view, heat in zip(rows.to_dict("records"), views, heats, strict=True)
        )


def describe_split(
    rows: pd.DataFrame, split: str, images: str, metrics: Metrics, illustrator: Illustrator
) -> Evaluated:
    """Return what a report says about the predictions of one split.

    Args:
        rows: predictions of the split.
        split: `validation` or `test`.
        images: the images, in words.
        metrics: metrics of the split, as in metrics.json.
        illustrator: turns predictions into pictures.
    """
    names = [row.name for row in metrics.per_class]
    labels, predicted = indices_of(rows["label"], names), indices_of(rows["predicted"], names)
    counts = count_confusions(labels, predicted, len(names))
    right = labels == predicted
    wrong = rows[~right].sort_values("probability", ascending=False, kind="stable")
    shown = wrong.head(MOST_ERRORS)
    return Evaluated(
        split=split,
        images=images,
        metrics=metrics,
        classes=_list_classes(metrics, counts),
        num_classes=sum(row.num_images > 0 for row in metrics.per_class),
        matrix=make_matrix(counts, names, are_grades=metrics.grades is not None),
        reliability=reliability(rows["probability"].to_numpy(np.float64), right),
        withheld=accuracy_against_share(rows["probability"].to_numpy(np.float64), right),
        num_wrong=len(wrong),
        errors=illustrator.draw(shown, LARGE, indices_of(shown["predicted"], names)),
        pairs=tuple(_show_pair(pair, rows, names, counts, illustrator) for pair in most_confused(counts, MOST_PAIRS)),
    )


def _list_classes(metrics: Metrics, counts: NDArray[np.int64]) -> tuple[ClassRow, ...]:
    """Return a row for each class that has images, the lowest recall first, at most `MOST_ROWS` rows."""
    present = [(row, int(counts[place, place])) for place, row in enumerate(metrics.per_class) if row.num_images]
    # Of equal recalls, that of the most images says most.
    present.sort(key=lambda each: (each[0].recall, -each[0].num_images, each[0].name))
    found = []
    for row, hits in present[:MOST_ROWS]:
        interval = wilson_interval(hits, row.num_images)
        bar = interval_bar(row.recall, interval)
        found.append(
            ClassRow(
                name=row.name,
                count=row.num_images,
                recall=row.recall,
                interval=interval,
                precision=row.precision,
                f1=row.f1,
                bar=bar,
            )
        )
    return tuple(found)


def _show_pair(
    pair: Pair, rows: pd.DataFrame, names: Sequence[str], counts: NDArray[np.int64], illustrator: Illustrator
) -> tuple[PairSide, PairSide]:
    """Return both sides of a pair of classes, with pictures of right and of wrong predictions."""

    def most_confident(label: int, predicted: int) -> tuple[ImagePrediction, ...]:
        own = rows[(rows["label"] == names[label]) & (rows["predicted"] == names[predicted])]
        return illustrator.draw(own.sort_values("probability", ascending=False, kind="stable").head(STRIP), SMALL)

    def side(own: int, other: int, wrong: int) -> PairSide:
        return PairSide(
            name=names[own],
            other=names[other],
            count=int(counts[own].sum()),
            wrong=wrong,
            right_pictures=most_confident(own, own),
            wrong_pictures=most_confident(own, other),
        )

    return side(pair.first, pair.second, pair.forth), side(pair.second, pair.first, pair.back)
