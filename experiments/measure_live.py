"""Measure what it costs to show and record a run while it is in progress: the share of the training's time.

    python -m experiments.measure_live --data demo:digits --image-size 64 --steps 150 --track none tensorboard mlflow

For each tracker, one run is made. Its training waits for the hook `Report.progress`, whose wall time and processor time
are added up. So each share compares two times of one run, and a busy machine slows both; the processor time does not
depend on how busy it is. A tracker works in a thread of its own, whose processor time is measured, too.
"""

import argparse
import os
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
        self.busy = [0.0, 0.0]
        """Processor time of the training's thread, in seconds: within the hook, and in all."""
        self.steps = 0
        """Number of steps."""
        self._last: tuple[float, float] | None = None

    def progress(self, task: str, done: int, total: int, history: Sequence[Row] = ()) -> None:
        """Pass the progress on."""
        begun = time.perf_counter(), time.thread_time()
        super().progress(task, done, total, history)
        ended = time.perf_counter(), time.thread_time()
        # The first step of a phase starts the clock: what precedes it is preparation.
        if history and done > 1 and self._last is not None:
            self.waited += ended[0] - begun[0]
            self.trained += ended[0] - self._last[0]
            self.busy[0] += ended[1] - begun[1]
            self.busy[1] += ended[1] - self._last[1]
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
    print("| tracker | steps | wall time: a step, the hook | processor time: a step, the hook | tracker's thread |")
    print("|---|---|---|---|---|")
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
        with (
            tempfile.TemporaryDirectory() as folder,
            patch.dict(os.environ, {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}),
            patch.object(recorder, "Trackers", TimedTrackers),
        ):
            finetune.run(recipe, Path(folder) / "run", report)
        times = (report.trained, report.waited, report.busy[1], report.busy[0], TimedTrackers.used)
        step, waited, busy, own, used = (1e3 * each / report.steps for each in times)
        print(
            f"| {name} | {report.steps} | {step:.0f} ms, {waited:.2f} ms ({waited / step:.2%}) "
            f"| {busy:.0f} ms, {own:.2f} ms ({own / busy:.2%}) | {used:.1f} ms |"
        )


if __name__ == "__main__":
    main()
