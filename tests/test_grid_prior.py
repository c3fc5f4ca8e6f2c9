from dataclasses import replace

import numpy as np
import pytest

from experiments.grid_cells import ALL, Cell, cost_of
from experiments.grid_policies import FALLBACK, fit_prior
from finetune.decide.workload import TRAINING_FOLDS


def make_cells(count, common, own, num_test):
    """Yield cells in which each candidate leaves about a third of the probe's errors; the same images are hard for all.

    The log of the third varies by `common` for all candidates together, and by `own` for each alone.
    """
    generator = np.random.default_rng(0)
    for number in range(count):
        logs = np.log(1 / 3) + generator.normal(0, common) + generator.normal(0, own, len(ALL) - 1)
        hardness = generator.permutation((np.arange(num_test) + 0.5) / num_test)
        errors = 0.3 * np.concatenate([[1.0], np.exp(logs)])
        yield Cell(
            set=str(number),
            size="20",
            seed=0,
            evidence={"images_per_class": 20.0, "domain_similarity": 0.5, "probe_accuracy": 0.7},
            accuracy={},
            correct={
                name: (hardness >= error) ^ (generator.random(num_test) < 0.02)
                for name, error in zip(ALL, errors, strict=True)
            },
            validation_top1={},
            costs=dict.fromkeys(ALL, 0.0),
            rejected=frozenset(),
            num_test=num_test,
            device="",
        )


def test_chance_that_candidates_share_is_not_subtracted_from_their_differences():
    """The fit recovers each candidate's own variance, although the chance of 300 test images is as large."""
    cells = list(make_cells(count=200, common=0.2, own=0.15, num_test=300))
    covariance = np.asarray(fit_prior(cells).covariance)
    differences = [
        covariance[one, one] + covariance[other, other] - 2 * covariance[one, other]
        for one in range(len(covariance))
        for other in range(one)
    ]
    assert np.mean(differences) == pytest.approx(2 * 0.15**2, rel=0.35)


def test_a_rejected_training_counts_as_the_fallback_that_replaces_it():
    cells = list(make_cells(count=20, common=0.1, own=0.3, num_test=300))
    rejected = [replace(cell, rejected=frozenset({"partial"})) for cell in cells]
    prior = fit_prior(rejected)
    partial, fallback = prior.candidates.index("partial"), prior.candidates.index(FALLBACK)
    assert prior.coefficients[partial] == pytest.approx(prior.coefficients[fallback], abs=1e-3)


@pytest.mark.parametrize("equivalents", [[100.0, 500.0, 900.0, 1300.0, 1400.0], [100.0, 1400.0]], ids=["older", "new"])
def test_the_cost_of_a_cross_validated_row_is_the_whole_one_also_in_rows_with_evaluations_in_between(equivalents):
    assert cost_of({"forward_equivalents": equivalents, "held_out": {}}, num_images=50) == 1300.0


@pytest.mark.parametrize("equivalents", [[100.0, 400.0, 400.0], [100.0, 400.0]], ids=["older", "new"])
def test_the_cost_of_a_row_of_the_final_training_includes_that_of_the_folds(equivalents):
    row = {"forward_equivalents": equivalents, "steps": 2, "strategy": "full"}
    assert cost_of(row, num_images=50) == (TRAINING_FOLDS + 1) * 300.0
