"""Print texts, commands and tables that fit the width of a console: texts are wrapped at words, commands never."""

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.containers import Lines
from rich.table import Table
from rich.text import Text

from finetune.names import visible

LABEL = 10
"""Columns that a label takes in front of a text."""

NARROWEST = 20
"""Smallest width that a text is wrapped to, in columns."""

WORD = re.compile(r"\S+(?: %)?\s*")
"""A word, or a number with its percent sign, and the space after it."""

UNLIMITED = 10_000
"""Width at which the natural width of a table is measured, in columns."""


class TableRow(NamedTuple):
    """One row of a table."""

    cells: tuple[str, ...]
    """Texts of the cells."""
    style: str = ""
    """Style of the row, such as `bold green`."""


def print_text(console: Console, text: str, label: str = "", indent: int = 2) -> None:
    """Print a text, wrapped at words; its further lines are indented like the first.

    Args:
        console: the console to print on.
        text: the text, with markup.
        label: word in front of the text, within the indentation.
        indent: columns in front of each line.
    """
    body = Text.from_markup(visible(text))
    for line in _wrapped(body, max(NARROWEST, console.width - indent)):
        line.rstrip()
        head = Text(label.ljust(indent), style="bold" if label else "")
        console.print(head + line if line else "", soft_wrap=True, highlight=False)
        label = ""


def print_entry(console: Console, label: str, text: str) -> None:
    """Print a text next to a label, wrapped at words; without a label, below the text before."""
    print_text(console, text, label, LABEL)


def print_commands(console: Console, label: str, commands: Sequence[str]) -> None:
    """Print commands to copy below each other, each on one line however long."""
    for command in commands:
        console.print(Text(label.ljust(LABEL), style="bold") + Text(visible(command)), soft_wrap=True, highlight=False)
        label = ""


def print_title(console: Console, text: str) -> None:
    """Print the title of a section."""
    console.print()
    console.print(Text(visible(text), style="bold cyan"), soft_wrap=True)


def print_table(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[TableRow],
    texts: Collection[str],
    optional: Sequence[str] = (),
) -> None:
    """Print a table.

    Args:
        console: the console to print on.
        columns: names of the columns.
        rows: cells of each row, in the order of `columns`, without markup.
        texts: columns that are aligned to the left; the others have figures.
        optional: columns that are left out, one after another, while the table is too wide.
    """
    for count in range(len(optional) + 1):
        table = _table(columns, rows, texts, optional[:count])
        width = console.measure(table, options=console.options.update(width=UNLIMITED)).maximum
        if width <= console.width:
            break
    console.print(table)


def _wrapped(text: Text, width: int) -> Lines:
    """Return the lines of a text. A word that is longer than a line, such as a path, is not broken."""
    breaks, length = [], 0
    for word in WORD.finditer(text.plain):
        if length and length + cell_len(word[0].rstrip()) > width:
            breaks.append(word.start())
            length = 0
        length += cell_len(word[0])
    return text.divide(breaks)


def _table(
    columns: Sequence[str], rows: Sequence[TableRow], texts: Collection[str], left_out: Collection[str]
) -> Table:
    places = [place for place, column in enumerate(columns) if column not in left_out]
    table = Table(box=None, padding=(0, 0, 0, 2), header_style="dim")  # the indentation of the report, then of columns
    for place in places:
        is_text = columns[place] in texts
        table.add_column(columns[place], justify="left" if is_text else "right", no_wrap=not is_text)
    for row in rows:
        table.add_row(*(Text(visible(row.cells[place])) for place in places), style=row.style)
    return table


def counted(count: int, noun: str) -> str:
    """Return a count with its noun.

    >>> counted(1, "image"), counted(2000, "image")
    ('1 image', '2,000 images')
    """
    return f"{count} {noun}" if count == 1 else f"{count:,} {noun}s"
