"""Classes with too few images to be evaluated: they are trained on, and no split and no fold holds them out."""

import numpy as np
import pytest

from finetune.data import labels_of, load_images, tie_copies
from finetune.data.splitting import Ties, are_in_small_classes, stratified_folds, stratified_holdout, stratified_subset
from finetune.errors import DataError

LABELS = np.repeat([0, 1, 2, 3], [20, 12, 2, 1])


def counts_of(split, count):
    return np.bincount(labels_of(split), minlength=count).tolist()


def test_no_fold_holds_out_the_only_image_of_a_class_and_each_holds_out_the_other_classes():
    folds = stratified_folds(LABELS, 5, 0)
    assert len(folds) == 2  # as many as the smallest class that can be divided
    for stay, held in folds:
        assert 34 in stay
        assert set(LABELS[held]) == {0, 1, 2}
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(34))


def test_the_group_of_an_only_image_stays_with_it():
    groups = np.arange(35).astype(str)
    groups[:4] = "34"
    for stay, held in [stratified_holdout(LABELS, 0.3, 0, groups), *stratified_folds(LABELS, 3, 0, groups)]:
        assert {0, 1, 2, 3, 34} <= set(stay.tolist())
        assert len(held)


def test_copies_and_only_images_are_kept_where_they_belong():
    pictures = np.arange(35)
    pictures[1] = 0
    ties = Ties(None, pictures)
    for stay, held in [stratified_holdout(LABELS, 0.3, 0, ties), *stratified_folds(LABELS, 3, 0, ties)]:
        assert 34 in stay
        assert len({0, 1} & set(held.tolist())) in {0, 2}
        assert sorted([*stay, *held]) == list(range(35))


def test_classes_with_fewer_images_than_asked_for_are_not_held_out():
    _, held = stratified_holdout(LABELS, 0.15, 0, least=3)
    assert set(LABELS[held]) == {0, 1}


def test_images_that_have_a_rare_label_among_others_are_not_held_out():
    labels = np.zeros((30, 3), dtype=np.int64)
    labels[:, 0], labels[::2, 1], labels[4, 2] = 1, 1, 1
    assert np.flatnonzero(are_in_small_classes(labels)).tolist() == [4]
    for stay, _ in [stratified_holdout(labels, 0.3, 0), *stratified_folds(labels, 3, 0)]:
        assert 4 in stay


def test_images_that_cannot_be_held_out_at_all_are_refused_in_a_sentence():
    with pytest.raises(DataError, match="no image can be held out: each is of a class with fewer than 2 images, or in"):
        stratified_holdout(LABELS, 0.3, 0, np.full(35, "one"))


def test_a_limit_needs_no_second_image_of_a_class_that_has_one():
    chosen = stratified_subset(LABELS, 7, 0)
    assert np.bincount(LABELS[chosen]).tolist() == [2, 2, 2, 1]


def test_rare_classes_become_training_images_if_they_are_allowed_and_are_named(image_folder, tmp_path):
    data = str(image_folder(tmp_path, {"a": 12, "b": 12, "two": 2, "one": 1}))
    with pytest.raises(DataError, match=r"too few training images of 'one', 'two': .* --allow-rare"):
        load_images(data)
    splits = load_images(data, allow_rare=True)
    assert splits.class_names == ("a", "b", "one", "two")
    assert counts_of(splits.train, 4) == [10, 10, 1, 2]
    assert counts_of(splits.test, 4) == [2, 2, 0, 0]
    (note,) = splits.notes
    assert note.startswith("2 of 4 classes have fewer than 3 images: 'one', 'two'. All of these are trained on")


def test_given_splits_may_have_a_class_with_one_training_image_and_no_test_image(image_folder, tmp_path):
    image_folder(tmp_path, splits={"train": {"a": 6, "b": 6, "c": 1}, "test": {"a": 2, "b": 2}})
    splits = load_images(str(tmp_path), allow_rare=True)
    assert counts_of(splits.train, 3) == [6, 6, 1]
    assert splits.notes[0].startswith("1 of 3 classes have fewer than 2 training images: 'c'. ")


def test_two_classes_at_least_must_be_evaluated(image_folder, tmp_path):
    image_folder(tmp_path, {"a": 12, "b": 2, "c": 1})
    with pytest.raises(DataError, match="with allow_rare, two classes at least need 3 each"):
        load_images(str(tmp_path), allow_rare=True)


def test_nothing_changes_where_no_class_is_rare(image_folder, tmp_path):
    data = str(image_folder(tmp_path, {"a": 12, "b": 6}))
    plain, allowed = load_images(data), load_images(data, allow_rare=True)
    assert plain.test["image"] == allowed.test["image"]
    assert allowed.notes == ()


def test_ties_of_copies_leave_rare_classes_in_the_training(image_folder, tmp_path):
    from finetune.data.identity import contents_of

    splits = load_images(str(image_folder(tmp_path, {"a": 20, "b": 20, "c": 2})), allow_rare=True)
    pair = [content.text for content in contents_of(splits.train)][:2]
    tied = tie_copies(splits, [pair], seed=0)
    assert counts_of(tied.train, 3)[2] == 2
    assert counts_of(tied.test, 3) == counts_of(splits.test, 3)
