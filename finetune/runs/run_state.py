"""Define the state of a run in progress, as its file holds it."""

from datetime import datetime
from typing import Literal

from finetune.value import FrozenModel


class RunState(FrozenModel):
    """The state of a run while it is in progress, and how it ended."""

    status: Literal["running", "finished", "failed", "interrupted"]
    """Whether the run is in progress, or how it ended."""
    phase: str
    """Name of the task in progress, such as `computing features` or `training (validation)`; the last one after the
    end."""
    step: int
    """Number of steps or images of the phase that are done."""
    of: int
    """Number of all steps or images of the phase."""
    loss: float | None = None
    """Mean training loss of the last 10 steps; null outside of a training."""
    accuracy: float | None = None
    """Top-1 accuracy on the held-out images at the last evaluation of this training, 0 to 1; null without one."""
    eta: float | None = None
    """Seconds that are probably left: during a training until the end of all trainings, before it until the end of the
    phase; null while there is no estimate."""
    started: str
    """Time at which the process started or resumed the run, ISO 8601."""
    updated: str
    """Time of this state, ISO 8601."""
    pid: int
    """Number of the process."""
    host: str
    """Name of the machine on which the process runs."""
    error: str = ""
    """The error that ended the run; empty unless the status is `failed`."""

    @property
    def updated_seconds(self) -> float:
        """Time of this state, in seconds since 1970."""
        return datetime.fromisoformat(self.updated).timestamp()
