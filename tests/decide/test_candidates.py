from itertools import pairwise

import numpy as np
import pytest

from finetune.decide.candidates import (
    SGD_RATE,
    SPECS,
    Candidate,
    learning_rates,
    list_candidates,
    rate_factor,
)
from finetune.decide.contest import make_contest
from finetune.decide.prior import PRIOR
from finetune.recipe import Recipe, TrainingRecipe

AUTO = Recipe(data="x")


def listed(evidence, recipe=AUTO):
    return {candidate.name: candidate for candidate in list_candidates(evidence, recipe)}


def believed(evidence):
    """Return all candidates by name, with what is expected of them."""
    candidates = list_candidates(evidence, AUTO)
    return {each.name: each for each in make_contest(candidates, evidence, AUTO).believed(candidates)}


def test_the_prior_knows_every_candidate_except_random_weights():
    assert {*PRIOR.candidates, "scratch"} == set(SPECS)
    assert PRIOR.candidates[0] == "linear_probe"


@pytest.mark.parametrize("name", [name for name in SPECS if name not in {"linear_probe", "scratch"}])
def test_training_is_expected_to_remove_some_of_the_probes_errors_and_not_all(evidence, name):
    candidates = believed(evidence)
    assert candidates[name].basis == "prior"
    assert candidates["linear_probe"].expected_top1 < candidates[name].expected_top1 < 1.0


def test_an_interval_contains_the_expectation_and_is_wider_where_the_similarity_is_uncalibrated(evidence):
    sure, unsure = (believed(evidence.changed(similarity_calibrated=known))["full_far"] for known in (True, False))
    for candidate in (sure, unsure):
        assert candidate.expected_interval[0] < candidate.expected_top1 < candidate.expected_interval[1]
    assert unsure.expected_interval[1] - unsure.expected_interval[0] > np.diff(sure.expected_interval)[0]


def test_random_weights_promise_less_than_the_probe(evidence):
    assert 0.25 < listed(evidence)["scratch"].expected_top1 < 0.85


def test_brief_trainings_have_half_the_steps(evidence):
    candidates = listed(evidence)
    steps = {name: candidates[name].workload(AUTO, evidence).steps for name in candidates}
    assert steps["partial_brief"] == steps["partial_half"] == round(0.5 * steps["partial"])
    assert candidates["partial_half"].label == "partial (3 stages, half the steps)"


def test_steps_that_the_recipe_fixes_leave_no_brief_training(evidence):
    assert not {"partial_brief", "partial_half"} & set(listed(evidence, AUTO.changed(steps=50)))


def test_the_brief_way_trains_half_of_the_stages(evidence):
    brief, usual = (listed(evidence)[name] for name in ("partial_brief", "partial"))
    assert (brief.trainable_stages, usual.trainable_stages) == (1, 3)
    assert brief.learning_rate == usual.learning_rate
    assert brief.expected_seconds <= usual.expected_seconds
    assert (brief.label, usual.label) == ("partial (1 stage, half the steps)", "partial (3 stages)")


def test_stages_that_the_recipe_fixes_leave_no_training_of_half_of_them(evidence):
    candidates = listed(evidence, AUTO.changed(training=TrainingRecipe(trainable_stages=2)))
    assert "partial_brief" not in candidates
    assert candidates["partial"].trainable_stages == 2


def test_full_is_tried_at_the_rates_of_a_near_and_of_a_far_domain(evidence):
    both = [listed(evidence)[name] for name in ("full_near", "full_far")]
    rates = [(candidate.learning_rate, candidate.lowest_rate_fraction) for candidate in both]
    assert rates == [learning_rates("full", 1.0), learning_rates("full", 0.0)]


def test_a_time_budget_leaves_a_share_of_the_steps(evidence):
    tight = listed(evidence, AUTO.changed(time_budget=120))
    assert tight["full_far"].share_of_steps < tight["partial"].share_of_steps <= 1.0
    assert {candidate.share_of_steps for name, candidate in listed(evidence).items()} == {1.0}


@pytest.mark.parametrize("strategy", ["norm_tuning", "full"])
def test_learning_rates_rise_as_similarity_falls(strategy):
    rates = [learning_rates(strategy, similarity)[0] for similarity in (1.0, 0.75, 0.5, 0.25, 0.0)]
    assert all(nearer < farther for nearer, farther in pairwise(rates))


def test_lower_stages_are_held_back_less_as_similarity_falls():
    assert [learning_rates("full", similarity)[1] for similarity in (1.0, 0.5, 0.0)] == [0.5, 0.75, 1.0]


def test_similarities_beyond_the_scale_count_as_its_ends():
    assert learning_rates("full", 1.2) == learning_rates("full", 1.0) == (4e-4, 0.5)
    assert learning_rates("full", -0.2) == learning_rates("full", 0.0) == (8e-4, 1.0)


def test_the_rates_of_random_weights_do_not_depend_on_the_similarity():
    assert learning_rates("scratch", 0.9) == learning_rates("scratch", 0.1) == (1e-3, 1.0)


def test_rates_of_adamw_follow_the_root_of_the_batch_and_those_of_sgd_the_batch():
    assert [rate_factor("adamw", size, 32) for size in (8, 32, 128)] == [0.5, 1.0, 2.0]
    assert [rate_factor("sgd", size, 32) for size in (8, 32, 128)] == [SGD_RATE / 4, SGD_RATE, SGD_RATE * 4]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_rates_stop_rising_at_four_times_the_usual_batch(optimizer):
    assert rate_factor(optimizer, 4_096, 32) == rate_factor(optimizer, 128, 32)


def test_a_large_set_has_the_same_rates_with_its_own_larger_batch(evidence):
    large = evidence.changed(num_images=20_000, num_held=20_000)
    for asked, factor in ((None, 1.0), (128, 1.0), (512, 2.0)):
        rates = [
            listed(of, AUTO.changed(batch_size=size))["full_near"].learning_rate
            for of, size in ((large, asked), (evidence, None))
        ]
        assert rates[0] == pytest.approx(factor * rates[1], rel=0.05)


@pytest.mark.parametrize(
    ("optimizer", "size", "factor"), [("adamw", 8, 0.5), ("adamw", 128, 2.0), ("sgd", 32, SGD_RATE)]
)
def test_the_rates_of_all_candidates_follow_the_batch(evidence, optimizer, size, factor):
    asked = AUTO.changed(batch_size=size, training=TrainingRecipe(optimizer=optimizer))
    usual, other = listed(evidence), listed(evidence, asked)
    for name, candidate in usual.items():
        assert other[name].learning_rate == pytest.approx(factor * candidate.learning_rate, rel=0.05)
        assert other[name].lowest_rate_fraction == candidate.lowest_rate_fraction


def test_a_candidate_of_an_older_file_is_read(evidence, tmp_path):
    candidate = listed(evidence)["partial"]
    candidate.changed(basis="published").save(tmp_path / "candidate.json")
    assert Candidate.load(tmp_path / "candidate.json").changed(basis="prior") == candidate


def test_a_candidates_workload_follows_the_recipe_that_it_is_asked_for(evidence):
    candidate = listed(evidence)["partial_brief"]
    usual, longer = (candidate.workload(recipe, evidence) for recipe in (AUTO, AUTO.changed(steps=700)))
    assert (usual.trainable_stages, usual.steps) == (1, 78)
    assert (longer.trainable_stages, longer.steps) == (1, 700)
