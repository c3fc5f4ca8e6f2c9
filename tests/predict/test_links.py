import numpy as np
import pytest
import torch

from finetune.decide.answers import AnswerRule, squared_distances
from finetune.predict.links import GRADES, ONE_CLASS, training_link

GRADED = AnswerRule(costs=squared_distances(3), order=("none", "mild", "severe"), are_distances=True)


def losses(logits, labels, smoothing=0.0):
    found, weights = GRADES.train_losses(
        torch.tensor(logits, dtype=torch.float64), torch.tensor(labels), torch.tensor([1.0, 2.0, 3.0]), smoothing
    )
    return found.numpy(), weights.numpy()


def test_the_loss_of_grades_adds_up_the_questions_whether_the_grade_is_above_k():
    shares = np.array([[0.2, 0.5, 0.3], [0.2, 0.5, 0.3]])
    found, weights = losses(np.log(shares), [2, 0])
    # P(grade > 0) = 0.8 and P(grade > 1) = 0.3: both are right for grade 2, and both wrong for grade 0.
    assert found == pytest.approx([-np.log(0.8) - np.log(0.3), -np.log(0.2) - np.log(0.7)])
    assert weights.tolist() == [3.0, 1.0]


def test_a_far_grade_costs_more_than_a_near_one_of_the_same_probability():
    near, far = losses([[0.0, 3.0, 0.0], [0.0, 0.0, 3.0]], [0, 0])[0]
    assert near < far
    assert (
        ONE_CLASS.train_losses(
            torch.tensor([[0.0, 3.0, 0.0], [0.0, 0.0, 3.0]]), torch.tensor([0, 0]), torch.ones(3), 0.0
        )[0]
        .unique()
        .numel()
        == 1
    )


def test_smoothed_grades_are_answered_best_by_the_smoothed_distribution():
    target = np.array([0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3])
    (best,), _ = losses(np.log(target)[None], [0], 0.1)
    for change in ([-0.02, 0.02, 0.0], [0.02, -0.01, -0.01]):
        assert losses(np.log(target + np.array(change))[None], [0], 0.1)[0][0] > best


def test_the_loss_stays_finite_where_a_probability_is_lost_in_rounding():
    logits = torch.tensor([[0.0, -200.0, 200.0]], requires_grad=True)
    found, _ = GRADES.train_losses(logits, torch.tensor([0]), torch.ones(3), 0.0)
    found.sum().backward()
    assert found.item() == pytest.approx(400.0)
    assert torch.isfinite(logits.grad).all()


def test_only_a_plan_with_an_order_trains_by_the_loss_of_grades(small_plan):
    assert training_link(small_plan()) is ONE_CLASS
    assert training_link(small_plan().changed(answers=GRADED, metric="mean_cost")) is GRADES
    assert training_link(small_plan().changed(answers=GRADED.changed(order=None), metric="mean_cost")) is ONE_CLASS
