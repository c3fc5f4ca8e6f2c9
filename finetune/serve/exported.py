"""Serve a model in an ONNX file, without PyTorch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.data import read_pixels
from finetune.decide.answers import AnswerRule
from finetune.predict.onnx_model import OnnxModel


class ServedFile:
    """A model in a file that `finetune export` wrote."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            ExportError: onnxruntime is missing, or the file is not an exported model.
            RunFolderError: there is no such file.
        """
        self._model = OnnxModel(path)

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

    def prepare(self, encoded: bytes) -> NDArray[np.uint8]:
        """Return a decoded image (height, width, n_channels)."""
        return read_pixels(encoded, self._model.shorter_side, self._model.reading)

    @contextmanager
    def predictions(self) -> Iterator[Callable[[Sequence[NDArray[np.uint8]]], NDArray[np.float64]]]:
        """Return a context with the function that predicts."""
        yield self._predict

    def _predict(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
        """Return the probabilities (n, n_classes) of images; those of one size are one forward pass."""
        of_size: dict[tuple[int, ...], list[int]] = {}
        for place, image in enumerate(images):
            of_size.setdefault(image.shape, []).append(place)
        found = np.empty((len(images), len(self.class_names)))
        for places in of_size.values():
            found[places] = self._model.predict_images(np.stack([images[place] for place in places]))
        return found
