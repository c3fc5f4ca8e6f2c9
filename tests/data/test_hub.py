import contextlib
import itertools
import re

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from huggingface_hub import constants
from PIL import Image

from finetune.data import groups_of, labels_of, load_images, load_scored_images, read_image
from finetune.data.hub import load_hub_table
from finetune.errors import DataError
from finetune.recipe import TableColumns

ANIMALS = ClassLabel(names=["zebra", "ant"])


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


COUNTER = itertools.count()


def shade(number):
    """An image that tells its number in red; no two are alike."""
    made = next(COUNTER)
    return Image.new("RGB", (8, 6), (number, made % 256, made // 256))


def make(labels, feature=ANIMALS, image="image", label="label", **more):
    """A data set with an image, which tells its number in red, for each label; `more` columns are texts."""
    content = {image: [shade(number) for number in range(len(labels))], label: list(labels), **more}
    features = {image: datasets.Image(), label: feature, **dict.fromkeys(more, Value("string"))}
    return Dataset.from_dict(content, features=Features(features))


def with_mask(image):
    """Two images, and a second image column whose reds are 200 and 201."""
    content = {image: [shade(0), shade(1)], "mask": [shade(200), shade(201)], "label": [0, 1]}
    return Dataset.from_dict(
        content, features=Features({image: datasets.Image(), "mask": datasets.Image(), "label": ANIMALS})
    )


@pytest.fixture
def save(tmp_path):
    """Save to disk as `datasets` does, and return the recipe's name of it."""

    def save_to_disk(dataset):
        dataset.save_to_disk(str(tmp_path / "saved"))
        return f"hf:{tmp_path / 'saved'}"

    return save_to_disk


def read(name, /, **columns):
    return load_hub_table(name.removeprefix("hf:"), TableColumns(**columns))


def numbers_of(sources):
    return [int(np.asarray(read_image(source))[0, 0, 0]) for source in sources]


def test_a_saved_data_set_gives_its_images_and_labels(save):
    table = read(save(make([0, 1, 1, 0])))
    assert numbers_of(table.sources) == [0, 1, 2, 3]
    assert table.labels == ["zebra", "ant", "ant", "zebra"]
    assert (table.splits, table.groups) == (None, None)


def test_a_saved_data_set_without_splits_gets_a_test_split(save):
    splits = load_images(save(make([0, 1] * 10)))
    assert (len(splits.train), len(splits.test), splits.test_was_made) == (16, 4, True)


def test_the_splits_of_a_saved_data_set_are_taken_as_they_are(save):
    saved = save(DatasetDict(train=make([0, 1] * 4), validation=make([1, 1]), test=make([1, 0, 1])))
    splits = load_images(saved)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (8, 2, 3)
    assert labels_of(splits.test).tolist() == [1, 0, 1]
    assert numbers_of(splits.test["image"]) == [0, 1, 2]


def test_a_data_set_of_a_train_split_alone_gets_a_test_split(save):
    assert load_images(save(DatasetDict(train=make([0, 1] * 10)))).test_was_made


def test_a_data_set_with_train_and_validation_is_taken_as_it_is(save):
    splits = load_images(save(DatasetDict(train=make([0, 1] * 10), validation=make([0, 1]))))
    assert (len(splits.train), len(splits.validation), splits.test) == (20, 2, None)


@pytest.mark.parametrize(
    ("train", "test"),
    [("train.parquet", "test.parquet"), ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet")],
)
def test_a_folder_of_parquet_files_gives_its_splits(tmp_path, train, test):
    (tmp_path / "set" / "data").mkdir(parents=True)
    make([0, 1] * 4).to_parquet(str(tmp_path / "set" / train))
    make([1, 0, 1]).to_parquet(str(tmp_path / "set" / test))
    splits = load_images(f"hf:{tmp_path / 'set'}")
    assert splits.class_names == ("zebra", "ant")
    assert (len(splits.train), labels_of(splits.test).tolist()) == (8, [1, 0, 1])


def test_the_order_of_a_class_label_is_kept(save):
    splits = load_images(save(make([0, 1] * 6)))
    assert splits.class_names == ("zebra", "ant")
    names = [splits.class_names[label] for label in labels_of(splits.train)]
    assert names == [["zebra", "ant"][number % 2] for number in numbers_of(splits.train["image"])]


def test_the_order_of_classes_is_that_of_the_training_split(save):
    other = ClassLabel(names=["ant", "zebra"])
    splits = load_images(save(DatasetDict(train=make([0, 1] * 3), test=make([0, 0, 1], other))))
    assert splits.class_names == ("zebra", "ant")
    assert labels_of(splits.test).tolist() == [1, 1, 0]


def test_a_test_split_may_state_fewer_classes_than_the_training_split(save):
    three = ClassLabel(names=["zebra", "ant", "yak"])
    splits = load_images(save(DatasetDict(train=make([0, 1, 2] * 3, three), test=make([0, 1]))))
    assert splits.class_names == ("zebra", "ant", "yak")


@pytest.mark.parametrize("with_test", [False, True])
def test_a_stated_class_without_any_image_is_left_out(save, with_test):
    stated = ClassLabel(names=["zebra", "yak", "ant"])
    train = make([0, 2] * 10, stated)
    splits = load_images(save(DatasetDict(train=train, test=make([0, 2], stated)) if with_test else train))
    assert splits.class_names == ("zebra", "ant")
    assert set(labels_of(splits.train)) == {0, 1}


def test_columns_are_found_by_their_types_whatever_their_names(save):
    table = read(save(make([0, 1], image="pixel_values_0", label="Gattung", title=["x", "y"])))
    assert numbers_of(table.sources) == [0, 1]
    assert table.labels == ["zebra", "ant"]


def test_of_two_image_columns_the_usual_name_is_taken(save):
    assert numbers_of(read(save(with_mask("image"))).sources) == [0, 1]


def test_two_image_columns_of_odd_names_are_refused_with_both(save):
    name = save(with_mask("photo"))
    with pytest.raises(DataError, match=r"2 image columns.*photo, mask.*--set columns\.path=NAME"):
        read(name)
    assert numbers_of(read(name, path="mask").sources) == [200, 201]


def test_two_label_columns_of_odd_names_are_refused_until_one_is_asked_for(save):
    dataset = make([0, 1], label="fine").add_column("coarse", [0, 0], feature=ClassLabel(names=["animal"]))
    name = save(dataset)
    with pytest.raises(DataError, match=r"fine, coarse.*--set columns\.label=NAME"):
        read(name)
    assert read(name, label="coarse").labels == ["animal", "animal"]


def test_a_data_set_without_images_is_refused_with_its_columns(save):
    name = save(Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}))
    with pytest.raises(DataError, match=r"0 image columns.*the columns are text, label"):
        read(name)


def test_a_data_set_without_labels_is_refused_with_its_columns(save):
    name = save(make([0, 1], Value("int64"), label="weight"))
    with pytest.raises(DataError, match=r"no label column; the columns are image, weight.*--set columns\.label=NAME"):
        read(name)


@pytest.mark.parametrize("column", ["path", "label", "group"])
def test_an_asked_column_that_is_missing_is_refused_with_the_columns_there_are(save, column):
    name = save(make([0, 1]))
    with pytest.raises(DataError, match=r"'nothing'.*the columns are"):
        read(name, **{column: "nothing"})


def test_an_asked_split_column_is_taken_or_refused_but_not_passed_over(save):
    name = save(make([0, 1] * 4, fold=["train"] * 6 + ["test"] * 2))
    with contextlib.suppress(DataError):
        assert read(name, split="fold").splits == ["train"] * 6 + ["test"] * 2


def test_labels_that_are_texts_or_numbers_become_sorted_class_names(save):
    assert load_images(save(make(["01", "NA"] * 6, Value("string")))).class_names == ("01", "NA")


def test_numbers_without_names_become_class_names(save):
    assert load_images(save(make([7, 3] * 6, Value("int64")))).class_names == ("3", "7")


@pytest.mark.parametrize(
    ("feature", "labels", "sets"),
    [
        (datasets.List(ANIMALS), [[0], [0, 1]], [(ANIMALS.names[0],), tuple(sorted(ANIMALS.names[:2]))]),
        (datasets.List(ANIMALS), [[0, None], [-1]], [(ANIMALS.names[0],), ()]),
        (datasets.List(Value("string")), [["x"], ["y", "x"]], [("x",), ("x", "y")]),
        (datasets.List(Value("int64")), [[0], []], [("0",), ()]),
    ],
    ids=["class labels", "class labels with missing ones", "texts", "numbers"],
)
def test_lists_are_sets_of_labels(save, feature, labels, sets):
    assert read(save(make(labels, feature))).sets == sets


def test_labels_joined_in_one_text_are_refused_with_the_way_to_part_them(save):
    name = save(make(["x", "x|y"], Value("string")))
    with pytest.raises(DataError, match=r"several labels per image.*columns\.delimiter=\"\|\""):
        read(name)
    assert read(name, delimiter="|").sets == [("x",), ("x", "y")]


@pytest.mark.parametrize("label", [-1, None])
def test_a_split_whose_labels_are_withheld_is_refused_by_name(save, label):
    name = save(DatasetDict(train=make([0, 1] * 3), test=make([label] * 2)))
    with pytest.raises(DataError, match="images of the split 'test' have no label; remove the split"):
        load_images(name)


def test_a_missing_label_among_texts_is_no_class(save):
    name = save(make(["x", "y", None], Value("string")))
    assert read(name).labels == ["x", "y", ""]


def test_names_with_a_comma_of_declared_classes_are_one_label_each(save):
    names = ["maillot", "maillot, tank suit", "tank suit"]
    assert read(save(make([0, 1, 2], ClassLabel(names=names)))).labels == names


def test_single_images_of_a_declared_class_without_a_label_are_left_out(save):
    splits = load_images(save(make([0, 1] * 6 + [-1])))
    assert len(splits.train) + len(splits.test) == 12
    assert [file.reason for file in splits.left_out] == ["it has no label"]


def test_images_without_a_group_are_each_a_group_of_their_own(save):
    assert len({*read(save(make([0, 1, 0, 1], group=["m", "m", None, ""]))).groups}) == 3


def test_a_row_without_an_image_is_listed_and_left_out(save):
    content = {"image": [*map(shade, range(12)), None], "label": [0, 1] * 6 + [0]}
    splits = load_images(save(Dataset.from_dict(content, features=Features(image=datasets.Image(), label=ANIMALS))))
    assert len(splits.unreadable) == 1
    assert len(splits.train) + len(splits.test) == 12


def test_a_split_of_another_name_is_refused(save):
    name = save(DatasetDict(train=make([0, 1] * 3), extra=make([0, 1])))
    with pytest.raises(DataError, match="'extra' is not a split; expected train, validation or test"):
        load_images(name)


def test_a_group_column_is_whole_in_the_made_test_split(save):
    groups = [str(number // 4) for number in range(24)]
    splits = load_images(save(make([0, 1] * 12, group=groups)))
    assert not set(groups_of(splits.train)) & set(groups_of(splits.test))


def test_a_group_that_straddles_given_splits_is_refused(save):
    name = save(DatasetDict(train=make([0, 1] * 2, group=list("mmnn")), test=make([0, 1], group=list("no"))))
    with pytest.raises(DataError, match="group 'n' is in train and in test"):
        load_images(name)


def test_a_group_column_that_only_one_split_has_does_not_stop_the_loading(save):
    saved = save(
        DatasetDict(train=make([0, 1] * 6, group=[str(number // 2) for number in range(12)]), test=make([0, 1]))
    )
    assert len(load_images(saved).test) == 2


def test_the_test_split_is_scored_in_the_models_order_of_classes(save):
    saved = save(DatasetDict(train=make([0, 1] * 4), test=make([0, 0, 1])))
    assert labels_of(load_scored_images(saved, ("ant", "bee", "zebra")).test).tolist() == [2, 2, 0]


def test_a_name_that_cannot_be_had_offline_says_to_give_a_local_copy():
    with pytest.raises(DataError, match=r"the data set nobody/nothing cannot be loaded \(.+\); offline, give the path"):
        load_images("hf:nobody/nothing")


def test_an_empty_folder_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=f"the data set {re.escape(str(tmp_path))} cannot be loaded"):
        load_images(f"hf:{tmp_path}")
