"""Describe one training to the loop, and read its batches."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.data import DataLoader

from finetune.data.augmentation import mix
from finetune.decide.plan import Plan
from finetune.history import Row
from finetune.network.cpu import ThreadTeam


@dataclass(kw_only=True)
class Task:
    """One training: a module, its images, and the functions that the loop calls."""

    name: str
    """Name of the phase, for the history and for errors."""
    module: nn.Module
    """The network or its tail, on its device; the parameters to train require gradients."""
    groups: dict[str, list[str]]
    """Names of the trained parameters of each stage; the head's stage is `head`."""
    make_loader: Callable[[range], DataLoader[Any]]
    """Function that returns a loader of the batches of some steps, each batch as (inputs, image indices)."""
    prepare: Callable[[Tensor], Tensor]
    """Function that returns the module's inputs, on its device, from the inputs of a batch."""
    labels: Tensor
    """Class of each image, (n_images,), or set of labels, (n_images, num_classes), by the indices in the batches."""
    class_weights: Tensor
    """Weight of each class in the loss, (num_classes,); the mean over the training images is 1. For sets of labels, the
    weight of the images with each label."""
    relation: Tensor | None = None
    """Distribution over the source classes for each class, (num_classes, source_classes), if the network is co-tuned;
    the module's output then has the source logits after its own."""
    on_step: Callable[[int], None]
    """Function that is called with the number of steps taken, after each step."""
    evaluate: Callable[[], tuple[float, float]] | None = None
    """Function that returns the log-loss and the top-1 accuracy on the held-out images; None without evaluations."""
    details: Callable[[], Row] = dict
    """Function that returns further entries of the history about the last evaluation."""
    save: Callable[[dict[str, Any]], None] | None = None
    """Function that saves a checkpoint; None without checkpoints."""
    resumed: dict[str, Any] | None = None
    """Checkpoint to continue from; None if the training starts at its first step."""
    until: int | None = None
    """Step at which the training pauses, to continue from a checkpoint later; None if it does not pause."""
    seconds: float | None = None
    """Time that the training may take from now on, in seconds; if it is too short for all steps, fewer steps cover the
    whole schedule. None without a limit."""
    history: list[Row] = field(default_factory=list)
    """Rows of the history, one for each step; the loop adds them."""


class Reached(NamedTuple):
    """The step that a training has reached."""

    step: int
    """Number of steps taken, including those before an interruption."""
    is_over: bool
    """Whether the training has ended; a training that paused has not."""


def split_logits(logits: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """Return the logits of the new head (n, num_classes), and those of the pretrained classifier (n, source_classes).

    Without co-tuning, source_classes is 0.
    """
    # A co-tuned head returns [new logits | source logits] in training mode.
    count = logits.shape[1] - (0 if task.relation is None else task.relation.shape[1])
    return logits[:, :count], logits[:, count:]


class Part(NamedTuple):
    """A part of a batch."""

    inputs: Tensor
    """Inputs of the part's images, mixed as planned, (n, ...)."""
    indices: Tensor
    """Indices of the images, (n,)."""
    others: Tensor
    """Indices of the images that they are mixed with, (n,)."""


class Batches:
    """The batches of a loader; the next one can be read while the current one trains the network."""

    def __init__(self, loader: DataLoader[Any], plan: Plan, step: int) -> None:
        """Mix the batches as planned; `step` is the step of the first one."""
        self._batches: Iterator[Any] = iter(loader)
        self._plan = plan
        self._step = step
        self._next: Future[Any] | None = None
        self.mixing_share = 1.0
        """Share of each image of the current batch in its mixture; the rest is the image that it is mixed with."""
        self.taken: tuple[Tensor, Tensor] | None = None
        """The current batch: inputs before mixing, and image indices."""

    def take(self, parts: int) -> list[Part]:
        """Return the next batch, mixed as planned, in `parts` parts, or in as many as it has images."""
        inputs, indices = next(self._batches) if self._next is None else self._next.result()
        self._next = None
        # Kept to find a layer that is not finite.
        self.taken = inputs, indices
        # The mixing depends on the seed and the step alone, so that a resumed training mixes in the same way.
        seed = self._plan.noise_seed, self._step
        inputs, self.mixing_share = mix(inputs, self._plan.augmentation.mixing, seed)
        self._step += 1
        parts = min(parts, len(indices))
        # Each image is mixed with the one before it in the batch: its index is that of the batch rolled by one.
        split = (tensor.tensor_split(parts) for tensor in (inputs, indices, indices.roll(1)))
        return [Part(*each) for each in zip(*split, strict=True)]

    def peek(self) -> Tensor:
        """Return the inputs (1, ...) of the first image of the next batch, which is not taken yet."""
        # A loader cannot go back: the batch is kept, and taken next.
        if self._next is None:
            self._next = Future()
            self._next.set_result(next(self._batches))
        inputs: Tensor = self._next.result()[0]
        return inputs[:1]

    def read_ahead(self, team: ThreadTeam) -> Iterator[Any]:
        """Read the next batch in a thread of the team that has nothing else to do; this iterator yields nothing.

        A core that has finished its part reads while the others compute, and while this thread steps the optimizer.
        """
        # The team's queue is first in, first out: the parts of this batch are before it. None after the last batch.
        self._next = team.submit(lambda: next(self._batches, None))
        yield from ()

    def finish_reading(self) -> None:
        """Wait for the batch that is read ahead: reading and evaluation draw from one random generator, in order."""
        if self._next is not None:
            self._next.result()
