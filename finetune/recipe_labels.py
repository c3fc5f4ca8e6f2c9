"""Define the keys of a recipe that say what is known about the classes: an order, and the costs of confusions."""

import csv
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from finetune.recipe_texts import parse_names
from finetune.value import FrozenModel, is_none

Cost = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""Cost of an answer."""


def parse_order(value: object) -> object:
    """Return class names as texts: YAML reads a name such as 3 as a number.

    >>> parse_order([0, 1, 2])
    ('0', '1', '2')
    """
    value = parse_names(value)
    return tuple(map(_as_name, value)) if isinstance(value, (list, tuple)) else value


def parse_costs(value: object) -> object:
    """Return a table of costs with class names as texts; that of a CSV file, if its path is given.

    Raises:
        ValueError: there are no costs in it.
    """
    if value is None:
        return value
    if isinstance(value, str):
        value = read_costs(Path(value).expanduser())
    if not isinstance(value, dict) or not all(isinstance(row, dict) for row in value.values()):
        raise ValueError(
            "expected costs by the right class and by the answer, such as {severe: {none: 20}}, or a CSV file"
        )
    return {_as_name(label): {_as_name(answer): cost for answer, cost in row.items()} for label, row in value.items()}


def read_costs(path: Path) -> dict[str, dict[str, str]]:
    """Return the costs in a CSV file, by the right class and by the answer.

    The first row names the answers, from its second cell; each other row has a class, then its costs. Empty cells are
    left out.

    Raises:
        ValueError: the file cannot be read, or a row has more or fewer cells than the first one.
    """
    expected = "expected a CSV file with a row for each right class and a column for each answer"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            (_, *answers), *rows = [row for row in csv.reader(file) if row]
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}; {expected}, or a table of classes") from None
    except (OSError, ValueError, csv.Error) as error:  # an empty file cannot be unpacked
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())}); {expected}") from None
    wrong = next((row for row in rows if len(row) != len(answers) + 1), None)
    if wrong is not None:
        raise ValueError(
            f"{path}: the row {wrong[0]!r} has {len(wrong)} cells, and the first row {len(answers) + 1}; {expected}"
        )
    if twice := [name for name, count in Counter(row[0].strip() for row in rows).items() if count > 1]:
        raise ValueError(f"{path}: there are several rows of the class {twice[0]!r}; give each class one row")
    return {
        row[0].strip(): {name.strip(): cell for name, cell in zip(answers, row[1:], strict=True) if cell.strip()}
        for row in rows
    }


def _as_name(value: Any) -> Any:  # noqa: ANN401  (a value of YAML)
    """Return a number as a text; other values as they are, for the check of their type."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


class LabelRecipe(FrozenModel):
    """What is known about the classes, so that the answer for an image is the least costly one; each key may be left
    out."""

    order: Annotated[tuple[str, ...] | None, BeforeValidator(parse_order), Field(min_length=2, exclude_if=is_none)] = (
        None
    )
    """Names of all classes in their order, the lowest grade first, such as `[none, mild, severe]`. The answer for an
    image is then the grade with the least expected squared distance. By default the classes have no order."""
    costs: Annotated[
        dict[str, dict[str, Cost]] | None, BeforeValidator(parse_costs), Field(min_length=1, exclude_if=is_none)
    ] = None
    """Costs of confusions, by the right class and by the answer, such as `{severe: {none: 20}}`, or a CSV file of them
    with a row for each right class and a column for each answer; other confusions cost 1, and right answers 0. The
    answer for an image is then the class with the least expected cost. By default all confusions cost the same."""

    @field_validator("order")
    @classmethod
    def _names_each_class_once(cls, order: tuple[str, ...] | None) -> tuple[str, ...] | None:
        twice = [name for name, count in Counter(order or ()).items() if count > 1]
        if twice:
            raise ValueError(f"the class {twice[0]!r} is named twice; name each class once, the lowest grade first")
        return order

    @property
    def decide_answers(self) -> bool:
        """Whether the answer for an image is another one than the most probable class."""
        return self.order is not None or self.costs is not None
