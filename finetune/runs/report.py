"""Print a run while it runs, and its result at the end: in about 15 lines, or in every detail."""

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape

from finetune.data import ImageSplits
from finetune.decide.choice import Choice
from finetune.decide.diagnosis import Verdict, describe_checks
from finetune.decide.evidence import Evidence
from finetune.decide.plan import Plan
from finetune.decide.planned_run import PlannedRun
from finetune.history import Row
from finetune.names import quoted
from finetune.predict.metrics import Metrics
from finetune.predict.model import Predictor
from finetune.processes import is_main_process
from finetune.runs import details, overview
from finetune.runs.display import Display
from finetune.runs.folder import RunFolder, RunMetrics
from finetune.runs.layout import LABEL, print_commands, print_entry, print_text, print_title
from finetune.runs.recorder import Recorder
from finetune.runs.sentences import describe_verdict, plain, summarise
from finetune.runs.status import Status

CLASSES = 12
"""Largest number of classes whose metrics `evaluate` prints without --verbose."""


class Report:
    """Print each result of a run as soon as it is known; as a context, show the task in progress."""

    def __init__(self, console: Console, verbose: bool = False) -> None:
        """Print nothing yet.

        Args:
            console: the console to print on; `Console(quiet=True)` prints nothing.
            verbose: whether to print every detail.
        """
        self.console = console
        self.verbose = verbose
        self.summary: dict[str, object] = {}
        """The results so far as plain values, for `--json`."""
        self.folder: Path | None = None
        """Folder of the run, as soon as it is known."""
        self._recorder: Recorder | None = None
        self._display = Display(console)
        self._status = Status()
        self._began: dict[str, float] = {}
        self._has_images = False

    def __enter__(self) -> Self:
        """Begin to show the task in progress."""
        self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End showing the task in progress, and write how the run ended."""
        self._display.stop()
        problem = "" if self._recorder is None else self._recorder.end(self._status, error)
        self._recorder = None
        if problem:
            self.say(f"Tracking stopped: {problem}")

    def progress(self, task: str, done: int, total: int, history: Sequence[Row] = ()) -> None:
        """Show how far a task is; a verbose report prints how long it took. The arguments are those of `Progress`."""
        state = self._status.update(task, done, total, history)
        self._display.show(state)
        if self._recorder is not None:
            self._recorder.record(state, task, history)
        began = self._began.setdefault(task, time.perf_counter())
        if done >= total:
            del self._began[task]
            if self.verbose:
                seconds = time.perf_counter() - began
                print_text(self.console, f"[dim]{escape(task)}: {total} in {seconds:.1f} s[/dim]")

    def follow(self, folder: RunFolder) -> None:
        """Keep the state of the run in its folder from now on, for `finetune watch`; the main process does so."""
        self.folder = folder.path
        if is_main_process():
            self._recorder = Recorder(folder.path)

    def begin(self, members: Sequence[PlannedRun], folder: RunFolder) -> None:
        """Take note of the trainings to come, and keep their history in the run folder while it grows.

        Args:
            members: planned runs, the leading one first.
            folder: the run folder.

        Raises:
            RecipeError: a tracker cannot be started.
        """
        self._status.expect(members)
        if self._recorder is not None:
            self._recorder.begin(members[0])
        watch = f"follow it from another shell: finetune watch {quoted(folder.path)}"
        print_text(self.console, escape(watch), "  " if self.verbose else "Training", 2 if self.verbose else LABEL)

    def images(self, splits: ImageSplits, anew: bool = False) -> None:
        """Print the number of images in each split, and the files that cannot be read.

        Args:
            splits: the images.
            anew: whether to print what was left out once more, because it has changed.
        """
        if self.verbose:
            details.print_images(self.console, splits)
        else:
            overview.print_images(self.console, splits, is_first=anew or not self._has_images)
        self._has_images = True

    def evidence(self, evidence: Evidence) -> None:
        """Print the measurements of one network on the images and on this machine."""
        (details if self.verbose else overview).print_evidence(self.console, evidence)

    def choice(self, choice: Choice, model: str) -> None:
        """Print the choice of a candidate and a network, and the reasons."""
        chosen = choice.chosen
        self.summary |= {
            "candidate": chosen.label,
            "expected_top1": chosen.expected_top1,
            "expected_interval": chosen.expected_interval,
            "expected_seconds": chosen.expected_seconds,
        }
        if self.verbose:
            details.print_choice(self.console, choice)
        else:
            overview.print_choice(self.console, choice, model)

    def plan(self, plan: Plan, splits: ImageSplits) -> None:
        """Print the steps and how the model is evaluated."""
        self.summary |= {"model": plan.model, "strategy": plan.strategy, "steps": plan.steps}
        (details if self.verbose else overview).print_plan(self.console, plan, splits)

    def saved_plan(self, path: Path) -> None:
        """Print where the plan is, and the command that trains it."""
        self.summary |= {"plan": str(path)}
        self.console.print()
        print_text(self.console, f"The plan is in {escape(str(path))}. Edit it if you like, then train it:", indent=0)
        print_commands(self.console, "Next", [f"finetune train --plan {quoted(path)}"])

    def result(self, metrics: RunMetrics, folder: Path, members: Sequence[Predictor] = (), reads: str = "") -> None:
        """Print the metrics of the final model, its cost, its run folder, and the next two commands.

        Args:
            metrics: metrics and cost of the run.
            folder: the run folder.
            members: the members of an ensemble, for their own metrics.
            reads: sentence about how often the test split was scored; empty if seldom.
        """
        self.summary |= {"run": str(folder), **summarise(metrics)}
        if self.verbose:
            details.print_result(self.console, metrics, folder, members, reads)
        else:
            overview.print_result(self.console, metrics, folder, reads)
        self.console.print()
        run = quoted(folder)
        commands = [
            f"finetune predict {run} IMAGES... --output predictions.csv",
            f"finetune evaluate {run} --data LABELLED_IMAGES",
        ]
        print_commands(self.console, "Next", commands)

    def evaluation(self, metrics: Metrics) -> None:
        """Print the metrics of a saved model on labelled images, then those of each class."""
        self.summary |= plain(metrics)
        details.print_evaluation(self.console, metrics, None if self.verbose else CLASSES)

    def diagnosis(self, title: str, verdicts: Sequence[Verdict], history: Sequence[Row]) -> None:
        """Print the verdicts on a training's history, and which parts of it were checked."""
        print_title(self.console, title)
        for verdict in verdicts:
            finding, changes = describe_verdict(verdict)
            print_text(self.console, finding)
            print_text(self.console, changes, indent=4)
        if not verdicts:
            print_text(self.console, "nothing stands out")
        print_text(self.console, f"[dim]checked: {escape(describe_checks(history))}[/dim]")

    def say(self, text: str, label: str = "") -> None:
        """Print a sentence: below the section before it with `verbose`, else next to its label, if it has one."""
        if label and not self.verbose:
            print_entry(self.console, label, escape(text))
        else:
            print_text(self.console, escape(text), indent=2 if label else 0)
