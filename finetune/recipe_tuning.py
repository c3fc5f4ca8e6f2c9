"""Define the keys of a recipe that set a hyper-parameter search."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from finetune.value import FrozenModel

TUNED = ("learning_rate", "lowest_rate_fraction", "weight_decay", "label_smoothing")
"""Keys of `training` that `finetune tune` searches, the most important first."""


def _ascending(ends: tuple[float, float]) -> tuple[float, float]:
    """Return the two ends of a range, the lower one first."""
    if ends[0] >= ends[1]:
        raise ValueError("expected the lower end first, such as [1e-4, 1e-2]")
    return ends


Limits = Annotated[tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], AfterValidator(_ascending)]
"""Range of a hyper-parameter in a search: its lowest and its highest value."""

Search = Literal["grid", "random", "tpe"]
"""Method by which a hyper-parameter search proposes trials."""


class TuningRecipe(FrozenModel):
    """Settings of `finetune tune`. If a range is given, only the hyper-parameters with a range are searched."""

    trials: Annotated[int, Field(ge=2, le=10_000)] | None = None
    """Number of trials of the search, short and full-length ones together; by default 20."""
    search: Search | None = None
    """Search method: `grid`, `random` (log-uniform) or `tpe`, the tree-structured Parzen estimator of Optuna; by
    default tpe."""
    storage: str | None = None
    """URL of the database in which Optuna stores the trials, such as postgresql://HOST/NAME, so that several workers
    share a search; by default a file in the run folder."""
    learning_rate: Limits | None = None
    """Range of the peak learning rate; by default from an eighth of the chosen candidate's to eight times it."""
    lowest_rate_fraction: Limits | None = None
    """Range of the learning rate of the lowest trained stage as a fraction of the last stage's; by default 0.1 to 1."""
    weight_decay: Limits | None = None
    """Range of the weight decay; by default 0.001 to 0.3."""
    label_smoothing: Limits | None = None
    """Range of the label smoothing; by default 0.01 to 0.2."""

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Ranges that the recipe gives, by the name of the hyper-parameter."""
        named = {name: getattr(self, name) for name in TUNED}
        return {name: limits for name, limits in named.items() if limits is not None}
