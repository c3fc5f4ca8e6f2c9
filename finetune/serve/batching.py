"""Predict the images of many requests together: what arrives during one forward pass is predicted by the next."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from finetune.decide.answers import AnswerRule

Prepared = TypeVar("Prepared")

MOST_TOGETHER = 64
"""Largest number of images in one forward pass."""

MOST_WAITING = 256
"""Largest number of images that may be waiting or in work, of all requests together."""


class ServedModel(Protocol[Prepared]):
    """A model that is served: that of a run, or an exported one."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the probabilities."""
        ...

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """Probability from which each label is given; None: each image has one, the most probable class."""
        ...

    @property
    def rule(self) -> AnswerRule | None:
        """Rule by which the answer follows from the probabilities; None: it is the most probable class."""
        ...

    def prepare(self, encoded: bytes) -> Prepared:
        """Return a decoded image, ready to predict; several threads may call this.

        Raises:
            Exception: the image cannot be decoded; of any type.
        """
        ...

    def predictions(self) -> AbstractContextManager[Callable[[Sequence[Prepared]], NDArray[np.float64]]]:
        """Return a context for one thread, with the function that returns the probabilities (n, n_classes) of n
        images."""
        ...


class Full(Exception):  # noqa: N818  (a state, not a mistake)
    """There are too many images already; the request may be repeated later."""


class Batcher(Generic[Prepared]):
    """A context with a thread that predicts.

    It never waits for further images: a single image is predicted at once. Under load the images that arrive during a
    forward pass wait for the next one, so that batches grow with the load by themselves.
    """

    def __init__(
        self, model: ServedModel[Prepared], most_waiting: int = MOST_WAITING, most_together: int = MOST_TOGETHER
    ) -> None:
        """Prepare to predict with a model.

        Args:
            model: the model.
            most_waiting: largest number of images that may be waiting or in work.
            most_together: largest number of images in one forward pass.
        """
        self.most_waiting = most_waiting
        self._most_together = most_together
        self._model = model
        self._waiting: deque[tuple[Prepared, Future[NDArray[np.float64]]]] = deque()
        self._changed = threading.Condition()
        self._taken = 0
        self._is_closed = False
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="predictions", daemon=True)

    def __enter__(self) -> Self:
        """Start the thread, and wait until it can predict."""
        self._thread.start()
        self._ready.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Predict what still waits, and end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    @property
    def num_taken(self) -> int:
        """Number of images that are waiting or in work."""
        return self._taken

    @contextmanager
    def places(self, count: int) -> Iterator[None]:
        """Hold places for images of a request until it is answered.

        Raises:
            Full: there are not as many free places.
        """
        with self._changed:
            if self._taken + count > self.most_waiting:
                raise Full
            self._taken += count
        try:
            yield
        finally:
            with self._changed:
                self._taken -= count

    def submit(self, images: Sequence[Prepared]) -> list[Future[NDArray[np.float64]]]:
        """Return the future probabilities (n_classes,) of each image; they are predicted together if they fit."""
        futures: list[Future[NDArray[np.float64]]] = [Future() for _ in images]
        with self._changed:
            self._waiting.extend(zip(images, futures, strict=True))
            self._changed.notify()
        return futures

    def _run(self) -> None:
        """Predict batch after batch, until the batcher is closed and nothing waits."""
        try:
            with self._model.predictions() as predict:
                self._ready.set_result(None)
                while batch := self._next_batch():
                    # A request that was given up, because its server stops, is not predicted.
                    _answer(predict, [each for each in batch if each[1].set_running_or_notify_cancel()])
        except Exception as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    def _next_batch(self) -> list[tuple[Prepared, Future[NDArray[np.float64]]]]:
        """Wait for images and return them; return none if the batcher is closed."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._is_closed)
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), self._most_together))]


def _answer(
    predict: Callable[[Sequence[Prepared]], NDArray[np.float64]],
    batch: Sequence[tuple[Prepared, Future[NDArray[np.float64]]]],
) -> None:
    """Set the results of a batch. If it cannot be predicted, each image is tried alone, so that one fails alone."""
    if not batch:
        return
    try:
        rows = predict([image for image, _ in batch])
    except Exception as error:  # networks raise exceptions of any type
        if len(batch) == 1:
            batch[0][1].set_exception(error)
        else:
            for single in batch:
                _answer(predict, [single])
        return
    for (_, future), row in zip(batch, rows, strict=True):
        future.set_result(row)
