import numpy as np
import pytest
from pydantic import ValidationError

from finetune.decide.answers import AnswerRule, best_answers, check_order, make_rule, rank_answers, squared_distances
from finetune.decide.choice import choose_strategy
from finetune.decide.label_settings import refuse_other_labels
from finetune.decide.planning import make_plan
from finetune.errors import RecipeError
from finetune.recipe import Recipe
from finetune.recipe_labels import LabelRecipe

NAMES = ("none", "mild", "severe")
GRADED = AnswerRule(costs=squared_distances(3), order=NAMES, are_distances=True)


def test_the_answer_is_the_grade_with_the_least_expected_squared_distance_and_not_the_mode():
    probabilities = np.array([[0.45, 0.15, 0.40], [0.9, 0.05, 0.05]])
    # Expected distances of the first: 0.15 + 4 * 0.40, 0.45 + 0.40, 4 * 0.45 + 0.15.
    assert GRADED.expected_costs(probabilities)[0] == pytest.approx([1.75, 0.85, 1.95])
    assert best_answers(probabilities, GRADED).tolist() == [1, 0]
    assert best_answers(probabilities, None).tolist() == [0, 0]


def test_the_answer_minimises_the_expected_cost_over_the_right_classes():
    rule = make_rule(LabelRecipe(costs={"severe": {"none": 20}}), NAMES)
    # Of the answers, none costs 0.1 + 20 * 0.1, mild 0.8 + 0.1, severe 0.8 + 0.1.
    assert rule.expected_costs(np.array([[0.8, 0.1, 0.1]]))[0] == pytest.approx([2.1, 0.9, 0.9])
    assert rank_answers(np.array([[0.8, 0.12, 0.08]]), rule).tolist() == [[1, 2, 0]]


def test_unnamed_confusions_cost_1_and_right_answers_nothing():
    rule = make_rule(LabelRecipe(costs={"severe": {"none": 20, "severe": 0}}), NAMES)
    assert rule.costs == ((0, 1, 1), (1, 0, 1), (20, 1, 0))
    assert not rule.are_distances


def test_costs_and_an_order_are_given_together():
    rule = make_rule(LabelRecipe(order=NAMES, costs={"mild": {"none": 3}}), NAMES)
    assert (rule.order, rule.costs[1]) == (NAMES, (3.0, 0.0, 1.0))


def test_without_order_and_costs_there_is_no_rule():
    assert make_rule(LabelRecipe(), NAMES) is None


@pytest.mark.parametrize(
    ("costs", "sentence"),
    [
        ({"sever": {"none": 20}}, r"labels\.costs names 'sever', but the classes are 'none', 'mild', 'severe'"),
        ({"severe": {"no": 20}}, r"labels\.costs names 'no', but"),
        ({"severe": {"severe": 2}}, r"labels\.costs: 'severe' for 'severe' is the right answer, which costs 0"),
    ],
)
def test_costs_of_unknown_classes_or_of_right_answers_are_refused(costs, sentence):
    with pytest.raises(RecipeError, match=sentence):
        make_rule(LabelRecipe(costs=costs), NAMES)


@pytest.mark.parametrize(
    ("order", "sentence"),
    [
        (("none", "mild"), r"^labels\.order does not name 'severe'; name each"),
        (
            ("none", "mild", "worst"),
            r"^labels\.order does not name 'severe' and names 'worst', which no image has; .*'none', 'mild', 'severe'$",
        ),
    ],
)
def test_an_order_names_all_classes_and_no_others(order, sentence):
    with pytest.raises(RecipeError, match=sentence):
        check_order(order, NAMES)


def test_a_class_that_an_order_names_twice_is_refused():
    with pytest.raises(RecipeError, match=r"^recipe: labels\.order: the class 'mild' is named twice"):
        Recipe.parse({"data": "imgs", "labels": {"order": ["none", "mild", "mild"]}}, origin="recipe")


def test_numbers_are_names_of_classes():
    asked = LabelRecipe(order=[0, 1, 2], costs={2: {0: 5}})
    assert (asked.order, asked.costs) == (("0", "1", "2"), {"2": {"0": 5.0}})


def test_costs_are_read_from_a_csv_file(tmp_path):
    (tmp_path / "costs.csv").write_text(",none,severe\nnone,0,2\nsevere,20,\n", encoding="utf-8")
    found = LabelRecipe(costs=str(tmp_path / "costs.csv")).costs
    assert found == {"none": {"none": 0.0, "severe": 2.0}, "severe": {"none": 20.0}}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "cannot be read"),
        (",none,severe\nnone,0\n", "the row 'none' has 2 cells, and the first row 3"),
        (",none,severe\nnone,0,1\nnone,0,2\n", "several rows of the class 'none'"),
        (",none,severe\nnone,0,much\n", "none.severe: .*valid number.*'much' was given"),
    ],
)
def test_a_csv_file_without_a_cost_for_each_cell_is_refused(tmp_path, content, sentence):
    (tmp_path / "costs.csv").write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError, match=sentence):
        Recipe.parse({"data": "imgs", "labels": {"costs": str(tmp_path / "costs.csv")}}, origin="recipe")


@pytest.mark.parametrize("costs", [3, {"severe": 3}, ["severe"]])
def test_costs_that_are_no_table_are_refused_with_an_example(costs):
    with pytest.raises(RecipeError, match=r"such as \{severe: \{none: 20\}\}, or a CSV file"):
        Recipe.parse({"data": "imgs", "labels": {"costs": costs}}, origin="recipe")


def test_a_missing_csv_file_is_named():
    with pytest.raises(RecipeError, match=r"labels\.costs: there is no file nowhere\.csv; expected a CSV file"):
        Recipe.parse({"data": "imgs", "labels": {"costs": "nowhere.csv"}}, origin="recipe")


@pytest.mark.parametrize("costs", [((0, 1), (1,)), ((1, 1), (1, 0)), ((0, -1), (1, 0))])
def test_a_rule_is_a_square_of_costs_with_nothing_on_the_diagonal(costs):
    with pytest.raises(ValidationError):
        AnswerRule(costs=costs, are_distances=False)


@pytest.mark.parametrize(
    ("settings", "has_sets", "sentence"),
    [
        ({"labels": {"order": NAMES}}, True, "labels.order and labels.costs are for one label per image"),
        ({"metric": "mean_cost"}, False, "metric: mean_cost needs costs"),
        (
            {"labels": {"costs": {"mild": {"none": 2}}}, "training": {"imbalance": "class_weights"}},
            False,
            "training.imbalance: class_weights changes the probabilities",
        ),
    ],
)
def test_settings_that_do_not_suit_the_labels_are_refused(settings, has_sets, sentence):
    with pytest.raises(RecipeError, match=sentence):
        refuse_other_labels(Recipe(data="imgs", **settings), has_sets)


def test_a_plan_has_the_rule_in_the_order_of_the_classes(evidence):
    names = [*evidence.class_counts]
    recipe = Recipe(data="imgs", labels={"costs": {names[1]: {names[0]: 7}}})
    plan = make_plan(recipe, evidence, choose_strategy(evidence, recipe))
    assert plan.answers.costs[1][0] == 7
    assert any("the answer for an image is the class with the least expected cost" in each for each in plan.reasons)


def test_labels_of_grades_are_not_smoothed(evidence):
    names = [*evidence.class_counts]
    order, costs = ({"order": names}, {"costs": {names[1]: {names[0]: 7}}})
    for labels, expected in ((order, 0.0), (costs, 0.05)):
        recipe = Recipe(data="imgs", labels=labels)
        assert make_plan(recipe, evidence, choose_strategy(evidence, recipe)).label_smoothing == expected


def test_a_plan_without_costs_has_no_metric_of_costs(small_plan):
    with pytest.raises(RecipeError, match="mean_cost needs the costs of answers"):
        small_plan().changed(metric="mean_cost")
