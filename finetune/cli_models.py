"""Define the commands that use a run: predict, evaluate, diagnose, report and watch."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.checks import check_prediction
from finetune.errors import FinetuneError
from finetune.report_options import takes_report_options
from finetune.runs.places import refuse_without_a_plan

if TYPE_CHECKING:
    from finetune.data import Unreadable
    from finetune.predict.labelling import Labeller
    from finetune.predict.rows import Columns
    from finetune.runs.report import Report


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
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted prediction to the same file.")
    ] = False,
) -> None:
    """Label new images with a trained run, or with an exported one."""
    check_prediction(run, output, images=images, resume=resume)
    from finetune.data import list_images
    from finetune.predict.labelling import label_images

    paths = list_images(images)
    model = _read_labeller(run)
    say = _once_on_stderr()
    _write_rows(paths, lambda chunk: label_images(model, chunk, top_k, say), output, (run, "predict", top_k), resume)


def _write_rows(
    paths: Iterator[str],
    make: Callable[[list[str]], "tuple[Columns, list[Unreadable]]"],
    output: Path | None,
    task: tuple[Path, str, int],
    resume: bool,
) -> None:
    """Write the rows of images to a file, or print them.

    Args:
        paths: image files.
        make: function of some files that returns their rows, and the files that were left out.
        output: file to write, or None.
        task: the model, the command and its option, which a continued file must have in common.
        resume: whether to continue an interrupted command.
    """
    from finetune.predict.rows import PrintedRows, RowFile, task_of, write_chunks

    if output is None:
        write_chunks(paths, make, PrintedRows(), _print_left_out)
        return
    file = RowFile(output, task_of(*task), resume)
    try:
        count = write_chunks(paths, make, file, _print_left_out)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted; continue with the same command and --resume", err=True)
        raise typer.Exit(130) from None
    except FinetuneError:
        if not file.num_rows:
            file.discard()
        raise
    file.finish()
    typer.echo(f"{count} images labelled: {output}")


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
) -> None:
    """Evaluate a trained run on labelled images."""
    check_prediction(run, output, data=data)
    from finetune.data import labels_of, load_scored_images
    from finetune.predict.metrics import score
    from finetune.runs.folder import RunFolder

    folder = RunFolder(run)
    model = folder.read_model()
    splits = load_scored_images(data, model.class_names, model.plan.columns, model.reading)
    assert splits.test is not None
    with report() as printed:
        probabilities = model.probabilities(splits.test, printed.progress)
    _print_left_out(splits.unreadable)
    for note in splits.notes:
        typer.echo(note, err=True)
    metrics = score(probabilities, labels_of(splits.test), list(model.class_names))
    printed.summary |= {"run": str(run), "data": data}
    printed.evaluation(metrics)
    if output is not None:
        metrics.save(output)


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
        typer.echo(line)


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
        typer.echo(f"left out: {file.path} cannot be read: {file.reason}", err=True)


def _read_labeller(path: Path) -> "Labeller":
    """Return the model of a run folder, or that of an ONNX file, which is read without PyTorch."""
    if path.suffix == ".onnx":
        from finetune.predict.onnx_model import OnnxModel

        return OnnxModel(path)
    from finetune.runs.folder import RunFolder

    return RunFolder(path).read_model()
