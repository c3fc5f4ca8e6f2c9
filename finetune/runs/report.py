"""What a person reads while a run goes on, and at its end."""

import shlex
import time
from collections.abc import Sequence
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
from finetune.decide.choice import Choice
from finetune.decide.diagnosis import Verdict, looked_at
from finetune.decide.evidence import Evidence
from finetune.decide.plan import Plan
from finetune.ensemble.recommendation import Option
from finetune.history import Row
from finetune.predict.metrics import Metrics
from finetune.predict.model import Predictor
from finetune.runs.folder import RunMetrics

LISTED = 5
"""Unreadable files that are printed; the count tells of the others."""


class Report:
    """Prints each value of a run as it comes to be; a context, so that progress bars end with it."""

    def __init__(self, console: Console) -> None:
        """Print on `console`; `Console(quiet=True)` says nothing."""
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
        """Start the bars."""
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the bars."""
        self._bars.stop()

    def progress(self, task: str, done: int, total: int) -> None:
        """Move a bar; when it is full, say what it took."""
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=total)
            self._started[task] = time.perf_counter()
        self._bars.update(self._tasks[task], completed=done, total=total)
        if done >= total:
            self._bars.remove_task(self._tasks.pop(task))
            seconds = time.perf_counter() - self._started.pop(task)
            self.console.print(f"  [dim]{task}: {total} in {seconds:.1f} s[/dim]")

    def images(self, splits: ImageSplits) -> None:
        """Print what was found."""
        parts = [f"{len(splits.train)} training"]
        parts += [f"{len(splits.validation)} validation"] if splits.validation is not None else []
        if splits.test is not None:
            made = " (split off here, 15 %)" if splits.test_was_made else ""
            parts.append(f"{len(splits.test)} test{made}")
        self.title("Images")
        self.console.print(f"  {', '.join(parts)} images of {len(splits.class_names)} classes")
        if splits.stream is not None:
            self.console.print(
                f"  a sample of a stream of {splits.stream.num_images}, which is trained on; the rest is measured and "
                f"judged on the sample"
            )
        if splits.unreadable:
            count = len(splits.unreadable)
            self.console.print(
                f"  [yellow]{count} {'file' if count == 1 else 'files'} can not be read and are left out:[/yellow]"
            )
            for file in splits.unreadable[:LISTED]:
                self.console.print(f"    {escape(file.path)}: {escape(file.reason)}")
            if count > LISTED:
                self.console.print(f"    and {count - LISTED} more")

    def evidence(self, evidence: Evidence) -> None:
        """Print what was measured."""
        self.title("Evidence")
        scale = "" if evidence.similarity_calibrated else " (uncalibrated for this network)"
        rows = [
            ("network", f"{evidence.model}, weights: {evidence.weights}"),
            (
                "size",
                f"{evidence.images_per_class:.0f} images per class, largest {evidence.imbalance:.1f} x the smallest",
            ),
            ("resolution", f"{evidence.native_shorter_side} px stored; {evidence.image_size_reason}"),
            ("domain similarity", f"{evidence.domain_similarity:.2f} (0 far, 1 near){scale}"),
            (
                "linear probe",
                f"{_percent(evidence.probe_accuracy, evidence.probe_accuracy_error)} top-1, cross-validated",
            ),
            ("this machine", _machine(evidence)),
        ]
        for name, text in rows:
            self.console.print(f"  [bold]{name:<18}[/bold] {escape(text)}")

    def choice(self, choice: Choice) -> None:
        """Print what was chosen, why, and what else there was."""
        self._choice(f"Choice: {choice.chosen.label}" + (", to be raced" if choice.racing else ""), choice)

    def race(self, choice: Choice) -> None:
        """Print how a race went and what is chosen after it."""
        self._choice(f"Race: {choice.chosen.label}", choice)

    def _choice(self, title: str, choice: Choice) -> None:
        self.title(title)
        for reason in choice.reasons:
            self.console.print(f"  {escape(reason)}")
        if choice.backbones:
            self._backbones(choice)
        table = Table(box=None, padding=(0, 2), header_style="dim")
        for column in ("candidate", "expected top-1", "expected time", "P(best)", "basis"):
            table.add_column(column, justify="left" if column in {"candidate", "basis"} else "right")
        for candidate in choice.candidates:
            style = "bold green" if candidate == choice.chosen else ""
            expected = _percent(candidate.expected_top1, candidate.expected_top1_error)
            chance = f"{100 * candidate.chance:.0f} %"
            seconds = duration(candidate.expected_seconds)
            table.add_row(candidate.label, expected, seconds, chance, candidate.basis, style=style)
        self.console.print(table)
        self.console.print(f"  what more would buy: {escape(choice.forecast.sentence)}")

    def _backbones(self, choice: Choice) -> None:
        table = Table(box=None, padding=(0, 2), header_style="dim")
        for column in ("network", "linear probe", "best candidate", "expected top-1", "expected time"):
            table.add_column(column, justify="left" if column in {"network", "best candidate"} else "right")
        for number, backbone in enumerate(choice.backbones):
            figures = (f"{100 * value:.1f} %" for value in (backbone.probe_accuracy, backbone.expected_top1))
            probe, expected = figures
            row = backbone.model, probe, backbone.candidate, expected, duration(backbone.expected_seconds)
            table.add_row(*row, style="" if number else "bold green")
        self.console.print(table)

    def plan(self, plan: Plan) -> None:
        """Print what will be done."""
        self.title("Plan")
        trained = [f"{stage.name} {stage.learning_rate:.1e}" for stage in plan.stages if stage.learning_rate > 0]
        if plan.steps:
            self.console.print(
                f"  {plan.steps} steps of {plan.batch_size} images in {plan.precision}; "
                f"rates: {', '.join([*trained, f'head {plan.head_learning_rate:.1e}'])}"
            )
        regime = {
            "given": "the validation split judges",
            "held_out": "20 % of the training images are held out to judge",
            "cross_validation": f"{plan.folds}-fold cross-validation judges",
        }[plan.validation]
        ships = "; then all images are trained on, and that model ships" if plan.refit else ""
        self.console.print(f"  {regime} (by {plan.metric}){ships}")
        for reason in plan.reasons:
            self.console.print(f"  {escape(reason)}")

    def result(self, metrics: RunMetrics, folder: Path, members: Sequence[Predictor] = ()) -> None:
        """Print how good the model is, beside its members where it averages some, and how to use it."""
        if metrics.options:
            self._options(metrics.options)
        self.title("Result")
        for number, member in enumerate(members, start=1):
            judged = [("validation", member.validation), ("test", member.test)]
            figures = [f"{name} {100 * found.top1:.1f} %" for name, found in judged if found is not None]
            self.console.print(f"  member {number} ({member.plan.strategy}) alone: {', '.join(figures)} right")
        self._metrics("validation", metrics.validation, f" ({metrics.validation_source})")
        if metrics.test is not None:
            self._metrics("test", metrics.test, "")
            self._worst_classes(metrics.test)
        if metrics.note:
            self.console.print(f"  [yellow]{escape(metrics.note)}[/yellow]")
        self._verdicts(metrics.verdicts)
        seconds = metrics.seconds
        self.console.print(
            f"  {duration(seconds.total)} in all: evidence {duration(seconds.evidence)}, "
            + (f"race or search {duration(seconds.race)}, " if seconds.race else "")
            + f"training {duration(seconds.train)}"
        )
        self.console.print(f"  run folder: {escape(str(folder))}")
        self.console.print(
            f"\nLabel new images:\n  finetune predict {shlex.quote(str(folder))} IMAGES... --output predictions.csv",
            highlight=False,
        )

    def _options(self, options: Sequence[Option]) -> None:
        """Print what could ship, judged on the held-out images."""
        self.title("What could ship, on the held-out images")
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
        self.console.print(table)
        self.console.print(
            "  → ships: what was asked for, unless something as quick has a lower log-loss by a standard error"
        )

    def scored(self, metrics: Metrics) -> None:
        """Print the metrics of an evaluation, class by class."""
        self._metrics("scored", metrics, "")
        table = Table(box=None, padding=(0, 2), header_style="dim")
        for column in ("class", "precision", "recall", "f1", "images"):
            table.add_column(column, justify="left" if column == "class" else "right")
        for row in metrics.per_class:
            if row.num_images:
                table.add_row(
                    escape(row.name),
                    *(f"{value:.3f}" for value in (row.precision, row.recall, row.f1)),
                    str(row.num_images),
                )
        self.console.print(table)

    def diagnosis(self, title: str, verdicts: Sequence[Verdict], history: Sequence[Row]) -> None:
        """Print what stands out in a training's history, or that nothing does, and what was looked at."""
        self.title(title)
        self._verdicts(verdicts)
        if not verdicts:
            self.console.print("  nothing stands out")
        self.console.print(f"  [dim]looked at: {escape(looked_at(history))}[/dim]")

    def _verdicts(self, verdicts: Sequence[Verdict]) -> None:
        for verdict in verdicts:
            name = verdict.kind.replace("_", " ")
            self.console.print(f"  [yellow]{name}[/yellow]: {escape(verdict.sentence)}", highlight=False)
            options = [_how_to(change) for change in verdict.changes]
            self.console.print(f"    try {escape(', or '.join(options))}", highlight=False)

    def say(self, text: str) -> None:
        """Print a sentence."""
        self.console.print(escape(text))

    def title(self, text: str) -> None:
        """Print the title of a section."""
        self.console.print(f"\n[bold cyan]{text}[/bold cyan]")

    def _metrics(self, name: str, metrics: Metrics, source: str) -> None:
        low, high = (f"{100 * end:.1f}" for end in metrics.top1_interval)
        self.console.print(
            f"  [bold]{name:<10}[/bold] {100 * metrics.top1:.1f} % right (95 %: {low} to {high}) of "
            f"{metrics.num_images} images; balanced {100 * metrics.balanced_accuracy:.1f} %, "
            f"log-loss {metrics.log_loss:.3f}, calibration error {metrics.calibration_error:.3f}{source}",
            highlight=False,
        )

    def _worst_classes(self, metrics: Metrics) -> None:
        seen = [row for row in metrics.per_class if row.num_images]
        worst = min(seen, key=lambda row: row.recall)
        if worst.recall < 1.0:
            share = f"{100 * worst.recall:.0f} % of its {worst.num_images} test images"
            self.console.print(f"  hardest class: {escape(worst.name)}, {share} are recognised")


def duration(seconds: float) -> str:
    """Return seconds for a person.

    >>> duration(95)
    '1 min 35 s'
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _how_to(change: str) -> str:
    """Return where a change of a recipe or of a plan is made.

    >>> _how_to("plan.validation=cross_validation")
    'validation=cross_validation in plan.json (train it with --plan)'
    """
    if change.startswith("plan."):
        return f"{change.removeprefix('plan.')} in plan.json (train it with --plan)"
    return f"--set {change}"


def _percent(value: float, error: float) -> str:
    return f"{100 * value:.1f} ± {100 * error:.1f} %"


def _machine(evidence: Evidence) -> str:
    speed = evidence.speed
    full = speed.fastest("full", 0)
    return (
        f"{speed.device}: {speed.forward_images_per_second:.0f} images/s forward ({speed.forward.precision}), "
        f"{full.images_per_second:.0f} images/s training every layer ({full.precision})"
    )
