"""Carry out the six steps of a search, and resume an interrupted one."""

import json
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import optuna

from finetune.data import ImageSplits
from finetune.decide.plan import Plan
from finetune.decide.planned_run import PlannedRun, budgeted
from finetune.errors import DivergenceError, RunFolderError, TuningError
from finetune.files import write_text
from finetune.names import quoted
from finetune.predict.links import log_loss
from finetune.predict.metrics import accuracy_of
from finetune.predict.model import Predictor, fit_temperature
from finetune.processes import num_processes
from finetune.progress import named_progress
from finetune.recipe import Recipe
from finetune.runs.execution import Searched
from finetune.runs.first_decisions import first_decisions, keep_first_decisions
from finetune.runs.folder import RunFolder
from finetune.runs.lock import held
from finetune.runs.pipeline import claim_folder, decide_all, reporting
from finetune.runs.places import refuse_if_finished, refuse_if_taken, refuse_without_a_plan, refuse_without_tuning
from finetune.runs.report import Report
from finetune.runs.run_data import check_identity, forget_training, load_known_images, write_identity
from finetune.runs.saving import save_run
from finetune.training import Checkpoints, TrainingDivergedError, TrainingState, begin, evaluate_at, history_so_far
from finetune.tuning.checks import Checks
from finetune.tuning.findings import check_coarse, check_curves, check_fine
from finetune.tuning.report import print_finding, print_trial, print_trials
from finetune.tuning.space import Parameters, plan_of_trial, refine, with_parameters
from finetune.tuning.state import Finding, Tuning, begin_tuning, best_of
from finetune.tuning.trials import RUNGS, Proposer, TrialSet, open_storage

LONGEST_TRIAL = 0.25
"""Share of the time that is left of a budget after the measurement that a single training may take."""

COARSE_STEPS = RUNGS[-1]
"""Share of the steps that a coarse trial takes. After the first rung, a third of the steps, high rates still look worse
than they are (experiments/compare_searches.py)."""

STUDY = "study.db"
"""Name of the database with the trials of a search that is not shared."""

COARSE_TIME = 0.4
"""Share of that time that the coarse trials may take."""


def tune(
    recipe: Recipe,
    output: Path | None = None,
    report: Report | None = None,
    splits: ImageSplits | None = None,
    start: float | None = None,
) -> Predictor:
    """Search for hyper-parameters in six steps; save the trained winner in a run folder and return it.

    The steps follow Stanford's lecture (CS231n): the initial loss, overfitting a small sample, learning rates with
    which the loss falls, a coarse search with short trainings, a fine search near its best point, the curves. A step
    that fails ends the search with its reason. Trials are compared by their log-loss on held-out images; the test
    split is read once, for the winner.

    Args:
        recipe: recipe of the trainings; its section `tuning` says how to search, and its time budget is for the whole
            search.
        output: the run folder; `runs/<data>-<time>` by default. Workers that share a storage give their folders the
            same name.
        report: the report to print on; nothing is printed by default.
        splits: the images, if they are loaded already.
        start: value of `time.perf_counter()` when the command began, from which a time budget counts; now by default.

    Raises:
        TuningError: a step failed, so that a search would be wasted, or the storage cannot be used.
        FinetuneError: the recipe or the data has another mistake, which the error describes in one sentence.
    """
    start = time.perf_counter() if start is None else start
    _refuse_several_processes()
    folder = claim_folder(output, recipe.data)
    if folder.path.exists() and folder.holds_only_a_plan():
        raise RunFolderError(
            f"{folder.path} holds a plan, which a search does not use; give a new folder with --output"
        )
    with held(folder.path, refuse_if_taken), reporting(report) as report:
        report.follow(folder)
        alone = recipe.changed(ensemble=None)
        splits, (decisions, *_) = decide_all(alone, report, splits, start, LONGEST_TRIAL)
        # A single candidate is tuned: no average and no ensemble.
        choice = decisions.choice.changed(members=(), fallback="")
        asked = decisions.recipe
        decisions = replace(decisions, choice=choice)
        path = folder.path.resolve()  # the worker keeps this name even if its folder is moved before it resumes
        tuning = begin_tuning(asked, choice, decisions.plan, path.name, f"{socket.gethostname()}:{path}")
        folder.path.mkdir(parents=True, exist_ok=True)
        write_identity(folder, splits)
        tuning.save(folder.path / "tuning.json")  # before the plan, which marks a run that can be continued
        folder.write_decisions(decisions)
        return _Procedure(folder, decisions, tuning, splits, report, start).carry_out()


def resume_tuning(path: Path, report: Report | None = None, accept_changes: bool = False) -> Predictor:
    """Resume an interrupted search; with one worker, the result is that of an uninterrupted search.

    Args:
        path: the run folder of the search.
        report: the report to print on; nothing is printed by default.
        accept_changes: whether the images may have changed since the search began; the changes are recorded, and the
            search starts from its first step.

    Raises:
        RunFolderError: there is no interrupted search, or its images have changed.
        TuningError: a step failed, so a search would be wasted.
    """
    start = time.perf_counter()
    _refuse_several_processes()
    folder = RunFolder(path)
    refuse_without_a_plan(path)
    refuse_if_finished(path)
    refuse_without_tuning(path)
    with held(path, refuse_if_finished), reporting(report) as report:
        report.follow(folder)
        decisions = first_decisions(folder).read_decisions()
        splits = load_known_images(folder, decisions.plan)
        report.images(splits)
        forget = partial(_forget_search, decisions=decisions)
        if changes := check_identity(folder, splits, accept=accept_changes, forget=forget):
            report.say(f"The data has changed, which is accepted and recorded in data.json: {changes}")
        tuning = Tuning.load(path / "tuning.json")
        return _Procedure(folder, decisions, tuning, splits, report, start).carry_out()


def _forget_search(folder: RunFolder, decisions: PlannedRun) -> None:
    """Remove the findings and trials of a search, because its images are others from now on.

    Raises:
        RunFolderError: other workers share its trials.
    """
    if decisions.recipe.tuning.storage is not None:
        raise RunFolderError(
            f"the search in {folder.path} shares its trials with other workers, so changes of its data cannot be "
            f"accepted; restore the data, or begin another search: finetune tune --recipe "
            f"{quoted(folder.path / 'recipe.yaml')}"
        )
    folder.write_decisions(decisions)  # those that the search began with
    Tuning.load(folder.path / "tuning.json").begun_anew().save(folder.path / "tuning.json")
    for left in folder.path.glob(f"{STUDY}*"):
        left.unlink()
    shutil.rmtree(folder.path / "trials", ignore_errors=True)
    forget_training(folder)


class _Procedure:
    """The six steps of a search, as one worker takes them."""

    def __init__(
        self,
        folder: RunFolder,
        decisions: PlannedRun,
        tuning: Tuning,
        splits: ImageSplits,
        report: Report,
        start: float,
    ) -> None:
        self._folder = folder
        self._decisions = decisions
        self._tuning = tuning
        self._splits = splits
        self._report = report
        self._start = start
        url = decisions.recipe.tuning.storage
        self._is_shared = url is not None
        self._storage = open_storage(url or f"sqlite:///{(folder.path / STUDY).resolve()}")

    def carry_out(self) -> Predictor:
        """Take the steps that remain; return the winner."""
        for finding in self._tuning.findings:
            print_finding(self._report, finding)
        self._check()
        coarse = self._coarse()
        self._search(coarse, COARSE_TIME)
        _refuse_divergence(coarse)
        fine = self._fine(coarse)
        self._search(fine, 1.0)
        _refuse_divergence(fine)
        return self._deliver(coarse, fine)

    def _check(self) -> None:
        folder = self._folder.path / "trials" / "checks"
        checks = Checks(
            evidence=self._decisions.evidence,
            splits=self._splits,
            plan_with_rate=lambda rate: self._plan({} if rate is None else {"learning_rate": rate}),
            folder=folder,
            progress=self._report.progress,
        )
        steps: tuple[Callable[[], Finding], ...] = (checks.start, checks.overfit, partial(self._narrow, checks))
        for check in steps[len(self._tuning.findings) :]:
            began = time.perf_counter()
            try:
                finding = check()
            except DivergenceError as error:
                raise TuningError(f"the network cannot overfit a small sample: {error}") from None
            if not finding.holds:
                raise TuningError(f"step {finding.step} of 6: {finding.says}")
            self._keep(began, findings=(*self._tuning.findings, finding))
            print_finding(self._report, finding)
        shutil.rmtree(folder, ignore_errors=True)

    def _narrow(self, checks: Checks) -> Finding:
        """Take step 3: narrow the range of learning rates to those with which the loss falls."""
        own = {dimension.name: dimension for dimension in self._tuning.asked}
        if "learning_rate" not in own:
            return Finding(step=3, holds=True, says="the learning rate is fixed, so there is no range to check")
        finding, left = checks.rates(own["learning_rate"])
        space = tuple(left if dimension.name == left.name else dimension for dimension in self._tuning.asked)
        self._keep(space=space)
        return finding

    def _coarse(self) -> TrialSet:
        tuning = self._tuning
        proposer = Proposer(
            search=tuning.search, space=tuning.space, count=tuning.num_coarse, seed=self._decisions.recipe.seed
        )
        return self._open("coarse", proposer, (0, 1))

    def _fine(self, coarse: TrialSet) -> TrialSet:
        tuning, best = self._tuning, best_of(coarse.trials())
        proposer = Proposer(
            search=tuning.search,
            space=refine(tuning.space, best.parameters),
            count=tuning.num_fine,
            seed=self._decisions.recipe.seed,
            first=best.parameters,
            shorter=coarse.trials(),
        )
        if len(tuning.findings) < 4:
            finding = check_coarse(coarse.trials(), proposer.space)
            self._keep(findings=(*tuning.findings, finding))
            print_finding(self._report, finding)
        return self._open("fine", proposer, (best.number, tuning.num_coarse))

    def _open(self, name: Literal["coarse", "fine"], proposer: Proposer, numbers: tuple[int, int]) -> TrialSet:
        """Return a trial set, which the storage may hold already."""
        plan, tuning = self._decisions.plan, self._tuning
        names = " ".join(dimension.name for dimension in tuning.space)
        about = (
            f"{tuning.search} over {names}, {tuning.num_trials} trials of {plan.steps} steps of {plan.model}, "
            f"{plan.strategy}, seed {plan.seed}"
        )
        return TrialSet(name, self._storage, tuning.name, about, proposer, numbers, tuning.worker, self._is_shared)

    def _search(self, trial_set: TrialSet, share: float) -> None:
        """Train the trials of a set until there are enough, or until a share of the time budget is spent."""
        while (trial := trial_set.interrupted() or self._begin(trial_set, share)) is not None:
            began = time.perf_counter()
            self._train(trial_set, trial, began)
            ended = trial_set.trials()
            print_trial(self._report, next(each for each in ended if each.number == trial_set.number(trial)))
            others = tuple(each for each in self._tuning.trials if each.number not in {new.number for new in ended})
            trials = sorted((*others, *ended), key=lambda each: each.number)
            self._keep(began, trials=tuple(trials))
            finished = [each for each in trial_set.trials(own=True) if each.state == "finished"]
            self._drop_checkpoints({best_of(finished).number} if finished else set())

    def _begin(self, trial_set: TrialSet, share: float) -> optuna.Trial | None:
        """Return a new trial, or None if there are enough trials or no time for another; one is always trained."""
        recipe = budgeted(self._decisions.recipe, self._decisions.evidence)
        budget, seconds = recipe.time_budget, self._decisions.choice.chosen.expected_seconds
        expected = seconds * (COARSE_STEPS if trial_set.name == "coarse" else 1.0)
        is_late = budget is not None and self._tuning.seconds + expected > share * budget
        return None if is_late and trial_set.trials() else trial_set.begin()

    def _train(self, trial_set: TrialSet, trial: optuna.Trial, began: float) -> None:
        """Train a trial by the plan in its folder, until its end or until it is stopped early; record its result."""
        number = trial_set.number(trial)
        folder = self._folder.trial(number)
        folder.mkdir(parents=True, exist_ok=True)
        self._plan(trial_set.parameters(trial)).save(folder / "plan.json")
        state = self._training(number, Plan.load(folder / "plan.json"))
        loss, accuracy, has_diverged = None, 0.0, False
        try:
            # The best coarse trial continues as a fine one. It was evaluated at both rungs before, so the results are
            # read from its checkpoints.
            for rung, share in enumerate(RUNGS if trial_set.name == "coarse" else (*RUNGS, 1.0), start=1):
                state, loss, accuracy = _evaluate_at(state, share)
                if trial_set.name == "fine" and share < 1.0 and trial_set.should_stop(trial, rung, loss):
                    loss = None
                    break
        except TrainingDivergedError as error:
            state, loss, has_diverged = error.state, None, True
        rows = [json.dumps(row) + "\n" for row in history_so_far(state)]
        write_text(folder / "history.jsonl", "".join(rows))
        seconds = time.perf_counter() - began
        trial_set.end(trial, loss, accuracy, seconds, state.work, has_diverged)

    def _deliver(self, coarse: TrialSet, fine: TrialSet) -> Predictor:
        """Finish the best of this worker's own trials from its checkpoints, and save its model."""
        overall = best_of(fine.trials())
        own = [trial for trial in fine.trials(own=True) if trial.state == "finished"]
        where = f"trial {overall.number} with a held-out loss of {overall.losses[-1]:.3f} is the best"
        elsewhere = f"{where}; its model is in {fine.worker_of(overall.number)}"
        if not own:
            raise TuningError(f"no trial was left for this worker to finish, so it has no model: {elsewhere}")
        winner = best_of(own)
        if winner != overall:
            self._report.say(elsewhere)
        findings = (*self._tuning.findings[:4], check_fine(fine.trials()), check_curves(winner, self._tuning.asked))
        for finding in findings[4:]:
            print_finding(self._report, finding)
        self._keep(findings=findings, winner=winner.number)
        print_trials(self._report, self._tuning)
        recipe, choice = with_parameters(self._decisions.recipe, self._decisions.choice, winner.parameters)
        state = self._training(winner.number, self._plan(winner.parameters))
        for share in RUNGS:
            state, _ = evaluate_at(state, share)  # read from its checkpoints, so that its work is counted
        decisions = replace(self._decisions, recipe=recipe, choice=choice, plan=state.plan)
        keep_first_decisions(self._folder)
        self._folder.write_decisions(decisions)
        continued = {trial.number for trial in fine.trials(own=True)}  # their fine work includes their coarse work
        work = coarse.work(continued) + fine.work({winner.number})
        searched = Searched(winner=state, work=work, seconds=self._tuning.seconds)
        model = save_run(self._folder, (decisions,), self._splits, self._report, self._start, searched)
        self._drop_checkpoints(set())
        return model

    def _plan(self, parameters: Parameters) -> Plan:
        decisions = self._decisions
        recipe = budgeted(decisions.recipe, decisions.evidence, LONGEST_TRIAL)
        return plan_of_trial(recipe, decisions.evidence, decisions.choice, parameters)

    def _training(self, number: int, plan: Plan) -> TrainingState:
        checkpoints = Checkpoints(self._folder.trial(number) / "checkpoints")
        checkpoints.begin()
        progress = named_progress(self._report.progress, f"trial {number}")
        return begin(plan, self._splits, progress, checkpoints)

    def _drop_checkpoints(self, but: set[int]) -> None:
        for folder in (self._folder.path / "trials").iterdir():
            if folder.name not in {str(number) for number in but}:
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)

    def _keep(self, began: float | None = None, **changes: object) -> None:
        """Save changes of the search's state, and add the seconds since `began`."""
        if began is not None:
            changes["seconds"] = round(self._tuning.seconds + time.perf_counter() - began, 2)
        self._tuning = self._tuning.changed(**changes)
        self._tuning.save(self._folder.path / "tuning.json")


def _evaluate_at(state: TrainingState, share: float) -> tuple[TrainingState, float, float]:
    """Train up to a share of the steps; return the state, and the log-loss and accuracy on the held-out images.

    The log-loss, in nats, is that at the best temperature. It distinguishes trials that have the same accuracy on a few
    hundred images.
    """
    state, found = evaluate_at(state, share)
    loss = log_loss(found.logits / fit_temperature(found.logits, found.labels), found.labels)
    return state, loss, accuracy_of(state.plan.metric, found.logits, found.labels)


def _refuse_divergence(trial_set: TrialSet) -> None:
    if not any(trial.state == "finished" for trial in trial_set.trials()):
        raise TuningError(
            f"no {trial_set.name} trial finished, {len(trial_set.trials())} diverged; give lower learning rates with "
            f"--set tuning.learning_rate=[LOW,HIGH]"
        )


def _refuse_several_processes() -> None:
    if num_processes() > 1:
        raise TuningError(
            "a search runs in one process; start several workers with the same --storage and the same name of --output"
        )
