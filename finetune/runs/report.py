"""Print a run while it runs, and its result at the end."""

import shlex
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from finetune.data import ImageSplits
from finetune.data.grouping import describe_rule
from finetune.decide.choice import Choice
from finetune.decide.diagnosis import Verdict, describe_checks
from finetune.decide.evidence import Evidence
from finetune.decide.plan import Plan
from finetune.decide.plan_reasons import explain_groups
from finetune.ensemble.recommendation import Option
from finetune.history import Row
from finetune.predict.metrics import Metrics
from finetune.predict.model import Predictor
from finetune.progress import duration
from finetune.runs.folder import RunMetrics

LISTED = 5
"""Largest number of unreadable files that are listed by name; the others are counted."""


class Report:
    """Print each result of a run as soon as it is known; as a context, end the progress bars at the end."""

    def __init__(self, console: Console) -> None:
        """Print on `console`; `Console(quiet=True)` prints nothing."""
        self.console = console
        self._bars = Progress(
            TextColumn("[progress.description]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal or console.quiet,
        )
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}

    def __enter__(self) -> Self:
        """Start the progress bars."""
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the progress bars."""
        self._bars.stop()

    def progress(self, task: str, done: int, total: int) -> None:
        """Move the progress bar of a task; print how long the task took when it is done."""
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=total)
            self._started[task] = time.perf_counter()
        self._bars.update(self._tasks[task], completed=done, total=total)
        if done >= total:
            self._bars.remove_task(self._tasks.pop(task))
            seconds = time.perf_counter() - self._started.pop(task)
            self.console.print(f"  [dim]{task}: {total} in {seconds:.1f} s[/dim]")

    def images(self, splits: ImageSplits) -> None:
        """Print the number of images in each split, and the files that cannot be read."""
        parts = [f"{len(splits.train)} training"]
        parts += [f"{len(splits.validation)} validation"] if splits.validation is not None else []
        if splits.test is not None:
            parts.append(f"{len(splits.test)} test")
        origin = "; 15 % of the images were set apart for the test" if splits.test_was_made else ""
        self.title("Images")
        self.console.print(f"  {', '.join(parts)} images of {len(splits.class_names)} classes{origin}")
        if splits.stream is not None:
            self.console.print(
                f"  these images are a sample of a stream of {splits.stream.num_images} images: training reads the "
                f"stream; all measurements and evaluations use the sample"
            )
        if splits.group_rule:
            self.console.print(f"  {escape(describe_groups(splits))}")
        if splits.unreadable:
            count = len(splits.unreadable)
            self.console.print(
                f"  [yellow]{_counted(count, 'file')} cannot be read and {'is' if count == 1 else 'are'} left out:"
                f"[/yellow]"
            )
            for file in splits.unreadable[:LISTED]:
                self.console.print(f"    {escape(file.path)}: {escape(file.reason)}")
            if count > LISTED:
                self.console.print(f"    and {count - LISTED} more")

    def evidence(self, evidence: Evidence) -> None:
        """Print the measurements of one network on the images and on this machine."""
        self.title("Evidence")
        scale = "" if evidence.similarity_calibrated else " (uncalibrated for this network)"
        size = f"{evidence.images_per_class:.0f} images per class"
        rows = [
            ("network", f"{evidence.model}, weights: {evidence.weights}"),
            ("size", f"{size}; the largest class has {evidence.imbalance:.1f} x the images of the smallest"),
            ("resolution", f"{evidence.native_shorter_side} px stored; {evidence.image_size_reason}"),
            ("domain similarity", f"{evidence.domain_similarity:.2f} (0 far, 1 near){scale}"),
            (
                "linear probe",
                f"{_percent(evidence.probe_accuracy, evidence.probe_accuracy_error)} top-1, cross-validated",
            ),
            ("this machine", _machine(evidence)),
        ]
        if evidence.groups is not None:
            rows.insert(-1, ("groups", explain_groups(evidence.groups)))
        for name, text in rows:
            self.console.print(f"  [bold]{name:<18}[/bold] {escape(text)}")

    def choice(self, choice: Choice) -> None:
        """Print the choice, its reasons, and the other candidates."""
        self.title(f"Choice: {choice.chosen.label}")
        for reason in choice.reasons:
            self.console.print(f"  {escape(reason)}")
        if choice.backbones:
            self.console.print(_table_of_backbones(choice))
        self.console.print(_table_of_candidates(choice))
        self.console.print("  P(best): probability of being the most accurate candidate")
        self.console.print(f"  forecast: {escape(choice.forecast.sentence)}")

    def plan(self, plan: Plan) -> None:
        """Print the steps, the learning rates, how the model is evaluated, and the plan's reasons."""
        self.title("Plan")
        trained = [f"{stage.name} {stage.learning_rate:.1e}" for stage in plan.stages if stage.learning_rate > 0]
        if plan.steps:
            self.console.print(
                f"  {_counted(plan.steps, 'step')} of {plan.batch_size} images in {plan.precision}; "
                f"learning rates: {', '.join([*trained, f'head {plan.head_learning_rate:.1e}'])}"
            )
        images = {
            "given": "the validation split",
            "held_out": "20 % of the training images, held out",
            "cross_validation": f"{plan.folds}-fold cross-validation",
        }[plan.validation]
        refit = "; the final model is then trained on all images" if plan.refit else ""
        self.console.print(f"  evaluation: {images}, by {plan.metric}{refit}")
        for reason in plan.reasons:
            self.console.print(f"  {escape(reason)}")

    def result(self, metrics: RunMetrics, folder: Path, members: Sequence[Predictor] = ()) -> None:
        """Print the metrics of the final model, its cost, its run folder, and the command that labels new images.

        Args:
            metrics: metrics and cost of the run.
            folder: the run folder.
            members: the members of an ensemble, for their own metrics.
        """
        if metrics.options:
            self.title("Options, evaluated on the held-out images")
            self.console.print(_table_of_options(metrics.options))
            self.console.print(
                "  → selected: the requested ensemble, unless an equally fast option is better by more than one "
                "standard error of log-loss"
            )
        self.title("Result")
        lines = [*_lines_of_members(members), _line_of_metrics("validation", metrics.validation)]
        lines[-1] += f" ({escape(metrics.validation_source)})"
        if metrics.test is not None:
            lines += [_line_of_metrics("test", metrics.test), *_lines_of_hardest_class(metrics.test)]
        if metrics.note:
            lines.append(f"  [yellow]{escape(metrics.note)}[/yellow]")
        lines += [
            *_lines_of_verdicts(metrics.verdicts),
            _line_of_seconds(metrics),
            f"  run folder: {escape(str(folder))}",
            f"  report: {escape(str(folder / 'report.html'))}",
        ]
        lines.append("\nLabel new images:")
        lines.append(f"  finetune predict {escape(shlex.quote(str(folder)))} IMAGES... --output predictions.csv")
        for line in lines:
            self.console.print(line, highlight=False)

    def evaluation(self, metrics: Metrics) -> None:
        """Print the metrics of a saved model on labelled images, then those of each class."""
        self.console.print(_line_of_metrics("evaluation", metrics), highlight=False)
        self.console.print(_table_of_classes(metrics))

    def diagnosis(self, title: str, verdicts: Sequence[Verdict], history: Sequence[Row]) -> None:
        """Print the verdicts on a training's history, and which parts of it were checked."""
        self.title(title)
        for line in _lines_of_verdicts(verdicts) or ["  nothing stands out"]:
            self.console.print(line, highlight=False)
        self.console.print(f"  [dim]checked: {escape(describe_checks(history))}[/dim]")

    def say(self, text: str) -> None:
        """Print a sentence."""
        self.console.print(escape(text))

    def title(self, text: str) -> None:
        """Print the title of a section."""
        self.console.print(f"\n[bold cyan]{text}[/bold cyan]")


def describe_groups(splits: ImageSplits) -> str:
    """Return how many groups there are, where they are from, and whether the given splits divide them."""
    count = len({*splits.train["group"]})
    line = f"{count} groups of training images ({describe_rule(splits.group_rule)}): no fold divides a group"
    if splits.num_shared:
        line += f", but {splits.num_shared} validation and test images belong to groups of training images"
    return line


def _table(columns: Iterable[str], texts: Iterable[str]) -> Table:
    """Return an empty table whose columns named in `texts` are aligned to the left, the others to the right."""
    table = Table(box=None, padding=(0, 0, 0, 2), header_style="dim")  # the indentation of the report, then of columns
    for column in columns:
        table.add_column(column, justify="left" if column in texts else "right")
    return table


def _table_of_candidates(choice: Choice) -> Table:
    columns = ("candidate", "expected top-1", "90 % interval", "expected time", "P(best)", "basis")
    table = _table(columns, ("candidate", "basis"))
    for candidate in choice.candidates:
        table.add_row(
            candidate.label,
            f"{100 * candidate.expected_top1:.1f} %",
            "{:.1f} to {:.1f}".format(*(100 * end for end in candidate.expected_interval)),
            duration(candidate.expected_seconds),
            f"{100 * candidate.chance:.0f} %",
            candidate.basis,
            style="bold green" if candidate == choice.chosen else "",
        )
    return table


def _table_of_backbones(choice: Choice) -> Table:
    columns = ("network", "linear probe", "best candidate", "expected top-1", "expected time")
    table = _table(columns, ("network", "best candidate"))
    for number, backbone in enumerate(choice.backbones):
        table.add_row(
            backbone.model,
            f"{100 * backbone.probe_accuracy:.1f} %",
            backbone.candidate,
            f"{100 * backbone.expected_top1:.1f} %",
            duration(backbone.expected_seconds),
            style="" if number else "bold green",
        )
    return table


def _table_of_options(options: Sequence[Option]) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for column in ("", "top-1", "log-loss", "ECE", "training", "ms/image"):
        table.add_column(column, justify="right" if column else "left", min_width=len(column), no_wrap=True)
    for option in options:
        table.add_row(
            ("→ " if option.recommended else "  ") + escape(option.name),
            f"{100 * option.top1:.1f} %",
            f"{option.log_loss:.3f}",
            f"{option.calibration_error:.3f}",
            duration(option.train_seconds),
            f"{option.predict_milliseconds:.2f}",
            style="bold green" if option.recommended else "",
        )
    return table


def _table_of_classes(metrics: Metrics) -> Table:
    """Return a table with a row for each class that has images."""
    table = _table(("class", "precision", "recall", "f1", "images"), ("class",))
    for row in metrics.per_class:
        if row.num_images:
            figures = (f"{value:.3f}" for value in (row.precision, row.recall, row.f1))
            table.add_row(escape(row.name), *figures, str(row.num_images))
    return table


def _line_of_metrics(name: str, metrics: Metrics) -> str:
    low, high = (f"{100 * end:.1f}" for end in metrics.top1_interval)
    return (
        f"  [bold]{name:<10}[/bold] {100 * metrics.top1:.1f} % of {_counted(metrics.num_images, 'image')} right "
        f"(95 % interval: {low} to {high}); balanced accuracy {100 * metrics.balanced_accuracy:.1f} %, "
        f"log-loss {metrics.log_loss:.3f}, calibration error {metrics.calibration_error:.3f}"
    )


def _lines_of_members(members: Sequence[Predictor]) -> list[str]:
    """Return a line with the accuracies of each member of an ensemble."""
    lines = []
    for number, member in enumerate(members, start=1):
        splits = [("validation", member.validation), ("test", member.test)]
        figures = [f"{name} {100 * found.top1:.1f} %" for name, found in splits if found is not None]
        lines.append(f"  member {number} ({member.plan.strategy}) alone: {', '.join(figures)} right")
    return lines


def _lines_of_hardest_class(metrics: Metrics) -> list[str]:
    """Return a line about the class with the lowest recall; none if all images are classified correctly."""
    worst = min((row for row in metrics.per_class if row.num_images), key=lambda row: row.recall)
    if worst.recall == 1.0:
        return []
    images = _counted(worst.num_images, "test image")
    return [f"  hardest class: {escape(worst.name)}, {100 * worst.recall:.0f} % of {images} right"]


def _lines_of_verdicts(verdicts: Sequence[Verdict]) -> list[str]:
    """Return two lines for each verdict: the verdict, and the changes to try."""
    lines = []
    for verdict in verdicts:
        name = verdict.kind.replace("_", " ")
        changes = ", or ".join(map(how_to, verdict.changes))
        lines += [f"  [yellow]{name}[/yellow]: {escape(verdict.sentence)}", f"    try {escape(changes)}"]
    return lines


def _line_of_seconds(metrics: RunMetrics) -> str:
    seconds = metrics.seconds
    search = f"search {duration(seconds.search)}, " if seconds.search else ""
    return (
        f"  {duration(seconds.total)} in all: evidence {duration(seconds.evidence)}, {search}"
        f"training {duration(seconds.train)}"
    )


def how_to(change: str) -> str:
    """Return the words that say where to make a change: in the recipe or in the plan.

    >>> how_to("plan.validation=cross_validation")
    'validation=cross_validation in plan.json (train it with --plan)'
    """
    if change.startswith("plan."):
        return f"{change.removeprefix('plan.')} in plan.json (train it with --plan)"
    return f"--set {change}"


def _percent(value: float, error: float) -> str:
    return f"{100 * value:.1f} ± {100 * error:.1f} %"


def _counted(count: int, noun: str) -> str:
    """Return a count with its noun.

    >>> _counted(1, "image"), _counted(2, "image")
    ('1 image', '2 images')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _machine(evidence: Evidence) -> str:
    """Return the device and how fast it sends images forward and trains the whole network."""
    speed = evidence.speed
    full = speed.fastest("full", 0)
    return (
        f"{speed.device}: {speed.forward_images_per_second:.0f} images/s forward ({speed.forward.precision}), "
        f"{full.images_per_second:.0f} images/s training every layer ({full.precision})"
    )
