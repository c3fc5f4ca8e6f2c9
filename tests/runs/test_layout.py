import io
import re

import pytest
from rich.console import Console

from finetune.runs.layout import TableRow, counted, print_commands, print_entry, print_table, print_text

SENTENCE = "the linear probe is right on 94.4 % of the images, which is more than was expected of it before"


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=40)


def lines(console):
    return console.file.getvalue().splitlines()


def test_a_text_is_wrapped_at_words_and_its_lines_are_indented(console):
    print_text(console, SENTENCE, indent=4)
    assert all(re.match(r"    \S", line) for line in lines(console))
    assert max(map(len, lines(console))) <= 40
    assert " ".join(line.strip() for line in lines(console)) == SENTENCE


def test_a_label_stands_in_front_of_the_first_line_alone(console):
    print_entry(console, "Result", SENTENCE)
    first, *others = lines(console)
    assert first.startswith("Result    the linear")
    assert all(line.startswith(" " * 10 + line.strip()[0]) for line in others)


def test_a_percent_sign_stays_with_its_number():
    for width in range(25, 60):
        console = Console(file=io.StringIO(), width=width)
        print_text(console, SENTENCE)
        assert not any(line.strip().startswith("%") for line in lines(console))


def test_a_path_that_is_longer_than_a_line_is_not_broken(console):
    path = "/a/very/long/folder/of/images/that/does/not/fit/into/one/line"
    print_text(console, f"the run is in {path} and nowhere else")
    assert any(path in line for line in lines(console))


def test_a_command_stays_on_one_line_to_be_copied(console):
    command = "finetune predict runs/a-long-name-of-a-run IMAGES... --output predictions.csv"
    print_commands(console, "Next", [command, "finetune cache"])
    assert lines(console) == [f"Next      {command}", "          finetune cache"]


def test_a_table_that_is_too_wide_leaves_optional_columns_out(console):
    rows = [TableRow(("full (rate 8e-04) [x]", "91.3 %", "81.8 to 97.1", "prior"))]
    columns = ("candidate", "accuracy", "interval", "basis")
    print_table(console, columns, rows, ("candidate", "basis"), optional=["basis", "interval"])
    assert [line.split() for line in lines(console)] == [
        ["candidate", "accuracy"],
        ["full", "(rate", "8e-04)", "[x]", "91.3", "%"],
    ]


def test_counts_have_their_noun():
    assert counted(1, "image") == "1 image"
    assert counted(1528, "image") == "1,528 images"
