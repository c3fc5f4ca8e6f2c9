"""Define the commands that use a run: predict, embed, evaluate, diagnose, report and watch."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from finetune import interruption
from finetune.checks import check_embedding, check_prediction, is_run
from finetune.errors import RecipeError
from finetune.names import visible
from finetune.report_options import takes_report_options
from finetune.runs.places import refuse_without_a_plan

if TYPE_CHECKING:
    from finetune.data import Unreadable
    from finetune.predict.doubt import Experience
    from finetune.predict.files import Compute
    from finetune.predict.labelling import Labeller
    from finetune.predict.rows import Make
    from finetune.runs.report import Report


SOME_LEFT_OUT = 3
"""Exit status of a command that made a table, but not of all files."""

IMAGES_HELP = "Image files, folders, quoted globs, tables with a column of paths, or - for paths from stdin."


def predict(
    run: Annotated[Path, typer.Argument(help="A run folder, or an ONNX file that export wrote.")],
    images: Annotated[list[Path], typer.Argument(help=IMAGES_HELP)],
    output: Annotated[
        Path | None, typer.Option(help="CSV or .parquet file to write; CSV is printed by default.")
    ] = None,
    top_k: Annotated[
        int, typer.Option(min=1, help="Also name the 2nd to k-th most probable class: label_2, probability_2, ...")
    ] = 1,
    unknown_at: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="Withhold labels so that this share of those given is right, such as 0.95."
        ),
    ] = None,
    sets: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Also name a set of classes that holds the right one in this share."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted prediction to the same file.")
    ] = False,
) -> None:
    """Label new images with a trained run, or with an exported one; the exit status is 3 if files were left out."""
    check_prediction(run, output, images=images, resume=resume)
    has_doubt = unknown_at is not None or sets is not None
    from finetune.predict.labelling import label_files

    def load() -> "Make":
        if has_doubt:
            return _doubtful(run, top_k, unknown_at, sets)
        model, say = _read_labeller(run), _once_on_stderr()
        return lambda chunks: label_files(model, chunks, top_k, say)

    _make_table(images, load, output, (run, "predict", (top_k, unknown_at, sets)), "labelled")


def _doubtful(run: Path, top_k: int, unknown_at: float | None, sets: float | None) -> "Make":
    """Return what labels the files of each chunk with what is doubtful, and print the limits on stderr."""
    from finetune.predict.doubt import label_with_doubt

    model, label, experience = _read_doubtful(run, has_limits=unknown_at is not None)
    doubt, say = experience.doubt(unknown_at, sets), _once_on_stderr()
    for line in doubt.sentences():
        typer.echo(line, err=True)
    return lambda chunks: label_with_doubt(model, label, chunks, top_k, doubt, say)


def _read_doubtful(path: Path, has_limits: bool) -> "tuple[Labeller, Compute, Experience]":
    """Return the model of a run folder or of an ONNX file, what labels files with it, and what it is known to do."""
    model = _read_labeller(path)
    if model.rule is not None and has_limits:
        raise RecipeError(
            "--unknown-at is for models whose answer is the most probable class; this one gives the least costly "
            "answer; leave the option out, or ask for --sets"
        )
    if model.thresholds is not None:
        raise RecipeError(
            "--unknown-at and --sets are for models of one label per image; this one gives any number of labels, and "
            "without these options the columns p_<class> have the probability of each"
        )
    if path.suffix == ".onnx":
        from finetune.predict.onnx_model import OnnxModel

        assert isinstance(model, OnnxModel)
        if model.experience is None:
            raise RecipeError(
                f"{path} has no held-out images, because an earlier version made it; export the run again"
            )
        return model, partial(model.label, with_distance=has_limits), model.experience
    from finetune.predict.model import Predictor
    from finetune.predict.neighbours import Neighbours, label_with_distances
    from finetune.runs.doubt import NEIGHBOURS, read_experience

    assert isinstance(model, Predictor)
    if not has_limits:
        return model, model.label, read_experience(path)
    return model, partial(label_with_distances, model, Neighbours.load(path / NEIGHBOURS)), read_experience(path)


def embed(
    model: Annotated[str, typer.Argument(help="A run folder, or timm's name of a network with pretrained weights.")],
    images: Annotated[list[Path], typer.Argument(help=IMAGES_HELP)],
    output: Annotated[Path, typer.Option(help=".parquet file to write.")],
    dtype: Annotated[
        Literal["float16", "float32"], typer.Option(help="Type of the features; float16 by default.")
    ] = "float16",
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted command to the same file.")] = False,
) -> None:
    """Compute the features of images: what enters the head of a trained run or of a pretrained network."""
    check_embedding(model, output, images, resume)
    run = Path(model) if is_run(model) else None
    from finetune.predict.embedding import embed_files, pretrained_network

    def load() -> "Make":
        from finetune.runs.folder import RunFolder

        if run is not None:
            trained = RunFolder(run).read_model()
            return lambda chunks: embed_files(trained, chunks, dtype)
        network, licence = pretrained_network(model)
        if licence:
            typer.echo(f"the licence of the weights of {model} is {licence}: check that it allows your use", err=True)
        return lambda chunks: embed_files(network, chunks, dtype)

    _make_table(images, load, output, (run or model, "embed", dtype), "embedded")


def _make_table(
    images: list[Path],
    load: "Callable[[], Make]",
    output: Path | None,
    task: "tuple[Path | str, str, object]",
    done: str,
) -> None:
    """Write the table of images to a file, or print it, and end with status 3 if files were left out.

    Args:
        images: images as the command names them.
        load: reads the model, and returns what makes the rows.
        output: file to write, or None.
        task: the model, the command and its option, which a continued file must have in common.
        done: what was done to the images, in a word.
    """
    from finetune.predict.shard_files import task_of
    from finetune.predict.shards import place_of_process
    from finetune.predict.tables import print_table, write_table

    place = place_of_process()
    try:
        if output is None:
            rows, left_out = print_table(images, load, _print_left_out)
        else:
            rows, left_out = write_table(images, load, output, task_of(*task), _print_left_out)
    except KeyboardInterrupt:
        if output is None:
            raise
        if not place.rank:
            typer.echo("\ninterrupted; continue with the same command and --resume", err=True)
        raise typer.Exit(interruption.exit_status()) from None
    if place.rank:
        return
    if output is not None:
        typer.echo(f"{rows} images {done}: {visible(str(output))}")
    if left_out:
        typer.echo(f"{left_out} {'file was' if left_out == 1 else 'files were'} left out", err=True)
    # A launcher ends with an error of its own if one of its processes has another status than 0.
    if left_out and place.count == 1:
        raise typer.Exit(SOME_LEFT_OUT)


@takes_report_options
def evaluate(
    report: Callable[[], "Report"],
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    data: Annotated[
        str,
        typer.Option(
            help="Labelled images, in any form that train accepts: their test split if they have one, else all of them."
        ),
    ],
    output: Annotated[Path | None, typer.Option(help="JSON file to write the metrics to.")] = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Evaluate although the data of the run has changed since then.")
    ] = False,
) -> None:
    """Evaluate a trained run on labelled images."""
    check_prediction(run, output, data=data)
    from finetune.predict.metrics import score
    from finetune.runs.folder import RunFolder
    from finetune.runs.labelled import predict_labelled

    with report() as printed:
        found = predict_labelled(RunFolder(run), data, printed.progress, accept_changes)
    _print_left_out(found.splits.unreadable)
    for note in found.splits.notes:
        typer.echo(visible(note), err=True)
    labels, names, unseen = found.labels, list(found.model.class_names), found.unseen
    thresholds = found.model.thresholds
    metrics = score(found.probabilities, labels, names, thresholds, found.model.rule)
    if not all(unseen):
        is_counted = any(unseen) and thresholds is None
        alone = score(found.probabilities[unseen], labels[unseen], names).top1 if is_counted else None
        printed.say(_describe_seen(len(unseen), int(unseen.sum()), alone))
    if found.changes:
        printed.say(f"the data has changed since the run began, which is accepted and recorded: {found.changes}")
    if found.reads:
        printed.say(found.reads)
    printed.summary |= {"run": str(run), "data": data}
    printed.evaluation(metrics)
    if output is not None:
        metrics.save(output)


def _describe_seen(count: int, num_unseen: int, accuracy: float | None) -> str:
    """Return a sentence about the images of an evaluation that the model was trained on.

    Args:
        count: number of all images.
        num_unseen: number of images that it was not trained on.
        accuracy: top-1 accuracy on these, 0 to 1; None if there are none.
    """
    alone = "" if accuracy is None else f"; of the {num_unseen} others it gets {100 * accuracy:.1f} % right"
    return f"the model was trained on {count - num_unseen} of the {count} images, which it may know by now{alone}"


def diagnose(run: Annotated[Path, typer.Argument(help="A run folder whose training has ended or diverged.")]) -> None:
    """Diagnose a run's learning curve (too short, too fast, overfitted, ...) and say what to change."""
    refuse_without_a_plan(run)
    from rich.console import Console

    from finetune.decide import diagnosis
    from finetune.errors import RunFolderError
    from finetune.runs.folder import RunFolder
    from finetune.runs.live import HISTORY
    from finetune.runs.report import Report

    report = Report(Console(highlight=False))
    for number, folder in enumerate(RunFolder(run).members, start=1):
        history = folder.read_history()
        decisions = folder.read_decisions()
        try:
            verdicts = diagnosis.diagnose(history, decisions.plan, decisions.evidence)
        except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
            raise RunFolderError(
                f"the rows of {folder.path / HISTORY} are not those of a training of plan.json: {error!r}"
            ) from None
        member = f", member {number}" if folder.path != run else ""
        report.diagnosis(f"Learning curve of {run}{member}", verdicts, history)


def report(
    runs: Annotated[list[Path], typer.Argument(help="A run folder, or several, which are compared with the first.")],
    output: Annotated[Path | None, typer.Option(help="HTML file of a comparison; comparison.html by default.")] = None,
) -> None:
    """Write the report of a run anew (RUN/report.html), or compare runs on the images that all were evaluated on."""
    for run in runs:
        refuse_without_a_plan(run)
    from finetune.runs.page.writing import write_pages

    for line in write_pages(runs, output):
        typer.echo(visible(line))


def watch(run: Annotated[Path, typer.Argument(help="The folder of a run in progress.")]) -> None:
    """Follow a run from another shell until it ends; the exit status is 1 unless it finishes with a model."""
    from rich.console import Console

    from finetune.runs import watching

    if not watching.watch(run, Console(highlight=False)):
        raise typer.Exit(1)


def _once_on_stderr() -> Callable[[str], None]:
    """Return a function that prints a sentence on stderr, unless it has printed the same with other numbers."""
    said: set[str] = set()

    def say(sentence: str) -> None:
        without_numbers = re.sub(r"\d[\d,]*", "", sentence)
        if without_numbers not in said:
            said.add(without_numbers)
            typer.echo(sentence, err=True)

    return say


def _print_left_out(files: Sequence["Unreadable"]) -> None:
    """Print on stderr which files were left out, and why."""
    for file in files:
        typer.echo(visible(f"left out: {file.path} cannot be read: {file.reason}"), err=True)


def _read_labeller(path: Path) -> "Labeller":
    """Return the model of a run folder, or that of an ONNX file, which is read without PyTorch."""
    if path.suffix == ".onnx":
        from finetune.predict.onnx_model import OnnxModel

        return OnnxModel(path)
    from finetune.runs.folder import RunFolder

    return RunFolder(path).read_model()
