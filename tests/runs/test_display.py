import io
import re

import pytest
from rich.console import Console

from finetune.runs import display
from finetune.runs.display import Display
from finetune.runs.status import Status

STATE = Status().update("training (validation)", 120, 253).changed(loss=0.21345, accuracy=0.951, eta=95.2)


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(display, "time", clock)
    return clock


def test_without_a_terminal_there_is_a_line_every_30_seconds(clock):
    console = Console(file=io.StringIO(), width=40)
    shown = Display(console)
    shown.start()
    for second in range(0, 100, 5):
        clock.now = second
        shown.show(STATE.changed(step=100 + second))
    shown.stop()
    lines = console.file.getvalue().splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        "training (validation): step 130 of 253",
        "training (validation): step 160 of 253",
        "training (validation): step 190 of 253",
    ]
    assert lines[0].endswith("loss 0.213, held-out accuracy 95.1 %, 1 min 35 s left")


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal_a_bar_has_step_loss_accuracy_and_time_left(width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    shown = Display(console)
    shown.start()
    shown.show(STATE)
    shown.stop()
    drawn = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", console.file.getvalue())]
    bar = next(line for line in drawn if "120/253" in line)
    assert re.fullmatch(r"training \(validation\) [━╸╺]+ 120/253  loss 0.213  held-out 95.1 %  1 min 35 s left", bar)
    assert len(bar) == width


def test_a_task_without_steps_is_named(clock):
    console = Console(file=io.StringIO(), width=40)
    shown = Display(console)
    clock.now = 31.0
    shown.show(Status().update("timing this machine", 0, 1))
    assert console.file.getvalue() == "timing this machine\n"


def test_a_quiet_console_shows_nothing(clock):
    console = Console(file=io.StringIO(), quiet=True)
    shown = Display(console)
    clock.now = 31.0
    shown.show(STATE)
    assert console.file.getvalue() == ""
