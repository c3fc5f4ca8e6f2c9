import numpy as np
import pytest
import torch

from finetune.decide.choice import choose_strategy
from finetune.decide.curve import Curve
from finetune.decide.planning import make_plan
from finetune.predict.links import GRADES
from finetune.recipe import Recipe


@pytest.fixture
def graded(evidence):
    """The curve of a training of unequal grades with smoothed labels, and the shares of the grades."""
    counts = dict(zip(evidence.class_counts, (120, 60, 20, *[10] * len(evidence.class_counts)), strict=False))
    evidence = evidence.changed(class_counts=counts)
    recipe = Recipe(data="imgs", labels={"order": [*counts]}, training={"label_smoothing": 0.1})
    plan = make_plan(recipe, evidence, choose_strategy(evidence, recipe))
    row = {"phase": "validation", "learning_rate": 1e-3, "train_loss": 1.0}
    return Curve([row], plan, evidence), np.array([*counts.values()]) / sum(counts.values())


def loss_of(answers, shares):
    """The mean train loss of answers (K, K), a row for each right grade, by the shares (K,) of the grades."""
    logits, labels = torch.from_numpy(np.log(answers)), torch.arange(len(shares))
    losses, _ = GRADES.train_losses(logits, labels, torch.ones(len(shares)), 0.1)
    return float(losses.numpy() @ shares)


def test_the_constant_loss_of_grades_is_that_of_their_smoothed_frequencies(graded):
    curve, shares = graded
    smoothed = 0.9 * shares + 0.1 / len(shares)
    assert curve.constant == pytest.approx(loss_of(np.tile(smoothed, (len(shares), 1)), shares))


def test_the_least_loss_of_grades_is_that_of_their_smoothed_labels(graded):
    curve, shares = graded
    assert curve.least == pytest.approx(loss_of(0.9 * np.eye(len(shares)) + 0.1 / len(shares), shares))
