import numpy as np
import pytest

from finetune.data import load_images, stratified_folds
from finetune.measure.shift import compare, compare_rules, find_groups, ridge_errors

IMAGES = 240
CLASSES = 3
SPEAKERS = 8


@pytest.fixture
def spoken():
    """Return the factory of features, labels and speakers; a speaker changes the features of each class in an own
    way."""

    def make(strength, seed=0):
        generator = np.random.default_rng(seed)
        labels = np.arange(IMAGES) % CLASSES
        speaker = np.arange(IMAGES) // CLASSES % SPEAKERS
        features = generator.normal(size=(IMAGES, 24)).astype(np.float32)
        features[np.arange(IMAGES), labels] += 1.0
        features += strength * generator.normal(size=(SPEAKERS, CLASSES, 24))[speaker, labels].astype(np.float32)
        return features, labels, speaker

    return make


def paths_of_speakers(labels, speaker):
    return [
        f"{label}/speaker{who}_{number}.png" for number, (label, who) in enumerate(zip(labels, speaker, strict=True))
    ]


def clear(features, labels, paths):
    errors = ridge_errors(features, labels)
    compared = list(compare_rules(labels, errors, paths, [str(label) for label in labels], 0))
    return [rule for rule, shift in compared if shift.is_clear(len(compared))]


def test_the_residuals_are_those_of_a_fit_without_the_held_out_images(spoken):
    features, labels, _ = spoken(1.0)
    folds = stratified_folds(labels, 4, 0)
    wrong, loss = ridge_errors(features, labels)(folds)
    standard = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-3 * features.std())
    targets = np.eye(CLASSES)[labels]
    for train, held in folds:
        kernel = standard @ standard.T / 24 + 1.0
        weights = np.linalg.solve(kernel[np.ix_(train, train)] + 0.3 * np.eye(len(train)), targets[train])
        predicted = kernel[np.ix_(held, train)] @ weights
        assert loss[held] == pytest.approx(((targets[held] - predicted) ** 2).sum(axis=1), rel=1e-3)
        assert np.array_equal(wrong[held] == 1, predicted.argmax(axis=1) != labels[held])


def test_speakers_in_the_names_that_change_the_features_are_found(spoken):
    features, labels, speaker = spoken(1.5)
    assert clear(features, labels, paths_of_speakers(labels, speaker)) == [r"(speaker\d+)"]


def test_speakers_that_change_nothing_are_not_found(spoken):
    alarms = 0
    for seed in range(20):
        features, labels, speaker = spoken(0.0, seed)
        alarms += bool(clear(features, labels, paths_of_speakers(labels, speaker)))
    assert alarms <= 1


def test_groups_that_are_the_classes_are_not_compared(spoken):
    features, labels, _ = spoken(1.5)
    paths = [f"{label}/kind{label}_x.png" for label in labels]
    assert list(compare_rules(labels, ridge_errors(features, labels), paths, [str(label) for label in labels], 0)) == []


def test_random_folds_have_the_sizes_and_classes_of_the_grouped_ones(spoken):
    _, labels, speaker = spoken(0.0)
    seen = []

    def errors(folds):
        seen.append([np.bincount(labels[held], minlength=CLASSES).tolist() for _, held in folds])
        return np.zeros(IMAGES), np.zeros(IMAGES)

    compare(labels, stratified_folds(labels, 5, 0, speaker.astype(str)), errors, 2, 0)
    assert len(seen) == 3
    assert seen[0] == seen[1] == seen[2]


def test_few_images_are_not_searched(image_folder, tmp_path, spoken):
    splits = load_images(str(image_folder(tmp_path, {"a": 30, "b": 30})))
    count = len(splits.train)
    assert find_groups(spoken(1.5)[0][:count], splits, np.arange(count), 0) is None
