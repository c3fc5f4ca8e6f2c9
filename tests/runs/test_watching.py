import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from finetune.errors import RunFolderError
from finetune.runs import display, watching
from finetune.runs.live import read_state
from finetune.runs.status import Status
from finetune.runs.watching import watch

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(watching, "POLL_SECONDS", 0.01)


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=300)


def printed(console):
    return console.file.getvalue().splitlines()


def write(folder, **changes):
    folder.mkdir(exist_ok=True)
    state = Status().update("training (validation)", 12, 60).changed(loss=0.5, **changes)
    state.save(folder / "state.json")
    (folder / "plan.json").touch()


def test_a_run_is_followed_until_it_finishes(tmp_path, console, monkeypatch):
    monkeypatch.setattr(display, "LINE_SECONDS", 0.0)
    write(tmp_path / "run")

    def end():
        time.sleep(0.1)
        write(tmp_path / "run", step=40)
        time.sleep(0.1)
        metrics = {"test": {"top1": 0.944, "num_images": 269}, "validation": None}
        (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics))
        write(tmp_path / "run", status="finished")

    other = threading.Thread(target=end)
    other.start()
    assert watch(tmp_path / "run", console)
    other.join()
    lines = printed(console)
    assert lines[0] == "training (validation): step 12 of 60, loss 0.500"
    assert "training (validation): step 40 of 60, loss 0.500" in lines
    assert lines[-1] == "finished: 94.4 % of 269 test images right"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"status": "failed", "error": "no space left"}, "failed in 'training (validation)': no space left"),
        (
            {"status": "interrupted"},
            "interrupted in 'training (validation)', step 12 of 60; continue it: finetune train",
        ),
        (
            {"pid": 2**22 + 1},
            "process 4194305 ended without a word in 'training (validation)', step 12 of 60; continue",
        ),
    ],
)
def test_a_run_that_ended_without_a_model_says_how(tmp_path, console, changes, said):
    write(tmp_path / "run", **changes)
    assert not watch(tmp_path / "run", console)
    assert printed(console)[-1].startswith(said)


def test_a_search_is_continued_by_its_own_command(tmp_path, console):
    write(tmp_path / "run", status="interrupted")
    (tmp_path / "run" / "tuning.json").write_text("{}")
    assert not watch(tmp_path / "run", console)
    assert printed(console)[-1].endswith(f"continue it: finetune tune --resume {tmp_path / 'run'}")


def test_a_folder_without_a_state_says_what_is_expected(tmp_path, console):
    with pytest.raises(RunFolderError, match=r"no run to follow in .*; expected a folder with state\.json"):
        watch(tmp_path, console)


@pytest.mark.slow
def test_another_process_is_watched_until_it_is_killed(tmp_path, image_folder, weights):
    image_folder(tmp_path / "images", splits={"train": {"a": 12, "b": 12}, "val": {"a": 4, "b": 4}})
    script = str(ROOT / "scripts" / "finetune.py")
    tiny = ("--model", "test_efficientnet", "--image-size", "32", "--set", f"weights={weights}", "--strategy", "full")
    words = [sys.executable, script, "--data", "images", "--output", "run", "--steps", "100000", *tiny]
    run = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 300
        while not (state := read_state(tmp_path / "run")) or not state.phase.startswith("training"):
            assert run.poll() is None
            assert time.monotonic() < until
            time.sleep(0.2)
        watched = subprocess.Popen(
            [sys.executable, script, "watch", "run"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
        )
        time.sleep(15)
        assert watched.poll() is None
    finally:
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
    said, _ = watched.communicate(timeout=60)
    assert watched.returncode == 1
    assert said.startswith("training (validation): step ")
    assert f"process {run.pid} ended without a word in 'training (validation)'" in " ".join(said.split())


def test_a_run_that_ended_before_its_choice_has_nothing_to_resume(tmp_path, console):
    write(tmp_path / "run", status="interrupted")
    (tmp_path / "run" / "plan.json").unlink()
    assert not watch(tmp_path / "run", console)
    assert printed(console)[-1].endswith("its choice was not made, so there is nothing to resume")
