"""Images that pass the scan of their files, but whose pixels cannot be decoded."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def damaged_jpeg() -> bytes:
    """Return a JPEG file with both of its ends and a segment of its tables cut to an impossible length."""
    content = bytearray(encoded("JPEG"))
    tables = content.index(b"\xff\xc4")
    content[tables + 4 : tables + 21] = b"\xff" * 17
    return bytes(content)


def damaged_png() -> bytes:
    """Return a PNG file with correct checksums whose compressed pixels end in the middle."""
    content = encoded("PNG")
    start = content.index(b"IDAT") + 4
    (length,) = struct.unpack(">I", content[start - 8 : start - 4])
    pixels = content[start : start + length // 2]
    chunk = struct.pack(">I", len(pixels)) + b"IDAT" + pixels + struct.pack(">I", zlib.crc32(b"IDAT" + pixels))
    return content[: start - 8] + chunk + content[start + length + 4 :]


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, kind)
    return file.getvalue()
