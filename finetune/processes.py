"""Coordinate several processes that train one model: share decisions, divide work and gather results."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from numpy.typing import NDArray

from finetune.device import best_device
from finetune.errors import FinetuneError

Made = TypeVar("Made")
Array = TypeVar("Array", bound=NDArray[Any])


def is_main_process() -> bool:
    """Return whether this is the main process, which writes files and prints."""
    return bool(_state().is_main_process)


def num_processes() -> int:
    """Return the number of processes on all machines."""
    return int(_state().num_processes)


def from_main_process(make: Callable[[], Made]) -> Made:
    """Call `make` in the main process and return its result in every process.

    Raises:
        FinetuneError: the main process raised it; every process raises it.
    """
    state = _state()
    if state.num_processes == 1:
        return make()
    outcome: list[object] = [None, None]  # result and error
    if state.is_main_process:
        try:
            outcome[0] = make()
        except FinetuneError as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if isinstance(outcome[1], FinetuneError):
        raise outcome[1]
    return outcome[0]  # type: ignore[return-value]


def in_every_process(make: Callable[[], Made]) -> Made:
    """Call `make` in every process and return each one's own result; all processes must call this.

    Raises:
        FinetuneError: one process raised it; every process raises it.
    """
    if num_processes() == 1:
        return make()
    result, error = None, None
    try:
        result = make()
    except FinetuneError as raised:
        error = raised
    for raised_there in of_all_processes(error):
        if raised_there is not None:
            raise raised_there
    return result  # type: ignore[return-value]


def divide_rows(make: Callable[[list[int]], Array], indices: Sequence[int] | NDArray[np.intp]) -> Array:
    """Return the rows (n, ...) that `make` computes for `indices` (n,), in their order; each process computes a part.

    No row is computed twice, and every process gets all rows. All processes must call this, with the same indices.

    Raises:
        FinetuneError: one process raised it; every process raises it.
    """
    state = _state()
    if state.num_processes == 1:
        return make([int(index) for index in indices])
    own = np.array_split(np.asarray(indices, dtype=np.intp), state.num_processes)[state.process_index]
    found = of_all_processes(in_every_process(lambda: make([int(index) for index in own])))
    # A process without rows may return them with another shape or type.
    filled = [rows for rows in found if len(rows)]
    return np.concatenate(filled or found[:1])  # type: ignore[return-value]


def wait_for_everyone() -> None:
    """Wait until every process has called this."""
    _state().wait_for_everyone()


@contextmanager
def first_alone() -> Iterator[None]:
    """Run the context in one process of each machine first, so that the other processes find what it has cached."""
    state = _state()
    if not state.is_local_main_process:
        state.wait_for_everyone()
    try:
        yield
    finally:
        # After an error, too: the others wait no longer, and meet the same one.
        if state.is_local_main_process:
            state.wait_for_everyone()


def of_all_processes(own: Made) -> list[Made]:
    """Return the values of `own` in all processes, ordered by process; all processes must call this."""
    found: list[Made] = gather_object([own])
    return found


def is_so_everywhere(is_so: Callable[[], bool]) -> bool:
    """Return whether a condition holds in every process once all have called this.

    A single process returns True without calling `is_so`.
    """
    if num_processes() == 1:
        return True
    wait_for_everyone()
    return all(of_all_processes(is_so()))


def own_turns(count: int) -> range:
    """Return this process's part of the jobs 0 .. `count` - 1, which the processes take in turn."""
    state = _state()
    return range(state.process_index, count, state.num_processes)


def _state() -> PartialState:
    return PartialState(cpu=best_device().type == "cpu")
