"""The command line: words in, a recipe out, and every mistake as one sentence with exit status 2.

Heavy libraries are imported inside the commands, so that `--help` answers at once.
"""

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from finetune.errors import FinetuneError, RecipeError, RunFolderError

if TYPE_CHECKING:
    from finetune.recipe import Recipe
    from finetune.runs.report import Report

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

KEYS = (
    "data", "model", "strategy", "image_size", "epochs", "steps", "batch_size", "limit", "time_budget", "prefer",
    "ensemble", "seed",
)  # fmt: skip
"""Options that are keys of the recipe."""

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""What glibc's malloc.h calls the free memory that a heap keeps, the blocks outside of heaps, and the heaps."""

StrategyOption = Literal["auto", "linear_probe", "norm_tuning", "partial", "full", "scratch"]
PreferOption = Literal["accuracy", "balanced", "speed"]
SearchOption = Literal["grid", "random", "tpe"]

Data = Annotated[
    str | None,
    typer.Option(
        help="Class-per-folder tree, CSV/TSV/Parquet table, demo:digits, hf:NAME (hub, local) or stream:NAME."
    ),
]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="YAML recipe; options given here override it.")]
Model = Annotated[
    str | None, typer.Option(help="Any timm classifier; auto by default; of several (a,b or auto:small) one is chosen.")
]
Strategy = Annotated[StrategyOption | None, typer.Option(help="How much of the network to train; auto by default.")]
Output = Annotated[Path | None, typer.Option(help="Run folder; runs/<data>-<time> by default.")]
ImageSize = Annotated[int | None, typer.Option(help="Side of the square that the network sees, in pixels.")]
Epochs = Annotated[float | None, typer.Option(help="Passes over the training images.")]
Steps = Annotated[int | None, typer.Option(help="Optimizer steps; excludes --epochs.")]
BatchSize = Annotated[int | None, typer.Option(help="Images a step, over all processes.")]
Limit = Annotated[int | None, typer.Option(help="Use so many training images, stratified.")]
TimeBudget = Annotated[str | None, typer.Option(help="Time that training may take, such as 90s, 10m, 1.5h.")]
Prefer = Annotated[PreferOption | None, typer.Option(help="What counts where accuracy and time disagree.")]
Ensemble = Annotated[
    str | None, typer.Option(help="Average several models: seeds:3, snapshots:4, folds, backbones or auto.")
]
Seed = Annotated[int | None, typer.Option(help="Seed of splits, order, augmentation and new weights.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Any recipe key: section.key=value; may be repeated.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("finetune")
        except PackageNotFoundError:
            found = "(a checkout that is not installed)"
        typer.echo(f"finetune {found}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Point it at images: it measures them, decides how much of a network to train, says why, and trains it."""


@app.command()
def train(
    data: Data = None,
    recipe: RecipeFile = None,
    model: Model = None,
    strategy: Strategy = None,
    output: Output = None,
    image_size: ImageSize = None,
    epochs: Epochs = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    limit: Limit = None,
    time_budget: TimeBudget = None,
    prefer: Prefer = None,
    ensemble: Ensemble = None,
    seed: Seed = None,
    set_: Set = None,
    plan_only: Annotated[bool, typer.Option("--plan-only", help="Measure, choose and plan, then stop.")] = False,
    plan: Annotated[Path | None, typer.Option(help="Train this saved plan.json as it is.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the interrupted run in this folder.")] = None,
) -> None:
    """Measure the images, choose a strategy, say why, train, and leave a run folder."""
    asked = _asked(locals())
    if plan is not None or resume is not None:
        option = "--plan" if plan is not None else "--resume"
        fixed = [f"--{name.replace('_', '-')}" for name in asked]
        fixed += [*(["--recipe"] if recipe else []), *(["--set"] if set_ else [])]
        fixed += ["--plan-only"] if plan_only else []
        if fixed or (plan is not None and resume is not None) or (resume is not None and output is not None):
            other = fixed[0] if fixed else "--resume" if plan is not None else "--output"
            raise RecipeError(
                f"{option} trains what was planned, so {other} can not be given with it; edit the plan instead"
            )
    from finetune.runs import pipeline

    with _resumable("train"):
        if resume is not None:
            pipeline.resume(resume, _report())
        elif plan is not None:
            pipeline.run_plan(plan, output, _report())
        elif plan_only:
            pipeline.plan_only(_recipe(recipe, asked, set_), output, _report())
        else:
            pipeline.run(_recipe(recipe, asked, set_), output, _report())


@app.command()
def plan(
    data: Data = None,
    recipe: RecipeFile = None,
    model: Model = None,
    strategy: Strategy = None,
    output: Output = None,
    image_size: ImageSize = None,
    epochs: Epochs = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    limit: Limit = None,
    time_budget: TimeBudget = None,
    prefer: Prefer = None,
    ensemble: Ensemble = None,
    seed: Seed = None,
    set_: Set = None,
    plot: Annotated[
        bool, typer.Option("--plot", help="Draw the learning rate of every stage at every step: schedule.svg.")
    ] = False,
) -> None:
    """Measure, choose and plan, then stop: the same as train --plan-only."""
    asked = _asked(locals())
    from finetune.runs import pipeline

    pipeline.plan_only(_recipe(recipe, asked, set_), output, _report(), plot)


@app.command()
def tune(
    data: Data = None,
    recipe: RecipeFile = None,
    model: Model = None,
    strategy: Strategy = None,
    output: Output = None,
    image_size: ImageSize = None,
    epochs: Epochs = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    limit: Limit = None,
    time_budget: Annotated[str | None, typer.Option(help="Time that all of it may take, such as 30m.")] = None,
    prefer: Prefer = None,
    seed: Seed = None,
    set_: Set = None,
    trials: Annotated[int | None, typer.Option(help="Trainings, short and long ones; 20 by default.")] = None,
    search: Annotated[SearchOption | None, typer.Option(help="How to search; tpe by default.")] = None,
    storage: Annotated[
        str | None, typer.Option(help="Database URL for several workers; a file in the run folder by default.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the interrupted search in this folder.")] = None,
) -> None:
    """Search for hyper-parameters in six steps, and leave a run folder with the winner, trained."""
    asked = _asked(locals())
    searching = {"trials": trials, "search": search, "storage": storage}
    searching = {name: value for name, value in searching.items() if value is not None}
    if resume is not None:
        fixed = [f"--{name.replace('_', '-')}" for name in [*asked, *searching]]
        fixed += [*(["--recipe"] if recipe else []), *(["--set"] if set_ else []), *(["--output"] if output else [])]
        if fixed:
            raise RecipeError(f"--resume goes on as it was begun, so {fixed[0]} can not be given with it; leave it out")
    from finetune import tuning

    with _resumable("tune"):
        if resume is not None:
            tuning.resume_tuning(resume, _report())
        else:
            asked |= {f"tuning.{name}": value for name, value in searching.items()}
            tuning.tune(_recipe(recipe, asked, set_), output, _report())


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    output: Annotated[Path | None, typer.Option(help="CSV file to write; printed where left out.")] = None,
    top_k: Annotated[
        int, typer.Option(min=1, help="Add the k most probable classes as label_1, probability_1, ...")
    ] = 1,
) -> None:
    """Label new images with a trained run."""
    if output is not None and output.exists():
        raise RunFolderError(f"{output} exists and is not overwritten; give another --output")
    from finetune.predict.labelling import label_images
    from finetune.runs.folder import RunFolder

    table, unreadable = label_images(RunFolder(run).read_model(), images, top_k)
    for file in unreadable:
        typer.echo(f"left out: {file.path} can not be read: {file.reason}", err=True)
    if output is None:
        typer.echo(table.to_csv(index=False), nl=False)
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(output, index=False)
    typer.echo(f"{len(table)} images labelled: {output}")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    data: Annotated[
        str, typer.Option(help="Labelled images, as for train; their test split if they have one, else all.")
    ],
    output: Annotated[Path | None, typer.Option(help="JSON file to write the metrics to.")] = None,
) -> None:
    """Score a trained run on labelled images."""
    if output is not None and output.exists():
        raise RunFolderError(f"{output} exists and is not overwritten; give another --output")
    from finetune.data import labels_of, load_scored_images
    from finetune.predict.metrics import score
    from finetune.runs.folder import RunFolder

    folder = RunFolder(run)
    model = folder.read_model()
    splits = load_scored_images(data, model.class_names, model.plan.columns)
    assert splits.test is not None
    report = _report()
    with report:
        probabilities = model.probabilities(splits.test, report.progress)
    for file in splits.unreadable:
        typer.echo(f"left out: {file.path} can not be read: {file.reason}", err=True)
    metrics = score(probabilities, labels_of(splits.test), list(model.class_names))
    report.scored(metrics)
    if output is not None:
        metrics.save(output)


@app.command()
def diagnose(run: Annotated[Path, typer.Argument(help="A run folder, of a training that ended or diverged.")]) -> None:
    """Say what a run's learning curve tells: too short, too fast, learned by heart, ..., and what to change."""
    from finetune.decide import diagnosis
    from finetune.runs.folder import RunFolder

    report = _report()
    for number, folder in enumerate(RunFolder(run).members, start=1):
        history = folder.read_history()
        decisions = folder.read_decisions()
        verdicts = diagnosis.diagnose(history, decisions.plan, decisions.evidence)
        member = f", member {number}" if folder.path != run else ""
        report.diagnosis(f"Learning curve of {run}{member}", verdicts, history)


@app.command()
def cache(clear: Annotated[bool, typer.Option("--clear", help="Remove everything that is kept.")] = False) -> None:
    """List what is kept between runs (decoded images, features, activations, the machine's speed), or clear it."""
    from finetune import cache as kept

    if clear:
        typer.echo(f"{kept.clear() / 1e9:.2f} GB removed from {kept.cache_folder()}")
        return
    entries = kept.list_entries()
    for entry in entries:
        size = f"{entry.num_bytes / 1e6:10.1f} MB"
        typer.echo(f"{size}  {entry.used_at():%Y-%m-%d %H:%M}  {entry.kind:12}  {entry.about}")
    total = sum(entry.num_bytes for entry in entries) / 1e9
    typer.echo(
        f"{len(entries)} entries, {total:.2f} GB of at most {kept.size_limit() / 1e9:.2f} GB in {kept.cache_folder()}; "
        f"the least recently used make room for new ones"
    )


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    import json

    from finetune.recipe import Recipe

    typer.echo(json.dumps(Recipe.model_json_schema(), indent=2))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; options without a command mean `train`."""
    # Threads that spin while they wait for each other make a busy machine ten times slower (experiments/log.md, 2026-11-24).
    # OpenMP reads this when torch is imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if not any(name.startswith("MALLOC_") for name in os.environ):
        _keep_freed_memory()
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0].startswith("-") and arguments[0] not in {"--help", "--version"}:
        arguments = ["train", *arguments]
    try:
        app(args=arguments, prog_name="finetune", standalone_mode=True)
    except FinetuneError as error:
        _say(f"error: {error}")
        sys.exit(2)


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed, for the next batch, which asks for as much again.

    By default it gives large blocks back to the system at once, and they come anew page by page: a sixth of a
    first run at 224 px on a CPU (experiments/log.md, 2026-11-27). Only the first heap may grow as large as needed, so the
    threads share it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library than glibc
        return
    for parameter, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)):
        mallopt(parameter, value)


@contextmanager
def _resumable(command: str) -> Iterator[None]:
    """Say how to go on after an interruption."""
    try:
        yield
    except KeyboardInterrupt:
        _say(f"\ninterrupted; what was trained is kept: go on with finetune {command} --resume RUN")
        raise typer.Exit(130) from None


def _say(sentence: str) -> None:
    """Tell the person what went wrong; of several processes one speaks."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(sentence, err=True)


def _asked(options: Mapping[str, object]) -> dict[str, Any]:
    """Return those options that are keys of the recipe and were given."""
    return {name: options[name] for name in KEYS if options.get(name) is not None}


def _recipe(path: Path | None, asked: dict[str, Any], assignments: list[str] | None) -> "Recipe":
    from finetune.recipe import load_recipe, parse_assignment

    set_ = dict(map(parse_assignment, assignments or []))
    for name in asked.keys() & set_.keys():
        raise RecipeError(f"{name} is given twice: as an option and with --set; leave one of them out")
    return load_recipe(path, **set_, **asked)


def _report() -> "Report":
    from rich.console import Console

    from finetune.runs.report import Report

    return Report(Console(highlight=False, soft_wrap=True))
