import math

import numpy as np
import pytest

from finetune.decide.choice import choose_strategy
from finetune.decide.planning import make_plan
from finetune.errors import RecipeError
from finetune.recipe import Recipe
from finetune.tuning.findings import RateTrial, check_curves, check_overfit, check_rates, check_start, rate_trial
from finetune.tuning.space import Dimension, draw, grid, plan_of_trial, rates_of, refine
from finetune.tuning.state import Trial, Tuning, begin_tuning, best_of

RATE = Dimension(name="learning_rate", low=1e-4, high=1e-2)
DECAY = Dimension(name="weight_decay", low=1e-3, high=1e-1)


@pytest.fixture
def decided(evidence):
    """A function that returns recipe, choice and plan for some keys of a recipe."""

    def make(**keys):
        recipe = Recipe(**({"data": "x", "strategy": "partial"} | keys))
        choice = choose_strategy(evidence, recipe)
        return recipe, choice, make_plan(recipe, evidence, choice)

    return make


def trial(number=0, losses=(0.5,), **rest):
    known = {"stage": "fine", "parameters": {"learning_rate": 1e-3}, "state": "finished", "accuracy": 0.9, "seconds": 1}
    return Trial(number=number, losses=losses, **(known | rest))


def names(space):
    return [dimension.name for dimension in space]


def test_by_default_all_open_parameters_are_searched_around_the_chosen_rate(decided):
    recipe, choice, plan = decided()
    space = begin_tuning(recipe, choice, plan, "run", "here").space
    assert names(space) == ["learning_rate", "lowest_rate_fraction", "weight_decay", "label_smoothing"]
    assert math.sqrt(space[0].low * space[0].high) == pytest.approx(choice.chosen.learning_rate)


def test_parameters_that_the_recipe_fixes_are_not_searched(decided):
    space = begin_tuning(*decided(training={"learning_rate": 1e-3, "label_smoothing": 0.0}), "run", "here").space
    assert names(space) == ["lowest_rate_fraction", "weight_decay"]


def test_given_ranges_are_the_only_ones_searched(decided):
    tuning = begin_tuning(*decided(tuning={"weight_decay": (0.01, 0.1), "trials": 7, "search": "tpe"}), "run", "here")
    assert tuning.space == (Dimension(name="weight_decay", low=0.01, high=0.1),)
    assert (tuning.num_trials, tuning.search) == (7, "tpe")


def test_a_single_trained_stage_has_no_lower_rate_to_search(decided):
    space = begin_tuning(*decided(training={"trainable_stages": 1}), "run", "here").space
    assert "lowest_rate_fraction" not in names(space)


def test_a_linear_probe_has_nothing_to_tune(decided):
    with pytest.raises(RecipeError, match="nothing to tune: linear_probe takes no steps"):
        begin_tuning(*decided(strategy="linear_probe"), "run", "here")


def test_a_recipe_that_fixes_everything_has_nothing_to_tune(decided):
    fixed = {"learning_rate": 1e-3, "lowest_rate_fraction": 0.5, "weight_decay": 0.1, "label_smoothing": 0.1}
    with pytest.raises(RecipeError, match=r"the recipe fixes training\.learning_rate"):
        begin_tuning(*decided(training=fixed), "run", "here")


@pytest.mark.parametrize(("trials", "coarse", "fine"), [(2, 1, 1), (3, 2, 1), (5, 3, 2), (20, 12, 8)])
def test_three_fifths_of_the_trials_are_coarse_and_one_at_least_is_fine(trials, coarse, fine):
    tuning = Tuning(name="a", worker="b", search="random", num_trials=trials, asked=(RATE,), space=(RATE,))
    assert (tuning.num_coarse, tuning.num_fine) == (coarse, fine)


@pytest.mark.parametrize(("count", "rates", "decays"), [(1, 1, 1), (5, 2, 2), (12, 4, 3), (16, 4, 4)])
def test_a_grid_has_at_most_as_many_points_as_asked_and_the_first_number_has_the_most(count, rates, decays):
    points = grid((RATE, DECAY), count, seed=0)
    assert len({tuple(point.values()) for point in points}) == rates * decays
    assert [len({point[name] for point in points}) for name in ("learning_rate", "weight_decay")] == [rates, decays]


def test_a_grid_is_even_in_logarithms_and_has_both_ends():
    assert sorted(point["learning_rate"] for point in grid((RATE,), 3, seed=0)) == [1e-4, 1e-3, 1e-2]


def test_random_points_are_log_uniform():
    rates = np.log10([draw((RATE, DECAY), 0, number)["learning_rate"] for number in range(2000)])
    assert (rates.min(), rates.max()) == pytest.approx((-4, -2), abs=0.01)
    assert np.histogram(rates, bins=4, range=(-4, -2))[0] / 2000 == pytest.approx([0.25] * 4, abs=0.03)


def test_random_points_differ_in_every_parameter():
    points = [draw((RATE, DECAY), 0, number) for number in range(12)]
    assert [len({point[name] for point in points}) for name in ("learning_rate", "weight_decay")] == [12, 12]


def test_a_refined_range_is_half_as_wide_around_the_best_within_the_range():
    inner, outer = (refine((RATE,), {"learning_rate": best})[0] for best in (1e-3, 1e-2))
    assert (inner.low, inner.high) == pytest.approx((10**-3.5, 10**-2.5), rel=1e-3)
    assert (outer.low, outer.high) == pytest.approx((10**-2.5, 1e-2), rel=1e-3)


def test_the_plan_of_a_trial_has_its_parameters_and_is_otherwise_the_same(decided, evidence):
    recipe, choice, plan = decided()
    numbers = {"learning_rate": 3e-3, "lowest_rate_fraction": 0.25, "weight_decay": 0.125, "label_smoothing": 0.0625}
    tried = plan_of_trial(recipe, evidence, choice, numbers)
    trained = [stage.learning_rate for stage in tried.stages if stage.learning_rate]
    assert (trained[-1], tried.head_learning_rate) == (3e-3, 3e-3)
    assert trained[0] == pytest.approx(0.25 * 3e-3)
    assert (tried.weight_decay, tried.label_smoothing) == (0.125, 0.0625)
    changed = {"stages": plan.stages, "head_learning_rate": plan.head_learning_rate}
    assert tried.changed(**changed, weight_decay=plan.weight_decay, label_smoothing=plan.label_smoothing) == plan


@pytest.mark.parametrize(("loss", "holds"), [(0.5, True), (0.69, True), (0.71, False), (2.3, False), (0.2, False)])
def test_the_initial_loss_must_be_the_expected_one_up_to_chance_and_a_fifth(loss, holds):
    finding = check_start(loss, error=0.03, expected=0.5, source="the linear probe's")
    assert finding.holds == holds
    assert ("check the weights" in finding.says) != holds


def test_images_of_the_sample_that_are_not_fitted_are_named():
    finding = check_overfit([True, False, True], ["a.jpg", "b.jpg", "c.jpg"], 100)
    assert not finding.holds
    assert finding.says.startswith("2 of 3 training images are fitted in 100 steps; ")
    assert "look at b.jpg for wrong labels" in finding.says


def tried(*losses):
    return [
        RateTrial(rate=rate, untrained=1.0, trained=last, error=0.04)
        for rate, last in zip(rates_of(RATE), losses, strict=True)
    ]


@pytest.mark.parametrize(
    ("losses", "low", "high"),
    [
        ((1.0, 0.7, 0.8, math.inf), 0, 3),
        ((1.0, 1.0, 0.5, 0.7), 1, 3),
        ((0.5, 1.2, 3.0, math.inf), 0, 1),
        ((0.5, 0.9, 1.3, 0.8), 0, 2),
    ],
)
def test_rates_with_which_the_loss_falls_stay_and_the_next_ones_on_either_side(losses, low, high):
    finding, left = check_rates(RATE, tried(*losses), steps=100)
    assert finding.holds
    assert (left.low, left.high) == (rates_of(RATE)[low], rates_of(RATE)[high])


def test_if_the_loss_falls_with_no_rate_there_is_nothing_to_search():
    finding, _ = check_rates(RATE, tried(1.0, 0.98, 1.1, math.inf), steps=100)
    assert not finding.holds
    assert "the loss falls with none of the learning rates within 100 steps" in finding.says
    assert "1.0e-02 diverges" in finding.says


def test_a_loss_falls_if_its_fall_exceeds_its_noise_and_a_hundredth():
    generator = np.random.default_rng(0)
    batches = 1.0 + generator.normal(0, 0.3, 99)  # some are harder than others, trained on or not
    noise = generator.normal(0, 0.02, 99)
    noise -= noise[-33:].mean()
    assert rate_trial(1e-3, (batches + noise - 0.02).tolist(), batches.tolist()).falls
    assert not rate_trial(1e-3, (batches + 10 * noise - 0.02).tolist(), batches.tolist()).falls
    assert not rate_trial(1e-3, (batches - 0.001).tolist(), batches.tolist()).falls
    assert not rate_trial(1e-3, [], batches.tolist()).falls


def test_the_best_trial_finished_with_the_lowest_loss_and_of_two_equal_ones_is_the_earlier():
    trials = [trial(4, (0.3,)), trial(1, (0.3,)), trial(2, (0.1,), state="pruned"), trial(3, (0.9, 0.4))]
    assert best_of(trials).number == 1


@pytest.mark.parametrize(("rate", "end"), [(1.1e-4, "low"), (9e-3, "high")])
def test_a_best_rate_at_an_end_of_its_range_advises_to_widen_it(rate, end):
    says = check_curves(trial(parameters={"learning_rate": rate}), (RATE,)).says
    assert f"is at the {end} end of its range: widen it, with --set tuning.learning_rate=[LOW,HIGH]" in says


def test_a_fraction_of_one_cannot_be_widened():
    space = (Dimension(name="lowest_rate_fraction", low=0.1, high=1.0),)
    assert "widen" not in check_curves(trial(parameters={"lowest_rate_fraction": 1.0}), space).says


@pytest.mark.parametrize(
    ("losses", "advice"),
    [
        ((0.9, 0.6, 0.5), "took 17 % off the loss: train longer"),
        ((0.6, 0.5, 0.55), "added 10 % to the loss: train shorter"),
        ((0.6, 0.5, 0.49), "the loss has settled"),
    ],
)
def test_the_end_of_the_curve_advises_to_train_longer_or_shorter(losses, advice):
    assert advice in check_curves(trial(losses=losses), (RATE,)).says
