"""Build the optimizer, its parameter groups, and the average of the weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from finetune.decide.plan import Plan
from finetune.training.task import Task

MOMENTUM = 0.9
"""Of SGD (Nesterov 1983; Sutskever et al. 2013)."""


def _make_optimizer(plan: Plan, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return AdamW (Loshchilov & Hutter 2019), or SGD with Nesterov momentum."""
    if plan.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True, foreach=True)  # a fused step knows no shards
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), fused=True)


def _parameter_groups(task: Task, plan: Plan, parameters: dict[str, nn.Parameter]) -> list[dict[str, Any]]:
    """Return one group for each stage and kind of parameter, with its own peak rate; vectors are not decayed."""
    rates = {stage.name: stage.learning_rate for stage in plan.stages} | {"head": plan.head_learning_rate}
    groups: list[dict[str, Any]] = []
    for stage, names in task.groups.items():
        for decayed in (True, False):
            members = [parameters[name] for name in names if (parameters[name].ndim > 1) == decayed]
            if members:
                decay = plan.weight_decay if decayed else 0.0
                groups.append(
                    {"params": members, "lr": rates[stage], "peak": rates[stage], "weight_decay": decay, "stage": stage}
                )
    return groups


class _Average:
    """The exponential moving average of some tensors (Polyak & Juditsky 1992), in their own precision (float32)."""

    def __init__(self, tensors: list[nn.Parameter], decay: float) -> None:
        self._averaged = [tensor.detach().clone() for tensor in tensors] if decay > 0 else []
        self._update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self, tensors: list[nn.Parameter]) -> None:
        if self._averaged:
            self._update(self._averaged, [tensor.detach() for tensor in tensors], None)

    def values(self, tensors: list[nn.Parameter]) -> list[Tensor]:
        return self._averaged or [tensor.detach() for tensor in tensors]

    @contextmanager
    def applied(self, tensors: list[nn.Parameter]) -> Iterator[None]:
        """Put the averages into the place of the tensors for a while."""
        if not self._averaged:
            yield
            return
        current = [tensor.detach().clone() for tensor in tensors]
        _write(tensors, self._averaged)
        try:
            yield
        finally:
            _write(tensors, current)


@torch.no_grad()
def _write(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
