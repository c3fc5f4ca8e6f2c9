"""The training loop: the only one, driven by the plan."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import chain
from math import isfinite
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from finetune.decide.plan import Plan
from finetune.decide.schedule import learning_rate_factor
from finetune.device import autocast
from finetune.errors import RecipeError
from finetune.history import Row
from finetune.network.backbone import set_training_mode
from finetune.network.cpu import FoldedNorms, ThreadTeam, quick_gradients
from finetune.training.monitor import _check_finite, _UpdateRatios, is_watched
from finetune.training.optimizer import _Average, _make_optimizer, _parameter_groups, _write
from finetune.training.pace import _Pace
from finetune.training.sharding import (
    assemble,
    assembled,
    copy_to_shard,
    set_up_sharding,
    shard_like,
    shard_moments,
    sharding_asked,
    without_shards,
)
from finetune.training.task import Reached, Task, _Batches, _Part, _split

CHECKPOINTS = 10
"""Checkpoints a training, at equal distances."""


MIXED_PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def make_accelerator(plan: Plan) -> Accelerator:
    """Return the accelerator for a plan; an earlier training's precision does not bind this one.

    Raises:
        RecipeError: there are more processes than images a batch, or they can not share out the weights.
    """
    # Accelerate would hand sharded networks their weights in low precision, which batch norms refuse.
    sharded = sharding_asked(plan.precision)
    precision = "no" if sharded else MIXED_PRECISION[plan.precision]
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=precision)
    if sharded:
        set_up_sharding(accelerator)
    if plan.batch_size < accelerator.num_processes:
        raise RecipeError(
            f"a batch of {plan.batch_size} images can not be shared by {accelerator.num_processes} processes; "
            f"give a larger --batch-size"
        )
    return accelerator


def train_steps(task: Task, plan: Plan, accelerator: Accelerator) -> Reached:
    """Train `task.module` in place for the plan's steps; it ends with the averaged weights, the last or the best.

    Gradients are those of the weighted mean loss over the whole batch, however many processes and micro-batches share
    it. A resumed training ends with the same weights as an uninterrupted one, and so does one that paused: it leaves
    the weights that it would end with, had the plan no more steps, and a checkpoint from before the averaging. It ends
    before its last step where the held-out images say so for as long as the plan is patient, or where time runs out.

    Raises:
        DivergenceError: the loss or a gradient is not a finite number; names the step and the layer.
    """
    own = _begin(task, accelerator)
    optimizer = _make_optimizer(plan, _parameter_groups(task, plan, dict(own.named_parameters())))
    module, optimizer = accelerator.prepare(own, optimizer)
    parameters = dict(own.named_parameters())
    trained = [parameters[name] for names in task.groups.values() for name in names]
    average = _Average(trained, plan.average_decay)
    statistics = list(own.buffers())  # of batch norms, which move where the plan updates them
    moving = [*trained, *statistics]
    best = None if task.resumed is None else _restore(task, task.resumed, optimizer, average, moving)
    pace = _Pace(task, plan)
    batches = _Batches(task.make_loader(range(pace.step, pace.end)), plan, pace.step)
    set_training_mode(own, plan.batch_norm_statistics != "updated")
    streams = ThreadTeam(_count_streams(own, plan, accelerator), plan.num_threads)
    clock = time.perf_counter() - float(task.history[-1]["seconds"] if task.history else 0.0)
    with streams:
        folded = None if pace.is_over or own is not task.module else _folded_norms(task, plan, batches)
        while not pace.is_over:
            step = pace.step
            factor = learning_rate_factor(pace.position, plan.steps, plan.warmup_steps, plan.schedule)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            # Of dropout and drop-path.
            torch.manual_seed(plan.noise_seed * 1_000_003 + step * 1_009 + accelerator.process_index)
            loss = _gradients(task, plan, accelerator, module, streams, batches, folded)
            accelerator.unscale_gradients()
            length = float(without_shards(nn.utils.clip_grad_norm_(trained, plan.clip_norm)))
            _check_finite(task, plan, batches, step, loss, [] if isfinite(length) or accelerator.scaler else trained)
            ratios = _UpdateRatios(task.groups, trained if is_watched(step, plan.steps) else [])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if not accelerator.optimizer_step_was_skipped:
                average.update(trained)
            batches.finish_reading()
            row: Row = {
                "phase": task.name,
                "step": step + 1,
                "train_loss": loss,
                "learning_rate": optimizer.param_groups[-1]["lr"],  # the head's, as it was used
                "gradient_norm": length if isfinite(length) else torch.finfo(torch.float32).max,
                **ratios.measure(),
            }
            if task.evaluate is not None and pace.is_evaluated():
                _agree(statistics, plan, accelerator)
                with (
                    average.applied(trained),
                    assembled(own, task.module, accelerator.device),
                    _in_own_precision(task.module),
                ):
                    loss_now, row["validation_top1"] = task.evaluate()
                    row |= task.details()
                row["validation_loss"] = loss_now
                if plan.keep == "best" and (best is None or loss_now < best[0]):
                    best = (loss_now, [value.clone() for value in (*average.values(trained), *statistics)])
                set_training_mode(own, plan.batch_norm_statistics != "updated")
            row["seconds"] = round(time.perf_counter() - clock, 3)
            task.history.append(row)
            pace.advance()
            is_due = pace.step % max(1, plan.steps // CHECKPOINTS) == 0 or pace.is_over
            if task.save is not None and is_due and pace.step < plan.steps:
                task.save(_checkpoint(task, own, optimizer, average, best, pace))
            task.on_step(plan.steps if pace.has_ended else pace.step)
    accelerator.wait_for_everyone()  # or another process would look for a checkpoint that is not written yet
    if best is None:
        _write(trained, average.values(trained))
    else:
        _write([*trained, *statistics], best[1])
    _agree(statistics, plan, accelerator)
    assemble(own, task.module, accelerator.device)
    accelerator.unwrap_model(module, keep_fp32_wrapper=False)  # or the network would stay in the training's precision
    for mark in ("forward", "_is_accelerate_prepared"):
        task.module.__dict__.pop(mark, None)  # or the next training would not be prepared, and run in float32
    accelerator.free_memory()
    return Reached(pace.step, pace.has_ended)


def _begin(task: Task, accelerator: Accelerator) -> nn.Module:
    """Return the module to prepare, with the weights that it goes on from."""
    if task.resumed is not None:
        task.module.load_state_dict(task.resumed["module"])
    return copy_to_shard(task.module, accelerator)


def _gradients(
    task: Task,
    plan: Plan,
    accelerator: Accelerator,
    module: nn.Module,
    streams: ThreadTeam,
    batches: "_Batches",
    folded: FoldedNorms | None,
) -> float:
    """Add up the gradients of this process's part of the next batch; return the mean loss over the whole batch."""
    total = torch.zeros((), device=accelerator.device)
    share = math.ceil(plan.accumulation / accelerator.num_processes)
    # As many parts in every process: where weights are sharded, all of them are needed for each.
    parts = batches.take(min(share * streams.count, plan.batch_size // accelerator.num_processes))
    losses_of = partial(_losses, task, plan, module, batches.share, folded or nullcontext())
    if streams.count == 1 or folded is None:
        for number, part in enumerate(parts, start=1):
            with nullcontext() if number == len(parts) else accelerator.no_sync(module):
                objective, loss = losses_of(part)
                # Processes average their gradients; times their number, the average is the sum over the whole batch.
                accelerator.backward(objective * accelerator.num_processes)
            total += loss
        return float(accelerator.reduce(total, reduction="sum"))
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with autocast(accelerator.device, plan.precision), folded.once(trained, streams) as weights:

        def gradients_of(part: _Part) -> tuple[Tensor, Sequence[Tensor]]:
            objective, loss = losses_of(part)
            return loss, torch.autograd.grad(objective, weights.leaves, materialize_grads=True)

        for loss, gradients in streams.map(gradients_of, chain(parts, batches.read_ahead(streams))):
            total += loss
            weights.add(gradients)
        for parameter, gradient in zip(trained, weights.gradients(), strict=True):
            parameter.grad = gradient
    return float(total)


def _losses(
    task: Task,
    plan: Plan,
    module: nn.Module,
    share: float,
    folded: AbstractContextManager[Any],
    part: "_Part",
) -> tuple[Tensor, Tensor]:
    """Return what is to fall, and the loss of the new head alone, which is what others compare.

    `share` is what an image of a part has of its own, where images are mixed.
    """
    device = task.class_weights.device
    with autocast(device, plan.precision), quick_gradients(device), folded:
        scores, source = _split(module(task.prepare(part.inputs)).float(), task)
    loss = second = torch.zeros((), device=device)
    for indices, weight in ((part.indices, share), (part.others, 1.0 - share)):
        if weight > 0.0:
            labels = task.labels[indices].to(device, non_blocking=True)
            losses = nn.functional.cross_entropy(scores, labels, reduction="none", label_smoothing=plan.label_smoothing)
            weights = weight * task.class_weights[labels] / plan.batch_size
            loss = loss + (losses * weights).sum()
            if task.relation is not None:
                others = nn.functional.cross_entropy(source, task.relation[labels], reduction="none")
                second = second + plan.co_tuning * (others * weights).sum()
    return loss + second, loss.detach()


def _folded_norms(task: Task, plan: Plan, batches: "_Batches") -> FoldedNorms | None:
    """Return the context in which convolutions do the work of frozen batch norms, if they are frozen."""
    if plan.batch_norm_statistics == "updated":
        return None
    return FoldedNorms(lambda: task.module(task.prepare(batches.peek())))


def _count_streams(module: nn.Module, plan: Plan, accelerator: Accelerator) -> int:
    """Return how many parts of a batch are computed side by side: one, where they would share random numbers, the
    batch's statistics, or the gradients' way to other processes."""
    names = ("p", "drop_prob", "drop_rate")  # of dropout in torch, of drop-path and of heads without a module in timm
    draws = any(getattr(part, name, 0) for part in module.modules() if part.training for name in names)
    alone = accelerator.num_processes == 1 and accelerator.device.type == "cpu"
    return plan.parallel_parts if alone and not draws and plan.batch_norm_statistics != "updated" else 1


@contextmanager
def _in_own_precision(module: nn.Module) -> Iterator[None]:
    """Take Accelerate's forward, which computes in the training's precision, off a prepared module for a while."""
    prepared = module.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if prepared is not None:
            module.forward = prepared


def _agree(statistics: Sequence[Tensor], plan: Plan, accelerator: Accelerator) -> None:
    """Give all processes the main one's batch-norm statistics, which move in each on its own images."""
    if plan.batch_norm_statistics == "updated" and accelerator.num_processes > 1:
        for tensor in statistics:
            torch.distributed.broadcast(tensor, 0)


def _checkpoint(
    task: Task,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: _Average,
    best: tuple[float, list[Tensor]] | None,
    pace: _Pace,
) -> dict[str, Any]:
    state = without_shards(module.state_dict())
    return {
        "step": pace.step,
        "position": pace.position,
        "module": {name: tensor.detach().cpu().clone() for name, tensor in state.items()},
        "optimizer": without_shards(optimizer.state_dict()),
        "average": without_shards(average._averaged),
        "best": None if best is None else without_shards(list(best)),
        "history": task.history,
    }


def _restore(
    task: Task,
    checkpoint: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    average: _Average,
    moving: Sequence[Tensor],
) -> tuple[float, list[Tensor]] | None:
    """Take over all but the weights from a checkpoint; return the best weights that it has, which are of `moving`."""
    optimizer.load_state_dict(checkpoint["optimizer"])
    shard_moments(optimizer)
    with torch.no_grad():
        for averaged, value in zip(average._averaged, checkpoint["average"], strict=True):
            averaged.copy_(shard_like(value, averaged))
    task.history.extend(checkpoint["history"])
    best = checkpoint["best"]
    if best is None:
        return None
    return best[0], [shard_like(value, tensor) for value, tensor in zip(best[1], moving, strict=True)]
