"""The whole chain with a tiny network and few images."""

import io
import json
import os
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import slow
from rich.console import Console

import finetune
from finetune.data import labels_of
from finetune.decide import candidates, contest, decision
from finetune.decide.belief import DRAWS, Belief
from finetune.decide.planned_run import list_members
from finetune.errors import RecipeError, RunFolderError
from finetune.runs import pipeline
from finetune.runs.folder import RunFolder
from finetune.runs.report import Report
from finetune.training import evaluation
from finetune.work import Work

pytestmark = pytest.mark.usefixtures("never_worse")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    from conftest import make_image_folder

    tree = {"train": {"a": 16, "b": 16, "c": 12}, "test": {"a": 5, "b": 6, "c": 4}}
    return make_image_folder(tmp_path_factory.mktemp("data") / "images", splits=tree)


@pytest.fixture(scope="module")
def recipe(data, weights):
    return finetune.Recipe(
        data=str(data), model="test_efficientnet", weights=str(weights), image_size=32, steps=8, batch_size=8
    )


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """A run, its folder, and what it printed."""
    printed = io.StringIO()
    folder = tmp_path_factory.mktemp("runs") / "run"
    model = finetune.run(recipe, folder, Report(Console(file=printed, width=200), verbose=True))
    return model, folder, printed.getvalue()


def test_a_run_folder_holds_all_that_is_promised(finished):
    assert {path.name for path in finished[1].iterdir()} == {
        "recipe.yaml", "evidence.json", "choice.json", "plan.json", "data.json", "splits.csv", "predictions.parquet",
        "state.json", "neighbours.safetensors",
        "report.html", "history.jsonl", "metrics.json", "environment.json", "model.safetensors", "config.json",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["finished", *slow("averaged")])
def test_every_file_of_a_run_follows_the_umask(name, request):
    own = os.umask(0)
    os.umask(own)
    files = [path for path in request.getfixturevalue(name)[1].rglob("*") if path.is_file()]
    assert "model.safetensors" in {path.name for path in files}
    assert {path.name: path.stat().st_mode & 0o777 for path in files} == {path.name: 0o666 & ~own for path in files}


def test_the_evidence_has_the_promised_keys(finished):
    evidence = json.loads((finished[1] / "evidence.json").read_text())
    assert {
        "num_images", "num_classes", "images_per_class", "domain_similarity", "similarity_parts", "probe_accuracy",
        "probe_accuracy_error", "forward_images_per_second", "train_images_per_second",
    } <= evidence.keys()  # fmt: skip
    assert (evidence["num_images"], evidence["num_classes"], evidence["images_per_class"]) == (44, 3, 14.7)


def test_the_choice_lists_every_strategy_the_chosen_one_first(finished):
    choice = json.loads((finished[1] / "choice.json").read_text())
    assert choice["candidates"][0]["strategy"] == choice["strategy"]
    assert {candidate["strategy"] for candidate in choice["candidates"]} == {
        "linear_probe", "norm_tuning", "partial", "full", "scratch",
    }  # fmt: skip
    keys = {"strategy", "expected_top1", "expected_top1_error", "expected_seconds", "basis"}
    assert all(keys <= candidate.keys() for candidate in choice["candidates"])


def test_the_metrics_have_the_promised_keys(finished):
    metrics = json.loads((finished[1] / "metrics.json").read_text())
    assert metrics["seconds"].keys() == {"evidence", "race", "train", "total"}
    assert metrics["work"].keys() == {
        "forward_images", "backward_images", "forward_equivalents", "decoded_images", "decoded_bytes", "cache_hits",
    }  # fmt: skip
    promised = {"top1", "top1_interval", "balanced_accuracy", "log_loss", "calibration_error", "num_images"}
    assert promised <= metrics["validation"].keys()
    assert promised <= metrics["test"].keys()
    assert (metrics["validation"]["num_images"], metrics["test"]["num_images"]) == (44, 15)


def test_the_saved_recipe_names_the_network_and_the_size(recipe, finished):
    saved = RunFolder(finished[1]).read_decisions().recipe
    assert saved == recipe.changed(metric="top1")


def test_the_output_ends_with_the_two_next_commands(finished):
    *_, first, second = finished[2].splitlines()
    assert first == f"Next      finetune predict {finished[1]} IMAGES... --output predictions.csv"
    assert second == f"          finetune evaluate {finished[1]} --data LABELLED_IMAGES"


def test_the_report_gives_the_reasons_and_the_test_accuracy(finished):
    model, folder, printed = finished
    for reason in RunFolder(folder).read_decisions().choice.reasons:
        assert reason in printed
    assert f"{100 * model.test.top1:.1f} % of {model.test.num_images} images right" in printed


def test_timm_loads_the_run_folder_and_predicts_the_same(finished):
    model, folder, _ = finished
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    inputs = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(inputs), model.network(inputs), rtol=1e-4, atol=1e-5)
    assert network.pretrained_cfg["label_names"] == ["a", "b", "c"]
    assert tuple(network.pretrained_cfg["mean"]) == model.plan.preprocessing.mean


def test_a_saved_model_predicts_what_the_trained_one_predicts(data, finished):
    model, folder, _ = finished
    paths = sorted((data / "test").rglob("*.*"))
    # In float32, for bfloat16 rounds differently where the same weights have another layout in memory.
    plan = model.plan.changed(forward=model.plan.forward.changed(precision="float32"))
    trained, saved = (replace(each, plan=plan) for each in (model, RunFolder(folder).read_model()))
    np.testing.assert_allclose(saved.predict_proba(paths), trained.predict_proba(paths), atol=1e-6)


def test_predictions_scores_and_metrics_of_the_same_images_agree(data, finished):
    model, _, _ = finished
    paths = sorted((data / "test").rglob("*.*"))
    labels = np.asarray([model.class_names.index(path.parent.name) for path in paths])
    again = finetune.score(model.predict_proba(paths), labels, list(model.class_names))
    assert again.top1 == model.test.top1
    assert again.log_loss == pytest.approx(model.test.log_loss, abs=1e-6)


def test_the_links_of_the_chain_give_the_model_of_the_whole(recipe, finished):
    model, folder, _ = finished
    splits = finetune.load_images(recipe.data)
    plan = RunFolder(folder).read_plan()
    alone = finetune.train(plan, splits)
    for name, tensor in model.network.state_dict().items():
        torch.testing.assert_close(alone.network.state_dict()[name], tensor, rtol=0, atol=0)


def test_a_saved_plan_trains_the_same_model_again(finished, tmp_path):
    model, folder, _ = finished
    again = finetune.run_plan(folder / "plan.json", tmp_path / "again")
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], tensor)


def test_the_written_splits_are_a_table_that_makes_the_same_splits(data, finished):
    splits = finetune.load_images(str(data))
    from_table = finetune.load_images(str(finished[1] / "splits.csv"))
    for split in ("train", "test"):
        table, folder = getattr(from_table, split), getattr(splits, split)
        assert [row["path"] for row in table["image"]] == [row["path"] for row in folder["image"]]
        assert np.array_equal(labels_of(table), labels_of(folder))


def test_the_written_splits_of_a_relative_path_are_a_table_too(data, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(data.parent)
    finetune.run(recipe.changed(data=data.name, strategy="linear_probe", steps=None), tmp_path / "run")
    assert len(finetune.load_images(str(tmp_path / "run" / "splits.csv")).train) == 44


def test_a_time_budget_that_is_too_short_is_refused_before_the_training_with_one_that_is_enough(recipe, tmp_path):
    with pytest.raises(RecipeError, match=r"too short: .* have passed, .*; give --time-budget \d+s or more"):
        finetune.run(recipe.changed(time_budget=0.01), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("ensemble", [None, "snapshots:3"])
def test_a_time_budget_is_that_of_the_whole_command(recipe, tmp_path, ensemble):
    # The command began ten seconds ago. With more steps than there is time for, the training takes what it was given;
    # where it is rejected, as on these easy images, its refit and the further cycles are not trained.
    asked = recipe.changed(strategy="full", steps=100_000, time_budget=40.0, ensemble=ensemble)
    start = time.perf_counter() - 10.0
    finetune.run(asked, tmp_path / "run", start=start)
    passed = time.perf_counter() - start
    folder = RunFolder(tmp_path / "run")
    assert passed < 1.15 * 40.0  # a busy machine stalls
    seconds = folder.read_metrics().seconds
    assert seconds.total == pytest.approx(passed, abs=1.0)
    assert seconds.train > 0.6 * folder.read_decisions().plan.time_budget
    assert folder.read_decisions().evidence.seconds_before >= 10.0


def test_the_expected_time_of_the_whole_command_is_printed(finished):
    assert " expected for the whole command: " in finished[2]


def test_a_folder_that_another_run_took_while_this_one_measured_is_not_written_to(recipe, tmp_path, monkeypatch):
    decide = pipeline.decide_all

    def meanwhile(*arguments):
        decided = decide(*arguments)
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "plan.json").write_text("{}")
        (tmp_path / "run" / "history.jsonl").touch()
        return decided

    monkeypatch.setattr(pipeline, "decide_all", meanwhile)
    with pytest.raises(RunFolderError, match="holds an interrupted run, which is not overwritten"):
        finetune.run(recipe.changed(strategy="linear_probe", steps=None), tmp_path / "run")
    assert (tmp_path / "run" / "plan.json").read_text() == "{}"


def test_the_written_splits_say_which_training_held_an_image_out(finished):
    table = pd.read_csv(finished[1] / "splits.csv", keep_default_na=False)
    held = table[table["split"] == "train"]["held_out_by"]
    assert set(held) == {"fold-1", "fold-2", "fold-3"}
    assert set(table[table["split"] == "test"]["held_out_by"]) == {""}


def test_a_plan_is_continued_in_its_own_folder(recipe, tmp_path):
    plan = finetune.plan_only(recipe.changed(strategy="linear_probe", steps=None), tmp_path / "run")
    model = finetune.run(recipe, tmp_path / "run")
    assert model.plan == plan
    assert RunFolder(tmp_path / "run").is_finished()


def test_a_drawn_plan_is_continued_too(recipe, tmp_path):
    asked = recipe.changed(strategy="linear_probe", steps=None)
    printed = io.StringIO()
    finetune.plan_only(asked, tmp_path / "run", Report(Console(file=printed, width=200)), plot=True)
    assert f"plotted in {tmp_path / 'run' / 'schedule.svg'}" in printed.getvalue()
    assert (tmp_path / "run" / "schedule.svg").read_text().startswith("<?xml")
    finetune.run(asked, tmp_path / "run")
    assert RunFolder(tmp_path / "run").is_finished()


def test_a_second_plan_in_a_folder_is_refused(recipe, tmp_path):
    finetune.plan_only(recipe, tmp_path / "run")
    with pytest.raises(RunFolderError, match="holds a plan already; train it with --plan"):
        finetune.plan_only(recipe, tmp_path / "run")


@pytest.mark.slow
def test_a_plan_without_its_folder_is_trained_after_measuring_again(finished, tmp_path):
    (tmp_path / "mine.json").write_text((finished[1] / "plan.json").read_text())
    finetune.run_plan(tmp_path / "mine.json", tmp_path / "run")
    assert RunFolder(tmp_path / "run").read_decisions().evidence.num_images == 44


@pytest.mark.usefixtures("empty_cache")
def test_a_training_finds_what_its_measurement_decoded_and_sent_forward(recipe, tmp_path):
    finetune.run(recipe.changed(strategy="linear_probe", steps=None), tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    assert run.read_decisions().evidence.work.decoded_images == 44
    assert run.read_metrics().work == Work(cache_hits=44 + 44)


class StopError(Exception):
    """The power failed."""


class StoppingReport(Report):
    """A report that ends the program when a task reaches a step."""

    stop = ("", 0)

    def progress(self, task, done, _total, _history=()):
        if self.stop[0] in task and done == self.stop[1]:
            raise StopError


@pytest.mark.parametrize("stop", [("training (fold-2)", 5), *slow(("training (refit)", 3))])
def test_an_interrupted_run_continues_and_ends_with_the_same_model(recipe, tmp_path, stop):
    plain = recipe.changed(strategy="partial")
    finetune.plan_only(plain, tmp_path / "run")
    whole = finetune.run_plan(tmp_path / "run" / "plan.json", tmp_path / "whole")
    report = StoppingReport(Console(quiet=True))
    report.stop = stop
    with pytest.raises(StopError):
        finetune.run(plain, tmp_path / "run", report)
    with pytest.raises(RunFolderError, match=f"continue it: finetune train --resume {tmp_path / 'run'}"):
        finetune.run(plain, tmp_path / "run")
    resumed = finetune.resume(tmp_path / "run")
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], tensor)
    assert resumed.validation == whole.validation
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_with_a_race_that_an_earlier_version_interrupted_is_refused(finished, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.write_decisions(RunFolder(finished[1]).read_decisions())
    choice = json.loads((folder.path / "choice.json").read_text())
    (folder.path / "choice.json").write_text(json.dumps(choice | {"racing": ["partial", "full_far"]}))
    with pytest.raises(RunFolderError, match=r"has a race between candidates, .*--recipe .*recipe\.yaml"):
        finetune.resume(folder.path)


@pytest.mark.slow
def test_without_an_accelerator_the_default_network_is_the_embedded_one_with_all_its_tensors(data):
    evidence = finetune.measure_evidence(
        finetune.Recipe(data=str(data), image_size=64, limit=12), finetune.load_images(str(data), limit=12)
    )
    assert evidence.model == "tf_efficientnet_lite0"
    assert evidence.weights.startswith("296 of 296 tensors from ")
    assert evidence.similarity_calibrated


def two_equal(_prior, _evidence, names):
    """A belief in two nearly equals that are better than all others."""
    mean = np.array([{"full_far": 0.81, "partial": 0.8}.get(name, 0.5) for name in names])
    return Belief(mean + 0.04 * np.random.default_rng(0).standard_normal((DRAWS, len(names))))


@pytest.fixture
def mean_is_recommended(recommend_place, monkeypatch):
    """Let the last option, the mean, be recommended, and no member be rejected after its few steps."""
    recommend_place(monkeypatch, -1)


@pytest.fixture(scope="module")
def averaged(recipe, recommend_place, tmp_path_factory):
    """A run that averages two candidates, its folder, and what it printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decision, "PROBE_SUFFICES", -1.0)
        patch.setattr(contest, "believe", two_equal)
        patch.setattr(candidates, "expected_seconds", lambda *_: 1.0)  # a member must not take longer than the pick
        recommend_place(patch, -1)
        printed = io.StringIO()
        folder = tmp_path_factory.mktemp("runs") / "averaged"
        model = finetune.run(
            recipe.changed(prefer="accuracy", seed=4), folder, Report(Console(file=printed, width=200), verbose=True)
        )
    return model, folder, printed.getvalue()


def test_where_accuracy_is_preferred_the_mean_of_two_is_saved_and_explained(averaged):
    model, folder, printed = averaged
    choice = RunFolder(folder).read_decisions().choice
    assert len(choice.members) == len(model.members) == 2
    assert model.members[0].plan.strategy == choice.strategy
    assert "either may be the better one" in printed
    options = RunFolder(folder).read_metrics().options
    alone = [option.name.partition(" (")[0] for option in options[:-1]]
    assert alone == [member.plan.strategy for member in model.members]
    assert options[-1].name == "mean of 2"
    assert f"member 2 ({model.members[1].plan.strategy}) alone: validation " in printed


def test_a_rejected_training_leaves_its_learning_curve_and_the_command_to_diagnose_it(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(decision, "PROBE_SUFFICES", -1.0)
    monkeypatch.setattr(contest, "believe", two_equal)
    # Every training counts as worse than its probe.
    monkeypatch.setattr(evaluation, "STANDARD_ERRORS", (-float("inf"), -float("inf")))
    finetune.run(recipe, tmp_path / "run")
    (place,) = (tmp_path / "run" / "rejected").iterdir()
    own, final = RunFolder(place), RunFolder(tmp_path / "run")
    assert own.read_plan() != final.read_plan()
    assert own.read_decisions().choice.chosen.name == place.name
    assert len([row for row in own.read_history() if row["phase"] == "fold-1"]) == own.read_plan().steps
    assert own.read_history() != final.read_history()
    assert f"finetune diagnose {place}" in final.read_metrics().note


def test_an_ensembles_folder_holds_a_run_folder_for_each_member(averaged):
    model, folder, _ = averaged
    assert (folder / "ensemble.json").exists()
    assert not (folder / "model.safetensors").exists()
    for number, member in enumerate(model.members, start=1):
        own = RunFolder(folder / "members" / str(number))
        assert own.read_decisions().plan == member.plan
        assert own.read_metrics().test == member.test
        assert own.read_metrics().validation == member.validation
    assert RunFolder(folder).read_metrics().work == model.work
    assert not (folder / "checkpoints").exists()


def test_each_member_of_an_ensemble_is_diagnosed_by_its_own_plan(averaged):
    _, folder, _ = averaged
    for member in RunFolder(folder).members:
        decisions = member.read_decisions()
        assert member.path.parent == folder / "members"
        found = finetune.diagnose(member.read_history(), decisions.plan, decisions.evidence)
        assert member.read_metrics().verdicts == found


def test_a_saved_ensemble_predicts_what_the_trained_one_predicts(data, averaged):
    model, folder, _ = averaged
    paths = sorted((data / "test").rglob("*.*"))
    saved = RunFolder(folder).read_model()
    np.testing.assert_allclose(saved.predict_proba(paths), model.predict_proba(paths), atol=0.02)
    parts = [member.predict_proba(paths) for member in saved.members]
    np.testing.assert_allclose(saved.combined(parts), saved.predict_proba(paths), atol=1e-6)
    labels = np.asarray([model.class_names.index(path.parent.name) for path in paths])
    assert finetune.score(model.predict_proba(paths), labels, list(model.class_names)).top1 == model.test.top1


@pytest.mark.usefixtures("mean_is_recommended")
def test_an_interrupted_ensemble_continues_and_ends_with_the_same_models(averaged, tmp_path):
    decisions = RunFolder(averaged[1]).read_decisions()
    for name in ("whole", "run"):
        RunFolder(tmp_path / name).write_decisions(decisions)
    report = StoppingReport(Console(quiet=True))
    report.stop = (f"{decisions.choice.members[1]}: training (fold-2)", 3)
    with pytest.raises(StopError):
        finetune.resume(tmp_path / "run", report)
    whole, resumed = (finetune.resume(tmp_path / name) for name in ("whole", "run"))
    assert whole.temperature == resumed.temperature
    for one, other in zip(whole.members, resumed.members, strict=True):
        for name, tensor in one.network.state_dict().items():
            assert torch.equal(other.network.state_dict()[name], tensor)


@pytest.mark.usefixtures("mean_is_recommended")
@pytest.mark.parametrize(
    ("ensemble", "changes"),
    [
        pytest.param("seeds:2", {"strategy": "full"}, marks=pytest.mark.slow),
        pytest.param("snapshots:2", {"strategy": "full"}, marks=pytest.mark.slow),
        ("backbones", {"strategy": "scratch", "model": "test_efficientnet,test_resnet", "weights": None}),
    ],
)
def test_an_ensemble_that_was_asked_for_is_compared_and_predicts_from_its_folder(
    recipe, data, tmp_path, ensemble, changes
):
    printed = io.StringIO()
    folder, report = tmp_path / "run", Report(Console(file=printed, width=200), verbose=True)
    model = finetune.run(recipe.changed(ensemble=ensemble, **changes), folder, report)
    options = RunFolder(folder).read_metrics().options
    names = [option.name for option in options]
    assert names[-1] == "mean of 2"
    assert len(set(names)) == len(names) >= 3
    assert "Options, evaluated on the held-out images" in printed.getvalue()
    paths = sorted((data / "test").rglob("*.*"))
    saved = RunFolder(folder).read_model()
    assert len(saved.members) == len(model.members) == 2
    np.testing.assert_allclose(saved.predict_proba(paths), model.predict_proba(paths), atol=0.02)
    for number, member in enumerate(model.members, start=1):
        assert RunFolder(folder).members[number - 1].read_decisions().plan == member.plan


@pytest.mark.usefixtures("mean_is_recommended")
@pytest.mark.slow
@pytest.mark.parametrize("ensemble", ["seeds:2", "snapshots:2"])
def test_an_interrupted_ensemble_that_was_asked_for_ends_with_the_same_models(recipe, tmp_path, ensemble):
    asked = recipe.changed(ensemble=ensemble, strategy="full")
    whole = finetune.run(asked, tmp_path / "whole")
    report = StoppingReport(Console(quiet=True))
    decisions = RunFolder(tmp_path / "whole").read_decisions()  # another run might time the machine otherwise
    RunFolder(tmp_path / "run").write_decisions(decisions)
    report.stop = (f"{list_members(decisions, [])[1].name}: training (fold-2)", 2)
    with pytest.raises(StopError):
        finetune.resume(tmp_path / "run", report)
    resumed = finetune.resume(tmp_path / "run")
    assert len(resumed.members) == 2
    for one, other in zip(whole.members, resumed.members, strict=True):
        for name, tensor in one.network.state_dict().items():
            assert torch.equal(other.network.state_dict()[name], tensor)


@pytest.mark.parametrize("place", [2, *slow(0, 3)])
def test_where_one_model_is_recommended_an_ordinary_run_is_saved_with_the_table(
    recipe, data, tmp_path, recommend_place, monkeypatch, place
):
    recommend_place(monkeypatch, place)
    model = finetune.run(recipe.changed(ensemble="seeds:2", strategy="full"), tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    assert not (folder.path / "members").exists()
    assert len(folder.read_metrics().options) >= 3
    paths = sorted((data / "test").rglob("*.*"))
    np.testing.assert_allclose(folder.read_model().predict_proba(paths), model.predict_proba(paths), atol=0.02)
    option = folder.read_metrics().options[place]
    assert folder.read_metrics().validation.log_loss == option.log_loss


@pytest.fixture(scope="module")
def folds(recipe, tmp_path_factory):
    """A run that averages the folds of its cross-validation, and its folder."""
    folder = tmp_path_factory.mktemp("folds") / "run"
    return finetune.run(recipe.changed(strategy="full", ensemble="folds"), folder), folder


def same_weights(one, other):
    return all(
        torch.equal(tensor, other.network.state_dict()[name]) for name, tensor in one.network.state_dict().items()
    )


@pytest.mark.slow
def test_folds_average_the_trainings_that_an_ordinary_run_has_anyway(folds):
    model, folder = folds
    plan = RunFolder(folder).read_plan()
    images = finetune.load_images(plan.data)
    alone = finetune.train(plan, images)
    first, *others = model.members
    assert same_weights(alone, first)
    assert len(others) == plan.folds
    assert model.work.backward_images == alone.work.backward_images
    for number, member in enumerate(others, start=1):
        assert (
            RunFolder(folder).members[number].read_decisions().plan
            == member.plan
            == plan.changed(fold=number, refit=False)
        )
        assert same_weights(finetune.train(member.plan, images), member)


def test_an_average_of_folds_is_evaluated_by_each_images_own_fold(folds):
    model, folder = folds
    assert model.validation == model.members[0].validation
    assert sum(member.validation.num_images for member in model.members[1:]) == model.validation.num_images == 44
    right = sum(member.validation.top1 * member.validation.num_images for member in model.members[1:])
    assert right == pytest.approx(44 * model.validation.top1)
    sources = [RunFolder(folder).members[number].read_metrics().validation_source for number in (0, 1)]
    assert sources[0].startswith("3-fold cross-validation")
    assert sources[1] == "the part of the images that fold 1 of 3 holds out"


def test_an_average_of_folds_predicts_the_mean_from_its_folder(folds, data):
    model, folder = folds
    paths = sorted((data / "test").rglob("*.*"))
    mean = np.mean([member.predict_proba(paths) for member in model.members], axis=0)
    np.testing.assert_allclose(model.predict_proba(paths), mean, atol=1e-9)
    np.testing.assert_allclose(RunFolder(folder).read_model().predict_proba(paths), mean, atol=0.02)


def test_an_interrupted_average_of_folds_ends_with_the_same_models(folds, tmp_path):
    RunFolder(tmp_path / "run").write_decisions(RunFolder(folds[1]).read_decisions())
    report = StoppingReport(Console(quiet=True))
    report.stop = ("training (fold-2)", 3)
    with pytest.raises(StopError):
        finetune.resume(tmp_path / "run", report)
    resumed = finetune.resume(tmp_path / "run")
    assert len(resumed.members) == 4
    assert all(map(same_weights, resumed.members, folds[0].members))


def test_folds_without_a_cross_validation_are_refused_with_what_to_do(recipe, image_folder, tmp_path):
    given = image_folder(tmp_path / "images", splits={"train": {"a": 6, "b": 6}, "val": {"a": 2, "b": 2}})
    asked = recipe.changed(data=str(given), ensemble="folds", strategy="full")
    with pytest.raises(
        finetune.RecipeError, match=r"here models are evaluated on the validation split.*; ask for snapshots:3 or"
    ):
        finetune.run(asked, tmp_path / "run")


def test_an_ensemble_of_one_backbone_is_refused_with_what_to_do(recipe, tmp_path):
    with pytest.raises(finetune.RecipeError, match="names test_efficientnet alone; list them: a,b,c"):
        finetune.run(recipe.changed(ensemble="backbones"), tmp_path / "run")


def test_of_several_networks_one_is_chosen_and_the_others_are_listed(recipe, tmp_path):
    printed = io.StringIO()
    asked = recipe.changed(model="test_efficientnet,test_resnet", weights=None, strategy="scratch", steps=2)
    model = finetune.run(asked, tmp_path / "run", Report(Console(file=printed, width=200)))
    decisions = RunFolder(tmp_path / "run").read_decisions()
    assert {backbone.model for backbone in decisions.choice.backbones} == {"test_efficientnet", "test_resnet"}
    assert decisions.recipe.model == decisions.evidence.model == model.plan.model
    assert decisions.choice.backbones[0].model == model.plan.model
    assert f"{model.plan.model} is chosen: its linear probe has " in printed.getvalue()
