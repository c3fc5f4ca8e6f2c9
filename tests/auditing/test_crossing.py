"""Every run says which test images show pictures of the training split, and nothing otherwise."""

import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps
from rich.console import Console
from sklearn.datasets import load_digits

import finetune
from finetune.auditing.crossing import describe_crossing, find_quick_copies
from finetune.data import load_images, paths_of
from finetune.data.identity import contents_of
from finetune.runs.report import Report
from tests.auditing.pictures import picture


def find_crossing(splits, shorter_side):
    return find_quick_copies(splits, shorter_side).crossing()


@pytest.fixture
def root(tmp_path):
    """A folder with 8 training and 3 test images of two classes."""
    number = 0
    for split, count in (("train", 8), ("test", 3)):
        for name in "ab":
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for _ in range(count):
                picture(number).save(folder / f"{number:02d}.png")
                number += 1
    return tmp_path / "images"


def test_mirrored_and_re_encoded_copies_across_splits_are_found(root):
    ImageOps.mirror(picture(2)).save(root / "test" / "a" / "mirrored.jpg", quality=60)
    picture(9).resize((90, 72)).save(root / "test" / "b" / "reduced.jpg")
    found = find_crossing(load_images(str(root)), 96)
    names = [(crossing.path.rpartition("/")[2], crossing.original.rpartition("/")[2]) for crossing in found]
    assert names == [("mirrored.jpg", "02.png"), ("reduced.jpg", "09.png")]
    said = describe_crossing(found, "my images")
    assert said.startswith("2 validation or test images show pictures of the training split, so that the accuracy on")
    assert "finetune audit 'my images' --clean clean.csv, then --data clean.csv" in said


def test_nothing_is_found_where_nothing_is_copied(root):
    assert find_crossing(load_images(str(root)), 96) == []


def test_images_of_a_few_pixels_are_not_compared(root):
    # Two zeros of two writers, in 8 x 8 pixels.
    for number, folder in ((434, "train"), (79, "test")):
        image = Image.fromarray((load_digits().images[number] * 15).astype(np.uint8))
        image.save(root / folder / "a" / f"{number}.png")
    assert find_crossing(load_images(str(root)), 96) == []


def test_a_run_says_that_a_test_image_is_a_copy(root, weights, tmp_path):
    ImageOps.mirror(picture(2)).save(root / "test" / "a" / "mirrored.jpg", quality=60)
    printed = io.StringIO()
    recipe = finetune.Recipe(
        data=str(root), model="test_efficientnet", weights=str(weights), image_size=32, strategy="linear_probe"
    )
    finetune.plan_only(recipe, tmp_path / "run", Report(Console(file=printed, width=500)))
    assert "1 validation or test image shows a picture of the training split" in printed.getvalue()
    assert "mirrored.jpg (test), a copy of" in printed.getvalue()


def without_splits(tmp_path, copied=()):
    """A folder of 20 pictures of each of two classes without splits; of some, a changed copy is in it, too."""
    for number in range(40):
        folder = tmp_path / "all" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / f"{number:02d}.png")
        if number in copied:
            ImageOps.mirror(picture(number)).save(folder / f"{number:02d}-mirrored.jpg", quality=70)
    return tmp_path / "all"


def splits_of(table):
    """Return for each picture the splits and the phases of its images, by a run's splits.csv."""
    table = table.assign(picture=table["path"].str.extract(r"(\d\d)[^/]*$"))
    return table.groupby("picture")[["split", "held_out_by"]].agg(lambda values: {*values})


def plan_and_train(data, weights, folder, printed, **keys):
    """Plan a run, train its plan as another process does, and return its table of splits."""
    recipe = finetune.Recipe(
        data=str(data), model="test_efficientnet", weights=str(weights), image_size=32, strategy="linear_probe", **keys
    )
    report = Report(Console(file=printed, width=500))
    finetune.plan_only(recipe, folder, report)
    finetune.run_plan(folder / "plan.json", None, report)
    return pd.read_csv(folder / "splits.csv", keep_default_na=False)


def test_a_picture_with_changed_copies_is_on_one_side_of_every_split_that_is_made(weights, tmp_path):
    printed = io.StringIO()
    copied = range(0, 40, 3)
    table = plan_and_train(without_splits(tmp_path, copied), weights, tmp_path / "run", printed)
    found = splits_of(table)
    assert len(table) == 40 + len(copied)
    assert found["split"].map(len).max() == 1
    assert found["held_out_by"].map(len).max() == 1  # each fold of a cross-validation holds out whole pictures
    assert found.loc[[f"{n:02d}" for n in copied], "split"].map(lambda each: "test" in each).any()
    assert f"{2 * len(copied)} images show {len(copied)} pictures in changed copies" in printed.getvalue()
    assert json.loads((tmp_path / "run" / "data.json").read_text())["accepted"] == []


def test_splits_without_copies_are_those_that_a_loading_makes(weights, tmp_path):
    printed = io.StringIO()
    data = without_splits(tmp_path)
    table = plan_and_train(data, weights, tmp_path / "run", printed)
    splits = load_images(str(data))
    assert sorted(table.loc[table["split"] == "test", "path"]) == sorted(paths_of(splits.test))
    assert "changed copies" not in printed.getvalue()


def test_one_file_under_two_labels_is_on_one_side_of_a_split_that_is_made(tmp_path):
    data = without_splits(tmp_path)
    for number in range(0, 40, 2):
        shutil.copy(data / "a" / f"{number:02d}.png", data / "b" / f"{number:02d}-b.png")
    for seed in range(5):
        splits = load_images(str(data), seed=seed)
        tested = {content.digest for content in contents_of(splits.test)}
        assert tested
        assert not tested & {content.digest for content in contents_of(splits.train)}
