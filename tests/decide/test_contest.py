"""Beliefs, contests and races between candidates that are numbered from the linear probe (0) on."""

import numpy as np
import pytest

from finetune.decide.belief import Belief, expected_gain, gain_of_two, update
from finetune.decide.contest import Contest, pick
from finetune.decide.race import compete, is_worth_racing


def belief_of(mean, deviation=0.02, correlation=0.0):
    count = len(mean)
    shape = (1 - correlation) * np.eye(count) + correlation
    return Belief(mean=np.asarray(mean, dtype=float), covariance=shape * deviation**2)


def contest_of(belief, costs, tolerance=0.0):
    return Contest(names=tuple("abcde")[: len(costs)], belief=belief, costs=tuple(costs), tolerance=tolerance)


@pytest.mark.parametrize(
    ("accuracies", "tolerance", "expected"),
    [
        ([0.80, 0.90, 0.91], 0.0, 2),
        ([0.80, 0.90, 0.91], 0.01, 1),
        ([0.80, 0.90, 0.91], 0.2, 0),
        ([0.91, 0.90, 0.91], 0.0, 0),
    ],
)
def test_the_cheapest_that_is_good_enough_is_picked(accuracies, tolerance, expected):
    assert pick(np.asarray(accuracies), [1.0, 2.0, 3.0], tolerance + 1e-9) == expected


def test_of_equal_costs_the_more_accurate_is_picked():
    assert pick(np.asarray([0.90, 0.905]), [2.0, 2.0], 0.01) == 1


def test_a_measurement_of_many_images_outweighs_the_prior_and_one_of_few_does_not():
    prior = belief_of([0.8, 0.8])
    generator = np.random.default_rng(0)
    moved = []
    for images in (20, 20_000):
        right = generator.normal([[0.75], [0.85]], 0.3, (2, images))
        moved.append(np.diff(update(prior, (0, 1), right, 0.0).mean)[0])
    assert 0 < moved[0] < 0.05
    assert moved[1] == pytest.approx(0.1, abs=0.01)


def test_what_all_unfinished_trainings_lack_says_nothing_of_any():
    right = np.random.default_rng(0).random((2, 1000)) * 0.4
    after = update(belief_of([0.8, 0.8], correlation=0.9), (0, 1), right, 0.0)
    assert after.mean == pytest.approx([0.8, 0.8], abs=0.02)


def test_on_the_same_images_a_difference_is_more_certain_than_on_different_ones():
    generator = np.random.default_rng(0)
    hardness, other = generator.random((2, 300))
    small = generator.normal(0.02, 0.02, 300)
    paired = update(belief_of([0.5, 0.5]), (0, 1), np.stack([hardness, hardness + small]), 0.0)
    apart = update(belief_of([0.5, 0.5]), (0, 1), np.stack([hardness, other + small]), 0.0)

    def deviation(belief):
        return (belief.covariance[0, 0] + belief.covariance[1, 1] - 2 * belief.covariance[0, 1]) ** 0.5

    assert deviation(paired) < 0.3 * deviation(apart)


def test_a_race_of_two_moves_the_belief_about_a_third_that_is_correlated_with_one_of_them():
    prior = Belief(
        mean=np.full(3, 0.8), covariance=0.02**2 * np.array([[1.0, 0.0, 0.9], [0.0, 1.0, 0.0], [0.9, 0.0, 1.0]])
    )
    right = np.stack([np.full(500, 0.84), np.full(500, 0.80)]) + np.random.default_rng(0).normal(0, 0.1, (2, 500))
    after = update(prior, (0, 1), right, 0.005)
    assert after.mean[2] - after.mean[1] > 0.02


def test_beliefs_after_races_are_calibrated():
    """In a world that is as the prior says, nine of ten 90 % intervals hold the truth."""
    generator = np.random.default_rng(0)
    prior = belief_of([0.80, 0.82, 0.83], deviation=0.03, correlation=0.5)
    inside = []
    for _ in range(400):
        truth = generator.multivariate_normal(prior.mean, prior.covariance)
        hardness = generator.normal(0, 0.3, 150)
        reached = truth + generator.normal(0, 0.01, 3)
        right = reached[:, None] + hardness + generator.normal(0, 0.1, (3, 150))
        after = update(prior, (0, 1, 2), right, 0.01)
        inside.append(np.abs(after.mean - truth) < 1.645 * np.sqrt(np.diag(after.covariance)))
    assert np.mean(inside) == pytest.approx(0.9, abs=0.03)


def test_chances_are_those_of_being_the_right_pick():
    even = contest_of(belief_of([0.8, 0.8]), [1.0, 1.0])
    assert even.chances() == pytest.approx([0.5, 0.5], abs=0.03)
    cheaper = contest_of(belief_of([0.8, 0.8]), [1.0, 2.0], 0.05)
    assert cheaper.chances() == pytest.approx([0.96, 0.04], abs=0.02)
    assert contest_of(belief_of([0.6, 0.9]), [1.0, 1.0]).chances().tolist() == [0.0, 1.0]


def test_a_race_between_equals_is_worth_the_gain_of_picking_the_better():
    noise = np.zeros((2, 2))
    gain = expected_gain(belief_of([0.8, 0.8], deviation=0.02), (0, 1), noise)
    assert gain == pytest.approx(0.02 * 2**0.5 * 0.3989, rel=0.05)  # E max of two normal values


@pytest.mark.parametrize(
    ("mean", "deviation", "noise"), [([0.6, 0.9], 0.02, 0.0), ([0.8, 0.8], 0.02, 10.0), ([0.8, 0.8], 0.0, 0.01)]
)
def test_a_race_that_would_change_nothing_is_worth_nothing(mean, deviation, noise):
    assert expected_gain(belief_of(mean, deviation), (0, 1), noise * np.eye(2)) == pytest.approx(0.0, abs=1e-3)


def test_the_finalists_are_those_that_may_be_the_right_pick_the_most_probable_first():
    assert contest_of(belief_of([0.80, 0.90, 0.91, 0.60]), [1.0] * 4).finalists() == (2, 1)


def test_at_most_three_candidates_race():
    assert len(contest_of(belief_of([0.8] * 5), [1.0] * 5).finalists()) == 3


def test_a_pick_without_doubt_has_no_rivals():
    assert contest_of(belief_of([0.80, 0.805], deviation=0.001), [1.0, 2.0], 0.02).finalists() == (0,)


def test_a_candidate_that_left_a_race_does_not_come_back():
    assert contest_of(belief_of([0.80, 0.82, 0.99]), [1.0] * 3).finalists((1, 0)) == (1, 0)


@pytest.mark.parametrize(
    ("deviation", "images", "is_worth"), [(0.03, 1000, True), (0.03, 5, False), (0.001, 1000, False)]
)
def test_a_race_needs_enough_images_and_enough_at_stake(deviation, images, is_worth):
    assert is_worth_racing(belief_of([0.8, 0.8], deviation), (0, 1), images, price=0.006) == is_worth


def test_one_candidate_does_not_race_alone():
    assert not is_worth_racing(belief_of([0.8, 0.8]), (1,), 1000, price=0.0)


def seen(*levels):
    """An evaluation that returns such probabilities, and the list of its calls."""
    calls = []

    def evaluate(rung, places):
        calls.append((rung, places))
        noise = np.random.default_rng(0).normal(0, 0.05, 500)
        return np.stack([levels[place] + noise for place in places])

    return evaluate, calls


def test_a_race_ends_where_one_is_left_and_the_linear_probe_is_not_evaluated():
    evaluate, calls = seen(None, 0.5, 0.8)
    race = compete(contest_of(belief_of([0.7, 0.8, 0.8], 0.05), [0.0, 1.0, 1.0]), (1, 0, 2), evaluate)
    assert calls == [(0, [1, 2])]
    assert race.winner == 2
    assert race.left == ((1, 0, 2), (2,))


def test_candidates_without_a_difference_race_to_the_last_rung():
    evaluate, calls = seen(None, 0.7, 0.7)
    race = compete(contest_of(belief_of([0.6, 0.8, 0.8], 0.05), [0.0, 1.0, 1.0]), (1, 2), evaluate)
    assert [rung for rung, _ in calls] == [0, 1]
    assert len(race.left) == 3


@pytest.mark.parametrize(
    ("mean", "deviation", "place", "price", "expected"),
    [
        ([0.7, 0.797, 0.798, 0.80], 0.02, 3, 0.004, 1),
        ([0.7, 0.780, 0.798, 0.80], 0.02, 3, 0.004, 2),
        ([0.7, 0.600, 0.600, 0.80], 0.02, 3, 0.004, None),
        ([0.7, 0.797, 0.798, 0.80], 1e-5, 3, 0.004, None),
        ([0.7, 0.797, 0.798, 0.80], 0.02, 3, 0.020, None),
        ([0.8, 0.800, 0.800, 0.80], 0.02, 0, 0.004, None),
    ],
    ids=["cheapest", "nearly as good", "none", "certain", "too little gain", "probe"],
)
def test_the_partner_is_the_cheapest_that_is_nearly_as_good_and_may_be_better(mean, deviation, place, price, expected):
    assert contest_of(belief_of(mean, deviation), [0.0, 1.0, 2.0, 3.0]).partner(place, price) == expected


def test_a_candidate_that_is_right_and_wrong_on_the_same_image_sets_is_not_a_partner():
    together = belief_of([0.7, 0.8, 0.8], 0.05, correlation=0.999)
    assert contest_of(together, [0.0, 1.0, 2.0]).partner(2, 0.004) is None
    apart = belief_of([0.7, 0.8, 0.8], 0.05, correlation=0.5)
    assert contest_of(apart, [0.0, 1.0, 2.0]).partner(2, 0.004) == 1


@pytest.mark.parametrize(("place", "other"), [(1, 2), (2, 1)])
def test_the_gain_of_two_is_the_mean_gain_of_draws(place, other):
    believed = belief_of([0.7, 0.79, 0.80], 0.03, correlation=0.4)
    drawn = np.random.default_rng(0).multivariate_normal(believed.mean, believed.covariance, 400_000)
    better = np.maximum(drawn[:, place], drawn[:, other])
    assert gain_of_two(believed, place, other) == pytest.approx((better - drawn[:, place]).mean(), abs=1e-4)
