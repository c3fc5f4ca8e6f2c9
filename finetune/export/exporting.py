"""Export the model of a run as one file, which is kept only if it agrees with the run."""

from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from finetune.errors import ExportError, RunFolderError, missing_libraries
from finetune.export.agreement import Agreement, Predict, compare, of_decoded_images, refuse_if_different
from finetune.export.images import choose_images
from finetune.export.network import SquareProbabilities
from finetune.export.program import write_program
from finetune.predict.doubt import Experience
from finetune.predict.neighbours import Neighbours
from finetune.predict.onnx_model import OnnxModel
from finetune.reading import AS_STORED
from finetune.runs.doubt import NEIGHBOURS, read_experience
from finetune.runs.folder import RunFolder

Format = Literal["onnx", "torch-export"]
"""Formats of an exported model."""

NAMES: Mapping[Format, str] = {"onnx": "model.onnx", "torch-export": "model.pt2"}
"""Name of the file of each format in a run folder."""

ONNX_LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
"""Libraries of the extra `export`."""

MOST_BYTES = 2**31 - 2**24
"""Largest size of the weights, because a file of this format has at most 2 GiB."""


def export_run(
    run: Path, file_format: Format = "onnx", output: Path | None = None, images: Path | None = None
) -> tuple[Path, Agreement]:
    """Export the model of a run as one file; return its path and how it agrees with the run.

    The file has everything after the decoding of an image: resizing, cropping, normalisation, the network or networks,
    the temperature, the softmax (or sigmoid), and the names of the classes (with the thresholds of labels, or the
    costs of answers). An ONNX file also has what withholds doubtful labels: the distance from the nearest training
    image, and the answers for the held-out images.

    Args:
        run: a run folder.
        file_format: format of the file.
        output: file to write; by default `model.onnx` or `model.pt2` in the run folder.
        images: an image or a folder of images to compare on; the run's test and held-out images by default.

    Raises:
        ExportError: a library is missing, the network cannot be exported, or the exported model does not agree.
        RunFolderError: there is no finished run, or the file exists.
        DataError: the given images cannot be read.
    """
    path = output if output is not None else run / NAMES[file_format]
    if path.exists():
        raise RunFolderError(f"{path} exists and is not overwritten; give another --output")
    if path.suffix != Path(NAMES[file_format]).suffix:
        ending = Path(NAMES[file_format]).suffix
        raise RunFolderError(f"the file of {file_format} ends with {ending}, but {path} was given; give such a name")
    if file_format == "onnx" and (missing := [name for name in ONNX_LIBRARIES if find_spec(name) is None]):
        raise ExportError(missing_libraries("an export as ONNX", missing))
    model = RunFolder(run).read_model()
    reading = model.reading
    chosen, model = choose_images(run, images, reading), of_decoded_images(model)
    neighbours, experience = _known(run) if file_format == "onnx" and model.thresholds is None else (None, None)
    squares = SquareProbabilities(model, neighbours)
    if file_format == "onnx" and squares.num_bytes > MOST_BYTES:
        raise ExportError(
            f"the weights have {squares.num_bytes / 2**30:.1f} GiB, but an ONNX file has at most 2; export with "
            f"--format torch-export"
        )
    shorter_side = max(each.shorter_side for each in squares.preprocessings)
    metadata: dict[str, object] = {"labels": list(model.class_names), "shorter_side": shorter_side}
    if model.thresholds is not None:
        metadata["thresholds"] = list(model.thresholds)
    if model.rule is not None:
        metadata["answers"] = model.rule.model_dump(mode="json")
    if reading != AS_STORED:
        metadata["reading"] = reading.model_dump(mode="json")
    if experience is not None:
        metadata["experience"] = experience.model_dump(mode="json")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"partial-{path.name}")
    try:
        predict = _write(squares, file_format, metadata, partial)
        agreement = compare(model, predict, shorter_side, chosen, neighbours)
        refuse_if_different(agreement)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path, agreement


def _write(squares: SquareProbabilities, file_format: Format, metadata: Mapping[str, object], path: Path) -> Predict:
    """Write a file, and return the function with which it predicts, read from the file again."""
    try:
        if file_format == "torch-export":
            return write_program(squares, metadata, path)
        from finetune.export.onnx_graph import write_onnx  # needs the libraries of an extra

        write_onnx(squares, metadata, path)
    except Exception as error:  # the exporters raise exceptions of any type
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ExportError(
            f"the network cannot be exported ({type(error).__name__}: {reason}); try the other --format, or train "
            f"another network"
        ) from error
    return partial(OnnxModel(path).predict_image, with_distance=squares.neighbours is not None)


def _known(run: Path) -> tuple[Neighbours, Experience] | tuple[None, None]:
    """Return the training images that new ones are compared with, and what the model of a run is known to do; None of a
    run of an earlier version, which has no such images."""
    if not (run / NEIGHBOURS).exists():
        return None, None
    return Neighbours.load(run / NEIGHBOURS), read_experience(run)
