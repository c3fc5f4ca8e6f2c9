import numpy as np
import pytest

from finetune.decide.class_weights import are_bounded, balanced_weights


def test_classes_of_moderately_unequal_size_weigh_the_same():
    counts = np.array([100, 10, 1])
    weights = balanced_weights(counts)
    assert not are_bounded(counts)
    assert counts * weights == pytest.approx([37, 37, 37])


def test_the_smallest_classes_of_a_long_tail_weigh_at_most_a_hundred_times_the_largest():
    counts = np.array([100_000, 100, 3, 0])
    weights = balanced_weights(counts)
    assert are_bounded(counts)
    assert weights[1] / weights[0] == pytest.approx(100)
    assert weights[2] == weights[1]


def test_the_mean_weight_of_the_images_is_one():
    for counts in ([100, 10, 1], [100_000, 100, 3], [5, 0, 5_000]):
        assert np.average(balanced_weights(np.array(counts)), weights=counts) == pytest.approx(1)
