import os
from dataclasses import replace

import pytest

from finetune.decide.planned_run import PlannedRun
from finetune.runs import status
from finetune.runs.status import Status


class Clock:
    """A clock that a test moves."""

    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(status, "time", clock)
    return clock


@pytest.fixture
def planned(small_plan, evidence):
    from finetune.decide.choice import choose_strategy
    from finetune.recipe import Recipe

    plan = small_plan(refit=True, steps=20, refit_steps=5)
    return PlannedRun(recipe=Recipe(data="x"), evidence=evidence, choice=choose_strategy(evidence), plan=plan)


def train(own, clock, steps, phase="validation", seconds=2.0, of=20, name=""):
    """Take steps of a training, each in some seconds; return the last state."""
    history = []
    for step in range(1, steps + 1):
        clock.now += seconds
        history.append({"phase": phase, "step": step, "train_loss": float(step)})
        state = own.update(f"{name}training ({phase})", step, of, history)
    return state


def test_a_state_names_its_process_and_its_times():
    state = Status().update("decoding images", 3, 12)
    assert (state.status, state.phase, state.step, state.of) == ("running", "decoding images", 3, 12)
    assert state.pid == os.getpid()
    assert state.started <= state.updated


def test_the_time_left_of_a_task_follows_its_pace(clock):
    own = Status()
    assert own.update("decoding images", 2, 12).eta is None
    clock.now += 4
    assert own.update("decoding images", 4, 12).eta == 16.0


def test_the_time_left_of_a_training_includes_the_refit(clock, planned):
    own = Status()
    own.expect([planned])
    assert train(own, clock, 8).eta == pytest.approx((12 + 5) * 2.0)
    own = Status()
    own.expect([planned])
    train(own, clock, 20)
    assert train(own, clock, 1, "refit", of=5).eta == pytest.approx(4 * 2.0)


def test_the_time_left_counts_smaller_images_as_their_share(clock, planned):
    small = replace(planned, plan=planned.plan.changed(small_steps=10, refit=False))
    share = status.small_cost(small.plan.preprocessing)
    own = Status()
    own.expect([small])
    assert train(own, clock, 10, seconds=share).eta == pytest.approx(10.0, abs=0.1)


def test_the_time_left_of_an_ensemble_includes_the_other_members(clock, planned):
    other = replace(planned, plan=planned.plan.changed(training_seed=7))
    own = Status()
    own.expect([planned, other])
    assert train(own, clock, 8, name=f"{planned.name}: ").eta == pytest.approx((12 + 5 + 25) * 2.0)


def test_the_phases_before_the_one_in_progress_are_done(clock, planned):
    own = Status()
    own.expect([planned])  # resumed after the phase `validation`
    assert train(own, clock, 2, "refit", of=5).eta == pytest.approx(3 * 2.0)


def test_the_time_left_of_a_cross_validation_includes_the_further_folds(clock, planned):
    folds = replace(planned, plan=planned.plan.changed(validation="cross_validation", folds=3))
    own = Status()
    own.expect([folds])
    assert train(own, clock, 5, "fold-2").eta == pytest.approx((15 + 20 + 20) * 2.0)


def test_the_time_left_of_a_fallback_is_its_own(clock, planned):
    own = Status()
    own.expect([planned])
    train(own, clock, 20)
    assert train(own, clock, 5, name="full_near: ").eta == pytest.approx((15 + 5) * 2.0)


def test_the_time_left_is_at_most_that_of_the_budget(clock, planned):
    limited = replace(planned, plan=planned.plan.changed(time_budget=30.0))
    own = Status()
    own.expect([limited])
    assert train(own, clock, 5).eta == pytest.approx(30 - 4 * 2.0)


def test_the_time_left_without_a_plan_is_that_of_the_phase(clock):
    assert train(Status(), clock, 5, name="trial 3: ").eta == pytest.approx(15 * 2.0)


def test_the_loss_is_the_mean_of_the_last_ten_steps(clock, planned):
    own = Status()
    own.expect([planned])
    assert train(own, clock, 15).loss == pytest.approx(sum(range(6, 16)) / 10)


def test_the_accuracy_is_that_of_the_last_evaluation_of_the_same_training():
    own = Status()
    rows = [{"phase": "fold-1", "step": 1, "train_loss": 1.0, "validation_top1": 0.5}]
    rows += [{"phase": "fold-1", "step": 2, "train_loss": 1.0}]
    assert own.update("training (fold-1)", 2, 9, rows).accuracy == 0.5
    rows += [{"phase": "fold-1", "step": 3, "train_loss": 1.0, "validation_top1": 0.75}]
    assert own.update("training (fold-1)", 3, 9, rows).accuracy == 0.75
    assert own.update("training (fold-2)", 1, 9, [{"phase": "fold-2", "step": 1, "train_loss": 1.0}]).accuracy is None


def test_a_state_that_has_ended_says_how(clock, planned):
    own = Status()
    own.expect([planned])
    train(own, clock, 8)
    ended = own.end("failed", "the disk is full")
    assert (ended.status, ended.error, ended.step, ended.eta) == ("failed", "the disk is full", 8, None)
