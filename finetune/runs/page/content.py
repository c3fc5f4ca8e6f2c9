"""Gather what the report of a run says: from the files of its folder, its images and its model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from finetune.decide.candidates import Candidate
from finetune.decide.choice import Choice
from finetune.decide.diagnosis import describe_checks
from finetune.decide.evidence import Evidence
from finetune.decide.plan import Plan
from finetune.decide.plan_reasons import explain_groups
from finetune.decide.planned_run import PlannedRun
from finetune.errors import RunFolderError
from finetune.history import Row
from finetune.names import quoted
from finetune.predict.model import Ensemble, Predictor, TrainedModel
from finetune.progress import duration
from finetune.runs.folder import RunFolder, RunMetrics
from finetune.runs.image_tables import LEFT_OUT, read_predictions
from finetune.runs.page.charts import Line, Measured, curves, frontier, percent, rate_tick, series
from finetune.runs.page.evaluated import Evaluated, Illustrator, describe_split
from finetune.runs.page.evaluated_sets import EvaluatedSets, describe_sets_of_split
from finetune.runs.page.pictures import FindSource
from finetune.value import read_json

MOST_LEFT_OUT = 20
"""Largest number of unreadable files that are listed by name."""


PHASES = {"validation": "training that is evaluated", "refit": "training on all images"}
"""Names of phases in sentences; those of folds are in the files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """The charts of a training's history."""

    title: str
    """The training that is drawn in full, in words."""
    others: int
    """Number of further trainings, whose train losses are drawn thin."""
    loss: Markup
    """Chart of the losses."""
    accuracy: Markup | None
    """Chart of the accuracies; None: the training was not evaluated."""
    rate: Markup
    """Chart of the learning rate."""
    rates: str
    """Peak rates of the stages, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What the report of a run says."""

    name: str
    """Name of the run folder."""
    summary: str
    """The run in one sentence."""
    choice: Choice
    """The choice, with its reasons and candidates."""
    plan: Plan
    """The plan of the training."""
    evidence: Evidence
    """The measurements of the images."""
    metrics: RunMetrics
    """Quality and cost of the model."""
    drawn: tuple[Candidate, ...]
    """Candidates in the chart, in the order of their numbers."""
    frontier: Markup
    """Chart of accuracy against time."""
    curves: Curves | None
    """Charts of the history; None: nothing was trained step by step."""
    splits: tuple[Evaluated | EvaluatedSets, ...]
    """Predictions of each split, the most important one first."""
    left_out: tuple[tuple[str, str], ...]
    """Files that were left out, with the reasons."""
    num_left_out: int
    """Number of files that were left out."""
    notes: tuple[str, ...]
    """Sentences about images that were not used."""
    groups: str
    """Sentence about groups of images; empty: there are none."""
    checked: str
    """Which parts of the history the diagnosis is based on."""
    commands: tuple[tuple[str, str], ...]
    """What can be done with the model: the purpose and the command."""
    origin: str
    """When and with which versions the run was made."""


def gather(folder: RunFolder, model: Predictor, find: FindSource) -> Content:
    """Return what the report of a finished run says.

    Args:
        folder: the folder of the run.
        model: its model, which explains its errors.
        find: function that finds the run's images.

    Raises:
        RunFolderError: there are no predictions.
    """
    predictions, decisions, metrics = read_predictions(folder.path), folder.read_decisions(), folder.read_metrics()
    history = folder.read_history()
    # Of an ensemble, the maps are those of its first member.
    shown = model.members[0] if isinstance(model, Ensemble) else model
    illustrator = Illustrator(find, shown.plan, shown if isinstance(shown, TrainedModel) else None)
    splits = _describe_splits(predictions, metrics, illustrator)
    first = splits[0]
    measured = Measured(metrics=first.metrics, seconds=metrics.seconds.train, images=first.images)
    # Random weights are never chosen without being asked for, and their wide interval would fill the chart.
    drawn = [
        each for each in decisions.choice.candidates if each.strategy != "scratch" or each == decisions.choice.chosen
    ]
    left_out = _read_left_out(folder.path)
    return Content(
        name=folder.path.resolve().name,
        summary=_summary(decisions, metrics, model),
        choice=decisions.choice,
        plan=decisions.plan,
        evidence=decisions.evidence,
        metrics=metrics,
        drawn=tuple(drawn),
        frontier=frontier(drawn, measured),
        curves=_draw_curves(history, decisions.plan),
        splits=splits,
        left_out=left_out[:MOST_LEFT_OUT],
        num_left_out=max(len(left_out), decisions.evidence.num_unreadable),
        notes=_notes(decisions.plan, decisions.evidence),
        groups="" if decisions.evidence.groups is None else explain_groups(decisions.evidence.groups),
        checked=describe_checks(history),
        commands=_commands(folder.path, model),
        origin=_origin(folder.path),
    )


def _describe_splits(
    predictions: pd.DataFrame, metrics: RunMetrics, illustrator: Illustrator
) -> tuple[Evaluated | EvaluatedSets, ...]:
    """Return the results of the test images, if there are any, and of the held-out images."""
    entries = [("test", "test images", metrics.test), ("validation", "held-out images", metrics.validation)]
    return tuple(
        (describe_split if own.sets is None else describe_sets_of_split)(
            predictions[predictions["split"] == split], split, f"{own.num_images:,} {images}", own, illustrator
        )
        for split, images, own in entries
        if own is not None
    )


def _summary(decisions: PlannedRun, metrics: RunMetrics, model: Predictor) -> str:
    """Return the run in one sentence."""
    plan, evidence = decisions.plan, decisions.evidence
    what = f"{decisions.choice.chosen.label} of {plan.model}"
    if isinstance(model, Ensemble):
        what = f"The mean of {len(model.members)} models, the first one {what},"
    return (
        f"{what[0].upper()}{what[1:]} was trained on {evidence.num_images:,} images of {evidence.num_classes} classes; "
        f"the whole run took {duration(metrics.seconds.total)}."
    )


def _draw_curves(history: Sequence[Row], plan: Plan) -> Curves | None:
    """Return the charts of the first training in a history, with the losses of the others; None without steps."""
    trainings: dict[tuple[float | int | str, ...], list[Row]] = {}
    for row in history:
        trainings.setdefault((row.get("member", ""), row["phase"]), []).append(row)
    steps = [rows for rows in trainings.values() if any("train_loss" in row for row in rows)]
    if not steps:
        return None
    main, *others = steps
    (member, phase), *_ = trainings
    thin = [Line("another training", "thin", series(rows, "train_loss", is_smooth=True)) for rows in others]
    losses = [
        *thin,
        Line("training batches", "raw", series(main, "train_loss")),
        Line("training batches, smoothed", "grey", series(main, "train_loss", is_smooth=True)),
        *_present(Line("training images, as in a prediction", "dashed", series(main, "seen_loss"))),
        *_present(Line("held-out images", "accent", series(main, "validation_loss"))),
    ]
    accuracies = [
        *_present(Line("training images", "dashed", series(main, "seen_top1"))),
        *_present(Line("held-out images", "accent", series(main, "validation_top1"))),
    ]
    rates = [Line("learning rate", "accent", series(main, "learning_rate"))]
    trained = [f"{stage.name} {stage.learning_rate:.1e}" for stage in plan.stages if stage.learning_rate > 0]
    frozen = sum(stage.learning_rate == 0 for stage in plan.stages)
    return Curves(
        title=PHASES.get(str(phase), f"training of {phase}".replace("-", " "))
        + (f" of member {member}" if member else ""),
        others=len(others),
        loss=curves(losses, "loss", lambda value: f"{value:.2g}", "Losses over the steps of the training"),
        accuracy=curves(accuracies, "accuracy", percent, "Accuracy over the steps of the training", top=1.0)
        if accuracies
        else None,
        rate=curves(rates, "learning rate of the head", rate_tick, "Learning rate over the steps"),
        rates=", ".join([*trained, f"head {plan.head_learning_rate:.1e}"])
        + (f"; {frozen} lower stages are frozen" if frozen else ""),
    )


def _present(line: Line) -> list[Line]:
    """Return a line in a list, or an empty list if it has no points."""
    return [line] if line.points else []


def _read_left_out(path: Path) -> tuple[tuple[str, str], ...]:
    """Return the files that could not be read, with the reasons."""
    if not (path / LEFT_OUT).exists():
        return ()
    try:
        table = pd.read_csv(path / LEFT_OUT, keep_default_na=False, dtype=str)
        return tuple(zip(table["path"], table["reason"], strict=True))
    except (OSError, ValueError, KeyError) as error:  # pandas' own errors are ValueErrors
        raise RunFolderError(f"{path / LEFT_OUT} is damaged: {error}") from None


def _notes(plan: Plan, evidence: Evidence) -> tuple[str, ...]:
    """Return sentences about images that were not used."""
    notes = []
    if plan.limit:
        notes.append(f"A limit of {plan.limit:,} training images was set; further training images were not used.")
    if evidence.num_held < evidence.num_images:
        notes.append(
            f"The images are streamed: measurements and evaluations used a sample of {evidence.num_held:,} of "
            f"{evidence.num_images:,} training images."
        )
    return tuple(notes)


def _commands(path: Path, model: Predictor) -> tuple[tuple[str, str], ...]:
    """Return what can be done with the model: the purpose and the command."""
    run = quoted(path)
    commands = [
        ("Label new images", f"finetune predict {run} IMAGES... --output predictions.csv"),
        ("Measure it on other labelled images", f"finetune evaluate {run} --data OTHER_IMAGES"),
        ("Compare it with another run", f"finetune report {run} OTHER_RUN"),
        ("Use it without PyTorch", f"finetune export {run}"),
        ("Train it again", f"finetune train --recipe {quoted(path / 'recipe.yaml')}"),
    ]
    if not isinstance(model, Ensemble):
        commands.insert(2, ("Load it with timm alone", f"timm.create_model({f'local-dir:{path}'!r}, pretrained=True)"))
    return tuple(commands)


def _origin(path: Path) -> str:
    """Return when and with which versions a run was made; empty if its folder does not say it."""
    if not (path / "environment.json").exists():
        return ""
    environment = read_json(path / "environment.json", RunFolderError)
    try:
        packages = environment["packages"]
        return (
            f"{str(environment['date'])[:10]}, {environment['device']}, Python {environment['python']}, torch "
            f"{packages['torch']}, timm {packages['timm']}"
        )
    except (KeyError, TypeError):
        raise RunFolderError(f"{path / 'environment.json'} does not describe an environment") from None
