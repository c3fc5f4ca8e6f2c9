"""Write the results of a run as sentences and rows of tables."""

from collections.abc import Iterator, Sequence

from rich.markup import escape

from finetune.data import ImageSplits
from finetune.data.grouping import describe_rule
from finetune.decide.choice import Choice
from finetune.decide.class_weights import UNEQUAL
from finetune.decide.diagnosis import Verdict
from finetune.decide.evidence import Evidence
from finetune.decide.plan import Plan
from finetune.ensemble.recommendation import Option
from finetune.predict.metrics import ClassMetrics, Metrics
from finetune.predict.model import Predictor
from finetune.progress import duration
from finetune.runs.folder import RunMetrics, Seconds
from finetune.runs.layout import TableRow, counted
from finetune.training import plan_phases

LISTED = 5
"""Largest number of unreadable files that are listed by name; the others are counted."""

BEST = "bold green"
"""Style of the row that was chosen."""


def describe_groups(splits: ImageSplits) -> str:
    """Return how many groups there are, where they are from, and whether the given splits divide them."""
    count = len({*splits.train["group"]})
    line = f"{count} groups of training images ({describe_rule(splits.group_rule)}): no fold divides a group"
    if splits.num_shared:
        line += f", but {splits.num_shared} validation and test images belong to groups of training images"
    return line


def describe_images(splits: ImageSplits) -> str:
    """Return the number of images in each split and of classes."""
    parts = [f"{len(splits.train):,} training"]
    parts += [f"{len(splits.validation):,} validation"] if splits.validation is not None else []
    parts += [f"{len(splits.test):,} test"] if splits.test is not None else []
    share = f"{100 * splits.test_share:.0f} %"
    origin = f"; {share} of the images were set apart for the test" if splits.test_was_made else ""
    return f"{', '.join(parts)} images of {len(splits.class_names)} classes{origin}"


def describe_stream(splits: ImageSplits) -> str:
    """Return what a stream's images are used for; "" if the images are not a stream's."""
    if splits.stream is None:
        return ""
    return (
        f"these images are a sample of a stream of {splits.stream.num_images} images: training reads the stream; all "
        f"measurements and evaluations use the sample"
    )


def lines_of_left_out(splits: ImageSplits) -> list[str]:
    """Return what was changed or left out when the images were read, and the first files that cannot be read."""
    lines = [f"[yellow]{escape(note)}[/yellow]" for note in splits.notes]
    count = len(splits.unreadable)
    if not count:
        return lines
    lines += [f"[yellow]{counted(count, 'file')} cannot be read and {'is' if count == 1 else 'are'} left out:[/yellow]"]
    lines += [f"  {escape(file.path)}: {escape(file.reason)}" for file in splits.unreadable[:LISTED]]
    return [*lines, f"  and {count - LISTED} more"] if count > LISTED else lines


def describe_probe(evidence: Evidence) -> str:
    """Return the accuracy of the linear probe with its error."""
    return f"{100 * evidence.probe_accuracy:.1f} ± {100 * evidence.probe_accuracy_error:.1f} %"


def describe_similarity(evidence: Evidence) -> str:
    """Return the domain similarity and its scale."""
    scale = "" if evidence.similarity_calibrated else " (uncalibrated for this network)"
    return f"{evidence.domain_similarity:.2f} (0 far, 1 near){scale}"


def describe_machine(evidence: Evidence) -> str:
    """Return the device and how fast it sends images forward and trains the whole network."""
    speed = evidence.speed
    full = speed.fastest("full", 0)
    return (
        f"{speed.device}: {speed.forward_images_per_second:.0f} images/s forward ({speed.forward.precision}), "
        f"{full.images_per_second:.0f} images/s training every layer ({full.precision})"
    )


def describe_evaluation(plan: Plan, splits: ImageSplits) -> str:
    """Return the images that the model is evaluated on, and whether the final model is trained on them, too."""
    phases = plan_phases(plan, splits)
    images = {
        "given": "the validation split",
        "held_out": f"{100 * len(phases[0].held_out) / len(splits.train):.0f} % of the training images, held out",
        "cross_validation": f"{sum(len(phase.held_out) > 0 for phase in phases)}-fold cross-validation",
    }[plan.validation]
    refit = "; the final model is then trained on all images" if plan.refit else ""
    return f"{images}, by {plan.metric}{refit}"


def describe_top1(metrics: Metrics, images: str) -> str:
    """Return the accuracy with its interval, or the mean average precision of sets of labels.

    Args:
        metrics: metrics on some images.
        images: name of one of these images, such as "test image".
    """
    low, high = (f"{100 * end:.1f}" for end in metrics.main_interval)
    if metrics.sets is not None:
        count = counted(metrics.num_images, images)
        return f"mean average precision {100 * metrics.main:.1f} % of {count} (95 % interval: {low} to {high})"
    by = "" if metrics.answers is None else " by the most probable class"
    right = f"{100 * metrics.top1:.1f} % of {counted(metrics.num_images, images)} right{by}"
    return f"{right} (95 % interval: {low} to {high})"


def describe_answers(metrics: Metrics) -> str:
    """Return the quality of the answers with the least expected cost; "" if the most probable class is the answer."""
    if metrics.answers is None:
        return ""
    own, other = metrics.answers.least_costly, metrics.answers.most_probable
    parts = [
        f"answers: {100 * own.accuracy:.1f} % right",
        f"mean cost {own.mean_cost:.3f} ({_ends(own.mean_cost_interval)}), {other.mean_cost:.3f} with the most "
        f"probable classes",
    ]
    if own.grades is not None:
        parts[:0] = [
            f"quadratic weighted kappa {own.grades.quadratic_weighted_kappa:.3f} "
            f"({_ends(own.grades.quadratic_weighted_kappa_interval)})",
            f"mean absolute error {own.grades.mean_absolute_error:.3f} grades "
            f"({_ends(own.grades.mean_absolute_error_interval)})",
        ]
    return "; ".join(parts)


def _ends(interval: tuple[float, float]) -> str:
    """Return the ends of a 95 % interval."""
    low, high = (round(end, 3) + 0.0 for end in interval)  # -0.0 + 0.0 is 0.0
    return f"{low:.3f} to {high:.3f}"


def describe_balance(metrics: Metrics) -> str:
    """Return the balanced accuracy where the classes have very different numbers of images, else ""."""
    counts = [row.num_images for row in metrics.per_class if row.num_images]
    if metrics.sets is not None or max(counts) < UNEQUAL * min(counts):
        return ""
    return f"balanced accuracy {100 * metrics.balanced_accuracy:.1f} %, the mean over {len(counts):,} classes"


def describe_sizes(evidence: Evidence) -> str:
    """Return the number of images per class: the mean, or the smallest and the largest one where they differ much."""
    counts = evidence.class_counts.values()
    if evidence.imbalance < UNEQUAL:
        return f"{evidence.images_per_class:.0f} images per class"
    return f"{min(counts):,} to {max(counts):,} images per class"


def describe_metrics(metrics: Metrics) -> str:
    """Return the accuracy with its interval, and the other metrics."""
    sets = metrics.sets
    if sets is not None:
        return (
            f"{describe_top1(metrics, 'image')}; F1 {100 * sets.micro_f1:.1f} % over all labels and "
            f"{100 * sets.macro_f1:.1f} % over the classes, {100 * sets.exact_match:.1f} % of images without an error; "
            f"log-loss {metrics.log_loss:.3f}, calibration error {metrics.calibration_error:.3f}"
        )
    answers = "" if metrics.answers is None else f"; {describe_answers(metrics)}"
    return (
        f"{describe_top1(metrics, 'image')}{answers}; balanced accuracy {100 * metrics.balanced_accuracy:.1f} %, "
        f"log-loss {metrics.log_loss:.3f}, calibration error {metrics.calibration_error:.3f}"
    )


def describe_hardest_class(metrics: Metrics) -> str:
    """Return the class with the lowest recall on the test images; "" if all images are classified correctly."""
    if metrics.sets is not None:
        return _describe_hardest_label(metrics)
    present = [row for row in metrics.per_class if row.num_images]
    # Of equal recalls, that of the most images says most.
    worst = min(present, key=lambda row: (row.recall, -row.num_images))
    if (missed := sum(row.recall == 0.0 for row in present)) > 1:
        return f"hardest classes: of {missed:,} of {len(present):,}, no test image is right, as of {escape(worst.name)}"
    if worst.recall == 1.0:
        return ""
    images = counted(worst.num_images, "test image")
    return f"hardest class: {escape(worst.name)}, {100 * worst.recall:.0f} % of {images} right"


def _describe_hardest_label(metrics: Metrics) -> str:
    """Return the label with the lowest average precision; "" if no image has a label."""
    found = [] if metrics.sets is None else metrics.sets.per_class
    ranked = [(row.average_precision, row.name) for row in found if row.average_precision is not None]
    if not ranked:
        return ""
    precision, name = min(ranked)
    return f"hardest class: {escape(name)}, average precision {100 * precision:.0f} %"


def describe_members(members: Sequence[Predictor]) -> Iterator[str]:
    """Yield a line with the accuracies of each member of an ensemble."""
    for number, member in enumerate(members, start=1):
        splits = [("validation", member.validation), ("test", member.test)]
        figures = [f"{name} {100 * found.main:.1f} %" for name, found in splits if found is not None]
        what = "mean average precision" if member.plan.has_sets else "right"
        yield f"member {number} ({member.plan.strategy}) alone: {', '.join(figures)} {what}"


def describe_seconds(seconds: Seconds) -> str:
    """Return the time of a run and of its parts."""
    search = f"search {duration(seconds.search)}, " if seconds.search else ""
    return (
        f"{duration(seconds.total)} in all: evidence {duration(seconds.evidence)}, {search}"
        f"training {duration(seconds.train)}"
    )


def describe_verdict(verdict: Verdict) -> tuple[str, str]:
    """Return the verdict, and the changes to try."""
    name = verdict.kind.replace("_", " ")
    changes = ", or ".join(map(how_to, verdict.changes))
    return f"[yellow]{name}[/yellow]: {escape(verdict.sentence)}", f"try {escape(changes)}"


def summarise(metrics: RunMetrics) -> dict[str, object]:
    """Return the quality of a run's model and its cost as plain values, without the classes."""
    return {
        "validation": plain(metrics.validation),
        "validation_source": metrics.validation_source,
        "test": None if metrics.test is None else plain(metrics.test),
        "seconds": metrics.seconds.total,
        "note": metrics.note,
        "verdicts": [verdict.kind for verdict in metrics.verdicts],
    }


def plain(metrics: Metrics) -> dict[str, object]:
    """Return metrics as plain values, without the classes."""
    return metrics.model_dump(mode="json", by_alias=True, exclude={"per_class": True, "sets": {"per_class"}})


def rows_of_candidates(choice: Choice) -> list[TableRow]:
    """Return a row for each candidate: label, accuracy, interval, time, chance and basis."""
    return [
        TableRow(
            (
                candidate.label,
                f"{100 * candidate.expected_top1:.1f} %",
                "{:.1f} to {:.1f}".format(*(100 * end for end in candidate.expected_interval)),
                duration(candidate.expected_seconds),
                f"{100 * candidate.chance:.0f} %",
                candidate.basis,
            ),
            BEST if candidate == choice.chosen else "",
        )
        for candidate in choice.candidates
    ]


def rows_of_backbones(choice: Choice) -> list[TableRow]:
    """Return a row for each network: name, linear probe, best candidate, accuracy and time."""
    return [
        TableRow(
            (
                backbone.model,
                f"{100 * backbone.probe_accuracy:.1f} %",
                backbone.candidate,
                f"{100 * backbone.expected_top1:.1f} %",
                duration(backbone.expected_seconds),
            ),
            "" if number else BEST,
        )
        for number, backbone in enumerate(choice.backbones)
    ]


def rows_of_options(options: Sequence[Option]) -> list[TableRow]:
    """Return a row for each model or average: name, accuracy, log-loss, calibration error, cost."""
    return [
        TableRow(
            (
                ("→ " if option.recommended else "  ") + option.name,
                f"{100 * option.main:.1f} %",
                f"{option.log_loss:.3f}",
                f"{option.calibration_error:.3f}",
                duration(option.train_seconds),
                f"{option.predict_milliseconds:.2f}",
            ),
            BEST if option.recommended else "",
        )
        for option in options
    ]


def rows_of_classes(classes: Sequence[ClassMetrics]) -> list[TableRow]:
    """Return a row for each class: name, precision, recall, F1 and number of images."""
    return [
        TableRow((row.name, *(f"{value:.3f}" for value in (row.precision, row.recall, row.f1)), f"{row.num_images}"))
        for row in classes
    ]


def how_to(change: str) -> str:
    """Return the words that say where to make a change: in the recipe or in the plan.

    >>> how_to("plan.validation=cross_validation")
    'validation=cross_validation in plan.json (train it with --plan)'
    """
    if change.startswith("plan."):
        return f"{change.removeprefix('plan.')} in plan.json (train it with --plan)"
    return f"--set {change}"
