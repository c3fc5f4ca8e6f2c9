"""Carry out a recipe in a run folder: split the images, measure, choose, plan, train and score."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path

from rich.console import Console

from finetune.data import (
    ImageSplits,
    UndecodableError,
    group_training_images,
    groups_of,
    load_images,
    load_plan_images,
    tie_copies,
    without_undecodable,
)
from finetune.data.paths import with_absolute_paths
from finetune.decide.choice import choose_strategy
from finetune.decide.evidence import Evidence
from finetune.decide.plan import Plan
from finetune.decide.planned_run import PlannedRun, describe_members
from finetune.errors import DataError, DivergenceError, FinetuneError, RunFolderError
from finetune.measure import measure_evidence
from finetune.names import quoted
from finetune.network.weights import binding_licence, resolve_model
from finetune.predict.model import Predictor
from finetune.processes import from_main_process, is_main_process, num_processes
from finetune.recipe import Recipe, load_recipe
from finetune.runs.copies import find_copies
from finetune.runs.execution import decide, measure_networks
from finetune.runs.first_decisions import read_members
from finetune.runs.folder import RunFolder
from finetune.runs.lock import held
from finetune.runs.places import (
    SCHEDULE,
    default_folder,
    refuse_if_finished,
    refuse_if_raced,
    refuse_if_taken,
    refuse_tuning,
    refuse_without_a_plan,
)
from finetune.runs.report import Report
from finetune.runs.run_data import check_identity, forget_training, load_known_images, regrouped, write_identity
from finetune.runs.saving import save_run
from finetune.runs.sentences import describe_groups
from finetune.runs.tracking import check_trackers


def run(
    recipe: Recipe,
    output: Path | None = None,
    report: Report | None = None,
    splits: ImageSplits | None = None,
    start: float | None = None,
) -> Predictor:
    """Measure, choose, plan, train and score; write a run folder and return the model.

    Args:
        recipe: the data, and every decision that is fixed.
        output: the run folder; `runs/<data>-<time>` by default. If it holds only a plan, that plan is trained.
        report: the report to print on; nothing is printed by default.
        splits: the images, if they are loaded already.
        start: value of `time.perf_counter()` when the command began, from which a time budget counts; now by default.

    Raises:
        FinetuneError: the recipe or the data has a mistake, which the error describes in one sentence.
    """
    start = time.perf_counter() if start is None else start
    folder = claim_folder(output, recipe.data)
    with held(folder.path, refuse_if_taken), reporting(report) as report:
        report.follow(folder)
        if folder.holds_only_a_plan():
            report.say(f"{folder.path} holds a plan, which is trained as it is")
            return _train(folder, (_adopt(folder.read_plan(), folder, folder),), report, start, splits)
        splits, members = decide_all(recipe, report, splits, start)
        from_main_process(partial(refuse_if_taken, folder.path))
        write_identity(folder, splits)
        folder.begin(members)
        return _train(folder, members, report, start, splits)


def plan_only(
    recipe: Recipe,
    output: Path | None = None,
    report: Report | None = None,
    plot: bool = False,
    start: float | None = None,
) -> Plan:
    """Measure, choose and plan, then stop; write the plan to a run folder, to be edited and trained, and return it.

    Args:
        recipe: the data, and every decision that is fixed.
        output: the run folder; `runs/<data>-<time>` by default.
        report: the report to print on; nothing is printed by default.
        plot: whether to plot the plan's learning rates.
        start: value of `time.perf_counter()` when the command began; now by default.

    Raises:
        FinetuneError: the recipe or the data has a mistake, which the error describes in one sentence.
    """
    start = time.perf_counter() if start is None else start
    folder = claim_folder(output, recipe.data)
    if folder.holds_only_a_plan():
        raise RunFolderError(
            f"{folder.path} holds a plan already; train it with --plan {quoted(folder.path / 'plan.json')}"
        )
    with held(folder.path, refuse_if_taken), reporting(report) as report:
        report.folder = folder.path
        splits, (decisions, *others) = decide_all(recipe, report, None, start)
        from_main_process(partial(refuse_if_taken, folder.path))
        write_identity(folder, splits)
        folder.begin([decisions], plot)
        if others:
            report.say("A saved plan is trained alone. For averages, run without --plan-only.")
        if plot:
            report.say(f"Its learning rates are plotted in {folder.path / SCHEDULE}.")
        report.saved_plan(folder.path / "plan.json")
    return decisions.plan


def run_plan(
    plan_file: Path, output: Path | None = None, report: Report | None = None, accept_changes: bool = False
) -> Predictor:
    """Train a saved plan as it is, without an ensemble or a fallback, and return the model.

    Args:
        plan_file: the plan, as JSON.
        output: the run folder; by default the folder of the plan if it holds only a plan, else a new one.
        report: the report to print on; nothing is printed by default.
        accept_changes: whether the images may have changed since the plan was made; the changes are recorded.

    Raises:
        FinetuneError: there is no plan, its values contradict each other or the data, or the images have changed.
    """
    start = time.perf_counter()
    plan = Plan.load(plan_file)
    source = RunFolder(plan_file.parent)
    if output is None and source.holds_only_a_plan() and plan_file.name == "plan.json":
        folder = source
    else:
        folder = claim_folder(output, plan.data)
    with held(folder.path, refuse_if_taken), reporting(report) as report:
        report.follow(folder)
        adopted = _adopt(plan, source, folder)
        # A plan that was edited to train on other data is not compared with its former data.
        compared = source if adopted.recipe.data == plan.data else folder
        return _train(folder, (adopted,), report, start, None, compared, accept_changes)


def resume(path: Path, report: Report | None = None, accept_changes: bool = False) -> Predictor:
    """Continue an interrupted run, and return the model that it would have ended with without the interruption.

    Args:
        path: the run folder.
        report: the report to print on; nothing is printed by default.
        accept_changes: whether the images may have changed since the run began; the changes are recorded, and the
            training starts from its first step.

    Raises:
        RunFolderError: there is no run, it is finished, its images have changed, or an earlier version interrupted it
            in a race of candidates.
    """
    start = time.perf_counter()
    folder = RunFolder(path)
    refuse_without_a_plan(path)
    refuse_if_finished(path)
    refuse_if_raced(path)
    refuse_tuning(path)
    with held(path, refuse_if_finished), reporting(report) as report:
        report.follow(folder)
        return _train(folder, read_members(folder), report, start, None, None, accept_changes)


def decide_all(
    recipe: Recipe, report: Report, splits: ImageSplits | None, start: float, share: float = 1.0
) -> tuple[ImageSplits, tuple[PlannedRun, ...]]:
    """Load the images unless they are given, then measure, choose and plan; print each result.

    Args:
        recipe: the data, and every decision that is fixed.
        report: the report to print on.
        splits: the images, or None if they are not loaded yet.
        start: value of `time.perf_counter()` when the command began.
        share: fraction of the time that is left for trainings that the planned runs may take.

    Returns:
        The images, and the planned runs: one, or the members of an ensemble with the leading one first.

    Raises:
        FinetuneError: the recipe or the data has a mistake, which the error describes in one sentence.
    """
    check_trackers(recipe.track or ())
    for name in recipe.models:
        resolve_model(name, has_accelerator=False)  # report a wrong name before all images are read
        licence = binding_licence(name) if recipe.weights is None else ""
        if licence:
            report.say(f"The weights of {name} have the licence {licence}, which may restrict their use.")
    if splits is None:
        given = (recipe.data, recipe.columns, recipe.limit, recipe.seed)
        regroup = partial(
            load_images, *given, reading=recipe.image, allow_rare=recipe.allow_rare, order=recipe.labels.order
        )
        splits = regroup(recipe.groups)
    else:
        regroup = partial(group_training_images, splits)
    report.images(splits)
    try:
        splits, measured = _measure(recipe, splits, regroup, report, start)
    except UndecodableError as error:
        splits = _checked_by_decoding(splits, error, report)
        regroup = partial(regrouped, regroup, without_undecodable)
        splits, measured = _measure(recipe, splits, regroup, report, start)
    if copies := find_copies(recipe, splits, measured[0].preprocessing.shorter_side, report):
        tie = partial(tie_copies, copies=copies, seed=recipe.seed, limit=recipe.limit)
        splits = tie(splits)
        if splits.test_was_made:
            report.images(splits)
        splits, measured = _measure(recipe, splits, partial(regrouped, regroup, tie), report, start)
    members = decide(with_absolute_paths(recipe), measured, share)
    report.choice(members[0].choice, members[0].plan.model)
    report.plan(members[0].plan, splits)
    if share == 1.0:  # a search has many trainings
        report.say(describe_members(members), "Time")
    return splits, members


def _measure(
    recipe: Recipe, splits: ImageSplits, regroup: Callable[[str], ImageSplits], report: Report, start: float
) -> tuple[ImageSplits, list[Evidence]]:
    """Return the images, with their groups if they have any, and the evidence of each network; print each result."""
    splits, networks = group_images(recipe, splits, regroup, report, start)
    measured = []
    for evidence in networks:
        report.evidence(evidence)
        measured.append(evidence)
    return splits, measured


def _checked_by_decoding(splits: ImageSplits, error: UndecodableError, report: Report) -> ImageSplits:
    """Return splits without the images that cannot be decoded, after one of them could not; print which.

    Raises:
        UndecodableError: all images were decoded before.
        DataError: of a class, too few training images are left.
    """
    if splits.all_decoded:
        raise error
    sentence = str(error).rpartition("; ")[0]
    report.say(f"{sentence}: all images are decoded now, and those that cannot be are left out")
    checked = without_undecodable(splits)
    report.images(checked, anew=True)
    return checked


def group_images(
    recipe: Recipe,
    splits: ImageSplits,
    regroup: Callable[[str], ImageSplits],
    report: Report,
    start: float | None = None,
) -> tuple[ImageSplits, Iterable[Evidence]]:
    """Return the images with the groups that were found, if any, and the evidence of each network on them.

    Groups are looked for with the first network. If the test images were set apart without regard to them, the images
    are divided anew and measured again.

    Args:
        recipe: the data, and every decision that is fixed.
        splits: the images.
        regroup: function that returns the images with the groups of a rule.
        report: the report to print on.
        start: value of `time.perf_counter()` when the command began; now by default.
    """
    networks = measure_networks(recipe, splits, report.progress, start)
    first = next(networks)
    if first.groups is None or not first.groups.used or groups_of(splits.train) is not None:
        return splits, chain([first], networks)
    try:
        grouped = regroup(first.groups.rule)
    except DataError:  # images that were not measured do not fit the rule
        return splits, measure_networks(recipe.changed(groups="none"), splits, report.progress, start)
    if len(recipe.models) == 1 and not grouped.test_was_made:
        if grouped.num_shared:
            report.say(describe_groups(grouped))
        return grouped, [first]
    report.images(grouped)
    return grouped, measure_networks(recipe, grouped, report.progress, start)


def claim_folder(output: Path | None, data: str) -> RunFolder:
    """Return the folder of a run: a new one, or one that holds only a plan.

    Raises:
        RunFolderError: the folder holds a run or other files.
    """

    def claim() -> RunFolder:
        folder = RunFolder(output or default_folder(data))
        refuse_if_taken(folder.path)
        return folder

    return from_main_process(claim)


def reporting(report: Report | None) -> Report:
    """Return the report to print on; it prints nothing by default, or if this is not the main process."""
    if report is None or not is_main_process():
        return Report(Console(quiet=True))
    return report


def _train(
    folder: RunFolder,
    members: Sequence[PlannedRun],
    report: Report,
    start: float,
    splits: ImageSplits | None,
    source: RunFolder | None = None,
    accept: bool = False,
) -> Predictor:
    """Load the images unless they are given, then train the members and save the model.

    Args:
        folder: the run folder.
        members: planned runs to train, the leading one first.
        report: the report to print on.
        start: value of `time.perf_counter()` when the command began.
        splits: the images; None: they are loaded, and compared with those that the plan was made for.
        source: the folder that the plan was read from; None: the run folder.
        accept: whether the images may be others than those of the plan.
    """
    if splits is None:
        plan = members[0].plan
        splits = load_known_images(folder, plan, source)
        report.images(splits)
        report.plan(plan, splits)
        if changes := check_identity(folder, splits, source, accept):
            report.say(f"The data has changed, which is accepted and recorded in data.json: {changes}")
    with _history_saved(folder):
        try:
            return save_run(folder, members, splits, report, start)
        except UndecodableError as error:
            if num_processes() > 1:  # the others are at work on the images that they have
                raise
            splits = _checked_by_decoding(splits, error, report)
    forget_training(folder)
    write_identity(folder, splits)
    with _history_saved(folder):
        return save_run(folder, members, splits, report, start)


@contextmanager
def _history_saved(folder: RunFolder) -> Iterator[None]:
    """Save the history of a training that diverges, and name the command that diagnoses it."""
    try:
        yield
    except DivergenceError as error:
        folder.write_history(error.history)
        raise DivergenceError(f"{error}; more: finetune diagnose {quoted(folder.path)}", error.history) from None


def _adopt(plan: Plan, source: RunFolder, folder: RunFolder) -> PlannedRun:
    """Return a saved plan with its recipe, evidence and choice, without an average, and write them.

    A plan that is not in its run folder has no recipe, evidence or choice. They are made from the plan by measuring its
    images again, so that the new run folder is complete.

    Args:
        plan: the saved plan.
        source: the folder that the plan was read from.
        folder: the run folder.
    """
    try:
        saved = source.read_decisions()
        recipe, evidence, choice = saved.recipe, saved.evidence, saved.choice
    except FinetuneError:
        recipe = load_recipe(
            **plan.model_dump(include={"data", "columns", "groups", "allow_rare", "model", "strategy", "seed"}),
            image=plan.preprocessing.reading.model_dump(),
        )
        if plan.weights not in {"pretrained", "random"}:
            recipe = recipe.changed(weights=plan.weights)
        splits = load_plan_images(plan)
        evidence = measure_evidence(recipe, splits)
        choice = choose_strategy(evidence, recipe)
    choice = choice.changed(members=(), ensemble="", fallback="")
    decisions = PlannedRun(recipe=recipe, evidence=evidence, choice=choice, plan=plan)
    if folder == source:
        folder.write_choice(choice)
    else:
        folder.write_decisions(decisions)
    return decisions
