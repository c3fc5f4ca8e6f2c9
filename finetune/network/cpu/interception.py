"""Convolutions and batch norms of a network's layers, taken over for a while.

PyTorch's own way, `TorchFunctionMode`, sends each call of each function through Python, where threads that compute side
by side wait for each other: a sixth of a step of a network's last stages (experiments/log.md, 2026-11-26). So the two
functions of `torch.nn.functional` that matter are replaced themselves, as long as a context is open in any thread.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

Function = Callable[..., Tensor]
"""`CONVOLUTION` or `BATCH_NORM`."""

CONVOLUTION: Function = torch.conv2d
BATCH_NORM: Function = nn.functional.batch_norm


class Interception(ABC):
    """A context in which layers' calls of the two functions go through `call`; each thread enters it for itself."""

    @abstractmethod
    def call(self, function: Function, arguments: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
        """Return what `function(*arguments, **options)` is to return."""

    @staticmethod
    def hand_on(function: Function, *arguments: Any, **options: Any) -> Tensor:  # noqa: ANN401
        """Return what the context around this one makes of a call, or the function itself."""
        return _send(function, arguments, options)

    def __enter__(self) -> Self:
        """Take over the calls of this thread."""
        _open_contexts().append(self)
        with _LOCK:
            _USE.count += 1
            if _USE.count == 1:
                nn.functional.conv2d, nn.functional.batch_norm = _convolve, _normalise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give them back."""
        _open_contexts().pop()
        with _LOCK:
            _USE.count -= 1
            if _USE.count == 0:
                nn.functional.conv2d, nn.functional.batch_norm = CONVOLUTION, BATCH_NORM


class _Use:
    """How many contexts are open in all threads."""

    count = 0


_USE, _LOCK, _OWN = _Use(), threading.Lock(), threading.local()


def _open_contexts() -> list[Interception]:
    """Return the contexts that are open in this thread, the innermost one last."""
    if not hasattr(_OWN, "contexts"):
        _OWN.contexts = []
    contexts: list[Interception] = _OWN.contexts
    return contexts


def _send(function: Function, arguments: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
    contexts = _open_contexts()
    if not contexts:
        return function(*arguments, **options)
    innermost = contexts.pop()  # what it hands on goes to the one around it
    try:
        return innermost.call(function, arguments, options)
    finally:
        contexts.append(innermost)


def _convolve(*arguments: Any, **options: Any) -> Tensor:  # noqa: ANN401
    return _send(CONVOLUTION, arguments, options)


def _normalise(*arguments: Any, **options: Any) -> Tensor:  # noqa: ANN401
    return _send(BATCH_NORM, arguments, options)
