import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.special import softmax as scipy_softmax
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from finetune.measure.probing import UNKNOWN_SLOPE, evaluate_probe
from finetune.predict.linear_probe import INVERSE_REGULARIZATIONS, cross_validate, fit_head
from finetune.predict.links import log_loss, softmax
from finetune.predict.probe_curve import CURVE_SHARES, error_slope, images_drawn, learning_curve


def blobs(num_classes=3, count=120, seed=0, separation=0.7):
    features, labels = make_classification(
        count, 8, n_informative=5, n_classes=num_classes, class_sep=separation, random_state=seed
    )
    scales = np.logspace(-1, 1, 8)
    return (features * scales + 3.0).astype(np.float32), labels.astype(np.int64)


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_a_head_gives_the_probabilities_of_scikit_learn_on_standardised_features(num_classes):
    features, labels = blobs(num_classes)
    # Two classes have half of each weight in either row, so that scikit-learn's own softmax is the same model.
    usual = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-6)).fit(features, labels)
    made = softmax(fit_head(features, labels, num_classes, 0.1).logits(features))
    assert np.abs(made - usual.predict_proba(features)).max() < 0.01


def test_a_balanced_head_gives_the_probabilities_of_scikit_learns_balanced_weights():
    features, labels = blobs()
    keep = np.concatenate([np.flatnonzero(labels != 2), np.flatnonzero(labels == 2)[:5]])
    features, labels = features[keep], labels[keep]
    usual = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-6, class_weight="balanced"))
    expected = usual.fit(features, labels).predict_proba(features)
    balanced = softmax(fit_head(features, labels, 3, 0.1, balanced=True).logits(features))
    plain = softmax(fit_head(features, labels, 3, 0.1).logits(features))
    assert np.abs(balanced - expected).max() < 0.01
    assert np.abs(plain - expected).max() > 0.1


def test_a_fold_that_leaves_one_class_to_learn_from_always_answers_it():
    features, labels = blobs(2)
    groups = np.where(labels == 1, "one patient", np.arange(len(labels)).astype(str))
    folds = cross_validate(features, labels, 2, 0, groups)
    assert (folds.logits[labels == 1].argmax(axis=1) == 0).all()


def test_a_feature_that_never_varies_counts_for_nothing():
    features, labels = blobs()
    with_dead = np.concatenate([features, np.full((len(features), 1), 4.0, dtype=np.float32)], axis=1)
    made, expected = fit_head(with_dead, labels, 3, 0.1), fit_head(features, labels, 3, 0.1)
    assert np.isfinite(made.weight).all()
    np.testing.assert_allclose(made.logits(with_dead), expected.logits(features), atol=0.02)


@pytest.mark.parametrize("missing", [0, 2, 3])
def test_a_class_without_images_never_wins(missing):
    features, labels = blobs(3)
    present = [label for label in range(4) if label != missing]
    head = fit_head(features, np.asarray(present)[labels], 4, 1.0)
    assert (head.logits(features).argmax(axis=1) != missing).all()
    assert softmax(head.logits(features))[:, missing].max() < 1e-3


def test_every_image_is_held_out_once():
    features, labels = blobs()
    folds = cross_validate(features, labels, 3, seed=0)
    assert sorted(np.concatenate(folds.held_out).tolist()) == list(range(len(labels)))
    assert len(folds.heads) == len(folds.held_out) == 5


def test_the_logits_of_an_image_come_from_the_head_that_did_not_see_it():
    features, labels = blobs()
    folds = cross_validate(features, labels, 3, seed=0)
    for head, held in zip(folds.heads, folds.held_out, strict=True):
        np.testing.assert_allclose(folds.logits[held], head.logits(features[held]), rtol=1e-5)
        assert not set(held) & set(np.setdiff1d(np.arange(len(labels)), held))


def test_a_head_has_not_learned_the_labels_of_its_held_out_images():
    features, labels = blobs()
    before = cross_validate(features, labels, 3, seed=0, inverse_regularizations=(0.1,))
    changed = features.copy()
    changed[before.held_out[0]] += 100.0
    after = cross_validate(changed, labels, 3, seed=0, inverse_regularizations=(0.1,))
    np.testing.assert_array_equal(after.heads[0].weight, before.heads[0].weight)
    assert not np.array_equal(after.heads[1].weight, before.heads[1].weight)


def test_random_labels_cannot_be_predicted():
    features, _ = blobs(count=300)
    labels = np.random.default_rng(0).integers(0, 3, 300)
    accuracy = (cross_validate(features, labels, 3, seed=0).logits.argmax(axis=1) == labels).mean()
    assert accuracy < 0.45


def test_the_inverse_regularization_has_the_least_held_out_loss():
    features, labels = blobs()
    chosen = cross_validate(features, labels, 3, seed=0)
    losses = {
        inverse_regularization: log_loss(
            cross_validate(features, labels, 3, seed=0, inverse_regularizations=(inverse_regularization,)).logits,
            labels,
        )
        for inverse_regularization in INVERSE_REGULARIZATIONS
    }
    assert chosen.inverse_regularization in INVERSE_REGULARIZATIONS
    assert losses[chosen.inverse_regularization] == pytest.approx(min(losses.values()), abs=0.003)


def test_noisy_features_get_a_stronger_regularization_than_clear_ones():
    noisy, clear = blobs(separation=0.2), blobs(separation=3.0)
    assert (
        cross_validate(*noisy, 3, seed=0).inverse_regularization
        < cross_validate(*clear, 3, seed=0).inverse_regularization
    )


def test_the_folds_keep_groups_whole():
    features, labels = blobs()
    groups = np.asarray([str(number // 4) for number in range(len(labels))])
    for held in cross_validate(features, labels, 3, seed=0, groups=groups).held_out:
        rest = np.setdiff1d(np.arange(len(labels)), held)
        assert not set(groups[held]) & set(groups[rest])


def test_softmax_is_scipys_and_large_scores_do_not_overflow():
    scores = np.asarray([[1.0, 2.0, 3.0], [1000.0, 0.0, -1000.0]])
    np.testing.assert_allclose(softmax(scores), scipy_softmax(scores, axis=1))


def test_log_loss_is_scikit_learns():
    scores, labels = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 3
    expected = sklearn_log_loss(labels, scipy_softmax(scores, axis=1))
    assert log_loss(scores, labels) == pytest.approx(expected)
    assert log_loss(scores, labels) == pytest.approx(-log_softmax(scores, axis=1)[np.arange(20), labels].mean())


def test_a_learning_curve_falls():
    features, labels = blobs(4, count=800, separation=1.5)
    folds = cross_validate(features, labels, 4, seed=0, inverse_regularizations=(0.1,))
    quarter, half = learning_curve(features, labels, 4, 0, 0.1).mean(axis=1)
    assert quarter > half > (folds.logits.argmax(axis=1) != labels).mean()


def test_a_point_of_a_learning_curve_has_the_errors_of_heads_that_saw_a_share_of_the_images():
    features, labels = blobs(3, count=1000, separation=1.0)
    found = learning_curve(features, labels, 3, 0, 0.1)[0].mean()
    apart = []
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(1000)
        train, held = order[:200], order[200:]  # a quarter of the 800 images that a fold trains on
        apart.append(
            (
                fit_head(features[train], labels[train], 3, 0.1).logits(features[held]).argmax(axis=1) != labels[held]
            ).mean()
        )
    assert found == pytest.approx(np.mean(apart), abs=3 * np.std(apart) + 0.01)


def test_a_learning_curve_never_learns_from_the_images_that_it_is_evaluated_on():
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(200, 300)).astype(np.float32), generator.integers(0, 2, 200)
    assert learning_curve(features, labels, 2, 0, 1.0).mean(axis=1) == pytest.approx([0.5, 0.5], abs=0.12)


def test_a_learning_curve_has_every_class_in_every_draw():
    features, labels = blobs(5, count=50)
    few = np.concatenate([np.flatnonzero(labels == label)[:3] for label in range(5)])
    assert learning_curve(features[few], labels[few], 5, 0, 0.1, folds=3).shape == (len(CURVE_SHARES), 15)


def test_a_learning_curve_is_that_of_its_seed():
    features, labels = blobs(3)
    first, again, other = (learning_curve(features, labels, 3, seed, 0.1) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_a_slope_is_the_power_with_which_errors_fall():
    before, after = np.full(10_000, 0.4), np.full(10_000, 0.1)
    assert error_slope(before, after, 4.0)[0] == pytest.approx(1.0, abs=0.001)


def test_the_error_of_a_slope_is_its_spread_over_samples_of_images():
    generator = np.random.default_rng(0)
    hardness = generator.random(100_000)
    slopes, errors = [], []
    for _ in range(300):
        sample = generator.choice(hardness, 200)
        # The same images are hard with few and with many to learn from.
        before, after = sample < 0.4, sample < generator.normal(0.25, 0.1, 200)
        slope, error = error_slope(before.astype(float), after.astype(float), 4.0)
        slopes.append(slope)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(slopes), rel=0.15)


def test_where_there_are_no_errors_the_slope_is_unknown():
    slope, error = error_slope(np.zeros(100), np.zeros(100), 4.0)
    assert slope == 0.0
    assert error > 1.0


def test_a_class_with_one_image_neither_counts_as_an_error_of_the_probe_nor_changes_it():
    features, labels = blobs(3)
    features, labels = np.concatenate([features, features[:1] + 50.0]), np.append(labels, 3)
    with_one = evaluate_probe(features, labels, None, 4, "balanced_accuracy", 0)
    without = evaluate_probe(features[:-1], labels[:-1], None, 4, "balanced_accuracy", 0)
    assert with_one == without
    assert not cross_validate(features, labels, 4, 0).logits[-1].any()


def test_the_numbers_of_images_of_a_curve_are_those_that_are_drawn():
    assert images_drawn(np.repeat([0, 1], 50), 0) == [20.0, 40.0, 80.0]
    assert images_drawn(np.repeat(np.arange(20), 2), 0) == [20.0, 20.0, 20.0]


def test_a_curve_over_single_images_of_classes_has_an_unknown_slope():
    features, _ = blobs(3, count=40)
    curve = evaluate_probe(features, np.repeat(np.arange(20), 2), None, 20, "top1", 0).curve
    assert (curve.slope, curve.slope_error) == (0.0, UNKNOWN_SLOPE)
    assert curve.num_images == (20, 20, 20)


def test_weights_of_classes_that_differ_a_thousandfold_are_bounded_in_the_probe():
    features, labels = blobs(2, count=2002)
    labels[:] = 0
    labels[:2] = 1
    bounded, plain = (fit_head(features, labels, 2, 0.1, balanced=balanced) for balanced in (True, False))
    expected = LogisticRegression(C=0.1, class_weight={0: 2002 / (2000 + 200), 1: 100 * 2002 / (2000 + 200)})
    scaled = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-3 * features.std())
    usual = expected.fit(scaled, labels).predict_proba(scaled)
    assert np.abs(softmax(bounded.logits(features)) - usual).max() < 0.02
    assert np.abs(softmax(plain.logits(features)) - usual).max() > 0.02
