"""Full and read-only disks, impossible places, and requests to end: a sentence, the right exit status, nothing lost."""

import os
import resource
import signal
import sys

import pytest

from finetune import interruption
from finetune.cache import size_limit
from finetune.cli import main
from finetune.data import load_images
from finetune.errors import CacheError, RunFolderError
from finetune.files import explain, replacing
from finetune.runs import places
from finetune.runs.report import Report
from tests.runs.test_transactions import in_child, weights_in

OPTIONS = ("--model", "test_efficientnet", "--image-size", "32", "--strategy", "partial", "--steps", "6")


@pytest.fixture
def command(capsys, image_folder, weights, tmp_path, monkeypatch):
    """Run `train` with some options here; return its exit status and what it said on stderr."""
    image_folder(tmp_path / "images", splits={"train": {"a": 8, "b": 8}, "test": {"a": 3, "b": 3}})
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in interruption.STATUS}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it runs in the background

    def run(*options):
        given = (
            options
            if "--resume" in options
            else ("--data", "images", "--set", f"weights={weights}", *OPTIONS, *options)
        )
        with pytest.raises(SystemExit) as ended:
            main(["train", *map(str, given)])
        return ended.value.code, capsys.readouterr().err

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def signalled(monkeypatch, number, task, step):
    """Let this process be asked to end at a step of a task."""
    progress = Report.progress

    def asked(report, name, done, total, history=()):
        progress(report, name, done, total, history)
        if name.startswith(task) and done == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Report, "progress", asked)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_training_that_is_asked_to_end_saves_its_step_and_continues_to_the_same_model(
    command, tmp_path, monkeypatch, number, status
):
    assert command("--output", "whole")[0] == 0
    with monkeypatch.context() as patch:
        signalled(patch, number, "training", 3)
        ended, said = command("--output", "run")
    assert ended == status
    assert "interrupted; the last checkpoint is saved; continue with: finetune train --resume run\n" in said
    rows = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert len(rows) == 3
    assert list((tmp_path / "run" / "checkpoints").glob("**/*-step.pt"))
    assert command("--resume", "run")[0] == 0
    assert weights_in(tmp_path / "run") == weights_in(tmp_path / "whole")


def test_a_run_that_is_interrupted_before_its_choice_says_that_nothing_can_be_resumed(command, tmp_path, monkeypatch):
    signalled(monkeypatch, signal.SIGINT, "cross-validating", 0)
    status, said = command("--output", "run")
    assert status == 130
    assert said.strip() == "interrupted before the choice was made, so there is nothing to resume; start again"
    assert not (tmp_path / "run").exists()


def test_a_full_disk_ends_a_run_with_a_sentence_and_loses_nothing(command, weights, tmp_path):
    assert command("--output", "whole")[0] == 0
    said = tmp_path / "said.txt"

    def with_little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        with said.open("w") as file:
            sys.stderr = file
            try:
                main(["train", "--data", "images", "--set", f"weights={weights}", *OPTIONS, "--output", "run"])
            except SystemExit as ended:
                sys.exit(0 if ended.code == 2 else f"exit status {ended.code}")

    assert in_child(with_little_room, tmp_path / "run")[0] in {0, 1}
    lines = said.read_text().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert "File too large" in lines[0]
    assert lines[0].endswith("then continue with: finetune train --resume run")
    assert not list((tmp_path / "run").rglob("*.pt.partial"))
    assert command("--resume", "run")[0] == 0
    assert weights_in(tmp_path / "run") == weights_in(tmp_path / "whole")


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("images/train/a/000.jpg/run", "images/train/a/000.jpg is a file; give a new folder with --output"),
        ("images/train/a/000.jpg", "images/train/a/000.jpg is a file; give a new folder with --output"),
        ("r" * 300, "File name too long; give a shorter name"),
        ("\x1b[31m[red]\n", "neither empty"),
    ],
)
def test_an_impossible_place_for_a_run_is_refused_at_once(command, tmp_path, output, said):
    if "\x1b" in output:
        (tmp_path / output).mkdir()
        (tmp_path / output / "notes").touch()
    status, error = command("--output", output)
    assert status == 2
    assert said in error
    assert error.count("\n") == 1
    assert "\x1b" not in error


def test_a_disk_that_cannot_be_written_to_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(RunFolderError, match="cannot be written to; give a new folder elsewhere"):
        places.refuse_if_taken(tmp_path / "run")


@pytest.mark.parametrize("limit", ["-1", "nan", "inf", "1e999", "-0.5", "many"])
def test_an_impossible_limit_of_the_cache_is_refused(monkeypatch, limit):
    monkeypatch.setenv("FINETUNE_CACHE_LIMIT", limit)
    with pytest.raises(CacheError, match=f"FINETUNE_CACHE_LIMIT is '{limit}'"):
        size_limit()


def test_the_demo_needs_no_cache(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "file" / "cache"))
    assert len(load_images("demo:digits").class_names) == 10


def test_a_file_is_whole_or_as_it_was(tmp_path):
    (tmp_path / "a").write_text("earlier")

    def interrupted():
        with replacing(tmp_path / "a") as partial:
            partial.write_text("lat")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "a").read_text() == "earlier"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_an_error_of_the_disk_names_the_file_and_what_to_do():
    assert explain(OSError(28, "No space left on device", "runs/a")) == (
        "runs/a cannot be read or written: No space left on device; make room on its disk"
    )
