"""Decide whether it pays to compile the network for its training."""

from finetune.decide.evidence import MachineSpeed

COMPILING_SECONDS = 60.0
"""Time that PyTorch takes to compile the steps of a training on a GPU, in seconds; users report 30 to 90 s."""

COMPILED_GAIN = 1.2
"""Ratio of the speed of compiled steps on a GPU to that of others. Users report 1.1 to 1.4; compiled forward passes
alone gain 1.2 to 2.2 (timm's benchmarks of 2026-08)."""

CAUTION = 2.0
"""Ratio of the time that compiling must save to the time that it takes, because neither is measured on this machine."""


def compiling_pays(seconds: float, speed: MachineSpeed) -> bool:
    """Return whether a training is long enough to compile its network.

    On a CPU it never is: compiled steps took up to twice the time there (experiments/log.md, 2026-11-25).

    Args:
        seconds: expected time of all trainings without compiling, in seconds.
        speed: speed of the machine.
    """
    saved = seconds * (1.0 - 1.0 / COMPILED_GAIN)
    return speed.device_kind == "cuda" and saved > CAUTION * COMPILING_SECONDS
