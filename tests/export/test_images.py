import csv

import pytest
from PIL import Image

from finetune.data import native_size
from finetune.errors import DataError
from finetune.export.images import LEAST_IMAGES, LEAST_SHAPES, choose_images, derive_images


@pytest.fixture
def run(tmp_path):
    """The factory of a folder with the splits of a run."""

    def make(rows):
        folder = tmp_path / "run"
        folder.mkdir()
        with (folder / "splits.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["path", "label", "split", "held_out_by"], *rows])
        return folder

    return make


def many_images(folder, count):
    """Write images of `count` shapes, and return their paths."""
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (10 + number % 30, 12 + number // 30)).save(folder / f"{number:03d}.png")
    return sorted(map(str, folder.iterdir()))


def test_enough_test_images_of_enough_shapes_are_taken_as_they_are(run, tmp_path):
    paths = many_images(tmp_path / "test", 250)
    chosen = choose_images(run([[path, "a", "test", ""] for path in paths]), None)
    assert len(chosen.sources) == LEAST_IMAGES
    assert set(chosen.sources) <= set(paths)
    assert chosen.num_shapes == LEAST_IMAGES
    assert chosen.origin == "200 of 250 test images"


def test_held_out_images_are_added_to_few_test_images(run, tmp_path):
    paths = many_images(tmp_path / "images", 230)
    rows = [[path, "a", "test", ""] for path in paths[:20]] + [[path, "a", "train", "fold-1"] for path in paths[20:]]
    assert choose_images(run(rows), None).origin == "200 of 230 test and held-out images"


def test_images_of_the_training_are_not_taken(run, tmp_path):
    rows = [[path, "a", "train", ""] for path in many_images(tmp_path / "images", 3)]
    chosen = choose_images(run(rows), None)
    assert chosen.origin == "no image (the run's images are gone), and 200 images of smooth noise"
    assert chosen.num_shapes >= LEAST_SHAPES


def test_few_images_are_completed_by_parts_of_them(run, tmp_path, image_folder):
    images = image_folder(tmp_path / "images")
    chosen = choose_images(run([]), images)
    assert chosen.origin == "12 of 12 given images, and 188 parts of them, resized"
    assert len(chosen.table()) == LEAST_IMAGES
    assert chosen.num_shapes >= LEAST_SHAPES


def test_many_images_of_one_shape_get_parts_of_other_shapes(run, tmp_path, image_folder):
    images = image_folder(tmp_path / "images", {"a": 200})
    chosen = choose_images(run([]), images)
    assert chosen.origin == "200 of 200 given images, and 40 parts of them, resized"
    assert chosen.num_shapes >= LEAST_SHAPES


def test_derived_images_are_the_same_each_time(tmp_path, image_folder):
    path = str(next(image_folder(tmp_path).rglob("*.png")))
    first = derive_images([path], 5)
    assert first == derive_images([path], 5)
    assert len({native_size(image) for image in first}) == 5


def test_given_files_that_are_not_images_are_refused(run, tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"nothing in .*text can be read as an image; give a folder of images"):
        choose_images(run([]), tmp_path / "text")


def test_a_missing_folder_is_named(run, tmp_path):
    with pytest.raises(DataError, match="there is no image or folder"):
        choose_images(run([]), tmp_path / "nowhere")
