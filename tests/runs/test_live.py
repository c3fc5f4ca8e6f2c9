"""The files of a run in progress: its state and its growing history."""

import json
import os
import socket
import subprocess
import sys

import pytest
from rich.console import Console

import finetune
from finetune.errors import RunFolderError
from finetune.runs import live
from finetune.runs.folder import RunFolder
from finetune.runs.live import HistoryFile, StateFile, is_alive, read_rows, read_state, refuse_if_in_use
from finetune.runs.report import Report
from finetune.runs.status import Status


def rows(count, phase="validation"):
    return [{"phase": phase, "step": step, "train_loss": 1 / step} for step in range(1, count + 1)]


def test_a_history_grows_with_each_step(tmp_path):
    file = HistoryFile(tmp_path)
    for count in (1, 2, 3):
        file.add("", rows(count))
        assert read_rows(tmp_path) == rows(count)


def test_rows_have_their_number_in_the_run_and_the_name_of_their_training(tmp_path):
    file = HistoryFile(tmp_path)
    assert file.add("seed-1", rows(2)) == [
        (1, rows(2)[0] | {"training": "seed-1"}),
        (2, rows(2)[1] | {"training": "seed-1"}),
    ]
    assert [number for number, _ in file.add("seed-2", rows(1))] == [3]
    assert [row["training"] for row in read_rows(tmp_path)] == ["seed-1", "seed-1", "seed-2"]


def test_rows_after_the_checkpoint_are_replaced_when_a_training_continues(tmp_path):
    first = HistoryFile(tmp_path)
    first.add("", rows(4, "fold-1"))
    first.add("", rows(9, "fold-2"))
    first.close()
    again = HistoryFile(tmp_path)
    continued = [row | {"train_loss": 7.0} if row["step"] > 5 else row for row in rows(6, "fold-2")]
    assert len(again.add("", continued)) == 6
    assert read_rows(tmp_path) == [*rows(4, "fold-1"), *continued]


def test_a_row_that_is_being_written_is_not_read(tmp_path):
    (tmp_path / "history.jsonl").write_text('{"phase": "validation", "step": 1}\n{"phase": "val')
    assert read_rows(tmp_path) == [{"phase": "validation", "step": 1}]


def test_a_state_is_written_once_a_second_at_most(tmp_path, monkeypatch):
    class Clock:
        now = 5.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(live, "time", clock)
    file, status = StateFile(tmp_path / "run"), Status()
    seen = []
    for tenth in range(25):
        clock.now = 5.0 + tenth / 10
        file.write(status.update("decoding images", tenth, 25))
        seen.append(read_state(tmp_path / "run").step)
    assert sorted(set(seen)) == [0, 10, 20]
    file.write(status.end("finished"), now=True)
    assert (read_state(tmp_path / "run").status, read_state(tmp_path / "run").step) == ("finished", 24)


def test_a_process_that_has_ended_is_not_alive():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    state = Status().state
    assert is_alive(state)
    assert not is_alive(state.changed(pid=ended.pid))
    assert not is_alive(state.changed(status="finished"))


def test_a_later_process_with_the_same_number_is_another_one():
    assert not is_alive(Status().state.changed(updated="2001-01-01T00:00:00+00:00"))


def test_a_process_of_another_machine_may_be_alive():
    assert is_alive(Status().state.changed(host="elsewhere", pid=1))


def test_a_folder_in_which_another_process_measures_is_refused(tmp_path):
    state = Status().state.changed(pid=os.getppid())
    state.save(tmp_path / "state.json")
    with pytest.raises(RunFolderError, match=f"in use by process {os.getppid()} on {socket.gethostname()}; give a new"):
        refuse_if_in_use(tmp_path)
    state.changed(pid=os.getpid()).save(tmp_path / "state.json")
    refuse_if_in_use(tmp_path)


@pytest.fixture(scope="module")
def recipe(weights, tmp_path_factory):
    from conftest import make_image_folder

    tree = {"train": {"a": 12, "b": 12}, "val": {"a": 4, "b": 4}}
    data = make_image_folder(tmp_path_factory.mktemp("data") / "images", splits=tree)
    known = {"model": "test_efficientnet", "weights": str(weights), "image_size": 32, "batch_size": 8}
    return finetune.Recipe(data=str(data), strategy="full", steps=20, **known)


class StopError(Exception):
    """The power failed."""


class Watching(Report):
    """A report that looks at the files after each step, and fails at one of them."""

    def __init__(self, folder, stop=None):
        super().__init__(Console(quiet=True))
        self.folder, self.stop, self.seen = folder, stop, []

    def progress(self, task, done, total, history=()):
        super().progress(task, done, total, history)
        if history:
            self.seen.append((task, done, read_rows(self.folder)))
            if (task, done) == self.stop:
                raise StopError("the power failed")


def without_seconds(found):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in found]


def test_an_interrupted_run_ends_with_the_history_of_an_uninterrupted_one(recipe, tmp_path):
    plan = finetune.plan_only(recipe, tmp_path / "run")
    report = Watching(tmp_path / "whole")
    finetune.run_plan(tmp_path / "run" / "plan.json", tmp_path / "whole", report)
    assert all(len(found) == number for number, (_, _, found) in enumerate(report.seen, start=1))
    whole = without_seconds(read_rows(tmp_path / "whole"))

    stopped = Watching(tmp_path / "run", stop=("training (validation)", 13))
    with pytest.raises(StopError):
        finetune.run_plan(tmp_path / "run" / "plan.json", report=stopped)
    assert without_seconds(read_rows(tmp_path / "run")) == whole[:13]
    state = read_state(tmp_path / "run")
    assert (state.status, state.error, state.phase) == ("failed", "the power failed", "training (validation)")
    with pytest.raises(RunFolderError, match=r"there is no history in .* yet; it is complete when a training ends"):
        RunFolder(tmp_path / "run").read_history()

    resumed = Watching(tmp_path / "run")
    finetune.resume(tmp_path / "run", resumed)
    _, first, found = resumed.seen[0]
    assert first <= 13
    assert without_seconds(found) == whole[:first]
    for _, done, found in resumed.seen[: plan.steps - first]:
        assert without_seconds(found) == whole[:done]
    assert without_seconds(read_rows(tmp_path / "run")) == whole
    assert read_state(tmp_path / "run").status == "finished"


def test_a_state_has_the_loss_and_the_accuracy_of_the_history(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(live, "WRITE_SECONDS", 0.0)
    stopped = Watching(tmp_path / "run", stop=("training (validation)", 20))
    with pytest.raises(StopError):
        finetune.run(recipe, tmp_path / "run", stopped)
    found, state = read_rows(tmp_path / "run"), read_state(tmp_path / "run")
    assert state.loss == pytest.approx(sum(row["train_loss"] for row in found[-10:]) / 10)
    assert state.accuracy == found[-1]["validation_top1"]
    assert (state.step, state.of) == (20, 20)


def test_a_run_without_a_report_keeps_its_files_too(recipe, tmp_path):
    finetune.run(recipe.changed(steps=2), tmp_path / "run")
    assert read_state(tmp_path / "run").status == "finished"
    assert json.loads((tmp_path / "run" / "history.jsonl").read_text().splitlines()[0])["step"] == 1


def test_a_run_that_fails_before_its_training_leaves_nothing(recipe, tmp_path, monkeypatch):
    def fail(*_):
        assert (tmp_path / "run" / "state.json").exists()
        raise StopError

    monkeypatch.setattr("finetune.runs.pipeline.decide", fail)
    monkeypatch.setattr(live, "WRITE_SECONDS", 0.0)
    with pytest.raises(StopError):
        finetune.run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_trainings_of_an_ensemble_are_named_while_they_run(recipe, tmp_path):
    report = Watching(tmp_path / "run")
    finetune.run(recipe.changed(steps=2, ensemble="seeds:2"), tmp_path / "run", report)
    names = {row["training"] for row in report.seen[-1][2]}
    assert names == {task.partition(":")[0] for task, _, _ in report.seen}
