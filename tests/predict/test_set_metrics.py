import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score

from finetune.decide.plan import MOST_WEIGHT
from finetune.predict.linear_probe import cross_validate, fit_head, fit_large_head
from finetune.predict.links import ANY_LABELS, link_for, log_losses, to_logits, to_probabilities
from finetune.predict.metrics import accuracy_error_of, accuracy_of, score
from finetune.predict.model import fit_temperature
from finetune.predict.probe_curve import curve_of_sets
from finetune.predict.set_metrics import (
    LEAST_POSITIVES,
    USUAL_THRESHOLD,
    average_precisions,
    drawn_precisions,
    find_thresholds,
    give_labels,
    mean_average_precision,
)
from finetune.predict.set_probe import positive_weights

NAMES = ["a", "b", "c"]


@pytest.fixture
def drawn():
    """Logits that are right more often than not, and sets of labels, of 200 images, some of which have equal scores."""
    generator = np.random.default_rng(0)
    labels = (generator.random((200, 3)) < (0.5, 0.2, 0.1)).astype(np.int64)
    logits = np.round(2.0 * labels - 1.5 + generator.standard_normal((200, 3)), 1)
    return logits.astype(np.float32), labels


def test_average_precision_is_scikit_learns(drawn):
    logits, labels = drawn
    expected = average_precision_score(labels, logits, average=None)
    found = average_precisions(logits, labels, np.ones((1, 200), dtype=np.float32))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert mean_average_precision(logits, labels) == pytest.approx(expected.mean())


def test_a_class_without_images_takes_no_part(drawn):
    logits, labels = drawn
    labels[:, 2] = 0
    expected = average_precision_score(labels[:, :2], logits[:, :2])
    assert mean_average_precision(logits, labels) == pytest.approx(expected)
    metrics = score(to_probabilities(ANY_LABELS, logits), labels, NAMES)
    assert metrics.sets.per_class[2].average_precision is None


def test_an_image_drawn_twice_counts_twice(drawn):
    logits, labels = drawn
    counts = np.random.default_rng(1).integers(0, 3, 200)
    rows = np.repeat(np.arange(200), counts)
    expected = average_precision_score(labels[rows], logits[rows], average=None)
    found = average_precisions(logits, labels, counts[None].astype(np.float32))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_f1_and_matches_are_those_at_the_thresholds(drawn):
    logits, labels = drawn
    probabilities, thresholds = to_probabilities(ANY_LABELS, logits), (0.3, 0.5, 0.6)
    sets = score(probabilities, labels, NAMES, thresholds).sets
    given = probabilities >= np.array(thresholds)
    assert sets.micro_f1 == pytest.approx(f1_score(labels, given, average="micro"))
    assert sets.macro_f1 == pytest.approx(f1_score(labels, given, average="macro"))
    assert sets.exact_match == pytest.approx((given == labels).all(axis=1).mean())
    assert sets.num_without == (labels.sum(axis=1) == 0).sum()
    for name in ("mean_average_precision", "micro_f1", "macro_f1", "exact_match"):
        low, high = getattr(sets, f"{name}_interval")
        assert low < getattr(sets, name) < high


def test_the_error_of_the_precision_is_that_of_new_images():
    generator = np.random.default_rng(0)
    found, errors = [], []
    for _ in range(40):
        labels = (generator.random((150, 2)) < 0.3).astype(np.int64)
        logits = labels + generator.standard_normal((150, 2))
        found.append(accuracy_of("mean_average_precision", logits, labels))
        errors.append(accuracy_error_of("mean_average_precision", logits, labels))
    assert np.mean(errors) == pytest.approx(np.std(found), rel=0.3)


def test_the_same_samples_are_drawn_for_every_model(drawn):
    logits, labels = drawn
    np.testing.assert_array_equal(drawn_precisions(logits, labels), drawn_precisions(logits, labels))


def test_a_threshold_has_the_best_f1_on_the_held_out_images(drawn):
    logits, labels = drawn
    probabilities = to_probabilities(ANY_LABELS, logits)
    thresholds = find_thresholds(probabilities, labels)
    for own, right, threshold in zip(probabilities.T, labels.T, thresholds, strict=True):
        best = max(f1_score(right, own >= each) for each in np.unique(own))
        assert f1_score(right, own >= threshold) == pytest.approx(best)


def test_a_label_of_few_images_keeps_one_half(drawn):
    logits, labels = drawn
    labels[:, 1] = 0
    labels[: LEAST_POSITIVES - 1, 1] = 1
    assert find_thresholds(to_probabilities(ANY_LABELS, logits), labels)[1] == USUAL_THRESHOLD
    assert give_labels(np.array([[0.5, 0.4]]), (0.5, 0.5)).tolist() == [[True, False]]


def test_the_loss_of_a_set_is_the_sum_over_its_labels(drawn):
    logits, labels = drawn
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(logits).double(), torch.from_numpy(labels).double(), reduction="none"
    ).sum(dim=1)
    np.testing.assert_allclose(log_losses(to_probabilities(ANY_LABELS, logits), labels), expected.numpy(), rtol=1e-6)


def test_probabilities_and_logits_are_inverse(drawn):
    logits, labels = drawn
    link = link_for(labels)
    np.testing.assert_allclose(to_logits(link, to_probabilities(link, logits)), logits, atol=1e-6)


def test_weighted_losses_are_those_of_torch(drawn):
    logits, labels = (torch.from_numpy(each) for each in drawn)
    weights = torch.tensor([1.0, 4.0, 9.0])
    losses, importance = ANY_LABELS.train_losses(logits, labels, weights, 0.0)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, labels.float(), pos_weight=weights, reduction="none"
    )
    torch.testing.assert_close(losses, expected.sum(dim=1))
    assert (importance == 1.0).all()


def test_the_temperature_of_overconfident_sets_is_above_one(drawn):
    _, labels = drawn
    chances = np.clip(0.2 + 0.6 * labels, 0.0, 1.0)
    logits = np.log(chances / (1.0 - chances))
    flipped = np.where(np.random.default_rng(1).random(labels.shape) < 0.2, 1 - labels, labels)
    assert fit_temperature(3.0 * logits, flipped) == pytest.approx(3.0 * fit_temperature(logits, flipped), rel=0.02)


def test_labels_weigh_as_much_as_their_absence_up_to_a_bound():
    labels = np.zeros((100, 3), dtype=np.int64)
    labels[:20, 0] = labels[:1, 1] = 1
    assert positive_weights(labels).tolist() == [4.0, MOST_WEIGHT, 1.0]


@pytest.fixture
def features(drawn):
    generator = np.random.default_rng(2)
    _, labels = drawn
    return (generator.standard_normal((200, 6)) + labels @ generator.standard_normal((3, 6))).astype(np.float32)


def test_each_label_has_its_own_logistic_regression(drawn, features):
    _, labels = drawn
    head = fit_head(features, labels, 3, 0.1)
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    for place, own in enumerate(labels.T):
        single = LogisticRegression(C=0.1, tol=1e-6, max_iter=1000).fit(standard, own)
        expected = single.decision_function(standard)
        np.testing.assert_allclose(head.logits(features)[:, place], expected, atol=0.05)


def test_a_label_without_images_is_improbable(drawn, features):
    _, labels = drawn
    labels[:, 1] = 0
    logits = fit_head(features, labels, 3, 0.1).logits(features)
    assert np.isfinite(logits).all()
    assert logits[:, 1].max() < -3.0


def test_a_head_of_many_images_is_that_of_few(drawn, features, monkeypatch):
    from finetune.predict import linear_probe

    class Rows:
        def numpy(self, rows):
            return features[rows]

    _, labels = drawn
    expected = fit_head(features, labels, 3, 0.1, balanced=True).logits(features)
    monkeypatch.setattr(linear_probe, "SAMPLE", 100)
    head = fit_large_head(Rows(), labels, np.arange(200), 3, 0.1, balanced=True)
    # The features are standardised by the sample, so the regularization differs a little.
    of_sample = fit_head(features[:100], labels[:100], 3, 0.1, balanced=True).logits(features)
    assert np.abs(head.logits(features) - expected).mean() < 0.3 * np.abs(of_sample - expected).mean()


def test_a_cross_validated_probe_and_its_curve_improve_with_images(drawn, features):
    _, labels = drawn
    folds = cross_validate(features, labels, 3, 0)
    assert mean_average_precision(folds.logits, labels) > labels.mean() + 0.1
    accuracy, slope, error = curve_of_sets(features, labels, folds.logits, 0, folds.inverse_regularization)
    assert len(accuracy) == 3
    assert accuracy[-1] == mean_average_precision(folds.logits, labels)
    assert np.isfinite([slope, error]).all()
