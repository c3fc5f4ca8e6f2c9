"""Measure what it costs to show and record a run while it is in progress: the share of the training's time.

    python -m experiments.measure_live --data demo:digits --image-size 64 --steps 150 --track none tensorboard mlflow

For each tracker, one run is made. Its training waits for the hook `Report.progress`, whose wall time is added up. So
the share compares two times of one run, and a busy machine slows both. A tracker works in a thread of its own, whose
processor time is measured, too.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from rich.console import Console

import finetune
from finetune.history import Row
from finetune.runs import recorder, tracking
from finetune.runs.report import Report


class TimedReport(Report):
    """A report that adds up the time that a training waits for it."""

    def __init__(self, console: Console) -> None:
        """Start at 0."""
        super().__init__(console)
        self.waited = 0.0
        """Wall time within the hook during trainings, in seconds."""
        self.trained = 0.0
        """Wall time from the first to the last step of the trainings, in seconds."""
        self.steps = 0
        """Number of steps."""
        self._last: float | None = None

    def progress(self, task: str, done: int, total: int, history: Sequence[Row] = ()) -> None:
        """Pass the progress on."""
        begun = time.perf_counter()
        super().progress(task, done, total, history)
        ended = time.perf_counter()
        # The first step of a phase starts the clock: what precedes it is preparation.
        if history and done > 1 and self._last is not None:
            self.waited += ended - begun
            self.trained += ended - self._last
            self.steps += 1
        self._last = ended if history else None


class TimedTrackers(tracking.Trackers):
    """Trackers that add up the processor time of their thread."""

    used = 0.0
    """Processor time of logging, in seconds."""

    def _log(self, number: int, row: Row) -> None:
        begun = time.thread_time()
        super()._log(number, row)
        TimedTrackers.used += time.thread_time() - begun


def main() -> None:
    """Make a run for each tracker, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="demo:digits", help="images to train on")
    parser.add_argument("--image-size", type=int, default=64, help="side of the square images, in pixels")
    parser.add_argument("--steps", type=int, default=150, help="steps of the training")
    parser.add_argument("--track", nargs="+", default=["none"], help="trackers to measure; none: no tracker")
    arguments = parser.parse_args()
    print("| tracker | steps | a step | waits for the hook, a step | share | tracker's thread, a step |")
    print("|---|---|---|---|---|---|")
    for name in arguments.track:
        TimedTrackers.used = 0.0
        report = TimedReport(Console())
        recipe = finetune.load_recipe(
            data=arguments.data,
            strategy="full",
            steps=arguments.steps,
            image_size=arguments.image_size,
            refit=False,
            **({} if name == "none" else {"track": name}),
        )
        with tempfile.TemporaryDirectory() as folder, patch.object(recorder, "Trackers", TimedTrackers):
            finetune.run(recipe, Path(folder) / "run", report)
        step, waited, used = (1e3 * each / report.steps for each in (report.trained, report.waited, TimedTrackers.used))
        print(f"| {name} | {report.steps} | {step:.0f} ms | {waited:.2f} ms | {waited / step:.2%} | {used:.1f} ms |")


if __name__ == "__main__":
    main()
