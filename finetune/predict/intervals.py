"""Give the interval of a share of images."""


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share; 0 .. 1 without images."""
    from scipy.stats import binomtest  # slow to import, and a prediction does not need it

    if not count:
        return 0.0, 1.0
    # Wilson's interval stays within 0 .. 1 and holds its level for small n and rates near 0 or 1 (Brown et al. 2001).
    found = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)
