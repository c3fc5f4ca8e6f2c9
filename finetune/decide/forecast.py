"""Forecast the gain of more training images by extrapolating the learning curve of the linear probe."""

import math

from finetune.decide.evidence import Evidence
from finetune.value import FrozenModel

NINETY_PERCENT = 1.645
"""Half-width of a 90 % interval of a normal distribution, in standard deviations."""


class Assumptions(FrozenModel):
    """Assumptions about learning curves, fitted by `experiments/calibrate_forecast.py`."""

    usual_slope: float
    """Mean exponent b in `errors ~ images ** -b` of a linear probe, over image sets."""
    spread: float
    """Std of the exponent between image sets."""
    bend: float
    """Std of the change of the exponent between the numbers of images that it is measured at and those that it is used
    for."""


ASSUMED = Assumptions(usual_slope=0.3, spread=0.08, bend=0.14)
"""Assumptions with the fitted numbers (experiments/log.md, 2026-11-25)."""


class Forecast(FrozenModel):
    """Expected gain of more training images of the same kind."""

    more_images: int
    """Number of additional training images."""
    gain: float
    """Expected gain in top-1 accuracy, 0 .. 1."""
    gain_interval: tuple[float, float]
    """90 % interval of the gain in top-1 accuracy."""
    sentence: str
    """Forecast in one sentence."""


def forecast(evidence: Evidence, expected_top1: float, more_images: int | None = None) -> Forecast:
    """Return the expected gain of more training images.

    Errors fall as a power of the number of images (Hestness et al. 2017). The exponent is measured on the linear probe,
    from a quarter of the images to all of them, and shrunk towards the usual one if few images leave it uncertain.

    Args:
        evidence: measurements, with the probe's learning curve.
        expected_top1: expected top-1 accuracy with the present images, 0 .. 1.
        more_images: number of additional images; None: the present number, rounded to one digit.
    """
    more = more_images or round_number(evidence.num_images)
    # errors(n) = errors(n_0) (n / n_0)^-b, so the gain is (1 - top1) (1 - factor^-b); expm1 keeps small gains exact.
    # The gain is monotonic in b, so its interval is the interval of b, mapped.
    slope, deviation = likely_slope(evidence.probe.curve.slope, evidence.probe.curve.slope_error)
    factor = (evidence.num_images + more) / evidence.num_images

    def gain(slope: float) -> float:
        return (1.0 - expected_top1) * -math.expm1(-slope * math.log(factor))

    probable, low, high = (gain(slope + sign * NINETY_PERCENT * deviation) for sign in (0, -1, 1))
    return Forecast(
        more_images=more,
        gain=round(probable, 4),
        gain_interval=(round(low, 4), round(high, 4)),
        sentence=f"{more} more images: about {100 * probable:+.1f} points, 90 % between {100 * low:+.1f} and "
        f"{100 * high:+.1f}",
    )


def likely_slope(measured: float, error: float, assumed: Assumptions = ASSUMED) -> tuple[float, float]:
    """Return the exponent with which a learning curve is expected to continue, and its std.

    Args:
        measured: exponent of the measured curve.
        error: standard error of the measured exponent.
        assumed: assumptions about learning curves.
    """
    # The mean of two normal estimates, weighted by their precisions 1 / variance. The variance of `bend` is added for
    # the extrapolation.
    precision, usual = 1.0 / max(error, 1e-3) ** 2, 1.0 / assumed.spread**2
    slope = (precision * measured + usual * assumed.usual_slope) / (precision + usual)
    return slope, math.hypot((precision + usual) ** -0.5, assumed.bend)


def round_number(count: int) -> int:
    """Return a count rounded to one significant digit.

    >>> round_number(1197)
    1000
    """
    zeros = len(str(count)) - 1
    return int(round(count, -zeros))
