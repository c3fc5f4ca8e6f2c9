import numpy as np
import pytest

from finetune.decide.answers import AnswerRule
from finetune.training import is_worse
from finetune.training.evaluation import describe_comparison, mean_cost


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
        (200, 0.95, 0.9, False),
        (6, 0.5, 0.9, False),
        (1, 0.0, 1.0, False),
    ],
)
def test_a_training_is_worse_where_the_difference_cannot_be_chance(images, after, before, is_rejected):
    labels = np.arange(images) % 2
    assert is_worse(scores_of(labels, after), scores_of(labels, before, seed=1), labels, "top1") == is_rejected


def scores_with_errors_on(wrong, margin_of_errors=3.0):
    """Scores for 200 images of class 0, of which some are answered wrongly, by some margin; the others by 3."""
    margins = np.full(200, 3.0)
    margins[wrong] = -margin_of_errors
    return np.stack([margins, np.zeros(200)], axis=1).astype(np.float32)


@pytest.mark.parametrize(("errors", "is_rejected"), [(30, True), (24, True), (20, False), (18, False)])
def test_a_training_is_worse_from_two_standard_errors_of_the_log_loss_on(errors, is_rejected):
    """Of 200 images, 10 others are wrong before. With as sure answers, log-losses and errors differ by about as many
    standard errors, (e - 10) / sqrt(e + 10 - (e - 10)^2 / 200): 3.2, 2.4, 1.8 and 1.5."""
    labels = np.zeros(200, dtype=int)
    after, before = (scores_with_errors_on(wrong) for wrong in (slice(10, 10 + errors), slice(10)))
    assert is_worse(after, before, labels, "top1") is is_rejected


@pytest.mark.parametrize(("more", "is_rejected"), [(1, False), (2, False), (4, True)])
def test_a_training_with_a_worse_log_loss_needs_a_standard_error_more_errors_to_be_worse(more, is_rejected):
    """Before, errors were known to be unsure; after, they are as sure as all other answers. The errors are 19
    of the 20 and `more` others: the difference, more - 1, is about (more - 1) / sqrt(more + 1) standard errors:
    0, 0.6 and 1.3."""
    labels = np.zeros(200, dtype=int)
    after, before = scores_with_errors_on(slice(1, 20 + more)), scores_with_errors_on(slice(20), margin_of_errors=0.1)
    assert is_worse(after, before, labels, "top1") is is_rejected


def test_with_equal_weights_for_all_classes_a_constant_answer_is_worse():
    labels = np.repeat([0, 1], [180, 20])
    constant = np.tile(np.float32([1.0, 0.0]), (200, 1))
    fair = scores_of(labels, 0.85)
    assert is_worse(constant, fair, labels, "balanced_accuracy")
    assert not is_worse(constant, fair, labels, "top1")


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("top1", "90.0 % of the held-out images are right after it, 85.0 % before it"),
        ("balanced_accuracy", "its balanced accuracy is 50.0 % on held-out images, and was 91.7 % before"),
    ],
)
def test_a_training_and_its_probe_are_compared_in_words_by_the_metric_of_the_plan(metric, said):
    """18 images of class 0 and 2 of class 1: a constant answer, and one that takes 3 of class 0 for class 1."""
    labels = np.repeat([0, 1], [18, 2])
    constant, fair = np.eye(2)[np.zeros(20, dtype=int)], np.eye(2)[np.where(np.arange(20) < 3, 1, labels)]
    assert describe_comparison(constant.astype(np.float32), fair.astype(np.float32), labels, metric) == said


@pytest.mark.parametrize(("noise", "is_rejected"), [(3.0, True), (0.0, False)])
def test_a_training_of_sets_is_worse_by_its_mean_average_precision(noise, is_rejected):
    generator = np.random.default_rng(0)
    labels = (generator.random((200, 3)) < 0.3).astype(np.int64)
    before = (4.0 * labels - 2.0 + generator.standard_normal((200, 3))).astype(np.float32)
    after = (before + noise * generator.standard_normal((200, 3))).astype(np.float32)
    assert is_worse(after, before, labels, "mean_average_precision") is is_rejected


def test_with_costs_a_training_is_worse_by_the_costs_of_its_answers_and_not_by_its_errors():
    """14 images of class 0 are taken for class 1, at a cost of 1 each, or 3 of class 1 for class 0, at 20 each."""
    rule = AnswerRule(costs=((0, 1), (20, 0)), are_distances=False)
    labels = np.repeat([0, 1], 200)

    def wrong(places):
        answers = np.where(np.isin(np.arange(400), places), 1 - labels, labels)
        return (4.0 * np.eye(2)[answers]).astype(np.float32)

    cheap, costly = wrong(range(14)), wrong(range(200, 203))
    assert mean_cost(cheap, labels, rule) == 14 / 400
    assert mean_cost(costly, labels, rule) == 3 * 20 / 400
    assert is_worse(cheap, costly, labels, "top1")
    assert not is_worse(cheap, costly, labels, "mean_cost", rule)
    assert is_worse(wrong(range(200, 214)), costly, labels, "mean_cost", rule)
