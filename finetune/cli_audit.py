"""Define the command that audits labelled images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.checks import check_audit
from finetune.errors import RecipeError
from finetune.recipe import Recipe, load_recipe, parse_assignment
from finetune.report_options import takes_report_options

if TYPE_CHECKING:
    from finetune.runs.report import Report


@takes_report_options
def audit(
    report: Callable[[], "Report"],
    data: Annotated[str, typer.Argument(help="Labelled images, in any form that train accepts, except a stream.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder for audit.csv, with a row for each finding, and audit.html.")
    ] = None,
    clean: Annotated[
        Path | None,
        typer.Option(help="CSV table to write: the images without copies, for --data. No image file is changed."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A key of the recipe's sections image and columns: key=value; may be repeated."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with status 2 if there are findings.")] = False,
) -> int:
    """Look for copies across splits, wrong labels and odd images, and say what copies add to the test accuracy."""
    check_audit(data, output, clean)
    recipe = _read_keys(set_ or [])
    from finetune.auditing.procedure import audit as audit_data
    from finetune.runs.audited import print_audit, summarise_audit, write_audit

    with report() as printed:
        found = audit_data(data, printed.progress, recipe.image, recipe.columns)
    printed.summary |= summarise_audit(found)
    print_audit(printed.console, found, printed.verbose)
    for path in write_audit(found, output, clean):
        printed.say(str(path))
    if strict and found.findings:
        typer.echo(f"{len(found.findings)} findings in {data}", err=True)
        return 2
    return 0


def _read_keys(assignments: Sequence[str]) -> Recipe:
    """Return a recipe of how images and tables are read, from texts such as "image.channels=all".

    Raises:
        RecipeError: a text is not an assignment, its key is of another section, or its value is impossible.
    """
    given = dict(map(parse_assignment, assignments))
    for key in given:
        if not key.startswith(("image.", "columns.")):
            raise RecipeError(
                f"--set takes keys of the sections image and columns here, such as image.channels=all, not {key}"
            )
    return load_recipe(data="any", **given)
