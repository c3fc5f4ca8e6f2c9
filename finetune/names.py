"""Show names of files, folders and classes as they are: names are data, and never markup, control codes or commands."""

import re
import shlex
from pathlib import Path

INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, characters that change the direction of a text, and bytes that are not UTF-8 (surrogates)."""

FORMULA = re.compile(r"[=+\-@\t\r]")
"""First character of a cell that a spreadsheet takes for a formula."""


def as_unicode(text: str) -> str:
    """Return a text that UTF-8 can encode: bytes of a file name that are not UTF-8 are escaped.

    >>> as_unicode("caf\\udce9.jpg")
    'caf\\\\udce9.jpg'
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def visible(text: str) -> str:
    """Return a text in which each control character is an escape sequence, so that a name cannot move the cursor,
    change colours or add a line.

    >>> visible("a\\nb")
    'a\\\\nb'
    """
    return INVISIBLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def quoted(path: str | Path) -> str:
    """Return a path as a shell reads it, for commands to copy.

    >>> quoted("try [/2]"), quoted("a\\nb")
    ("'try [/2]'", "$'a\\\\nb'")
    """
    text = str(path)
    if not INVISIBLE.search(text):
        return shlex.quote(text)

    def escape(found: re.Match[str]) -> str:
        number = ord(found[0])
        if 0xDC80 <= number <= 0xDCFF:  # a byte that is not UTF-8, as Python decodes file names
            return f"\\x{number - 0xDC00:02x}"
        return found[0].encode("unicode_escape").decode("ascii")

    return "$'" + INVISIBLE.sub(escape, text.replace("\\", "\\\\").replace("'", "\\'")) + "'"


def as_cell(text: str) -> str:
    """Return a text for a CSV file that people open in a spreadsheet: what it would run as a formula gets an apostrophe
    in front. Numbers stay as they are.

    >>> as_cell("=cmd|'/c calc'!A1"), as_cell("-1.5"), as_cell("cat")
    ("'=cmd|'/c calc'!A1", '-1.5', 'cat')
    """
    if not FORMULA.match(text):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
