import numpy as np
import pytest

from finetune.images import load_images
from finetune.racing import Racer, race
from finetune.selection import Belief
from finetune.training import train


@pytest.fixture
def splits(image_folder, tmp_path):
    """Three classes of 10, 9 and 11 training images."""
    return load_images(str(image_folder(tmp_path / "images", {"a": 10, "b": 9, "c": 11})))


@pytest.fixture
def make_racers(small_plan, weights_file):
    """The factory of a slow, a reckless and a usual training of the same network."""

    def make(**changes):
        rates = {"still": 1e-7, "reckless": 3.0, "usual": 2e-3}
        return [
            Racer(
                candidate=number,
                name=name,
                plan=small_plan(
                    strategy="full", weights=str(weights_file()), head_learning_rate=rate, steps=6, **changes
                ),
            )
            for number, (name, rate) in enumerate(rates.items())
        ]

    return make


def open_belief(count, deviation=0.3):
    return Belief(mean=np.full(count, 0.6), covariance=np.eye(count) * deviation**2)


def run(racers, splits, folder, costs=None, tolerance=0.0, **rest):
    return race(racers, open_belief(3), costs or [1.0] * 3, tolerance, splits, folder, **rest)


def test_a_race_ends_with_one_and_a_story(make_racers, splits, tmp_path):
    outcome = run(make_racers(), splits, tmp_path)
    assert outcome.winner.name in {"still", "reckless", "usual"}
    assert outcome.story[0].startswith("after 33 % of the steps: still ")
    assert outcome.story[-1].endswith(("goes on", "go on"))


def test_the_winner_ends_as_if_it_had_trained_alone(make_racers, splits, tmp_path):
    outcome = run(make_racers(), splits, tmp_path)
    alone = train(outcome.winner.plan, splits)
    raced = outcome.training.finish()
    assert raced.validation == alone.validation
    for name, tensor in alone.network.state_dict().items():
        assert tensor.equal(raced.network.state_dict()[name])


def test_what_diverged_into_nonsense_loses(make_racers, splits, tmp_path):
    assert run(make_racers(), splits, tmp_path).winner.name != "reckless"


def test_who_lost_took_no_more_steps_than_to_its_last_rung(make_racers, splits, tmp_path):
    racers = make_racers()
    outcome = run(racers, splits, tmp_path)
    most = 2 * (racers[0].plan.steps * 2 // 3) * racers[0].plan.batch_size
    assert 0 < outcome.work.backward_images <= most
    assert outcome.seconds > 0


def test_an_interrupted_race_goes_on_to_the_same_end(make_racers, splits, tmp_path):
    expected = run(make_racers(), splits, tmp_path / "whole")
    told = []

    def interrupt(task, done, _total):
        told.append((task, done))
        if task.startswith("usual: training") and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make_racers(), splits, tmp_path / "again", progress=interrupt)
    before = len(told)
    outcome = run(make_racers(), splits, tmp_path / "again", progress=lambda *row: told.append(row[:2]))
    assert (outcome.winner, outcome.story) == (expected.winner, expected.story)
    assert outcome.belief.mean.tolist() == expected.belief.mean.tolist()
    assert ("still: training (validation)", 1) not in told[before:]


def test_of_equals_the_cheaper_wins(make_racers, splits, tmp_path):
    twins = [
        Racer(candidate=number, name=name, plan=make_racers()[2].plan) for number, name in enumerate(("dear", "cheap"))
    ]
    outcome = race(twins, open_belief(2), [2.0, 1.0], 0.02, splits, tmp_path)
    assert outcome.winner.name == "cheap"
