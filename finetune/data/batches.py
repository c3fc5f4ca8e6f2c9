"""From a table of images to batches: decoded, varied by the seed, in an order that is a function of the seed and the
step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Sampler

from finetune.data import ImageSource, ImageStream, Pixels, decode, in_threads
from finetune.data.augmentation import Key, Variation, plain_view
from finetune.decide.plan import AugmentationPlan
from finetune.decide.preprocessing import Preprocessing
from finetune.device import MEMORY_FORMATS
from finetune.recipe import Layout

Item = TypeVar("Item")


class Images(Protocol):
    """A data set of images or of what was made of them, by index or key."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def __getitems__(self, keys: Any, /) -> list[tuple[Tensor, int]]:  # noqa: ANN401  (indices or keys)
        """Return (pixels or activations, index) for each key."""
        ...


class PlainImages:
    """Images as prediction sees them: (uint8 pixels (3, size, size), index)."""

    def __init__(self, pixels: Pixels, preprocessing: Preprocessing, mirrored: bool = False) -> None:
        """Prepare `pixels`; `mirrored` flips them left to right."""
        self.pixels = pixels
        self._preprocessing = preprocessing
        self._mirrored = mirrored

    def describe(self, members: Sequence[int] | None = None) -> str:
        """Return all that the images (of `members`) depend on."""
        return f"{self.pixels.content(members)} {self._preprocessing} {'mirrored' if self._mirrored else 'plain'}"

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pixels)

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Return several images with their indices."""
        images = [plain_view(image, self._preprocessing) for image in self.pixels.read(indices)]
        if self._mirrored:
            images = [image.flip(-1) for image in images]
        return list(zip(images, indices, strict=True))


class VariedImages:
    """Images as training sees them; an item's key and the seed alone decide how it is varied."""

    def __init__(self, pixels: Pixels, preprocessing: Preprocessing, plan: AugmentationPlan, seed: int) -> None:
        """Vary `pixels` as planned."""
        self._pixels = pixels
        self._seed = seed
        self._plan = plan
        self._plain = PlainImages(pixels, preprocessing)
        self._vary = Variation(preprocessing, plan, seed)

    def describe(self, members: Sequence[int] | None = None) -> str:
        """Return all that a view of the images (of `members`) depends on, but for its number."""
        return f"{self._plain.describe(members)} {self._plan} {self._seed}"

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._pixels)

    def __getitems__(self, keys: Sequence[Key]) -> list[tuple[Tensor, int]]:
        """Return several varied images with their indices."""
        indices = [key.image for key in keys]
        return list(zip(self._vary(self._pixels.read(indices), keys), indices, strict=True))


@dataclass(frozen=True, slots=True)
class Share:
    """What a process takes of the batches of a training."""

    batch_size: int
    """Images a step, over all processes."""
    steps: range
    seed: int
    """Of the order of the images and how they are varied."""
    rank: int = 0
    world_size: int = 1
    small_steps: int = 0
    """First steps of the training, which see small images."""

    def own(self, batch: list[Item]) -> list[Item]:
        """Return this process's part of a whole batch."""
        return batch[self.rank :: self.world_size]


class StreamedBatches(IterableDataset[tuple[Tensor, Tensor]]):
    """This process's share of the batches of some steps, varied, from a stream: (n, 3, size, size) uint8, classes (n,).

    The batch of a step depends on the seed and the step alone: a resumed training passes over what it has seen.
    """

    def __init__(self, stream: ImageStream, preprocessing: Preprocessing, plan: AugmentationPlan, share: Share) -> None:
        """Read from `stream`."""
        self._stream = stream
        self._shorter_side = preprocessing.shorter_side
        self._vary = Variation(preprocessing, plan, share.seed)
        self._share = share

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the steps' batches.

        Raises:
            DataError: an image that can not be decoded.
        """
        size = self._share.batch_size
        examples = self._stream.read(self._share.steps.start * size)
        for step in self._share.steps:
            own = self._share.own(list(enumerate(islice(examples, size), step * size)))
            images = in_threads(self._decode, [source for _, (source, _) in own])
            varied = self._vary(images, [Key(position, 0, step < self._share.small_steps) for position, _ in own])
            yield torch.stack(varied), torch.tensor([label for _, (_, label) in own])

    def _decode(self, source: ImageSource) -> NDArray[np.uint8]:
        return np.array(decode(source, self._shorter_side, "an image of the stream"))


class StepSampler(Sampler[list[Key]]):
    """Full batches for a number of steps; each pass over the images is a new permutation, and passes run into each
    other.

    The batch of a step depends on the seed and the step alone, so a resumed training goes on exactly as it would
    have. With several processes each one takes its share of every batch.
    """

    def __init__(self, members: Sequence[int], share: Share) -> None:
        """Draw from the images `members`."""
        self._members = np.asarray(members)
        self._share = share

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self._share.steps)

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield this process's keys of each step."""
        passes: dict[int, list[int]] = {}
        size = self._share.batch_size
        for step in self._share.steps:
            batch: list[Key] = []
            for position in range(step * size, (step + 1) * size):
                number, offset = divmod(position, len(self._members))
                if number not in passes:
                    passes = {number: self._permutation(number)}
                batch.append(Key(passes[number][offset], number, step < self._share.small_steps))
            yield self._share.own(batch)

    def _permutation(self, number: int) -> list[int]:
        generator = np.random.default_rng((self._share.seed, number))
        return [int(index) for index in generator.permutation(self._members)]


def make_loader(
    dataset: Images,
    device: torch.device,
    workers: int,
    batches: Sampler[list[Key]] | None = None,
    batch_size: int = 64,
    members: Sequence[int] | Sequence[Key] | None = None,
) -> DataLoader[tuple[Tensor, int]]:
    """Return a loader over the sampler's batches, or over `members` (all images) in order.

    `workers` processes read ahead; what they make does not depend on their number.
    """
    source: Any = dataset  # torch asks for its own class, but uses these two methods alone
    pinned = device.type == "cuda"
    if batches is not None:
        return DataLoader(source, batch_sampler=batches, num_workers=workers, pin_memory=pinned)
    order = list(range(len(dataset)) if members is None else members)
    # A pass that is over before its workers have started gains nothing from them.
    workers = workers if len(order) > 2 * batch_size else 0
    return DataLoader(source, batch_size=batch_size, sampler=order, num_workers=workers, pin_memory=pinned)


def read_in_turn(
    dataset: Images,
    device: torch.device,
    workers: int,
    batch_size: int,
    members: Sequence[int] | Sequence[Key] | None = None,
) -> Iterator[Callable[[], tuple[Tensor, Tensor]]]:
    """Yield, for each batch over `members` (all images) in order, the function that returns it.

    Without workers it reads the batch when it is called: threads that compute with batches side by side read them, too,
    and do not wait for a thread that reads for all of them.
    """
    loader = make_loader(dataset, device, workers, batch_size=batch_size, members=members)
    if loader.num_workers:
        yield from (partial(_itself, batch) for batch in loader)
    else:
        yield from (partial(_read, loader, keys) for keys in loader.batch_sampler or ())


def make_stream_loader(
    batches: StreamedBatches, device: torch.device, workers: int
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return a loader of streamed batches; at most one worker reads ahead, as a stream has one reader."""
    return DataLoader(batches, batch_size=None, num_workers=min(workers, 1), pin_memory=device.type == "cuda")


def normaliser(preprocessing: Preprocessing, device: torch.device, layout: Layout) -> Callable[[Tensor], Tensor]:
    """Return the function from uint8 pixels (n, 3, h, w) to the network's input, in its layout on `device`."""
    mean = torch.tensor(preprocessing.mean, device=device).view(1, 3, 1, 1) * 255.0
    std = torch.tensor(preprocessing.std, device=device).view(1, 3, 1, 1) * 255.0

    def normalise(pixels: Tensor) -> Tensor:
        moved = pixels.to(device, non_blocking=True).contiguous(memory_format=MEMORY_FORMATS[layout])
        return moved.to(torch.float32).sub_(mean).div_(std)

    return normalise


def _itself(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch


def _read(loader: DataLoader[Any], keys: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401  (indices or keys)
    images: Any = loader.dataset
    batch: tuple[Tensor, Tensor] = loader.collate_fn(images.__getitems__(keys))
    return batch
