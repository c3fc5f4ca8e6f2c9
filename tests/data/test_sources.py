import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from finetune.data import (
    Pixels,
    groups_of,
    label_paths,
    labels_of,
    load_images,
    load_scored_images,
    paths_of,
)
from finetune.errors import DataError


@pytest.fixture
def root(tmp_path):
    return tmp_path / "images"


def names_of(split, root):
    """Class folder and file name of each image of a split."""
    return [str(Path(path).relative_to(root)) for path in paths_of(split)]


def counts_of(split):
    return np.bincount(labels_of(split)).tolist()


def break_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"this is no image")
    return path


def test_a_flat_tree_gives_15_percent_of_each_class_as_a_test_split(image_folder, root):
    splits = load_images(str(image_folder(root, {"a": 20, "b": 40})))
    assert (counts_of(splits.train), counts_of(splits.test)) == ([17, 34], [3, 6])
    assert splits.validation is None
    assert splits.test_was_made


def test_every_image_of_a_flat_tree_is_either_for_training_or_for_the_test(image_folder, root):
    splits = load_images(str(image_folder(root, {"a": 9, "b": 12})))
    files = [str(path.relative_to(root)) for path in root.rglob("*.*")]
    assert sorted(names_of(splits.train, root) + names_of(splits.test, root)) == sorted(files)


def test_the_made_test_split_is_the_same_for_the_same_seed_and_another_for_another(image_folder, root):
    data = str(image_folder(root, {"a": 20, "b": 20}))
    first, again, other = (names_of(load_images(data, seed=seed).test, root) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_made_test_split_does_not_depend_on_where_the_folder_lies(image_folder, root, tmp_path):
    image_folder(root, {"a": 20, "b": 20})
    moved = shutil.copytree(root, tmp_path / "elsewhere" / "moved")
    assert names_of(load_images(str(root)).test, root) == names_of(load_images(str(moved)).test, moved)


def test_labels_are_those_of_the_folders(image_folder, root):
    splits = load_images(str(image_folder(root, {"cat": 8, "ant": 8, "dog": 8})))
    for split in (splits.train, splits.test):
        assert [splits.class_names[label] for label in labels_of(split)] == [
            Path(name).parts[0] for name in names_of(split, root)
        ]


def test_classes_are_in_lexical_order_in_every_split(image_folder, root):
    tree = dict.fromkeys(["b", "10", "A", "9", "ä"], 3)
    splits = load_images(str(image_folder(root, splits={"train": tree, "val": tree, "test": tree})))
    assert splits.class_names == ("10", "9", "A", "b", "ä")
    for split in (splits.train, splits.validation, splits.test):
        assert tuple(split.features["label"].names) == splits.class_names


def test_a_tree_with_train_and_test_is_taken_as_it_is(image_folder, root):
    splits = load_images(str(image_folder(root, splits={"train": {"a": 6, "b": 4}, "test": {"a": 1, "b": 2}})))
    assert (counts_of(splits.train), counts_of(splits.test)) == ([6, 4], [1, 2])
    assert splits.validation is None
    assert not splits.test_was_made
    assert {Path(name).parts[0] for name in names_of(splits.test, root)} == {"test"}


@pytest.mark.parametrize("name", ["val", "validation", "valid", "dev", "Val", "VALIDATION"])
def test_a_validation_folder_is_known_under_its_usual_names(image_folder, root, name):
    tree = {"train": {"a": 4, "b": 4}, name: {"a": 3, "b": 2}, "test": {"a": 1, "b": 1}}
    splits = load_images(str(image_folder(root, splits=tree)))
    assert (counts_of(splits.train), counts_of(splits.validation), counts_of(splits.test)) == ([4, 4], [3, 2], [1, 1])


@pytest.mark.parametrize(("train", "test"), [("training", "testing"), ("Train", "TEST")])
def test_train_and_test_folders_are_known_under_their_usual_names(image_folder, root, train, test):
    splits = load_images(str(image_folder(root, splits={train: {"a": 4, "b": 4}, test: {"a": 2, "b": 1}})))
    assert (counts_of(splits.train), counts_of(splits.test)) == ([4, 4], [2, 1])


@pytest.mark.parametrize("given", [("train",), ("train", "val")])
def test_a_tree_with_splits_is_taken_as_it_is_where_it_has_no_test_folder(image_folder, root, given):
    splits = load_images(str(image_folder(root, splits={name: {"a": 20, "b": 20} for name in given})))
    assert splits.test is None
    assert not splits.test_was_made
    assert counts_of(splits.train) == [20, 20]


def test_a_validation_split_without_some_class_does_not_shift_labels(image_folder, root):
    tree = {"train": {"a": 3, "b": 3, "c": 3}, "val": {"b": 2, "c": 1}, "test": {"c": 2}}
    splits = load_images(str(image_folder(root, splits=tree)))
    assert labels_of(splits.validation).tolist() == [1, 1, 2]
    assert labels_of(splits.test).tolist() == [2, 2]


@pytest.mark.parametrize(("folder", "split"), [("test", "test"), ("val", "validation")])
def test_a_class_that_only_a_later_split_has_is_named(image_folder, root, folder, split):
    image_folder(root, splits={"train": {"a": 3, "b": 3}, folder: {"a": 2, "zebra": 2}})
    with pytest.raises(DataError, match=f"the {split} split has classes without any training image: 'zebra'"):
        load_images(str(root))


def test_two_folders_for_one_split_are_refused(image_folder, root):
    tree = {"a": 2, "b": 2}
    image_folder(root, splits={"train": tree, "val": tree, "valid": tree})
    with pytest.raises(DataError, match="two folders for the validation split: val and valid"):
        load_images(str(root))


@pytest.mark.parametrize("given", [("test",), ("test", "val")])
def test_a_test_folder_without_training_images_is_refused(image_folder, root, given):
    image_folder(root, splits={name: {"a": 3, "b": 3} for name in given})
    with pytest.raises(DataError, match="no train"):
        load_images(str(root))


def test_a_flat_tree_may_have_classes_called_train_and_test(image_folder, root):
    splits = load_images(str(image_folder(root, {"plane": 6, "test": 6, "train": 6})))
    assert splits.class_names == ("plane", "test", "train")
    assert splits.test_was_made


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_folder_that_may_be_a_split_or_a_class_with_folders_is_refused_with_what_to_do(image_folder, root, name):
    image_folder(root, {"plane/old": 3, "ship/old": 3, f"{name}/old": 3, f"{name}/new": 3})
    with pytest.raises(
        DataError, match=rf"{name}, with classes in it, next to 'plane', 'ship'; .* --data .*{name}; .* rename"
    ):
        load_images(str(root))


def test_images_in_folders_below_a_class_belong_to_the_class(image_folder, root):
    image_folder(root, {"a": 5, "b": 5})
    image_folder(root / "a", {"2021": 3, "2022": 4}, size=(41, 32))
    image_folder(root / "b" / "deep", {"deeper": 2}, size=(42, 32))
    splits = load_images(str(root))
    assert splits.class_names == ("a", "b")
    assert counts_of(splits.train)[0] + counts_of(splits.test)[0] == 12
    assert counts_of(splits.train)[1] + counts_of(splits.test)[1] == 7


def test_hidden_files_and_folders_are_passed_over(image_folder, root):
    image_folder(root, {"a": 5, "b": 5, ".cache": 3, "__MACOSX": 3})
    image_folder(root / "a", {".ipynb_checkpoints": 2})
    for name in (".DS_Store", "._000.jpg", ".hidden.png"):
        break_image(root / "b" / name)
    splits = load_images(str(root))
    assert splits.class_names == ("a", "b")
    assert len(splits.train) + len(splits.test) == 10
    assert splits.unreadable == ()


@pytest.mark.parametrize("name", ["notes.txt", "labels.csv", "boxes.xml", "info.JSON", "Thumbs.db", "old.zip"])
def test_files_that_lie_beside_images_are_passed_over(image_folder, root, name):
    image_folder(root, {"a": 5, "b": 5})
    break_image(root / "a" / name)
    break_image(root / name)
    splits = load_images(str(root))
    assert len(splits.train) + len(splits.test) == 10
    assert splits.unreadable == ()


def test_an_image_without_an_ending_counts(image_folder, root):
    image_folder(root, {"a": 5, "b": 5})
    (root / "a" / "000.jpg").rename(root / "a" / "scan")
    splits = load_images(str(root))
    assert "a/scan" in names_of(splits.train, root) + names_of(splits.test, root)


def test_an_empty_class_folder_is_no_class(image_folder, root):
    image_folder(root, {"a": 5, "b": 5})
    (root / "c").mkdir()
    assert load_images(str(root)).class_names == ("a", "b")


@pytest.mark.parametrize("splits", [None, {"train": {"a": 6, "b": 6}, "test": {"a": 2, "b": 2}}])
def test_an_unreadable_file_is_listed_once_with_its_reason_and_left_out(image_folder, root, splits):
    image_folder(root, {"a": 6, "b": 6}, splits=splits)
    broken = [break_image(root / ("train" if splits else "") / "a" / name) for name in ("x.jpg", "y.png")]
    made = load_images(str(root))
    assert [(entry.path, bool(entry.reason)) for entry in made.unreadable] == [(str(path), True) for path in broken]
    assert len(made.train) + len(made.test) == (16 if splits else 12)
    assert not {str(path) for path in broken} & {*paths_of(made.train), *paths_of(made.test)}


def test_an_unreadable_file_does_not_shift_the_labels_of_the_rest(image_folder, root):
    image_folder(root, {"a": 6, "b": 6})
    break_image(root / "a" / "000.jpg")
    splits = load_images(str(root))
    for split in (splits.train, splits.test):
        assert [splits.class_names[label] for label in labels_of(split)] == [
            Path(name).parts[0] for name in names_of(split, root)
        ]


def test_a_folder_of_unreadable_files_alone_is_refused_with_the_first_of_them(root):
    for name in ("a/x.jpg", "a/y.jpg", "b/z.png"):
        break_image(root / name)
    with pytest.raises(
        DataError, match=r"none of the 3 files of .* can be read as an image; the first is .*x\.jpg: \w"
    ):
        load_images(str(root))


def test_an_empty_folder_is_refused(root):
    root.mkdir()
    with pytest.raises(DataError, match="is empty; expected one subfolder of images for each class"):
        load_images(str(root))


def test_images_outside_of_class_folders_are_refused_with_what_to_do(image_folder, tmp_path):
    image_folder(tmp_path, {"a": 4})
    with pytest.raises(DataError, match="holds 4 files but no class folders; put the images of each class"):
        load_images(str(tmp_path / "a"))


def test_a_missing_folder_is_named(root):
    with pytest.raises(DataError, match=r"there is no folder or file .*images; give a folder"):
        load_images(str(root))


def test_the_home_folder_may_be_written_as_a_tilde(image_folder, tmp_path, monkeypatch):
    image_folder(tmp_path / "images")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_images("~/images").class_names == ("a", "b")


def test_one_class_is_refused(image_folder, root):
    with pytest.raises(DataError, match="there is only one class, 'a'; a classifier needs at least two"):
        load_images(str(image_folder(root, {"a": 6})))


@pytest.mark.parametrize("splits", [None, {"train": {"a": 6, "b": 1}, "test": {"a": 2, "b": 2}}])
def test_a_class_with_one_training_image_is_refused_by_name(image_folder, root, splits):
    with pytest.raises(DataError, match="too few training images of 'b': every class needs at least"):
        load_images(str(image_folder(root, {"a": 6, "b": 1}, splits=splits)))


def test_a_class_that_must_give_a_test_image_too_is_not_said_to_need_two_images(image_folder, root):
    image_folder(root, {"a": 6, "b": 2})
    with pytest.raises(DataError, match=r"'b': every class needs at least 3, one to learn"):
        load_images(str(root))


@pytest.mark.parametrize("splits", [None, {"train": {"a": 30, "b": 15}, "test": {"a": 2, "b": 2}}])
def test_a_limit_leaves_so_many_training_images_of_each_class_in_proportion(image_folder, root, splits):
    data = str(image_folder(root, {"a": 30, "b": 15}, splits=splits))
    everything, limited = load_images(data), load_images(data, limit=9)
    assert counts_of(limited.train) == [6, 3]
    assert set(names_of(limited.train, root)) < set(names_of(everything.train, root))
    assert names_of(limited.test, root) == names_of(everything.test, root)


def test_a_limit_that_is_too_small_says_what_is_enough(image_folder, root):
    image_folder(root, {"a": 10, "b": 10})
    with pytest.raises(DataError, match="use at least 4"):
        load_images(str(root), limit=3)


@pytest.fixture
def labelled(image_folder, root):
    """Paths and labels of 6 + 6 images."""
    paths = sorted(image_folder(root, {"a": 6, "b": 6}).rglob("*.*"))
    return [str(path) for path in paths], [path.parent.name for path in paths]


def test_given_paths_are_all_for_training(labelled):
    splits = label_paths(*labelled)
    assert paths_of(splits.train) == labelled[0]
    assert [splits.class_names[label] for label in labels_of(splits.train)] == labelled[1]
    assert (splits.validation, splits.test, splits.test_was_made) == (None, None, False)


def test_given_groups_go_with_their_paths_past_unreadable_ones(labelled, tmp_path):
    paths, labels = labelled
    paths = [str(break_image(tmp_path / "broken.jpg")), *paths]
    splits = label_paths(paths, ["a", *labels], [f"g{number}" for number in range(13)])
    assert [entry.path for entry in splits.unreadable] == paths[:1]
    assert groups_of(splits.train).tolist() == [f"g{number}" for number in range(1, 13)]


def test_given_paths_without_groups_have_none(labelled):
    assert groups_of(label_paths(*labelled).train) is None


def test_given_paths_of_one_class_are_refused(labelled):
    with pytest.raises(DataError, match="only one class, 'x'"):
        label_paths(labelled[0], ["x"] * 12)


@pytest.mark.parametrize("count", [11, 13])
def test_labels_and_groups_for_another_number_of_paths_are_refused(labelled, count):
    paths, labels = labelled
    with pytest.raises(DataError, match=f"12 paths and {count} labels"):
        label_paths(paths, (labels * 2)[:count])
    with pytest.raises(DataError, match=f"12 paths and {count} groups"):
        label_paths(paths, labels, (labels * 2)[:count])


def test_no_paths_at_all_are_not_refused_for_a_test_split_that_nobody_gave():
    with pytest.raises(DataError) as caught:
        label_paths([], [])
    assert "test split" not in str(caught.value)


def test_images_are_scored_on_the_test_split_where_there_is_one(image_folder, root):
    image_folder(root, splits={"train": {"a": 4, "b": 4}, "val": {"a": 3, "b": 3}, "test": {"a": 1, "b": 2}})
    splits = load_scored_images(str(root), ("a", "b"))
    assert sorted({Path(name).parts[0] for name in names_of(splits.test, root)}) == ["test"]
    assert (len(splits.train), splits.validation, len(splits.test)) == (0, None, 3)


def test_all_images_are_scored_where_there_is_no_test_split(image_folder, root):
    splits = load_scored_images(str(image_folder(root, {"a": 3, "b": 4})), ("a", "b"))
    assert (len(splits.test), splits.test_was_made) == (7, False)


def test_scored_labels_are_indices_into_the_models_own_order_of_classes(image_folder, root):
    splits = load_scored_images(str(image_folder(root, {"a": 2, "b": 3})), ("b", "never seen", "a"))
    assert splits.class_names == ("b", "never seen", "a")
    folders = [Path(name).parts[0] for name in names_of(splits.test, root)]
    assert labels_of(splits.test).tolist() == [{"b": 0, "a": 2}[folder] for folder in folders]


def test_one_class_may_be_scored(image_folder, root):
    assert labels_of(load_scored_images(str(image_folder(root, {"b": 1})), ("a", "b")).test).tolist() == [1]


def test_a_class_that_the_model_does_not_know_is_named(image_folder, root):
    image_folder(root, {"a": 2, "yak": 2})
    with pytest.raises(DataError, match="classes that the model does not know: 'yak'; it knows 'a', 'b'"):
        load_scored_images(str(root), ("a", "b"))


def test_unreadable_images_are_listed_and_not_scored(image_folder, root):
    image_folder(root, {"a": 2, "b": 2})
    broken = break_image(root / "a" / "broken.jpg")
    splits = load_scored_images(str(root), ("a", "b"))
    assert [entry.path for entry in splits.unreadable] == [str(broken)]
    assert len(splits.test) == 4


def test_the_demo_has_1797_digits_of_10_classes():
    splits = load_images("demo:digits")
    assert splits.class_names == tuple("0123456789")
    assert len(splits.train) + len(splits.test) == 1797
    assert splits.unreadable == ()


def test_the_demo_is_written_once_in_the_cache_folder():
    load_images("demo:digits", limit=20)
    folder = Path(os.environ["XDG_CACHE_HOME"], "finetune", "digits")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    paths = paths_of(load_images("demo:digits", limit=20).train)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert all(Path(path).is_relative_to(folder) for path in paths)
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith("digits")] == ["digits"]


def test_an_unknown_demo_is_refused_with_the_one_there_is():
    with pytest.raises(DataError, match="there is no demo 'cats'; the embedded demo is demo:digits"):
        load_images("demo:cats")


def test_a_file_name_that_is_not_utf_8_is_escaped_and_its_image_is_read(image_folder, tmp_path):
    root = image_folder(tmp_path / "images")
    (root / "a" / "000.jpg").rename(root / "a" / os.fsdecode(b"caf\xe9.jpg"))
    (root / "b").rename(root / os.fsdecode(b"b\xff"))
    splits = load_images(str(root))
    assert splits.class_names == ("a", "b\\udcff")
    parts = (splits.train, splits.test)
    names = [path.rpartition("/")[2] for part in parts for path in paths_of(part)]
    assert "caf\\udce9.jpg" in names
    assert sum(len(Pixels(part, 8).read(range(len(part)))) for part in parts) == 12


def test_a_class_folder_without_images_is_named(image_folder, tmp_path):
    root = image_folder(tmp_path / "images")
    (root / "empty").mkdir()
    (root / "texts").mkdir()
    (root / "texts" / "labels.txt").touch()
    assert load_images(str(root)).notes == ("the folders have no images and are not a class: 'empty', 'texts'",)
