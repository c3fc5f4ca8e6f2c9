import numpy as np
import pytest

from finetune.decide.belief import Belief

DRAWS = np.array([[0.5, 0.6, 0.9], [0.7, 0.6, 0.7]])


def test_the_expectation_is_the_mean_of_the_draws():
    assert Belief(DRAWS).mean == pytest.approx([0.6, 0.6, 0.8])


def test_an_interval_leaves_a_twentieth_of_the_draws_on_either_side():
    belief = Belief(np.linspace(0.0, 1.0, 2001)[:, None])
    assert belief.intervals[0] == pytest.approx([0.05, 0.95])


def test_a_part_of_a_belief_keeps_the_order_that_is_asked_for():
    assert Belief(DRAWS).among([2, 0]).draws.tolist() == DRAWS[:, [2, 0]].tolist()
