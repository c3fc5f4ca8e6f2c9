"""Several processes that do one thing: what one of them decides, all of them know, and what takes long they share."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from numpy.typing import NDArray

from finetune.errors import FinetuneError

Made = TypeVar("Made")
Array = TypeVar("Array", bound=NDArray[Any])


def is_main_process() -> bool:
    """Return whether this is the process that writes and speaks."""
    return bool(_state().is_main_process)


def num_processes() -> int:
    """Return how many processes there are, over all machines."""
    return int(_state().num_processes)


def from_main_process(make: Callable[[], Made]) -> Made:
    """Return what the main process makes, in every process; its mistakes are raised in every process, too."""
    state = _state()
    if state.num_processes == 1:
        return make()
    outcome: list[object] = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = make()
        except FinetuneError as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if isinstance(outcome[1], FinetuneError):
        raise outcome[1]
    return outcome[0]  # type: ignore[return-value]


def share_out(make: Callable[[list[int]], Array], members: Sequence[int] | NDArray[np.intp]) -> Array:
    """Return what `make` makes of `members`, a row for each, in their order; each process makes its part of the rows.

    No row is made twice, all processes get the same ones, and a mistake in one is raised in every one. All of them must
    call this, with the same members.
    """
    state = _state()
    if state.num_processes == 1:
        return make([int(member) for member in members])
    own = np.array_split(np.asarray(members, dtype=np.intp), state.num_processes)[state.process_index]
    outcome: list[Any] = [None, None]
    try:
        outcome[0] = make([int(member) for member in own])
    except FinetuneError as error:
        outcome[1] = error
    outcomes = of_all_processes(outcome)
    for _, mistake in outcomes:
        if mistake is not None:
            raise mistake
    filled = [rows for rows, _ in outcomes if len(rows)]
    return np.concatenate(filled or [outcomes[0][0]])  # type: ignore[return-value]


def wait_for_everyone() -> None:
    """Wait until every process is here."""
    _state().wait_for_everyone()


@contextmanager
def first_alone() -> Iterator[None]:
    """Let one process of each machine go first, so that the others find what it kept."""
    with _state().local_main_process_first():
        yield


def of_all_processes(own: Made) -> list[Made]:
    """Return what each process has, in their order; all of them must call this."""
    found: list[Made] = gather_object([own])
    return found


def is_so_everywhere(is_so: Callable[[], bool]) -> bool:
    """Return whether something is so in every process once all of them are here; one alone is not asked."""
    if num_processes() == 1:
        return True
    wait_for_everyone()
    return all(of_all_processes(is_so()))


def own_turns(count: int) -> range:
    """Return which of `count` jobs, taken in turns, are this process's."""
    state = _state()
    return range(state.process_index, count, state.num_processes)


def _state() -> PartialState:
    return PartialState(cpu=not torch.cuda.is_available())
