"""Compute the learning rate of a step, when to stop early, and how to finish in time."""

import math
from collections.abc import Sequence

from finetune.recipe import Schedule

DROP = 0.1
"""Factor on the learning rate after each third of the steps, for the schedule `step` (He et al. 2016)."""


def learning_rate_factor(step: float, num_steps: int, warmup_steps: int, schedule: Schedule = "cosine") -> float:
    """Return the learning rate of step `step` (0 .. num_steps - 1) as a share of the peak rate.

    The rate rises linearly from 0 to the peak at step `warmup_steps`. Then, with t the number of steps since the peak
    and T the number of steps from the peak to the end, it is:

    - cosine: (1 + cos(pi t / T)) / 2 (Loshchilov & Hutter 2017, eq. 5, one cycle)
    - linear: 1 - t / T
    - step: a tenth after each third of T
    - inverse_sqrt: 1 / sqrt(t), with t counted in warm-ups from the first step on (Vaswani et al. 2017, eq. 3)
    - constant: 1

    No step has a rate of exactly 0, which would be wasted. `step` may be a fraction: a training in a hurry advances by
    more than one step of the schedule at a time (see `stride`).

    >>> [round(learning_rate_factor(step, 7, 2), 2) for step in range(7)]
    [0.33, 0.67, 1.0, 0.9, 0.65, 0.35, 0.1]
    >>> [round(learning_rate_factor(step, 4, 0, "linear"), 2) for step in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    if not 0 <= warmup_steps < max(num_steps, 1):
        raise ValueError(f"warm-up of {warmup_steps} steps does not fit into {num_steps} steps")
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    # t / T, held at 1 after the end.
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
    """Return whether the last `patience` evaluations brought no fall of the held-out log-loss by `minimum_gain`.

    >>> is_time_to_stop([0.9, 0.5, 0.6, 0.55], patience=2, minimum_gain=0.0)
    True

    Args:
        losses: held-out log-loss of each evaluation so far, in their order.
        patience: number of evaluations to wait for a gain; 0: never stop.
        minimum_gain: least fall of the log-loss that counts as a gain.
    """
    if not patience:
        return False
    # Small gains add up: a loss is compared with the last one that counted, not with the one before it.
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
        position: present position on the schedule, in steps.
        num_steps: length of the schedule, in steps.
        step_seconds: time of one step, in seconds.
        seconds_left: time that is left, in seconds.
    """
    # The steps of the schedule that are left, over the steps that there is time for.
    affordable = max(1.0, seconds_left / max(step_seconds, 1e-9))
    return max(1.0, (num_steps - position) / affordable)
