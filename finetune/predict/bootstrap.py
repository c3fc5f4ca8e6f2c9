"""Draw bootstrap samples of images, and return the intervals of figures over them."""

import numpy as np
from numpy.typing import NDArray

DRAWS = 400
"""Number of bootstrap samples of the images (Efron 1979), of which 2.5 % are beyond each end of an interval."""


def draw_samples(count: int, draws: int = DRAWS) -> NDArray[np.float32]:
    """Return how often each of `count` images is in each bootstrap sample, the same at each call, (draws, count)."""
    generator = np.random.default_rng(0)
    return generator.multinomial(count, np.full(count, 1.0 / count), size=draws).astype(np.float32)


def interval_of(drawn: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of a figure over bootstrap samples; samples where it is NaN are left out."""
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return float(low), float(high)
