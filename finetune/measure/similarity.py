"""How near a set of images lies to the images a network was pretrained on, as one number between 0 and 1.

The number is `sigmoid(intercept + sum_i weight_i * clip((part_i - mean_i) / spread_i, -3, 3))` over at most three
parts, which `domain.measure_domain_parts` takes from one pass of the frozen network, without pretraining images:

* `late_vigour`: mean over the channels of the last third of the batch-norm layers of log(sigma_target / sigma_source),
  where sigma_source is the layer's running deviation. Late channels answer to the objects of the pretraining images;
  where those are missing, the channels stay quiet. It is the signed, logarithmic form of the deviation term of the
  Frechet distance between batch-norm statistics; that distance itself punishes narrow sets too, which need not be far.
* `middle_vigour`: the same in the middle third. It has a negative weight: blur and lost colour quieten the whole
  network, foreign content above all the late layers.
* `energy`: mean of logsumexp of the original head's logits. It depends on the scale of the head, so it is only used
  for the networks that were calibrated.
* `logit_skewness`: mean skewness of an image's logits: some classes stand out where the content is known. It is free
  of the head's scale, and the only part for networks without batch norm. It suffers from low resolution.

Sources: Li et al. 2017 "Revisiting batch normalization for practical domain adaptation" (batch-norm statistics hold the
domain); Heusel et al. 2017 (Frechet distance); Park et al. 2023 "Understanding the feature norm for out-of-distribution
detection" (unknown content activates less); Liu et al. 2020 "Energy-based out-of-distribution detection"; Hendrycks and
Gimpel 2017 (the head's answers on foreign images). The weights were fitted by `experiments/calibrate_similarity.py` on
eleven labelled sets.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp
from types import MappingProxyType

CLIP = 3.0
"""A single part moves the score by no more than this many spreads."""


@dataclass(frozen=True)
class PartScale:
    """How one part enters the score."""

    mean: float
    spread: float
    weight: float


@dataclass(frozen=True)
class Calibration:
    """The constants of the score for one network, or for a kind of network."""

    intercept: float
    parts: Mapping[str, PartScale]

    def score(self, parts: Mapping[str, float]) -> float:
        """Return the similarity for measured parts, which may be more than those used here."""
        logit = self.intercept
        for name, scale in self.parts.items():
            logit += scale.weight * min(max((parts[name] - scale.mean) / scale.spread, -CLIP), CLIP)
        return 1 / (1 + exp(-logit))


# CONSTANTS BEGIN: written by experiments/calibrate_similarity.py
CALIBRATIONS: Mapping[str, Calibration] = MappingProxyType(
    {
        "tf_efficientnet_lite0": Calibration(
            intercept=0.24,
            parts={
                "late_vigour": PartScale(mean=-0.2481, spread=0.1027, weight=1.233),
                "middle_vigour": PartScale(mean=-0.1221, spread=0.071, weight=-0.76),
                "energy": PartScale(mean=14.6643, spread=1.4796, weight=1.051),
            },
        ),
        "tf_efficientnet_lite1": Calibration(
            intercept=0.24,
            parts={
                "late_vigour": PartScale(mean=-0.2601, spread=0.1081, weight=1.233),
                "middle_vigour": PartScale(mean=-0.1129, spread=0.0667, weight=-0.76),
                "energy": PartScale(mean=14.608, spread=1.3824, weight=1.051),
            },
        ),
        "tf_efficientnet_lite2": Calibration(
            intercept=0.24,
            parts={
                "late_vigour": PartScale(mean=-0.2567, spread=0.0988, weight=1.233),
                "middle_vigour": PartScale(mean=-0.1202, spread=0.0643, weight=-0.76),
                "energy": PartScale(mean=17.2091, spread=1.8536, weight=1.051),
            },
        ),
    }
)
"""The constants of the networks that were calibrated."""

GENERIC: tuple[Calibration, ...] = (
    Calibration(
        intercept=0.166,
        parts={
            "late_vigour": PartScale(mean=-0.255, spread=0.1034, weight=1.668),
            "middle_vigour": PartScale(mean=-0.1184, spread=0.0675, weight=-0.359),
        },
    ),
    Calibration(
        intercept=0.269,
        parts={
            "logit_skewness": PartScale(mean=1.1393, spread=0.1969, weight=1.429),
        },
    ),
)
"""The constants for other networks, the first whose parts were measured: with batch-norm layers, without."""
# CONSTANTS END


def similarity(parts: Mapping[str, float], network: str) -> tuple[float, bool]:
    """Return the domain similarity (0 far, 1 near) and whether it is calibrated for this network.

    For a network without constants of its own the score is a rough guide: with batch-norm layers it uses `late_vigour`
    and `middle_vigour` with pooled constants, without them `logit_skewness` alone.

    Args:
        parts: what `measure_domain_parts` measured.
        network: timm's name; a weights tag after the dot is ignored.

    Raises:
        ValueError: there is no part to judge by (neither batch-norm layers nor a classification head).
    """
    own = CALIBRATIONS.get(network.partition(".")[0])
    if own is not None and own.parts.keys() <= parts.keys():
        return own.score(parts), True
    for generic in GENERIC:
        if generic.parts.keys() <= parts.keys():
            return generic.score(parts), False
    raise ValueError(f"'{network}' gave no parts to judge the domain by: it needs its pretrained classification head")
