"""A run with classes of one and two images: what it trains on, what it evaluates, and what it says about both."""

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import finetune
from finetune.data import labels_of
from finetune.runs import pipeline
from finetune.runs.image_tables import metrics_of, read_predictions
from finetune.runs.report import Report
from tests.conftest import make_image_folder

pytestmark = pytest.mark.slow

NAMES = ["large", "one", "other", "two"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, weights):
    """The model of a run, its folder and what it printed."""
    root = tmp_path_factory.mktemp("rare")
    data = make_image_folder(root / "images", {"large": 24, "other": 12, "two": 2, "one": 1})
    recipe = finetune.Recipe(
        data=str(data),
        model="test_efficientnet",
        weights=str(weights),
        image_size=32,
        strategy="linear_probe",
        allow_rare=True,
    )
    printed = io.StringIO()
    model = pipeline.run(recipe, root / "run", Report(Console(file=printed, width=300)))
    return model, root / "run", printed.getvalue()


def test_every_image_of_a_rare_class_is_a_training_image_and_a_single_one_is_never_held_out(finished):
    splits = pd.read_csv(finished[1] / "splits.csv", keep_default_na=False)
    rare = splits[splits["label"].isin(["one", "two"])]
    assert set(rare["split"]) == {"train"}
    assert set(splits[splits["label"] == "one"]["held_out_by"]) == {""}


def test_the_metrics_count_the_classes_that_are_not_evaluated(finished):
    model, folder, _ = finished
    assert (model.validation.num_not_evaluated, model.test.num_not_evaluated) == (1, 2)
    assert [row.name for row in model.test.per_class if not row.num_images] == ["one", "two"]
    evaluated = [row.recall for row in model.test.per_class if row.num_images]
    assert model.test.balanced_accuracy == pytest.approx(np.mean(evaluated))
    assert metrics_of(read_predictions(folder), "validation", NAMES) == model.validation


def test_the_output_and_the_report_name_the_classes_that_are_not_evaluated(finished):
    _, folder, printed = finished
    assert "2 of 4 classes have fewer than 3 images: 'one', 'two'. All of these are trained on" in printed
    assert "2 of 4 classes have no test image and are not evaluated: 'one', 'two'" in printed
    page = (folder / "report.html").read_text("utf-8")
    assert "2 of 4 classes have no image and are not evaluated: &#39;one&#39;, &#39;two&#39;." in page
    assert "1 of 4 classes has no image and is not evaluated: &#39;one&#39;." in page


def test_unequal_classes_are_described_by_their_range_and_the_balanced_accuracy(finished):
    assert "; 1 to 20 images per class" in finished[2]
    assert " %, the mean over 2 classes" not in finished[2]  # 4 and 2 test images


def test_the_plan_says_how_unequal_classes_are_corrected_for(finished):
    (reason,) = [each for each in finished[0].plan.reasons if "balanced accuracy of the linear probe" in each]
    assert " % with none, " in reason
    assert " % with logit adjustment)" in reason


def test_the_model_knows_the_rare_classes(finished):
    model, folder, _ = finished
    assert list(model.class_names) == NAMES
    (path,) = pd.read_csv(folder / "splits.csv").query("label == 'one'")["path"]
    assert model.predict_proba([path]).shape == (1, 4)


def test_the_splits_of_the_run_can_be_loaded_again_from_its_plan(finished):
    splits = finetune.data.load_plan_images(finished[0].plan)
    assert np.bincount(labels_of(splits.train)).tolist() == [20, 1, 10, 2]
