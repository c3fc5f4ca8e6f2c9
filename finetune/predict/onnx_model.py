"""Predict with a model that was exported as ONNX, by onnxruntime and without PyTorch."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.data import in_threads, read_or_explain
from finetune.data.kinds import Kind
from finetune.decide.answers import AnswerRule
from finetune.errors import ExportError, RunFolderError, missing_libraries
from finetune.predict.doubt import Experience
from finetune.predict.files import FileRows, rows_of_files
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
        refuse_without_a_file(path)
        try:
            import onnxruntime
        except ImportError:
            raise ExportError(missing_libraries("a prediction with an ONNX file", ["onnxruntime"])) from None
        options = onnxruntime.SessionOptions()
        options.enable_mem_pattern = False  # it would remember a plan of the memory for every size of an image
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            stored = self._session.get_modelmeta().custom_metadata_map
            self.class_names: tuple[str, ...] = tuple(json.loads(stored["labels"]))
            self.shorter_side = int(stored["shorter_side"])
            self.reading = Reading.model_validate_json(stored.get("reading", "{}"))
            thresholds = json.loads(stored.get("thresholds", "null"))
            self.thresholds: tuple[float, ...] | None = None if thresholds is None else tuple(map(float, thresholds))
            rule = stored.get("answers")
            self.rule = None if rule is None else AnswerRule.model_validate_json(rule)
            known = stored.get("experience")
            self.experience = None if known is None else Experience.model_validate_json(known)
        except Exception as error:  # onnxruntime raises exceptions of many types
            reason = " ".join(str(error).split())[:200]
            raise ExportError(
                f"{path} is not a model that 'finetune export' wrote ({type(error).__name__}: {reason})"
            ) from None

    def predict_image(self, image: NDArray[np.uint8], with_distance: bool = False) -> NDArray[np.float64]:
        """Return the probabilities (num_classes) of a decoded image (height, width, channels); with the distance from
        the nearest training image, (num_classes + 1)."""
        (row,) = self.predict_images(image[None], with_distance)
        return np.asarray(row)

    def predict_images(self, images: NDArray[np.uint8], with_distance: bool = False) -> NDArray[np.float64]:
        """Return the probabilities (n, num_classes) of decoded images of one size (n, height, width, channels); with
        the distance of each from its nearest training image, (n, num_classes + 1)."""
        wanted = ["probabilities", "distance"] if with_distance else ["probabilities"]
        return np.column_stack(self._session.run(wanted, {"images": images})).astype(np.float64)

    def label(self, chunks: Iterator[list[str]], with_distance: bool = False) -> Iterator[FileRows]:
        """Yield the class probabilities (k, n_classes) of the files of each chunk that can be read; with the distance
        of each from its nearest training image, (k, n_classes + 1).

        Files are decoded as for a prediction of the run.
        """
        read = partial(read_or_explain, shorter_side=self.shorter_side, reading=self.reading)
        for chunk in chunks:
            rows: list[NDArray[np.float64]] = []
            reasons: list[str | None] = []
            kinds: list[Kind] = []
            for start in range(0, len(chunk), BLOCK):
                for found in in_threads(read, chunk[start : start + BLOCK]):
                    reasons.append(found if isinstance(found, str) else None)
                    if not isinstance(found, str):
                        rows.append(self.predict_image(found[0], with_distance))
                        kinds.append(found[1])
            yield FileRows(np.reshape(rows, (len(rows), len(self.class_names) + with_distance)), reasons, kinds)

    def predict_proba(self, paths: Sequence[str | Path]) -> NDArray[np.float64]:
        """Return the class probabilities (n_paths, n_classes) of image files.

        Raises:
            DataError: a file cannot be read as an image.
        """
        return rows_of_files(self.label, paths)


def refuse_without_a_file(path: Path) -> None:
    """Refuse the path of an exported model that does not exist.

    Raises:
        RunFolderError: there is no such file.
    """
    if not path.exists():
        raise RunFolderError(f"there is no file {path}; expected one that 'finetune export' wrote")
