"""Print the findings and the trials of a search."""

from rich.markup import escape
from rich.table import Table

from finetune.progress import duration
from finetune.runs.report import Report
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
    report.title(f"Step {finding.step} of {len(STEPS)}: {STEPS[finding.step - 1]}")
    report.console.print(f"  {escape(finding.says)}")


def print_trial(report: Report, trial: Trial) -> None:
    """Print the result of a trial."""
    outcome = f"loss {trial.losses[-1]:.3f}, {100 * trial.accuracy:.1f} %" if trial.losses else "no loss"
    state = "" if trial.state == "finished" else f" ({trial.state})"
    report.console.print(
        f"  trial {trial.number}: {describe(trial.parameters)}: {outcome}{state}, {duration(trial.seconds)}"
    )


def print_trials(report: Report, tuning: Tuning) -> None:
    """Print a table of all trials, the best one last."""
    report.title(f"Trials ({tuning.search})")
    table = Table(box=None, padding=(0, 1), header_style="dim")
    names = [dimension.name for dimension in tuning.space]
    for column in ("trial", "search", *(SHORT[name] for name in names), "loss", "accuracy", "time", ""):
        table.add_column(column, justify="left" if column in {"search", ""} else "right")
    # Losses are comparable within a trial set only: a coarse trial is a part of a training.
    for trial in sorted(tuning.trials, key=lambda each: (each.stage, -(each.losses or (99.0,))[-1])):
        figures = (f"{trial.losses[-1]:.3f}", f"{100 * trial.accuracy:.1f} %") if trial.losses else ("", "")
        is_winner = (trial.number, trial.stage) == (tuning.winner, "fine")
        table.add_row(
            str(trial.number),
            trial.stage,
            *(f"{trial.parameters[name]:.2g}" for name in names),
            *figures,
            duration(trial.seconds),
            "winner" if is_winner else "" if trial.state == "finished" else trial.state,
            style="bold green" if is_winner else "",
        )
    report.console.print(table)
