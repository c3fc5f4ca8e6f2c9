"""Score the similarity of a set of images to the images that a network was pretrained on: 0 is far, 1 is near.

The score is `sigmoid(intercept + sum_i weight_i * clip((part_i - mean_i) / spread_i, -3, 3))` over at most three parts.
`domain.measure_domain_parts` measures them in one pass of the frozen network, without pretraining images:

* `late_vigour`: the log std ratio of late layers, that is the mean of log(sigma_target / sigma_source) over the
  channels of the last third of the batch-norm layers; sigma_source is the layer's running deviation. Late channels
  respond to the objects of the pretraining images and vary less where these are missing. The part is the signed,
  logarithmic form of the deviation term of the Frechet distance between batch-norm statistics. That distance itself is
  also large for sets with little variety, which need not be far.
* `middle_vigour`: the log std ratio of the middle third. Its weight is negative: blur and lost colour lower the ratio
  in the whole network, unknown content mostly in the late layers.
* `energy`: the mean of logsumexp of the original head's logits. It depends on the scale of the head, so it is used only
  for networks that were calibrated.
* `logit_skewness`: the mean skewness of an image's logits; with known content a few classes have much larger logits
  than the rest. It does not depend on the head's scale, and it is the only part for networks without batch norm. It is
  less reliable at low resolution.

Sources: Li et al. 2017 "Revisiting batch normalization for practical domain adaptation" (batch-norm statistics describe
the domain); Heusel et al. 2017 (Frechet distance); Park et al. 2023 "Understanding the feature norm for
out-of-distribution detection" (unknown content activates less); Liu et al. 2020 "Energy-based out-of-distribution
detection"; Hendrycks and Gimpel 2017 (outputs of the head on images of other domains). The weights were fitted by
`experiments/calibrate_similarity.py` on eleven labelled sets.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp
from types import MappingProxyType

CLIP = 3.0
"""Distance of a part from its mean, in spreads, at which it is clipped, so that no single part decides the score."""


@dataclass(frozen=True)
class PartScale:
    """Scale and weight of one part in the score."""

    mean: float
    """Mean of the part over the calibration's image sets."""
    spread: float
    """Standard deviation of the part over the calibration's image sets."""
    weight: float
    """Weight of the standardised part in the logit of the score."""


@dataclass(frozen=True)
class Calibration:
    """Constants of the score for one network, or for a kind of network."""

    intercept: float
    """Logit of the score if every part is at its mean."""
    parts: Mapping[str, PartScale]
    """Scale and weight of each part that is used, by its name."""

    def score(self, parts: Mapping[str, float]) -> float:
        """Return the similarity in 0 .. 1 from measured parts; parts without a scale are ignored."""
        # logit = intercept + sum_i weight_i clip((part_i - mean_i) / spread_i, -CLIP, CLIP); score = sigmoid(logit)
        # Clipping keeps a part far outside the calibration's range from deciding alone.
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
"""Constants of the networks that were calibrated."""

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
"""Constants for other networks, with batch-norm layers or without; the first whose parts are measured."""
# CONSTANTS END


def similarity(parts: Mapping[str, float], network: str) -> tuple[float, bool]:
    """Return the domain similarity (0 far, 1 near) and whether it is calibrated for this network.

    For a network without constants of its own the score is a rough guide. With batch-norm layers it uses `late_vigour`
    and `middle_vigour` with pooled constants, without them `logit_skewness` alone.

    Args:
        parts: parts by name, as `measure_domain_parts` returns them.
        network: timm's name; a weights tag after the dot is ignored.

    Raises:
        ValueError: there is no part to score (neither batch-norm layers nor a classification head).
    """
    # The network's own constants if it was calibrated, else the pooled ones: those with the most parts come first.
    own = CALIBRATIONS.get(network.partition(".")[0])
    if own is not None and own.parts.keys() <= parts.keys():
        return own.score(parts), True
    # A network without batch-norm layers lacks the parts of the first entry.
    for generic in GENERIC:
        if generic.parts.keys() <= parts.keys():
            return generic.score(parts), False
    raise ValueError(f"'{network}' gave no parts to score the domain by: it needs its pretrained classification head")
