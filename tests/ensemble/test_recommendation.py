from dataclasses import replace

import numpy as np
import pytest

from finetune.ensemble.recommendation import Offer, recommend
from finetune.predict.links import softmax
from finetune.predict.metrics import score
from finetune.predict.model import HeldOut, TrainedModel


@pytest.fixture
def offer(small_network, small_plan):
    """The factory of offers: `skill` is how sure they are of the right class of 200 images, on which all err alike."""
    labels = np.arange(200) % 3
    noise = np.random.default_rng(0).normal(size=(200, 3))

    def make(name, skill, milliseconds):
        scores = noise + skill * np.eye(3)[labels]
        held_out = HeldOut(labels=labels, probabilities=softmax(scores))
        model = TrainedModel(
            network=small_network(),
            plan=small_plan(),
            class_names=("a", "b", "c"),
            temperature=1.0,
            held_out=held_out,
            validation=score(held_out.probabilities, labels, ["a", "b", "c"]),
        )
        return Offer(name=name, model=model, train_seconds=10.0, predict_milliseconds=milliseconds)

    return make


def shipped(options):
    (option,) = (option for option in options if option.recommended)
    return option.name


@pytest.fixture
def ahead(offer):
    """The function that offers a mean and a single model whose losses are some standard errors of the difference below
    the mean's."""

    def make(errors, milliseconds=2.0):
        mean = offer("mean", 1.5, 6.0)
        labels = mean.model.held_out.labels
        right = mean.model.held_out.probabilities[np.arange(200), labels]
        difference = np.random.default_rng(2).normal(size=200)
        difference -= difference.mean()
        difference = 0.02 * (difference + errors * difference.std(ddof=1) / np.sqrt(200))
        other = np.minimum(np.exp(np.log(right) + difference), 1.0 - 1e-9)
        probabilities = np.repeat((1.0 - other[:, None]) / 2, 3, axis=1)
        probabilities[np.arange(200), labels] = other
        held_out = HeldOut(labels=labels, probabilities=probabilities)
        model = replace(mean.model, held_out=held_out)
        return [replace(mean, name="single", predict_milliseconds=milliseconds, model=model), mean]

    return make


def test_what_was_asked_for_ships_where_something_quicker_is_better_by_less_than_an_error_of_the_difference(ahead):
    assert shipped(recommend(ahead(errors=0.8), requested=1)) == "mean"


def test_what_is_quicker_ships_where_it_is_better_by_more_than_an_error(ahead):
    assert shipped(recommend(ahead(errors=1.3), requested=1)) == "single"


def test_what_is_slower_does_not_take_the_place_of_what_was_asked_for(ahead):
    assert shipped(recommend(ahead(errors=1.3, milliseconds=6.1), requested=1)) == "mean"
    assert shipped(recommend(ahead(errors=1.3, milliseconds=6.0), requested=1)) == "single"


def test_of_several_that_are_better_the_best_ships(offer):
    offers = [offer("good", 2.0, 1.0), offer("better", 2.5, 2.0), offer("mean", 0.5, 3.0)]
    assert shipped(recommend(offers, requested=2)) == "better"


def test_one_held_out_image_tells_nothing_against_what_was_asked_for(offer):
    offers = [offer("one", 2.0, 2.0), offer("mean", 1.0, 6.0)]
    single = []
    for offered in offers:
        held_out = offered.model.held_out
        first = HeldOut(labels=held_out.labels[:1], probabilities=held_out.probabilities[:1])
        single.append(replace(offered, model=replace(offered.model, held_out=first)))
    assert shipped(recommend(single, requested=1)) == "mean"


def test_an_option_tells_what_was_judged(offer):
    offered = offer("one", 1.5, 2.0)
    (option,) = recommend([offered], requested=0)
    judged = offered.model.validation
    assert (option.top1, option.log_loss, option.calibration_error) == (
        judged.top1, judged.log_loss, judged.calibration_error,
    )  # fmt: skip
    assert (option.train_seconds, option.predict_milliseconds, option.recommended) == (10.0, 2.0, True)


def test_who_was_not_judged_is_refused(offer):
    offered = offer("one", 1.5, 2.0)
    with pytest.raises(ValueError, match="evaluated on held-out images"):
        recommend([replace(offered, model=replace(offered.model, held_out=None))], requested=0)
