"""Compute and cache the outputs of networks that are not trained: pooled features, and activations at a boundary.

The cache is on disk, so that an image is not sent through the same weights in the same way twice.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.cache import CachedRows, Kind, make_key, new_entry, read_arrays
from finetune.data import Pixels
from finetune.data.batches import PlainImages
from finetune.decide.evidence import ForwardSettings
from finetune.decide.preprocessing import Preprocessing
from finetune.network.forward import forward_batches
from finetune.network.head import recorded_features
from finetune.processes import divide_rows, first_alone, is_main_process, is_so_everywhere, num_processes
from finetune.progress import Progress, no_progress
from finetune.work import Work

CACHED_DTYPE = torch.bfloat16
"""Type of the cached numbers: two bytes each, with the range of float32. Outputs that were computed in bfloat16 are
cached exactly."""

BLOCK = 8192
"""Number of images whose rows several processes compute together before they are written."""


class Outputs:
    """Outputs of a network, one row for each image, in bfloat16."""

    def __init__(self, rows: CachedRows, found: bool) -> None:
        """Wrap `rows`, which hold the bits of the numbers as int16, because NumPy has no bfloat16."""
        self._rows = rows
        self.found = found
        """Whether the rows were found in the cache, not computed."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def __getitem__(self, rows: Any) -> Tensor:  # noqa: ANN401  (a slice or indices)
        """Return some rows as a bfloat16 tensor (n, ...)."""
        return torch.from_numpy(self._rows[rows]).view(CACHED_DTYPE)

    def numpy(self, rows: Any = slice(None)) -> NDArray[np.float32]:  # noqa: ANN401
        """Return some rows (all by default) as a float32 array (n, ...)."""
        values: NDArray[np.float32] = self[rows].float().numpy()
        return values


def cached_outputs(
    kind: Kind, key: str, about: str, outputs: Callable[[], Iterator[Tensor]], count: int, progress: Progress
) -> Outputs:
    """Return the rows that `outputs` yields: from the cache if they are in it, else computed and then cached.

    Args:
        kind: kind of the cache entry.
        key: key of the entry, a digest of everything that the rows depend on.
        about: human-readable description of the rows, also the name of the task for `progress`.
        outputs: function that yields the rows, one tensor (n, ...) for each batch.
        count: number of rows.
        progress: hook that is called with the number of rows done.
    """
    found = read_arrays(kind, key)
    if found is not None and len(found["rows"]) == count:
        return Outputs(found["rows"], found=True)
    batches = outputs()
    first = next(batches)
    num_bytes = 2 * (first.numel() // len(first)) * count
    in_memory: list[NDArray[np.int16]] = []
    done = 0
    with new_entry(kind, key, f"{about}: {count} images", num_bytes) as writer:
        for batch in chain([first], batches):
            rows = _bits(batch)
            if writer is None:
                in_memory.append(rows)
            else:
                writer.append("rows", rows)
            done += len(rows)
            progress(about, done, count)
    written = None if in_memory else read_arrays(kind, key)
    if written is not None:
        return Outputs(written["rows"], found=False)
    if not in_memory:  # another process cleared the cache between writing and reading
        in_memory = [_bits(batch) for batch in outputs()]
    return Outputs(CachedRows(np.concatenate(in_memory)), found=False)


def frozen_features(
    network: nn.Module,
    images: PlainImages,
    preprocessing: Preprocessing,
    settings: ForwardSettings,
    weights: str,
    progress: Progress = no_progress,
    indices: Sequence[int] | None = None,
) -> Outputs:
    """Return the inputs of the head for all images (or `indices`), (n, width), computed once and then cached.

    Of several processes each computes a part, and all must call this; on each machine one of them writes the features
    to the cache. For all but the main process they count as found, so that the work of all processes adds up.

    Args:
        network: a network with a head of any number of classes.
        images: the images, as prediction reads them.
        preprocessing: preprocessing of the network's input.
        settings: precision, layout, batch size and threads.
        weights: digest of the network's weights below the head (`digest_weights`).
        progress: hook that is called with the number of images done.
        indices: indices of images; all by default.

    Raises:
        DataError: an image cannot be decoded; every process raises it.
    """
    chosen = range(len(images)) if indices is None else indices
    key = make_key(weights, images.describe(indices), settings.precision)

    def is_cached() -> bool:
        found = read_arrays("features", key)
        return found is not None and len(found["rows"]) == len(chosen)

    with recorded_features(network) as features:

        def compute(part: Sequence[int]) -> Iterator[Tensor]:
            return forward_batches(network, images, preprocessing, settings, features, part)

        outputs = partial(compute, chosen)
        if num_processes() > 1 and not is_so_everywhere(is_cached):
            # Gathering is a step of all processes, so it happens before any of them writes or waits for another.
            gathered = _gather(compute, chosen)
            outputs = partial(iter, gathered)
        with first_alone():
            rows = cached_outputs("features", key, "computing features", outputs, len(chosen), progress)
    rows.found |= not is_main_process()
    return rows


def _gather(compute: Callable[[Sequence[int]], Iterator[Tensor]], indices: Sequence[int]) -> list[Tensor]:
    """Return the rows of images, of which each process computes a part, in blocks (n, ...)."""

    def bits_of(part: Sequence[int]) -> NDArray[np.int16]:
        rows = [_bits(batch) for batch in compute(part)] if part else []
        return np.concatenate(rows) if rows else np.zeros((0, 0), dtype=np.int16)

    blocks = [divide_rows(bits_of, indices[start : start + BLOCK]) for start in range(0, len(indices), BLOCK)]
    return [torch.from_numpy(block).view(CACHED_DTYPE) for block in blocks]


def _bits(batch: Tensor) -> NDArray[np.int16]:
    """Return the bits of the cached numbers of a batch (n, ...)."""
    bits: NDArray[np.int16] = batch.to(CACHED_DTYPE).contiguous().view(torch.int16).numpy()
    return bits


def count_work(outputs: Outputs, pixels: Pixels, share: float = 1.0) -> Work:
    """Return the work that computing `outputs` took.

    Args:
        outputs: outputs, one row for each image.
        pixels: images that the outputs were computed from.
        share: fraction of the network's multiplications that the outputs need, 0 .. 1.
    """
    count = len(outputs)
    if outputs.found:
        return Work(cache_hits=count)
    work = Work(forward_images=count, forward_equivalents=round(count * share, 1))
    return work if pixels.is_cached else work + pixels.reading_work(count)


def digest_weights(network: nn.Module, leave_out: Sequence[str] = ()) -> str:
    """Return a digest of a network's weights, without those of the modules named in `leave_out`."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in network.state_dict().items():
        if not any(name.startswith(module + ".") for module in leave_out):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
