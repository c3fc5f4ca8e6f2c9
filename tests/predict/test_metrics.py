import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, precision_recall_fscore_support

from finetune.predict.metrics import describe_not_evaluated, metric_error, metric_value, score

NAMES = ["a", "b", "c", "d"]


@pytest.fixture
def predictions():
    """Probabilities (200, 4), mostly but not always right, and labels of unequal classes."""
    generator = np.random.default_rng(0)
    labels = generator.choice(4, 200, p=[0.5, 0.3, 0.15, 0.05])
    logits = generator.normal(size=(200, 4)) + 1.5 * np.eye(4)[labels]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), labels


def test_top1_balanced_accuracy_and_log_loss_are_those_of_scikit_learn(predictions):
    probabilities, labels = predictions
    metrics, predicted = score(probabilities, labels, NAMES), probabilities.argmax(axis=1)
    assert metrics.num_images == 200
    assert 0.3 < metrics.balanced_accuracy != metrics.top1 < 1
    assert metrics.top1 == pytest.approx(accuracy_score(labels, predicted))
    assert metrics.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert metrics.log_loss == pytest.approx(log_loss(labels, probabilities))


def test_each_class_has_the_scores_of_scikit_learn(predictions):
    probabilities, labels = predictions
    expected = np.stack(precision_recall_fscore_support(labels, probabilities.argmax(axis=1))).T
    per_class = score(probabilities, labels, NAMES).per_class
    assert [entry.name for entry in per_class] == NAMES
    found = [(entry.precision, entry.recall, entry.f1, entry.num_images) for entry in per_class]
    assert np.allclose(found, expected)


def test_the_interval_is_wilsons():
    probabilities = np.array([[0.9, 0.1]] * 8 + [[0.1, 0.9]] * 2)
    # 8 of 10 by hand: z = 1.96, centre (p + z^2/2n) / (1 + z^2/n), half width z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n)
    low, high = score(probabilities, np.zeros(10, dtype=int), ["a", "b"]).top1_interval
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


@pytest.mark.parametrize("right", [0, 1])
def test_the_interval_stays_between_0_and_1_and_open_where_all_agree(right):
    probabilities = np.tile([0.9, 0.1] if right else [0.1, 0.9], (20, 1))
    low, high = score(probabilities, np.zeros(20, dtype=int), ["a", "b"]).top1_interval
    assert 0.15 < high - low < 0.17
    assert 0 <= low <= right <= high <= 1


def test_a_class_without_images_does_not_count_in_the_balanced_accuracy():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
    metrics = score(probabilities, np.array([0, 1, 1]), ["a", "b", "c"])
    assert metrics.balanced_accuracy == pytest.approx((1.0 + 0.5) / 2)
    assert metrics.per_class[2].num_images == 0


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy():
    probabilities = np.array([[0.9, 0.1]] * 10)
    labels = np.array([0] * 7 + [1] * 3)
    assert score(probabilities, labels, ["a", "b"]).calibration_error == pytest.approx(0.9 - 0.7)


def test_gaps_of_different_bins_do_not_cancel():
    probabilities = np.array([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 10)
    labels = np.array([0] * 7 + [1] * 3 + [0] * 8 + [1] * 2)
    assert score(probabilities, labels, ["a", "b"]).calibration_error == pytest.approx((0.2 + 0.2) / 2)


def test_sure_and_right_is_perfectly_calibrated():
    assert score(np.eye(3), np.arange(3), ["a", "b", "c"]).calibration_error == 0.0


def test_a_right_class_of_probability_zero_has_a_finite_loss():
    assert score(np.array([[1.0, 0.0]]), np.array([1]), ["a", "b"]).log_loss == pytest.approx(-math.log(1e-12))


@pytest.mark.parametrize("shape", [(0, 2), (3, 2), (2, 3)])
def test_shapes_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="probabilities for"):
        score(np.ones(shape), np.zeros(2 if shape[0] else 0, dtype=int), ["a", "b"])


@pytest.mark.parametrize(
    ("metric", "expected"), [("top1", accuracy_score), ("balanced_accuracy", balanced_accuracy_score)]
)
def test_the_value_of_a_metric_is_that_of_scikit_learn(predictions, metric, expected):
    probabilities, labels = predictions
    predicted = probabilities.argmax(axis=1)
    assert metric_value(metric, predicted, labels) == pytest.approx(expected(labels, predicted))


@pytest.mark.parametrize("metric", ["top1", "balanced_accuracy"])
def test_the_error_of_a_metric_is_its_spread_over_new_images(metric):
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], [150, 50])
    chance = np.where(labels == 0, 0.9, 0.6)
    draws = [np.where(generator.random(200) < chance, labels, 1 - labels) for _ in range(500)]
    spread = np.std([metric_value(metric, drawn, labels) for drawn in draws])
    assert np.mean([metric_error(metric, drawn, labels) for drawn in draws]) == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize("metric", ["top1", "balanced_accuracy"])
def test_no_error_is_zero(metric):
    labels = np.array([0, 0, 1, 1])
    assert metric_error(metric, labels, labels) > 0.1


def test_classes_without_an_image_are_counted_and_named_and_do_not_lower_the_balanced_accuracy():
    metrics = score(np.eye(12)[[0, 1, 1]], np.array([0, 1, 0]), [f"c{number:02d}" for number in range(12)])
    assert metrics.num_not_evaluated == 10
    assert metrics.balanced_accuracy == pytest.approx(0.75)
    assert describe_not_evaluated(metrics, "test image") == (
        "10 of 12 classes have no test image and are not evaluated: 'c02', 'c03', 'c04', 'c05', 'c06', 'c07', 'c08', "
        "'c09' and 2 more"
    )


def test_nothing_is_said_where_every_class_has_an_image(predictions):
    metrics = score(*predictions, NAMES)
    assert describe_not_evaluated(metrics) == ""
    assert "num_not_evaluated" not in metrics.model_dump()
