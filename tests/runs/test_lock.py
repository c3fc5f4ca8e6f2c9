"""Of two processes that want to write to one run folder, one works, and the other says who holds it."""

import os
import socket
import time

import pytest

from finetune.errors import RunFolderError
from finetune.runs import pipeline
from finetune.runs.live import LOCK
from finetune.runs.lock import held


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of `run`."""
    child = os.fork()
    if not child:
        with held(tmp_path / "run"):
            (tmp_path / "run" / "begun").touch()
            time.sleep(60)
        os._exit(0)
    while not (tmp_path / "run" / "begun").exists():
        time.sleep(0.01)
    yield child
    try:
        os.kill(child, 9)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):  # the test has ended it
        pass


def hold(folder):
    with held(folder):
        pass


def test_a_folder_that_another_process_holds_is_refused_with_its_number_and_machine(holder, tmp_path):
    with pytest.raises(RunFolderError, match=f"in use by process {holder} on {socket.gethostname()} since 20"):
        hold(tmp_path / "run")


@pytest.mark.parametrize("command", [pipeline.resume, lambda run: pipeline.run_plan(run / "plan.json", run)])
def test_a_run_that_another_process_continues_is_not_continued_twice(holder, small_plan, tmp_path, command):
    small_plan().save(tmp_path / "run" / "plan.json")
    (tmp_path / "run" / "begun").unlink()
    (tmp_path / "run" / "choice.json").write_text("{}")
    with pytest.raises(RunFolderError, match=f"in use by process {holder} on .* finetune watch"):
        command(tmp_path / "run")


def test_the_lock_of_a_process_that_was_killed_is_taken_over(holder, tmp_path):
    os.kill(holder, 9)
    os.waitpid(holder, 0)
    assert (tmp_path / "run" / LOCK).exists()
    hold(tmp_path / "run")
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_folder_in_which_nothing_was_written_is_removed(tmp_path):
    hold(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_refused_is_free_again(tmp_path):
    def refuse(folder):
        raise RunFolderError(f"{folder} is taken")

    with pytest.raises(RunFolderError, match="is taken"), held(tmp_path / "run", refuse):
        pass
    hold(tmp_path / "run")
