"""Run the command line: turn options into a recipe, and report every mistake in one sentence with exit status 2.

Heavy libraries are imported inside the commands, so that `--help` answers at once.
"""

import inspect
import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from finetune import __version__, cli_audit, cli_compare, cli_models, cli_sharing, interruption
from finetune.checks import check_plan, check_resumed, checked
from finetune.errors import FinetuneError, RecipeError, RunFolderError
from finetune.files import explain
from finetune.names import visible
from finetune.recipe import Preference, Recipe, Strategy, load_recipe, parse_assignment
from finetune.recipe_tuning import Search
from finetune.report_options import takes_report_options
from finetune.runs.places import describe_interruption, is_resumable, resume_command
from finetune.system_settings import apply_system_settings, forget_imports, process_start

if TYPE_CHECKING:
    from finetune.runs.report import Report

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)

RECIPE_OPTIONS: Mapping[str, Any] = {
    "data": Annotated[
        str | None,
        typer.Option(
            help="Class-per-folder tree, CSV/TSV/Parquet table, demo:digits, hf:NAME (hub, local) or stream:NAME."
        ),
    ],
    "recipe": Annotated[Path | None, typer.Option("--recipe", help="YAML recipe; options given here override it.")],
    "model": Annotated[
        str | None,
        typer.Option(
            help="Any timm classifier, or several to choose from (a,b, auto:small or auto:best); auto by default."
        ),
    ],
    "strategy": Annotated[
        Literal["auto", Strategy] | None, typer.Option(help="How much of the network to train; auto by default.")
    ],
    "groups": Annotated[
        str | None,
        typer.Option(
            help="Groups that no split divides: folder, a pattern such as (speaker\\d+), a CSV table, none, auto."
        ),
    ],
    "image_size": Annotated[int | None, typer.Option(help="Side of the network's square input, in pixels.")],
    "epochs": Annotated[float | None, typer.Option(help="Passes over the training images.")],
    "steps": Annotated[int | None, typer.Option(help="Optimizer steps; excludes --epochs.")],
    "batch_size": Annotated[int | None, typer.Option(help="Images per optimizer step, over all processes.")],
    "limit": Annotated[int | None, typer.Option(help="Largest number of training images to use, stratified by class.")],
    "allow_rare": Annotated[
        bool | None,
        typer.Option("--allow-rare", help="Train on classes that have too few images to be evaluated, too."),
    ],
    "time_budget": Annotated[str | None, typer.Option(help="Time limit of the whole command, such as 90s, 10m, 1.5h.")],
    "prefer": Annotated[
        Preference | None, typer.Option(help="Preference between accuracy and training time; balanced by default.")
    ],
    "ensemble": Annotated[
        str | None, typer.Option(help="Average several models: seeds:3, snapshots:4, folds, backbones or auto.")
    ],
    "track": Annotated[
        str | None, typer.Option(help="Experiment trackers that get the history: tensorboard, mlflow, wandb, ...")
    ],
    "seed": Annotated[
        int | None, typer.Option(help="Seed of the splits, the order of the images, the augmentation and new weights.")
    ],
    "set_": Annotated[
        list[str] | None, typer.Option("--set", help="Any recipe key: section.key=value; may be repeated.")
    ],
}
"""Options that the commands `train`, `plan` and `tune` share: a recipe file, single keys of the recipe, and --set."""

GENERAL_OPTIONS = ("--help", "--version", "--install-completion", "--show-completion")
"""Options of the program itself. Any other option without a command belongs to `train`."""

START: ContextVar[float] = ContextVar("start")
"""Value of `time.perf_counter()` when the command began, from which a time budget counts."""

AcceptChanges = Annotated[
    bool,
    typer.Option("--accept-changes", help="With --resume (or --plan): train although the data has changed since then."),
]

Output = Annotated[Path | None, typer.Option(help="Run folder; runs/<data>-<time> by default.")]


@dataclass(frozen=True, slots=True)
class RecipeOptions:
    """The shared options that the user gave, by their names in `RECIPE_OPTIONS`."""

    given: dict[str, Any]

    @property
    def typed(self) -> list[str]:
        """Names of the options as the user types them, such as --batch-size, with --recipe and --set last."""
        names = sorted(self.given, key=lambda name: name in {"recipe", "set_"})
        return [f"--{name.rstrip('_').replace('_', '-')}" for name in names]

    def recipe(self, tuning: Mapping[str, object] | None = None) -> Recipe:
        """Return the recipe from the file, with the options taking precedence.

        Args:
            tuning: values for the recipe's section `tuning`.

        Raises:
            RecipeError: a key is unknown, is given twice or has a wrong value.
        """
        assigned = dict(map(parse_assignment, self.given.get("set_", [])))
        keys = {name: value for name, value in self.given.items() if name not in {"recipe", "set_"}}
        keys |= {f"tuning.{name}": value for name, value in (tuning or {}).items()}
        for name in keys.keys() & assigned.keys():
            raise RecipeError(f"{name} is given twice: as an option and with --set; leave one of them out")
        return load_recipe(self.given.get("recipe"), **assigned, **keys)


def takes_recipe_options(*left_out: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds the shared options to a command, as a `RecipeOptions` in its first argument.

    Args:
        left_out: names in `RECIPE_OPTIONS` that the command does not take.
    """

    def with_options(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command).parameters.values())[1:]
        shared = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
            for name, kind in RECIPE_OPTIONS.items()
            if name not in left_out
        ]

        @wraps(command)
        def called(**values: Any) -> None:  # noqa: ANN401  (typer checks the types)
            own_values = {parameter.name: values.pop(parameter.name) for parameter in own}
            command(
                RecipeOptions({name: value for name, value in values.items() if value not in (None, [])}), **own_values
            )

        # Typer reads the options from the signature.
        parameters = [*shared, *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own)]
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return called

    return with_options


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"finetune {__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Measure a folder of images, decide how much of a network to train, say why, and train it."""


@app.command()
@takes_recipe_options()
@takes_report_options
def train(
    options: RecipeOptions,
    report: Callable[[], "Report"],
    output: Output = None,
    plan_only: Annotated[bool, typer.Option("--plan-only", help="Measure, choose and plan, then stop.")] = False,
    plan: Annotated[Path | None, typer.Option(help="Train this saved plan.json as it is.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the interrupted run in this folder.")] = None,
    accept_changes: AcceptChanges = False,
) -> None:
    """Measure the images, choose a strategy and say why, train, and write a run folder."""
    if accept_changes and plan is None and resume is None:
        raise RecipeError("--accept-changes is for --resume and --plan, which compare the data; leave it out")
    if plan is not None or resume is not None:
        option = "--plan" if plan is not None else "--resume"
        others = [*options.typed, *(["--plan-only"] if plan_only else [])]
        if resume is not None:
            others += ["--resume"] if plan is not None else ["--output"] if output is not None else []
        if others:
            raise RecipeError(
                f"{option} trains a saved plan as it is, so {others[0]} cannot be given with it; edit the plan instead"
            )
    if resume is not None:
        check_resumed(resume, is_tuning=False)
    elif plan is not None:
        check_plan(plan)
    else:
        recipe = checked(options.recipe(), output)
    from finetune.runs import pipeline

    forget_imports()
    with _resumable(report):
        if resume is not None:
            pipeline.resume(resume, report(), accept_changes)
        elif plan is not None:
            pipeline.run_plan(plan, output, report(), accept_changes)
        elif plan_only:
            pipeline.plan_only(recipe, output, report(), start=START.get())
        else:
            pipeline.run(recipe, output, report(), start=START.get())


@app.command()
@takes_recipe_options()
@takes_report_options
def plan(
    options: RecipeOptions,
    report: Callable[[], "Report"],
    output: Output = None,
    plot: Annotated[
        bool, typer.Option("--plot", help="Plot the learning rate of every stage at every step: schedule.svg.")
    ] = False,
) -> None:
    """Measure, choose and plan, then stop: the same as train --plan-only."""
    recipe = checked(options.recipe(), output)
    from finetune.runs import pipeline

    with _resumable(report):
        pipeline.plan_only(recipe, output, report(), plot, START.get())


@app.command()
@takes_recipe_options("ensemble")
@takes_report_options
def tune(
    options: RecipeOptions,
    report: Callable[[], "Report"],
    output: Output = None,
    trials: Annotated[int | None, typer.Option(help="Number of trials; 20 by default.")] = None,
    search: Annotated[Search | None, typer.Option(help="Search method; tpe by default.")] = None,
    storage: Annotated[
        str | None, typer.Option(help="Database URL for several workers; a file in the run folder by default.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the interrupted search in this folder.")] = None,
    accept_changes: AcceptChanges = False,
) -> None:
    """Search for hyper-parameters in six steps, train the best ones, and write a run folder."""
    if accept_changes and resume is None:
        raise RecipeError("--accept-changes is for --resume, which compares the data; leave it out")
    tuning = {"trials": trials, "search": search, "storage": storage}
    tuning = {name: value for name, value in tuning.items() if value is not None}
    if resume is not None:
        others = [*options.typed, *(f"--{name}" for name in tuning), *(["--output"] if output else [])]
        if others:
            raise RecipeError(
                f"--resume continues the search as it was started, so {others[0]} cannot be given with it; leave it out"
            )
    if resume is not None:
        check_resumed(resume, is_tuning=True)
    else:
        recipe = checked(options.recipe(tuning), output)
    from finetune import tuning as searching

    forget_imports()
    with _resumable(report):
        if resume is not None:
            searching.resume_tuning(resume, report(), accept_changes)
        else:
            searching.tune(recipe, output, report(), start=START.get())


for command in (
    cli_audit.audit,
    cli_models.predict,
    cli_models.embed,
    cli_models.evaluate,
    cli_compare.compare,
    cli_models.diagnose,
    cli_models.report,
    cli_models.watch,
    cli_sharing.export,
    cli_sharing.push,
    cli_sharing.serve,
):
    app.command()(command)


@app.command()
def cache(clear: Annotated[bool, typer.Option("--clear", help="Remove everything from the cache.")] = False) -> None:
    """List the cache (decoded images, features, activations, the machine's speed), or clear it."""
    from finetune import cache as disk_cache

    if clear:
        typer.echo(f"{disk_cache.clear() / 1e9:.2f} GB removed from {visible(str(disk_cache.cache_folder()))}")
        return
    entries = disk_cache.list_entries()
    for entry in entries:
        size = f"{entry.num_bytes / 1e6:10.1f} MB"
        typer.echo(f"{size}  {entry.used_at():%Y-%m-%d %H:%M}  {entry.kind:12}  {visible(entry.about)}")
    total = sum(entry.num_bytes for entry in entries) / 1e9
    typer.echo(
        f"{len(entries)} {'entry' if len(entries) == 1 else 'entries'}, {total:.2f} GB of at most "
        f"{disk_cache.size_limit() / 1e9:.2f} GB in {disk_cache.cache_folder()}; "
        f"the least recently used are removed first"
    )


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    import json

    typer.echo(json.dumps(Recipe.model_json_schema(), indent=2))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; options without a command mean `train`."""
    apply_system_settings()
    interruption.listen()
    _escape_what_cannot_be_printed()
    START.set(process_start() if arguments is None else time.perf_counter())
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0].startswith("-") and arguments[0] not in GENERAL_OPTIONS:
        arguments = ["train", *arguments]
    try:
        app(args=arguments, prog_name="finetune", standalone_mode=True)
    except FinetuneError as error:
        _print_error(f"error: {error}")
        sys.exit(2)
    except OSError as error:
        _print_error(f"error: {explain(error)}")
        sys.exit(2)
    except SystemExit:
        # Click turns every interruption into exit status 1.
        if interruption.was_terminated():
            sys.exit(interruption.exit_status())
        raise


@contextmanager
def _resumable(report: Callable[[], "Report"]) -> Iterator[None]:
    """After an interruption or an error of the disk, say what is left of the run, and how to continue it."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(err=True)
        _print_error(describe_interruption(report().folder))
        raise typer.Exit(interruption.exit_status()) from None
    except OSError as error:
        folder = report().folder
        again = f"; then continue with: {resume_command(folder)}" if folder and is_resumable(folder) else ""
        raise RunFolderError(explain(error) + again) from error


def _escape_what_cannot_be_printed() -> None:
    """Make the output escape characters that its encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _print_error(sentence: str) -> None:
    """Print a sentence on stderr, from the main process only."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(visible(sentence), err=True)
