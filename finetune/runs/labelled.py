"""Predict labelled images with finished runs: to evaluate one of them, or to compare several."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from finetune.data import ImageSplits, UndecodableError, labels_of, load_scored_images, without_undecodable
from finetune.data.identity import contents_of
from finetune.errors import RunFolderError
from finetune.predict.model import HeldOut, Predictor
from finetune.progress import Progress, no_progress
from finetune.runs.comparing import Comparison, compare
from finetune.runs.folder import RunFolder
from finetune.runs.image_tables import places_of, rows_of
from finetune.runs.run_data import check_evaluated, count_trained_on
from finetune.runs.scoring_models import describe_models, remember_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Labelled images with the predictions of a run."""

    model: Predictor
    """The model of the run."""
    splits: ImageSplits
    """The images, as `test`."""
    labels: NDArray[np.int64]
    """Class of each image, (n_images,)."""
    probabilities: NDArray[np.float64]
    """Probabilities of the classes, (n_images, n_classes)."""
    unseen: NDArray[np.bool_]
    """Whether the model was not trained on each image, (n_images,)."""
    changes: str
    """How the images differ from those of the run, in words; empty if they do not, or are other data."""
    reads: str
    """Sentence about how many models have scored these images; empty if they are few."""


def predict_labelled(
    folder: RunFolder, data: str, progress: Progress = no_progress, accept_changes: bool | None = None
) -> Labelled:
    """Return labelled images with the predictions of a run; images that cannot be decoded are left out.

    Args:
        folder: the run folder.
        data: the images, in any form that `load_scored_images` accepts.
        progress: called with the number of images done.
        accept_changes: whether data of the run may have changed since the run began; None: it is not compared.

    Raises:
        FinetuneError: the run is not finished, the data cannot be loaded, has changed, or has classes that the model
            does not know.
    """
    model = folder.read_model()
    splits = load_scored_images(data, model.class_names, model.plan.columns, model.reading, model.plan.has_sets)
    changes = "" if accept_changes is None else check_evaluated(folder, splits, data, accept_changes)
    try:
        probabilities = model.probabilities(splits.test, progress)
    except UndecodableError:
        splits = without_undecodable(splits, only_test=True)
        if splits.test is None:
            raise
        probabilities = model.probabilities(splits.test, progress)
    labels = labels_of(splits.test)
    seen = count_trained_on(folder, splits, model.plan.refit)
    contents = {content.text for content in contents_of(splits.test)}
    return Labelled(
        model=model,
        splits=splits,
        labels=labels,
        probabilities=probabilities,
        unseen=~np.asarray(seen or [False] * len(labels), dtype=bool),
        changes=changes,
        reads=describe_models(remember_model(contents, model), len(labels), "images"),
    )


def compare_on(folders: Sequence[RunFolder], data: str, progress: Progress = no_progress) -> Comparison:
    """Return the comparison of runs with the first one, on labelled images that none of them was trained on.

    Args:
        folders: the folders of the runs.
        data: the images, in any form that `load_scored_images` accepts.
        progress: called with the number of images done.

    Raises:
        FinetuneError: a run is not finished, the data cannot be loaded, or a run was trained on all of the images.
    """
    found = [predict_labelled(folder, data, progress) for folder in folders]
    tables = [_table(each) for each in found]
    seen = {path for each, table in zip(found, tables, strict=True) for path in table["path"][~each.unseen]}
    unseen = [table[~table["path"].isin(seen)] for table in tables]
    if not all(map(len, unseen)):
        raise RunFolderError(
            f"the runs were trained on all images of {data}, so these cannot compare them; give --data other images"
        )
    comparison = compare(folders, unseen, f"images of {data}")
    left_out = f"{len(seen):,} images of {data} are left out, because a run was trained on them" if seen else ""
    return comparison.noting(left_out, found[-1].reads)


def _table(found: Labelled) -> pd.DataFrame:
    """Return the predictions of a run as a table."""
    places = places_of(found.splits.test)
    predicted = HeldOut(labels=found.labels, probabilities=found.probabilities)
    return rows_of("test", places, [None] * len(places), predicted, found.model)
