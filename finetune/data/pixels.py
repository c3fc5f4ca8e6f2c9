"""Read decoded images. Each image is decoded once, to the size that is needed, and cached on disk if all images fit."""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finetune.cache import CachedRows, make_key, new_entry, read_arrays
from finetune.data.decoding import ImageSource, decode, digest_of, encoded_bytes, in_threads, undecodable
from finetune.progress import Progress
from finetune.reading import AS_STORED, Reading
from finetune.work import Work

if TYPE_CHECKING:
    from datasets import Dataset

BLOCK = 256
"""Number of images that are decoded before they are written to the cache together."""

SAMPLED = 16
"""Number of images that are decoded to estimate the size of all images."""


class Pixels:
    """Upright images of one table, or of several tables one after another, by index."""

    def __init__(
        self,
        tables: "Dataset | Sequence[Dataset]",
        shorter_side: int,
        reading: Reading = AS_STORED,
    ) -> None:
        """Prepare to read images with a shorter side of at least `shorter_side` pixels, unless the file has fewer."""
        listed = tables if isinstance(tables, (list, tuple)) else [tables]
        self._parts = [_TablePixels(table, shorter_side, reading) for table in listed]
        self._reading = reading
        self._starts = [0, *accumulate(len(part.sources) for part in self._parts)]

    def __len__(self) -> int:
        """Return the number of images."""
        return self._starts[-1]

    @property
    def is_cached(self) -> bool:
        """Whether all decoded images are in the cache."""
        return all(part.cached is not None for part in self._parts)

    def digest(self, indices: Sequence[int] | NDArray[np.intp] | None = None) -> str:
        """Return a digest of the encoded images at `indices` (all by default), in their order, and of how they are
        read."""
        digests = np.concatenate([part.contents["digest"] for part in self._parts])
        chosen = digests if indices is None else digests[np.asarray(indices, dtype=np.intp)]
        return hashlib.blake2b(chosen.tobytes() + _key_of(self._reading).encode(), digest_size=16).hexdigest()

    def cache(self, progress: Progress) -> Work:
        """Decode all images into the cache, unless they are already in it or too large for it, and return the work that
        it took.

        Raises:
            DataError: an image cannot be decoded.
        """
        return sum((part.cache(progress) for part in self._parts), Work())

    def reading_work(self, count: int) -> Work:
        """Return the work of decoding `count` images of the average file size."""
        size = sum(int(part.contents["size"].sum()) for part in self._parts)
        return Work(decoded_images=count, decoded_bytes=round(size * count / max(len(self), 1)))

    def read(self, indices: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Return several images, each (height, width, n_channels) uint8.

        Raises:
            DataError: an image cannot be decoded.
        """
        # Threads make decoding faster, but copying cached rows slower.
        if self.is_cached:
            return [self._read_one(index) for index in indices]
        return in_threads(self._read_one, indices)

    def _read_one(self, index: int) -> NDArray[np.uint8]:
        """Return one image (height, width, n_channels) from its table."""
        number = bisect_right(self._starts, index) - 1
        return self._parts[number].read(index - self._starts[number])


class _TablePixels:
    """Pixels of the images of one table."""

    def __init__(self, table: "Dataset", shorter_side: int, reading: Reading) -> None:
        """Prepare to read images as `Pixels` does."""
        self.sources = table["image"]
        self.cached: dict[str, CachedRows] | None = None
        self._shorter_side = shorter_side
        self._reading = reading
        self._contents: NDArray[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the cached rows, which another process reads from the disk."""
        return self.__dict__ | {"cached": self.cached is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state, and map the cached rows again."""
        self.__dict__.update(state)
        self.cached = read_arrays("pixels", self._key()) if state["cached"] else None

    @property
    def contents(self) -> NDArray[Any]:
        """Digest and size in bytes of each encoded image (n_images,), as a structured array."""
        if self._contents is None:
            kind = np.dtype([("digest", "V16"), ("size", np.int64)])
            self._contents = np.asarray(in_threads(_digest, self.sources), dtype=kind)
        return self._contents

    def cache(self, progress: Progress) -> Work:
        """Decode all images into the cache, as in `Pixels.cache`."""
        count = len(self.sources)
        if self.cached is not None or not count:
            return Work()
        self.cached = read_arrays("pixels", self._key())
        if self.cached is not None:
            return Work(cache_hits=count)
        about = f"{count} images with at least {self._shorter_side} px, the first is {name_of(self.sources[0], 0)}"
        with new_entry("pixels", self._key(), about, self._estimated_bytes()) as writer:
            if writer is None:
                return Work()
            # Images differ in size, so all values are in one flat array `pixels`; image i ends at `ends[i]` and has
            # (width, height) `sizes[i]`. Blocks bound the memory that decoded images take.
            end = 0
            for start in range(0, count, BLOCK):
                images = in_threads(self._decode, range(start, min(start + BLOCK, count)))
                flat = [image.reshape(-1) for image in images]
                ends = end + np.cumsum([len(pixels) for pixels in flat])
                end = int(ends[-1])
                writer.append("pixels", np.concatenate(flat))
                writer.append("ends", ends.astype(np.int64))
                writer.append("sizes", np.asarray([image.shape[1::-1] for image in images], dtype=np.int32))
                progress("decoding images", start + len(images), count)
        self.cached = read_arrays("pixels", self._key())
        return Work(decoded_images=count, decoded_bytes=int(self.contents["size"].sum()))

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return one image (height, width, n_channels), from the cache or from its file."""
        if self.cached is None:
            return self._decode(index)
        width, height = map(int, self.cached["sizes"][index])
        end = int(self.cached["ends"][index])
        channels = self._reading.num_channels
        start = end - channels * width * height
        return self.cached["pixels"][start:end].reshape(height, width, channels)

    def _decode(self, index: int) -> NDArray[np.uint8]:
        source = self.sources[index]
        return decode(source, self._shorter_side, name_of(source, index), self._reading)

    def _key(self) -> str:
        """Return the cache key: it depends on the content and the order of the files, not on their names, and on how
        they are read."""
        content = hashlib.blake2b(self.contents["digest"].tobytes()).hexdigest()
        return make_key("pixels", content + _key_of(self._reading), self._shorter_side)

    def _estimated_bytes(self) -> int:
        """Return the approximate size of all decoded images, in bytes, from a sample evenly spaced in the table."""
        count = len(self.sources)
        sample = in_threads(self._decode, range(0, count, -(-count // SAMPLED)))
        return int(np.mean([image.size for image in sample]) * count)


def _key_of(reading: Reading) -> str:
    """Return a text for cache keys; "" if images are read as they are stored, as in entries of earlier versions."""
    return "" if reading == AS_STORED else reading.model_dump_json()


def name_of(source: ImageSource, index: int) -> str:
    """Return the name of an image: its path, or `image N` if it has none."""
    path = source.get("path") if isinstance(source, dict) else source
    return f"image {index}" if path is None or isinstance(path, bytes) else str(path)


def _digest(source: ImageSource) -> tuple[bytes, int]:
    """Return the digest and the size in bytes of an encoded image.

    Raises:
        UndecodableError: the file was removed, or cannot be read any more.
    """
    try:
        encoded = encoded_bytes(source)
    except OSError as error:
        raise undecodable(name_of(source, 0), error) from None
    return digest_of(encoded), len(encoded)
