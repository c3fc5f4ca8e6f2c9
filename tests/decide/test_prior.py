import numpy as np
import pytest

from finetune.decide.evidence import GroupFinding
from finetune.decide.prior import Prior, belief_of, believe, features

NAMES = ("linear_probe", "partial", "full")

PRIOR = Prior(
    candidates=NAMES,
    coefficients=((0.0, 0.0, 0.0), (-0.5, 0.0, 0.0), (-0.7, -0.2, 0.3)),
    depth=(0.0, 0.8, 1.2),
    shift=0.2,
    gain=0.1,
    own=0.05,
)


def of_scales(**scales):
    """Return the belief in the middle of the grid, where the probe makes 20 % errors, with some scales only."""
    prior = PRIOR.changed(**({"shift": 0.0, "gain": 0.0, "own": 0.0} | scales))
    return belief_of(prior, features(20, 0.5), 0.2, 0.0, 100)


def logs(belief):
    return np.log((1 - belief.draws) / 0.2)


def test_a_candidate_removes_its_share_of_the_probes_errors():
    assert 1 - of_scales().mean == pytest.approx(0.2 * np.exp([0.0, -0.5, -0.7]))


def test_a_shift_moves_all_candidates_alike():
    moved = logs(of_scales(shift=0.05))
    assert moved.std(axis=0) == pytest.approx([0.07] * 3, rel=0.1)  # a t distribution with 4 degrees has sqrt(2) scales
    assert moved - moved[:, :1] == pytest.approx(np.broadcast_to([0.0, -0.5, -0.7], moved.shape))


def test_the_gain_of_fine_tuning_varies_with_the_depth_and_leaves_the_probe():
    moved = logs(of_scales(gain=0.1))
    assert moved[:, 0] == pytest.approx(np.zeros(len(moved)))
    assert (moved[:, 2] + 0.7) == pytest.approx(1.5 * (moved[:, 1] + 0.5))


def test_candidates_deviate_independently_too():
    moved = logs(of_scales(own=0.1))
    assert abs(np.corrcoef(moved.T)[1, 2]) < 0.1


def test_large_deviations_are_more_frequent_than_in_a_normal_distribution():
    moved = logs(of_scales(shift=0.1))[:, 0]
    assert (np.abs(moved) > 0.4).mean() == pytest.approx(0.016, abs=0.006)


def test_nobody_is_expected_to_be_worse_than_guessing():
    belief = belief_of(PRIOR.changed(shift=3.0), features(20, 0.5), 0.5, 0.0, 4)
    assert belief.draws.min() == 0.25


def test_the_standard_error_of_the_probe_widens_every_interval(evidence):
    sure, unsure = (
        believe(PRIOR, evidence.changed(probe=evidence.probe.changed(accuracy_error=error)), NAMES).intervals
        for error in (0.0, 0.08)
    )
    assert ((unsure[:, 1] - unsure[:, 0]) > (sure[:, 1] - sure[:, 0])).all()


def test_an_uncalibrated_similarity_widens_every_interval(evidence):
    sure, unsure = (
        believe(PRIOR, evidence.changed(similarity_calibrated=known), NAMES).intervals for known in (True, False)
    )
    assert ((unsure[:, 1] - unsure[:, 0]) > (sure[:, 1] - sure[:, 0])).all()


@pytest.mark.parametrize("used", [True, False])
def test_groups_that_are_respected_widen_every_interval(evidence, used):
    found = GroupFinding(
        rule="folder", description="", num_groups=9, random_accuracy=0.9, grouped_accuracy=0.85, error=0.01, used=used
    )
    plain, grouped = (believe(PRIOR, evidence.changed(groups=each), NAMES).intervals for each in (None, found))
    assert ((grouped[:, 1] - grouped[:, 0]) > (plain[:, 1] - plain[:, 0])).all() == used


def test_a_belief_has_the_candidates_that_are_asked_for(evidence):
    every, some = (believe(PRIOR, evidence, names) for names in (NAMES, ("full", "linear_probe")))
    assert some.draws.tolist() == every.draws[:, [2, 0]].tolist()


@pytest.mark.parametrize("number", [1, 2])
def test_every_feature_rises_with_its_number(number):
    middle = (20.0, 0.5)
    moved = [value * 1.5 if place == number - 1 else value for place, value in enumerate(middle)]
    assert features(*middle) == pytest.approx((1.0, 0.0, 0.0))
    assert features(*moved)[number] > 0


def test_a_probe_without_errors_leaves_a_finite_belief(evidence):
    belief = believe(PRIOR, evidence.changed(probe=evidence.probe.changed(accuracy=1.0)), NAMES)
    assert np.isfinite(belief.draws).all()
    assert (belief.draws <= 1.0).all()


def test_outside_of_the_sizes_of_the_grid_its_nearer_end_counts():
    assert features(2, 0.5) == features(5, 0.5) != features(6, 0.5)
    assert features(10_000, 0.5) == features(400, 0.5) != features(390, 0.5)
