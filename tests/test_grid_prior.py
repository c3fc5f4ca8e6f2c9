from dataclasses import replace

import numpy as np
import pytest

from experiments.grid_cells import BELIEVED, CONSIDERED, Cell, cost_of
from experiments.grid_policies import FALLBACK, always, evaluate, fit_prior
from finetune.decide.prior import FREEDOM
from finetune.decide.workload import TRAINING_FOLDS


def make_cells(count, shift, gain, own):
    """Yield cells in which each candidate leaves about a third of the probe's errors; the logs have t deviations."""
    generator = np.random.default_rng(0)
    for number in range(count):
        common, gained = shift * generator.standard_t(FREEDOM), gain * generator.standard_t(FREEDOM)
        alone = own * generator.standard_t(FREEDOM, len(BELIEVED))
        logs = common + alone + (np.arange(len(BELIEVED)) > 0) * (np.log(1 / 3) + gained)
        accuracies = 1 - np.minimum(0.1 * np.exp(logs), 1.0)
        yield Cell(
            set=str(number),
            size="20",
            seed=0,
            evidence={"images_per_class": 20.0, "domain_similarity": 0.5, "probe_accuracy": 0.9},
            accuracy=dict(zip(BELIEVED, accuracies.tolist(), strict=True)),
            correct={"linear_probe": np.ones(100_000, dtype=bool)},
            costs=dict.fromkeys(BELIEVED, 1.0),
            rejected=frozenset(),
        )


def test_the_fit_recovers_the_scales_of_the_deviations():
    prior = fit_prior(list(make_cells(count=300, shift=0.2, gain=0.1, own=0.05)))
    assert prior.shift == pytest.approx(0.2, rel=0.2)
    assert prior.gain == pytest.approx(0.1, rel=0.25)
    assert prior.own == pytest.approx(0.05, rel=0.25)
    assert prior.depth == pytest.approx([0.0] + [1.0] * (len(BELIEVED) - 1), abs=0.05)


def test_a_rejected_training_counts_as_the_fallback_that_replaces_it():
    cells = list(make_cells(count=20, shift=0.1, gain=0.1, own=0.3))
    rejected = [replace(cell, rejected=frozenset({"partial"})) for cell in cells]
    prior = fit_prior(rejected)
    partial, fallback = prior.candidates.index("partial"), prior.candidates.index(FALLBACK)
    assert prior.coefficients[partial] == pytest.approx(prior.coefficients[fallback], abs=1e-3)


def test_the_regret_is_what_is_missing_to_the_best_candidate_of_each_cell():
    (cell,) = make_cells(count=1, shift=0.0, gain=0.0, own=0.3)
    score = evaluate([cell], always("partial"), always("full_near"))
    best = max(cell.accuracy[name] for name in CONSIDERED)
    assert score.regret == pytest.approx(best - cell.accuracy["partial"])
    assert (score.worst, score.cost) == (score.regret, 1.0)


@pytest.mark.parametrize("equivalents", [[100.0, 500.0, 900.0, 1300.0, 1400.0], 1300.0], ids=["older", "new"])
def test_the_cost_of_a_cross_validated_row_is_the_whole_one_also_in_rows_with_evaluations_in_between(equivalents):
    assert cost_of({"forward_equivalents": equivalents, "held_out": {}, "steps": 2}, num_images=50) == 1300.0


@pytest.mark.parametrize("equivalents", [[100.0, 400.0, 400.0], 300.0], ids=["older", "new"])
def test_the_cost_of_a_row_of_the_final_training_includes_that_of_the_folds(equivalents):
    row = {"forward_equivalents": equivalents, "steps": 2, "strategy": "full"}
    assert cost_of(row, num_images=50) == (TRAINING_FOLDS + 1) * 300.0
