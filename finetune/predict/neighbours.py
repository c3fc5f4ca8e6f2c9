"""Tell how far an image is from the training images of a run.

The distance of an image is that of its nearest training image, one less the cosine of their features (Sun et al. 2022,
"Out-of-distribution detection with deep nearest neighbors"). An image counts as like the training images up to the
distance that these have from each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from finetune.errors import RunFolderError
from finetune.predict.files import FileRows

if TYPE_CHECKING:
    from finetune.predict.model import Predictor

FARTHEST = 0.99
"""Share of the training images that are nearer to another one than the largest distance at which labels are given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """Training images, as features, to which new images are compared."""

    features: NDArray[np.float32]
    """Features of the images, each of length 1, (n, width)."""
    limit: float
    """Distance up to which an image is like the training images."""

    @classmethod
    def among(cls, features: NDArray[np.float32]) -> Self:
        """Return the neighbours for the features (n, width) of at least two training images."""
        own = _unit(features)
        cosines = own @ own.T
        np.fill_diagonal(cosines, -1.0)
        return cls(features=own, limit=float(np.quantile(1.0 - cosines.max(axis=1), FARTHEST)))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return the neighbours in a file.

        Raises:
            RunFolderError: there is no such file, or it is damaged.
        """
        if not path.exists():
            raise RunFolderError(
                f"{path} is missing, because an earlier version made this run; train it again to tell unlike images"
            )
        try:
            stored = load_file(path)
            features, limit = stored["features"].astype(np.float32), float(stored["limit"][0])
        except (OSError, SafetensorError, KeyError, IndexError, ValueError) as error:
            raise RunFolderError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from None
        if features.ndim != 2 or not np.isfinite(features).all() or not np.isfinite(limit):
            raise RunFolderError(f"{path} is damaged: its numbers are not those of features")
        return cls(features=features, limit=limit)

    def save(self, path: Path) -> None:
        """Write the neighbours into a file, in float16."""
        path.write_bytes(save({"features": self.features.astype(np.float16), "limit": np.asarray([self.limit])}))

    def distances(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the distance of each image from its nearest neighbour, 0 .. 2, for features (k, width): (k,).

        Raises:
            RunFolderError: the features are of another network.
        """
        if features.shape[1] != self.features.shape[1]:
            raise RunFolderError(
                f"the neighbours of this run have {self.features.shape[1]} features, but its network has "
                f"{features.shape[1]}; train it again"
            )
        # The stored features are rounded, so that a cosine may exceed 1.
        cosines: NDArray[np.float32] = (_unit(features) @ self.features.T).max(axis=1)
        return np.asarray(np.maximum(1.0 - cosines, 0.0), dtype=np.float64)


def label_with_distances(model: "Predictor", neighbours: Neighbours, chunks: Iterator[list[str]]) -> Iterator[FileRows]:
    """Yield the class probabilities of the files of each chunk that can be read, each followed by the distance of the
    image from its nearest training image, (k, n_classes + 1)."""
    count = len(model.class_names)
    for found in model.label(chunks, with_features=True):
        distances = neighbours.distances(found.rows[:, count:]) if len(found.rows) else np.empty(0)
        yield FileRows(np.column_stack([found.rows[:, :count], distances]), found.reasons, found.kinds)


def _unit(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return features (n, width) of length 1 each."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(lengths, np.finfo(np.float32).tiny), dtype=np.float32)
