"""Predict with a model that was exported as ONNX, by onnxruntime and without PyTorch."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.data import decode, in_threads
from finetune.errors import ExportError, RunFolderError
from finetune.reading import Reading

BLOCK = 256
"""Number of images that are decoded before they are predicted."""


class OnnxModel:
    """A model in an ONNX file that `finetune export` wrote."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            ExportError: onnxruntime is missing, or the file is not an exported model.
            RunFolderError: there is no such file.
        """
        if not path.exists():
            raise RunFolderError(f"there is no file {path}; expected one that 'finetune export' wrote")
        try:
            import onnxruntime
        except ImportError:
            raise missing_libraries("a prediction with an ONNX file", ["onnxruntime"]) from None
        options = onnxruntime.SessionOptions()
        options.enable_mem_pattern = False  # it would remember a plan of the memory for every size of an image
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            stored = self._session.get_modelmeta().custom_metadata_map
            self.class_names: tuple[str, ...] = tuple(json.loads(stored["labels"]))
            self.shorter_side = int(stored["shorter_side"])
            self.reading = Reading.model_validate_json(stored.get("reading", "{}"))
        except Exception as error:  # onnxruntime raises exceptions of many types
            reason = " ".join(str(error).split())[:200]
            raise ExportError(
                f"{path} is not a model that 'finetune export' wrote ({type(error).__name__}: {reason})"
            ) from None

    def predict_image(self, image: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the probabilities (num_classes) of a decoded image (height, width, 3)."""
        (probabilities,) = self._session.run(None, {"images": image[None]})
        return np.asarray(probabilities[0], dtype=np.float64)

    def predict_proba(self, paths: Sequence[str | Path]) -> NDArray[np.float64]:
        """Return the class probabilities (n_paths, n_classes) of image files.

        Files are decoded as for a prediction of the run.

        Raises:
            DataError: a file cannot be read as an image.
        """

        def read(path: str | Path) -> NDArray[np.uint8]:
            return np.array(decode(path, self.shorter_side, str(path), self.reading))

        blocks = (paths[start : start + BLOCK] for start in range(0, len(paths), BLOCK))
        return np.stack([self.predict_image(image) for block in blocks for image in in_threads(read, block)])


def missing_libraries(purpose: str, names: Sequence[str]) -> ExportError:
    """Return the error that names libraries of the extra `export` that are not installed."""
    listed = " ".join(names)
    return ExportError(f"{purpose} needs {' and '.join(names)}; install the libraries: pip install {listed}")
