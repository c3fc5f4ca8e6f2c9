"""The whole chain: recipe, splits, evidence, choice, plan, trained model, metrics, run folder."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from rich.console import Console

from finetune.audit import measure_evidence
from finetune.errors import FinetuneError, RunFolderError
from finetune.evidence import Evidence
from finetune.images import ImageSplits, labels_of, load_images
from finetune.metrics import score
from finetune.network.weights import resolve_model
from finetune.plan import Plan, make_plan
from finetune.prediction import TrainedModel
from finetune.recipe import Recipe, load_recipe
from finetune.report import Report
from finetune.run_folder import RunFolder, RunMetrics, Seconds, default_folder
from finetune.strategy import Choice, choose_strategy
from finetune.training import Checkpoints, train

Made = TypeVar("Made")


def run(
    recipe: Recipe, output: Path | None = None, report: Report | None = None, splits: ImageSplits | None = None
) -> TrainedModel:
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
    folder = _folder(output, recipe.data)
    with _report(report) as report:
        if folder.path.exists() and folder.holds_only_a_plan():
            report.say(f"{folder.path} holds a plan, which is trained as it is")
            return _train(folder, folder.read_plan(), report, start, splits)
        splits, plan = _decide(recipe, folder, report, splits)
        return _train(folder, plan, report, start, splits)


def plan_only(recipe: Recipe, output: Path | None = None, report: Report | None = None) -> Plan:
    """Measure, choose and plan, then stop; the run folder holds the plan, to be edited and trained.

    Raises:
        FinetuneError: a mistake in what was asked, in one sentence.
    """
    folder = _folder(output, recipe.data)
    if folder.path.exists() and folder.holds_only_a_plan():
        raise RunFolderError(f"{folder.path} holds a plan already; train it with --plan {folder.path / 'plan.json'}")
    with _report(report) as report:
        _, plan = _decide(recipe, folder, report, None)
        report.say(f"\nThe plan is in {folder.path / 'plan.json'}. Edit it if you like, then train it:")
        report.say(f"  finetune train --plan {folder.path / 'plan.json'}")
    return plan


def run_plan(plan_file: Path, output: Path | None = None, report: Report | None = None) -> TrainedModel:
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
        folder = _folder(output, plan.data)
    with _report(report) as report:
        if folder != source:
            recipe, evidence, choice = _decisions_beside(source, plan)
            _main_process(lambda: folder.write_decisions(recipe, evidence, choice, plan))
        return _train(folder, plan, report, start, None)


def resume(path: Path, report: Report | None = None) -> TrainedModel:
    """Go on with an interrupted run; the model is the one that an uninterrupted run would have left.

    Raises:
        RunFolderError: there is no run, or it is finished.
    """
    start = time.perf_counter()
    folder = RunFolder(path)
    plan = folder.read_plan()
    if folder.is_finished():
        raise RunFolderError(f"the run in {path} is finished; there is nothing to resume")
    with _report(report) as report:
        return _train(folder, plan, report, start, None)


def _decide(recipe: Recipe, folder: RunFolder, report: Report, splits: ImageSplits | None) -> tuple[ImageSplits, Plan]:
    resolve_model(recipe.model, has_accelerator=False)  # a wrong name shows before all images are read
    if splits is None:
        splits = load_images(recipe.data, recipe.columns, recipe.limit, recipe.seed)
    report.images(splits)
    loaded = splits
    evidence = _main_process(lambda: measure_evidence(recipe, loaded, report.progress))
    report.evidence(evidence)
    choice = choose_strategy(evidence, recipe)
    report.choice(choice)
    plan = make_plan(recipe, evidence, choice)
    report.plan(plan)
    resolved = recipe.changed(
        model=evidence.model, image_size=evidence.preprocessing.image_size, metric=evidence.metric
    )
    _main_process(lambda: folder.write_decisions(resolved, evidence, choice, plan))
    return splits, plan


def _train(folder: RunFolder, plan: Plan, report: Report, start: float, splits: ImageSplits | None) -> TrainedModel:
    if splits is None:
        columns = plan.columns
        splits = load_images(plan.data, columns, plan.limit or None, plan.seed)
        report.images(splits)
        report.plan(plan)
    report.say("")
    is_main = _state().is_main_process
    checkpoints = Checkpoints(folder.checkpoints, writes=is_main)
    checkpoints.begin()
    model = train(plan, splits, report.progress, checkpoints)
    if splits.test is not None:
        probabilities = model.probabilities(splits.test, report.progress)
        model = replace(model, test=score(probabilities, labels_of(splits.test), list(splits.class_names)))
    evidence_seconds = folder.read_evidence().seconds
    metrics = RunMetrics(
        validation=model.validation,
        validation_source=_validation_source(plan),
        test=model.test,
        seconds=Seconds(
            evidence=evidence_seconds,
            race=0.0,
            train=round(model.seconds, 2),
            total=round(time.perf_counter() - start, 2),
        ),
        work=model.work,
        note=model.note,
    )
    finished = model
    _main_process(lambda: folder.write_model(finished, metrics, splits))
    report.result(metrics, folder.path)
    return model


def _validation_source(plan: Plan) -> str:
    source = {
        "given": "the validation split",
        "held_out": "held-out training images",
        "cross_validation": f"{plan.folds}-fold cross-validation",
    }[plan.validation]
    return f"{source}, before the refit" if plan.refit or plan.validation == "cross_validation" else source


def _decisions_beside(source: RunFolder, plan: Plan) -> tuple[Recipe, Evidence, Choice]:
    """Return what stands beside a saved plan; a plan alone says too little about how it came to be."""
    try:
        return source.read_recipe(), source.read_evidence(), source.read_choice()
    except FinetuneError:
        # A plan that came without its folder: measure again, so that the run folder is complete.
        recipe = load_recipe(data=plan.data, model=plan.model, strategy=plan.strategy, seed=plan.seed)
        if plan.weights not in {"pretrained", "random"}:
            recipe = recipe.changed(weights=plan.weights)
        splits = load_images(plan.data, plan.columns, plan.limit or None, plan.seed)
        evidence = _main_process(lambda: measure_evidence(recipe, splits))
        return recipe, evidence, choose_strategy(evidence, recipe)


def _folder(output: Path | None, data: str) -> RunFolder:
    def claim() -> RunFolder:
        folder = RunFolder(output or default_folder(data))
        folder.refuse_if_taken()
        return folder

    return _main_process(claim)


def _report(report: Report | None) -> Report:
    if report is None or not _state().is_main_process:
        return Report(Console(quiet=True))
    return report


def _state() -> PartialState:
    return PartialState(cpu=not torch.cuda.is_available())


def _main_process(make: Callable[[], Made]) -> Made:
    """Return what the main process makes, in every process; its mistakes are raised in every process, too."""
    state = _state()
    if state.num_processes == 1:
        return make()
    outcome: list[object] = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = make()
        except FinetuneError as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if isinstance(outcome[1], FinetuneError):
        raise outcome[1]
    return outcome[0]  # type: ignore[return-value]
