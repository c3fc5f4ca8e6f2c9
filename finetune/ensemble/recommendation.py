"""Which of several models, or of their averages, is to ship."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.predict.metrics import log_losses
from finetune.predict.model import HeldOut, Predictor
from finetune.value import FrozenModel


class Option(FrozenModel):
    """Something that could ship: how good it is on the held-out images, and what it costs."""

    name: str
    top1: float
    log_loss: float
    calibration_error: float
    train_seconds: float
    """Of all trainings that it needs."""
    predict_milliseconds: float
    """An image, on the measured machine."""
    recommended: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A predictor under its name."""

    name: str
    model: Predictor
    train_seconds: float
    predict_milliseconds: float


def recommend(offers: Sequence[Offer], asked: int) -> tuple[Option, ...]:
    """Return what was offered, with the one to ship marked: what was asked for, unless something that predicts as
    quickly is better on the held-out images by more than one standard error (Breiman et al. 1984, 3.4.3).

    Over image sets a mean is better than its members, and a few hundred held-out images hardly tell
    (docs/ensembles.md): so they have to say it clearly. The error is that of the difference on the same images, which
    is smaller than that of either.

    Args:
        offers: judged on the same images.
        asked: place of what was asked for.

    Raises:
        ValueError: an offer was not judged.
    """
    losses = np.stack([_losses(offer.model.held_out) for offer in offers])
    behind = losses - losses[asked]
    count = losses.shape[1]
    errors = behind.std(axis=1, ddof=1) / np.sqrt(count) if count > 1 else np.full(len(offers), np.inf)
    quick = [offer.predict_milliseconds <= offers[asked].predict_milliseconds for offer in offers]
    better = [place for place in range(len(offers)) if quick[place] and behind[place].mean() < -errors[place]]
    chosen = min(better, key=lambda place: float(losses[place].mean()), default=asked)
    return tuple(_option(offer, place == chosen) for place, offer in enumerate(offers))


def _losses(held_out: HeldOut | None) -> NDArray[np.float64]:
    if held_out is None:
        raise ValueError("what is recommended must be judged on held-out images")
    return log_losses(held_out.probabilities, held_out.labels)


def _option(offer: Offer, recommended: bool) -> Option:
    judged = offer.model.validation
    if judged is None:
        raise ValueError("what is recommended must be judged on held-out images")
    return Option(
        name=offer.name,
        top1=judged.top1,
        log_loss=judged.log_loss,
        calibration_error=judged.calibration_error,
        train_seconds=round(offer.train_seconds, 2),
        predict_milliseconds=round(offer.predict_milliseconds, 3),
        recommended=recommended,
    )
