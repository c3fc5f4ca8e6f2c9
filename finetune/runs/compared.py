"""Print the comparison of runs."""

from rich.console import Console
from rich.markup import escape

from finetune.runs.comparing import ClassDifference, Comparison
from finetune.runs.layout import TableRow, print_entry, print_table, print_text

CLASSES = 8
"""Number of classes that are listed without --verbose."""


def print_comparison(console: Console, comparison: Comparison, verbose: bool = False) -> None:
    """Print the accuracy of each run, the paired tests, the classes on which the runs differ, and the notes."""
    print_entry(console, "Compared", escape(comparison.images))
    for run in comparison.runs:
        low, high = (100 * end for end in run.interval)
        accuracy = f"{100 * run.top1:.1f} % right (95 % interval: {low:.1f} to {high:.1f}), log-loss {run.log_loss:.3f}"
        print_entry(console, "", escape(f"{run.path}: {accuracy}; {run.label}"))
    for test in comparison.tests:
        print_entry(console, "Test", escape(test.sentence))
        shown = test.classes if verbose else test.classes[:CLASSES]
        if not shown:
            continue
        columns = ("class", "images", test.reference, test.path, "points", "p")
        print_table(console, columns, [_row(each) for each in shown], ("class",), optional=["p", "images"])
        if len(shown) < len(test.classes):
            print_text(console, f"[dim]and {len(test.classes) - len(shown)} classes that differ less[/dim]")
    for number, note in enumerate(comparison.notes):
        print_entry(console, "" if number else "Note", escape(note))


def summarise_comparison(comparison: Comparison) -> dict[str, object]:
    """Return a comparison as plain values, for `--json`."""
    return {
        "images": comparison.images,
        "runs": [
            {"run": run.path, "top1": run.top1, "interval": run.interval, "log_loss": run.log_loss}
            for run in comparison.runs
        ],
        "tests": [
            {
                "run": test.path,
                "reference": test.reference,
                "images": test.count,
                "difference": test.difference,
                "interval": test.interval,
                "gained": test.gained,
                "lost": test.lost,
                "p_value": test.p_value,
                "classes": [
                    {
                        "name": each.name,
                        "images": each.count,
                        "reference": each.reference,
                        "right": each.right,
                        "p_value": each.p_value,
                    }
                    for each in test.classes
                ],
            }
            for test in comparison.tests
        ],
        "notes": comparison.notes,
    }


def _row(each: ClassDifference) -> TableRow:
    """Return a class as a row: name, images, right of the first run and of this one, points and p-value."""
    return TableRow(
        (
            each.name,
            str(each.count),
            str(each.reference),
            str(each.right),
            f"{100 * each.difference:+.1f}",
            f"{each.p_value:.2g}",
        )
    )
