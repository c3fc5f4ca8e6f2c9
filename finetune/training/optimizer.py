"""Build the optimizer, its parameter groups and learning rates, and the moving average of the weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from finetune.decide.plan import Plan
from finetune.decide.schedule import learning_rate_factor
from finetune.training.task import Task

MOMENTUM = 0.9
"""Momentum of SGD (Nesterov 1983; Sutskever et al. 2013)."""


def make_optimizer(plan: Plan, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return the plan's optimizer: AdamW (Loshchilov & Hutter 2019), or SGD with Nesterov momentum."""
    if plan.optimizer == "sgd":
        # Nesterov: v <- MOMENTUM * v + g; w <- w - rate * (g + MOMENTUM * v), with decay * w added to g.
        # Not fused: torch's fused step of SGD does not work on shards.
        return torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True, foreach=True)
    # With m and v the bias-corrected averages of g and g^2: w <- (1 - rate * decay) * w - rate * m / (sqrt(v) + 1e-8).
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), fused=True)


def parameter_groups(task: Task, plan: Plan, parameters: dict[str, nn.Parameter]) -> list[dict[str, Any]]:
    """Return the optimizer's groups: one for each stage and kind of parameter, with its peak learning rate.

    Weight decay applies to matrices and kernels alone, not to biases and norms (He et al. 2019, section 3.1), and
    not to parameters that timm excludes for the network, such as position embeddings.

    Args:
        task: the task, which names the parameters of each stage.
        plan: the plan, which has the learning rates and the weight decay.
        parameters: parameters of the module to train, by name.
    """
    rates = {stage.name: stage.learning_rate for stage in plan.stages} | {"head": plan.head_learning_rate}
    # A tail has its network inside, whose parameters have longer names in the tail.
    network: Any = getattr(task.module, "network", task.module)
    excluded = set(network.no_weight_decay()) if hasattr(network, "no_weight_decay") else set()
    decays = {
        name: parameter.ndim > 1 and name.removeprefix("network.") not in excluded
        for name, parameter in parameters.items()
    }
    groups: list[dict[str, Any]] = []
    for stage, names in task.groups.items():
        for decayed in (True, False):
            parameters_of_group = [parameters[name] for name in names if decays[name] == decayed]
            if parameters_of_group:
                decay = plan.weight_decay if decayed else 0.0
                groups.append(
                    {
                        "params": parameters_of_group,
                        "lr": rates[stage],
                        "peak": rates[stage],
                        "weight_decay": decay,
                        "stage": stage,
                    }
                )
    return groups


def set_learning_rates(optimizer: torch.optim.Optimizer, plan: Plan, position: float) -> None:
    """Set each group's learning rate to its peak times the schedule's factor at `position`, in the plan's steps."""
    # One schedule for all groups: stages differ in their peaks alone.
    factor = learning_rate_factor(position, plan.steps, plan.warmup_steps, plan.schedule)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


class MovingAverage:
    """The exponential moving average of some tensors (Polyak & Juditsky 1992), in their own precision (float32)."""

    def __init__(self, tensors: list[nn.Parameter], decay: float) -> None:
        """Average `tensors` with the decay d; a decay of 0 keeps no average."""
        self._tensors = tensors
        self._update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self.averaged = [tensor.detach().clone() for tensor in tensors] if decay > 0 else []
        """The averages, in the order of the tensors; empty without an average."""

    @torch.no_grad()
    def update(self) -> None:
        """Add the current values of the tensors to the average."""
        # a <- d * a + (1 - d) * w after each step, from a = w before the first one; there is no bias to correct.
        if self.averaged:
            self._update(self.averaged, [tensor.detach() for tensor in self._tensors], None)

    def values(self) -> list[Tensor]:
        """Return the averages, or the tensors themselves without an average."""
        return self.averaged or [tensor.detach() for tensor in self._tensors]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Return a context inside which the tensors have the averages as their values."""
        if not self.averaged:
            yield
            return
        current = [tensor.detach().clone() for tensor in self._tensors]
        write(self._tensors, self.averaged)
        try:
            yield
        finally:
            write(self._tensors, current)


@torch.no_grad()
def write(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy `values` into `tensors`, in place."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
