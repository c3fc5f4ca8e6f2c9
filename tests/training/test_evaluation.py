import numpy as np
import pytest

from finetune.training import is_worse


def scores_of(labels, share_right, seed=0):
    generator = np.random.default_rng(seed)
    right = generator.random(len(labels)) < share_right
    return (np.eye(2)[np.where(right, labels, 1 - labels)] * 3 + generator.normal(0, 0.1, (len(labels), 2))).astype(
        np.float32
    )


@pytest.mark.parametrize(
    ("images", "after", "before", "is_rejected"),
    [
        (200, 0.5, 0.9, True),
        (200, 0.9, 0.9, False),
        (200, 0.95, 0.9, False),
        (6, 0.5, 0.9, False),
        (1, 0.0, 1.0, False),
    ],
)
def test_a_training_is_worse_where_the_difference_cannot_be_chance(images, after, before, is_rejected):
    labels = np.arange(images) % 2
    assert is_worse(scores_of(labels, after), scores_of(labels, before, seed=1), labels, "top1") == is_rejected


def test_with_equal_weights_for_all_classes_a_constant_answer_is_worse():
    labels = np.repeat([0, 1], [180, 20])
    constant = np.tile(np.float32([1.0, 0.0]), (200, 1))
    fair = scores_of(labels, 0.85)
    assert is_worse(constant, fair, labels, "balanced_accuracy")
    assert not is_worse(constant, fair, labels, "top1")
