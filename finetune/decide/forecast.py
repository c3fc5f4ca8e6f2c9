"""What more images would buy: the learning curve, carried on."""

import math

from finetune.decide.evidence import Evidence
from finetune.value import FrozenModel

NINETY_PERCENT = 1.645
"""Half the width of a 90 % interval, in standard deviations."""


class Assumptions(FrozenModel):
    """What is taken for granted of learning curves; fitted by `experiments/calibrate_forecast.py`."""

    usual_slope: float
    """b in `errors ~ images ** -b` of a linear probe, over image sets."""
    spread: float
    """Standard deviation of it from set to set."""
    bend: float
    """Standard deviation of the change of b from where it was measured to where it is used."""


ASSUMED = Assumptions(usual_slope=0.3, spread=0.08, bend=0.14)
"""experiments/log.md, 2026-11-25."""


class Forecast(FrozenModel):
    """What so many more images, labelled alike, would gain."""

    more_images: int
    gain: float
    """In top-1, 0 .. 1."""
    gain_interval: tuple[float, float]
    """90 %."""
    sentence: str


def forecast(evidence: Evidence, expected_top1: float, more_images: int | None = None) -> Forecast:
    """Return what more training images would gain over an accuracy that is expected of those there are.

    Errors fall as a power of the number of images (Hestness et al. 2017); the power is the linear probe's own, measured
    at a quarter and at all of the images, shrunk towards what is usual where few images say little.

    Args:
        evidence: holds the probe's learning curve.
        expected_top1: of the strategy.
        more_images: how many; None: as many as there are, rounded.
    """
    more = more_images or round_number(evidence.num_images)
    slope, deviation = likely_slope(evidence.probe.curve.slope, evidence.probe.curve.slope_error)
    factor = (evidence.num_images + more) / evidence.num_images

    def gain(slope: float) -> float:
        return (1.0 - expected_top1) * -math.expm1(-slope * math.log(factor))

    likely, low, high = (gain(slope + sign * NINETY_PERCENT * deviation) for sign in (0, -1, 1))
    return Forecast(
        more_images=more,
        gain=round(likely, 4),
        gain_interval=(round(low, 4), round(high, 4)),
        sentence=f"{more} more images: about {100 * likely:+.1f} points, 90 % between {100 * low:+.1f} and "
        f"{100 * high:+.1f}",
    )


def likely_slope(measured: float, error: float, assumed: Assumptions = ASSUMED) -> tuple[float, float]:
    """Return the power that a learning curve will go on with, and its standard deviation."""
    precision, usual = 1.0 / max(error, 1e-3) ** 2, 1.0 / assumed.spread**2
    slope = (precision * measured + usual * assumed.usual_slope) / (precision + usual)
    return slope, math.hypot((precision + usual) ** -0.5, assumed.bend)


def round_number(count: int) -> int:
    """Return a count with one digit that is not 0.

    >>> round_number(1197)
    1000
    """
    zeros = len(str(count)) - 1
    return int(round(count, -zeros))
