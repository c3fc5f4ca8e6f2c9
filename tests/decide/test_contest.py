"""Beliefs about and contests between candidates that are numbered from the linear probe (0) on."""

import numpy as np
import pytest

from finetune.decide.belief import Belief, gain_of_two
from finetune.decide.contest import Contest, pick


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


def test_chances_are_those_of_being_the_right_pick():
    even = contest_of(belief_of([0.8, 0.8]), [1.0, 1.0])
    assert even.chances() == pytest.approx([0.5, 0.5], abs=0.03)
    cheaper = contest_of(belief_of([0.8, 0.8]), [1.0, 2.0], 0.05)
    assert cheaper.chances() == pytest.approx([0.96, 0.04], abs=0.02)
    assert contest_of(belief_of([0.6, 0.9]), [1.0, 1.0]).chances().tolist() == [0.0, 1.0]


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
