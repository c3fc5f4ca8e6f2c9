"""Contests between candidates that are numbered from the linear probe (0) on."""

import numpy as np
import pytest

from finetune.decide.belief import Belief
from finetune.decide.contest import Contest, utility


def believing(mean, deviation=0.001, correlation=0.0):
    """Return a belief with normal draws."""
    count = len(mean)
    covariance = ((1 - correlation) * np.eye(count) + correlation) * deviation**2
    return Belief(np.random.default_rng(0).multivariate_normal(mean, covariance, 4000))


def contest_of(belief, seconds, prefer="balanced"):
    return Contest(names=tuple("abcde")[: len(seconds)], belief=belief, seconds=tuple(seconds), prefer=prefer)


@pytest.mark.parametrize(
    ("mean", "seconds", "expected"),
    [
        ([0.80, 0.89, 0.90], [1, 100, 300], 2),
        ([0.80, 0.893, 0.90], [1, 300, 600], 1),
        ([0.80, 0.88, 0.90], [1, 300, 600], 2),
        ([0.80, 0.88, 0.90], [1, 3000, 6000], 2),
        ([0.80, 0.88, 0.90], [1, 300, 3000], 1),
    ],
    ids=["free", "below its price", "above its price", "later doubling", "too long"],
)
def test_balanced_has_five_free_minutes_and_then_pays_a_point_for_a_doubling(mean, seconds, expected):
    assert contest_of(believing(mean), seconds).pick() == expected


def test_accuracy_has_no_price():
    assert contest_of(believing([0.80, 0.89, 0.90]), [1, 300, 30_000], "accuracy").pick() == 2


@pytest.mark.parametrize(
    ("mean", "deviation", "expected"),
    [([0.80, 0.885, 0.90], 0.001, 1), ([0.80, 0.875, 0.90], 0.001, 2), ([0.80, 0.885, 0.90], 0.02, 2)],
    ids=["within two points", "beyond", "not sure enough"],
)
def test_speed_takes_the_cheapest_that_hardly_loses_two_points(mean, deviation, expected):
    assert contest_of(believing(mean, deviation), [1, 2, 3], "speed").pick() == expected


def test_a_small_risk_of_a_large_loss_counts():
    """The second is a little better in most draws, and far worse in one of twenty."""
    draws = np.tile([0.7, 0.90, 0.902], (4000, 1))
    draws[::20, 2] = 0.7
    for prefer in ("balanced", "accuracy"):
        assert contest_of(Belief(draws), [1, 2, 1.5], prefer).pick() == 1


def test_only_places_that_are_left_are_picked():
    contest = contest_of(believing([0.7, 0.8, 0.9]), [1, 2, 3])
    assert contest.pick([0, 1]) == 1


def test_chances_are_those_of_being_the_most_accurate():
    assert contest_of(believing([0.8, 0.8]), [1, 1]).chances() == pytest.approx([0.5, 0.5], abs=0.03)
    assert contest_of(believing([0.6, 0.9]), [1, 1]).chances().tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("mean", "deviation", "expected"),
    [
        ([0.7, 0.797, 0.799, 0.80], 0.02, 2),
        ([0.7, 0.775, 0.775, 0.80], 0.05, None),
        ([0.7, 0.797, 0.799, 0.80], 1e-5, None),
    ],
    ids=["the next best", "none is near", "certain"],
)
def test_the_partner_is_the_next_best_if_it_may_be_better(mean, deviation, expected):
    assert contest_of(believing(mean, deviation), [0, 1, 2, 3]).partner(3) == expected


def test_the_linear_probe_has_no_partner_and_is_none():
    assert contest_of(believing([0.80, 0.80], 0.02), [1, 1]).partner(0) is None
    assert contest_of(believing([0.80, 0.80], 0.02), [1, 1]).partner(1) is None


def test_a_doubling_beyond_the_free_time_costs_a_point():
    worth = utility(np.full(4, 0.9), np.array([10.0, 300.0, 600.0, 1200.0]), "balanced")
    assert worth == pytest.approx([0.90, 0.90, 0.89, 0.88])
