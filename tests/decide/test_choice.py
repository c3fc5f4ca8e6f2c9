import re

import numpy as np
import pytest

from finetune.decide import contest
from finetune.decide.belief import Belief
from finetune.decide.choice import choose_backbone, choose_strategy
from finetune.decide.contest import FREE_SECONDS
from finetune.errors import RecipeError
from finetune.recipe import STRATEGIES, Recipe, TrainingRecipe

AUTO = Recipe(data="x")

NAMES = ("linear_probe", "partial_brief", "partial_half", "partial", "full_near", "full_far", "norm_tuning")


OPEN = (0.75, 0.70, 0.70, 0.90, 0.70, 0.901, 0.70)
"""Expected accuracies of two candidates that are nearly equal, and of others that are worse."""


@pytest.fixture
def believed(monkeypatch):
    """The function that sets the expected accuracies of all candidates, in the order of `NAMES`."""

    def make(*accuracies, deviation=0.001):
        def belief(_prior, _evidence, names):
            mean = np.array([accuracies[NAMES.index(name)] for name in names])
            return Belief(mean + deviation * np.random.default_rng(0).standard_normal((4000, len(names))))

        monkeypatch.setattr(contest, "believe", belief)

    return make


def at_speed(evidence, factor):
    """Measured on a machine whose trainings are `factor` times as fast."""
    trainings = [each.changed(images_per_second=factor * each.images_per_second) for each in evidence.speed.training]
    return evidence.changed(speed=evidence.speed.changed(training=trainings))


def with_probe(evidence, accuracy, error):
    return evidence.changed(probe=evidence.probe.changed(accuracy=accuracy, accuracy_error=error))


@pytest.mark.parametrize(
    ("prefer", "name"), [("accuracy", "full_far"), ("balanced", "partial"), ("speed", "partial_half")]
)
def test_the_rule_of_what_is_preferred_decides(evidence, believed, prefer, name):
    """`partial` takes half of the time of `full_far`, and both more than five minutes."""
    believed(0.85, 0.87, 0.885, 0.898, 0.89, 0.90, 0.86)
    assert choose_strategy(at_speed(evidence, 1 / 20), AUTO.changed(prefer=prefer)).chosen.name == name


def test_within_five_minutes_the_most_accurate_is_trained(evidence, believed):
    believed(0.85, 0.87, 0.885, 0.898, 0.89, 0.90, 0.86)
    choice = choose_strategy(at_speed(evidence, 2))
    assert choice.chosen.name == "full_far"
    assert choice.chosen.expected_seconds < FREE_SECONDS


def test_norm_tuning_is_trained_only_on_request(evidence, believed):
    believed(0.85, 0.85, 0.85, 0.85, 0.85, 0.85, 0.95)
    assert choose_strategy(evidence).chosen.name != "norm_tuning"
    assert choose_strategy(evidence, AUTO.changed(strategy="norm_tuning")).chosen.name == "norm_tuning"


@pytest.mark.parametrize("prefer", ["accuracy", "balanced", "speed"])
def test_a_probe_without_errors_suffices_whatever_is_preferred(evidence, prefer):
    choice = choose_strategy(with_probe(evidence, 0.999, 0.001), AUTO.changed(prefer=prefer))
    assert choice.strategy == "linear_probe"
    assert "hardly anything left to gain" in choice.reasons[1]


def test_the_probes_standard_error_counts_as_errors(evidence):
    assert "hardly anything left to gain" not in choose_strategy(with_probe(evidence, 0.999, 0.01)).reasons[1]


def test_the_choice_needs_no_recipe(evidence):
    assert choose_strategy(evidence) == choose_strategy(evidence, AUTO)


@pytest.mark.parametrize(
    ("images", "similarity", "reason"),
    [
        (60.0, 0.8, "60 images per class (20 or more: not small); domain similarity 0.80 (near)"),
        (12.0, 0.8, "12 images per class (fewer than 20: small); domain similarity 0.80 (near)"),
        (60.0, 0.31, "60 images per class (20 or more: not small); domain similarity 0.31 (far)"),
        (12.0, 0.31, "12 images per class (fewer than 20: small); domain similarity 0.31 (far)"),
    ],
)
def test_the_first_reason_names_size_and_similarity(evidence, images, similarity, reason):
    measured = evidence.changed(images_per_class=images, domain_similarity=similarity)
    assert choose_strategy(measured).reasons[0] == reason


def test_the_first_reason_says_if_the_similarity_is_uncalibrated(evidence):
    choice = choose_strategy(evidence.changed(similarity_calibrated=False))
    assert choice.reasons[0].endswith("(near; uncalibrated for this network)")


def test_the_second_reason_states_the_rule_and_what_is_given_up_for_what(evidence, believed):
    believed(0.85, 0.87, 0.885, 0.898, 0.89, 0.90, 0.86)
    choice = choose_strategy(evidence, AUTO.changed(prefer="speed"))
    assert choice.reasons[1] == (
        "speed: the cheapest that probably loses no more than 2 points: partial (3 stages, half the steps) gives up "
        "1.5 points of full (rate 8e-04) and takes 1 min 49 s instead of 7 min 18 s"
    )


def test_the_second_reason_says_how_far_the_best_is_ahead(evidence, believed):
    believed(0.85, 0.87, 0.885, 0.898, 0.89, 0.91, 0.86)
    reason = choose_strategy(evidence).reasons[1]
    assert reason.startswith("balanced: five minutes are free; beyond them, a doubling of the time must gain a point: ")
    assert "full (rate 8e-04) is expected 1.2 points above the next, partial (3 stages), and takes" in reason


def test_the_last_reason_gives_the_expectation(evidence, believed):
    """90 % of a normal distribution are within 1.645 standard deviations, here 3.3 points."""
    believed(0.85, 0.87, 0.87, 0.88, 0.80, 0.80, 0.80, deviation=0.02)
    reason = choose_strategy(evidence).reasons[-1]
    numbers = re.fullmatch(
        r"expected (\S+) % top-1 on new images \(90 %: (\S+) to (\S+)\): the linear probe's (\S+) % (\S+) points, "
        "a gain learned from other image sets",
        reason,
    )
    assert [float(number) for number in numbers.groups()] == pytest.approx([88.0, 84.7, 91.3, 85.0, 3.0], abs=0.25)


def test_a_linear_probes_expectation_has_no_gain(evidence, believed):
    believed(0.9, *[0.8] * 6)
    assert choose_strategy(evidence).reasons[-1] == "expected 90.0 % top-1 on new images (90 %: 89.8 to 90.2)"


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_asked_strategy_is_chosen_and_listed_first(evidence, name):
    choice = choose_strategy(evidence, AUTO.changed(strategy=name, prefer="speed"))
    assert choice.strategy == choice.candidates[0].strategy == name
    assert choice.reasons[1] == f"{name} was asked for"


def test_of_an_asked_strategy_the_usual_depth_and_length_are_trained_at_the_more_accurate_rate(evidence, believed):
    believed(0.85, 0.95, 0.96, 0.89, 0.92, 0.91, 0.86)
    chosen = [choose_strategy(evidence, AUTO.changed(strategy=name)).chosen.name for name in ("partial", "full")]
    assert chosen == ["partial", "full_near"]


def test_every_candidate_is_listed_the_others_from_the_fastest_to_the_slowest(evidence):
    candidates = choose_strategy(evidence).candidates
    assert sorted(candidate.name for candidate in candidates) == sorted((*NAMES, "scratch"))
    seconds = [candidate.expected_seconds for candidate in candidates[1:]]
    assert seconds == sorted(seconds)


def test_the_chances_of_being_the_best_add_up_and_leave_random_weights_out(evidence):
    chances = {candidate.name: candidate.chance for candidate in choose_strategy(evidence).candidates}
    assert sum(chances.values()) == pytest.approx(1.0, abs=0.03)
    assert chances["scratch"] == 0.0


@pytest.mark.parametrize(
    ("prefer", "members"), [("accuracy", ("full_far", "partial")), ("balanced", ()), ("speed", ())]
)
def test_where_accuracy_is_preferred_and_the_pick_uncertain_two_are_averaged(evidence, believed, prefer, members):
    believed(*OPEN, deviation=0.02)
    choice = choose_strategy(evidence, AUTO.changed(prefer=prefer))
    assert choice.members == members


def test_a_candidate_that_is_trained_only_on_request_is_no_partner(evidence, believed):
    believed(0.75, 0.70, 0.70, 0.890, 0.70, 0.901, 0.90, deviation=0.02)
    assert choose_strategy(evidence, AUTO.changed(prefer="accuracy")).members == ("full_far", "partial")


def test_a_pick_that_is_certain_is_trained_alone(evidence, believed):
    believed(0.85, 0.70, 0.889, 0.90, 0.80, 0.92, 0.70)
    assert choose_strategy(evidence, AUTO.changed(prefer="accuracy")).members == ()


def test_two_that_do_not_fit_the_time_budget_are_not_averaged(evidence, believed):
    believed(*OPEN, deviation=0.02)
    recipe = AUTO.changed(prefer="accuracy")
    assert [choose_strategy(evidence, recipe.changed(time_budget=seconds)).members for seconds in (300, 3000)] == [
        (),
        ("full_far", "partial"),
    ]


def test_led_by_another_candidate_everything_else_stays(evidence):
    choice = choose_strategy(evidence)
    other = choice.led_by("norm_tuning")
    assert (other.strategy, other.chosen.name) == ("norm_tuning", "norm_tuning")
    assert {candidate.name for candidate in other.candidates} == {candidate.name for candidate in choice.candidates}
    assert other.reasons == choice.reasons


def test_a_time_budget_leaves_out_what_it_would_cut_in_half(evidence, believed):
    believed(0.85, 0.88, 0.89, 0.90, 0.92, 0.95, 0.86)
    names = []
    for seconds in (3_000, 60, 3):
        choice = choose_strategy(evidence, AUTO.changed(prefer="accuracy", time_budget=seconds))
        assert choice.chosen.expected_seconds <= 1.05 * seconds
        names.append(choice.chosen.name)
    assert names == ["full_far", "partial", "linear_probe"]
    start = "the time budget leaves 3 s for training, too little for enough steps of "
    assert choice.reasons[2].startswith(f"{start}partial (1 stage, half the steps), ")
    assert choice.reasons[1].endswith("linear_probe is the only candidate")


def test_a_training_of_half_the_steps_is_not_cut_further(evidence, believed):
    believed(0.85, 0.88, 0.89, 0.90, 0.92, 0.95, 0.86)
    whole = next(each for each in choose_strategy(evidence).candidates if each.name == "partial_half")
    for share, is_listed in ((0.2, False), (0.4, True)):  # of the time with 3 folds; 0.31 of it is without
        recipe = AUTO.changed(time_budget=share * whole.expected_seconds)
        cut = next(each for each in choose_strategy(evidence, recipe).candidates if each.name == "partial_half")
        assert (cut.length, cut.has_enough_steps) == (0.5, is_listed)


def test_a_time_budget_too_short_for_the_probe_is_refused(evidence):
    with pytest.raises(
        RecipeError, match=r"it leaves 1 s for this training, and the linear probe alone takes about 2 s"
    ):
        choose_strategy(evidence.changed(cache_bytes=0), AUTO.changed(time_budget=1))


def test_a_fixed_rate_leaves_one_way_to_train_all_layers(evidence):
    recipe = AUTO.changed(training=TrainingRecipe(learning_rate=3e-4))
    candidates = choose_strategy(evidence, recipe).candidates
    assert {candidate.name for candidate in candidates} == {*NAMES, "scratch"} - {"full_far"}
    assert {candidate.learning_rate for candidate in candidates} == {3e-4}


def test_where_a_training_may_be_rejected_the_fallback_is_full_with_low_rates_unless_a_strategy_was_asked_for(
    evidence, believed
):
    believed(0.85, 0.80, 0.80, 0.90, 0.80, 0.85, 0.80)
    assert choose_strategy(evidence).fallback == "full_near"
    assert choose_strategy(evidence, AUTO.changed(strategy="partial")).fallback == ""
    assert choose_strategy(evidence, AUTO.changed(time_budget=300)).fallback == "full_near"


@pytest.mark.parametrize(("prefer", "model"), [("accuracy", "large"), ("balanced", "middle")])
def test_of_several_networks_the_one_with_the_best_accuracy_for_its_time_is_taken(evidence, believed, prefer, model):
    believed(0.85, 0.80, 0.80, 0.80, 0.80, 0.80, 0.80)
    sizes = {"small": (0.885, 10.0), "middle": (0.897, 300.0), "large": (0.90, 600.0)}
    measured = []
    for name, (top1, seconds) in sizes.items():
        choice = choose_strategy(evidence, AUTO)
        chosen = choice.chosen.changed(expected_top1=top1, expected_seconds=seconds)
        choice = choice.changed(candidates=(chosen, *choice.candidates[1:]))
        measured.append((with_probe(evidence, top1 - 0.05, 0.02).changed(model=name), choice))
    found, choice = choose_backbone(measured, prefer)
    assert found.model == choice.backbones[0].model == model
    assert {backbone.model for backbone in choice.backbones} == set(sizes)
    assert choice.reasons[0].endswith("(near)")
    assert choice.reasons[1].startswith(f"{model} is chosen: its linear probe has ")


def test_the_only_network_is_chosen_without_a_reason(evidence):
    choice = choose_strategy(evidence)
    assert choose_backbone([(evidence, choice)], "balanced") == (evidence, choice)
