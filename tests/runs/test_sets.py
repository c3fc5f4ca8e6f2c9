"""Runs on images with any number of labels, from the table to every use of the model."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import finetune
from finetune import cli
from finetune.data import labels_of, load_plan_images, load_scored_images
from finetune.errors import DataError, PublishError, RecipeError
from finetune.export import export_run
from finetune.predict.metrics import score
from finetune.predict.onnx_model import OnnxModel
from finetune.predict.set_metrics import give_labels
from finetune.publish.pushing import prepare
from finetune.runs.folder import RunFolder
from finetune.runs.image_tables import metrics_of, read_predictions
from finetune.runs.report import Report
from finetune.serve.answers import label
from tests.labelled_patches import write_patches, write_table

pytestmark = pytest.mark.usefixtures("never_worse")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("sets")


@pytest.fixture(scope="module")
def patches(root):
    return write_patches(root / "images", 80)


@pytest.fixture(scope="module")
def recipe(root, patches, weights):
    table = write_table(patches, root / "table.csv")
    return finetune.Recipe(
        data=str(table),
        columns={"delimiter": ";"},
        model="test_efficientnet",
        weights=str(weights),
        strategy="full",
        image_size=32,
        steps=8,
        batch_size=8,
    )


@pytest.fixture(scope="module")
def finished(recipe, root):
    """A run, its folder, and what it printed."""
    printed = io.StringIO()
    model = finetune.run(recipe, root / "run", Report(Console(file=printed, width=200)))
    return model, root / "run", printed.getvalue()


def test_the_run_says_what_it_took_for_labels(finished):
    _, folder, printed = finished
    assert "each image has any number of labels (column 'labels', parted by ';')" in printed
    plan = RunFolder(folder).read_plan()
    assert plan.has_sets
    assert plan.metric == "mean_average_precision"
    assert any("each label has its own probability" in reason for reason in plan.reasons)


def test_the_choice_is_in_mean_average_precision(finished):
    _, folder, printed = finished
    assert "mean average precision on new images" in printed
    assert RunFolder(folder).read_decisions().choice.expected_metric == "mean_average_precision"


def test_metrics_follow_from_the_predictions(finished):
    model, folder, _ = finished
    metrics = RunFolder(folder).read_metrics()
    found = metrics_of(read_predictions(folder), "test", list(model.class_names), model.thresholds)
    assert found == metrics.test
    assert metrics.test.sets.num_without > 0


def test_a_saved_model_predicts_the_same_sets(finished, patches):
    model, folder, _ = finished
    paths = list(patches["path"][:9])
    read = RunFolder(folder).read_model()
    assert read.thresholds == model.thresholds
    np.testing.assert_array_equal(read.predict_proba(paths), model.predict_proba(paths))
    given = give_labels(model.predict_proba(paths), model.thresholds)
    assert read.predict(paths) == [
        tuple(name for name, is_given in zip(model.class_names, row, strict=True) if is_given) for row in given
    ]


def test_probabilities_are_those_of_each_label_by_itself(finished, patches):
    found = finished[0].predict_proba(list(patches["path"]))
    assert found.sum(axis=1).std() > 0.1


def command(*arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return ended.value.code


def test_predict_writes_a_table_that_evaluate_reads(finished, root, patches):
    model, folder, _ = finished
    output = root / "predictions.csv"
    assert command("predict", folder, *patches["path"][:20], "--output", output) == 0
    table = pd.read_csv(output, keep_default_na=False)
    assert list(table.columns) == ["path", "labels", *(f"p_{name}" for name in model.class_names)]
    assert command("evaluate", folder, "--data", output, "--output", root / "scored.json") == 0
    scored = json.loads((root / "scored.json").read_text())
    assert scored["sets"]["exact_match"] == 1.0


@pytest.mark.parametrize("options", [["--top-k", "2"], ["--unknown-at", "0.9"], ["--sets", "0.9"]])
def test_options_for_one_label_are_refused(finished, patches, options, capsys):
    assert command("predict", finished[1], patches["path"][0], *options) == 2
    assert "models of one label per image" in capsys.readouterr().err


def test_the_report_has_the_average_precision_of_each_class(finished):
    model, folder, _ = finished
    page = (folder / "report.html").read_text("utf-8")
    assert "mean average precision" in page
    assert "average precision</button>" in page
    assert all(name in page for name in model.class_names)


def test_the_report_shows_what_speaks_for_the_wrong_label_of_an_image(finished):
    page = (finished[1] / "report.html").read_text("utf-8")
    assert "the places that speak for the label named last are bright" in page
    # A label for which no place speaks has no map.
    assert 0 < page.count('class="shade"') <= page.count("is given, ") + page.count("is not given, ")


def test_the_report_can_be_written_anew(finished):
    assert command("report", finished[1]) == 0


@pytest.mark.usefixtures("few_images")
def test_an_exported_model_gives_the_same_labels(finished, root, patches):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, folder, _ = finished
    path, agreement = export_run(folder, "onnx", root / "model.onnx")
    assert agreement.exported.equal_labels >= 0.99
    exported = OnnxModel(path)
    assert exported.thresholds == pytest.approx(model.thresholds)
    paths = list(patches["path"][:5])
    np.testing.assert_allclose(exported.predict_proba(paths), model.predict_proba(paths), atol=0.01)


def test_a_served_image_has_all_its_labels():
    answer = label("1.png", ["a", "b", "c"], np.array([0.7, 0.2, 0.6]), (0.5, 0.5, 0.65))
    assert [each.label for each in answer.labels] == ["a"]
    assert answer.label == "a"
    assert "labels" not in label("1.png", ["a", "b"], np.array([0.7, 0.3])).model_dump()


def test_a_published_model_has_one_label(finished):
    with pytest.raises(PublishError, match="any number of labels are not published"):
        prepare(finished[1], "me/model")


def test_a_plan_for_sets_is_not_trained_on_single_labels(finished, image_folder, tmp_path):
    plan = RunFolder(finished[1]).read_plan().changed(data=str(image_folder(tmp_path / "images")), steps=0)
    from finetune.training import train

    with pytest.raises(DataError, match="the images have one label each"):
        train(plan, load_plan_images(plan))


def test_a_model_of_sets_is_evaluated_on_folders_of_one_class_each(finished, image_folder, tmp_path):
    model, _, _ = finished
    folder = image_folder(tmp_path / "images", {"blue": 2, "red": 2})
    splits = load_scored_images(str(folder), model.class_names, has_sets=True)
    assert labels_of(splits.test).tolist() == [[1, 0, 0]] * 2 + [[0, 0, 1]] * 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"metric": "top1"}, "metric: top1 is for one label per image"),
        ({"training": {"imbalance": "logit_adjustment"}}, "logit_adjustment is for one label per image"),
        ({"training": {"co_tuning": 1.0}}, "co_tuning is for one label per image"),
    ],
)
def test_settings_for_one_label_are_refused(recipe, root, changes, sentence):
    with pytest.raises(RecipeError, match=sentence):
        finetune.run(recipe.changed(**changes), root / f"refused-{'-'.join(changes)}")


def test_the_metric_of_sets_is_refused_for_one_label(image_folder, tmp_path, weights):
    recipe = finetune.Recipe(
        data=str(image_folder(tmp_path / "images")),
        model="test_efficientnet",
        weights=str(weights),
        metric="mean_average_precision",
    )
    with pytest.raises(RecipeError, match="is for images with any number of labels"):
        finetune.run(recipe, tmp_path / "run")


@pytest.mark.slow
def test_an_ensemble_averages_the_probabilities_of_each_label(recipe, root, patches, recommend_place, monkeypatch):
    recommend_place(monkeypatch, -1)
    model = finetune.run(recipe.changed(ensemble="seeds:2", steps=3), root / "ensemble")
    read = RunFolder(root / "ensemble").read_model()
    paths = list(patches["path"][:6])
    np.testing.assert_allclose(read.predict_proba(paths), model.predict_proba(paths), atol=1e-6)
    assert read.thresholds == model.thresholds
    names = list(model.class_names)
    assert score(model.tested.probabilities, model.tested.labels, names, model.thresholds) == model.test


def test_a_linear_probe_is_one_logistic_regression_for_each_label(recipe, root):
    model = finetune.run(recipe.changed(strategy="linear_probe", steps=None), root / "probe")
    assert model.plan.steps == 0
    assert model.test.sets.mean_average_precision > 0.5


@pytest.mark.slow
def test_a_search_compares_trials_of_sets(recipe, root):
    pytest.importorskip("optuna")
    from finetune.tuning import tune

    model = tune(recipe.changed(steps=12, tuning={"trials": 2, "search": "random"}), root / "tuned")
    assert model.plan.has_sets
    assert model.test.sets is not None


def test_known_groups_of_sets_are_measured_and_not_divided(recipe, root, patches):
    table = write_table(
        patches.assign(group=[f"g{number // 4}" for number in range(len(patches))]), root / "groups.csv"
    )
    model = finetune.run(recipe.changed(data=str(table), strategy="linear_probe", steps=None), root / "grouped")
    decisions = RunFolder(root / "grouped").read_decisions()
    assert decisions.evidence.groups.num_groups > 5
    splits = pd.read_csv(root / "grouped" / "splits.csv")
    assert (splits.groupby("group")["split"].nunique() == 1).all()
    assert model.plan.has_sets


def test_an_audit_of_sets_is_refused(image_folder, tmp_path):
    table = pd.DataFrame({"path": [str(path) for path in sorted(image_folder(tmp_path / "images").rglob("*.*"))]})
    table["label"] = [["a"], ["a", "b"], ["b"], []] * (len(table) // 4)
    table.to_parquet(tmp_path / "table.parquet")
    with pytest.raises(DataError, match="an audit is of images with one label each"):
        finetune.audit(str(tmp_path / "table.parquet"))


@pytest.mark.parametrize("imbalance", ["none", "class_weights"])
def test_weights_of_rare_labels_leave_the_probabilities_calibrated(recipe, root, imbalance):
    changed = recipe.changed(strategy="linear_probe", steps=None, training={"imbalance": imbalance})
    model = finetune.run(changed, root / f"probe-{imbalance}")
    held = model.held_out
    np.testing.assert_allclose(held.probabilities.mean(axis=0), held.labels.mean(axis=0), atol=0.12)
