"""Write the report of a run into its folder, and the comparison of several runs, from templates."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment

from finetune import __version__
from finetune.data import ImageSplits
from finetune.errors import RecipeError, RunFolderError
from finetune.files import write_text
from finetune.predict.model import Ensemble, Predictor
from finetune.progress import duration
from finetune.runs.comparing import Comparison, compare
from finetune.runs.folder import RunFolder
from finetune.runs.image_tables import read_predictions
from finetune.runs.page.comparison import MOST_CLASSES, draw_comparison
from finetune.runs.page.confusions import ConfusionMatrix
from finetune.runs.page.content import gather
from finetune.runs.page.figures import interval_bar
from finetune.runs.page.pictures import describe_pictures, find_again, sources_in
from finetune.runs.sentences import how_to
from finetune.templates import open_templates

REPORT = "report.html"
"""Name of the file with the report of a run."""

DEEP = 0.45
"""Share of a class's images from which on a cell of the confusion matrix is so deep that its text has the other
colour."""


class Cell(NamedTuple):
    """A cell of a confusion matrix."""

    number: int
    """Number of images."""
    share: float
    """Share of the images of the row's class, 0 .. 1."""
    kind: str
    """Classes of the style sheet."""
    about: str
    """The cell in words."""


def write_pages(runs: Sequence[Path], output: Path | None = None) -> list[str]:
    """Write the report of a run, or the comparison of several, and return the lines to print: results and the path.

    Args:
        runs: one run folder, or several of which the first is the reference.
        output: the HTML file of a comparison; by default `comparison.html` in the working directory.

    Raises:
        RecipeError: there is one run, but an output.
        RunFolderError: a run has no predictions, the runs have no image in common, or the output exists.
    """
    folders = [RunFolder(run) for run in runs]
    if len(folders) > 1:
        path = output or Path("comparison.html")
        return [*(test.sentence for test in write_comparison(folders, path).tests), str(path)]
    if output is not None:
        raise RecipeError("--output is for comparisons; the report of one run is written into its folder")
    return [str(write_report(folders[0]))]


def write_report(folder: RunFolder, model: Predictor | None = None, splits: ImageSplits | None = None) -> Path:
    """Write the report of a finished run, and return its path. A report that is there is replaced.

    Args:
        folder: the folder of the run.
        model: its model; None: it is read from the folder.
        splits: its images; None: they are looked for where the run found them.

    Raises:
        RunFolderError: the run is not finished, or an earlier version made it, without predictions.
    """
    read_predictions(folder.path)  # what is missing is reported before the model is read
    model = model or folder.read_model()
    find = sources_in(splits, model.plan) if splits is not None else find_again(model.plan)
    content = gather(folder, model, find)
    first = content.splits[0].metrics
    numbers = {each.name: number for number, each in enumerate(content.drawn, start=1)}
    path = folder.path / REPORT
    text = (
        page_templates()
        .get_template("report.html")
        .render(
            content=content,
            shown_channels=describe_pictures(content.plan.preprocessing.reading),
            numbers=numbers,
            headline_bar=interval_bar(first.main, first.main_interval, width=260.0),
            is_ensemble=isinstance(model, Ensemble),
            is_refit=content.plan.refit or content.plan.validation == "cross_validation",
        )
    )
    write_text(path, text)
    return path


def write_comparison(folders: Sequence[RunFolder], path: Path) -> Comparison:
    """Write the comparison of two or more runs, and return it; the first run is the reference.

    Args:
        folders: the folders of the runs.
        path: the HTML file to write.

    Raises:
        RunFolderError: there is such a file, a run has no predictions, or the runs have no image in common.
    """
    if path.exists():
        raise RunFolderError(f"{path} exists and is not overwritten; give another --output")
    comparison = compare(folders)
    plan = folders[0].read_plan()
    drawn, shown_channels = draw_comparison(comparison, plan), describe_pictures(plan.preprocessing.reading)
    template = page_templates().get_template("comparison.html")
    text = template.render(drawn=drawn, most_classes=MOST_CLASSES, shown_channels=shown_channels)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return comparison


@cache
def page_templates() -> Environment:
    """Return the templates; every value that they insert is escaped."""
    environment = open_templates("finetune.runs.page")
    environment.filters |= {"duration": _unbroken_duration, "how_to": how_to}
    environment.globals |= {
        "version": __version__,
        "columns": _columns,
        "table_rows": _table_rows,
        "orders": _orders,
    }
    return environment


def _columns(matrix: ConfusionMatrix) -> list[str]:
    """Return the names of a matrix in its first order."""
    return [matrix.names[place] for place in _first_order(matrix)]


def _table_rows(matrix: ConfusionMatrix) -> list[tuple[str, list[Cell]]]:
    """Return the rows of a matrix in its first order, each with its name and its cells."""
    order = _first_order(matrix)
    return [(matrix.names[row], [_cell(matrix, row, column) for column in order]) for row in order]


def _orders(matrix: ConfusionMatrix) -> dict[str, list[int]]:
    """Return for each order of a matrix the position of each class, with the classes in the first order."""
    first = _first_order(matrix)
    return {name: [positions[place] for place in first] for name, positions in matrix.orders.items()}


def _first_order(matrix: ConfusionMatrix) -> list[int]:
    """Return the indices of the classes in the first order of a matrix."""
    positions = next(iter(matrix.orders.values()))
    return sorted(range(len(positions)), key=positions.__getitem__)


def _cell(matrix: ConfusionMatrix, row: int, column: int) -> Cell:
    count, total = int(matrix.counts[row, column]), int(matrix.counts[row].sum())
    share = count / max(total, 1)
    kind = "hit" if row == column else f"miss{' deep' if share >= DEEP else ''}"
    about = f"{count} of {total} images of {matrix.names[row]} predicted as {matrix.names[column]}"
    return Cell(count, round(share, 2), kind, about)


def _unbroken_duration(seconds: float) -> str:
    """Return a duration in words that stay on one line."""
    return duration(seconds).replace(" ", "\u00a0")
