"""End a process on request, on Ctrl-C (SIGINT) or when the system asks (SIGTERM), and save a checkpoint before."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PATIENCE = 6.0
"""Time that a training has to reach the end of its step after a request to end, in seconds. Schedulers kill a process
10 seconds after SIGTERM or later."""

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""Exit status of a process that was asked to end, as shells report it."""


class _Request:
    """The request to end this process, if there was one."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.is_deferred = False


_request = _Request()


def listen() -> None:
    """Take requests to end from now on: each raises KeyboardInterrupt, at once or where a training has saved its
    checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        return
    _request.received = None
    for number in STATUS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as with nohup
            signal.signal(number, _receive)


def exit_status() -> int:
    """Return the exit status that tells which request ended this process."""
    return STATUS[_request.received or signal.SIGINT]


def was_terminated() -> bool:
    """Return whether the system asked this process to end."""
    return _request.received is signal.SIGTERM


def is_requested() -> bool:
    """Return whether a request to end has been deferred."""
    return _request.is_deferred and _request.received is not None


@contextmanager
def deferred(is_deferred: bool = True) -> Iterator[None]:
    """Defer requests to end inside the context, which has to ask `is_requested`; a second request is not deferred.

    Args:
        is_deferred: whether to do so.
    """
    _request.is_deferred = is_deferred
    try:
        yield
        if is_requested():  # after the last question
            raise KeyboardInterrupt
    finally:
        _request.is_deferred = False
        _stop_clock()


def _receive(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  (what Python calls a handler with)
    is_second = _request.received is not None
    if number in STATUS and not is_second:
        _request.received = signal.Signals(number)
    if _request.is_deferred and not is_second:
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, _receive)
            signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        return
    _request.is_deferred = False
    _stop_clock()
    raise KeyboardInterrupt


def _stop_clock() -> None:
    if hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():
        signal.setitimer(signal.ITIMER_REAL, 0.0)
