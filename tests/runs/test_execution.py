import pytest

from finetune.data import load_images
from finetune.decide import planned_run
from finetune.decide.choice import choose_strategy
from finetune.decide.planned_run import PlannedRun, list_members
from finetune.recipe import Recipe
from finetune.runs import execution


@pytest.fixture
def carry_out(evidence, image_folder, small_plan, weights_file, tmp_path, monkeypatch):
    """The function that trains some candidates, of which `partial` and `norm_tuning` do harm, to what ships."""
    splits = load_images(str(image_folder(tmp_path / "more", {"a": 20, "b": 20, "c": 20})))
    path = str(weights_file())

    def planned(recipe, _evidence, choice):
        validation = "cross_validation" if choice.ensemble == "folds" else "held_out"
        plan = small_plan(strategy="full", weights=path, warmup_steps=0, average_decay=0.0, validation=validation)
        rate = 0.5 if choice.chosen.name in {"partial", "norm_tuning"} else 1e-5
        stages = [stage.changed(learning_rate=rate) for stage in plan.stages]
        return plan.changed(head_learning_rate=rate, stages=stages, time_budget=recipe.time_budget or 0.0)

    for module in (execution, planned_run):
        monkeypatch.setattr(module, "make_plan", planned)

    def make(*names, fallback="", ensemble="", time_budget=None, expected=()):
        recipe = Recipe(data="x", time_budget=time_budget)
        choice = choose_strategy(evidence, recipe).led_by(names[0])
        times = {each.name: each.expected_seconds for each in choice.candidates} | dict(expected)
        candidates = [each.changed(expected_seconds=times[each.name]) for each in choice.candidates]
        choice = choice.changed(candidates=candidates)
        members = names if len(names) > 1 else ()
        choice = choice.changed(members=members, ensemble=ensemble, fallback=fallback)
        plan = planned(recipe, evidence, choice)
        leading = PlannedRun(recipe=recipe, evidence=evidence, choice=choice, plan=plan)
        return execution.carry_out(list_members(leading, []), splits, tmp_path / "run")

    return make


def test_where_training_did_harm_the_fallback_is_trained_and_ships(carry_out):
    finished = carry_out("partial", fallback="full_near")
    assert finished.members[0].choice.chosen.name == "full_near"
    assert finished.models[0].note.startswith("partial (3 stages) ended worse than its linear probe: ")
    assert finished.models[0].note.endswith("full (rate 4e-04) is kept instead")
    assert finished.work.backward_images > finished.models[0].work.backward_images
    ((lost, model),) = finished.rejected
    assert (lost.name, len(model.history)) == ("partial", model.plan.steps)
    assert model.history != finished.models[0].history


def test_where_the_fallback_does_harm_too_the_probe_ships(carry_out):
    finished = carry_out("partial", fallback="norm_tuning")
    assert finished.models[0].rejected
    assert "the linear probe is kept" in finished.models[0].note


@pytest.mark.parametrize(("factor", "shipped"), [(10, "full_near"), (1e6, "partial")])
def test_a_fallback_is_trained_if_the_budget_that_is_left_suffices_at_the_pace_of_the_rejected_training(
    carry_out, factor, shipped
):
    """Both are expected to take longer than the budget, but the first one takes a second or two."""
    times = {"partial": 5000.0, "full_near": 5000.0 * factor}
    finished = carry_out("partial", fallback="full_near", time_budget=1000.0, expected=times)
    assert finished.members[0].choice.chosen.name == shipped
    assert bool(finished.models[0].rejected) == (shipped == "partial")


@pytest.mark.parametrize("ensemble", ["seeds:2", "snapshots:2"])
def test_where_the_first_of_an_ensemble_did_harm_the_fallbacks_ensemble_is_trained(carry_out, ensemble):
    finished = carry_out("partial", fallback="full_near", ensemble=ensemble)
    names = [option.name for option in finished.options]
    assert names[0] == "full (rate 4e-04)"
    assert names[-1] == "mean of 2"
    assert finished.members[0].choice.chosen.name == "full_near"
    assert finished.models[0].note.startswith("partial (3 stages) ended worse than its linear probe: ")


def test_where_the_training_that_folds_judge_did_harm_the_fallbacks_folds_are_averaged(carry_out):
    finished = carry_out("partial", fallback="full_near", ensemble="folds")
    folds = finished.models[0].plan.folds
    assert [model.plan.fold for model in finished.models] == list(range(folds + 1))
    assert {own.choice.chosen.name for own in finished.members} == {"full_near"}
    assert finished.models[0].note.startswith("partial (3 stages) ended worse than its linear probe: ")
    assert finished.options == ()


def test_what_is_recommended_tells_of_a_member_that_did_harm(carry_out, recommend_place, monkeypatch):
    recommend_place(monkeypatch, 0)
    finished = carry_out("partial", fallback="full_near", ensemble="seeds:2")
    assert len(finished.models) == 1
    assert (finished.members[0].choice.ensemble, finished.members[0].choice.fallback) == ("", "")
    assert finished.models[0].note.startswith("partial (3 stages) ended worse than its linear probe: ")


def test_a_member_that_did_harm_is_left_out_of_the_average(carry_out):
    finished = carry_out("partial", "full_far", fallback="full_near")
    assert (finished.members[0].choice.chosen.name, finished.members[0].choice.members) == ("full_far", ())
    assert len(finished.models) == 1
    assert not finished.models[0].rejected


def test_members_that_did_no_harm_stay_together(carry_out, recommend_place, monkeypatch):
    recommend_place(monkeypatch, -1)
    finished = carry_out("full_far", "full_near", fallback="norm_tuning")
    assert finished.members[0].choice.members == ("full_far", "full_near")
    names = [option.name for option in finished.options if not option.recommended]
    assert names == ["full (rate 8e-04)", "full (rate 4e-04)"]
    assert [model.note for model in finished.models] == ["", ""]
    assert finished.rejected == ()


def test_a_candidate_that_is_recommended_ships_in_the_place_of_the_average(carry_out, recommend_place, monkeypatch):
    recommend_place(monkeypatch, 1)
    finished = carry_out("full_far", "full_near", fallback="norm_tuning")
    assert (finished.members[0].choice.chosen.name, finished.members[0].choice.members) == ("full_near", ())
    assert len(finished.models) == 1
    assert finished.options[-1].name == "mean of 2"


def test_a_choice_without_a_fallback_ships_the_probe_where_training_did_harm(carry_out):
    finished = carry_out("partial")
    assert finished.members[0].choice.chosen.name == "partial"
    assert finished.models[0].rejected
