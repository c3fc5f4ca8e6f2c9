"""Of several processes that train one model, one is killed: the others end, and the run continues with any number."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from finetune.runs.folder import RunFolder
from tests.conftest import make_image_folder
from tests.runs.test_transactions import weights_in

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "scripts" / "finetune.py"

OPTIONS = ("--model", "test_efficientnet", "--image-size", "32", "--strategy", "full", "--batch-size", "6")

PATIENCE = 60.0
"""Time in which all processes end once one of them is killed, in seconds."""

LAUNCHER = ("torch.distributed.run", "--standalone", "--nproc_per_node")


def start(count, *arguments):
    """Start the command in several processes on the CPU, or in one without a launcher."""
    words = [sys.executable, "-m", *LAUNCHER, str(count)] if count > 1 else [sys.executable]
    words += [str(SCRIPT), "train", *map(str, arguments)]
    environment = {**os.environ, "MASTER_PORT": "29517"}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def process_of_rank(launched, rank):
    """Return the process of a rank, or None while it has none."""
    for process in psutil.Process(launched.pid).children(recursive=True):
        try:
            if str(SCRIPT) in process.cmdline() and process.environ().get("RANK") == str(rank):
                return process
        except psutil.Error:  # it has just ended
            continue
    return None


@pytest.mark.parametrize(("rank", "continuing"), [(1, 1), (0, 3)])
def test_a_killed_rank_ends_the_others_and_the_run_continues(tmp_path, weights, rank, continuing):
    counts = {"train": {"a": 12, "b": 12}, "val": {"a": 4, "b": 4}, "test": {"a": 4, "b": 4}}
    images = make_image_folder(tmp_path / "images", splits=counts)
    folder = tmp_path / "run"
    options = ("--data", images, "--set", f"weights={weights}", *OPTIONS)
    launched = start(2, *options, "--steps", "120", "--output", folder)
    try:
        while (
            len(list(folder.glob("history.jsonl"))) < 1 or len((folder / "history.jsonl").read_text().splitlines()) < 10
        ):
            assert launched.poll() is None, launched.stdout.read()
            time.sleep(0.05)
        killed = process_of_rank(launched, rank)
        others = [process for process in psutil.Process(launched.pid).children(recursive=True) if process != killed]
        killed.send_signal(signal.SIGKILL)
        began = time.monotonic()
        status = launched.wait(PATIENCE)
        assert status != 0
        _, running = psutil.wait_procs(others, max(0.0, PATIENCE - (time.monotonic() - began)))
        assert running == []
    finally:
        launched.kill()
    assert not RunFolder(folder).is_finished()
    continued = start(continuing, "--resume", folder)
    said, _ = continued.communicate(timeout=900)
    assert continued.returncode == 0, said
    assert RunFolder(folder).is_finished()
    assert weights_in(folder)
