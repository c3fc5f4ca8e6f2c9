"""Every run says which test images show pictures of the training split, and nothing otherwise."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps
from rich.console import Console
from sklearn.datasets import load_digits

import finetune
from finetune.auditing.crossing import describe_crossing, find_crossing
from finetune.data import load_images
from finetune.runs.report import Report
from tests.auditing.pictures import picture


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
