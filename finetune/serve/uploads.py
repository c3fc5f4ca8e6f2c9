"""Refuse uploaded files that are too large or not images, before they are decoded."""

import io

from PIL import Image

from finetune.data import reason_of
from finetune.data.decoding import opened
from finetune.data.formats import TIFF_MARKS
from finetune.data.raster import Raster

MOST_BYTES = 64 * 2**20
"""Largest size of a request, in bytes."""

MOST_PIXELS = 64_000_000
"""Largest number of pixels of an image: decoded, it takes three bytes a pixel, and each core decodes one at a time. An
image of more than three channels may have as many values as one of three."""

MOST_ELONGATED = 100
"""Largest ratio of the two sides of an image, whose shorter side is resized to that of the network's input."""

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are accepted, by Pillow's names. EPS, which Pillow renders by another program, is not one of them."""

TOO_LARGE, UNKNOWN_FORMAT, UNREADABLE = 413, 415, 422
"""HTTP statuses (RFC 9110)."""


class Refused(Exception):  # noqa: N818  (a decision, not a mistake)
    """An uploaded file is not an image that is predicted."""

    def __init__(self, status: int, reason: str) -> None:
        """Hold the HTTP status, and the reason in words."""
        super().__init__(reason)
        self.status = status
        self.reason = reason


def check_upload(encoded: bytes) -> None:
    """Check the header of an uploaded file.

    Raises:
        Refused: the file is not an image of an accepted format, or has too many pixels.
    """
    if not encoded:
        raise Refused(UNREADABLE, "the file is empty")
    try:
        kind, (width, height), channels = _read_header(encoded)
    except Image.DecompressionBombError:
        raise Refused(TOO_LARGE, f"the image has more than {MOST_PIXELS / 1e6:.0f} million pixels") from None
    except Exception as error:  # decoders raise exceptions of any type
        raise Refused(UNKNOWN_FORMAT, f"{reason_of(error)}; send one of {', '.join(FORMATS)}") from None
    if kind not in FORMATS:
        raise Refused(UNKNOWN_FORMAT, f"{kind} is not accepted; send one of {', '.join(FORMATS)}")
    if width * height > MOST_PIXELS:
        raise Refused(
            TOO_LARGE,
            f"the image has {width} x {height} pixels, but at most {MOST_PIXELS / 1e6:.0f} million are accepted; "
            f"make it smaller",
        )
    if width * height * channels > 3 * MOST_PIXELS:
        raise Refused(
            TOO_LARGE,
            f"the image has {width} x {height} pixels of {channels} channels, but at most "
            f"{3 * MOST_PIXELS / 1e6:.0f} million values are accepted; make it smaller",
        )
    if max(width, height) > MOST_ELONGATED * min(width, height):
        raise Refused(
            UNREADABLE,
            f"the image has {width} x {height} pixels, but one side may be at most {MOST_ELONGATED} times the other; "
            f"crop it",
        )


def _read_header(encoded: bytes) -> tuple[str, tuple[int, int], int]:
    """Return the format of an image by Pillow's name, its width and height, and its number of channels, three if Pillow
    reads it."""
    if encoded.startswith(TIFF_MARKS):
        with opened(encoded) as image:
            return "TIFF", image.size, max(image.num_channels, 3) if isinstance(image, Raster) else 3
    with Image.open(io.BytesIO(encoded)) as image:
        return str(image.format), image.size, 3


def why_refused(error: Exception) -> Refused:
    """Return the status and the reason of an image whose decoding raised an exception."""
    return error if isinstance(error, Refused) else Refused(UNREADABLE, reason_of(error))
