"""The learning rate as a pure function of the step."""

import math


def learning_rate_factor(step: int, num_steps: int, warmup_steps: int) -> float:
    """Return the share of the peak learning rate that step `step` (0 .. num_steps - 1) trains with.

    Linear warm-up from 0, with the peak at step `warmup_steps`, then a cosine that would reach 0 at `num_steps`
    (Loshchilov & Hutter 2017, eq. 5, one cycle). No step trains with exactly 0, which would be wasted.

    >>> [round(learning_rate_factor(step, 7, 2), 2) for step in range(7)]
    [0.33, 0.67, 1.0, 0.9, 0.65, 0.35, 0.1]
    """
    if not 0 <= warmup_steps < max(num_steps, 1):
        raise ValueError(f"warm-up of {warmup_steps} steps does not fit into {num_steps} steps")
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / (num_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
