"""How near a set of images lies to the images a network was pretrained on, as one number between 0 and 1.

The number is `sigmoid(intercept + sum_i weight_i * clip((part_i - mean_i) / spread_i, -3, 3))` over at most four parts,
which `domain_parts.measure_domain_parts` takes from one pass of the frozen network, without any pretraining image:

* `late_vigour`: mean over the channels of the last third of the batch-norm layers of log(sigma_target / sigma_source), where
  sigma_source is the layer's running deviation. Late channels answer to the objects of the pretraining images; where those
  are missing, the channels stay quiet. It is the signed, logarithmic form of the deviation term of the Frechet distance
  between batch-norm statistics (that distance itself also punishes narrow sets and low resolution, which are no distance).
* `middle_vigour`: the same in the middle third. It has a negative weight: contrast, blur and colour quieten the whole
  network, a foreign content quietens the late layers alone.
* `energy`: mean of logsumexp of the original head's logits; it depends on the scale of the head, so it is only used for the
  networks it was calibrated for.
* `confidence`: mean of the largest probability of the original head.

Sources: Li et al. 2017 "Revisiting batch normalization for practical domain adaptation" (batch-norm statistics hold the
domain); Heusel et al. 2017 (Frechet distance); Park et al. 2023 "Understanding the feature norm for out-of-distribution
detection" (unknown content activates less); Liu et al. 2020 "Energy-based out-of-distribution detection"; Hendrycks and
Gimpel 2017 (largest probability). The weights were fitted by `fit.py` on eleven labelled sets.
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


# CONSTANTS BEGIN: written by fit.py
CALIBRATIONS: Mapping[str, Calibration] = MappingProxyType({})
GENERIC: tuple[Calibration, ...] = (Calibration(0.0, {}),)
# CONSTANTS END


def similarity(parts: Mapping[str, float], network: str) -> tuple[float, bool]:
    """Return the domain similarity (0 far, 1 near) and whether it is calibrated for this network.

    For a network without constants of its own the score is a rough guide: with batch-norm layers it uses `late_vigour`,
    `middle_vigour` and `confidence` with the pooled constants, without them `confidence` alone.

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
