"""Recommend which of several models, or of their averages, to keep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from finetune.predict.links import log_losses
from finetune.predict.model import HeldOut, Predictor
from finetune.value import FrozenModel, is_none


class Option(FrozenModel):
    """A model that could be kept, with its results on the held-out images and its costs."""

    name: str
    """Name of the model, such as a candidate, an average or a blend."""
    top1: float
    """Accuracy on the held-out images, 0 to 1."""
    mean_average_precision: Annotated[float | None, Field(exclude_if=is_none)] = None
    """Mean average precision of sets of labels on the held-out images; left out where each image has one label."""
    log_loss: float
    """Mean log-loss on the held-out images, in nats."""
    calibration_error: float
    """Expected calibration error on the held-out images, 0 to 1."""
    train_seconds: float
    """Wall time of all trainings that the model needs, in seconds."""
    predict_milliseconds: float
    """Expected time to predict one image on the measured machine, in milliseconds."""
    recommended: bool
    """Whether this model is the one that is kept."""

    @property
    def main(self) -> float:
        """Mean average precision of sets of labels, else the accuracy."""
        return self.top1 if self.mean_average_precision is None else self.mean_average_precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A model that could be kept, with its costs."""

    name: str
    """Name of the model, such as a candidate, an average or a blend."""
    model: Predictor
    """Model, evaluated on the held-out images."""
    train_seconds: float
    """Wall time of all trainings that the model needs, in seconds."""
    predict_milliseconds: float
    """Expected time to predict one image, in milliseconds."""


def recommend(offers: Sequence[Offer], requested: int) -> tuple[Option, ...]:
    """Return an option for each offer, with one of them recommended.

    The requested offer is recommended, unless one that predicts as fast has a held-out log-loss that is lower by more
    than one standard error (Breiman et al. 1984, section 3.4.3). Over many image sets a mean beats its members, and a
    few hundred held-out images are too few to show the opposite (docs/guides/ensembles.md), so the evidence against
    the mean must be clear. The error is that of the paired difference d_i = loss_i - requested_loss_i over n images:
    std(d) / sqrt(n).

    Args:
        offers: models that were evaluated on the same images.
        requested: index of the requested offer.

    Raises:
        ValueError: a model was not evaluated on held-out images.
    """
    losses = np.stack([_losses(offer.model.held_out) for offer in offers])
    # (n_offers, n_images): the paired difference of each offer from the requested one.
    behind = losses - losses[requested]
    count = losses.shape[1]
    # A single image has no standard deviation: its infinite error lets nothing replace the requested offer.
    errors = behind.std(axis=1, ddof=1) / np.sqrt(count) if count > 1 else np.full(len(offers), np.inf)
    # The requested offer itself has the difference 0 and is never in `better`; it is the default.
    is_quick = [offer.predict_milliseconds <= offers[requested].predict_milliseconds for offer in offers]
    better = [place for place in range(len(offers)) if is_quick[place] and behind[place].mean() < -errors[place]]
    chosen = min(better, key=lambda place: float(losses[place].mean()), default=requested)
    return tuple(_option(offer, place == chosen) for place, offer in enumerate(offers))


def _losses(held_out: HeldOut | None) -> NDArray[np.float64]:
    """Return the log-loss of each held-out image, (n_images,)."""
    if held_out is None:
        raise ValueError("a recommendation needs models that were evaluated on held-out images")
    return log_losses(held_out.probabilities, held_out.labels)


def _option(offer: Offer, recommended: bool) -> Option:
    """Return the option of an offer, with its results on the held-out images."""
    metrics = offer.model.validation
    if metrics is None:
        raise ValueError("a recommendation needs models that were evaluated on held-out images")
    return Option(
        name=offer.name,
        top1=metrics.top1,
        mean_average_precision=None if metrics.sets is None else metrics.main,
        log_loss=metrics.log_loss,
        calibration_error=metrics.calibration_error,
        train_seconds=round(offer.train_seconds, 2),
        predict_milliseconds=round(offer.predict_milliseconds, 3),
        recommended=recommended,
    )
