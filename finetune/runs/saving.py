"""Train the members of a run, score the model on the test split, and save it with its report."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from finetune.data import ImageSplits, UndecodableError, labels_of, without_undecodable
from finetune.decide.diagnosis import Verdict, diagnose
from finetune.decide.planned_run import PlannedRun
from finetune.ensemble.members import TrainedMember
from finetune.names import quoted
from finetune.predict.metrics import score
from finetune.predict.model import Ensemble, HeldOut, Predictor, TrainedModel, average
from finetune.processes import divide_rows, from_main_process
from finetune.runs.doubt import NEIGHBOURS, find_neighbours
from finetune.runs.execution import Outcome, Searched, carry_out
from finetune.runs.first_decisions import keep_first_decisions
from finetune.runs.folder import RunFolder, RunMetrics, Seconds
from finetune.runs.page.writing import write_report
from finetune.runs.report import Report
from finetune.runs.run_data import contents_in
from finetune.runs.scoring_models import describe_models, remember_model

Model = TypeVar("Model", bound=Predictor)


def save_run(
    folder: RunFolder,
    members: Sequence[PlannedRun],
    splits: ImageSplits,
    report: Report,
    start: float,
    searched: Searched | None = None,
) -> Predictor:
    """Train the members, score the model on the test split, and save it in its run folder; return the model.

    Args:
        folder: the run folder; it holds the decisions already.
        members: planned runs to train, the leading one first.
        splits: the images.
        report: the report to print on.
        start: value of `time.perf_counter()` when the run began.
        searched: the search that began the training of the only member; None: there was no search.

    Raises:
        DivergenceError: a training diverged.
    """
    from_main_process(lambda: report.begin(members, folder))
    finished = carry_out(members, splits, folder.checkpoints, report.progress, searched)
    try:
        model = _scored(finished.models, splits, report)
    except UndecodableError as error:
        # The trainings are finished: only the test images are still to be decoded.
        splits = without_undecodable(splits, only_test=True)
        report.say(f"{str(error).rpartition('; ')[0]}: test images that cannot be decoded are left out")
        model = _scored(finished.models, splits, report)
    keep_first_decisions(folder)
    if finished.members[0] != members[0]:
        folder.write_decisions(finished.members[0])
    curves = _keep_rejected(folder, finished.rejected)
    metrics = RunMetrics(
        validation=model.validation,
        validation_source=model.plan.evaluated_on,
        test=model.test,
        seconds=Seconds(
            # Each network is measured once, however many members use it.
            evidence=sum({own.evidence.model: own.evidence.seconds for own in members}.values()),
            search=round(searched.seconds, 2) if searched else 0.0,
            train=round(finished.seconds, 2),
            total=round(time.perf_counter() - start, 2),
        ),
        work=finished.work,
        options=finished.options,
        note="; ".join(filter(None, (model.note, curves))),
        verdicts=_verdicts(finished),
    )
    neighbours = find_neighbours(model, splits, report.progress)
    from_main_process(lambda: neighbours.save(folder.path / NEIGHBOURS))
    folder.write_model(model, metrics, splits, finished.members)
    from_main_process(lambda: write_report(folder, model, splits))
    report.result(metrics, folder.path, model.members if isinstance(model, Ensemble) else (), _reads(folder, model))
    return model


def _reads(folder: RunFolder, model: Predictor) -> str:
    """Return a sentence about how many models have scored the same test images, with this one; "" if they are few."""
    if model.test is None:
        return ""

    def remember() -> int:
        tested = contents_in(folder, "test")
        return remember_model(tested, model) if tested else 0

    return describe_models(from_main_process(remember), model.test.num_images, "test images")


def _keep_rejected(folder: RunFolder, rejected: Sequence[TrainedMember]) -> str:
    """Save the decisions and histories of rejected trainings; return a remark with the commands that diagnose them.

    The remark is empty if no training was rejected.
    """
    commands = []
    for own, model in rejected:
        place = RunFolder(folder.path / "rejected" / own.name)
        place.write_decisions(own)
        place.write_history(model.history)
        commands.append(f"finetune diagnose {quoted(place.path)}")
    return f"learning curve: {'; '.join(commands)}" if commands else ""


def _verdicts(finished: Outcome) -> list[Verdict]:
    """Return the diagnosis of each final model's history."""
    return [
        verdict
        for own, model in zip(finished.members, finished.models, strict=True)
        for verdict in diagnose(model.history, model.plan, own.evidence)
    ]


def _scored(members: Sequence[TrainedModel], splits: ImageSplits, report: Report) -> Predictor:
    """Return the final model, the only one or the average of several, with its metrics on the test split."""
    if splits.test is None:
        return average(members)
    test, labels, names = splits.test, labels_of(splits.test), list(splits.class_names)

    def probabilities_of(member: TrainedModel) -> NDArray[np.float64]:
        """Return the class probabilities (n_test_images, n_classes); each process computes a part of the rows."""
        return divide_rows(lambda rows: member.probabilities(test.select(rows), report.progress), range(len(test)))

    parts = [probabilities_of(member) for member in members]

    def tested(model: Model, part: NDArray[np.float64]) -> Model:
        """Return a model with its probabilities of the test images, (n_test_images, n_classes), and their metrics."""
        metrics = score(part, labels, names, model.thresholds, model.rule)
        return replace(model, test=metrics, tested=HeldOut(labels=labels, probabilities=part))

    members = [tested(member, part) for member, part in zip(members, parts, strict=True)]
    model = average(members)
    return tested(model, model.combined(parts)) if isinstance(model, Ensemble) else model
