"""The whole chain: recipe, splits, evidence, choice, race, plan, trained model, metrics, run folder."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from finetune.audit import measure_evidence
from finetune.errors import FinetuneError, RunFolderError
from finetune.execution import Begun, begin, decide, finish
from finetune.images import ImageSplits, labels_of, load_images
from finetune.metrics import score
from finetune.network.weights import resolve_model
from finetune.plan import Plan, make_plan
from finetune.prediction import Ensemble, Predictor, TrainedModel, average
from finetune.processes import from_main_process, is_main_process
from finetune.recipe import Recipe, load_recipe
from finetune.report import Report
from finetune.run_folder import Decisions, RunFolder, RunMetrics, Seconds, default_folder
from finetune.strategy import choose_strategy


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
            return _train(folder, _as_planned(folder, folder, folder.read_plan()), report, start, splits)
        splits, decisions = decide_all(recipe, report, splits)
        _settle(folder, decisions)
        return _train(folder, decisions, report, start, splits)


def plan_only(recipe: Recipe, output: Path | None = None, report: Report | None = None) -> Plan:
    """Measure, choose and plan, then stop; the run folder holds the plan, to be edited and trained.

    Raises:
        FinetuneError: a mistake in what was asked, in one sentence.
    """
    folder = claim_folder(output, recipe.data)
    if folder.path.exists() and folder.holds_only_a_plan():
        raise RunFolderError(f"{folder.path} holds a plan already; train it with --plan {folder.path / 'plan.json'}")
    with reporting(report) as report:
        _, decisions = decide_all(recipe, report, None)
        _settle(folder, decisions)
        if decisions.choice.racing or decisions.choice.members:
            report.say("\nA plan is trained as it is and alone; races and averages are for a run without --plan-only.")
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
        return _train(folder, _as_planned(folder, source, plan), report, start, None)


def resume(path: Path, report: Report | None = None) -> Predictor:
    """Go on with an interrupted run; the model is the one that an uninterrupted run would have left.

    Raises:
        RunFolderError: there is no run, or it is finished.
    """
    start = time.perf_counter()
    folder = RunFolder(path)
    decisions = folder.read_decisions()
    folder.refuse_if_finished()
    if folder.holds_tuning():
        raise RunFolderError(f"{path} holds an interrupted tuning; go on with it: finetune tune --resume {path}")
    with reporting(report) as report:
        return _train(folder, decisions, report, start, None)


def decide_all(recipe: Recipe, report: Report, splits: ImageSplits | None) -> tuple[ImageSplits, Decisions]:
    """Return the images, loaded where they are not yet, and all that stands before a training.

    Raises:
        FinetuneError: a mistake in what was asked, in one sentence.
    """
    for name in recipe.models:
        resolve_model(name, has_accelerator=False)  # a wrong name shows before all images are read
    if splits is None:
        splits = load_images(recipe.data, recipe.columns, recipe.limit, recipe.seed)
    report.images(splits)
    evidence, choice = decide(recipe, splits, report.progress, report.evidence)
    report.choice(choice)
    plan = make_plan(recipe, evidence, choice)
    if not choice.racing:
        report.plan(plan)
    resolved = recipe.changed(
        model=evidence.model, image_size=evidence.preprocessing.image_size, metric=evidence.metric
    )
    return splits, Decisions(recipe=resolved, evidence=evidence, choice=choice, plan=plan)


def _train(
    folder: RunFolder, decisions: Decisions, report: Report, start: float, splits: ImageSplits | None
) -> Predictor:
    if splits is None:
        plan = decisions.plan
        splits = load_images(plan.data, plan.columns, plan.limit or None, plan.seed)
        report.images(splits)
        if not decisions.choice.racing:
            report.plan(plan)
    report.say("")
    recipe, evidence, choice = decisions.recipe, decisions.evidence, decisions.choice
    begun = begin(recipe, evidence, choice, decisions.plan, splits, folder.checkpoints, report.progress)
    if begun.choice.racing:
        # Those who raced stay in the choice, so that an interrupted run finds its winner again.
        _settle(folder, replace(decisions, choice=begun.choice, plan=begun.trainings[0].plan))
        report.race(begun.choice)
        report.plan(begun.trainings[0].plan)
    return ship(folder, decisions, begun, splits, report, start)


def ship(
    folder: RunFolder, decisions: Decisions, begun: Begun, splits: ImageSplits, report: Report, start: float
) -> Predictor:
    """Finish what was begun, score it on the test split, and leave it in its run folder.

    Args:
        folder: of the run.
        decisions: that led to it.
        begun: its trainings.
        splits: the images.
        report: where to print.
        start: of the clock, when the run began.

    Raises:
        NotFiniteError: a training diverged.
    """
    recipe, evidence = decisions.recipe, decisions.evidence
    finished = finish(begun, recipe, evidence, splits, folder.checkpoints, report.progress)
    model = _scored(finished.models, splits, report)
    if finished.choice != begun.choice:
        _settle(folder, replace(decisions, choice=finished.choice, plan=model.plan))
    metrics = RunMetrics(
        validation=model.validation,
        validation_source=_validation_source(model.plan),
        test=model.test,
        seconds=Seconds(
            evidence=evidence.seconds,
            race=round(begun.seconds, 2),
            train=round(finished.seconds, 2),
            total=round(time.perf_counter() - start, 2),
        ),
        work=finished.work,
        note=model.note,
    )
    shipped, images = model, splits
    from_main_process(lambda: folder.write_model(shipped, metrics, images))
    report.result(metrics, folder.path, model.members if isinstance(model, Ensemble) else ())
    return model


def _settle(folder: RunFolder, decisions: Decisions) -> None:
    from_main_process(lambda: folder.write_decisions(decisions))


def _scored(members: Sequence[TrainedModel], splits: ImageSplits, report: Report) -> Predictor:
    """Return what ships, scored on the test split: the one model, or the average of several."""
    if splits.test is None:
        return average(members)
    labels, names = labels_of(splits.test), list(splits.class_names)
    parts = [member.probabilities(splits.test, report.progress) for member in members]
    members = [replace(member, test=score(part, labels, names)) for member, part in zip(members, parts, strict=True)]
    model = average(members)
    if isinstance(model, Ensemble):
        return replace(model, test=score(model.combined(parts), labels, names))
    return model


def _validation_source(plan: Plan) -> str:
    source = {
        "given": "the validation split",
        "held_out": "held-out training images",
        "cross_validation": f"{plan.folds}-fold cross-validation",
    }[plan.validation]
    return f"{source}, before the refit" if plan.refit or plan.validation == "cross_validation" else source


def _as_planned(folder: RunFolder, source: RunFolder, plan: Plan) -> Decisions:
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
    decisions = Decisions(
        recipe=recipe, evidence=evidence, choice=choice.changed(racing=(), members=(), fallback=""), plan=plan
    )
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
