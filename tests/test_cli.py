import json
import os
import platform
import re
import subprocess
import sys
import time
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import yaml
from PIL import Image

import finetune
from finetune.cache import list_entries, write_value
from finetune.cli import GENERAL_OPTIONS, main
from finetune.predict.embedding import embed_files, pretrained_network
from finetune.predict.files import rows_of_files
from finetune.predict.labelling import label_files
from finetune.runs.folder import RunFolder
from finetune.training import Checkpoints
from tests.predict.damage import damaged_png

ROOT = Path(__file__).parent.parent
NETWORK = ("--model", "test_efficientnet", "--image-size", "32")


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    return tmp_path


@pytest.fixture
def command(capsys):
    """Run the command line here; return its exit status, what it printed, and what it said on stderr."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return run


@pytest.fixture
def quick(weights_file):
    """Options of a training of seconds."""
    return (*NETWORK, "--set", f"weights={weights_file()}", "--strategy", "linear_probe")


def mistake(result):
    """Return the one sentence of a mistake of the person."""
    status, _, said = result
    assert status == 2
    assert said.count("\n") == 1
    assert said.startswith("error: ")
    return said.removeprefix("error: ").rstrip()


def test_a_missing_folder_is_named(command):
    assert mistake(command("--data", "nowhere")).startswith("there is no folder or file nowhere; give a folder")


def test_an_empty_folder_says_what_is_expected(command, tmp_path):
    (tmp_path / "empty").mkdir()
    assert mistake(command("--data", "empty")) == "empty is empty; expected one subfolder of images for each class"


def test_one_class_is_too_few(command, image_folder, tmp_path):
    image_folder(tmp_path / "images", {"cat": 4})
    assert "there is only one class, 'cat'" in mistake(command("--data", "images"))


def test_a_class_with_one_image_is_named(command, image_folder, tmp_path):
    image_folder(tmp_path / "images", {"cat": 4, "dog": 1})
    assert "too few training images of 'dog'" in mistake(command("--data", "images"))


def test_files_that_can_all_not_be_read_are_counted_with_the_first_reason(command, image_folder, tmp_path):
    for path in image_folder(tmp_path / "images").rglob("*.*"):
        path.write_bytes(b"no image")
    said = mistake(command("--data", "images"))
    assert said.startswith("none of the 12 files of images can be read as an image; the first is images/a/000.jpg: ")


def test_a_class_that_only_the_test_split_has_is_refused(command, image_folder, tmp_path):
    image_folder(tmp_path / "images", splits={"train": {"a": 3, "b": 3}, "test": {"a": 2, "c": 2}})
    assert "the test split has classes without any training image: 'c'" in mistake(command("--data", "images"))


def test_a_missing_label_column_names_the_columns_there_are(command, tmp_path):
    pd.DataFrame({"path": ["a.png"], "kind": ["x"]}).to_csv(tmp_path / "table.csv", index=False)
    said = mistake(command("--data", "table.csv"))
    assert said == ("table.csv has no label column; the columns are path, kind: name it with --set columns.label=NAME")


def test_an_image_in_two_rows_is_refused_with_the_way_to_give_it_several_labels(command, tmp_path):
    pd.DataFrame({"path": ["a.png"] * 2, "label": ["x", "y"]}).to_csv(tmp_path / "table.csv", index=False)
    assert mistake(command("--data", "table.csv")).endswith("with --set 'columns.delimiter=\";\"'")


def test_an_unknown_model_gets_the_nearest_names_before_images_are_read(command, image_folder, tmp_path):
    image_folder(tmp_path / "images")
    said = mistake(command("--data", "images", "--model", "resnet5"))
    assert said.startswith("timm has no model 'resnet5'; did you mean 'resnet")


def test_weights_that_are_not_to_be_had_offline_say_what_to_do(command, image_folder, tmp_path):
    image_folder(tmp_path / "images")
    said = mistake(command("--data", "images", "--model", "resnet18"))
    assert said.startswith("the weights of 'resnet18' cannot be found: ")
    assert "--set weights=FILE, or use --model tf_efficientnet_lite0" in said


def test_weights_of_another_network_are_refused_with_the_number_of_tensors_that_match(
    command, image_folder, weights_file, tmp_path
):
    image_folder(tmp_path / "images")
    said = mistake(command("--data", "images", "--model", "test_resnet", "--set", f"weights={weights_file()}"))
    assert "does not hold the weights of 'test_resnet': 1 of 92 tensors match" in said


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--batch-size", "0", "batch_size: input should be greater than or equal to 1, but 0 was given"),
        ("--epochs", "-1", "epochs: input should be greater than or equal to 0, but -1.0 was given"),
        ("--time-budget", "soon", "time_budget: expected a duration like 90s, 10m or 1.5h, but 'soon' was given"),
        (
            "--set",
            "training.learning_rate=0",
            "training.learning_rate: input should be greater than 0, but 0 was given",
        ),
        ("--set", "stratgy=full", "unknown key 'stratgy'; did you mean 'strategy'?"),
        ("--set", "trainning.steps=3", "unknown key 'trainning'; did you mean 'training' or 'tuning'?"),
    ],
)
def test_an_impossible_value_or_key_is_named(command, option, value, said):
    assert mistake(command("--data", "images", option, value)) == f"recipe: {said}"


def test_a_limit_that_leaves_a_class_alone_is_refused(command, image_folder, tmp_path):
    image_folder(tmp_path / "images")
    assert "use at least 4" in mistake(command("--data", "images", "--limit", "3"))


def test_no_data_says_how_to_give_it(command):
    assert mistake(command("train")) == "no data was given; say --data PATH, or 'data: PATH' in the recipe"


def test_a_folder_with_something_else_is_not_used(command, image_folder, tmp_path):
    image_folder(tmp_path / "images")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    said = mistake(command("--data", "images", "--output", "out"))
    assert said == "out is neither empty nor a run folder; give a new folder with --output"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_a_finished_run_is_not_overwritten(command, image_folder, quick, tmp_path):
    image_folder(tmp_path / "images")
    assert command("--data", "images", "--output", "out", *quick)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    said = mistake(command("--data", "images", "--output", "out", *quick))
    assert said == "out holds another run, which is not overwritten; give a new folder with --output"
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_resume_without_a_run_says_what_is_expected(command):
    assert mistake(command("--resume", "nowhere")) == (
        "there is no run in nowhere; expected a folder with plan.json, made by 'finetune train'"
    )


def test_resume_of_a_finished_run_is_refused(command, image_folder, quick, tmp_path):
    image_folder(tmp_path / "images")
    command("--data", "images", "--output", "out", *quick)
    assert mistake(command("--resume", "out")) == "the run in out is finished; there is nothing to resume"


def test_a_key_that_is_given_twice_is_refused(command):
    assert mistake(command("--data", "x", "--epochs", "3", "--set", "epochs=5")).startswith("epochs is given twice")


def test_a_key_that_is_a_parameter_of_the_code_is_unknown_like_any_other(command):
    assert "path" in mistake(command("--data", "x", "--set", "path=5"))


@pytest.mark.parametrize("option", ["--plan", "--resume"])
def test_what_was_planned_is_not_planned_again(command, option):
    assert "--plan-only cannot be given with it" in mistake(command("train", option, "run", "--plan-only"))


def test_an_interruption_before_the_choice_says_that_nothing_can_be_resumed(command, monkeypatch):
    def interrupted(*_arguments, **_named):
        raise KeyboardInterrupt

    monkeypatch.setattr("finetune.runs.pipeline.run", interrupted)
    status, _, said = command("--data", "demo:digits")
    assert status == 130
    assert said.strip() == "interrupted before the choice was made, so there is nothing to resume; start again"


@pytest.mark.parametrize("option", ["--plan", "--resume"])
def test_what_was_planned_cannot_be_changed_by_options(command, option):
    assert "so --steps cannot be given with it; edit the plan instead" in mistake(command(option, "x", "--steps", "3"))


def test_a_search_that_continues_takes_no_other_option(command):
    said = mistake(command("tune", "--resume", "x", "--trials", "3"))
    assert said == "--resume continues the search as it was started, so --trials cannot be given with it; leave it out"


def test_a_search_leaves_a_run_that_predicts(command, image_folder, weights_file, tmp_path):
    image_folder(tmp_path / "images", splits={"train": {"a": 8, "b": 8}, "val": {"a": 6, "b": 6}})
    options = ("--strategy", "full", "--steps", "4", "--trials", "2", "--search", "grid")
    fixed = ("--set", f"weights={weights_file()}", "--set", "training.learning_rate=1e-3")
    searched = ("--set", "tuning.weight_decay=[1e-3,1e-1]")
    status, printed, _ = command("tune", "--data", "images", "--output", "out", *NETWORK, *options, *fixed, *searched)
    assert status == 0
    assert [f"Step {number} of 6" in printed for number in range(1, 7)] == [True] * 6
    assert command("predict", "out", "images/train/a/000.jpg")[0] == 0
    assert mistake(command("tune", "--resume", "out")) == "the run in out is finished; there is nothing to resume"


@pytest.mark.slow
def test_a_search_keeps_its_trials_in_the_given_storage(command, image_folder, weights_file, tmp_path):
    image_folder(tmp_path / "images", splits={"train": {"a": 8, "b": 8}, "val": {"a": 6, "b": 6}})
    options = (*NETWORK, "--strategy", "full", "--steps", "4", "--trials", "2", "--storage", "sqlite:///shared.db")
    fixed = ("--set", f"weights={weights_file()}")
    assert command("tune", "--data", "images", "--output", "out", *options, *fixed)[0] == 0
    (coarse, fine) = optuna.get_all_study_summaries("sqlite:///shared.db")
    assert coarse.n_trials + fine.n_trials >= 2
    assert not list((tmp_path / "out").glob("*.db"))


def test_a_prediction_without_a_run_is_refused(command, image_folder, tmp_path):
    image_folder(tmp_path / "images")
    assert "there is no run in nowhere" in mistake(command("predict", "nowhere", "images"))


def test_a_trained_run_predicts_and_scores_and_leaves_other_files_alone(command, image_folder, quick, tmp_path):
    image_folder(tmp_path / "images", {"a": 12, "b": 12})
    status, printed, _ = command("--data", "images", "--output", "out", *quick)
    assert status == 0
    assert "Next      finetune predict out IMAGES... --output predictions.csv\n" in printed

    status, printed, _ = command("predict", "out", "images", "--output", "labels.csv", "--top-k", "2")
    assert (status, printed) == (0, "24 images labelled: labels.csv\n")
    labels = pd.read_csv(tmp_path / "labels.csv")
    assert list(labels.columns) == [
        "path", "label", "probability", "label_2", "probability_2", "p_a", "p_b",
    ]  # fmt: skip
    assert (labels["label"] != labels["label_2"]).all()
    assert np.allclose(labels["probability"] + labels["probability_2"], 1, atol=2e-4)
    assert "labels.csv exists and is not overwritten" in mistake(
        command("predict", "out", "images", "--output", "labels.csv")
    )

    assert command("evaluate", "out", "--data", "images", "--output", "scores.json")[0] == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    right = labels["label"] == [Path(path).parent.name for path in labels["path"]]
    assert scores["num_images"] == 24
    assert scores["top1"] == pytest.approx(right.mean())


def test_a_finished_run_that_is_watched_says_so_and_a_failed_one_ends_with_status_1(
    command, image_folder, quick, tmp_path
):
    image_folder(tmp_path / "images")
    command("--data", "images", "--output", "out", *quick)
    state = json.loads((tmp_path / "out" / "state.json").read_text())
    status, printed, _ = command("watch", "out")
    assert (status, printed.count("\n")) == (0, 1)
    assert re.fullmatch(r"finished: [\d.]+ % of \d+ (validation|test) images right\n", printed)
    (tmp_path / "out" / "state.json").write_text(json.dumps(state | {"status": "failed", "error": "the disk is full"}))
    assert command("watch", "out")[:2] == (1, f"failed in '{state['phase']}': the disk is full\n")
    assert "no run to follow in nowhere" in mistake(command("watch", "nowhere"))


def test_predictions_without_an_output_are_printed_as_a_table(command, image_folder, quick, tmp_path):
    image_folder(tmp_path / "images")
    command("--data", "images", "--output", "out", *quick)
    status, printed, _ = command("predict", "out", "images/a/000.jpg")
    assert status == 0
    assert printed.splitlines()[0] == "path,label,probability,p_a,p_b"
    assert len(printed.splitlines()) == 2
    assert all(figure == f"{float(figure):.4g}" for figure in printed.splitlines()[1].split(",")[2:])


def test_one_line_of_json_is_all_that_is_printed_on_request(command, image_folder, quick, tmp_path):
    image_folder(tmp_path / "images", {"a": 12, "b": 12})
    status, printed, said = command("--data", "images", "--output", "out", "--json", *quick)
    assert (status, said) == (0, "")
    assert printed.count("\n") == 1
    found = json.loads(printed)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (found["run"], found["strategy"]) == ("out", "linear_probe")
    assert found["validation"]["top1"] == metrics["validation"]["top1"]
    status, printed, _ = command("evaluate", "out", "--data", "images", "--json")
    assert json.loads(printed)["num_images"] == 24
    status, printed, _ = command("plan", "--data", "images", "--output", "planned", "--json", *quick)
    assert json.loads(printed)["plan"] == "planned/plan.json"


def test_a_quiet_command_prints_errors_alone(command, image_folder, quick, tmp_path):
    image_folder(tmp_path / "images")
    assert command("--data", "images", "--output", "out", "--quiet", *quick) == (0, "", "")
    assert command("evaluate", "out", "--data", "images", "--quiet") == (0, "", "")
    assert mistake(command("--data", "images", "--output", "out", "--quiet", *quick)).startswith("out holds another")


def test_a_verbose_command_prints_every_candidate(command, image_folder, quick, tmp_path):
    image_folder(tmp_path / "images")
    brief, verbose = (command("plan", "--data", "images", "--output", name, *quick, *own)[1] for name, own in [
        ("brief", ()), ("verbose", ("--verbose",)),
    ])  # fmt: skip
    assert "norm_tuning" not in brief
    assert "norm_tuning" in verbose
    assert len(brief.splitlines()) < 20 < len(verbose.splitlines())


def test_two_kinds_of_output_contradict_each_other(command):
    said = mistake(command("--data", "x", "--quiet", "--json"))
    assert said == "--quiet and --json ask for different output; leave one of them out"


def test_files_that_cannot_be_labelled_are_printed_and_left_out(command, image_folder, quick, tmp_path):
    image_folder(tmp_path / "images")
    command("--data", "images", "--output", "out", *quick)
    (tmp_path / "images" / "a" / "broken.jpg").write_bytes(b"no image")
    status, printed, said = command("predict", "out", "images/a")
    assert status == 3
    assert len(printed.splitlines()) == 7
    assert said.splitlines() == [
        "left out: images/a/broken.jpg cannot be read: not an image of a known format",
        "1 file was left out",
    ]


def test_an_interrupted_prediction_is_continued_to_the_same_bytes(command, image_folder, quick, monkeypatch, tmp_path):
    image_folder(tmp_path / "images")
    command("--data", "images", "--output", "out", *quick)
    (tmp_path / "images" / "a" / "bad.png").write_bytes(damaged_png())
    monkeypatch.setattr("finetune.predict.rows.CHUNK", 5)
    status, printed, said = command("predict", "out", "images/**/*.*", "--output", "whole.csv")
    assert (status, printed) == (3, "12 images labelled: whole.csv\n")
    assert said.startswith("left out: images/a/bad.png cannot be read: ")

    def interrupted(*arguments):
        yield from islice(label_files(*arguments), 2)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("finetune.predict.labelling.label_files", interrupted)
        status, _, stopped = command("predict", "out", "images/**/*.*", "--output", "part.csv")
    assert (status, stopped.splitlines()[-1]) == (130, "interrupted; continue with the same command and --resume")
    assert "other options" in mistake(
        command("predict", "out", "images/**/*.*", "--output", "part.csv", "--top-k", "2", "--resume")
    )
    assert command("predict", "out", "images/**/*.*", "--output", "part.csv", "--resume")[::2] == (3, said)
    assert (tmp_path / "part.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize("source", ["out", "a pretrained network"])
def test_features_are_those_of_the_model_and_continue_after_an_interruption(
    command, image_folder, quick, monkeypatch, tmp_path, source
):
    image_folder(tmp_path / "images")
    if source == "out":
        command("--data", "images", "--output", "out", *quick)
        expected = RunFolder(Path("out")).read_model().embed
    else:
        source, network = "tf_efficientnet_lite0", pretrained_network("tf_efficientnet_lite0")[0]
        expected = partial(rows_of_files, network.features)
    (tmp_path / "images" / "a" / "bad.png").write_bytes(damaged_png())
    monkeypatch.setattr("finetune.predict.rows.CHUNK", 5)

    def interrupted(*arguments):
        yield from islice(embed_files(*arguments), 1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("finetune.predict.embedding.embed_files", interrupted)
        assert command("embed", source, "images", "--output", "f.parquet")[0] == 130
    status, printed, said = command("embed", source, "images", "--output", "f.parquet", "--resume")
    assert (status, printed) == (3, "12 images embedded: f.parquet\n")
    assert said.startswith("left out: images/a/bad.png cannot be read: ")
    table = pd.read_parquet("f.parquet")
    assert (list(table.columns), table["features"][0].dtype) == (["path", "features"], np.float16)
    np.testing.assert_allclose(np.stack(table["features"]), expected(table["path"]), atol=0.02, rtol=0.01)
    assert command("embed", source, "images", "--output", "whole.parquet", "--dtype", "float32")[0] == 3
    assert pd.read_parquet("whole.parquet")["features"][0].dtype == np.float32


def test_a_prediction_of_which_no_file_can_be_read_leaves_nothing(command, image_folder, quick, tmp_path):
    image_folder(tmp_path / "images")
    command("--data", "images", "--output", "out", *quick)
    (tmp_path / "bad.png").write_bytes(damaged_png())
    status, printed, said = command("predict", "out", "bad.png", "--output", "labels.parquet")
    assert (status, printed) == (2, "")
    assert "error: none of the 1 files can be read as an image; the first is bad.png: " in said
    assert list(tmp_path.glob("labels*")) == []


def test_an_evaluation_on_unknown_classes_is_refused(command, image_folder, quick, tmp_path):
    image_folder(tmp_path / "images")
    image_folder(tmp_path / "others", {"a": 2, "zebra": 2})
    command("--data", "images", "--output", "out", *quick)
    assert "classes that the model does not know: 'zebra'" in mistake(command("evaluate", "out", "--data", "others"))


def test_plan_only_stops_with_a_plan_that_train_takes_edited(command, image_folder, quick, tmp_path):
    image_folder(tmp_path / "images")
    status, printed, _ = command("--data", "images", "--output", "out", "--plan-only", *quick)
    assert status == 0
    assert "finetune train --plan out/plan.json" in printed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "recipe.yaml", "evidence.json", "choice.json", "plan.json", "data.json",
    }  # fmt: skip
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    plan["probe_strength"] = 0.5
    (tmp_path / "out" / "plan.json").write_text(json.dumps(plan))
    assert command("train", "--plan", "out/plan.json")[0] == 0
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["probe_strength"] == 0.5
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_the_command_plan_is_train_with_plan_only(command, image_folder, quick, tmp_path):
    image_folder(tmp_path / "images")
    assert command("plan", "--data", "images", "--output", "out", *quick)[0] == 0
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_plans_learning_rates_are_plotted_on_request(command, image_folder, weights_file, tmp_path):
    image_folder(tmp_path / "images")
    options = (*NETWORK, "--strategy", "partial", "--set", f"weights={weights_file()}", "--steps", "5", "--plot")
    status, printed, _ = command("plan", "--data", "images", "--output", "out", *options)
    assert status == 0
    assert "Its learning rates are plotted in out/schedule.svg." in printed
    assert "stroke" in (tmp_path / "out" / "schedule.svg").read_text()


def test_a_time_budget_is_planned_for(command, image_folder, quick, tmp_path):
    image_folder(tmp_path / "images")
    trained = (*quick[:-1], "full", "--time-budget", "10m")
    assert command("plan", "--data", "images", "--output", "out", *trained)[0] == 0
    recipe, evidence, plan = (
        yaml.safe_load((tmp_path / "out" / name).read_text()) for name in ("recipe.yaml", "evidence.json", "plan.json")
    )
    passed = evidence["seconds_before"] + evidence["seconds"]
    assert recipe["time_budget"] == 600.0
    assert 500.0 < plan["time_budget"] < 600.0 - passed


def test_a_time_budget_that_cannot_be_kept_is_refused_with_the_least_that_is_needed(command, image_folder, quick):
    image_folder(Path("images"))
    said = mistake(command("--data", "images", *quick[:-1], "full", "--time-budget", "1s"))
    assert re.search(r"a time budget of 1 s is too short: .* give --time-budget \d+s or more", said)


def test_an_ensemble_lists_its_options_and_predicts(command, image_folder, weights_file, tmp_path):
    image_folder(tmp_path / "images", splits={"train": {"a": 8, "b": 8}, "val": {"a": 6, "b": 6}, "test": {"a": 2}})
    options = (*NETWORK, "--strategy", "full", "--set", f"weights={weights_file()}", "--steps", "3")
    options = (*options, "--set", "training.learning_rate=1e-5")  # so low that neither member is rejected
    options = (*options, "--ensemble", "seeds:2", "--verbose")
    status, printed, _ = command("--data", "images", "--output", "out", *options)
    assert status == 0
    options = json.loads((tmp_path / "out" / "metrics.json").read_text())["options"]
    assert {"mean of 2", "with test-time flips", "blend with the linear probe"} <= {each["name"] for each in options}
    assert sum(each["recommended"] for each in options) == 1
    assert "mean of 2" in printed
    assert command("predict", "out", "images/test/a")[0] == 0


def test_what_was_interrupted_is_resumed_and_predicts(command, image_folder, quick, monkeypatch, tmp_path):
    image_folder(tmp_path / "images")
    finish = Checkpoints.finish

    def finish_and_stop(own, phase, content):
        finish(own, phase, content)
        if phase == "fold-1":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "finish", finish_and_stop)
        status, _, said = command("--data", "images", "--output", "out", *quick)
    assert status == 130
    assert "the last checkpoint is saved; continue with: finetune train --resume out" in said
    assert command("train", "--resume", "out")[0] == 0
    assert command("predict", "out", "images/a")[0] == 0


def test_the_command_line_overrides_the_recipe(command, image_folder, quick, tmp_path):
    image_folder(tmp_path / "images")
    (tmp_path / "recipe.yaml").write_text("data: elsewhere\nseed: 3\nbatch_size: 8\n")
    arguments = ("plan", "--recipe", "recipe.yaml", "--data", "images", "--output", "out", "--seed", "4", *quick)
    assert command(*arguments)[0] == 0
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert (plan["data"], plan["seed"], plan["batch_size"]) == (str(tmp_path / "images"), 4, 8)


def test_any_recipe_key_can_be_set(command, image_folder, quick, tmp_path):
    image_folder(tmp_path / "images")
    arguments = ("plan", "--data", "images", "--output", "out", *quick, "--set", "augmentation.vertical_flip=true")
    assert command(*arguments)[0] == 0
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["augmentation"]["vertical_flip"] is True


def test_unreadable_files_are_listed_once_and_counted(command, image_folder, quick, tmp_path):
    image_folder(tmp_path / "images", {"a": 12, "b": 12})
    for number in range(7):
        (tmp_path / "images" / "b" / f"broken{number}.jpg").write_bytes(b"no image")
    status, printed, _ = command("plan", "--data", "images", "--output", "out", *quick)
    assert status == 0
    assert "7 files cannot be read and are left out:" in printed
    assert printed.count("broken0.jpg") == 1
    assert "and 2 more" in printed
    assert json.loads((tmp_path / "out" / "evidence.json").read_text())["num_unreadable"] == 7


def test_a_runs_learning_curve_is_diagnosed(command, image_folder, quick, tmp_path):
    image_folder(tmp_path / "images", splits={"train": {"a": 12, "b": 12}, "val": {"a": 3, "b": 3}})
    options = (*quick, "--steps", "20", "--batch-size", "4", "--verbose")
    _, printed, _ = command("--data", "images", "--output", "out", *options)
    status, diagnosed, _ = command("diagnose", "out")
    assert status == 0
    assert diagnosed.splitlines()[1] == "Learning curve of out"
    (verdict,) = [line for line in diagnosed.splitlines() if line.startswith("  noisy validation: ")]
    assert verdict in printed
    assert "    try validation=cross_validation in plan.json (train it with --plan)" in diagnosed
    assert re.search(
        r"  checked: \d+ steps of validation, refit; 4 evaluations on 6 held-out images; update-to", diagnosed
    )
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [found["kind"] for found in metrics["verdicts"]] == ["noisy_validation"]


def test_a_run_without_steps_has_nothing_that_stands_out(command, image_folder, quick, tmp_path):
    image_folder(tmp_path / "images")
    command("--data", "images", "--output", "out", *quick)
    _, diagnosed, _ = command("diagnose", "out")
    assert "  nothing stands out\n  checked: nothing was trained step by step, so there is no curve" in diagnosed


def test_a_run_that_diverged_is_diagnosed_with_its_step_and_layer(command, image_folder, weights_file, tmp_path):
    image_folder(tmp_path / "images", splits={"train": {"a": 12, "b": 12}, "val": {"a": 3, "b": 3}})
    tiny = ("--set", f"weights={weights_file()}", "--strategy", "full", "--steps", "20", "--batch-size", "4")
    said = mistake(
        command("--data", "images", "--output", "out", *NETWORK, *tiny, "--set", "training.learning_rate=10")
    )
    assert re.search(r"became (nan|inf) at step \d+ of the training 'validation', first in the \w+ ", said)
    assert said.endswith("; more: finetune diagnose out")
    step = int(re.search(r"at step (\d+)", said)[1])
    status, diagnosed, _ = command("diagnose", "out")
    assert status == 0
    assert f"  diverged: the training 'validation' was no longer finite at step {step}, first in the " in diagnosed
    assert "    try --set training.learning_rate=" in diagnosed
    assert "which is not overwritten" in mistake(command("--data", "images", "--output", "out", *NETWORK, *tiny))


def test_a_diagnosis_of_a_folder_without_a_run_says_what_is_expected(command):
    assert mistake(command("diagnose", "nowhere")).startswith("there is no run in nowhere; expected a folder with plan")


def test_the_cache_is_listed_and_cleared(command, empty_cache):
    write_value("measurements", "k", "the speed of something", {"number": 1})
    status, printed, _ = command("cache")
    assert status == 0
    assert "the speed of something" in printed
    assert "1 entry, " in printed
    assert str(empty_cache) in printed
    status, printed, _ = command("cache", "--clear")
    assert (status, list_entries()) == (0, [])
    assert f"removed from {empty_cache}" in printed
    assert command("cache")[1].startswith("0 entries")


def test_the_schema_is_json_and_knows_every_key(command):
    schema = json.loads(command("schema")[1])
    assert {"data", "strategy", "training", "augmentation"} <= set(schema["properties"])
    assert schema["properties"]["seed"]["description"].startswith("Seed of the splits")


def test_the_version_is_that_of_the_package(command):
    assert command("--version") == (0, f"finetune {finetune.__version__}\n", "")


def test_the_time_of_a_command_counts_from_the_start_of_its_process():
    code = (
        "import time; time.sleep(0.3); from finetune.system_settings import process_start; "
        "print(time.perf_counter() - process_start())"
    )
    began = time.perf_counter()
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.3 <= float(ended.stdout) <= time.perf_counter() - began + 1.1


def test_a_command_searches_seldom_for_garbage_and_not_at_all_at_its_end():
    code = (
        "import atexit, gc; atexit.register(lambda: print(gc.get_threshold()[0], gc.get_freeze_count() > 0)); "
        "from finetune.system_settings import apply_system_settings; apply_system_settings()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "10000 True\n"


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom finetune.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'timm', 'datasets', 'sklearn', 'numpy', 'pandas') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_a_run_imports_libraries_for_drawing_only_when_it_draws():
    code = "import sys, finetune.runs.pipeline; print([n for n in ('captum', 'matplotlib') if n in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_the_help_lists_the_commands_and_the_options_without_a_command(command):
    status, printed, _ = command("--help")
    assert status == 0
    for name in ("train", "plan", "tune", "watch", "predict", "evaluate", "diagnose", "serve", "cache", "schema"):
        assert re.search(rf"^│ {name} +[A-Z]", printed, re.MULTILINE), name
    for option in GENERAL_OPTIONS:
        assert option in printed


@pytest.mark.parametrize("name", ["train", "plan", "tune"])
def test_the_help_of_a_command_shows_the_shared_options_first(command, name):
    _, printed, _ = command(name, "--help")
    options = re.findall(r"^│ (--[a-z-]+)", printed, re.MULTILINE)
    assert options[:3] == ["--data", "--recipe", "--model"]
    assert options[-1] == "--help"


@pytest.mark.parametrize(
    ("words", "number", "expected"), [("finetune tr", 1, "train"), ("finetune train --strat", 2, "--strategy")]
)
def test_a_shell_completes_commands_and_options(command, monkeypatch, words, number, expected):
    monkeypatch.setenv("_FINETUNE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(number))
    assert command() == (0, f"{expected}\n", "")


def test_an_option_of_0_is_an_option(command):
    assert "so --seed cannot be given with it" in mistake(command("--resume", "x", "--seed", "0"))


def test_the_script_runs_the_command_though_it_has_the_name_of_the_package(tmp_path):
    ended = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "finetune.py"), "--data", "nowhere"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: there is no folder or file nowhere")


def test_options_are_frozen():
    """A new option is a decision: it enters here, in the README and in the changelog."""
    from typer.main import get_command

    from finetune.cli import app

    options = {
        name: sorted(option for parameter in sub.params for option in parameter.opts if option.startswith("--"))
        for name, sub in get_command(app).commands.items()
    }
    recipe_options = [
        "--allow-rare", "--batch-size", "--data", "--ensemble", "--epochs", "--groups", "--image-size", "--limit",
        "--model",
        "--output", "--prefer", "--recipe", "--seed", "--set", "--steps", "--strategy", "--time-budget",
        "--track",
    ]  # fmt: skip
    output = ["--json", "--quiet", "--verbose"]
    assert options == {
        "train": sorted([*recipe_options, *output, "--accept-changes", "--plan", "--plan-only", "--resume"]),
        "plan": sorted([*recipe_options, *output, "--plot"]),
        "tune": sorted(
            [
                *set(recipe_options) - {"--ensemble"},
                *output,
                "--trials",
                "--search",
                "--storage",
                "--resume",
                "--accept-changes",
            ]
        ),
        "audit": sorted(["--clean", "--output", "--set", "--strict", *output]),
        "watch": [],
        "predict": ["--output", "--resume", "--sets", "--top-k", "--unknown-at"],
        "embed": ["--dtype", "--output", "--resume"],
        "export": ["--format", "--images", "--output"],
        "push": ["--dry-run"],
        "serve": ["--host", "--port"],
        "report": ["--output"],
        "evaluate": sorted(["--accept-changes", "--data", "--output", *output]),
        "compare": sorted(["--data", *output]),
        "diagnose": [],
        "cache": ["--clear"],
        "schema": [],
    }


def test_images_of_any_mode_are_trained_on(command, quick, tmp_path):
    for label, modes in {"a": ("L", "P", "RGBA", "CMYK"), "b": ("1", "LA", "I;16", "RGB")}.items():
        (tmp_path / "images" / label).mkdir(parents=True)
        for number, mode in enumerate(modes * 2):
            image = Image.new(mode, (40, 40), 1 if mode in {"1", "L", "P", "I;16"} else None)
            image.save(tmp_path / "images" / label / f"{number} ü.{'jpg' if mode == 'CMYK' else 'png'}")
    assert command("--data", "images", "--output", "out", *quick)[0] == 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_memory_that_a_thread_frees_is_kept_for_its_next_step():
    code = (
        "import resource\nfrom concurrent.futures import ThreadPoolExecutor\nfrom finetune.cli import main\n"
        "try: main(['--version'])\nexcept SystemExit: pass\n"
        "def new_pages(_step):\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    b'x' * (1 << 27)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "print(*ThreadPoolExecutor(1).map(new_pages, range(2)))"
    )
    unset = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=unset)
    first, second = map(int, ended.stdout.splitlines()[-1].split())
    assert second < 10 < first
