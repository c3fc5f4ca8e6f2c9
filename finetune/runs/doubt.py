"""Keep what a run needs to know when its model should not answer, and read it back."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from finetune.cache import size_limit
from finetune.data import ImageSplits, Pixels, even_sample, labels_of
from finetune.data.batches import PlainImages
from finetune.decide.workload import measured_images
from finetune.network.head import find_head
from finetune.network.outputs import digest_weights, frozen_features
from finetune.predict.doubt import Experience
from finetune.predict.model import Predictor, TrainedModel
from finetune.predict.neighbours import Neighbours
from finetune.processes import divide_rows
from finetune.progress import Progress
from finetune.runs.image_tables import read_predictions

if TYPE_CHECKING:
    from datasets import Dataset

NEIGHBOURS = "neighbours.safetensors"
"""Name of the file with the features of training images."""

MOST = 1000
"""Largest number of training images that are kept."""


def find_neighbours(model: Predictor, splits: ImageSplits, progress: Progress) -> Neighbours:
    """Return training images to which new images are compared, evenly drawn from the classes.

    Args:
        model: the final model of a run.
        splits: the images of the run.
        progress: called with the work in progress.
    """
    chosen = even_sample(labels_of(splits.train), MOST, model.plan.seed)
    table = splits.train
    is_cached = len(table) <= measured_images(len(splits.class_names)) and size_limit() > 0
    if isinstance(model, TrainedModel) and not model.plan.steps and is_cached:
        return Neighbours.among(_frozen(model, table, progress)[chosen])
    return Neighbours.among(divide_rows(lambda rows: model.features_of(table.select(rows), progress), chosen))


def _frozen(model: TrainedModel, table: "Dataset", progress: Progress) -> NDArray[np.float32]:
    """Return the features (n_images, width) of a linear probe, which are those that its measurement has cached."""
    plan, network = model.plan, model.network
    images = PlainImages(Pixels(table, plan.preprocessing.shorter_side, model.reading), plan.preprocessing)
    weights = digest_weights(network, leave_out=find_head(network).names)
    return frozen_features(network, images, plan.preprocessing, plan.forward, weights, progress).numpy()


def read_experience(folder: Path) -> Experience:
    """Return what the model of a run folder is known to do, from its held-out predictions and its training images.

    Raises:
        RunFolderError: a file is missing or damaged.
    """
    held = read_predictions(folder)
    held = held[held["split"] == "validation"]
    return Experience(
        probability=held["probability"].tolist(),
        is_right=(held["label"] == held["predicted"]).tolist(),
        label_probability=held["label_probability"].tolist(),
        farthest=Neighbours.load(folder / NEIGHBOURS).limit,
    )
