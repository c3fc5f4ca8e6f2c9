"""Comments, docstrings, printed sentences and documents are in plain English: no words of a translated style."""

import io
import re
import tokenize
from bisect import bisect
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

BANNED = (
    r"can not",
    r"(go|goes|going|gone|went) on",
    r"(come|comes|coming|came) to be",
    r"to be had",
    r"told",
    r"beside",
    r"but for",
    r"alike",
    r"so (many|much)",
    r"lies?",
    r"(?<!there )(is|are|was|were) no (?!longer|more|less|fewer|better|worse|larger|smaller)\w+",
    r"judg(e|es|ed|ing|ements?)",
    r"what [^.;:]{1,60} makes? of",
    r"ship(s|ped|ping)?",
    r"harm(s|ed|ful)?",
    r"give or take",
    r"by heart",
    r"carried on",
    r"(?<!-)handed",
    r"as it is wanted",
    r"likely best",
)
"""Whole words; upper and lower case are the same."""

FOUND = re.compile("|".join(rf"\b(?:{words})\b" for words in BANNED), re.IGNORECASE)

QUOTED = re.compile(r'```.*?```|`[^`]*`|"[^"]{0,200}"|“[^”]*”', re.DOTALL)
"""Code, keys, names, and the words of others."""

STRING = re.compile(r"(?P<prefix>[a-z]*)(?P<quote>'''|\"\"\"|'|\")(?P<content>.*)(?P=quote)", re.DOTALL | re.IGNORECASE)

FIELD = re.compile(r"\{[^{}]*\}")
"""An expression in an f-string."""

LAYOUT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}

CODE = [
    path
    for place, pattern in (("finetune", "**/*.py"), ("experiments", "*.py"), ("scripts", "*"))
    for path in sorted((ROOT / place).glob(pattern))
    if path.is_file()
]

DOCUMENTS = [
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "recipes/README.md")),
]


def blanked(text, pattern):
    """Return a text without what a pattern finds, on the same lines."""
    return pattern.sub(lambda found: " … " + "\n" * found[0].count("\n"), text)


def prose_of_token(token):
    """Return the sentences in a string, without expressions; a single word is a key, and other code says nothing."""
    if tokenize.tok_name[token.type] == "FSTRING_MIDDLE":  # since Python 3.12
        return token.string
    content = STRING.fullmatch(token.string) if token.type == tokenize.STRING else None
    if content is None or not re.search(r"\s", content["content"].strip()):
        return "…"
    return blanked(content["content"], FIELD) if "f" in content["prefix"].lower() else content["content"]


def prose_of_python(text):
    """Return (line, text) of every string and every block of comments; what stands in different places is parted."""
    parts, last = [], -1  # the last line, if it ends with a comment
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        line = token.start[0]
        if token.type == tokenize.COMMENT:
            start, before = parts.pop() if last == line - 1 else (line, "")
            parts.append((start, before + token.string.lstrip("#") + "\n"))
            last = line
        elif token.type not in LAYOUT:
            parts.append((line, prose_of_token(token)))
            last = -1
    return [(line, blanked(part, QUOTED)) for line, part in parts]


def prose_of_shell(text):
    lines = (line.partition("#")[2] for line in text.splitlines())
    return [(number, blanked(line, QUOTED)) for number, line in enumerate(lines, start=1)]


def banned(parts):
    """Return (line, words) of everything that is banned, also where it is wrapped."""
    words = [
        (number, word)
        for start, text in parts
        for number, line in enumerate(text.split("\n"), start)
        for word in line.split()
    ]
    starts, length = [], 0
    for _, word in words:
        starts.append(length)
        length += len(word) + 1
    joined = " ".join(word for _, word in words)
    return [(words[bisect(starts, found.start()) - 1][0], found[0]) for found in FOUND.finditer(joined)]


def prose(path):
    text = path.read_text("utf-8")
    if path.suffix == ".md":
        return [(1, blanked(text, QUOTED))]
    return prose_of_python(text) if path.suffix == ".py" else prose_of_shell(text)


@pytest.mark.parametrize("path", [*CODE, *DOCUMENTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_banned_words(path):
    found = [f"{path.relative_to(ROOT)}:{line}: {words}" for line, words in banned(prose(path))]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# It can not\n# and goes\n# on.", [(1, "can not"), (2, "goes on")]),
        ('"""Files lie here."""\nx = "judged"  # a key', [(1, "lie")]),
        ('print(f"{judge(x)} images are told " "apart")', [(1, "told")]),
        ('"""This is no\n    number, and there\n    is no file; it is no longer."""', [(1, "is no number")]),
        ('# The folder `did harm`, the words "but for"; modules, can\'t, besides, believe.', []),
    ],
)
def test_banned_words_are_found_where_they_are_prose(text, expected):
    assert banned(prose_of_python(text + "\n")) == expected


def test_code_and_quotations_of_documents_are_left_out():
    text = 'So\nmany "ships" and `harm`:\n\n```bash\ngo on\n```\n\nIt is “told”, but\nfor this.\n'
    assert banned([(1, blanked(text, QUOTED))]) == [(1, "So many"), (8, "but for")]
