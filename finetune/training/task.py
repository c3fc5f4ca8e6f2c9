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
    """One training: a module, its images, and whom to tell."""

    name: str
    module: nn.Module
    """On its device, with what is trained set to require gradients."""
    groups: dict[str, list[str]]
    """Names of the trained parameters by stage; the head is `head`."""
    make_loader: Callable[[range], DataLoader[Any]]
    """Batches of (inputs, indices) for these steps."""
    prepare: Callable[[Tensor], Tensor]
    """From a batch's inputs to the module's, on its device."""
    labels: Tensor
    """(n_images,), of the indices."""
    class_weights: Tensor
    """(num_classes,); the mean over the training images is 1."""
    relation: Tensor | None = None
    """(num_classes, source_classes): what the pretrained classifier takes each class for, where it is co-tuned and its
    logits follow the module's own."""
    on_step: Callable[[int], None]
    evaluate: Callable[[], tuple[float, float]] | None = None
    """Return the log-loss and the top-1 accuracy on the held-out images."""
    details: Callable[[], Row] = dict
    """Return what else is to be known of the last evaluation."""
    save: Callable[[dict[str, Any]], None] | None = None
    """Keep a checkpoint."""
    resumed: dict[str, Any] | None = None
    """The checkpoint to go on from."""
    until: int | None = None
    """The step at which it pauses, to go on from a checkpoint; None: it goes through the plan's."""
    seconds: float | None = None
    """What it may take from now on; where that is too little, it goes through its schedule in fewer steps."""
    history: list[Row] = field(default_factory=list)


class Reached(NamedTuple):
    """How far a training went."""

    step: int
    """Steps taken, those before an interruption included."""
    is_over: bool
    """Whether there is nothing left to go on to."""


def _split(scores: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """Return the logits of the new head, and those of the pretrained classifier beside it."""
    count = scores.shape[1] - (0 if task.relation is None else task.relation.shape[1])
    return scores[:, :count], scores[:, count:]


class _Part(NamedTuple):
    """A part of a batch."""

    inputs: Tensor
    indices: Tensor
    """(n,), of the images."""
    others: Tensor
    """(n,), of those that they are mixed with."""


class _Batches:
    """The batches of a loader, of which the next one can be read while another is computed with."""

    def __init__(self, loader: DataLoader[Any], plan: Plan, step: int) -> None:
        """Mix as planned; `step` is that of the first batch."""
        self._batches: Iterator[Any] = iter(loader)
        self._plan = plan
        self._step = step
        self._next: Future[Any] | None = None
        self.share = 1.0
        """Of its own in each image of the batch that is computed with."""
        self.taken: tuple[Tensor, Tensor] | None = None
        """The batch that is computed with."""

    def take(self, parts: int) -> list[_Part]:
        """Return the next batch, mixed as planned, in so many parts, or in as many as it has images."""
        inputs, indices = next(self._batches) if self._next is None else self._next.result()
        self._next = None
        self.taken = inputs, indices
        inputs, self.share = mix(inputs, self._plan.augmentation.mixing, (self._plan.noise_seed, self._step))
        self._step += 1
        parts = min(parts, len(indices))
        split = (tensor.tensor_split(parts) for tensor in (inputs, indices, indices.roll(1)))
        return [_Part(*each) for each in zip(*split, strict=True)]

    def peek(self) -> Tensor:
        """Return the inputs (1, ...) of the first image of the next batch."""
        if self._next is None:
            self._next = Future()
            self._next.set_result(next(self._batches))
        inputs: Tensor = self._next.result()[0]
        return inputs[:1]

    def read_ahead(self, streams: ThreadTeam) -> Iterator[Any]:
        """Let a stream read the next batch once it has nothing else to do; this iterator yields nothing.

        A core that is through with its part reads while the other computes, and while this thread steps the optimizer.
        """
        self._next = streams.submit(lambda: next(self._batches, None))
        yield from ()

    def finish_reading(self) -> None:
        """Wait for the batch that is read ahead: whatever draws random numbers draws them from the same generator."""
        if self._next is not None:
            self._next.result()
