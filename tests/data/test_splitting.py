import numpy as np
import pytest
from datasets import Dataset
from datasets.utils import are_progress_bars_disabled

from finetune.data.image_splits import with_column
from finetune.data.splitting import Ties, stratified_folds, stratified_holdout, stratified_subset
from finetune.errors import DataError

SEEDS = range(25)


def random_labels(seed, smallest=2):
    """Between 2 and 6 classes of very unequal sizes, shuffled."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(smallest, 60, generator.integers(2, 7))
    return generator.permutation(np.repeat(np.arange(len(sizes)), sizes))


def random_groups(seed, count):
    return np.random.default_rng([seed, 1]).integers(0, max(2, count // 4), count).astype(str)


def are_parted(groups, first, second):
    return bool(set(groups[first]) & set(groups[second]))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fraction", [0.05, 0.15, 0.5])
def test_each_class_gives_its_share_within_one_image(seed, fraction):
    labels = random_labels(seed)
    _, held = stratified_holdout(labels, fraction, seed)
    shares = np.bincount(labels[held], minlength=labels.max() + 1)
    assert np.abs(shares - np.bincount(labels) * fraction).max() <= 1


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fraction", [0.01, 0.15, 0.99])
def test_each_class_is_on_either_side_of_a_holdout(seed, fraction):
    labels = random_labels(seed)
    stay, held = stratified_holdout(labels, fraction, seed)
    assert set(labels[stay]) == set(labels[held]) == set(labels)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("grouped", [False, True])
def test_every_image_is_on_one_side_of_a_holdout(seed, grouped):
    labels = random_labels(seed)
    groups = random_groups(seed, len(labels)) if grouped else None
    stay, held = stratified_holdout(labels, 0.15, seed, groups)
    assert sorted([*stay, *held]) == list(range(len(labels)))
    assert np.all(np.diff(stay) > 0)
    assert np.all(np.diff(held) > 0)


def test_the_only_image_of_a_class_is_not_held_out():
    labels = np.asarray([0] * 20 + [1])
    stay, _ = stratified_holdout(labels, 0.15, 0)
    assert 20 in stay


@pytest.mark.parametrize("grouped", [False, True])
def test_a_holdout_is_the_same_for_the_same_seed_and_another_for_another(grouped):
    labels = np.repeat([0, 1, 2], 40)
    groups = np.arange(120).astype(str) if grouped else None
    first, again, other = (stratified_holdout(labels, 0.15, seed, groups)[1].tolist() for seed in (3, 3, 4))
    assert first == again
    assert first != other


@pytest.mark.parametrize("seed", SEEDS)
def test_a_group_is_never_parted(seed):
    labels = random_labels(seed)
    groups = random_groups(seed, len(labels))
    assert not are_parted(groups, *stratified_holdout(labels, 0.15, seed, groups))
    for stay, held in stratified_folds(labels, 5, seed, groups):
        assert not are_parted(groups, stay, held)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_holdout_of_small_groups_is_about_the_asked_share(seed):
    labels = np.repeat([0, 1, 2], 60)
    groups = (np.arange(180) // 3).astype(str)
    _, held = stratified_holdout(labels, 0.15, seed, groups)
    assert 0.10 <= len(held) / 180 <= 0.20
    assert set(labels[held]) == {0, 1, 2}


def test_a_rare_class_does_not_make_a_holdout_of_groups_large():
    labels = np.repeat([0, 1], [100, 2])
    _, held = stratified_holdout(labels, 0.15, 0, np.arange(102).astype(str))
    assert len(held) / 102 < 0.25


def test_the_seed_says_whether_the_largest_group_is_held_out():
    sizes = [20] + [5] * 19
    labels = np.repeat(np.arange(20) % 2, sizes)
    groups = np.repeat(np.arange(20), sizes).astype(str)
    held_out = ["0" in groups[stratified_holdout(labels, 0.15, seed, groups)[1]] for seed in range(10)]
    assert not all(held_out)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("grouped", [False, True])
def test_every_image_is_held_out_in_one_fold(seed, grouped):
    labels = random_labels(seed)
    groups = random_groups(seed, len(labels)) if grouped else None
    folds = stratified_folds(labels, 5, seed, groups)
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(len(labels)))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("grouped", [False, True])
def test_the_two_sides_of_a_fold_are_all_images_and_neither_is_empty(seed, grouped):
    labels = random_labels(seed)
    groups = random_groups(seed, len(labels)) if grouped else None
    for stay, held in stratified_folds(labels, 5, seed, groups):
        assert len(stay)
        assert len(held)
        assert sorted([*stay, *held]) == list(range(len(labels)))


@pytest.mark.parametrize("seed", SEEDS)
def test_each_fold_holds_out_its_share_of_each_class_within_one_image(seed):
    labels = random_labels(seed, smallest=5)
    for _, held in stratified_folds(labels, 5, seed):
        shares = np.bincount(labels[held], minlength=labels.max() + 1)
        assert np.abs(shares - np.bincount(labels) / 5).max() <= 1


@pytest.mark.parametrize(("smallest", "num_folds"), [(9, 5), (5, 5), (4, 4), (3, 3), (2, 2)])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_small_class_makes_fewer_folds_so_that_each_has_an_image_of_it(smallest, num_folds, grouped):
    labels = np.repeat([0, 1], [30, smallest])
    groups = np.arange(30 + smallest).astype(str) if grouped else None
    folds = stratified_folds(labels, 5, 0, groups)
    assert len(folds) == num_folds
    for stay, held in folds:
        assert set(labels[stay]) == set(labels[held]) == {0, 1}


def test_there_are_no_more_folds_than_groups():
    labels = np.tile([0, 1], 15)
    assert len(stratified_folds(labels, 5, 0, np.repeat(["a", "b", "c"], 10))) == 3


@pytest.mark.parametrize("grouped", [False, True])
def test_folds_are_the_same_for_the_same_seed_and_others_for_another(grouped):
    labels = np.repeat([0, 1], 30)
    groups = np.arange(60).astype(str) if grouped else None
    first, again, other = (
        [held.tolist() for _, held in stratified_folds(labels, 3, seed, groups)] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_one_group_cannot_be_split():
    labels, groups = np.tile([0, 1], 10), np.asarray(["g"] * 20)
    for split, amount in ((stratified_holdout, 0.15), (stratified_folds, 5)):
        with pytest.raises(DataError, match="all images belong to one group"):
            split(labels, amount, 0, groups)


def test_classes_need_not_be_numbered_without_gaps():
    labels = np.repeat([2, 7], 10)
    stay, held = stratified_holdout(labels, 0.2, 0)
    assert np.bincount(labels[held]).tolist() == [0, 0, 2, 0, 0, 0, 0, 2]
    assert len(stratified_folds(labels, 5, 0)) == 5
    assert sorted([*stay, *held]) == list(range(20))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_subset_has_exactly_the_asked_size_and_two_images_of_each_class(seed):
    labels = random_labels(seed)
    classes = len(np.unique(labels))
    for count in {2 * classes, 2 * classes + 1, (2 * classes + len(labels)) // 2, len(labels) - 1}:
        chosen = stratified_subset(labels, count, seed)
        assert len(np.unique(chosen)) == count
        assert np.bincount(labels[chosen]).min() >= 2


@pytest.mark.parametrize("seed", SEEDS)
def test_a_subset_takes_each_class_in_proportion_within_one_image(seed):
    labels = random_labels(seed, smallest=20)
    count = len(labels) // 3
    taken = np.bincount(labels[stratified_subset(labels, count, seed)])
    assert np.abs(taken - np.bincount(labels) * (count / len(labels))).max() < 1


def test_a_subset_is_sorted_and_drawn_by_the_seed():
    labels = np.tile([0, 1], 50)
    first, again, other = (stratified_subset(labels, 20, seed).tolist() for seed in (5, 5, 6))
    assert first == again == sorted(first)
    assert first != other


@pytest.mark.parametrize("count", [6, 7, 100])
def test_a_subset_that_is_as_large_as_everything_is_everything(count):
    assert stratified_subset(np.asarray([0, 0, 1, 1, 2, 0]), count, 0).tolist() == list(range(6))


def test_a_class_of_one_image_is_kept_whole_in_a_subset():
    labels = np.asarray([0] * 30 + [1])
    assert 30 in stratified_subset(labels, 10, 0)


def test_a_limit_below_two_images_a_class_says_how_many_are_needed():
    with pytest.raises(DataError, match=r"a limit of 5 images .* 3 classes; use at least 6"):
        stratified_subset(np.repeat([0, 1, 2], 10), 5, 0)
    assert len(stratified_subset(np.repeat([0, 1, 2], 10), 6, 0)) == 6


def test_copies_of_one_picture_are_never_divided_and_pictures_are_stratified():
    labels = np.repeat([0, 1], [60, 40])
    pictures = np.arange(100) // 2 * 2  # each picture twice
    stay, held = stratified_holdout(labels, 0.2, 0, Ties(None, pictures))
    assert not {*pictures[stay]} & {*pictures[held]}
    assert np.bincount(labels[held]).tolist() == [12, 8]
    folds = stratified_folds(labels, 5, 0, Ties(None, pictures))
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(100))
    assert all(not {*pictures[train]} & {*pictures[held]} for train, held in folds)


def test_pictures_that_groups_share_join_these_groups():
    labels = np.tile([0, 1], 20)
    groups = np.repeat([f"g{number}" for number in range(10)], 4)
    pictures = np.arange(40)
    pictures[4] = 0  # one picture in the first two groups
    folds = stratified_folds(labels, 4, 0, Ties(groups, pictures))
    for train, held in folds:
        assert not {*groups[train]} & {*groups[held]}
        assert ("g0" in groups[held]) == ("g1" in groups[held])


def test_images_without_copies_are_split_as_if_nothing_were_known_of_pictures():
    labels = np.arange(50) % 3
    for own, plain in zip(
        stratified_folds(labels, 5, 1, Ties(None, np.arange(50))), stratified_folds(labels, 5, 1), strict=True
    ):
        assert np.array_equal(own[0], plain[0])
        assert np.array_equal(own[1], plain[1])


def test_a_column_is_added_to_selected_rows_without_a_progress_bar(capfd):
    table = Dataset.from_dict({"label": [0, 1, 2]}).select([2, 0])
    assert with_column(table, "group", ["a", "b"])[:] == {"label": [2, 0], "group": ["a", "b"]}
    assert capfd.readouterr() == ("", "")
    assert not are_progress_bars_disabled()
