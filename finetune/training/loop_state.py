"""Hold what a training changes: the weights, the optimizer's moments, the average and the best weights.

This state can be saved as a checkpoint, restored from one, and evaluated.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from finetune.decide.plan import Plan
from finetune.history import Row
from finetune.network.backbone import set_training_mode
from finetune.training.compiling import compiled
from finetune.training.optimizer import MovingAverage, make_optimizer, parameter_groups, write
from finetune.training.sharding import (
    assemble,
    assembled,
    copy_to_shard,
    shard_like,
    shard_moments,
    without_shards,
)
from finetune.training.task import Task


class BestWeights:
    """The weights with the lowest held-out log-loss so far."""

    def __init__(self) -> None:
        """Start without any."""
        self.found: tuple[float, list[Tensor]] | None = None
        """The log-loss and a copy of the weights, batch norm statistics included."""

    def offer(self, loss: float, weights: Sequence[Tensor]) -> None:
        """Keep a copy of `weights` if their log-loss is the lowest so far."""
        if self.found is None or loss < self.found[0]:
            self.found = loss, [tensor.clone() for tensor in weights]


class LoopState:
    """A task's module, prepared for training, with its optimizer, its average and its best weights."""

    def __init__(self, task: Task, plan: Plan, accelerator: Accelerator) -> None:
        """Prepare the module in training mode; start from the task's checkpoint if there is one."""
        self._task = task
        self._plan = plan
        self._accelerator = accelerator
        if task.resumed is not None:
            task.module.load_state_dict(task.resumed["module"])
        self.own = copy_to_shard(task.module, accelerator)
        """The module that is trained: the task's, or a copy whose weights are sharded."""
        self.is_sharded = self.own is not task.module
        """Whether each process holds only a part of the weights."""
        groups = parameter_groups(task, plan, dict(self.own.named_parameters()))
        self.module, self.optimizer = accelerator.prepare(self.own, make_optimizer(plan, groups))
        """The module that computes the training steps, as the accelerator prepared it, and compiled if the plan says
        so."""
        if plan.compiled and not self.is_sharded:
            self.module = compiled(self.module)
        # Sharding replaces the parameters, in the optimizer, too; those from here on are the trained ones.
        parameters = dict(self.own.named_parameters())
        self.trained = [parameters[name] for names in task.groups.values() for name in names]
        """The trained parameters, stage after stage."""
        # Batch norms' running means and variances, which move where the plan updates them.
        self._statistics = list(self.own.buffers())
        self.average = MovingAverage(self.trained, plan.average_decay)
        self.best = BestWeights()
        if task.resumed is not None:
            self._restore(task.resumed)
        self._set_training_mode()

    def evaluate(self) -> Row:
        """Evaluate the averaged weights on the held-out images; offer them as the best ones if the plan keeps the best.

        The training continues as if there had been no evaluation.
        """
        if self._task.evaluate is None:
            return {}
        # Each process predicts its part of the images: all must do so with the same network.
        self._synchronise_statistics()
        with (
            self.average.applied(),
            assembled(self.own, self._task.module, self._accelerator.device),
            _in_own_precision(self._task.module),
        ):
            loss, top1 = self._task.evaluate()
            row: Row = {"validation_top1": top1} | self._task.details() | {"validation_loss": loss}
        # The averaged weights were evaluated, so they are the ones to keep.
        if self._plan.keep == "best":
            self.best.offer(loss, [*self.average.values(), *self._statistics])
        self._set_training_mode()
        return row

    def save(self, step: int, position: float) -> None:
        """Save a checkpoint from which this training continues bit for bit; all processes must call this.

        Args:
            step: number of steps taken.
            position: position on the schedule, in the plan's steps.
        """
        if self._task.save is None:
            return
        # The weights as the optimizer left them, not averaged; whole, so that any number of processes can continue.
        module = without_shards(self.own.state_dict())
        best = self.best.found
        self._task.save(
            {
                "step": step,
                "position": position,
                "module": {name: tensor.detach().cpu().clone() for name, tensor in module.items()},
                "optimizer": without_shards(self.optimizer.state_dict()),
                "average": without_shards(self.average.averaged),
                "best": None if best is None else without_shards(list(best)),
                "history": self._task.history,
            }
        )

    def finish(self) -> None:
        """Leave the task's module with its final weights (the best, the averaged or the last), unwrapped from
        Accelerate."""
        module, accelerator = self._task.module, self._accelerator
        # Another process must not look for the last checkpoint before it is written.
        accelerator.wait_for_everyone()
        if self.best.found is None:
            write(self.trained, self.average.values())
        else:
            write([*self.trained, *self._statistics], self.best.found[1])
        self._synchronise_statistics()
        assemble(self.own, module, accelerator.device)
        # Accelerate's forward would still compute in the plan's precision.
        accelerator.unwrap_model(self.module, keep_fp32_wrapper=False)
        # With these marks, Accelerate would not prepare the module for the next training, which would run in float32.
        for mark in ("forward", "_is_accelerate_prepared"):
            module.__dict__.pop(mark, None)
        accelerator.free_memory()

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        """Read all of a checkpoint except the module's weights, which are loaded before the module is sharded."""
        # The optimizer matches its state to parameters by their order in the groups.
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        shard_moments(self.optimizer)
        # A checkpoint has whole tensors; each process copies its own shards of them.
        with torch.no_grad():
            for averaged, value in zip(self.average.averaged, checkpoint["average"], strict=True):
                averaged.copy_(shard_like(value, averaged))
        self._task.history.extend(checkpoint["history"])
        if checkpoint["best"] is not None:
            loss, weights = checkpoint["best"]
            pairs = zip(weights, [*self.trained, *self._statistics], strict=True)
            self.best.found = loss, [shard_like(value, tensor) for value, tensor in pairs]

    def _set_training_mode(self) -> None:
        set_training_mode(self.own, self._plan.batch_norm_statistics != "updated")

    def _synchronise_statistics(self) -> None:
        """Give all processes the batch norm statistics of the main one; each has updated them on its own images."""
        if self._plan.batch_norm_statistics == "updated" and self._accelerator.num_processes > 1:
            for tensor in self._statistics:
                torch.distributed.broadcast(tensor, 0)


@contextmanager
def _in_own_precision(module: nn.Module) -> Iterator[None]:
    """Remove Accelerate's forward, which computes in the training's precision, from a module inside the context."""
    prepared = module.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if prepared is not None:
            module.forward = prepared
