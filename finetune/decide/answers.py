"""Say which class is the answer for an image where classes have an order, or confusions have unequal costs.

With the probabilities p_i of an image and the cost C_ij of the answer j to an image of class i, the answer is the class
with the least expected cost, argmin_j sum_i p_i C_ij (the Bayes decision; Elkan 2001). Probabilities do not change.
"""

from collections.abc import Sequence
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from finetune.errors import RecipeError, quoted_names
from finetune.recipe_labels import Cost, LabelRecipe
from finetune.value import FrozenModel, is_none


class AnswerRule(FrozenModel):
    """The rule by which the answer for an image follows from its probabilities: the least expected cost."""

    costs: tuple[tuple[Cost, ...], ...]
    """Cost of each answer (column) to an image of each class (row), in the order of the classes; right answers cost
    0."""
    order: Annotated[tuple[str, ...] | None, Field(exclude_if=is_none)] = None
    """Names of the classes, the lowest grade first; left out if they have no order."""
    are_distances: bool
    """Whether the costs are the squared distances between the grades, because the recipe gives no others."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if any(len(row) != len(self.costs) for row in self.costs):
            raise ValueError(f"costs must be {len(self.costs)} rows of as many numbers")
        if any(row[place] for place, row in enumerate(self.costs)):
            raise ValueError("costs of right answers, on the diagonal, must be 0")
        if self.order is not None and len(self.order) != len(self.costs):
            raise ValueError(f"order has {len(self.order)} classes, and costs {len(self.costs)}; give both the same")
        return self

    def matrix(self) -> NDArray[np.float64]:
        """Return the costs (num_classes, num_classes): a row for each class, a column for each answer."""
        return np.asarray(self.costs, dtype=np.float64)

    def expected_costs(self, probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the expected cost of each answer, (n, num_classes), by the probabilities (n, num_classes)."""
        expected: NDArray[np.float64] = np.asarray(probabilities, dtype=np.float64) @ self.matrix()
        return expected

    def costs_of(self, answers: NDArray[np.integer], labels: NDArray[np.integer]) -> NDArray[np.float64]:
        """Return the cost of each answer (n,) to an image of the right class (n,)."""
        return np.asarray(self.matrix()[labels, answers])


def make_rule(asked: LabelRecipe, class_names: Sequence[str]) -> AnswerRule | None:
    """Return the rule that a recipe asks for; None: the answer is the most probable class.

    Args:
        asked: section `labels` of the recipe.
        class_names: names of the classes, in their order.

    Raises:
        RecipeError: a name is not one of the classes, or a right answer has a cost.
    """
    if not asked.decide_answers:
        return None
    if asked.costs is None:
        return AnswerRule(costs=squared_distances(len(class_names)), order=asked.order, are_distances=True)
    place = {name: number for number, name in enumerate(class_names)}
    costs = 1.0 - np.eye(len(class_names))
    for label, row in asked.costs.items():
        if unknown := [name for name in (label, *row) if name not in place]:
            raise RecipeError(
                f"labels.costs names {quoted_names(unknown)}, but the classes are {quoted_names(list(class_names))}"
            )
        if row.get(label):
            raise RecipeError(f"labels.costs: {label!r} for {label!r} is the right answer, which costs 0; leave it out")
        for answer, cost in row.items():
            costs[place[label], place[answer]] = cost
    return AnswerRule(costs=tuple(map(tuple, costs.tolist())), order=asked.order, are_distances=False)


def squared_distances(num_classes: int) -> tuple[tuple[float, ...], ...]:
    """Return the squared distances between grades, by which the quadratic weighted kappa counts (Cohen 1968).

    >>> squared_distances(3)
    ((0.0, 1.0, 4.0), (1.0, 0.0, 1.0), (4.0, 1.0, 0.0))
    """
    grades = np.arange(num_classes, dtype=np.float64)
    return tuple(map(tuple, ((grades[:, None] - grades) ** 2).tolist()))


def rank_answers(probabilities: NDArray[np.floating], rule: AnswerRule | None) -> NDArray[np.intp]:
    """Return the classes, the best answer first, (n, num_classes): by the expected cost, or by the probabilities
    (n, num_classes) without a rule."""
    return np.asarray(np.argsort(-probabilities if rule is None else rule.expected_costs(probabilities), axis=1))


def best_answers(probabilities: NDArray[np.floating], rule: AnswerRule | None) -> NDArray[np.intp]:
    """Return the answer for each image, (n,): the class with the least expected cost, or the most probable one without
    a rule; of equal ones the first."""
    if rule is None:
        return np.asarray(probabilities.argmax(axis=1))
    return np.asarray(rule.expected_costs(probabilities).argmin(axis=1))


def check_order(order: Sequence[str], class_names: Sequence[str]) -> None:
    """Check that an order has all classes.

    Raises:
        RecipeError: a class is missing, or a name is not one of the classes.
    """
    missing = [name for name in class_names if name not in order]
    unknown = [name for name in order if name not in class_names]
    if missing or unknown:
        faults = [f"does not name {quoted_names(missing)}"] if missing else []
        faults += [f"names {quoted_names(unknown)}, which no image has"] if unknown else []
        raise RecipeError(
            f"labels.order {' and '.join(faults)}; name each of the classes once, the lowest grade first: "
            f"{quoted_names(list(class_names))}"
        )
