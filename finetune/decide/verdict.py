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
    """The finding in one sentence: what the history shows, and what it means."""
    numbers: dict[str, float]
    """Numbers that the verdict is based on, by name."""
    changes: tuple[str, ...]
    """Changes to make, each as `key=value` of the recipe (`--set`), the most promising one first; keys that begin with
    `plan.` belong to plan.json."""
