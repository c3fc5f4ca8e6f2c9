"""Several processes that do one thing: what one of them decides, all of them know."""

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from finetune.errors import FinetuneError

Made = TypeVar("Made")


def is_main_process() -> bool:
    """Return whether this is the process that writes and speaks."""
    return bool(_state().is_main_process)


def is_alone() -> bool:
    """Return whether there is no other process."""
    return bool(_state().num_processes == 1)


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


def _state() -> PartialState:
    return PartialState(cpu=not torch.cuda.is_available())
