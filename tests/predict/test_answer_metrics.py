import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, mean_absolute_error

from finetune.decide.answers import AnswerRule, best_answers, squared_distances
from finetune.predict.answer_metrics import score_answers, weighted_kappas
from finetune.predict.metrics import score

NAMES = ("none", "mild", "severe", "worst")
RULE = AnswerRule(costs=squared_distances(4), order=NAMES, are_distances=True)


@pytest.fixture
def predictions():
    """Probabilities (150, 4) that are right more often than not, and labels of unequal classes."""
    generator = np.random.default_rng(0)
    labels = generator.choice(4, 150, p=[0.5, 0.3, 0.15, 0.05])
    logits = generator.normal(size=(150, 4)) + 1.2 * np.eye(4)[labels]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), labels


def test_kappa_and_mean_absolute_error_of_both_answers_are_those_of_scikit_learn(predictions):
    probabilities, labels = predictions
    found = score_answers(probabilities, labels, RULE)
    for quality, rule in ((found.least_costly, RULE), (found.most_probable, None)):
        answers = best_answers(probabilities, rule)
        expected = cohen_kappa_score(labels, answers, weights="quadratic")
        assert quality.grades.quadratic_weighted_kappa == pytest.approx(expected)
        assert quality.grades.mean_absolute_error == pytest.approx(mean_absolute_error(labels, answers))
    assert found.least_costly != found.most_probable


def test_a_sample_that_has_images_twice_has_the_kappa_of_scikit_learn(predictions):
    probabilities, labels = predictions
    answers, weights = probabilities.argmax(axis=1), np.random.default_rng(1).integers(0, 3, 150)
    expected = cohen_kappa_score(labels, answers, weights="quadratic", sample_weight=weights)
    assert weighted_kappas(answers, labels, weights[None])[0] == pytest.approx(expected)


def test_intervals_hold_the_figures_and_have_a_width(predictions):
    quality = score_answers(*predictions, RULE).least_costly
    for owner, name in (
        (quality, "accuracy"),
        (quality, "mean_cost"),
        (quality.grades, "quadratic_weighted_kappa"),
        (quality.grades, "mean_absolute_error"),
    ):
        low, high = getattr(owner, f"{name}_interval")
        assert low < getattr(owner, name) < high


def test_where_all_grades_are_one_kappa_is_0():
    assert weighted_kappas(np.zeros(5, int), np.zeros(5, int), np.ones((1, 5))).tolist() == [0.0]


def test_the_mean_cost_is_that_of_the_given_costs():
    rule = AnswerRule(costs=((0, 1), (20, 0)), are_distances=False)
    probabilities = np.array([[0.9, 0.1], [0.97, 0.03], [0.2, 0.8]])
    found = score_answers(probabilities, np.array([0, 0, 1]), rule)
    assert (found.least_costly.mean_cost, found.most_probable.mean_cost) == (pytest.approx(1 / 3), 0.0)
    assert found.least_costly.grades is None


def test_classes_are_scored_by_the_answers_and_the_top1_accuracy_by_the_most_probable_class():
    rule = AnswerRule(costs=((0, 1), (20, 0)), are_distances=False)
    metrics = score(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1]), ["a", "b"], rule=rule)
    assert (metrics.top1, metrics.balanced_accuracy) == (0.5, 0.5)
    assert [row.recall for row in metrics.per_class] == [0.0, 1.0]
    assert metrics.answers.least_costly.accuracy == 0.5
    assert score(np.array([[0.9, 0.1]]), np.array([0]), ["a", "b"]).answers is None


def test_right_answers_to_few_images_leave_a_wide_interval():
    rule = AnswerRule(costs=squared_distances(2), are_distances=True)
    scored = score_answers(np.eye(2)[[0, 1, 0]], np.array([0, 1, 0]), rule).least_costly
    assert scored.accuracy == 1.0
    assert scored.accuracy_interval == pytest.approx((0.4385, 1.0), abs=1e-4)  # Wilson, 3 of 3
