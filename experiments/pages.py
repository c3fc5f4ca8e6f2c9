"""Replace the parts of pages that programs write, between a mark at the beginning and one at the end."""

from pathlib import Path

END = "<!-- ends -->"
"""Mark at the end of what a program writes into a page."""


def mark_of(program: str) -> str:
    """Return the mark at the beginning of what a program of this folder writes.

    >>> mark_of("find_groups")
    '<!-- begins: written by experiments.find_groups -->'
    """
    return f"<!-- begins: written by experiments.{program} -->"


def with_written(page: str, begin: str, text: str) -> str:
    """Return a page with another text between the mark `begin` and the next mark at an end.

    Raises:
        ValueError: the page has no such marks.
    """
    before, begun, rest = page.partition(begin)
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        raise ValueError(f"the page lacks the marks {begin} and {END}")
    return f"{before}{begin}\n{text}\n{END}{after}"


def write_between(page: Path, begin: str, text: str) -> None:
    """Write a text between the marks of a page, as `with_written` does."""
    page.write_text(with_written(page.read_text("utf-8"), begin, text), "utf-8")
