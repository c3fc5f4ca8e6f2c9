"""Serve the network of a run, or the networks of an ensemble."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.data import read_pixels
from finetune.data.augmentation import plain_view
from finetune.decide.answers import AnswerRule
from finetune.decide.preprocessing import Preprocessing
from finetune.network.cpu import ThreadTeam
from finetune.network.forward import ForwardPass, logits
from finetune.predict.model import Ensemble, Predictor, TrainedModel, over_views

Views = dict[Preprocessing, Tensor]
"""Pixels (channels, size, size) uint8 of one image for each preprocessing of a model."""


class ServedNetworks:
    """The model of a run folder.

    An image is decoded and resized by the thread of its request. The forward passes have the settings of the plan, as
    those of `finetune predict`.
    """

    def __init__(self, model: Predictor) -> None:
        """Serve a trained model or an ensemble."""
        self._model = model
        members = model.members if isinstance(model, Ensemble) else (model,)
        self._members = [member for member in members if isinstance(member, TrainedModel)]
        self._preprocessings = {member.plan.preprocessing for member in self._members}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the probabilities."""
        return self._model.class_names

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """Probability from which each label is given; None: each image has one label."""
        return self._model.thresholds

    @property
    def rule(self) -> AnswerRule | None:
        """Rule by which the answer follows from the probabilities; None: it is the most probable class."""
        return self._model.rule

    def prepare(self, encoded: bytes) -> Views:
        """Return an image, decoded and resized for each network."""
        reading = self._model.reading  # the same for all networks of an ensemble
        sides = {each.shorter_side for each in self._preprocessings}
        decoded = {side: read_pixels(encoded, side, reading) for side in sides}
        return {each: plain_view(decoded[each.shorter_side], each) for each in self._preprocessings}

    @contextmanager
    def predictions(self) -> Iterator[Callable[[Sequence[Views]], NDArray[np.float64]]]:
        """Return a context with the function that predicts; its threads are those of the plan."""
        settings = self._members[0].plan.forward
        with ThreadTeam(settings.parallel_parts, settings.num_threads) as team:
            passes = [
                ForwardPass(member.network, member.plan.preprocessing, member.plan.forward, logits)
                for member in self._members
            ]

            def predict(images: Sequence[Views]) -> NDArray[np.float64]:
                parts = [
                    _probabilities(member, send, team, images)
                    for member, send in zip(self._members, passes, strict=True)
                ]
                return self._model.combined(parts) if isinstance(self._model, Ensemble) else parts[0]

            yield predict


def _probabilities(
    member: TrainedModel, send: ForwardPass, team: ThreadTeam, images: Sequence[Views]
) -> NDArray[np.float64]:
    """Return the probabilities (n, n_classes) of images by one network; the threads divide the images."""
    pixels = torch.stack([views[member.plan.preprocessing] for views in images])

    def scores(mirrored: bool) -> NDArray[np.float32]:
        given = pixels.flip(-1) if mirrored else pixels
        parts = team.map(send, given.tensor_split(min(team.count, len(images))))
        return np.concatenate([part.float().numpy() for part in parts])

    views = (False, True) if member.plan.test_time_flips else (False,)
    return member.calibrated(over_views([scores(mirrored) for mirrored in views], member.link))
