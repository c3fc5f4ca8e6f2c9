"""One pass of images through a network that is not trained: pooled features, logits, activations at a boundary.

What came out is kept on disk, so that no image is sent through the same weights in the same way twice.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
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
from finetune.network.forward import pooled, stream
from finetune.progress import Progress, no_progress
from finetune.work import Work

KEPT_DTYPE = torch.bfloat16
"""Two bytes a number, with float32's range; what bfloat16 arithmetic makes loses nothing."""


class Outputs:
    """What a network made of some images, a row for each, in bfloat16."""

    def __init__(self, rows: CachedRows, found: bool) -> None:
        """Hold `rows`, the bits of the numbers as int16."""
        self._rows = rows
        self.found = found
        """Whether they were there from before."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def __getitem__(self, rows: Any) -> Tensor:  # noqa: ANN401  (a slice or indices)
        """Return some rows as a bfloat16 tensor."""
        return torch.from_numpy(self._rows[rows]).view(KEPT_DTYPE)

    def numpy(self, rows: Any = slice(None)) -> NDArray[np.float32]:  # noqa: ANN401
        """Return some rows (all) as a float32 array."""
        values: NDArray[np.float32] = self[rows].float().numpy()
        return values


def kept_outputs(
    kind: Kind, key: str, about: str, outputs: Callable[[], Iterator[Tensor]], count: int, progress: Progress
) -> Outputs:
    """Return the `count` rows that `outputs` yields, from the cache if they are there; else they are put there.

    Args:
        kind: kind of the entry.
        key: names everything that the rows depend on.
        about: what they are, for people and for progress.
        outputs: makes them, batch after batch.
        count: how many there are.
        progress: told how many are done.
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
            rows = batch.to(KEPT_DTYPE).contiguous().view(torch.int16).numpy()
            if writer is None:
                in_memory.append(rows)
            else:
                writer.append("rows", rows)
            done += len(rows)
            progress(about, done, count)
    kept = None if in_memory else read_arrays(kind, key)
    if kept is not None:
        return Outputs(kept["rows"], found=False)
    if not in_memory:  # cleared by another process in the very moment
        in_memory = [batch.to(KEPT_DTYPE).contiguous().view(torch.int16).numpy() for batch in outputs()]
    return Outputs(CachedRows(np.concatenate(in_memory)), found=False)


def frozen_features(
    network: nn.Module,
    images: PlainImages,
    preprocessing: Preprocessing,
    settings: ForwardSettings,
    weights: str,
    progress: Progress = no_progress,
    members: Sequence[int] | None = None,
) -> Outputs:
    """Return what the head of a pretrained network sees of every image (or of `members`), (n, width), computed once.

    Args:
        network: its head does not matter.
        images: as prediction sees them.
        preprocessing: of the network.
        settings: how images are sent forward.
        weights: a digest of the network's weights below the head.
        progress: told how many are done.
        members: which images; all by default.
    """
    return kept_outputs(
        "features",
        make_key(weights, images.describe(members), settings.precision),
        "looking at images",
        lambda: stream(network, images, preprocessing, settings, pooled, members),
        len(images) if members is None else len(members),
        progress,
    )


def count_work(outputs: Outputs, pixels: Pixels, share: float = 1.0) -> Work:
    """Return what making `outputs` took; each row went through `share` of the network."""
    count = len(outputs)
    if outputs.found:
        return Work(cache_hits=count)
    work = Work(forward_images=count, forward_equivalents=round(count * share, 1))
    return work if pixels.is_cached else work + pixels.reading_work(count)


def digest_weights(network: nn.Module, leave_out: str) -> str:
    """Return a digest of a network's weights but for those of the module named `leave_out` ("": all of them)."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in network.state_dict().items():
        if not leave_out or not name.startswith(leave_out + "."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
