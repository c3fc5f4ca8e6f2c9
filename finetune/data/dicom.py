"""Read a DICOM file: modality values, and the window that shows them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.raster import Raster

GREY = {"MONOCHROME1", "MONOCHROME2"}
"""Photometric interpretations of grey images; in MONOCHROME1 the smallest value is white."""

PLUGINS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
"""Command that installs the decoders of compressed pixels, which pydicom does without."""


def read_dicom(file: Any) -> Raster:  # noqa: ANN401  (a path or an open file)
    """Return the image of a DICOM file.

    The values of grey images are those of the modality (PS3.3 C.11.1: stored values times slope plus intercept, or
    looked up), such as Hounsfield units.

    Args:
        file: a path, or the bytes of the file as `BytesIO`.

    Raises:
        ImportError: pydicom is not installed.
        ValueError: the file has no image, or several frames.
    """
    import pydicom

    stored = pydicom.dcmread(file)
    if not stored.get("Rows") or not stored.get("PixelData"):
        raise ValueError("it has no image")
    frames = int(stored.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ValueError(
            f"it has {frames} frames, but a file with one image is expected; save each frame as a file of its own"
        )
    is_grey = stored.PhotometricInterpretation in GREY
    is_deep = is_grey and (int(stored.BitsStored) > 8 or _has_modality_values(stored))
    return Raster(
        load=lambda _pages: _load(stored, is_deep),
        size=(int(stored.Columns), int(stored.Rows)),
        dtype=np.dtype(np.int16 if is_deep else np.uint8),
        num_channels=1 if is_grey else 3,
        is_rgb=not is_grey,
        window=_window(stored) if is_deep else None,
        is_inverted=stored.PhotometricInterpretation == "MONOCHROME1",
    )


def _has_modality_values(stored: Any) -> bool:  # noqa: ANN401  (pydicom's own type)
    """Return whether the modality's values differ from the stored ones."""
    slope, intercept = stored.get("RescaleSlope"), stored.get("RescaleIntercept")
    return "ModalityLUTSequence" in stored or float(slope or 1) != 1.0 or float(intercept or 0) != 0.0


def _window(stored: Any) -> tuple[float, float] | None:  # noqa: ANN401  (pydicom's own type)
    """Return the values that the first window of a file shows as black and white; None if it has no linear window."""
    centre, width = _first(stored.get("WindowCenter")), _first(stored.get("WindowWidth"))
    function = stored.get("VOILUTFunction") or "LINEAR"
    if centre is None or width is None or width <= 0 or function not in {"LINEAR", "LINEAR_EXACT"}:
        return None
    if function == "LINEAR_EXACT":
        return centre - width / 2, centre + width / 2
    # PS3.3 C.11.2.1.2: the ends are centre - 1/2 -+ (width - 1) / 2; a width of 1 is a threshold.
    half = max(width - 1, 1e-6) / 2
    return centre - 0.5 - half, centre - 0.5 + half


def _first(value: Any) -> float | None:  # noqa: ANN401  (a number, several, or none)
    """Return a number, or the first of several."""
    if value is None or value == "":
        return None
    return float(value if isinstance(value, (int, float, str)) else value[0])


def _load(stored: Any, is_deep: bool) -> NDArray[np.generic]:  # noqa: ANN401  (pydicom's own type)
    """Return the values (1, n_channels, height, width) of a file."""
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

    try:
        pixels = stored.pixel_array
    except (RuntimeError, NotImplementedError) as error:
        if not stored.file_meta.TransferSyntaxUID.is_compressed:
            raise
        name = stored.file_meta.TransferSyntaxUID.name
        raise ValueError(f"its pixels are compressed as {name}, which needs a decoder: {PLUGINS}") from error
    if is_deep:
        return np.asarray(apply_modality_lut(pixels, stored), dtype=np.float64)[None, None]
    if stored.PhotometricInterpretation == "PALETTE COLOR":
        colours = apply_color_lut(pixels, stored)
        pixels = colours >> 8 if colours.dtype == np.uint16 else colours
    planes = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    if planes.dtype != np.uint8:
        # Fewer than 8 bits, or colours in wider integers, whose highest bits count.
        shift = max(int(stored.BitsStored) - 8, 0)
        planes = (planes >> shift).astype(np.uint8)
    values: NDArray[np.generic] = planes[None]
    return values
