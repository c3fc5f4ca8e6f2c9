"""Compute the learning rate of each step, decide when to stop early, and keep to a time limit."""

import math
from collections.abc import Sequence

from finetune.recipe import Schedule

DROP = 0.1
"""Factor on the learning rate after each third of the steps, for the schedule `step` (He et al. 2016)."""


def learning_rate_factor(step: float, num_steps: int, warmup_steps: int, schedule: Schedule = "cosine") -> float:
    """Return the learning rate of step `step` (0 .. num_steps - 1) as a fraction of the peak rate.

    The rate rises linearly from 0 to its peak at step `warmup_steps`. After that, t steps after the peak and with T
    steps from the peak to the end, it is:

    - cosine: (1 + cos(pi t / T)) / 2 (Loshchilov & Hutter 2017, eq. 5, one cycle)
    - linear: 1 - t / T
    - step: multiplied by 0.1 after each third of T (He et al. 2016)
    - inverse_sqrt: 1 / sqrt(t), with t counted in warm-ups from the first step on (Vaswani et al. 2017, eq. 3)
    - constant: 1

    No step has a rate of exactly 0, because such a step would be wasted. `step` need not be a whole number: a training
    that is short of time advances by more than one step of the schedule at once (see `stride`).

    >>> [round(learning_rate_factor(step, 7, 2), 2) for step in range(7)]
    [0.33, 0.67, 1.0, 0.9, 0.65, 0.35, 0.1]
    >>> [round(learning_rate_factor(step, 4, 0, "linear"), 2) for step in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    if not 0 <= warmup_steps < max(num_steps, 1):
        raise ValueError(f"warm-up of {warmup_steps} steps does not fit into {num_steps} steps")
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    # progress = t / T, at most 1 after the end.
    progress = min((step - warmup_steps) / (num_steps - warmup_steps), 1.0)
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "step":
        return float(DROP ** min(int(3 * progress), 2))
    if schedule == "inverse_sqrt":
        return math.sqrt((warmup_steps + 1) / (step + 1))
    return 1.0


def is_time_to_stop(losses: Sequence[float], patience: int, minimum_gain: float) -> bool:
    """Return whether none of the last `patience` evaluations lowered the held-out log-loss by at least `minimum_gain`.

    >>> is_time_to_stop([0.9, 0.5, 0.6, 0.55], patience=2, minimum_gain=0.0)
    True

    Args:
        losses: held-out log-loss of each evaluation so far, in nats, in order.
        patience: number of evaluations to wait for a gain; 0: never stop early.
        minimum_gain: smallest decrease of the log-loss that counts as a gain, in nats.
    """
    if not patience:
        return False
    # Small gains add up: a loss is compared with the last one that counted as a gain, not with the previous one.
    best, waited = math.inf, 0
    for loss in losses:
        if loss < best - minimum_gain:
            best, waited = loss, 0
        else:
            waited += 1
    return waited >= patience


def stride(position: float, num_steps: int, step_seconds: float, seconds_left: float) -> float:
    """Return by how many steps of the schedule the next step must advance, 1 or more, to reach the end in time.

    >>> stride(position=50.0, num_steps=100, step_seconds=2.0, seconds_left=50.0)
    2.0

    Args:
        position: current position on the schedule, in steps.
        num_steps: length of the schedule, in steps.
        step_seconds: time of one step, in seconds.
        seconds_left: time that is left, in seconds.
    """
    # stride = remaining steps of the schedule / steps that there is time for.
    affordable = max(1.0, seconds_left / max(step_seconds, 1e-9))
    return max(1.0, (num_steps - position) / affordable)
