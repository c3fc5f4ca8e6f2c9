"""The training loop: the only one, driven by the plan."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from math import isfinite, sqrt
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from finetune.augmentation import mix
from finetune.errors import FinetuneError, RecipeError
from finetune.features import autocast
from finetune.network.backbone import set_training_mode
from finetune.network.convolutions import quick_gradients
from finetune.network.finiteness import first_not_finite
from finetune.network.folding import FoldedNorms
from finetune.network.streams import Streams
from finetune.plan import Plan
from finetune.prediction import Row
from finetune.processes import from_main_process, of_all_processes
from finetune.schedule import is_time_to_stop, learning_rate_factor, stride
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

CHECKPOINTS = 10
"""Checkpoints a training, at equal distances."""

WATCHED = 10
"""Steps a training, at equal distances, that tell how far they move the weights."""

MIXED_PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}

MOMENTUM = 0.9
"""Of SGD (Nesterov 1983; Sutskever et al. 2013)."""


@dataclass(kw_only=True)
class Task:
    """One training: a module, its images, and whom to tell."""

    name: str
    module: nn.Module
    """On its device, with what is trained set to require gradients."""
    groups: dict[str, list[str]]
    """Names of the trained parameters by stage; the head is `head`."""
    make_loader: Callable[[range], DataLoader[Any]]
    """Batches of (inputs, indices) for these steps."""
    prepare: Callable[[Tensor], Tensor]
    """From a batch's inputs to the module's, on its device."""
    labels: Tensor
    """(n_images,), of the indices."""
    class_weights: Tensor
    """(num_classes,); the mean over the training images is 1."""
    relation: Tensor | None = None
    """(num_classes, source_classes): what the pretrained classifier takes each class for, where it is co-tuned and its
    logits follow the module's own."""
    on_step: Callable[[int], None]
    evaluate: Callable[[], tuple[float, float]] | None = None
    """Return the log-loss and the top-1 accuracy on the held-out images."""
    details: Callable[[], Row] = dict
    """Return what else is to be known of the last evaluation."""
    save: Callable[[dict[str, Any]], None] | None = None
    """Keep a checkpoint."""
    resumed: dict[str, Any] | None = None
    """The checkpoint to go on from."""
    until: int | None = None
    """The step at which it pauses, to go on from a checkpoint; None: it goes through the plan's."""
    seconds: float | None = None
    """What it may take from now on; where that is too little, it goes through its schedule in fewer steps."""
    history: list[Row] = field(default_factory=list)


class Reached(NamedTuple):
    """How far a training went."""

    step: int
    """Steps taken, those before an interruption included."""
    is_over: bool
    """Whether there is nothing left to go on to."""


class NotFiniteError(FinetuneError):
    """A training diverged."""

    def __init__(self, sentence: str, history: Sequence[Row] = ()) -> None:
        """Say it in a sentence.

        Args:
            sentence: names the step and the layer.
            history: what was measured up to there; the last row says where it diverged (`diverged_in`).
        """
        super().__init__(sentence)
        self.history = tuple(history)


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
        NotFiniteError: the loss or a gradient is not a finite number; names the step and the layer.
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
    streams = Streams(_count_streams(own, plan, accelerator), plan.num_threads)
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
    streams: Streams,
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


def _split(scores: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """Return the logits of the new head, and those of the pretrained classifier beside it."""
    count = scores.shape[1] - (0 if task.relation is None else task.relation.shape[1])
    return scores[:, :count], scores[:, count:]


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
    return plan.streams if alone and not draws and plan.batch_norm_statistics != "updated" else 1


class _Pace:
    """Which step comes next and where on the schedule it is: a step after the one before, or more where time runs
    out."""

    def __init__(self, task: Task, plan: Plan) -> None:
        """Start where the checkpoint is that the task goes on from."""
        self._task = task
        self._plan = plan
        resumed = task.resumed or {"step": 0, "position": 0.0}
        self.step = int(resumed["step"])
        """Steps taken."""
        self.position = float(resumed["position"])
        """On the schedule, in the plan's steps."""
        self.end = plan.steps if task.until is None else task.until
        """Where on the schedule it pauses."""
        self._marks = [round((number + 1) * plan.steps / plan.evaluations) for number in range(plan.evaluations)]
        self._begun = time.perf_counter(), self.step
        self._stride = self._next_stride()
        self._is_stopped = self._stops()

    @property
    def has_ended(self) -> bool:
        """Whether the training is over, and does not just pause."""
        return self._is_stopped or self.position > self._plan.steps - 0.5

    @property
    def is_over(self) -> bool:
        """Whether there is no step to take now."""
        return self.has_ended or self.position > self.end - 0.5

    def is_evaluated(self) -> bool:
        """Return whether the held-out images are looked at after this step."""
        return any(self.position < mark <= self.position + self._stride + 1e-9 for mark in self._marks)

    def advance(self) -> None:
        """Go on to the next step."""
        self.step += 1
        self.position += self._stride
        self._stride = self._next_stride()
        self._is_stopped = self._stops()

    def _next_stride(self) -> float:
        if self._task.seconds is None:
            return 1.0
        start, first = self._begun
        elapsed, taken = time.perf_counter() - start, self.step - first
        left = self._task.seconds - elapsed
        # Clocks differ between processes, and the steps that they take must not.
        return from_main_process(
            lambda: stride(self.position, self._plan.steps, elapsed / taken, left) if taken else 1.0
        )

    def _stops(self) -> bool:
        """Return whether the plan's patience is over."""
        losses = [float(row["validation_loss"]) for row in self._task.history if "validation_loss" in row]
        if not self._plan.patience or len(losses) <= self._plan.patience:
            return False
        return from_main_process(lambda: is_time_to_stop(losses, self._plan.patience, self._plan.minimum_gain))


class _Part(NamedTuple):
    """A part of a batch."""

    inputs: Tensor
    indices: Tensor
    """(n,), of the images."""
    others: Tensor
    """(n,), of those that they are mixed with."""


class _Batches:
    """The batches of a loader, of which the next one can be read while another is computed with."""

    def __init__(self, loader: DataLoader[Any], plan: Plan, step: int) -> None:
        """Mix as planned; `step` is that of the first batch."""
        self._batches: Iterator[Any] = iter(loader)
        self._plan = plan
        self._step = step
        self._next: Future[Any] | None = None
        self.share = 1.0
        """Of its own in each image of the batch that is computed with."""
        self.taken: tuple[Tensor, Tensor] | None = None
        """The batch that is computed with."""

    def take(self, parts: int) -> list[_Part]:
        """Return the next batch, mixed as planned, in so many parts, or in as many as it has images."""
        inputs, indices = next(self._batches) if self._next is None else self._next.result()
        self._next = None
        self.taken = inputs, indices
        inputs, self.share = mix(inputs, self._plan.augmentation.mixing, (self._plan.noise_seed, self._step))
        self._step += 1
        parts = min(parts, len(indices))
        split = (tensor.tensor_split(parts) for tensor in (inputs, indices, indices.roll(1)))
        return [_Part(*each) for each in zip(*split, strict=True)]

    def peek(self) -> Tensor:
        """Return the inputs (1, ...) of the first image of the next batch."""
        if self._next is None:
            self._next = Future()
            self._next.set_result(next(self._batches))
        inputs: Tensor = self._next.result()[0]
        return inputs[:1]

    def read_ahead(self, streams: Streams) -> Iterator[Any]:
        """Let a stream read the next batch once it has nothing else to do; this iterator yields nothing.

        A core that is through with its part reads while the other computes, and while this thread steps the optimizer.
        """
        self._next = streams.submit(lambda: next(self._batches, None))
        yield from ()

    def finish_reading(self) -> None:
        """Wait for the batch that is read ahead: whatever draws random numbers draws them from the same generator."""
        if self._next is not None:
            self._next.result()


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


def is_watched(step: int, num_steps: int) -> bool:
    """Return whether a step (0 .. num_steps - 1) tells how far it moves the weights: the first and each tenth of the
    way."""
    return step == 0 or (step + 1) * WATCHED // num_steps > step * WATCHED // num_steps


class _UpdateRatios:
    """How far a step moves the weights of each stage."""

    def __init__(self, groups: dict[str, list[str]], trained: list[nn.Parameter]) -> None:
        """Copy the weights before the step, in the order of the groups; none where the step is not watched."""
        self._groups = groups
        self._trained = trained
        self._before = [parameter.detach().clone() for parameter in trained]

    def measure(self) -> Row:
        """Return, after the step, the norm of each stage's change over the norm of its weights before it."""
        changes = [(own.detach() - old).norm() ** 2 for own, old in zip(self._trained, self._before, strict=True)]
        norms = [old.norm() ** 2 for old in self._before]
        row: Row = {}
        first = 0
        for stage, names in self._groups.items() if self._before else ():
            own = slice(first, first + len(names))
            moved, length = (float(without_shards(sum(parts[own]))) for parts in (changes, norms))
            row[f"update_ratio:{stage}"] = sqrt(moved / max(length, 1e-30))
            first = own.stop
        return row


def _check_finite(
    task: Task, plan: Plan, batches: "_Batches", step: int, loss: float, suspects: Sequence[nn.Parameter]
) -> None:
    """Raise NotFiniteError, which names the layer that is to blame, unless the loss and all gradients of the suspects
    are finite.

    Where only the gradients' norm overflowed they were clipped to 0. With a scaler, which leaves such steps out, nobody
    is suspected.
    """
    is_finite = all(own.grad is None or bool(torch.isfinite(own.grad).all()) for own in suspects)
    if isfinite(loss) and is_finite:
        return
    what = "gradient" if isfinite(loss) else "loss"
    value = "infinite or not a number" if isfinite(loss) else str(loss)
    inputs, indices = batches.taken or (torch.zeros(0), torch.zeros(0))
    layer = ""
    is_whole = next(task.module.parameters()).device == task.class_weights.device  # and not sharded elsewhere
    for part, members in zip(inputs.chunk(plan.accumulation), indices.chunk(plan.accumulation), strict=True):
        if is_whole and not layer:
            layer = first_not_finite(task.module, partial(_plain_loss, task, part, members))
    layer = next(filter(None, of_all_processes(layer)), "")  # which may show in another process's images alone
    row: Row = {"phase": task.name, "step": step + 1, "diverged_in": layer or f"the {what}"}
    raise NotFiniteError(
        f"the {what} became {value} at step {step + 1} of the training '{task.name}'"
        + (f", first in {layer}" if layer else "")
        + "; lower the learning rate (--set training.learning_rate=...) or train in float32 "
        "(--set training.precision=float32)",
        [*task.history, row],
    )


def _plain_loss(task: Task, inputs: Tensor, indices: Tensor) -> Tensor:
    scores, _ = _split(task.module(task.prepare(inputs)).float(), task)
    return nn.functional.cross_entropy(scores, task.labels[indices].to(scores.device))


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


@torch.no_grad()
def _write(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


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
