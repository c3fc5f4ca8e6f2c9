"""Read and append rows of results, one JSON object a line; a program that is interrupted continues from its rows."""

import gzip
import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""One measurement: what was measured, with which settings, and the figures."""


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file, which may be compressed (`.gz`); an empty list if there is no file."""
    if not path.exists():
        return []
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return [json.loads(line) for line in file]


def append_row(path: Path, row: Row) -> None:
    """Append a row to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
