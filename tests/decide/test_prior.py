import numpy as np
import pytest

from finetune.decide.prior import Prior, belief_of, believe, features

PRIOR = Prior(
    candidates=("partial", "full"),
    coefficients=((-0.5, 0.0, 0.0, 0.0), (-0.7, -0.2, 0.3, 0.1)),
    covariance=((0.04, 0.02), (0.02, 0.09)),
)


def test_the_first_is_the_linear_probe_as_it_was_measured(evidence):
    belief = believe(PRIOR, evidence)
    assert belief.mean[0] == evidence.probe_accuracy
    assert belief.covariance[0, 0] == pytest.approx(evidence.probe_accuracy_error**2)


def test_a_candidate_removes_its_share_of_the_probes_errors():
    belief = belief_of(PRIOR, features(20, 0.5, 0.2), 0.2, 0.0)
    assert 1 - belief.mean[1:] == pytest.approx(0.2 * np.exp([-0.5, -0.7]))


def test_an_uncertain_share_is_an_uncertain_accuracy():
    """Drawn shares of drawn errors spread as the belief says."""
    generator = np.random.default_rng(0)
    known = features(60, 0.8, 0.15)
    prior = PRIOR.changed(covariance=(np.asarray(PRIOR.covariance) / 4).tolist())
    belief = belief_of(prior, known, 0.15, 0.01)
    shares = generator.multivariate_normal(np.asarray(prior.coefficients) @ known, prior.covariance, 100_000)
    errors = generator.normal(0.15, 0.01, (100_000, 1)) * np.exp(shares)
    assert np.cov(errors.T) == pytest.approx(belief.covariance[1:, 1:], rel=0.1)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_every_feature_rises_with_its_number(number):
    middle = (20.0, 0.5, 0.2)
    moved = [value * 1.5 if place == number - 1 else value for place, value in enumerate(middle)]
    assert features(*middle) == pytest.approx((1.0, 0.0, 0.0, 0.0))
    assert features(*moved)[number] > 0


def test_a_probe_without_errors_leaves_a_finite_belief(evidence):
    belief = believe(PRIOR, evidence.changed(probe=evidence.probe.changed(accuracy=1.0)))
    assert np.isfinite(belief.mean).all()
    assert (belief.mean <= 1.0).all()


def test_outside_of_the_sizes_of_the_grid_its_nearer_end_counts():
    assert features(2, 0.5, 0.2) == features(5, 0.5, 0.2) != features(6, 0.5, 0.2)
    assert features(10_000, 0.5, 0.2) == features(400, 0.5, 0.2) != features(390, 0.5, 0.2)
