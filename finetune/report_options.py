"""Define the options that say how much a command prints: --verbose, --quiet and --json."""

import inspect
import json
from collections.abc import Callable
from functools import cache, partial, wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.errors import RecipeError

if TYPE_CHECKING:
    from finetune.runs.report import Report

REPORT_OPTIONS = {
    "verbose": Annotated[bool, typer.Option("--verbose", help="Print every detail.")],
    "quiet": Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")],
    "json_": Annotated[
        bool, typer.Option("--json", help="Print nothing but one line of JSON with the result, at the end.")
    ],
}
"""Options of all commands that measure, train or evaluate."""


def takes_report_options(command: Callable[..., int | None]) -> Callable[..., None]:
    """Return a command with these options in place of its argument `report`, a function that returns the `Report`.

    The command may return an exit status. It calls the function after it has checked its arguments, because a report
    imports all of the library.
    """
    own = [each for each in inspect.signature(command).parameters.values() if each.name != "report"]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in REPORT_OPTIONS.items()
    ]

    @wraps(command)
    def called(*arguments: Any, verbose: bool, quiet: bool, json_: bool, **values: Any) -> None:  # noqa: ANN401
        _refuse_several(verbose, quiet, json_)
        report = cache(partial(_make_report, verbose, quiet or json_))
        status = command(*arguments, report=report, **values)
        # A process other than the main one has no results.
        if json_ and report().summary:
            typer.echo(json.dumps(report().summary))
        if status:
            raise typer.Exit(status)

    # Typer reads the options from the signature.
    parameters = [*own, *added]
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called


def _refuse_several(verbose: bool, quiet: bool, json_: bool) -> None:
    """Refuse options that contradict each other.

    Raises:
        RecipeError: two of them are given.
    """
    given = [name for name, value in (("--verbose", verbose), ("--quiet", quiet), ("--json", json_)) if value]
    if len(given) > 1:
        raise RecipeError(f"{given[0]} and {given[1]} ask for different output; leave one of them out")


def _make_report(verbose: bool, quiet: bool) -> "Report":
    """Return the report to print on."""
    from rich.console import Console

    from finetune.runs.report import Report

    return Report(Console(highlight=False, quiet=quiet), verbose)
