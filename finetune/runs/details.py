"""Print every detail of a run: all measurements, all candidates, the plan with its reasons, all metrics."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from finetune.data import ImageSplits
from finetune.decide.choice import Choice
from finetune.decide.evidence import Evidence
from finetune.decide.plan import Plan
from finetune.decide.plan_reasons import explain_groups
from finetune.predict.metrics import Metrics, describe_not_evaluated
from finetune.predict.model import Predictor
from finetune.recipe import METRIC_OF_SETS
from finetune.runs.folder import RunMetrics
from finetune.runs.layout import counted, print_table, print_text, print_title
from finetune.runs.sentences import (
    describe_evaluation,
    describe_groups,
    describe_hardest_class,
    describe_images,
    describe_machine,
    describe_members,
    describe_metrics,
    describe_probe,
    describe_seconds,
    describe_similarity,
    describe_sizes,
    describe_stream,
    describe_verdict,
    lines_of_left_out,
    rows_of_backbones,
    rows_of_candidates,
    rows_of_classes,
    rows_of_options,
)

NAME = 20
"""Columns that the name of a measurement takes, with the indentation."""

NETWORKS = ("network", "linear probe", "best candidate", "expected top-1", "expected time")
CANDIDATES = ("candidate", "expected top-1", "90 % interval", "expected time", "P(best)", "basis")
TEXTS = ("network", "best candidate", "candidate", "basis")
"""Columns of the tables of networks and of candidates, and those of them that hold texts."""


def print_images(console: Console, splits: ImageSplits) -> None:
    """Print the number of images in each split, and what was left out."""
    print_title(console, "Images")
    print_text(console, describe_images(splits))
    if splits.stream is not None:
        print_text(console, describe_stream(splits))
    if splits.group_rule:
        print_text(console, escape(describe_groups(splits)))
    for line in lines_of_left_out(splits):
        print_text(console, line)


def print_evidence(console: Console, evidence: Evidence) -> None:
    """Print the measurements of one network on the images and on this machine."""
    print_title(console, "Evidence")
    size = describe_sizes(evidence)
    rows = [
        ("network", f"{evidence.model}, weights: {evidence.weights}"),
        *([("", evidence.model_reason)] if evidence.model_reason else []),
        ("size", f"{size}; the largest class has {evidence.imbalance:.1f} x the images of the smallest"),
        ("resolution", f"{evidence.native_shorter_side} px stored; {evidence.image_size_reason}"),
        ("domain similarity", describe_similarity(evidence)),
        (
            "linear probe",
            f"{describe_probe(evidence)} {'mean average precision' if evidence.has_sets else 'top-1'}, cross-validated",
        ),
        ("this machine", describe_machine(evidence)),
    ]
    if evidence.groups is not None:
        rows.insert(-1, ("groups", explain_groups(evidence.groups)))
    for name, text in rows:
        print_text(console, escape(text), f"  {name}", NAME + 1)


def print_choice(console: Console, choice: Choice) -> None:
    """Print the choice, its reasons, and the other candidates."""
    print_title(console, f"Choice: {choice.chosen.label}")
    for reason in choice.reasons:
        print_text(console, escape(reason))
    if choice.backbones:
        print_table(console, _headed(NETWORKS, choice), rows_of_backbones(choice), TEXTS, optional=["linear probe"])
    print_table(console, _headed(CANDIDATES, choice), rows_of_candidates(choice), TEXTS, optional=["basis", "P(best)"])
    print_text(console, "P(best): probability of being the most accurate candidate")
    print_text(console, f"forecast: {escape(choice.forecast.sentence)}")


def _headed(columns: Sequence[str], choice: Choice) -> tuple[str, ...]:
    """Return the columns of a table of candidates, with the accuracy that is expected of them."""
    name = "expected mAP" if choice.expected_metric == METRIC_OF_SETS else "expected top-1"
    return tuple(column.replace("expected top-1", name) for column in columns)


def print_plan(console: Console, plan: Plan, splits: ImageSplits) -> None:
    """Print the steps, the learning rates, how the model is evaluated, and the plan's reasons."""
    print_title(console, "Plan")
    trained = [f"{stage.name} {stage.learning_rate:.1e}" for stage in plan.stages if stage.learning_rate > 0]
    if plan.steps:
        print_text(
            console,
            f"{counted(plan.steps, 'step')} of {plan.batch_size} images in {plan.precision}; "
            f"learning rates: {', '.join([*trained, f'head {plan.head_learning_rate:.1e}'])}",
        )
    print_text(console, f"evaluation: {describe_evaluation(plan, splits)}")
    for reason in plan.reasons:
        print_text(console, escape(reason))


def print_result(console: Console, metrics: RunMetrics, folder: Path, members: Sequence[Predictor], reads: str) -> None:
    """Print the metrics of the final model and its members, its cost, and its run folder.

    Args:
        console: the console to print on.
        metrics: metrics and cost of the run.
        folder: the run folder.
        members: the members of an ensemble.
        reads: sentence about how often the test split was scored, or "".
    """
    if metrics.options:
        print_title(console, "Options, evaluated on the held-out images")
        columns = ("model", "top-1", "log-loss", "ECE", "training", "ms/image")
        print_table(console, columns, rows_of_options(metrics.options), ("model",), optional=["ms/image", "ECE"])
        print_text(
            console,
            "→ selected: the requested ensemble, unless an equally fast option is better by more than one standard "
            "error of log-loss",
        )
    print_title(console, "Result")
    for line in describe_members(members):
        print_text(console, line)
    source = escape(metrics.validation_source)
    print_text(console, f"{describe_metrics(metrics.validation)} ({source})", "  validation", 13)
    if metrics.test is not None:
        print_text(console, describe_metrics(metrics.test), "  test", 13)
        print_some(console, escape(reads))
        print_some(console, describe_hardest_class(metrics.test))
        print_some(console, escape(describe_not_evaluated(metrics.test, "test image")))
    print_some(console, escape(describe_not_evaluated(metrics.validation, "held-out image")))
    print_some(console, f"[yellow]{escape(metrics.note)}[/yellow]" if metrics.note else "")
    for verdict in metrics.verdicts:
        finding, changes = describe_verdict(verdict)
        print_text(console, finding)
        print_text(console, changes, indent=4)
    print_text(console, describe_seconds(metrics.seconds))
    print_text(console, f"run folder: {escape(str(folder))}; report: {escape(str(folder / 'report.html'))}")


def print_evaluation(console: Console, metrics: Metrics, most: int | None = None) -> None:
    """Print the metrics on labelled images, then those of each class.

    Args:
        console: the console to print on.
        metrics: the metrics.
        most: largest number of classes; of more, those with the lowest F1 are printed. None: all.
    """
    print_text(console, describe_metrics(metrics), "  evaluation", 13)
    print_some(console, escape(describe_not_evaluated(metrics)))
    classes = [row for row in metrics.per_class if row.num_images]
    shown = classes if most is None or len(classes) <= most else sorted(classes, key=lambda row: row.f1)[:most]
    print_table(console, ("class", "precision", "recall", "f1", "images"), rows_of_classes(shown), ("class",))
    if len(shown) < len(classes):
        print_text(console, f"and {len(classes) - len(shown)} classes with a higher f1; --verbose prints all")


def print_some(console: Console, text: str) -> None:
    """Print a text unless it is empty."""
    if text:
        print_text(console, text)
