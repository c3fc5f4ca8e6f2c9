"""The figures of a run are the same to the last bit wherever they stand: on one machine, with the same settings."""

import json
from pathlib import Path

import pytest
from conftest import slow

from finetune.cli import main
from finetune.runs.folder import RunFolder
from finetune.runs.image_tables import metrics_of, read_predictions

WAYS = {
    "a network": ("--strategy", "full"),
    "a linear probe": ("--strategy", "linear_probe"),
    "a network and its mirrored images": ("--strategy", "full", "--set", "augmentation.test_time_flips=true"),
    "an ensemble": ("--strategy", "full", "--ensemble", "seeds:2"),
    "an ensemble and its mirrored images": (
        *("--strategy", "full", "--ensemble", "seeds:2"), "--set", "augmentation.test_time_flips=true",
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", [*slow(*[*WAYS][:-1]), [*WAYS][-1]])
def test_an_evaluation_repeats_the_metrics_of_the_test_images(image_folder, weights, monkeypatch, tmp_path, way):
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "images", splits={"train": {"a": 12, "b": 12}, "test": {"a": 20, "b": 17}})
    options = ["--model", "test_efficientnet", "--image-size", "32", "--set", f"weights={weights}"]
    if "full" in WAYS[way]:
        options += ["--steps", "3", "--set", "training.learning_rate=1e-4"]
    with pytest.raises(SystemExit):
        main(["train", "--data", "images", "--output", "run", "--quiet", *options, *WAYS[way]])
    folder = RunFolder(Path("run"))
    assert len(folder.members) == (2 if "--ensemble" in WAYS[way] else 1)
    metrics = folder.read_metrics()
    assert metrics.test.num_images == 37
    for number, data in enumerate(("images", "run/splits.csv")):
        with pytest.raises(SystemExit):
            main(["evaluate", "run", "--data", data, "--output", f"{number}.json", "--quiet"])
        assert json.loads(Path(f"{number}.json").read_text()) == metrics.test.model_dump(mode="json")
    predictions = read_predictions(folder.path)
    names = list(folder.read_model().class_names)
    assert metrics_of(predictions, "test", names) == metrics.test
    assert metrics_of(predictions, "validation", names) == metrics.validation


def test_a_run_on_a_relative_path_means_the_same_images_in_another_folder(image_folder, weights, monkeypatch, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    image_folder(here / "images", splits={"train": {"a": 12, "b": 12}, "test": {"a": 4, "b": 3}})
    image_folder(there / "images", splits={"train": {"a": 3, "b": 3}, "test": {"a": 5, "b": 5}})
    monkeypatch.chdir(here)
    options = ["--model", "test_efficientnet", "--image-size", "32", "--set", f"weights={Path(weights).name}"]
    Path(Path(weights).name).write_bytes(Path(weights).read_bytes())
    with pytest.raises(SystemExit):
        main(["train", "--data", "images", "--output", "run", "--quiet", "--strategy", "linear_probe", *options])
    monkeypatch.chdir(there)
    commands = {
        "train from the plan": ["train", "--plan", str(here / "run" / "plan.json"), "--output", "again"],
        "evaluate on other images of the same relative name": ["evaluate", str(here / "run"), "--data", "images"],
    }
    for about, command in commands.items():
        with pytest.raises(SystemExit) as ended:
            main([*command, "--quiet"])
        assert (about, ended.value.code) == (about, 0)
    assert RunFolder(Path("again")).read_metrics().test == RunFolder(here / "run").read_metrics().test
