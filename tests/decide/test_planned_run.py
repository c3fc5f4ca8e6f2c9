import pytest

from finetune.decide.budget import training_budget
from finetune.decide.choice import choose_strategy
from finetune.decide.plan import CYCLE_SHARE
from finetune.decide.planned_run import budgeted, describe_members, list_members, plan_choice
from finetune.recipe import Recipe


@pytest.fixture
def members(evidence):
    """The function from a recipe's keys to the members that are trained for it."""

    def make(**keys):
        recipe = Recipe(data="x", **{"strategy": "full"} | keys)
        return list_members(plan_choice(recipe, evidence, choose_strategy(evidence, recipe)), [])

    return make


def test_without_an_ensemble_one_is_trained(members):
    assert len(members()) == 1


def test_members_with_other_seeds_differ_in_the_training_seed_alone(members):
    first, *others = members(ensemble="seeds:3", seed=7)
    assert [own.plan.training_seed for own in others] == [8, 9]
    assert all(own.plan.changed(training_seed=7) == first.plan for own in others)


def test_snapshots_differ_in_the_cycle_alone(members):
    first, *others = members(ensemble="snapshots:4")
    assert [own.plan.cycle for own in others] == [1, 2, 3]
    assert all(own.plan.changed(cycle=0) == first.plan for own in others)


def test_snapshots_share_the_time_that_is_left_by_their_steps(members, evidence):
    first, *others = members(ensemble="snapshots:3", time_budget="90s")
    left = training_budget(90.0, evidence, 3)
    assert first.plan.time_budget == pytest.approx(left * 5 / 9)
    assert [own.plan.time_budget for own in others] == pytest.approx([left * 2 / 9] * 2)


@pytest.mark.parametrize("ensemble", ["seeds:3", "snapshots:3"])
def test_every_member_has_a_name_of_its_own(members, ensemble):
    found = members(ensemble=ensemble)
    assert len({own.name for own in found}) == len({own.label for own in found}) == 3


@pytest.mark.parametrize("ensemble", ["seeds:3", "snapshots:2", "folds", "auto"])
def test_linear_probes_do_not_differ_by_their_seed_and_are_not_averaged(members, ensemble):
    (own,) = members(strategy="linear_probe", ensemble=ensemble)
    assert any(reason.endswith(f"nothing for {ensemble} to average") for reason in own.choice.reasons)


def test_auto_says_what_it_averages(members):
    found = members(ensemble="auto")
    assert len(found) > 1
    assert any(
        "are averaged" in reason and reason.endswith("unless one model is better on the held-out images")
        for reason in found[0].choice.reasons
    )


def test_an_ensemble_that_was_asked_for_replaces_averaged_candidates(members):
    for own in members(strategy="auto", prefer="accuracy", ensemble="seeds:2"):
        assert own.choice.members == ()


@pytest.mark.parametrize(
    ("ensemble", "trainings"), [(None, 1), ("seeds:4", 4), ("snapshots:4", 1 + 3 * CYCLE_SHARE), ("backbones", 3)]
)
def test_members_share_the_time_that_is_left(evidence, ensemble, trainings):
    evidence = evidence.changed(num_test=0)
    recipe = Recipe(data="x", ensemble=ensemble, time_budget=600)
    left = training_budget(600.0, evidence)
    assert budgeted(recipe, evidence).time_budget == pytest.approx(left / trainings)
    assert budgeted(recipe, evidence, 0.25).time_budget == pytest.approx(0.25 * left / trainings)
    assert budgeted(Recipe(data="x", ensemble=ensemble), evidence).time_budget is None


def test_the_expected_time_of_the_command_is_that_of_all_members_with_what_was_before_and_what_follows(members):
    alone, three = (describe_members(members(**keys)) for keys in ({}, {"ensemble": "seeds:3"}))
    assert alone != three
    for sentence in (alone, three):
        assert " expected for the whole command: " in sentence
        assert " are for training, " in sentence
