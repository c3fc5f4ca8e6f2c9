"""Print a run in about 15 lines: what was found, what was chosen and why, what to expect, and the result."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from finetune.data import ImageSplits
from finetune.decide.choice import Choice
from finetune.decide.evidence import Evidence
from finetune.decide.plan import Plan
from finetune.decide.plan_reasons import explain_groups
from finetune.predict.metrics import describe_not_evaluated
from finetune.progress import duration
from finetune.recipe import Metric, Strategy
from finetune.runs.folder import RunMetrics
from finetune.runs.layout import print_entry
from finetune.runs.sentences import (
    describe_answers,
    describe_balance,
    describe_evaluation,
    describe_groups,
    describe_hardest_class,
    describe_images,
    describe_probe,
    describe_similarity,
    describe_sizes,
    describe_stream,
    describe_top1,
    describe_verdict,
    lines_of_left_out,
)

TRAINED: dict[Strategy, str] = {
    "linear_probe": "a linear classifier on the unchanged network",
    "norm_tuning": "normalisation layers and a new classifier",
    "partial": "the last stages and a new classifier",
    "full": "every layer",
    "scratch": "every layer, from random weights",
}
"""Parts of the network that each strategy trains, in words."""


EXPECTED: dict[Metric, str] = {
    "top1": "of new images right",
    "mean_average_precision": "mean average precision on new images",
}
"""Accuracies that are expected of candidates, in words."""


def print_images(console: Console, splits: ImageSplits, is_first: bool) -> None:
    """Print what was found: the images, their groups, and what was left out.

    Args:
        console: the console to print on.
        splits: the images.
        is_first: whether this is the first division of these images; if not, groups were found that divide them anew.
    """
    found = describe_images(splits)
    print_entry(console, "Found" if is_first else "Regrouped", found)
    for text in (describe_stream(splits), describe_groups(splits) if splits.group_rule else ""):
        print_some(console, "", escape(text))
    if is_first:
        for line in lines_of_left_out(splits):
            print_entry(console, "", line)


def print_evidence(console: Console, evidence: Evidence) -> None:
    """Print the two measurements that decide most, and the groups that were found."""
    if evidence.model_reason:
        print_entry(console, "Network", escape(f"{evidence.model}, {evidence.model_reason}"))
    print_entry(
        console,
        "Measured",
        f"linear probe {describe_probe(evidence)} {'mean average precision' if evidence.has_sets else 'right'}; "
        f"domain similarity {describe_similarity(evidence)}; "
        f"{describe_sizes(evidence)}",
    )
    if evidence.groups is not None:
        print_entry(console, "Groups", escape(explain_groups(evidence.groups)))


def print_choice(console: Console, choice: Choice, model: str) -> None:
    """Print the choice with its reason, and what to expect.

    Args:
        console: the console to print on.
        choice: the choice.
        model: name of the chosen network.
    """
    chosen = choice.chosen
    print_entry(
        console, "Chosen", escape(f"{chosen.label}, {TRAINED[choice.strategy]} of {model}: {choice.main_reason}")
    )
    for reason in choice.further_reasons:
        print_entry(console, "", escape(reason))
    low, high = (100 * end for end in chosen.expected_interval)
    print_entry(
        console,
        "Expected",
        f"{100 * chosen.expected_top1:.1f} % {EXPECTED[choice.expected_metric]} "
        f"(90 % interval: {low:.1f} to {high:.1f}), after {duration(chosen.expected_seconds)} of training",
    )


def print_plan(console: Console, plan: Plan, splits: ImageSplits) -> None:
    """Print the length of the training, and how the model is evaluated."""
    steps = f"{plan.steps} steps of {plan.batch_size} images; " if plan.steps else ""
    print_entry(console, "Plan", f"{steps}evaluated on {describe_evaluation(plan, splits)}")


def print_result(console: Console, metrics: RunMetrics, folder: Path, reads: str) -> None:
    """Print the accuracy of the final model, what stands out, the cost and the report.

    Args:
        console: the console to print on.
        metrics: metrics and cost of the run.
        folder: the run folder.
        reads: sentence about how often the test split was scored, or "".
    """
    kept = next((option.name for option in metrics.options if option.recommended), "")
    if kept:
        compared = f"of {len(metrics.options)} models and averages that were compared (metrics.json)"
        print_entry(console, "Kept", f"{escape(kept)}, {compared}")
    source = escape(metrics.validation_source)
    validation = f"validation: {describe_top1(metrics.validation, 'image')}; {source}"
    if metrics.test is None:
        print_entry(console, "Result", validation)
        print_some(console, "", describe_answers(metrics.validation))
    else:
        print_entry(console, "Result", describe_top1(metrics.test, "test image"))
        print_some(console, "", describe_answers(metrics.test))
        print_some(console, "", escape(reads))
        print_entry(console, "", validation)
        print_some(console, "", describe_hardest_class(metrics.test))
    main, image = (metrics.validation, "held-out image") if metrics.test is None else (metrics.test, "test image")
    print_some(console, "", describe_balance(main))
    print_some(console, "", escape(describe_not_evaluated(main, image)))
    print_some(console, "Note", f"[yellow]{escape(metrics.note)}[/yellow]" if metrics.note else "")
    for verdict in metrics.verdicts:
        print_entry(console, "Advice", "; ".join(describe_verdict(verdict)))
    print_entry(console, "Took", f"{duration(metrics.seconds.total)}; report: {escape(str(folder / 'report.html'))}")


def print_some(console: Console, label: str, text: str) -> None:
    """Print a text next to a label, unless the text is empty."""
    if text:
        print_entry(console, label, text)
