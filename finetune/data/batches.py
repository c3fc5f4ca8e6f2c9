"""Make batches of decoded, augmented images, in an order that depends on the seed and the step only."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Sampler

from finetune.data import ImageSource, Pixels, decode, in_threads, read_or_explain
from finetune.data.augmentation import Key, Variation, plain_view
from finetune.data.kinds import Kind
from finetune.decide.plan import AugmentationPlan
from finetune.decide.preprocessing import Preprocessing
from finetune.device import MEMORY_FORMATS
from finetune.errors import DataError
from finetune.recipe import Layout

if TYPE_CHECKING:
    from finetune.data import ImageStream

Item = TypeVar("Item")
Batch = TypeVar("Batch")


class Images(Protocol):
    """A data set of images or activations, by index or key."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def __getitems__(self, keys: Any, /) -> list[tuple[Tensor, int]]:  # noqa: ANN401  (indices or keys)
        """Return the pixels or activations, and the image's index, for each key."""
        ...


class PlainImages:
    """Images as a prediction uses them: pairs of uint8 pixels (channels, size, size) and index."""

    def __init__(self, pixels: Pixels, preprocessing: Preprocessing, mirrored: bool = False) -> None:
        """Prepare `pixels` as for a prediction; if `mirrored`, flip them left to right."""
        self.pixels = pixels
        self._preprocessing = preprocessing
        self._mirrored = mirrored

    def describe(self, indices: Sequence[int] | None = None) -> str:
        """Return a text, for cache keys, of everything that these images (all by default) depend on."""
        return f"{self.pixels.digest(indices)} {self._preprocessing} {'mirrored' if self._mirrored else 'plain'}"

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pixels)

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Return several images with their indices."""
        images = [plain_view(image, self._preprocessing) for image in self.pixels.read(indices)]
        if self._mirrored:
            images = [image.flip(-1) for image in images]
        return list(zip(images, indices, strict=True))


FileBatch = tuple[Tensor, list[str | None], list[Kind]]
"""Pixels of the files of a batch that can be read, (k, channels, size, size) uint8; for each file of the batch the
reason why it cannot be read, or None; and the kinds of those that can."""


class ImageFiles:
    """Image files as a prediction uses them, by path; a file that cannot be read has a reason instead of pixels."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        """Prepare to read files for inputs as in `preprocessing`."""
        self._preprocessing = preprocessing

    def __getitems__(self, paths: Sequence[str]) -> list[tuple[Tensor, Kind] | str]:
        """Return the pixels (channels, size, size) uint8 and the kind of each file, or why it cannot be read."""
        about = self._preprocessing
        read = in_threads(partial(read_or_explain, shorter_side=about.shorter_side, reading=about.reading), paths)
        return [one if isinstance(one, str) else (plain_view(one[0], about), one[1]) for one in read]

    def stack(self, read: Sequence[tuple[Tensor, Kind] | str]) -> FileBatch:
        """Return the batch of what `__getitems__` returns."""
        size, channels = self._preprocessing.image_size, self._preprocessing.num_channels
        found = [one for one in read if not isinstance(one, str)]
        views = [view for view, _ in found]
        pixels = torch.stack(views) if views else torch.zeros(0, channels, size, size, dtype=torch.uint8)
        return pixels, [one if isinstance(one, str) else None for one in read], [kind for _, kind in found]


class VariedImages:
    """Augmented images for the training: pairs of uint8 pixels (channels, size, size) and index. A view depends on its
    key and the seed only."""

    def __init__(self, pixels: Pixels, preprocessing: Preprocessing, plan: AugmentationPlan, seed: int) -> None:
        """Prepare the augmentation of `pixels` that `plan` describes."""
        self._pixels = pixels
        self._seed = seed
        self._plan = plan
        self._plain = PlainImages(pixels, preprocessing)
        self._vary = Variation(preprocessing, plan, seed)

    def describe(self, indices: Sequence[int] | None = None) -> str:
        """Return a text, for cache keys, of everything except the keys that views of these images (all by default)
        depend on."""
        return f"{self._plain.describe(indices)} {self._plan} {self._seed}"

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._pixels)

    def __getitems__(self, keys: Sequence[Key]) -> list[tuple[Tensor, int]]:
        """Return several views with the indices of their images."""
        indices = [key.image for key in keys]
        return list(zip(self._vary(self._pixels.read(indices), keys), indices, strict=True))


@dataclass(frozen=True, slots=True)
class BatchShare:
    """The part of a training's batches that one process reads."""

    batch_size: int
    """Number of images in a step, over all processes."""
    steps: range
    """Steps of the batches to read."""
    seed: int
    """Seed of the order of the images and of the augmentation."""
    rank: int = 0
    """Rank of the process, 0 .. world_size - 1."""
    world_size: int = 1
    """Number of processes."""
    small_steps: int = 0
    """Number of steps, from the first of the training, on smaller images (progressive resizing)."""

    def own(self, batch: list[Item]) -> list[Item]:
        """Return this process's part of a whole batch."""
        return batch[self.rank :: self.world_size]  # the parts differ by at most one image


class StreamedBatches(IterableDataset[tuple[Tensor, Tensor]]):
    """Augmented batches from a stream: pixels (n, channels, size, size) uint8 and class indices (n,).

    The batch of a step depends on the seed and the step only; a resumed training skips the images of earlier steps.
    """

    def __init__(
        self, stream: "ImageStream", preprocessing: Preprocessing, plan: AugmentationPlan, share: BatchShare
    ) -> None:
        """Read this process's part of the batches from `stream`."""
        self._stream = stream
        self._preprocessing = preprocessing
        self._vary = Variation(preprocessing, plan, share.seed)
        self._share = share

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batch of each step.

        Raises:
            DataError: an image cannot be decoded.
        """
        # Step t has the images at positions t * size .. (t + 1) * size - 1 of the stream; the position is the key.
        size = self._share.batch_size
        examples = self._stream.read(self._share.steps.start * size)
        for step in self._share.steps:
            own = self._share.own(list(enumerate(islice(examples, size), step * size)))
            images = in_threads(self._decode, [source for _, (source, _) in own])
            varied = self._vary(images, [Key(position, 0, step < self._share.small_steps) for position, _ in own])
            yield torch.stack(varied), torch.tensor([label for _, (_, label) in own])

    def _decode(self, source: ImageSource) -> NDArray[np.uint8]:
        """Return an image (height, width, n_channels) uint8."""
        shorter_side, reading = self._preprocessing.shorter_side, self._preprocessing.reading
        return decode(source, shorter_side, "an image of the stream", reading)


class StepSampler(Sampler[list[Key]]):
    """Keys of full batches. Each pass over the images is a new permutation, and a batch may contain the end of one pass
    and the start of the next.

    The batch of a step depends on the seed and the step only, so a resumed training sees the same batches as an
    uninterrupted one. Each of several processes takes its part of every batch.
    """

    def __init__(self, indices: Sequence[int], share: BatchShare) -> None:
        """Draw from the images at `indices`."""
        self._indices = np.asarray(indices)
        self._share = share

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self._share.steps)

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield this process's keys of each step."""
        # Positions number the images of all passes in a row: step t has positions t * size .. (t + 1) * size - 1. With
        # n images, position p is item p mod n in the permutation of pass p // n. The number of the pass is also that of
        # the view.
        passes: dict[int, list[int]] = {}
        size = self._share.batch_size
        for step in self._share.steps:
            batch: list[Key] = []
            for position in range(step * size, (step + 1) * size):
                number, offset = divmod(position, len(self._indices))
                if number not in passes:
                    passes = {number: self._permutation(number)}
                batch.append(Key(passes[number][offset], number, step < self._share.small_steps))
            yield self._share.own(batch)

    def _permutation(self, number: int) -> list[int]:
        """Return the image indices of pass `number` in their order."""
        generator = np.random.default_rng((self._share.seed, number))
        return [int(index) for index in generator.permutation(self._indices)]


class BatchLoader(DataLoader[Any]):
    """A loader that raises the DataError of a worker process with its original sentence."""

    def __iter__(self) -> Any:  # noqa: ANN401  (torch's own iterator has a private class)
        """Return an iterator over the batches.

        Raises:
            DataError: an image cannot be decoded; raised by the iterator.
        """
        return _without_tracebacks(super().__iter__())


def make_loader(
    dataset: Images,
    device: torch.device,
    workers: int,
    batches: Sampler[list[Key]] | None = None,
    batch_size: int = 64,
    keys: Sequence[int] | Sequence[Key] | None = None,
) -> BatchLoader:
    """Return a loader over the batches of a sampler, or over `keys` (all images by default) in order.

    Args:
        dataset: images or activations.
        device: device of the network.
        workers: number of processes that read ahead; the batches do not depend on it.
        batches: sampler of the keys of each batch, or None.
        batch_size: images of a batch, without a sampler.
        keys: indices or keys to read, without a sampler.
    """
    source: Any = dataset  # torch's type is a class of its own, but torch uses only these two methods
    pinned = device.type == "cuda"  # pinned memory is copied to the GPU while it computes
    if batches is not None:
        return BatchLoader(source, batch_sampler=batches, num_workers=workers, pin_memory=pinned)
    order = list(range(len(dataset)) if keys is None else keys)
    # Without workers, one or two batches are read in less time than workers need to start.
    workers = workers if len(order) > 2 * batch_size else 0
    return BatchLoader(source, batch_size=batch_size, sampler=order, num_workers=workers, pin_memory=pinned)


def read_in_turn(
    dataset: Images,
    device: torch.device,
    workers: int,
    batch_size: int,
    keys: Sequence[int] | Sequence[Key] | None = None,
) -> Iterator[Callable[[], tuple[Tensor, Tensor]]]:
    """Yield a function for each batch over `keys` (all images by default), in order; the function returns the batch.

    Without workers, the function reads the batch when it is called. Threads that process batches in parallel then also
    read them in parallel, instead of waiting for one thread that reads all batches.
    """
    loader = make_loader(dataset, device, workers, batch_size=batch_size, keys=keys)
    if loader.num_workers:
        yield from (partial(_itself, batch) for batch in loader)
    else:
        yield from (partial(_read, loader, own) for own in loader.batch_sampler or ())


def read_files_in_turn(
    files: ImageFiles, device: torch.device, workers: int, batches: Iterator[list[str]]
) -> Iterator[Callable[[], FileBatch]]:
    """Yield a function for each batch of files, in order, as `read_in_turn` does; the batches may have no end.

    Args:
        files: reads the files.
        device: device of the network.
        workers: number of processes that read ahead.
        batches: paths of the files of each batch.
    """
    if not workers:
        yield from (partial(_read_files, files, paths) for paths in batches)
        return
    source, paths_of_batches = cast("Any", files), cast("Any", batches)
    loader = BatchLoader(
        source,
        batch_sampler=paths_of_batches,
        num_workers=workers,
        collate_fn=files.stack,
        pin_memory=device.type == "cuda",
    )
    yield from (partial(_itself, batch) for batch in loader)


def make_stream_loader(batches: StreamedBatches, device: torch.device, workers: int) -> BatchLoader:
    """Return a loader of streamed batches; at most one worker reads ahead, because a stream can have only one
    reader."""
    return BatchLoader(batches, batch_size=None, num_workers=min(workers, 1), pin_memory=device.type == "cuda")


def normaliser(preprocessing: Preprocessing, device: torch.device, layout: Layout) -> Callable[[Tensor], Tensor]:
    """Return the function that turns pixels (n, channels, h, w) uint8 into the network's float32 input, in `layout` on
    `device`."""
    # (pixels / 255 - mean) / std = (pixels - 255 mean) / (255 std)
    mean = torch.tensor(preprocessing.mean, device=device).view(1, -1, 1, 1) * 255.0
    std = torch.tensor(preprocessing.std, device=device).view(1, -1, 1, 1) * 255.0

    def normalise(pixels: Tensor) -> Tensor:
        moved = pixels.to(device, non_blocking=True).contiguous(memory_format=MEMORY_FORMATS[layout])
        return moved.to(torch.float32).sub_(mean).div_(std)

    return normalise


def _without_tracebacks(batches: Iterator[Any]) -> Iterator[Any]:
    """Yield batches, and raise a worker's DataError with its original sentence.

    torch raises a worker's exception again, with a text in three parts: where it was caught, the worker's traceback
    and, at the end of the traceback, the type and the sentence of the exception.
    """
    try:
        yield from batches
    except DataError as error:
        if not str(error).startswith("Caught "):
            raise
        kind = type(error)
        raise kind(str(error).rpartition(f"{kind.__name__}: ")[2].strip()) from None


def _itself(batch: Batch) -> Batch:
    """Return a batch that a worker has read."""
    return batch


def _read_files(files: ImageFiles, paths: list[str]) -> FileBatch:
    """Return the batch of some files, read in this thread."""
    return files.stack(files.__getitems__(paths))


def _read(loader: DataLoader[Any], keys: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401  (indices or keys)
    """Return the batch of some keys, read in this thread."""
    images: Any = loader.dataset
    batch: tuple[Tensor, Tensor] = loader.collate_fn(images.__getitems__(keys))
    return batch
