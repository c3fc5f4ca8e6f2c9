import numpy as np
import pytest

from finetune.data import load_images
from finetune.decide import contest, planned_run
from finetune.decide.belief import Belief
from finetune.decide.choice import choose_strategy
from finetune.decide.planned_run import PlannedRun, list_members
from finetune.errors import DivergenceError
from finetune.recipe import Recipe
from finetune.runs import execution, race
from finetune.runs.execution import begin, finish
from finetune.training import TrainingDivergedError, train
from finetune.training import finish as finish_training

NAMES = ("partial_short", "partial", "full_far")


@pytest.fixture
def splits(image_folder, tmp_path):
    """Three classes of 10, 9 and 11 training images."""
    return load_images(str(image_folder(tmp_path / "images", {"a": 10, "b": 9, "c": 11})))


@pytest.fixture
def run(evidence, splits, small_plan, weights_file, monkeypatch):
    """The function that lets a slow, a usual and a reckless training of one network race from an open belief."""
    rates = {"linear_probe": 1e-3} | dict(zip(NAMES, (1e-7, 2e-3, 3.0), strict=True))
    path = str(weights_file())

    made = {"steps": 6}

    def planned(_recipe, _evidence, choice):
        return small_plan(strategy="full", weights=path, head_learning_rate=rates[choice.chosen.name], **made)

    def believed(names, _evidence):
        return Belief(mean=np.full(len(names), 0.6), covariance=np.eye(len(names)) * 0.3**2)

    monkeypatch.setattr(race, "make_plan", planned)
    monkeypatch.setattr(contest, "believe_all", believed)
    recipe = Recipe(data="x", prefer="accuracy")

    def make(folder, entered=NAMES, **rest):
        made.update(rest.pop("planned", {}))
        choice = choose_strategy(evidence, recipe).changed(racing=entered)
        plan = planned(recipe, evidence, choice)
        return begin([PlannedRun(recipe=recipe, evidence=evidence, choice=choice, plan=plan)], splits, folder, **rest)

    return make


def test_a_race_ends_with_one_and_a_story(run, tmp_path):
    outcome = run(tmp_path)
    assert outcome.members[0].choice.chosen.name in NAMES
    assert outcome.members[0].choice.reasons[1].startswith("race after 33 % of the steps")
    assert "over 6 held-out images" in outcome.members[0].choice.reasons[1]


def test_the_winner_ends_as_if_it_had_trained_alone(run, splits, tmp_path):
    outcome = run(tmp_path)
    state = outcome.winner
    alone, (_, raced) = train(state.plan, splits), finish_training(state)
    assert raced.validation == alone.validation
    for name, tensor in alone.network.state_dict().items():
        assert tensor.equal(raced.network.state_dict()[name])


def test_what_diverged_into_nonsense_loses(run, tmp_path):
    assert run(tmp_path).members[0].choice.chosen.name != "full_far"


def test_who_lost_took_no_more_steps_than_to_the_last_rung(run, tmp_path):
    outcome = run(tmp_path)
    plan = outcome.winner.plan
    most = 2 * (plan.steps * 2 // 3) * plan.batch_size
    assert 0 < outcome.work.backward_images <= most
    assert outcome.seconds > 0


@pytest.mark.slow
def test_a_race_and_its_winner_together_keep_the_time_budget(run, tmp_path):
    outcome = run(tmp_path, planned={"steps": 3_000, "time_budget": 8.0})
    assert (
        outcome.seconds + finish_training(outcome.winner)[1].seconds <= 1.5 * 8.0
    )  # networks are made, and a busy machine stalls


def test_what_is_no_number_any_more_loses_and_the_others_race_on(run, tmp_path, monkeypatch):
    own = race.evaluate_at

    def diverging(state, share):
        if state.plan.head_learning_rate == 2e-3:
            raise TrainingDivergedError(DivergenceError("the loss is not a finite number at step 2"), state)
        return own(state, share)

    monkeypatch.setattr(race, "evaluate_at", diverging)
    outcome = run(tmp_path)
    assert outcome.members[0].choice.chosen.name != "partial"
    assert outcome.members[0].choice.reasons[1].startswith("race after 33 % of the steps")


def test_an_interrupted_race_goes_on_to_the_same_end(run, tmp_path):
    expected = run(tmp_path / "whole")
    told = []

    def interrupt(task, done, _total):
        told.append((task, done))
        if task.startswith("partial: training") and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "again", progress=interrupt)
    before = len(told)
    outcome = run(tmp_path / "again", progress=lambda *row: told.append(row[:2]))
    assert (outcome.members[0].choice, outcome.work) == (expected.members[0].choice, expected.work)
    assert ("partial_short: training (validation)", 1) not in told[before:]


def test_the_linear_probe_races_without_being_trained(run, tmp_path):
    outcome = run(tmp_path, entered=("linear_probe", "partial_short", "full_far"))
    assert outcome.members[0].choice.reasons[1].count("%") >= 3
    assert "linear_probe" not in outcome.members[0].choice.reasons[1].partition(";")[0]
    assert not (tmp_path / "linear_probe").exists() or outcome.members[0].choice.chosen.name == "linear_probe"


@pytest.fixture
def carry_out(evidence, image_folder, small_plan, weights_file, tmp_path, monkeypatch):
    """The function that trains some candidates, of which `partial` and `norm_tuning` do harm, to what ships."""
    splits = load_images(str(image_folder(tmp_path / "more", {"a": 20, "b": 20, "c": 20})))
    path = str(weights_file())

    def planned(_recipe, _evidence, choice):
        validation = "cross_validation" if choice.ensemble == "folds" else "held_out"
        plan = small_plan(strategy="full", weights=path, warmup_steps=0, average_decay=0.0, validation=validation)
        if choice.chosen.name in {"partial", "norm_tuning"}:
            stages = [stage.changed(learning_rate=0.5) for stage in plan.stages]
            return plan.changed(head_learning_rate=0.5, stages=stages)
        return plan

    for module in (execution, planned_run):
        monkeypatch.setattr(module, "make_plan", planned)
    recipe = Recipe(data="x")

    def make(*names, fallback="", ensemble=""):
        choice = choose_strategy(evidence, recipe).led_by(names[0])
        members = names if len(names) > 1 else ()
        choice = choice.changed(racing=(), members=members, ensemble=ensemble, fallback=fallback)
        plan = planned(recipe, evidence, choice)
        leading = PlannedRun(recipe=recipe, evidence=evidence, choice=choice, plan=plan)
        begun = begin(list_members(leading, []), splits, tmp_path / "run")
        return finish(begun, splits, tmp_path / "run")

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


def test_members_that_did_no_harm_stay_together(carry_out):
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
