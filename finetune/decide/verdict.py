"""Define the verdicts of a diagnosis."""

from typing import Literal, get_args

from finetune.value import FrozenModel

Kind = Literal[
    "diverged",
    "flat_start",
    "update_ratio",
    "early_decay",
    "still_improving",
    "growing_gap",
    "no_gap",
    "noisy_validation",
]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Verdict(FrozenModel):
    """A finding in a training's history, with what to change."""

    kind: Kind
    """Name of the finding."""
    sentence: str
    """What the history shows, and what it means."""
    numbers: dict[str, float]
    """The numbers that the verdict is based on, by name."""
    changes: tuple[str, ...]
    """What to change, as `key=value` of the recipe (`--set`), the most promising first; keys that begin with `plan.`
    are those of plan.json."""
