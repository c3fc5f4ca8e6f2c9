from dataclasses import replace

import numpy as np
import pytest

from finetune.metrics import score
from finetune.prediction import HeldOut, TrainedModel
from finetune.probing import softmax
from finetune.recommendation import Offer, recommend


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
def behind(offer):
    """The function that offers a slow model and a quick one whose losses are some standard errors of the difference
    above the slow one's."""

    def make(errors):
        slow = offer("slow", 1.5, 6.0)
        right = slow.model.held_out.probabilities[np.arange(200), slow.model.held_out.labels]
        difference = np.random.default_rng(2).normal(size=200)
        difference -= difference.mean()
        difference = 0.05 * (difference + errors * difference.std(ddof=1) / np.sqrt(200))
        other = np.minimum(np.exp(np.log(right) - difference), 1.0 - 1e-9)
        probabilities = np.repeat((1.0 - other[:, None]) / 2, 3, axis=1)
        probabilities[np.arange(200), slow.model.held_out.labels] = other
        held_out = HeldOut(labels=slow.model.held_out.labels, probabilities=probabilities)
        quick = replace(slow, name="quick", predict_milliseconds=2.0, model=replace(slow.model, held_out=held_out))
        assert _mean_loss(quick) > _mean_loss(slow)
        return [slow, quick]

    return make


def _mean_loss(offered):
    held_out = offered.model.held_out
    return -np.log(held_out.probabilities[np.arange(200), held_out.labels]).mean()


def test_the_quicker_one_ships_where_it_is_worse_by_less_than_an_error_of_the_difference(behind):
    assert shipped(recommend(behind(errors=0.8))) == "quick"


def test_the_better_one_ships_where_the_quicker_is_worse_by_more_than_an_error(behind):
    assert shipped(recommend(behind(errors=1.3))) == "slow"


def test_what_is_clearly_better_ships_though_it_is_slower(offer):
    assert shipped(recommend([offer("one", 1.0, 2.0), offer("mean", 2.0, 6.0)])) == "mean"


def test_of_equals_the_quicker_ships(offer):
    assert shipped(recommend([offer("quick", 0.5, 1.0), offer("good", 1.5, 2.0), offer("slow", 1.5, 3.0)])) == "good"


def test_one_held_out_image_is_enough_to_recommend(offer):
    offers = [offer("one", 1.0, 2.0), offer("mean", 2.0, 6.0)]
    single = []
    for offered in offers:
        held_out = offered.model.held_out
        first = HeldOut(labels=held_out.labels[:1], probabilities=held_out.probabilities[:1])
        single.append(replace(offered, model=replace(offered.model, held_out=first)))
    assert shipped(recommend(single)) in {"one", "mean"}


def test_an_option_tells_what_was_judged(offer):
    offered = offer("one", 1.5, 2.0)
    (option,) = recommend([offered])
    judged = offered.model.validation
    assert (option.top1, option.log_loss, option.calibration_error) == (
        judged.top1, judged.log_loss, judged.calibration_error,
    )  # fmt: skip
    assert (option.train_seconds, option.predict_milliseconds, option.recommended) == (10.0, 2.0, True)


def test_who_was_not_judged_is_refused(offer):
    offered = offer("one", 1.5, 2.0)
    with pytest.raises(ValueError, match="must be judged on held-out images"):
        recommend([replace(offered, model=replace(offered.model, held_out=None))])
