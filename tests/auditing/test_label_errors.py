"""Labels that the other images contradict are reported, others are not."""

import numpy as np
import pytest

pytest.importorskip("cleanlab")

from finetune.auditing.label_errors import IMPROBABLE, find_label_errors, held_out_probabilities


@pytest.fixture(scope="module")
def separable():
    """Features of 120 images of three classes that a probe tells apart, and their classes."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 40)
    return (4.0 * np.eye(8)[labels] + generator.normal(size=(120, 8))).astype(np.float32), labels


def test_swapped_labels_are_found_and_no_others(separable):
    features, labels = separable
    swapped = [3, 50, 90]
    wrong = labels.copy()
    wrong[swapped] = (wrong[swapped] + 1) % 3
    found = find_label_errors(held_out_probabilities(features, wrong, 3, None), wrong)
    assert len(found) >= 2
    assert {*found.tolist()} <= {*swapped}
    assert find_label_errors(held_out_probabilities(features, labels, 3, None), labels).size == 0


def test_the_least_probable_label_comes_first(separable):
    _, labels = separable
    probabilities = np.full((120, 3), 0.01)
    probabilities[np.arange(120), labels] = 0.98
    for row, own in ((5, IMPROBABLE), (60, 0.001)):
        probabilities[row] = 0.0
        probabilities[row, labels[row]] = own
        probabilities[row, labels[row] - 1] = 1.0 - own
    assert find_label_errors(probabilities, labels).tolist() == [60, 5]


def test_a_class_without_images_is_no_obstacle(separable):
    features, labels = separable
    shifted = labels + (labels > 0)  # no image has class 1
    assert find_label_errors(held_out_probabilities(features, shifted, 4, None), shifted).size == 0
