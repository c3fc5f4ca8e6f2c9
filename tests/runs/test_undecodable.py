"""Files that pass the scan of the data and cannot be decoded are left out, wherever they turn up, and end no run."""

import json
import shutil

import pytest

from finetune.data import UndecodableError, load_images, load_scored_images, without_undecodable
from finetune.errors import DataError
from finetune.recipe import load_recipe
from finetune.runs import pipeline
from finetune.runs.folder import RunFolder
from tests.conftest import make_image_folder
from tests.predict.damage import damaged_png


@pytest.fixture
def recipe(weights, tmp_path):
    """A recipe of a training of a second, of images with splits."""
    make_image_folder(tmp_path / "images", splits={"train": {"a": 8, "b": 8}, "test": {"a": 3, "b": 3}})
    return load_recipe(
        data=str(tmp_path / "images"),
        model="test_efficientnet",
        weights=str(weights),
        strategy="linear_probe",
        image_size=32,
    )


def left_out(folder):
    return [row.split(",")[0].rpartition("/")[2] for row in (folder / "left_out.csv").read_text().splitlines()[1:]]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_run_leaves_out_what_cannot_be_decoded_and_finishes(recipe, tmp_path, split):
    (tmp_path / "images" / split / "a" / "bad.png").write_bytes(damaged_png())
    model = pipeline.run(recipe, tmp_path / "run")
    assert RunFolder(tmp_path / "run").is_finished()
    assert model.test.num_images == 6
    assert left_out(tmp_path / "run") == ["bad.png"]


def test_a_resumed_run_leaves_out_the_same_images(recipe, tmp_path):
    (tmp_path / "images" / "train" / "a" / "bad.png").write_bytes(damaged_png())
    whole = pipeline.run(recipe, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "data.json").read_text())["all_decoded"]
    (tmp_path / "run" / "metrics.json").unlink()
    resumed = pipeline.resume(tmp_path / "run")
    assert resumed.validation == whole.validation
    assert left_out(tmp_path / "run") == ["bad.png"]


def test_an_image_that_is_damaged_after_the_choice_restarts_the_training_without_it(recipe, tmp_path):
    pipeline.plan_only(recipe, tmp_path / "run")
    (tmp_path / "images" / "train" / "a" / "bad.png").write_bytes(damaged_png())
    pipeline.run_plan(tmp_path / "run" / "plan.json", accept_changes=True)
    assert left_out(tmp_path / "run") == ["bad.png"]


def test_an_image_that_is_removed_while_a_run_measures_is_left_out(recipe, tmp_path):
    splits = load_images(recipe.data)
    (tmp_path / "images" / "train" / "a" / "000.jpg").unlink()
    pipeline.run(recipe, tmp_path / "run", splits=splits)
    assert left_out(tmp_path / "run") == ["000.jpg"]


def test_a_class_whose_images_can_all_not_be_decoded_is_refused(recipe, tmp_path):
    folder = tmp_path / "images" / "train" / "a"
    shutil.rmtree(folder)
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").write_bytes(damaged_png() + bytes(number))
    with pytest.raises(DataError, match="too few training images of 'a'"):
        pipeline.run(recipe, tmp_path / "run")


def test_only_the_test_images_are_checked_on_request(recipe, tmp_path):
    for split in ("train", "test"):
        (tmp_path / "images" / split / "a" / "bad.png").write_bytes(damaged_png() + split.encode())
    checked = without_undecodable(load_images(recipe.data), only_test=True)
    assert (len(checked.train), len(checked.test), checked.all_decoded) == (17, 6, False)


def test_an_evaluation_scores_what_can_be_decoded(recipe, tmp_path, capsys):
    from finetune.cli import main

    pipeline.run(recipe, tmp_path / "run")
    (tmp_path / "images" / "test" / "a" / "bad.png").write_bytes(damaged_png())
    model, scored = RunFolder(tmp_path / "run").read_model(), load_scored_images(recipe.data, ("a", "b"))
    with pytest.raises(UndecodableError, match=r"bad.png cannot be decoded"):
        model.probabilities(scored.test)
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(tmp_path / "run"), "--data", recipe.data, "--json"])
    printed = capsys.readouterr()
    assert (ended.value.code, json.loads(printed.out)["num_images"]) == (0, 6)
    assert "left out" in printed.err


def test_an_evaluation_says_how_many_of_its_images_the_model_was_trained_on(recipe, tmp_path, capsys):
    from finetune.cli import main

    pipeline.run(recipe, tmp_path / "run")
    shutil.copytree(tmp_path / "images" / "test", tmp_path / "other")
    shutil.copy(tmp_path / "images" / "train" / "a" / "000.jpg", tmp_path / "other" / "a" / "copy.jpg")
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(tmp_path / "run"), "--data", str(tmp_path / "other")])
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the model was trained on 1 of the 7 images, which it may know by now; of the 6 others" in said
