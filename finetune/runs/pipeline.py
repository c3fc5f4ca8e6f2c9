"""The whole chain: recipe, splits, evidence, choice, race, plan, trained model, metrics, run folder."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from finetune.data import ImageSplits, labels_of, load_images
from finetune.decide.choice import choose_strategy
from finetune.decide.diagnosis import diagnose
from finetune.decide.plan import Plan
from finetune.decide.planned_run import PlannedRun
from finetune.ensemble.members import TrainedMember
from finetune.errors import DivergenceError, FinetuneError, RunFolderError
from finetune.measure import measure_evidence
from finetune.network.weights import resolve_model
from finetune.predict.metrics import score
from finetune.predict.model import Ensemble, Predictor, TrainedModel, average
from finetune.processes import divide_rows, from_main_process, is_main_process
from finetune.recipe import Recipe, load_recipe
from finetune.runs.execution import begin, decide, finish, measure_networks
from finetune.runs.folder import SCHEDULE, RunFolder, RunMetrics, Seconds, default_folder
from finetune.runs.race import RacedMembers
from finetune.runs.report import Report


def run(
    recipe: Recipe, output: Path | None = None, report: Report | None = None, splits: ImageSplits | None = None
) -> Predictor:
    """Measure, choose, plan, train and score; return the model and leave a run folder.

    Args:
        recipe: what is asked.
        output: the run folder; `runs/<data>-<time>` by default. One that holds only a plan is continued.
        report: where to print; nothing is printed by default.
        splits: the images, where they are loaded already.

    Raises:
        FinetuneError: a mistake in what was asked, in one sentence.
    """
    start = time.perf_counter()
    folder = claim_folder(output, recipe.data)
    with reporting(report) as report:
        if folder.path.exists() and folder.holds_only_a_plan():
            report.say(f"{folder.path} holds a plan, which is trained as it is")
            return _train(folder, (_as_planned(folder, folder, folder.read_plan()),), report, start, splits)
        splits, members = decide_all(recipe, report, splits)
        from_main_process(lambda: folder.begin(members[0]))
        if len(members) > 1:
            from_main_process(lambda: folder.write_members(members))
        return _train(folder, members, report, start, splits)


def plan_only(recipe: Recipe, output: Path | None = None, report: Report | None = None, plot: bool = False) -> Plan:
    """Measure, choose and plan, then stop; the run folder holds the plan, to be edited and trained.

    Args:
        recipe: what is asked.
        output: the run folder; `runs/<data>-<time>` by default.
        report: where to print; nothing is printed by default.
        plot: whether to draw the learning rates of its trainings.

    Raises:
        FinetuneError: a mistake in what was asked, in one sentence.
    """
    folder = claim_folder(output, recipe.data)
    if folder.path.exists() and folder.holds_only_a_plan():
        raise RunFolderError(f"{folder.path} holds a plan already; train it with --plan {folder.path / 'plan.json'}")
    with reporting(report) as report:
        _, (decisions, *others) = decide_all(recipe, report, None)
        from_main_process(lambda: folder.begin(decisions))
        if decisions.choice.racing or others:
            report.say("\nA plan is trained as it is and alone; races and averages are for a run without --plan-only.")
        if plot:
            from_main_process(lambda: folder.write_schedule(decisions.plan))
            report.say(f"\nIts learning rates are drawn in {folder.path / SCHEDULE}.")
        report.say(f"\nThe plan is in {folder.path / 'plan.json'}. Edit it if you like, then train it:")
        report.say(f"  finetune train --plan {folder.path / 'plan.json'}")
    return decisions.plan


def run_plan(plan_file: Path, output: Path | None = None, report: Report | None = None) -> Predictor:
    """Train a saved plan as it is, in its own folder if nothing was trained there yet, else in a new one.

    Raises:
        FinetuneError: no such plan, or one that does not fit together.
    """
    start = time.perf_counter()
    plan = Plan.load(plan_file)
    source = RunFolder(plan_file.parent)
    if output is None and source.holds_only_a_plan() and plan_file.name == "plan.json":
        folder = source
    else:
        folder = claim_folder(output, plan.data)
    with reporting(report) as report:
        return _train(folder, (_as_planned(folder, source, plan),), report, start, None)


def resume(path: Path, report: Report | None = None) -> Predictor:
    """Go on with an interrupted run; the model is the one that an uninterrupted run would have left.

    Raises:
        RunFolderError: there is no run, or it is finished.
    """
    start = time.perf_counter()
    folder = RunFolder(path)
    members = folder.read_members()
    folder.refuse_if_finished()
    if folder.holds_tuning():
        raise RunFolderError(f"{path} holds an interrupted tuning; go on with it: finetune tune --resume {path}")
    with reporting(report) as report:
        return _train(folder, members, report, start, None)


def decide_all(
    recipe: Recipe, report: Report, splits: ImageSplits | None
) -> tuple[ImageSplits, tuple[PlannedRun, ...]]:
    """Return the images, loaded where they are not yet, and all that stands before a training: of one, or of each
    member of an ensemble.

    Raises:
        FinetuneError: a mistake in what was asked, in one sentence.
    """
    for name in recipe.models:
        resolve_model(name, has_accelerator=False)  # a wrong name shows before all images are read
    if splits is None:
        splits = load_images(recipe.data, recipe.columns, recipe.limit, recipe.seed)
    report.images(splits)
    measured = measure_networks(recipe, splits, report.progress)
    for evidence in measured:
        report.evidence(evidence)
    members = decide(recipe, measured)
    leading = members[0]
    report.choice(leading.choice)
    if not leading.choice.racing:
        report.plan(leading.plan)
    return splits, members


def _train(
    folder: RunFolder, members: Sequence[PlannedRun], report: Report, start: float, splits: ImageSplits | None
) -> Predictor:
    leading = members[0]
    if splits is None:
        plan = leading.plan
        splits = load_images(plan.data, plan.columns, plan.limit or None, plan.seed)
        report.images(splits)
        if not leading.choice.racing:
            report.plan(plan)
    report.say("")
    with _history_kept(folder):
        begun = begin(members, splits, folder.checkpoints, report.progress)
        if begun.winner is not None:
            # Those who raced stay in the choice, so that an interrupted run finds its winner again.
            leading = begun.members[0]
            from_main_process(lambda: folder.write_decisions(leading))
            report.race(leading.choice)
            report.plan(leading.plan)
        return ship(folder, begun, splits, report, start)


def ship(folder: RunFolder, begun: RacedMembers, splits: ImageSplits, report: Report, start: float) -> Predictor:
    """Finish what was begun, score it on the test split, and leave it in its run folder, which holds what was decided.

    Args:
        folder: of the run.
        begun: what is trained.
        splits: the images.
        report: where to print.
        start: of the clock, when the run began.

    Raises:
        DivergenceError: a training diverged.
    """
    leading = begun.members[0]
    finished = finish(begun, splits, folder.checkpoints, report.progress)
    model = _scored(finished.models, splits, report)
    if finished.members[0] != leading:
        from_main_process(lambda: folder.write_decisions(finished.members[0]))
    curves = from_main_process(lambda: _write_lost(folder, finished.rejected))
    metrics = RunMetrics(
        validation=model.validation,
        validation_source=model.plan.evaluated_on,
        test=model.test,
        seconds=Seconds(
            evidence=sum({own.evidence.model: own.evidence.seconds for own in begun.members}.values()),
            race=round(begun.seconds, 2),
            train=round(finished.seconds, 2),
            total=round(time.perf_counter() - start, 2),
        ),
        work=finished.work,
        options=finished.options,
        note=f"{model.note} {curves}".strip(),
        verdicts=[
            verdict
            for own, member in zip(finished.members, finished.models, strict=True)
            for verdict in diagnose(member.history, member.plan, own.evidence)
        ],
    )
    shipped, images = model, splits
    from_main_process(lambda: folder.write_model(shipped, metrics, images, finished.members))
    report.result(metrics, folder.path, model.members if isinstance(model, Ensemble) else ())
    return model


def _write_lost(folder: RunFolder, lost: Sequence[TrainedMember]) -> str:
    """Leave the decisions and the histories of trainings that do not ship; return how they can be looked at."""
    commands = []
    for own, model in lost:
        place = folder.did_harm(own.name)
        place.write_decisions(own)
        place.write_history(model.history)
        commands.append(f"finetune diagnose {place.path}")
    return f"The learning curve: {'; '.join(commands)}" if commands else ""


@contextmanager
def _history_kept(folder: RunFolder) -> Iterator[None]:
    """Leave the history of a training that diverges, and say so."""
    try:
        yield
    except DivergenceError as error:
        if is_main_process():
            folder.write_history(error.history)
        raise DivergenceError(f"{error}; more: finetune diagnose {folder.path}", error.history) from None


def _scored(members: Sequence[TrainedModel], splits: ImageSplits, report: Report) -> Predictor:
    """Return what ships, scored on the test split: the one model, or the average of several."""
    if splits.test is None:
        return average(members)
    test, labels, names = splits.test, labels_of(splits.test), list(splits.class_names)

    def judged(member: TrainedModel) -> NDArray[np.float64]:
        return divide_rows(lambda rows: member.probabilities(test.select(rows), report.progress), range(len(test)))

    parts = [judged(member) for member in members]
    members = [replace(member, test=score(part, labels, names)) for member, part in zip(members, parts, strict=True)]
    model = average(members)
    if isinstance(model, Ensemble):
        return replace(model, test=score(model.combined(parts), labels, names))
    return model


def _as_planned(folder: RunFolder, source: RunFolder, plan: Plan) -> PlannedRun:
    """Return what stands beside a saved plan in `source`, and write it into `folder`; the plan is trained as it is and
    alone: nobody races, and nothing is averaged.

    A plan alone says too little about how it came to be: where it came without its folder, its images are measured
    again, so that the run folder is complete.
    """
    try:
        beside = source.read_decisions()
        recipe, evidence, choice = beside.recipe, beside.evidence, beside.choice
    except FinetuneError:
        recipe = load_recipe(data=plan.data, model=plan.model, strategy=plan.strategy, seed=plan.seed)
        if plan.weights not in {"pretrained", "random"}:
            recipe = recipe.changed(weights=plan.weights)
        splits = load_images(plan.data, plan.columns, plan.limit or None, plan.seed)
        evidence = from_main_process(lambda: measure_evidence(recipe, splits))
        choice = choose_strategy(evidence, recipe)
    choice = choice.changed(racing=(), members=(), ensemble="", fallback="")
    decisions = PlannedRun(recipe=recipe, evidence=evidence, choice=choice, plan=plan)
    if folder == source:
        from_main_process(lambda: folder.write_choice(decisions.choice))
    else:
        from_main_process(lambda: folder.write_decisions(decisions))
    return decisions


def claim_folder(output: Path | None, data: str) -> RunFolder:
    """Return the folder of a run, a new one or one that holds only a plan.

    Raises:
        RunFolderError: it holds something else.
    """

    def claim() -> RunFolder:
        folder = RunFolder(output or default_folder(data))
        folder.refuse_if_taken()
        return folder

    return from_main_process(claim)


def reporting(report: Report | None) -> Report:
    """Return who prints: nobody by default, nor in any process but the main one."""
    if report is None or not is_main_process():
        return Report(Console(quiet=True))
    return report
