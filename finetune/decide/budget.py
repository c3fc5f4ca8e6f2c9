"""Share a time budget: find what it leaves for trainings, after the time that has passed and before the last tests."""

import math

from finetune.decide.evidence import Evidence, MachineSpeed
from finetune.decide.workload import PROBE_SECONDS, probe_seconds, seconds_per_image
from finetune.errors import RecipeError
from finetune.progress import duration

OVERHEAD_SECONDS = 2.0
"""Approximate time of a command that no measured rate predicts, in seconds: loading the network again, preparing its
optimizer, and writing the run folder."""

ACCELERATOR_SECONDS = 3.0
"""Time by which the first steps of a training on an accelerator are slower than the timed ones, in seconds; measured
once, on an NVIDIA H100 (docs/guides/several-gpus.md)."""

STARTING_SECONDS = 4.0
"""Approximate time of imports on two idle cores, in seconds."""

MARGIN = 1.1
"""Ratio of the budget that a refusal suggests to the least that is expected to be needed."""


def finishing_seconds(evidence: Evidence, num_models: int = 1) -> float:
    """Return the expected time after the trainings, in seconds: each model predicts the test images, and the run folder
    is written."""
    overhead = OVERHEAD_SECONDS + (0.0 if evidence.speed.device_kind == "cpu" else ACCELERATOR_SECONDS)
    return overhead + num_models * evidence.num_test * seconds_per_image(evidence.speed)


def training_budget(budget: float, evidence: Evidence, num_models: int = 1) -> float:
    """Return the time that a command's budget leaves for trainings, in seconds.

    Args:
        budget: time budget of the whole command, in seconds.
        evidence: measurements, with the time that has passed.
        num_models: number of models that will predict the test images.

    Raises:
        RecipeError: not even a linear probe fits.
    """
    passed = evidence.seconds_before + evidence.seconds
    finishing = finishing_seconds(evidence, num_models)
    refuse_short_budget(budget, passed, finishing + probe_seconds(evidence))
    return budget - passed - finishing


def least_following(num_images: int, num_test: int, speed: MachineSpeed) -> float:
    """Return the least time that follows the timing of the machine, in seconds: features for a linear probe, which
    predicts the test images.

    Args:
        num_images: number of images that are sent forward.
        num_test: number of test images.
        speed: speed of the machine.
    """
    return OVERHEAD_SECONDS + PROBE_SECONDS + (num_images + num_test) * seconds_per_image(speed)


def refuse_hopeless_budget(budget: float | None) -> None:
    """Refuse a time budget that is shorter than any run, before anything was imported or measured.

    Raises:
        RecipeError: the budget is too short even for a linear probe on few images.
    """
    refuse_short_budget(budget, 0.0, STARTING_SECONDS + PROBE_SECONDS + OVERHEAD_SECONDS)


def refuse_short_budget(budget: float | None, passed: float, following: float) -> None:
    """Refuse a time budget that cannot be kept.

    Args:
        budget: time budget of the whole command, in seconds; None: there is none.
        passed: time that the command has taken so far, in seconds.
        following: least time that is expected to follow, in seconds.

    Raises:
        RecipeError: the budget is shorter than both together; the sentence says what is enough.
    """
    if budget is None or passed + following <= budget:
        return
    raise RecipeError(
        f"a time budget of {budget:.0f} s is too short: {passed:.0f} s have passed, and a linear probe with its "
        f"evaluation takes about {following:.0f} s more; give --time-budget "
        f"{math.ceil(MARGIN * (passed + following))}s or more, or fewer images with --limit"
    )


def describe_command(evidence: Evidence, training: float, num_models: int) -> str:
    """Return the expected time of the whole command in words.

    Args:
        evidence: measurements, with the time that has passed.
        training: expected time of all trainings, in seconds.
        num_models: number of models that will predict the test images.
    """
    passed, finishing = evidence.seconds_before + evidence.seconds, finishing_seconds(evidence, num_models)
    return (
        f"{duration(passed + training + finishing)} expected for the whole command: {duration(passed)} have passed, "
        f"{duration(training)} are for training, {duration(finishing)} for testing and writing"
    )
