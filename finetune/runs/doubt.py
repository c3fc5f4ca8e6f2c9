"""Keep what a run needs to know when its model should not answer, and read it back."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from finetune.cache import size_limit
from finetune.data import ImageSplits, Pixels, even_sample, labels_of
from finetune.data.batches import PlainImages
from finetune.decide.workload import measured_images
from finetune.errors import RecipeError
from finetune.network.head import find_head
from finetune.network.outputs import digest_weights, frozen_features
from finetune.predict.doubt import Doubt, Limits, Neighbours, find_least_probability, least_probability_in_set
from finetune.predict.model import Predictor, TrainedModel
from finetune.processes import divide_rows, first_alone
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
    with first_alone():
        return frozen_features(network, images, plan.preprocessing, plan.forward, weights, progress).numpy()


def read_doubt(folder: Path, unknown_at: float | None, sets: float | None) -> Doubt:
    """Return the limits of a run, from its held-out predictions and its training images.

    Args:
        folder: a run folder.
        unknown_at: share of the given labels that shall be right, 0 .. 1; None: all labels are given.
        sets: share of the sets that shall hold the right class, 0 .. 1; None: no sets.

    Raises:
        RecipeError: no probability is high enough for that share.
        RunFolderError: a file is missing or damaged.
    """
    held = read_predictions(folder)
    held = held[held["split"] == "validation"]
    limits = None
    if unknown_at is not None:
        is_right = (held["label"] == held["predicted"]).to_numpy(bool)
        least = find_least_probability(held["probability"].to_numpy(float), is_right, unknown_at)
        if least is None:
            raise RecipeError(
                f"at no probability are {100 * unknown_at:.4g} % of the labels of the {len(held)} held-out images "
                f"right; give --unknown-at a smaller share ({100 * is_right.mean():.0f} % of all labels are right), or "
                f"let --sets name several classes"
            )
        limits = Limits(least=least, neighbours=Neighbours.load(folder / NEIGHBOURS))
    own = held["label_probability"].to_numpy(float)
    return Doubt(limits=limits, least_in_set=None if sets is None else least_probability_in_set(own, sets))


def describe_doubt(doubt: Doubt) -> list[str]:
    """Return sentences about the limits, for the person who asked for them."""
    lines = []
    if doubt.limits is not None:
        least, neighbours = doubt.limits.least, doubt.limits.neighbours
        low, high = (100 * end for end in least.interval)
        lines += [
            f"labels are given from a probability of {least.value:.3g} on: to {100 * least.share:.0f} % of the "
            f"held-out images, of which {100 * least.right:.1f} % are right (95 % interval: {low:.1f} to {high:.1f})",
            f"and to images at a distance of at most {neighbours.limit:.3g} from a training image: 99 % of the "
            f"training images are that near to another one",
        ]
    if doubt.least_in_set is not None:
        lines.append(f"sets have all classes with a probability of at least {doubt.least_in_set:.3g}")
    return lines
