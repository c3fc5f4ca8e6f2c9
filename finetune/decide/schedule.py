"""The learning rate as a pure function of the step, when to stop, and how to be done in time."""

import math
from collections.abc import Sequence

from finetune.recipe import Schedule

DROP = 0.1
"""What `step` multiplies the rate by after each third of the way (He et al. 2016)."""


def learning_rate_factor(step: float, num_steps: int, warmup_steps: int, schedule: Schedule = "cosine") -> float:
    """Return the share of the peak learning rate that step `step` (0 .. num_steps - 1) trains with.

    Linear warm-up from 0, with the peak at step `warmup_steps`; then, with t the steps since the peak and T those that
    are left for it:

    - cosine: (1 + cos(pi t / T)) / 2 (Loshchilov & Hutter 2017, eq. 5, one cycle)
    - linear: 1 - t / T
    - step: a tenth after each third of T
    - inverse_sqrt: 1 / sqrt(t), with t counted in warm-ups from the first step on (Vaswani et al. 2017, eq. 3)
    - constant: 1

    No step trains with exactly 0, which would be wasted. A schedule that is walked faster than a step at a time has
    steps in between.

    >>> [round(learning_rate_factor(step, 7, 2), 2) for step in range(7)]
    [0.33, 0.67, 1.0, 0.9, 0.65, 0.35, 0.1]
    >>> [round(learning_rate_factor(step, 4, 0, "linear"), 2) for step in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    if not 0 <= warmup_steps < max(num_steps, 1):
        raise ValueError(f"warm-up of {warmup_steps} steps does not fit into {num_steps} steps")
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
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
    """Return whether the held-out log-losses have not become better by `minimum_gain` in the last `patience` of them.

    >>> is_time_to_stop([0.9, 0.5, 0.6, 0.55], patience=2, minimum_gain=0.0)
    True

    Args:
        losses: of all evaluations so far, in their order.
        patience: evaluations to wait for a gain; 0 waits for ever.
        minimum_gain: least fall of the log-loss that counts.
    """
    if not patience:
        return False
    best, waited = math.inf, 0
    for loss in losses:
        if loss < best - minimum_gain:
            best, waited = loss, 0
        else:
            waited += 1
    return waited >= patience


def stride(position: float, num_steps: int, step_seconds: float, seconds_left: float) -> float:
    """Return how far along the schedule the next step must go, 1 or more, for its end to be reached in time.

    >>> stride(position=50.0, num_steps=100, step_seconds=2.0, seconds_left=50.0)
    2.0

    Args:
        position: on the schedule, in steps.
        num_steps: its length.
        step_seconds: what a step takes.
        seconds_left: until it must be over.
    """
    affordable = max(1.0, seconds_left / max(step_seconds, 1e-9))
    return max(1.0, (num_steps - position) / affordable)
