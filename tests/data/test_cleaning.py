"""What must not count is left out, counted and said."""

import shutil

import pandas as pd
import pytest

from finetune.data import load_images, load_scored_images, paths_of
from finetune.errors import DataError


def names_of(dataset):
    return sorted(path.rpartition("/")[2] for path in paths_of(dataset))


@pytest.fixture
def root(image_folder, tmp_path):
    """A folder with 6 images of `a` and 6 of `b`."""
    return image_folder(tmp_path / "images")


def test_training_images_that_are_copies_of_test_images_are_left_out_of_the_training(image_folder, tmp_path):
    root = image_folder(tmp_path, splits={"train": {"a": 6, "b": 6}, "test": {"a": 3, "b": 3}})
    for name in ("a", "b"):
        for file in sorted((root / "test" / name).iterdir())[:2]:
            shutil.copy(file, root / "train" / name / f"copy-{file.name}")
    splits = load_images(str(root))
    assert (len(splits.train), len(splits.test)) == (12, 6)
    assert not [name for name in names_of(splits.train) if name.startswith("copy")]
    assert "4 train images are copies of images of the test split and are left out of the" in splits.notes[0]
    assert len(splits.left_out) == 4


def test_a_training_image_of_another_class_than_its_copy_in_the_test_is_left_out_too(image_folder, tmp_path):
    root = image_folder(tmp_path, splits={"train": {"a": 6, "b": 6}, "test": {"a": 3, "b": 3}})
    shutil.copy(next((root / "test" / "a").iterdir()), root / "train" / "b")
    splits = load_images(str(root))
    assert len(splits.train) == 12
    assert any("1 picture is in several classes" in note for note in splits.notes)


def test_a_training_split_of_test_images_alone_is_refused(image_folder, tmp_path):
    root = image_folder(tmp_path, splits={"train": {"a": 6, "b": 6}})
    shutil.copytree(root / "train", root / "test")
    with pytest.raises(DataError, match=r"every training image of .* is also an image of its test or validation split"):
        load_images(str(root))


def test_copies_in_one_class_count_once(root):
    shutil.copy(root / "a" / "000.jpg", root / "a" / "zzz.jpg")
    splits = load_images(str(root))
    assert len(splits.train) + len(splits.test) == 12
    assert "1 image is a copy of another image of the same class" in splits.notes[0]


def test_rows_that_stand_several_times_count_once(root, tmp_path):
    files = sorted(root.rglob("*.*"))
    table = pd.DataFrame({"path": files, "label": [file.parent.name for file in files]})
    pd.concat([table] * 3).to_csv(tmp_path / "rows.csv", index=False)
    splits = load_images(str(tmp_path / "rows.csv"))
    assert len(splits.train) + len(splits.test) == 12
    assert splits.notes == ("24 rows repeat the file of another row: each file counts once",)


def test_one_picture_under_two_classes_is_reported_and_kept(root):
    shutil.copy(root / "a" / "000.jpg", root / "b" / "other.jpg")
    splits = load_images(str(root))
    assert len(splits.train) + len(splits.test) == 13
    (note,) = splits.notes
    assert "1 picture is in several classes" in note
    assert "000.jpg ('a')" in note
    assert "other.jpg ('b')" in note


def test_repeated_images_of_an_evaluation_count_once(root):
    shutil.copy(root / "a" / "000.jpg", root / "a" / "zzz.jpg")
    splits = load_scored_images(str(root), ("a", "b"))
    assert len(splits.test) == 12
    assert "counts once" in splits.notes[0]


def test_a_class_without_a_readable_file_is_named(root):
    (root / "dog").mkdir()
    for number in range(3):
        (root / "dog" / f"{number}.heic").write_bytes(b"ftypheic" + bytes([number]))
    splits = load_images(str(root))
    assert splits.class_names == ("a", "b")
    assert "no file of class 'dog' can be read (3 files): the model will not know this class" in splits.notes


def test_links_upwards_do_not_multiply_images(root):
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "here").symlink_to(root / "a")
    splits = load_images(str(root))
    assert len(splits.train) + len(splits.test) == 12
    assert splits.notes == ()


def test_a_link_to_a_folder_of_images_elsewhere_is_followed(root, image_folder, tmp_path):
    image_folder(tmp_path / "more", {"x": 4}, size=(50, 30))
    (root / "a" / "more").symlink_to(tmp_path / "more")
    splits = load_images(str(root))
    assert len(splits.train) + len(splits.test) == 16


@pytest.mark.parametrize("names", [("train", "test1"), ("train", "val", "test"), ("Training", "test_2")])
def test_splits_without_class_folders_do_not_become_classes(image_folder, tmp_path, names):
    root = image_folder(tmp_path, dict.fromkeys(names, 4))
    with pytest.raises(DataError, match=r"has the splits .* but no class folders in them; put"):
        load_images(str(root))


def test_splits_below_the_classes_are_read_as_splits(image_folder, tmp_path):
    root = tmp_path / "images"
    image_folder(root / "a", {"train": 6, "test": 3})
    image_folder(root / "b", {"train": 5, "test": 2}, size=(41, 32))
    splits = load_images(str(root))
    assert splits.class_names == ("a", "b")
    assert (len(splits.train), len(splits.test)) == (11, 5)
    assert splits.notes == ("the splits are read from the folders below each class folder",)
