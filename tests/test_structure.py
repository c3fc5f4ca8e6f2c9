"""Files, classes and functions are of a size that can be read, and dense numerical code says why."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "finetune"

LONGEST_FILE = 400
"""Lines."""

MOST_METHODS = 15
"""Of a class, with properties and special methods."""

LONGEST_FUNCTION = 60
"""Lines; a longer one says in its docstring why it has so many "lines"."""

LEAST_COMMENTS = 0.08
"""Lines of comments for each line of code."""

NUMERICAL = (
    "decide/belief.py",
    "decide/contest.py",
    "decide/forecast.py",
    "decide/prior.py",
    "decide/schedule.py",
    "decide/workload.py",
    "ensemble/averages.py",
    "measure/domain.py",
    "measure/similarity.py",
    "network/cpu/convolutions.py",
    "network/cpu/folding.py",
    "network/cpu/interception.py",
    "network/cpu/threads.py",
    "predict/linear_probe.py",
    "predict/metrics.py",
    "training/loop.py",
    "training/monitor.py",
    "training/optimizer.py",
    "training/pace.py",
)
"""Files with formulas, which need words next to them."""

FILES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def text(file):
    return (PACKAGE / file).read_text("utf-8")


def nodes(file, *kinds):
    return [node for node in ast.walk(ast.parse(text(file))) if isinstance(node, kinds)]


def length(node):
    """Return a function's lines, from its first decorator to its end."""
    return node.end_lineno - min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) + 1


def docstrings(file):
    """Return the numbers of the lines that are taken by strings that stand alone."""
    strings = [node for node in nodes(file, ast.Expr) if isinstance(node.value, ast.Constant)]
    return {line for node in strings for line in range(node.lineno, node.end_lineno + 1)}


def comments_and_code(file):
    """Return how many lines are a comment alone, and how many are code; docstrings and blank lines are neither."""
    skipped = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT, tokenize.ENDMARKER}
    comments, code = set(), set()
    for token in tokenize.generate_tokens(io.StringIO(text(file)).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in skipped:
            code |= {*range(token.start[0], token.end[0] + 1)}
    code -= docstrings(file)
    return len(comments - code), len(code)


@pytest.mark.parametrize("file", FILES)
def test_no_file_is_too_long(file):
    lines = len(text(file).splitlines())
    assert lines <= LONGEST_FILE


@pytest.mark.parametrize("file", FILES)
def test_no_class_has_too_many_methods(file):
    counts = {node.name: sum(isinstance(part, FUNCTIONS) for part in node.body) for node in nodes(file, ast.ClassDef)}
    assert {name: count for name, count in counts.items() if count > MOST_METHODS} == {}


@pytest.mark.parametrize("file", FILES)
def test_no_function_is_too_long_without_a_reason(file):
    long = [node for node in nodes(file, *FUNCTIONS) if length(node) > LONGEST_FUNCTION]
    assert {node.name: length(node) for node in long if "lines" not in (ast.get_docstring(node) or "")} == {}


@pytest.mark.parametrize("file", NUMERICAL)
def test_numerical_code_has_comments(file):
    comments, code = comments_and_code(file)
    assert comments >= LEAST_COMMENTS * code, f"{comments} lines of comments for {code} of code"
