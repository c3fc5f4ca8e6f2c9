"""Names are data: they change no output, vanish from no command, and run in no spreadsheet."""

import csv
import doctest
import io
import shlex
import signal
import subprocess
import sys

import pytest

from finetune import interruption, names
from finetune.cli import main
from finetune.names import as_cell, quoted, visible

CLASSES = ("[red]", "[ 2]", "a\nb", "=cmd", "\x1b[31m", "caf\udce9", "ü")
"""Names of classes that a console, a spreadsheet or an encoding could take for something else."""


def test_the_examples_are_right():
    assert doctest.testmod(names).failed == 0


@pytest.mark.parametrize(
    "name", ["plain", "two words", "it's", "try [ 2]", "a\nb", "\x1b[31m", "caf\udce9", "-x", "$HOME"]
)
def test_a_quoted_name_is_what_a_shell_passes_on(name):
    printed = subprocess.run(["bash", "-c", f"printf %s {quoted(name)}"], capture_output=True, check=True).stdout
    assert printed == name.encode("utf-8", "surrogateescape")
    assert "\n" not in quoted(name)


def test_control_characters_are_seen():
    assert visible("a\x1b[31mb\x07\u202e") == "a\\x1b[31mb\\x07\\u202e"
    assert visible("é ü [red] 'x'") == "é ü [red] 'x'"


@pytest.mark.parametrize("name", ["=1+1", "@SUM(A1)", "+cmd", "-cmd", "\tx"])
def test_a_formula_becomes_a_text(name):
    assert as_cell(name) == f"'{name}"


@pytest.mark.parametrize("name", ["cat", "-1", "+2.5", "", "a=b"])
def test_other_cells_stay(name):
    assert as_cell(name) == name


@pytest.fixture
def ascii_command(monkeypatch):
    """Run the command line with an output that encodes ASCII alone; return its exit status and what it printed."""
    handlers = {number: signal.getsignal(number) for number in interruption.STATUS}

    def run(*arguments):
        streams = io.TextIOWrapper(io.BytesIO(), encoding="ascii"), io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", streams[0])
            patch.setattr(sys, "stderr", streams[1])
            with pytest.raises(SystemExit) as ended:
                main([str(argument) for argument in arguments])
            for stream in streams:
                stream.flush()
        return ended.value.code, *(stream.buffer.getvalue().decode() for stream in streams)

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_run_with_odd_names_prints_all_of_them_and_commands_that_can_be_copied(
    ascii_command, image_folder, weights, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    image_folder(tmp_path / "images", dict.fromkeys(CLASSES, 4))
    folder = "try [red] [ 2]\n"
    options = ("--model", "test_efficientnet", "--set", f"weights={weights}", "--image-size", "32")
    status, printed, said = ascii_command(
        "--data", "images", *options, "--strategy", "linear_probe", "--output", folder, "--verbose"
    )
    assert (status, said) == (0, "")
    assert "\x1b" not in printed
    (command,) = [line.strip() for line in printed.splitlines() if "finetune predict" in line]
    assert command.removeprefix("Next").strip().startswith(f"finetune predict {quoted(folder)} IMAGES")
    assert "RUN" not in shlex.split(command)
    status, printed, _ = ascii_command("evaluate", folder, "--data", "images")
    assert status == 0
    for name in ("[red]", "[ 2]", "a\\nb", "=cmd", "\\x1b[31m", "caf\\udce9", "\\xfc"):
        assert f" {name} " in printed
    assert ascii_command("predict", folder, "images", "--output", "labels.csv")[0] == 0
    with (tmp_path / "labels.csv").open(encoding="utf-8", newline="") as file:
        labels = {row["label"] for row in csv.DictReader(file)}
    assert labels <= {"[red]", "[ 2]", "a\nb", "'=cmd", "\x1b[31m", "caf\\udce9", "ü"}
    status, printed, _ = ascii_command("predict", folder, "images")
    assert (status, printed.count("label,")) == (0, 1)
    assert ascii_command("report", folder)[0] == 0
    assert ascii_command("watch", folder)[0] == 0
    assert ascii_command("diagnose", folder)[0] == 0
