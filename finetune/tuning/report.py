"""Print the findings and the trials of a search."""

from rich.markup import escape

from finetune.progress import duration
from finetune.runs.layout import TableRow, print_entry, print_table, print_text, print_title
from finetune.runs.report import Report
from finetune.runs.sentences import BEST
from finetune.tuning.space import describe
from finetune.tuning.state import Finding, Trial, Tuning

STEPS = (
    "the initial loss",
    "overfitting a small sample",
    "learning rates",
    "the coarse search",
    "the fine search",
    "the curves",
)
"""Titles of the six steps of a search."""

SHORT = {
    "learning_rate": "rate",
    "lowest_rate_fraction": "lowest",
    "weight_decay": "decay",
    "label_smoothing": "smoothing",
}
"""Short names of the parameters, for the heads of table columns."""


def print_finding(report: Report, finding: Finding) -> None:
    """Print the result of one of the six steps."""
    number, title = f"Step {finding.step} of {len(STEPS)}", STEPS[finding.step - 1]
    if report.verbose:
        print_title(report.console, f"{number}: {title}")
        print_text(report.console, escape(finding.says))
    else:
        print_entry(report.console, "Search", f"{number}, {title}: {escape(finding.says)}")


def print_trial(report: Report, trial: Trial) -> None:
    """Print the result of a trial on a verbose report."""
    if not report.verbose:
        return
    outcome = f"loss {trial.losses[-1]:.3f}, {100 * trial.accuracy:.1f} %" if trial.losses else "no loss"
    state = "" if trial.state == "finished" else f" ({trial.state})"
    print_text(
        report.console,
        f"trial {trial.number}: {describe(trial.parameters)}: {outcome}{state}, {duration(trial.seconds)}",
    )


def print_trials(report: Report, tuning: Tuning) -> None:
    """Print a table of all trials, the best one last, on a verbose report."""
    if not report.verbose:
        return
    print_title(report.console, f"Trials ({tuning.search})")
    names = [dimension.name for dimension in tuning.space]
    columns = ("trial", "search", *(SHORT[name] for name in names), "loss", "accuracy", "time", "outcome")
    rows = []
    # Losses are comparable within a trial set only: a coarse trial is a part of a training.
    for trial in sorted(tuning.trials, key=lambda each: (each.stage, -(each.losses or (99.0,))[-1])):
        figures = (f"{trial.losses[-1]:.3f}", f"{100 * trial.accuracy:.1f} %") if trial.losses else ("", "")
        is_winner = (trial.number, trial.stage) == (tuning.winner, "fine")
        cells = (
            str(trial.number),
            trial.stage,
            *(f"{trial.parameters[name]:.2g}" for name in names),
            *figures,
            duration(trial.seconds),
            "winner" if is_winner else "" if trial.state == "finished" else trial.state,
        )
        rows.append(TableRow(cells, BEST if is_winner else ""))
    print_table(report.console, columns, rows, ("search", "outcome"), optional=["time"])
