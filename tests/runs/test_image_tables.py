"""The tables of a run's images: the predictions, from which its metrics follow, and the files that were left out."""

import json
from dataclasses import replace

import datasets
import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features
from PIL import Image

import finetune
from finetune.data import groups_of, label_paths, load_images, paths_of
from finetune.errors import RunFolderError
from finetune.predict.metrics import score
from finetune.predict.model import HeldOut, TrainedModel
from finetune.runs import image_tables
from finetune.runs.folder import RunFolder
from finetune.runs.image_tables import PREDICTIONS, list_predictions, list_splits, metrics_of, read_predictions
from finetune.runs.page.writing import write_report
from finetune.training import evaluation

SPLITS = {"train": {"a": 10, "b": 10, "c": 8}, "test": {"a": 3, "b": 4, "c": 2}}
"""Images of each class."""


@pytest.fixture(autouse=True)
def _never_worse(monkeypatch):
    """Let no training count as worse than its linear probe after its few steps."""
    monkeypatch.setattr(evaluation, "STANDARD_ERRORS", (float("inf"), float("inf")))


@pytest.fixture
def recipe(tmp_path, image_folder, weights):
    data = image_folder(tmp_path / "images", splits=SPLITS)
    return finetune.Recipe(
        data=str(data), model="test_efficientnet", weights=str(weights), image_size=32, steps=4, batch_size=8,
        strategy="full",
    )  # fmt: skip


def check(folder):
    """Check that metrics.json follows from the predictions, to the last digit; return the predictions."""
    run = RunFolder(folder)
    predictions, metrics = read_predictions(folder), run.read_metrics()
    names = [row.name for row in metrics.validation.per_class]
    assert metrics_of(predictions, "validation", names) == metrics.validation
    if metrics.test is None:
        assert set(predictions["split"]) == {"validation"}
    else:
        assert metrics_of(predictions, "test", names) == metrics.test
    return predictions


def test_accuracy_and_log_loss_follow_from_the_predictions_of_a_cross_validation(recipe, tmp_path):
    finetune.run(recipe, tmp_path / "run")
    predictions = check(tmp_path / "run")
    test = predictions[predictions["split"] == "test"]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (test["label"] == test["predicted"]).mean() == metrics["test"]["top1"]
    assert -np.log(test["label_probability"].clip(1e-12)).mean() == metrics["test"]["log_loss"]


def test_each_held_out_image_is_listed_with_the_fold_that_held_it_out(recipe, tmp_path):
    finetune.run(recipe, tmp_path / "run")
    predictions = check(tmp_path / "run")
    held = predictions[predictions["split"] == "validation"]
    splits = pd.read_csv(tmp_path / "run" / "splits.csv", keep_default_na=False).set_index("path")
    assert len(held) == sum(SPLITS["train"].values())
    assert ("fold-" + held["fold"].astype(str)).tolist() == splits.loc[held["path"], "held_out_by"].tolist()
    assert held["label"].tolist() == splits.loc[held["path"], "label"].tolist()
    assert predictions[predictions["split"] == "test"]["fold"].isna().all()


def test_the_listed_splits_keep_the_groups(image_folder, small_plan, tmp_path):
    paths = sorted(image_folder(tmp_path / "images", splits={"": {"a": 10, "b": 10}}).rglob("*.png"))
    rows = pd.DataFrame({"path": paths, "label": [path.parent.name for path in paths], "group": range(len(paths))})
    rows["group"] //= 2
    rows.to_csv(tmp_path / "table.csv", index=False)
    splits = finetune.load_images(str(tmp_path / "table.csv"))
    list_splits(small_plan(validation="held_out", refit=False), splits).to_csv(tmp_path / "splits.csv", index=False)
    again = finetune.load_images(str(tmp_path / "splits.csv"))
    assert groups_of(again.train).tolist() == groups_of(splits.train).tolist()
    assert paths_of(again.train) == paths_of(splits.train)


@pytest.mark.parametrize("ensemble", ["snapshots:2", "folds"])
def test_the_metrics_of_an_ensemble_and_of_its_members_follow_from_their_predictions(
    recipe, tmp_path, ensemble, recommend_place, monkeypatch
):
    recommend_place(monkeypatch, -1)
    finetune.run(recipe.changed(ensemble=ensemble), tmp_path / "run")
    check(tmp_path / "run")
    members = RunFolder(tmp_path / "run").members
    assert len(members) > 1
    for member in members:
        check(member.path)


def test_a_table_without_a_test_split_has_predictions_of_held_out_images_alone(recipe, tmp_path):
    table = load_images(recipe.data).train
    rows = [(row["path"], label, "train") for row, label in zip(table["image"], table["label"], strict=True)]
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(tmp_path / "table.csv", index=False)
    finetune.run(
        recipe.changed(data=str(tmp_path / "table.csv"), strategy="linear_probe", steps=None), tmp_path / "run"
    )
    assert len(check(tmp_path / "run")) == len(rows)


def test_images_of_a_stream_that_are_not_files_are_listed_by_name(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    features = Features({"image": datasets.Image(), "label": ClassLabel(names=["ant", "bee"])})
    for split, count in (("train", 24), ("test", 6)):
        images = [Image.new("RGB", (40, 40), (5 * number, 99 * (number % 2), 0)) for number in range(count)]
        labels = [number % 2 for number in range(count)]
        (tmp_path / "set" / "data").mkdir(parents=True, exist_ok=True)
        own = Dataset.from_dict({"image": images, "label": labels}, features=features)
        own.to_parquet(str(tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet"))
    finetune.run(recipe.changed(data=f"stream:{tmp_path / 'set'}"), tmp_path / "run")
    predictions = check(tmp_path / "run")
    assert predictions["path"].str.len().min() > 0
    assert not predictions.duplicated(["split", "path"]).any()
    said = write_report(RunFolder(tmp_path / "run")).read_text("utf-8")
    assert "not found any more" not in said
    assert "data:image/jpeg" in said


@pytest.mark.slow
def test_the_metrics_of_the_winner_of_a_search_follow_from_its_predictions(recipe, tmp_path):
    fixed = {"learning_rate": 1e-3}
    finetune.tune(recipe.changed(training=fixed, tuning={"trials": 2, "weight_decay": (1e-3, 1e-1)}), tmp_path / "run")
    check(tmp_path / "run")


def many_classes(count, images, tmp_path, small_plan, image_folder):
    """Return a model of many classes with predictions of all images, and the splits of these images."""
    paths = [str(path) for path in sorted(image_folder(tmp_path / "few", {"a": 2 * images}).rglob("*.*"))]
    names = [f"class {number:03d}" for number in range(count)]
    splits = label_paths(paths, [names[number % count] for number in range(2 * images)])
    generator = np.random.default_rng(0)
    labels = np.asarray([number % count for number in range(2 * images)])
    probabilities = generator.dirichlet(np.full(count, 0.05), len(labels))
    found = HeldOut(labels=labels, probabilities=probabilities)
    plan = small_plan(strategy="linear_probe", validation="cross_validation", folds=2)
    model = TrainedModel(
        network=None, plan=plan, class_names=splits.class_names, temperature=1.0, held_out=found,
        validation=score(probabilities, labels, list(splits.class_names)),
    )  # fmt: skip
    return model, splits


def test_the_metrics_follow_from_the_ten_most_probable_of_many_classes(tmp_path, small_plan, image_folder, monkeypatch):
    monkeypatch.setattr(image_tables, "MOST_CLASSES", 19)
    model, splits = many_classes(20, 20, tmp_path, small_plan, image_folder)
    predictions = list_predictions(model, splits)
    assert not [column for column in predictions if column.startswith("p_")]
    assert {"label_1", "probability_10"} <= {*predictions}
    assert "label_11" not in predictions
    assert (predictions["label_1"] == predictions["predicted"]).all()
    assert metrics_of(predictions, "validation", list(model.class_names)) == model.validation


def test_predictions_of_other_images_are_refused(tmp_path, small_plan, image_folder):
    model, splits = many_classes(4, 8, tmp_path, small_plan, image_folder)
    fewer = HeldOut(labels=model.held_out.labels[1:], probabilities=model.held_out.probabilities[1:])
    with pytest.raises(ValueError, match="15 predictions for 16 images of the validation split"):
        list_predictions(replace(model, held_out=fewer), splits)


def test_files_that_cannot_be_read_are_listed_with_the_reason(recipe, tmp_path):
    broken = tmp_path / "images" / "train" / "a" / "broken.jpg"
    broken.write_text("no image")
    finetune.run(recipe.changed(strategy="linear_probe", steps=None), tmp_path / "run")
    table = pd.read_csv(tmp_path / "run" / "left_out.csv")
    assert table.to_dict("records") == [{"path": str(broken), "reason": "not an image of a known format"}]


def test_a_run_of_an_earlier_version_says_how_to_get_predictions(recipe, tmp_path):
    finetune.run(recipe.changed(strategy="linear_probe", steps=None), tmp_path / "run")
    (tmp_path / "run" / PREDICTIONS).unlink()
    with pytest.raises(RunFolderError, match=r"no predictions\.parquet, because an earlier .* train --recipe .*yaml"):
        read_predictions(tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    with pytest.raises(RunFolderError, match=r"is not finished, so it has no predictions; continue it: .* --resume"):
        read_predictions(tmp_path / "run")
    with pytest.raises(RunFolderError, match="there is no run in"):
        read_predictions(tmp_path)
