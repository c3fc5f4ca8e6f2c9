"""Runs on classes with an order, and with costs of confusions, from the recipe to every use of the model."""

import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from sklearn.metrics import cohen_kappa_score

import finetune
from finetune import cli
from finetune.data import labels_of, load_images, load_plan_images
from finetune.errors import PublishError, RecipeError
from finetune.export import export_run
from finetune.predict.onnx_model import OnnxModel
from finetune.publish.pushing import prepare
from finetune.runs.folder import RunFolder
from finetune.runs.image_tables import metrics_of, read_predictions
from finetune.runs.report import Report
from finetune.serve.answers import label
from tests.conftest import make_image_folder

ORDER = ("none", "mild", "severe")
COSTS = {"severe": {"none": 50, "mild": 50}}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_image_folder(tmp_path_factory.mktemp("graded") / "images", dict.fromkeys(ORDER, 14))


@pytest.fixture(scope="module")
def recipe(images, weights):
    return finetune.Recipe(
        data=str(images),
        labels={"order": ORDER, "costs": COSTS},
        model="test_efficientnet",
        weights=str(weights),
        strategy="linear_probe",
        image_size=32,
    )


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """A run, its folder, and what it printed."""
    printed, folder = io.StringIO(), tmp_path_factory.mktemp("answers") / "run"
    model = finetune.run(recipe, folder, Report(Console(file=printed, width=200)))
    return model, folder, printed.getvalue()


@pytest.fixture(scope="module")
def exported(finished):
    pytest.importorskip("onnxruntime")
    path, _ = export_run(finished[1])
    return OnnxModel(path)


def test_the_classes_are_in_their_order_wherever_they_are_read(finished):
    model, folder, _ = finished
    assert model.class_names == ORDER
    splits = load_plan_images(RunFolder(folder).read_plan())
    assert splits.class_names == ORDER
    names = np.asarray(ORDER)[labels_of(splits.train)]
    assert names.tolist() == [path.split("/")[-2] for path in (row["path"] for row in splits.train["image"])]


def test_models_are_compared_by_the_mean_cost_of_their_answers(finished):
    _, folder, printed = finished
    plan = RunFolder(folder).read_plan()
    assert (plan.metric, plan.imbalance, plan.answers.order) == ("mean_cost", "none", ORDER)
    assert ", by mean_cost" in printed


def test_the_answers_of_all_tables_are_the_least_costly_ones(finished):
    model, folder, _ = finished
    rows = read_predictions(folder)
    probabilities = rows[[f"p_{name}" for name in ORDER]].to_numpy()
    expected = probabilities @ np.array(model.rule.costs)
    assert rows["predicted"].tolist() == [ORDER[best] for best in expected.argmin(axis=1)]
    assert (rows["predicted"] != np.asarray(ORDER)[probabilities.argmax(axis=1)]).any()


def test_metrics_follow_from_the_predictions(finished):
    model, folder, _ = finished
    stored, rows = RunFolder(folder).read_metrics(), read_predictions(folder)
    found = metrics_of(rows, "test", list(ORDER), rule=model.rule)
    assert found == stored.test
    test = rows[rows["split"] == "test"]
    grades = [[ORDER.index(name) for name in test[column]] for column in ("label", "predicted")]
    expected = cohen_kappa_score(*grades, labels=[0, 1, 2], weights="quadratic")
    assert stored.test.answers.least_costly.grades.quadratic_weighted_kappa == pytest.approx(expected, nan_ok=True)


def test_kappa_error_in_grades_and_costs_are_printed(finished):
    printed = finished[2]
    for words in ("quadratic weighted kappa", "mean absolute error", "grades", "mean cost", "with the most probable"):
        assert words in printed


def test_the_report_compares_the_least_costly_and_the_most_probable_answers(finished):
    page = (finished[1] / "report.html").read_text("utf-8")
    for words in ("What the answers cost", "least costly", "most probable", "Quadratic weighted kappa", "by grade"):
        assert words in page
    assert "What if doubtful labels are withheld?" not in page


def test_a_model_that_was_moved_gives_the_least_costly_answers(finished, images, tmp_path):
    model, folder, _ = finished
    shutil.copytree(folder, tmp_path / "moved")
    with pytest.raises(SystemExit):
        cli.main(["predict", str(tmp_path / "moved"), str(images / "none"), "--output", str(tmp_path / "found.csv")])
    found = pd.read_csv(tmp_path / "found.csv", keep_default_na=False)
    assert found["label"].tolist() == model.predict(found["path"].tolist())


def test_evaluate_writes_the_figures_of_the_answers(finished, images, tmp_path, capsys):
    output = tmp_path / "metrics.json"
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", str(finished[1]), "--data", str(images), "--output", str(output)])
    assert ended.value.code == 0
    assert "quadratic weighted kappa" in " ".join(capsys.readouterr().out.split())
    found = json.loads(output.read_text())["answers"]["least_costly"]
    assert found["mean_cost_interval"][0] <= found["mean_cost"] <= found["mean_cost_interval"][1]


@pytest.mark.slow
def test_an_exported_model_gives_the_answers_of_its_run(finished, exported, images):
    model = finished[0]
    paths = sorted((images / "none").iterdir())
    assert exported.rule == model.rule
    served = [
        label("a.png", exported.class_names, row, None, exported.rule).label for row in exported.predict_proba(paths)
    ]
    assert served == model.predict(paths)


def test_a_server_answers_with_the_least_costly_class_and_names_the_most_probable_ones(finished):
    rule = finished[0].rule
    answer = label("a.png", ORDER, np.array([0.9, 0.04, 0.06]), None, rule)
    assert (answer.label, answer.probability, answer.top[0].label) == ("severe", 0.06, "none")


def test_limits_of_the_most_probable_class_are_refused(finished, images, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["predict", str(finished[1]), str(images), "--unknown-at", "0.9"])
    assert ended.value.code == 2
    assert "--unknown-at is for models whose answer is the most probable class" in capsys.readouterr().err


def test_sets_of_classes_stand_next_to_the_least_costly_answer(finished, images, capsys):
    with pytest.raises(SystemExit):
        cli.main(["predict", str(finished[1]), str(next((images / "none").iterdir())), "--sets", "0.9"])
    assert ",severe," in capsys.readouterr().out


def test_publishing_is_refused(finished):
    with pytest.raises(PublishError, match="answer is the least costly one are not published"):
        prepare(finished[1], "user/name")


def test_an_order_of_a_stream_is_refused():
    with pytest.raises(RecipeError, match=r"labels\.order is not for streams; .* or store user/name by writing hf:"):
        load_images("stream:user/name", order=ORDER)


def test_an_order_without_a_class_is_refused_before_anything_is_measured(recipe, tmp_path):
    with pytest.raises(RecipeError, match=r"labels\.order does not name 'severe'"):
        finetune.run(recipe.changed(labels={"order": ORDER[:2]}), tmp_path / "run")


def test_the_classifier_of_scikit_learn_answers_by_the_costs(images, weights):
    paths = sorted(images.glob("*/*"))
    settings = {"weights": str(weights), "image_size": 32, "labels": {"order": ORDER, "costs": COSTS}}
    classifier = finetune.ImageClassifier(model="test_efficientnet", strategy="linear_probe", settings=settings)
    classifier.fit(paths, [path.parent.name for path in paths])
    probabilities = classifier.predict_proba(paths)[
        :, [1, 0, 2]
    ]  # scikit-learn's classes are sorted: mild, none, severe
    expected = (probabilities @ np.array(classifier.model_.rule.costs)).argmin(axis=1)
    assert classifier.predict(paths).tolist() == [ORDER[best] for best in expected]
