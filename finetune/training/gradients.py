"""Compute the gradients of a batch: in micro-batches, in parallel parts, and over several processes.

The loss of a batch of B images, with class weights w (1 on average over the training images), is

    L = 1/B * sum_i w[y_i] * CE(f(x_i), y_i)

or, for sets of labels, that of binary cross-entropies, in which images with a label are weighted (`predict/links.py`).

Every part of a batch divides its sum by B, not by its own size. The gradients of the parts then add up to those of the
whole batch, whatever their number.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from finetune.decide.plan import Plan
from finetune.device import autocast
from finetune.network.cpu import FoldedNorms, ThreadTeam, quick_gradients
from finetune.predict.links import link_of
from finetune.training.task import Batches, Part, Task, split_logits


class BatchGradients:
    """Compute the gradients of one batch after another."""

    def __init__(
        self, task: Task, plan: Plan, accelerator: Accelerator, module: nn.Module, batches: Batches, team: ThreadTeam
    ) -> None:
        """Take the batches from `batches`; `module` is the module of the task as the accelerator prepared it."""
        self._task = task
        self._plan = plan
        self._accelerator = accelerator
        self._module = module
        self._batches = batches
        self._team = team
        self._folded: FoldedNorms | None = None

    def fold_norms(self) -> None:
        """Fold frozen batch norms into the convolutions from now on; this reads the next batch.

        The network must not be sharded.
        """
        if self._plan.batch_norm_statistics != "updated":
            task = self._task
            self._folded = FoldedNorms(lambda: task.module(task.prepare(self._batches.peek())))

    def compute(self) -> float:
        """Add the gradients of the next batch to the parameters; return the mean loss over the whole batch.

        Each process adds the gradients of its own part of the batch, and Accelerate averages them over the processes.
        """
        plan, processes = self._plan, self._accelerator.num_processes
        micro_batches = math.ceil(plan.accumulation / processes)
        # Every process takes the same number of parts: where weights are sharded, each part needs all processes.
        parts = self._batches.take(min(micro_batches * self._team.count, plan.batch_size // processes))
        if self._team.count == 1 or self._folded is None:
            return self._one_after_another(parts)
        return self._in_parallel(parts, self._folded)

    def _one_after_another(self, parts: Sequence[Part]) -> float:
        accelerator, module = self._accelerator, self._module
        total = torch.zeros((), device=accelerator.device)
        for number, part in enumerate(parts, start=1):
            # Processes exchange gradients once a batch, in the backward pass of the last part.
            with nullcontext() if number == len(parts) else accelerator.no_sync(module):
                objective, loss = self._losses(part)
                # P processes average their gradients: g = 1/P * sum_p g_p. Times P, this is the sum over the batch.
                accelerator.backward(objective * accelerator.num_processes)
            total += loss
        return float(accelerator.reduce(total, reduction="sum"))

    def _in_parallel(self, parts: Sequence[Part], folded: FoldedNorms) -> float:
        """Let each thread of the team differentiate a part; sum up the gradients in the order of the parts.

        The order does not depend on which thread is done first, so that the sums are the same bit for bit.
        """
        total = torch.zeros((), device=self._accelerator.device)
        trained = [parameter for parameter in self._module.parameters() if parameter.requires_grad]
        with autocast(self._accelerator.device, self._plan.precision), folded.once(trained, self._team) as weights:

            def gradients_of(part: Part) -> tuple[Tensor, Sequence[Tensor]]:
                objective, loss = self._losses(part)
                return loss, torch.autograd.grad(objective, weights.leaves, materialize_grads=True)

            work = chain(parts, self._batches.read_ahead(self._team))
            # First the gradients by the folded weights, added up over the parts; then, once a batch, through the
            # folding to the parameters: backpropagation is linear in the gradient.
            for loss, gradients in self._team.map(gradients_of, work):
                total += loss
                weights.add(gradients)
            for parameter, gradient in zip(trained, weights.gradients(), strict=True):
                parameter.grad = gradient
        return float(total)

    def _losses(self, part: Part) -> tuple[Tensor, Tensor]:
        """Return the terms of one part in the minimised objective, and in the loss L of the new head alone.

        The history records L with and without co-tuning, so that plans can be compared.
        """
        task, plan = self._task, self._plan
        device = task.class_weights.device
        with autocast(device, plan.precision), quick_gradients(device), self._folded or nullcontext():
            logits, source = split_logits(self._module(task.prepare(part.inputs)).float(), task)
        loss = second = torch.zeros((), device=device)
        own = self._batches.mixing_share
        # A mixed image has a share m of its own and 1 - m of another image j, and the loss of both labels (mixup, Zhang
        # et al. 2018; CutMix, Yun et al. 2019): m * w[y_i] * CE(f(x_i), y_i) + (1 - m) * w[y_j] * CE(f(x_i), y_j).
        for indices, share in ((part.indices, own), (part.others, 1.0 - own)):
            if share > 0.0:
                labels = task.labels[indices].to(device, non_blocking=True)
                losses, importance = link_of(plan.metric).train_losses(
                    logits, labels, task.class_weights, plan.label_smoothing
                )
                weights = share * importance / plan.batch_size
                loss = loss + (losses * weights).sum()
                # Co-tuning (You et al. 2020) adds a second loss: c/B * sum_i w[y_i] * CE(g(x_i), R[y_i]), with g the
                # pretrained classifier's logits, R[y] the source classes' distribution for class y, c plan.co_tuning.
                if task.relation is not None:
                    others = nn.functional.cross_entropy(source, task.relation[labels], reduction="none")
                    second = second + plan.co_tuning * (others * weights).sum()
        return loss + second, loss.detach()


def count_parallel_parts(module: nn.Module, plan: Plan, accelerator: Accelerator) -> int:
    """Return how many parts of a batch are computed in parallel.

    It is 1 if parts would depend on each other: if they draw from one random generator, update the same batch norm
    statistics, or exchange gradients with other processes.
    """
    names = ("p", "drop_prob", "drop_rate")  # of dropout in torch, of drop-path and of heads without a module in timm
    draws = any(getattr(part, name, 0) for part in module.modules() if part.training for name in names)
    alone = accelerator.num_processes == 1 and accelerator.device.type == "cpu"
    return plan.parallel_parts if alone and not draws and plan.batch_norm_statistics != "updated" else 1
