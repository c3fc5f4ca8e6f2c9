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

    def make(name, skill, milliseconds, own_noise=0.0):
        scores = noise + skill * np.eye(3)[labels]
        scores += own_noise * np.random.default_rng(1).normal(size=(200, 3))
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


def test_what_is_clearly_better_ships_though_it_is_slower(offer):
    assert shipped(recommend([offer("one", 1.0, 2.0), offer("mean", 2.0, 6.0)])) == "mean"


def test_the_quicker_one_ships_where_the_difference_may_be_chance(offer):
    assert shipped(recommend([offer("one", 1.5, 2.0), offer("mean", 1.501, 6.0, own_noise=0.3)])) == "one"


def test_what_is_worse_does_not_ship_though_it_is_quicker(offer):
    assert shipped(recommend([offer("quick", 0.5, 1.0), offer("good", 1.5, 2.0), offer("slow", 1.5, 3.0)])) == "good"


def test_an_option_tells_what_was_judged(offer):
    offered = offer("one", 1.5, 2.0)
    (option,) = recommend([offered])
    judged = offered.model.validation
    assert (option.top1, option.log_loss, option.calibration_error) == (
        judged.top1, judged.log_loss, judged.calibration_error,
    )  # fmt: skip
    assert (option.train_seconds, option.predict_milliseconds, option.recommended) == (10.0, 2.0, True)


def test_who_was_not_judged_is_refused(offer):
    from dataclasses import replace

    offered = offer("one", 1.5, 2.0)
    with pytest.raises(ValueError, match="must be judged on held-out images"):
        recommend([replace(offered, model=replace(offered.model, held_out=None))])
