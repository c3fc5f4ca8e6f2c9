from itertools import pairwise

import pytest

from finetune.errors import RecipeError
from finetune.recipe import STRATEGIES, Recipe
from finetune.strategy import choose_strategy, decide, learning_rates

AUTO = Recipe(data="x")


@pytest.mark.parametrize(
    ("images", "similarity", "because"),
    [
        (19, 0.5, "few images, whose domain the features fit:"),
        (19, 0.49, "few images, whose domain the features do not fit:"),
        (5_000, 0.5, "enough images of a near domain"),
        (20, 0.49, "enough images of a far domain"),
    ],
)
def test_few_or_enough_images_near_or_far_train_the_last_stages_for_a_reason_of_their_own(images, similarity, because):
    strategy, why = decide(images, similarity, 0.1, "balanced")
    assert strategy == "partial"
    assert why.startswith(because)


@pytest.mark.parametrize(("images", "strategy"), [(499, "partial"), (500, "full")])
def test_plenty_of_images_of_a_far_domain_train_everything(images, strategy):
    assert decide(images, 0.2, 0.1, "balanced")[0] == strategy


@pytest.mark.parametrize("prefer", ["accuracy", "balanced", "speed"])
def test_a_probe_without_errors_suffices_whatever_is_preferred(prefer):
    strategy, why = decide(1_000, 0.1, 0.004, prefer)
    assert strategy == "linear_probe"
    assert "nothing to gain" in why


@pytest.mark.parametrize(("prefer", "strategy"), [("accuracy", "full"), ("speed", "linear_probe")])
@pytest.mark.parametrize(("images", "similarity"), [(5, 0.9), (5, 0.1), (1_000, 0.9), (1_000, 0.1)])
def test_a_preference_outranks_size_and_similarity(images, similarity, prefer, strategy):
    assert decide(images, similarity, 0.1, prefer)[0] == strategy


def test_the_choice_follows_the_rule_and_gives_its_reason(evidence):
    choice = choose_strategy(evidence, AUTO)
    assert choice.strategy == "partial"
    assert choice.reasons[1] == decide(60, 0.8, 0.173, "balanced")[1]


def test_the_choice_needs_no_recipe(evidence):
    assert choose_strategy(evidence) == choose_strategy(evidence, AUTO)


def test_the_probes_standard_error_counts_as_errors(evidence):
    sure = evidence.changed(probe_accuracy=0.999, probe_accuracy_error=0.001)
    unsure = evidence.changed(probe_accuracy=0.999, probe_accuracy_error=0.01)
    assert choose_strategy(sure).strategy == "linear_probe"
    assert choose_strategy(unsure).strategy == "partial"


@pytest.mark.parametrize(
    ("images", "similarity", "reason"),
    [
        (60.0, 0.8, "60 images per class, at least 20; similarity 0.80, near"),
        (12.0, 0.8, "12 images per class, below 20; similarity 0.80, near"),
        (60.0, 0.31, "60 images per class, at least 20; similarity 0.31, far"),
        (12.0, 0.31, "12 images per class, below 20; similarity 0.31, far"),
    ],
)
def test_the_first_reason_names_size_and_similarity(evidence, images, similarity, reason):
    measured = evidence.changed(images_per_class=images, domain_similarity=similarity)
    assert choose_strategy(measured).reasons[0] == reason


def test_the_first_reason_says_where_the_similarity_is_uncalibrated(evidence):
    choice = choose_strategy(evidence.changed(similarity_calibrated=False))
    assert choice.reasons[0].endswith("near, uncalibrated for this network")


def test_the_last_reason_gives_the_expectation(evidence):
    choice = choose_strategy(evidence)
    expected = choice.candidates[0]
    assert choice.reasons[-1].startswith(
        f"expected {100 * expected.expected_top1:.1f} ± {100 * expected.expected_top1_error:.1f} % top-1: "
        "the linear probe's 85.0 %"
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_asked_strategy_is_chosen_and_listed_first(evidence, strategy):
    choice = choose_strategy(evidence, AUTO.changed(strategy=strategy))
    assert choice.strategy == choice.candidates[0].strategy == strategy
    assert choice.reasons[1] == f"{strategy} was asked for"


def test_an_asked_strategy_outranks_the_preference(evidence):
    assert choose_strategy(evidence, AUTO.changed(strategy="full", prefer="speed")).strategy == "full"


def test_every_strategy_is_a_candidate_the_others_from_the_fastest_on(evidence):
    candidates = choose_strategy(evidence).candidates
    assert candidates[0].strategy == "partial"
    assert sorted(candidate.strategy for candidate in candidates) == sorted(STRATEGIES)
    seconds = [candidate.expected_seconds for candidate in candidates[1:]]
    assert seconds == sorted(seconds)


def candidate(evidence, strategy):
    return next(item for item in choose_strategy(evidence).candidates if item.strategy == strategy)


def test_the_probes_expectation_is_what_was_measured(evidence):
    probe = candidate(evidence, "linear_probe")
    assert (probe.basis, probe.expected_top1, probe.expected_top1_error) == ("measured", 0.85, 0.023)


@pytest.mark.parametrize("strategy", ["norm_tuning", "partial", "full", "scratch"])
def test_a_published_expectation_is_uncertain_by_three_points_or_more(evidence, strategy):
    published = candidate(evidence.changed(probe_accuracy_error=0.0), strategy)
    assert published.basis == "published"
    assert published.expected_top1_error >= 0.03


@pytest.mark.parametrize("strategy", ["norm_tuning", "partial", "full"])
def test_a_published_expectation_is_less_certain_where_the_similarity_is_uncalibrated(evidence, strategy):
    uncalibrated = evidence.changed(similarity_calibrated=False)
    wider, narrower = candidate(uncalibrated, strategy), candidate(evidence, strategy)
    assert wider.expected_top1_error > narrower.expected_top1_error
    assert wider.expected_top1 == narrower.expected_top1


def test_training_more_of_the_network_promises_more(evidence):
    gains = [candidate(evidence, strategy).expected_top1 for strategy in ("norm_tuning", "partial", "full")]
    assert 0.85 < gains[0] < gains[1] < gains[2] < 1.0


def test_the_farther_the_domain_the_more_full_fine_tuning_promises(evidence):
    far = evidence.changed(domain_similarity=0.1)
    assert candidate(far, "full").expected_top1 > candidate(evidence, "full").expected_top1


def test_random_weights_promise_less_than_the_probe(evidence):
    assert 0.25 < candidate(evidence, "scratch").expected_top1 < 0.85


@pytest.mark.parametrize("strategy", ["norm_tuning", "partial", "full"])
def test_learning_rates_rise_as_similarity_falls(strategy):
    rates = [learning_rates(strategy, similarity)[0] for similarity in (1.0, 0.75, 0.5, 0.25, 0.0)]
    assert all(nearer < farther for nearer, farther in pairwise(rates))


def test_lower_stages_are_held_back_less_as_similarity_falls():
    assert [learning_rates("full", similarity)[1] for similarity in (1.0, 0.5, 0.0)] == [0.5, 0.75, 1.0]


def test_similarities_beyond_the_scale_count_as_its_ends():
    assert learning_rates("full", 1.2) == learning_rates("full", 1.0) == (4e-4, 0.5)
    assert learning_rates("full", -0.2) == learning_rates("full", 0.0) == (8e-4, 1.0)


def test_random_weights_know_no_similarity():
    assert learning_rates("scratch", 0.9) == learning_rates("scratch", 0.1) == (1e-3, 1.0)


def test_a_time_budget_shortens_the_chosen_training(evidence):
    choice = choose_strategy(evidence, AUTO.changed(time_budget=100))
    assert choice.strategy == "partial"
    assert choice.candidates[0].expected_seconds <= 105 < choose_strategy(evidence).candidates[0].expected_seconds


def test_a_time_budget_too_short_for_a_step_leaves_the_probe(evidence):
    choice = choose_strategy(evidence, AUTO.changed(time_budget=3))
    assert choice.strategy == "linear_probe"
    assert choice.reasons[1] == "the time budget of 3 s is too short for partial, so only the head is trained"


def test_a_time_budget_too_short_for_the_probe_is_refused(evidence):
    with pytest.raises(RecipeError, match=r"time budget of 1 s is too short: the linear probe alone takes about 2 s"):
        choose_strategy(evidence, AUTO.changed(time_budget=1))
