"""Take the first three steps of a search, which are cheap: check that it can succeed, and with which learning rates."""

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.data import ImageSplits, even_sample, labels_of, paths_of
from finetune.decide.evidence import Evidence
from finetune.decide.plan import Plan, shortened
from finetune.decide.workload import SCRATCH_FACTOR
from finetune.errors import DivergenceError
from finetune.predict.links import are_all_right, link_for, log_losses, to_probabilities
from finetune.progress import Progress, named_progress
from finetune.training import Checkpoints, TrainingState, begin, evaluate_at, history_so_far
from finetune.tuning.findings import check_overfit, check_rates, check_start, rate_trial
from finetune.tuning.space import Dimension, rates_of
from finetune.tuning.state import Finding

SAMPLE = 20
"""Number of images that the network must overfit."""

SAMPLE_STEPS = 100
"""Largest number of steps to overfit the sample; a training from random weights gets `SCRATCH_FACTOR` times as many."""

SAMPLE_SHARES = (0.25, 0.5, 1.0)
"""Shares of the steps after which the fit is checked; the training ends at the first perfect fit."""

RATE_STEPS = 100
"""Largest number of steps at each learning rate; a shorter plan takes all of its steps."""

STILL = 1e-9
"""Learning rate so low that nothing is learned; a training with it gives the losses without training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checks:
    """Steps 1 to 3 for one plan on one set of images."""

    evidence: Evidence
    """Measurements of the images and the machine."""
    splits: ImageSplits
    """Images that the checks train on and hold out."""
    plan_with_rate: Callable[[float | None], Plan]
    """Function that returns the plan at a learning rate; None stands for the chosen candidate's rate."""
    folder: Path
    """Folder of the checkpoints, which are removed when a check ends."""
    progress: Progress
    """Function that is called with the work in progress."""

    def start(self) -> Finding:
        """Return step 1: compare the held-out loss before the first step with the expected one.

        The head starts from the linear probe, so the loss of the linear probe is expected. Random weights give all
        classes the same probability; the expected loss is then ln(n_classes), or n_classes ln(2) for sets of labels.
        """
        plan = self.plan_with_rate(None).changed(imbalance="none")
        _, found = evaluate_at(self._begin("start", plan, self.splits), 0.0)
        losses = log_losses(to_probabilities(link_for(found.labels), found.logits), found.labels)
        error = float(losses.std()) / math.sqrt(len(losses))
        self._end("start")
        if plan.strategy == "scratch":
            count = self.evidence.num_classes
            if self.evidence.has_sets:
                return check_start(float(losses.mean()), error, count * math.log(2.0), f"{count} ln 2")
            return check_start(float(losses.mean()), error, math.log(count), f"ln {count}")
        return check_start(float(losses.mean()), error, self.evidence.probe.log_loss, "the linear probe's")

    def overfit(self) -> Finding:
        """Return step 2: train on a small sample without regularisation, and check that the network overfits it."""
        sample = self.splits.train.select(
            even_sample(labels_of(self.splits.train), SAMPLE, self.plan_with_rate(None).seed)
        )
        plan = _unregularised(self.plan_with_rate(None), len(sample))
        splits = replace(self.splits, train=sample, validation=sample, stream=None)
        state = self._begin("overfit", plan, splits)
        for share in SAMPLE_SHARES:
            state, found = evaluate_at(state, share)
            right = are_all_right(found.logits, found.labels)
            if right.all():
                break
        self._end("overfit")
        return check_overfit(right.tolist(), paths_of(sample), max(1, round(share * plan.steps)))

    def rates(self, dimension: Dimension) -> tuple[Finding, Dimension]:
        """Return step 3: the learning rates with which the training loss falls, and the range that remains."""
        plan = _short(self.plan_with_rate(STILL))
        untrained = self._losses("rate-still", plan)
        rates = rates_of(dimension)
        losses = [
            self._losses(f"rate-{number}", _short(self.plan_with_rate(rate))) for number, rate in enumerate(rates)
        ]
        tried = [rate_trial(rate, own, untrained) for rate, own in zip(rates, losses, strict=True)]
        for name in ("still", *range(len(rates))):
            self._end(f"rate-{name}")
        return check_rates(dimension, tried, plan.steps)

    def _losses(self, name: str, plan: Plan) -> list[float]:
        """Return the training loss of each step, or an empty list if the training diverged."""
        try:
            state, _ = evaluate_at(self._begin(name, plan, self.splits))
        except DivergenceError:
            return []
        return [float(row["train_loss"]) for row in history_so_far(state)]

    def _begin(self, name: str, plan: Plan, splits: ImageSplits) -> TrainingState:
        checkpoints = Checkpoints(self.folder / name)
        checkpoints.begin()
        return begin(plan, splits, named_progress(self.progress, name), checkpoints)

    def _end(self, name: str) -> None:
        shutil.rmtree(self.folder / name, ignore_errors=True)


def _unregularised(plan: Plan, count: int) -> Plan:
    """Return a plan that overfits `count` images: no augmentation, decay, smoothing, co-tuning or averaging."""
    steps = SAMPLE_STEPS * (SCRATCH_FACTOR if plan.strategy == "scratch" else 1)
    still = plan.augmentation.changed(
        horizontal_flip=False, vertical_flip=False, smallest_crop=1.0, color_jitter=0.0, policy="none", mixing="none"
    )
    return plan.changed(
        steps=steps,
        warmup_steps=steps // 10,
        small_steps=0,
        batch_size=min(plan.batch_size, count),
        weight_decay=0.0,
        label_smoothing=0.0,
        co_tuning=0.0,
        average_decay=0.0,
        imbalance="none",
        augmentation=still,
        cached_views=min(plan.cached_views, 1),
        keep="last",
        validation="given",
        refit=False,
        patience=0,
        time_budget=0.0,
    )


def _short(plan: Plan) -> Plan:
    """Return a plan of at most `RATE_STEPS` steps with a single training, instead of one for each fold."""
    return shortened(plan, min(RATE_STEPS, plan.steps)).changed(
        validation="held_out" if plan.validation == "cross_validation" else plan.validation,
        refit=False,
        patience=0,
        time_budget=0.0,
    )
