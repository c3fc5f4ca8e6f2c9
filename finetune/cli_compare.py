"""Define the command that compares runs."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.checks import check_comparison
from finetune.report_options import takes_report_options

if TYPE_CHECKING:
    from finetune.runs.report import Report


@takes_report_options
def compare(
    report: Callable[[], "Report"],
    runs: Annotated[list[Path], typer.Argument(help="Two or more run folders, which are compared with the first.")],
    data: Annotated[
        str | None,
        typer.Option(help="Labelled images to compare the runs on; by default those that all of them have tested."),
    ] = None,
) -> None:
    """Compare runs image by image: is one more accurate, on which classes, and is the difference more than chance?"""
    check_comparison(runs, data)
    from finetune.runs.compared import print_comparison, summarise_comparison
    from finetune.runs.comparing import compare as compare_runs
    from finetune.runs.folder import RunFolder
    from finetune.runs.labelled import compare_on

    folders = [RunFolder(run) for run in runs]
    with report() as printed:
        comparison = compare_runs(folders) if data is None else compare_on(folders, data, printed.progress)
    printed.summary |= summarise_comparison(comparison)
    print_comparison(printed.console, comparison, printed.verbose)
