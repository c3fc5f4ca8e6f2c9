import numpy as np
import pytest

from finetune.decide.belief import Belief, update
from finetune.decide.contest import chances, finalists, gain_of_two, partner, pick
from finetune.decide.race import compete, expected_gain, is_worth_racing


def belief_of(mean, deviation=0.02, correlation=0.0):
    count = len(mean)
    shape = (1 - correlation) * np.eye(count) + correlation
    return Belief(mean=np.asarray(mean, dtype=float), covariance=shape * deviation**2)


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


def test_what_unfinished_trainings_lack_alike_says_nothing_of_any():
    right = np.random.default_rng(0).random((2, 1000)) * 0.4
    after = update(belief_of([0.8, 0.8], correlation=0.9), (0, 1), right, 0.0)
    assert after.mean == pytest.approx([0.8, 0.8], abs=0.02)


def test_on_the_same_images_a_difference_is_surer_than_on_different_ones():
    generator = np.random.default_rng(0)
    hardness, other = generator.random((2, 300))
    small = generator.normal(0.02, 0.02, 300)
    paired = update(belief_of([0.5, 0.5]), (0, 1), np.stack([hardness, hardness + small]), 0.0)
    apart = update(belief_of([0.5, 0.5]), (0, 1), np.stack([hardness, other + small]), 0.0)

    def deviation(belief):
        return (belief.covariance[0, 0] + belief.covariance[1, 1] - 2 * belief.covariance[0, 1]) ** 0.5

    assert deviation(paired) < 0.3 * deviation(apart)


def test_a_race_of_two_moves_the_belief_of_a_third_that_is_like_one_of_them():
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


def test_chances_are_those_of_being_picked_were_all_known():
    even = chances(belief_of([0.8, 0.8]), [1.0, 1.0], 0.0)
    assert even == pytest.approx([0.5, 0.5], abs=0.03)
    assert chances(belief_of([0.8, 0.8]), [1.0, 2.0], 0.05) == pytest.approx([0.96, 0.04], abs=0.02)
    assert chances(belief_of([0.6, 0.9]), [1.0, 1.0], 0.0).tolist() == [0.0, 1.0]


def test_a_race_between_equals_is_worth_what_picking_the_better_gains():
    noise = np.zeros((2, 2))
    gain = expected_gain(belief_of([0.8, 0.8], deviation=0.02), (0, 1), noise)
    assert gain == pytest.approx(0.02 * 2**0.5 * 0.3989, rel=0.05)  # E max of two normal values


@pytest.mark.parametrize(
    ("mean", "deviation", "noise"), [([0.6, 0.9], 0.02, 0.0), ([0.8, 0.8], 0.02, 10.0), ([0.8, 0.8], 0.0, 0.01)]
)
def test_a_race_is_worth_nothing_where_it_would_change_nothing(mean, deviation, noise):
    assert expected_gain(belief_of(mean, deviation), (0, 1), noise * np.eye(2)) == pytest.approx(0.0, abs=1e-3)


def test_who_may_be_the_best_races_the_likeliest_first():
    assert finalists(belief_of([0.80, 0.90, 0.91, 0.60]), [1.0] * 4, 0.0) == (2, 1)


def test_no_more_than_three_race():
    assert len(finalists(belief_of([0.8] * 5), [1.0] * 5, 0.0)) == 3


def test_who_is_sure_to_be_picked_is_alone():
    assert finalists(belief_of([0.80, 0.805], deviation=0.001), [1.0, 2.0], 0.02) == (0,)


def test_who_left_a_race_does_not_come_back():
    assert finalists(belief_of([0.80, 0.82, 0.99]), [1.0] * 3, 0.0, among=(1, 0)) == (1, 0)


@pytest.mark.parametrize(
    ("deviation", "num_held", "is_worth"), [(0.03, 1000, True), (0.03, 5, False), (0.001, 1000, False)]
)
def test_a_race_must_be_able_to_tell_and_to_matter(deviation, num_held, is_worth):
    assert is_worth_racing(belief_of([0.8, 0.8], deviation), (0, 1), num_held, price=0.006) == is_worth


def test_nobody_races_alone():
    assert not is_worth_racing(belief_of([0.8, 0.8]), (1,), 1000, price=0.0)


def seen(*levels):
    """A look that shows such probabilities, and the list of who was looked at."""
    looked = []

    def look(rung, places):
        looked.append((rung, places))
        noise = np.random.default_rng(0).normal(0, 0.05, 500)
        return np.stack([levels[place] + noise for place in places])

    return look, looked


def test_a_race_ends_where_one_is_left_and_the_linear_probe_is_not_looked_at():
    look, looked = seen(None, 0.5, 0.8)
    race = compete(belief_of([0.7, 0.8, 0.8], 0.05), [0.0, 1.0, 1.0], 0.0, (1, 0, 2), look)
    assert looked == [(0, [1, 2])]
    assert race.winner == 2
    assert race.left == ((1, 0, 2), (2,))


def test_who_can_not_be_told_apart_goes_on_to_the_last_rung():
    look, looked = seen(None, 0.7, 0.7)
    race = compete(belief_of([0.6, 0.8, 0.8], 0.05), [0.0, 1.0, 1.0], 0.0, (1, 2), look)
    assert [rung for rung, _ in looked] == [0, 1]
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
    ids=["cheapest", "nearly as good", "nobody", "sure", "too dear", "probe"],
)
def test_the_partner_is_the_cheapest_that_is_nearly_as_good_where_picking_is_a_gamble(
    mean, deviation, place, price, expected
):
    assert partner(belief_of(mean, deviation), [0.0, 1.0, 2.0, 3.0], place, price) == expected


def test_who_is_right_and_wrong_with_the_best_is_no_partner():
    together = belief_of([0.7, 0.8, 0.8], 0.05, correlation=0.999)
    assert partner(together, [0.0, 1.0, 2.0], 2, 0.004) is None
    assert partner(belief_of([0.7, 0.8, 0.8], 0.05, correlation=0.5), [0.0, 1.0, 2.0], 2, 0.004) == 1


@pytest.mark.parametrize(("place", "other"), [(1, 2), (2, 1)])
def test_the_gain_of_two_is_what_draws_have_in_the_mean(place, other):
    believed = belief_of([0.7, 0.79, 0.80], 0.03, correlation=0.4)
    drawn = np.random.default_rng(0).multivariate_normal(believed.mean, believed.covariance, 400_000)
    better = np.maximum(drawn[:, place], drawn[:, other])
    assert gain_of_two(believed, place, other) == pytest.approx((better - drawn[:, place]).mean(), abs=1e-4)
