"""Searches for hyper-parameters, with a tiny network and few images."""

import json
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import optuna
import pytest
import torch
from PIL import Image
from rich.console import Console

import finetune
from finetune.data import load_images
from finetune.decide.plan import Plan
from finetune.decide.schedule import learning_rate_factor
from finetune.errors import RunFolderError, TuningError
from finetune.progress import no_progress
from finetune.runs.folder import RunFolder
from finetune.runs.report import Report
from finetune.tuning.checks import Checks
from finetune.tuning.space import Dimension, plan_of_trial
from finetune.tuning.state import Tuning
from finetune.tuning.trials import Proposer, TrialSet
from finetune.work import Work

RATE = Dimension(name="learning_rate", low=1e-4, high=1e-2)
DECAY = Dimension(name="weight_decay", low=1e-3, high=1e-1)


class StopError(Exception):
    """The program is interrupted."""


class Stopping(Report):
    """A report that interrupts the program at a step of a matching task."""

    def __init__(self, task, step):
        super().__init__(Console(quiet=True))
        self.task, self.at = task, step

    def progress(self, task, done, _total, _history=()):
        if done == self.at and re.fullmatch(self.task, task):
            raise StopError


def make_images(root, counts, shift, noise):
    """Write images of overlapping classes: a weak colour of the class plus a strong random colour of each image.

    Their linear probe is so weak that the training loss of a tiny network falls within ten steps.
    """
    generator = np.random.default_rng(0)
    for split, classes in counts.items():
        for place, (name, count) in enumerate(classes.items()):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                colour = 128 + 40 * generator.standard_normal(3)
                colour[place] += shift
                pixels = colour + noise * generator.standard_normal((32, 32, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / split / name / f"{number}.png")
    return str(root)


@pytest.fixture(scope="module")
def make_recipe(tmp_path_factory, weights):
    """A function that returns a recipe for four trials, with a validation split or with cross-validation."""
    counts = {"train": {"a": 16, "b": 16, "c": 12}, "val": {"a": 8, "b": 8, "c": 8}, "test": {"a": 4, "b": 4, "c": 4}}
    root = tmp_path_factory.mktemp("data")
    given = make_images(root / "given", counts, shift=30, noise=60)
    alone = make_images(root / "alone", {name: counts[name] for name in ("train", "test")}, shift=0, noise=20)

    tiny = {
        "seed": 1,
        "steps": 10,
        "batch_size": 8,
        "tuning__learning_rate": [1e-4, 4e-3],
        "tuning__weight_decay": [1e-3, 0.1],
    }

    def make(is_given=True, search="random", trials=4, **keys):
        return finetune.load_recipe(
            data=given if is_given else alone,
            model="test_efficientnet",
            weights=str(weights),
            image_size=32,
            strategy="full",
            **{**tiny, "tuning__search": search, "tuning__trials": trials, **keys},
        )

    return make


@pytest.fixture(scope="module")
def begun(make_recipe, tmp_path_factory):
    """A function that copies a search that was interrupted in its second and third step and in its first trial.

    All copies share one measurement.
    """
    folders = {}

    def make(folder, **keys):
        name = str(keys)
        if name not in folders:
            own = folders[name] = tmp_path_factory.mktemp("begun") / "run"
            with pytest.raises(StopError):
                finetune.tune(make_recipe(**keys), own, Stopping(r"overfit: training \(validation\)", 7))
            for task in (r"rate-2: training \(validation\)", r"trial 0: training .*"):
                with pytest.raises(StopError):
                    finetune.resume_tuning(own, Stopping(task, 2))
        shutil.copytree(folders[name], folder)
        return folder

    return make


@pytest.fixture(scope="module")
def finished(begun, tmp_path_factory):
    """A search of four trials, its model and its folder."""
    folder = begun(tmp_path_factory.mktemp("runs") / "run")
    return finetune.resume_tuning(folder), RunFolder(folder)


def tune_together(recipe, folder, together):
    """Search in another process: begin together with the other worker, and have a fine trial before that one ends."""
    begin, waited = TrialSet.begin, []

    def begin_together(trial_set):
        trial = begin(trial_set)
        if trial_set.name == "fine" and not waited:
            waited.append(together.wait(timeout=120))
        return trial

    TrialSet.begin = begin_together  # this process does nothing else
    together.wait(timeout=120)
    finetune.tune(recipe, folder)


def tuning_of(folder):
    return Tuning.load(folder.path / "tuning.json")


def outcome(folder):
    """Return the results of a search without its durations."""
    tuning = tuning_of(folder)
    trials = [trial.changed(seconds=0.0) for trial in tuning.trials]
    return trials, tuning.changed(trials=(), seconds=0.0), folder.read_metrics().test, folder.read_plan()


def assert_same_weights(network, other):
    for name, tensor in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)


def test_a_search_takes_all_six_steps_and_saves_a_run_that_predicts(finished):
    model, folder = finished
    tuning = tuning_of(folder)
    assert [(finding.step, finding.holds) for finding in tuning.findings] == [(step, True) for step in range(1, 7)]
    assert folder.read_model().plan == model.plan
    assert folder.read_metrics().test == model.test


def test_every_trial_trained_with_its_own_parameters(finished, make_recipe):
    _, folder = finished
    decisions = folder.read_decisions()
    trials = tuning_of(folder).trials
    assert [trial.number for trial in trials] == [0, 1, 2]  # one of the two coarse trials continued; 2 is a fine one
    assert len({tuple(trial.parameters.values()) for trial in trials}) == len(trials)
    for trial in trials:
        plan = Plan.load(folder.trial(trial.number) / "plan.json")
        assert plan == plan_of_trial(make_recipe(), decisions.evidence, decisions.choice, trial.parameters)
        rows = [json.loads(line) for line in (folder.trial(trial.number) / "history.jsonl").read_text().splitlines()]
        assert len(rows) == (plan.steps if trial.stage == "fine" else round(plan.steps * 2 / 3))
        for row in rows:
            factor = learning_rate_factor(row["step"] - 1, plan.steps, plan.warmup_steps)
            assert row["learning_rate"] == trial.parameters["learning_rate"] * factor


def test_the_winner_has_the_lowest_held_out_loss_and_is_not_trained_again(finished):
    model, folder = finished
    tuning = tuning_of(folder)
    fine = [trial for trial in tuning.trials if trial.stage == "fine"]
    winner = min(fine, key=lambda trial: trial.losses[-1])
    assert tuning.winner == winner.number
    assert model.plan == Plan.load(folder.trial(winner.number) / "plan.json")
    assert model.validation.log_loss == pytest.approx(winner.losses[-1], abs=1e-4)
    searched = sum((trial.stage == "fine") * 10 + (trial.stage == "coarse") * 7 for trial in tuning.trials)
    assert folder.read_metrics().work.backward_images == 8 * (searched + model.plan.refit_steps)


def test_the_winner_is_the_model_that_its_plan_trains_alone(finished):
    model, folder = finished
    alone = finetune.train(folder.read_plan(), load_images(model.plan.data))
    assert_same_weights(alone.network, model.network)


def test_the_saved_recipe_of_a_search_plans_the_winner(finished):
    _, folder = finished
    decisions = folder.read_decisions()
    assert decisions.recipe.training.learning_rate == decisions.plan.head_learning_rate
    assert finetune.make_plan(decisions.recipe, decisions.evidence, decisions.choice) == decisions.plan


def test_no_checkpoint_is_left(finished):
    assert not list(finished[1].path.rglob("*.pt"))


@pytest.fixture
def checks(begun, tmp_path):
    """The first three steps of the search that was interrupted, on their own."""
    decisions = RunFolder(begun(tmp_path / "run")).read_decisions()
    return Checks(
        evidence=decisions.evidence,
        splits=load_images(decisions.plan.data),
        plan_with_rate=lambda rate: plan_of_trial(
            decisions.recipe, decisions.evidence, decisions.choice, {} if rate is None else {"learning_rate": rate}
        ),
        folder=tmp_path / "checks",
        progress=no_progress,
    )


def test_the_first_steps_say_the_same_after_interruptions(checks, finished):
    tuning = tuning_of(finished[1])
    finding, left = checks.rates(tuning.asked[0])
    assert tuning.findings[:3] == (checks.start(), checks.overfit(), finding)
    assert tuning.space == (left, tuning.asked[1])


def test_rates_that_change_nothing_are_found_out(checks):
    finding, _ = checks.rates(Dimension(name="learning_rate", low=1e-8, high=1e-7))
    assert not finding.holds


@pytest.mark.slow
def test_a_search_that_is_interrupted_again_and_again_ends_as_one_that_is_not(begun, tmp_path):
    folders = [begun(tmp_path / name, search="tpe") for name in ("whole", "parts")]
    whole = finetune.resume_tuning(folders[0])
    stops = (
        (r"trial 1: training \(validation\)", 3),
        (r"trial \d: training \(validation\)", 9),  # only fine trials take this many steps
        (r"trial 2: training \(validation\)", 5),
    )
    for stop in stops:
        with pytest.raises(StopError):
            finetune.resume_tuning(folders[1], Stopping(*stop))
    resumed = finetune.resume_tuning(folders[1])
    assert outcome(RunFolder(folders[0])) == outcome(RunFolder(folders[1]))
    assert_same_weights(whole.network, resumed.network)


def test_a_search_whose_changed_images_are_accepted_begins_anew(begun, tmp_path):
    folder = begun(tmp_path / "run")
    first = json.loads((folder / "plan.json").read_text())["data"]
    data = shutil.copytree(first, tmp_path / "images")
    for name in ("plan.json", "recipe.yaml"):
        (folder / name).write_text((folder / name).read_text().replace(first, str(data)))
    (data / "train" / "a" / "0.png").unlink()
    with pytest.raises(RunFolderError, match=r"1 removed \(train/a/0.png\); restore the data, accept the changes with"):
        finetune.resume_tuning(folder)
    with pytest.raises(StopError):
        finetune.resume_tuning(folder, Stopping(r"overfit: training \(validation\)", 2), accept_changes=True)
    assert json.loads((folder / "tuning.json").read_text())["findings"][1:] == []
    assert json.loads((folder / "data.json").read_text())["accepted"] == ["1 removed (train/a/0.png)"]


def test_an_interrupted_refit_of_the_winner_resumes_to_the_same_result(begun, finished, tmp_path):
    model, folder = finished
    again = begun(tmp_path / "run")
    with pytest.raises(StopError):
        finetune.resume_tuning(again, Stopping(r"trial \d: training \(refit\)", 1))
    assert_same_weights(finetune.resume_tuning(again).network, model.network)
    assert outcome(RunFolder(again)) == outcome(folder)


@pytest.mark.slow
def test_two_workers_share_the_trials_and_each_saves_its_best(make_recipe, tmp_path):
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    recipe = make_recipe(training__learning_rate=1e-3, tuning__learning_rate=None, tuning__storage=storage)
    first, second = tmp_path / "one" / "flowers", tmp_path / "two" / "flowers"
    with pytest.raises(StopError):
        finetune.tune(recipe, first, Stopping(r"trial \d: training \(validation\)", 9))
    finetune.tune(recipe, second)
    finetune.resume_tuning(first)
    own = [{path.name for path in (folder / "trials").iterdir()} for folder in (first, second)]
    assert own == [{"0", "1"}, {"2"}]
    study = optuna.load_study(storage=storage, study_name="flowers-fine")
    assert [trial.user_attrs["worker"].rpartition(":")[2] for trial in study.trials] == [str(first), str(second)]
    assert tuning_of(RunFolder(second)).winner == 2
    assert all(RunFolder(folder).is_finished() for folder in (first, second))


@pytest.mark.slow
def test_two_workers_at_the_same_time_share_the_trials(make_recipe, tmp_path):
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    recipe = make_recipe(training__learning_rate=1e-3, tuning__learning_rate=None, tuning__storage=storage, trials=6)
    folders = [tmp_path / name / "flowers" for name in ("one", "two")]
    spawn = get_context("spawn")
    with spawn.Manager() as manager, ProcessPoolExecutor(2, mp_context=spawn) as workers:
        together = manager.Barrier(2)
        for ended in [workers.submit(tune_together, recipe, folder, together) for folder in folders]:
            ended.result()
    first, second = ({int(path.name) for path in (folder / "trials").iterdir()} for folder in folders)
    # Both workers may begin the last trial at the same time, so that there is one too many.
    assert sorted(first | second) in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5])
    # One of the four coarse trials continues as a fine one, with either worker; no other trial is in both folders.
    continued = optuna.load_study(study_name="flowers-fine", storage=storage).trials[0].user_attrs["number"]
    assert first & second <= {continued}
    assert all(RunFolder(folder).is_finished() for folder in folders)


@pytest.mark.parametrize("url", ["nonsense", "nosuch://host/name", "sqlite:////nowhere/at/all.db"])
def test_a_storage_that_cannot_be_used_is_reported(make_recipe, tmp_path, url):
    with pytest.raises(TuningError, match=r"the storage cannot be used: .*; give a database URL"):
        finetune.tune(make_recipe(tuning__storage=url), tmp_path / "run")


@pytest.mark.slow
def test_a_time_budget_ends_a_cross_validated_search_early_with_a_winner(make_recipe, tmp_path):
    fixed = {"training__learning_rate": 1e-3, "tuning__learning_rate": None}
    model = finetune.tune(make_recipe(is_given=False, trials=1000, time_budget="20s", **fixed), tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    assert len(tuning_of(folder).trials) < 1000
    assert model.validation.num_images == 44
    assert (model.test, folder.read_decisions().recipe.time_budget) == (folder.read_metrics().test, 20.0)


def test_identical_images_end_the_search_at_its_second_step(make_recipe, image_folder, tmp_path):
    folder = image_folder(tmp_path / "images", {"a": 12, "b": 12})
    first = next(iter(sorted(folder.rglob("*.png")))).read_bytes()
    for number, path in enumerate([*folder.rglob("*.png"), *folder.rglob("*.jpg")]):
        path.unlink()
        # Bytes after the end of the picture make files that are not copies of each other.
        path.with_suffix(".png").write_bytes(first + bytes([number]))
    with pytest.raises(TuningError, match=r"step 2 of 6: 10 of 20 .* for wrong labels and copies under two labels"):
        finetune.tune(make_recipe().changed(data=str(folder)), tmp_path / "run")


@pytest.mark.parametrize(("strategy", "holds"), [("full", False), ("scratch", True)])
def test_the_first_step_expects_the_loss_of_the_probe_or_of_equal_probabilities(
    evidence, small_plan, weights, image_folder, tmp_path, strategy, holds
):
    images = load_images(str(image_folder(tmp_path / "images", {"a": 12, "b": 12, "c": 12})))
    plan = small_plan(strategy=strategy, weights="random" if strategy == "scratch" else str(weights))
    known = evidence.changed(num_classes=3, probe=evidence.probe.changed(log_loss=5.0))
    checks = Checks(
        evidence=known, splits=images, plan_with_rate=lambda _: plan, folder=tmp_path / "run", progress=no_progress
    )
    assert checks.start().holds == holds


def test_train_and_tune_do_not_resume_each_others_folders(make_recipe, begun, tmp_path):
    finetune.plan_only(make_recipe(), tmp_path / "planned")
    with pytest.raises(RunFolderError, match="holds no search for hyper-parameters; resume it with: finetune train"):
        finetune.resume_tuning(tmp_path / "planned")
    with pytest.raises(RunFolderError, match="holds a plan, which a search does not use"):
        finetune.tune(make_recipe(), tmp_path / "planned")
    with pytest.raises(RunFolderError, match="continue it: finetune tune --resume"):
        finetune.resume(begun(tmp_path / "tuned"))


def make_trial_set(search="random", count=8, storage=None, about="a search", **rest):
    proposer = Proposer(search=search, space=(RATE, DECAY), count=count, seed=0, **rest)
    return TrialSet("fine", storage or optuna.storages.InMemoryStorage(), "run", about, proposer, (0, 1), "here", False)


def tell(trial_set, trial, *losses):
    """Report a trial's losses at the rungs and its end, unless it is stopped early; return whether it was."""
    for rung, loss in enumerate(losses[:-1], start=1):
        if trial_set.should_stop(trial, rung, loss):
            trial_set.end(trial, None, 0.5, 1.0, Work())
            return True
    trial_set.end(trial, losses[-1], 0.5, 1.0, Work())
    return False


def test_a_trial_above_the_median_after_two_thirds_is_stopped_once_three_trials_have_finished():
    trial_set = make_trial_set()
    stopped = [tell(trial_set, trial_set.begin(), 1.0 + loss, loss, loss) for loss in (0.9, 0.5, 0.7, 0.8, 0.6)]
    assert stopped == [False, False, False, True, False]
    assert [(trial.state, len(trial.losses)) for trial in trial_set.trials()][3:] == [("pruned", 2), ("finished", 3)]


def test_a_trial_above_the_median_after_a_third_continues():
    trial_set = make_trial_set()
    for _ in range(3):
        tell(trial_set, trial_set.begin(), 0.5, 0.5, 0.5)
    assert not trial_set.should_stop(trial_set.begin(), 1, 0.9)


def test_an_interrupted_trial_is_found_again_with_its_parameters_and_its_rungs():
    trial_set = make_trial_set()
    trial = trial_set.begin()
    parameters = trial_set.parameters(trial)
    trial_set.should_stop(trial, 1, 0.5)
    again = trial_set.interrupted()
    assert (trial_set.number(again), trial_set.parameters(again)) == (0, parameters)
    assert not tell(trial_set, again, 0.5, 0.4, 0.3)
    assert trial_set.trials()[0].losses == (0.5, 0.4, 0.3)
    assert trial_set.interrupted() is None


def test_a_trial_that_was_killed_before_it_had_parameters_gets_the_same_ones_later():
    whole, killed = make_trial_set("tpe"), make_trial_set("tpe")
    for _ in range(7):
        trial = whole.begin()
        tell(whole, trial, 1e3 * whole.parameters(trial)["learning_rate"])
        killed._study.ask()  # the trial exists, but has no worker yet
        trial = killed.interrupted()
        tell(killed, trial, 1e3 * killed.parameters(trial)["learning_rate"])
    assert [trial.parameters for trial in killed.trials()] == [trial.parameters for trial in whole.trials()]


def test_another_search_of_the_same_name_is_refused():
    storage = optuna.storages.InMemoryStorage()
    make_trial_set(storage=storage)
    make_trial_set(storage=storage)
    with pytest.raises(TuningError, match=r"another search named 'run' .*; give the run folder another name"):
        make_trial_set(storage=storage, about="another")


def test_no_more_trials_begin_than_asked_for():
    trial_set = make_trial_set(count=2)
    assert trial_set.begin() is not None
    assert trial_set.begin() is not None
    assert trial_set.begin() is None


def test_a_trial_set_with_a_first_trial_begins_with_it_and_then_searches():
    first = {"learning_rate": 5e-3, "weight_decay": 2e-3}
    trial_set = make_trial_set("grid", count=5, first=first)
    tried = [trial_set.parameters(trial_set.begin()) for _ in range(5)]
    assert tried[0] == first
    assert len({tuple(point.values()) for point in tried}) == 5
    assert trial_set.begin() is None


def test_the_parzen_estimator_learns_where_the_loss_is_low():
    trial_set = make_trial_set("tpe", count=30)
    for _ in range(30):
        trial = trial_set.begin()
        rate = trial_set.parameters(trial)["learning_rate"]
        tell(trial_set, trial, abs(np.log10(rate) + 3.5))
    rates = np.log10([trial.parameters["learning_rate"] for trial in trial_set.trials()])
    assert np.abs(rates[15:] + 3.5).mean() < 0.5 * np.abs(rates[:5] + 3.5).mean()
