"""Intercept the convolutions and batch norms of a network's layers while a context is open.

PyTorch's own mechanism, `TorchFunctionMode`, sends every call of every function through Python. Threads that compute in
parallel then wait for each other, which took a sixth of the time of a step of a network's last stages
(experiments/log.md, 2026-11-26). So this module replaces only the two functions of `torch.nn.functional` that matter,
as long as a context is open in any thread.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

Function = Callable[..., Tensor]
"""One of the two functions that are intercepted: `CONVOLUTION` or `BATCH_NORM`."""

# PyTorch's own functions, saved before any replacement. Layers look them up in `torch.nn.functional` at each call.
CONVOLUTION: Function = torch.conv2d
BATCH_NORM: Function = nn.functional.batch_norm


class Interception(ABC):
    """A context in which the layers' calls of the two functions go through `call`, for the thread that enters it."""

    @abstractmethod
    def call(self, function: Function, arguments: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
        """Return the result of `function(*arguments, **options)`, computed in this context's way."""

    @staticmethod
    def pass_on(function: Function, *arguments: Any, **options: Any) -> Tensor:  # noqa: ANN401
        """Return the result of a call from the next context outside this one, or from the function itself."""
        return _send(function, arguments, options)

    def __enter__(self) -> Self:
        """Intercept the calls of this thread."""
        _open_contexts().append(self)
        # The replacement is global, but each thread has its own list of contexts, so threads without a context are not
        # affected. The first context that opens in any thread replaces the functions; the last one that closes restores
        # them.
        with _LOCK:
            _USE.count += 1
            if _USE.count == 1:
                nn.functional.conv2d, nn.functional.batch_norm = _convolve, _normalise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop intercepting the calls of this thread."""
        _open_contexts().pop()
        with _LOCK:
            _USE.count -= 1
            if _USE.count == 0:
                nn.functional.conv2d, nn.functional.batch_norm = CONVOLUTION, BATCH_NORM


class _Use:
    """Counter of the contexts that are open in all threads together."""

    count = 0


_USE, _LOCK, _OWN = _Use(), threading.Lock(), threading.local()


def _open_contexts() -> list[Interception]:
    """Return the contexts that are open in this thread, the innermost one last."""
    # A thread-local object starts without attributes in each thread.
    if not hasattr(_OWN, "contexts"):
        _OWN.contexts = []
    contexts: list[Interception] = _OWN.contexts
    return contexts


def _send(function: Function, arguments: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
    """Return the result of a call from the innermost context of this thread, or from the function if no context is
    open."""
    contexts = _open_contexts()
    if not contexts:
        return function(*arguments, **options)
    # The innermost context is removed while it works, so that its own calls reach the next context outside it.
    innermost = contexts.pop()
    try:
        return innermost.call(function, arguments, options)
    finally:
        contexts.append(innermost)


def _convolve(*arguments: Any, **options: Any) -> Tensor:  # noqa: ANN401
    return _send(CONVOLUTION, arguments, options)


def _normalise(*arguments: Any, **options: Any) -> Tensor:  # noqa: ANN401
    return _send(BATCH_NORM, arguments, options)
