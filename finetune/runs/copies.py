"""Look for copies of one picture in every run: keep them on one side of the splits that are made here, and report those
that given splits divide."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from finetune.auditing.crossing import Crossing, describe_crossing, find_quick_copies
from finetune.data import ImageSplits, tie_copies
from finetune.data.image_splits import PICTURE
from finetune.processes import from_main_process
from finetune.recipe import Recipe
from finetune.runs.layout import counted
from finetune.runs.report import Report

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """The copies of pictures among the images of a run."""

    crossing: tuple[Crossing, ...]
    """Copies of training images in given splits."""
    pictures: tuple[tuple[str, ...], ...]
    """Contents of the images of each picture that several images show."""
    sentence: str
    """The pictures in words."""


def find_copies(recipe: Recipe, splits: ImageSplits, shorter_side: int, report: Report) -> tuple[tuple[str, ...], ...]:
    """Return the contents of the images that show one picture and that no split may divide, for each such picture;
    print what was found.

    Nothing is looked for under a time budget.

    Args:
        recipe: recipe of the run.
        splits: its images.
        shorter_side: shorter side at which the training images are in the cache, in pixels.
        report: the report to print on.
    """
    found = None if recipe.time_budget else from_main_process(partial(_look, splits, shorter_side))
    if found is None:
        return ()
    if found.crossing:
        report.say(describe_crossing(found.crossing, recipe.data), "Copies")
    tied = tie_copies(splits, found.pictures, recipe.seed, recipe.limit)
    if not splits.test_was_made and _ties(tied.train) == _ties(splits.train):
        return ()  # only given splits divide pictures
    report.say(found.sentence, "Copies")
    return found.pictures


def _ties(table: "Dataset") -> list[int] | None:
    """Return the picture of each image of a table; None if each shows another one."""
    return list(table[PICTURE]) if PICTURE in table.column_names else None


def _look(splits: ImageSplits, shorter_side: int) -> _Found | None:
    """Return which images show one picture; None: no two do, or they were not compared."""
    found = find_quick_copies(splits, shorter_side)
    if found is None or not found.pairs:
        return None
    pictures = found.pictures()
    first, second = (found.path(index) for index in (found.pairs[0].first, found.pairs[0].second))
    count = f"{counted(sum(map(len, pictures)), 'image')} show {counted(len(pictures), 'picture')}"
    return _Found(
        crossing=() if splits.test_was_made else tuple(found.crossing()),
        pictures=pictures,
        sentence=f"{count} in changed copies (re-encoded, resized or mirrored), and no split made here divides them; "
        f"the first are {first} and {second}",
    )
