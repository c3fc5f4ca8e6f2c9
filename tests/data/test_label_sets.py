import numpy as np
import pytest

from finetune.data import labels_of, load_images, stratified_folds, stratified_holdout
from finetune.data.image_splits import groups_of
from finetune.data.iterative import divide
from finetune.data.label_sets import delimiter_of, divided, joined, rarest_class, to_matrix
from finetune.data.splitting import even_sample, stratified_subset
from finetune.errors import DataError
from finetune.recipe import TableColumns
from tests.labelled_patches import write_patches, write_table


def drawn(count=300, shares=(0.5, 0.2, 0.05), seed=0):
    """Sets of labels that each image has by chance, (count, len(shares))."""
    return (np.random.default_rng(seed).random((count, len(shares))) < shares).astype(np.int64)


def test_every_part_has_its_share_of_every_class():
    labels = drawn()
    part = divide(labels, (0.6, 0.4), seed=0)
    for own in (*labels.T, np.ones(len(labels))):
        assert own[part == 1].sum() == pytest.approx(0.4 * own.sum(), abs=1.0)


def test_folds_of_sets_hold_each_image_out_once():
    labels = drawn(90)
    held = np.concatenate([held for _, held in stratified_folds(labels, 5, 0)])
    assert sorted(held.tolist()) == list(range(90))


def test_there_are_no_more_folds_than_images_of_the_rarest_label():
    labels = drawn(60, (0.5, 0.4))
    labels[:, 1] = 0
    labels[:3, 1] = 1
    folds = stratified_folds(labels, 5, 0)
    assert len(folds) == 3
    assert all(labels[held, 1].sum() == 1 for _, held in folds)


@pytest.mark.parametrize("seed", [0, 1])
def test_no_part_divides_a_group(seed):
    labels, groups = drawn(seed=seed), np.repeat(np.arange(60), 5).astype(str)
    stay, held = stratified_holdout(labels, 0.2, seed, groups)
    assert not {*groups[stay]} & {*groups[held]}
    assert len(held) == pytest.approx(60, abs=10)


def test_images_of_one_group_are_not_divided():
    with pytest.raises(DataError, match="all images belong to one group"):
        stratified_holdout(drawn(20), 0.2, 0, np.array(["g"] * 20))


def test_the_same_seed_divides_in_the_same_way():
    labels = drawn()
    assert (divide(labels, (0.5, 0.5), 3) == divide(labels, (0.5, 0.5), 3)).all()
    assert (divide(labels, (0.5, 0.5), 3) != divide(labels, (0.5, 0.5), 4)).any()


def test_an_image_counts_for_its_rarest_class():
    assert rarest_class(np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1], [0, 0, 1]])).tolist() == [1, 0, 3, 2, 2]


def test_samples_of_sets_have_every_class():
    labels = drawn()
    for chosen in (even_sample(labels, 40, 0), stratified_subset(labels, 40, 0)):
        assert len(chosen) == 40
        assert labels[chosen].any(axis=0).all()


def test_written_sets_are_read_again():
    names = ("a", "b;c", "d")
    matrix = np.array([[1, 1, 0], [0, 0, 0], [0, 0, 1]])
    assert joined(matrix, names) == ["a|b;c", "", "d"]
    assert (divided(joined(matrix, names), names) == matrix).all()
    assert delimiter_of(("a", "b")) == ";"


def test_names_with_every_delimiter_are_still_written():
    assert delimiter_of(["a;b|c,d/e // f"]) == ";"


def test_a_name_that_is_no_class_has_no_place_in_a_matrix():
    with pytest.raises(KeyError):
        to_matrix([("x",)], ("a", "b"))


@pytest.fixture
def table(tmp_path):
    return write_table(write_patches(tmp_path / "images", 40), tmp_path / "table.csv")


def test_images_without_any_label_stay(table):
    splits = load_images(str(table), TableColumns(delimiter=";"))
    assert splits.has_sets
    assert splits.class_names == ("blue", "green", "red")
    labels = np.concatenate([labels_of(splits.train), labels_of(splits.test)])
    assert len(labels) == 40
    assert (labels.sum(axis=1) == 0).any()
    assert groups_of(splits.train) is None


def test_an_empty_selection_still_has_a_column_for_each_class(table):
    splits = load_images(str(table), TableColumns(delimiter=";"))
    assert labels_of(splits.train.select([])).shape == (0, 3)


def test_a_limit_keeps_images_of_every_label(table):
    splits = load_images(str(table), TableColumns(delimiter=";"), limit=16)
    assert len(splits.train) == 16
    assert (labels_of(splits.train).sum(axis=0) >= 2).all()


def test_a_label_of_one_image_is_refused(table):
    text = table.read_text().rstrip("\n")
    table.write_text(text + ";rare\n")
    with pytest.raises(DataError, match="too few training images of 'rare'"):
        load_images(str(table), TableColumns(delimiter=";"))


def test_the_columns_of_one_label_each_leave_no_trace_in_a_plan():
    assert TableColumns(label="kind").model_dump() == {"path": None, "label": "kind", "split": None, "group": None}
