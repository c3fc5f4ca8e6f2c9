"""Write the generated parts of the docs, and run the commands of the tutorial.

    python -m experiments.write_reference               # recipe keys, command line, keys of files, tree of modules
    python -m experiments.write_reference --tutorial    # also the output that docs/tutorial.md shows

Tests compare the pages with the code, and the tutorial's output with what its commands print.
"""

import argparse
import ast
import inspect
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from typer.models import ArgumentInfo, OptionInfo, ParameterInfo

from experiments.pages import mark_of, with_written

ROOT = Path(__file__).resolve().parent.parent
"""Folder of the repository."""

PACKAGE = ROOT / "finetune"
"""Folder of the package."""

REFERENCE = ROOT / "docs" / "reference"
"""Folder of the reference pages."""

ARCHITECTURE = ROOT / "docs" / "architecture.md"
"""Page with the tree of modules."""

TUTORIAL = ROOT / "docs" / "tutorial.md"
"""Page with commands, each with its output."""

OUTPUT = re.compile(r"^```bash\n(?P<commands>.*?)^```\n(?P<between>.*?)(?=^```bash\n|\Z)", re.MULTILINE | re.DOTALL)
"""A block of commands, and the text up to the next one."""

SHOWN = re.compile(r"^```text\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
"""A block with the output of commands."""

Schema = dict[str, Any]
"""A JSON schema, or a part of one."""


def recipe_keys() -> str:
    """Return the page of the recipe's keys."""
    from finetune.recipe import Recipe

    schema = Recipe.model_json_schema()
    lines = [
        "# Recipe keys",
        "",
        "<!-- written by experiments.write_reference from finetune.Recipe -->",
        "",
        "A recipe is a YAML file for `--recipe`; its keys are also arguments of `finetune.Recipe`. Any key can be set",
        "on the command line with `--set section.key=value`. A key that is left out is decided from the",
        "measurements.",
        "",
        "```yaml",
        "data: ./imgs",
        "strategy: partial",
        "training:",
        "  learning_rate: 1.0e-3",
        "```",
        "",
        "`finetune schema` prints the JSON schema, which editors use to complete and check recipes.",
        "",
        "## Top level",
        "",
    ]
    own = {name: part for name, part in schema["properties"].items() if _section(part) is None}
    lines += _key_table(own, schema)
    for name, part in schema["properties"].items():
        section = _section(part)
        if section is not None:
            definition = schema["$defs"][section]
            lines += ["", f"## `{name}`", "", _one_line(definition.get("description", "")), ""]
            lines += _key_table(definition["properties"], schema, f"{name}.")
    return "\n".join(lines) + "\n"


def command_line() -> str:
    """Return the page of the commands and their options."""
    from finetune.cli import app

    about = app.registered_callback
    lines = [
        "# Command line",
        "",
        "<!-- written by experiments.write_reference from finetune.cli -->",
        "",
        _sentence(about.callback if about else None),
        "From a checkout, `python scripts/finetune.py` is the same command; without the name of a command it trains.",
        "Every command has `--help`.",
        "",
        *(_options(about.callback) if about else []),
    ]
    for command in app.registered_commands:
        if command.hidden or command.callback is None:
            continue
        name = command.name or command.callback.__name__.replace("_", "-")
        arguments = _arguments(command.callback)
        lines += ["", f"## `{' '.join(['finetune', name, *arguments])}`", "", _sentence(command.callback), ""]
        if arguments:
            lines += ["| argument | meaning |", "|---|---|"]
            lines += [f"| `{argument}` | {meaning} |" for argument, meaning in arguments.items()]
            lines += [""]
        lines += _options(command.callback)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip("\n") + "\n"


def file_keys() -> list[str]:
    """Return the tables of the keys of a run's files."""
    from finetune.decide.choice import Choice
    from finetune.decide.evidence import Evidence
    from finetune.decide.plan import Plan
    from finetune.runs.folder import Averaged, RunMetrics
    from finetune.runs.run_state import RunState

    files: dict[str, type[BaseModel]] = {
        "evidence.json": Evidence,
        "choice.json": Choice,
        "plan.json": Plan,
        "metrics.json": RunMetrics,
        "state.json": RunState,
        "ensemble.json": Averaged,
    }
    lines = []
    for name, model in files.items():
        schema = model.model_json_schema(by_alias=True, mode="serialization")
        lines += ["", f"### {name}", "", _one_line(schema.get("description", "")), "", "| key | values | meaning |"]
        lines += ["|---|---|---|", *_rows(schema, schema, "")]
    return lines


def module_tree() -> list[str]:
    """Return a table for each folder of the package: its modules, each with the first sentence of its docstring."""
    lines = []
    for folder in [PACKAGE, *sorted(path.parent for path in PACKAGE.rglob("*/__init__.py"))]:
        name = "/".join(folder.relative_to(ROOT).parts)
        modules = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
        lines += ["", f"### `{name}/`", "", _first_sentence(folder / "__init__.py"), ""]
        lines += ["| module | what it does |", "|---|---|"]
        lines += [f"| `{path.name}` | {_cell(_first_sentence(path))} |" for path in modules]
    return lines


def pages() -> dict[Path, str]:
    """Return the text of each generated page, by its path."""
    return {
        REFERENCE / "recipe-keys.md": recipe_keys(),
        REFERENCE / "command-line.md": command_line(),
        REFERENCE / "run-folder.md": _with_generated(REFERENCE / "run-folder.md", file_keys()),
        ARCHITECTURE: _with_generated(ARCHITECTURE, module_tree()),
    }


def run_tutorial(folder: Path) -> list[tuple[str, str]]:
    """Run the tutorial's commands in `folder`, and return the output of each block as the page shows it and as printed.

    Raises:
        subprocess.CalledProcessError: a command failed.
    """
    shell = f'finetune() {{ "{sys.executable}" "{ROOT / "scripts" / "finetune.py"}" "$@"; }}\n'
    shell += f'python() {{ "{sys.executable}" "$@"; }}\n'
    found = []
    for block in OUTPUT.finditer(TUTORIAL.read_text("utf-8")):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", shell + block["commands"]],
            cwd=folder,
            env={**os.environ, "COLUMNS": "100", "TERM": "dumb"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
        shown = SHOWN.match(block["between"].lstrip("\n"))
        found.append((shown[1] if shown else "", done.stdout))
    return found


def write_tutorial() -> None:
    """Replace the output in the tutorial by the output that its commands print."""
    with tempfile.TemporaryDirectory() as folder:
        printed = iter([now for _, now in run_tutorial(Path(folder))])

    def renewed(block: re.Match[str]) -> str:
        own = "\n".join(line.rstrip() for line in next(printed).splitlines()).strip("\n")
        between = block["between"]
        if SHOWN.match(between.lstrip("\n")):
            between = SHOWN.sub(lambda _: f"```text\n{own}\n```\n", between, count=1)
        return f"```bash\n{block['commands']}```\n{between}"

    TUTORIAL.write_text(OUTPUT.sub(renewed, TUTORIAL.read_text("utf-8")), "utf-8")


def _with_generated(page: Path, lines: Sequence[str]) -> str:
    """Return the text of a page with `lines` between its marks."""
    return with_written(page.read_text("utf-8"), mark_of("write_reference"), "\n".join([*lines, ""]))


def _first_sentence(module: Path) -> str:
    """Return the first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(module.read_text("utf-8"))) or ""
    return re.split(r"(?<=\.)(?<!et al\.)\s", _one_line(text.split("\n\n")[0]))[0]


def _section(part: Schema) -> str | None:
    """Return the name of the section that a key holds, or None for a plain key."""
    return str(part["$ref"]).rpartition("/")[2] if "$ref" in part else None


def _key_table(properties: dict[str, Schema], schema: Schema, prefix: str = "") -> list[str]:
    """Return the table of the keys of one section."""
    rows = [
        f"| `{prefix}{key}` | {_values(part, schema)} | {_cell(part.get('description', ''))} |"
        for key, part in properties.items()
    ]
    return ["| key | values | meaning |", "|---|---|---|", *rows]


def _rows(part: Schema, schema: Schema, prefix: str) -> Iterator[str]:
    """Yield a row for each key of an object, and for the keys of the objects in it."""
    for key, own in part["properties"].items():
        nested, suffix = _object_in(own, schema)
        if nested is None:
            yield f"| `{prefix}{key}` | {_values(own, schema)} | {_cell(own.get('description', ''))} |"
        else:
            meaning = own.get("description") or nested.get("description", "")
            yield f"| `{prefix}{key}` | {'list' if suffix else 'section'} | {_cell(meaning)} |"
            yield from _rows(nested, schema, f"{prefix}{key}{suffix}.")


def _object_in(part: Schema, schema: Schema) -> tuple[Schema | None, str]:
    """Return the object that a key holds, one or a list of them, and "[]" for a list; (None, "") for plain values."""
    items = part.get("items", {})
    for inner, suffix in ((part, ""), (items if isinstance(items, dict) else {}, "[]")):
        for option in [inner, *inner.get("anyOf", ())]:
            if "$ref" in option:
                found = schema["$defs"][_section(option)]
                if "properties" in found:
                    return found, suffix
    return None, ""


def _values(part: Schema, schema: Schema) -> str:
    """Return the values that a key takes, in words."""
    if "$ref" in part:
        return _values(schema["$defs"][_section(part)], schema)
    if "anyOf" in part:
        options = [_values(option, schema) for option in part["anyOf"] if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(options))
    if "enum" in part:
        return ", ".join(f"`{value}`" for value in part["enum"])
    if "const" in part:
        return f"`{part['const']}`"
    if part.get("type") == "array":
        if "prefixItems" in part:
            return "two numbers"
        return "list"
    names = {"integer": "whole number", "number": "number", "boolean": "`true`, `false`", "string": "text"}
    return names.get(part.get("type", ""), "mapping") + _limits(part)


def _limits(part: Schema) -> str:
    words = (
        ("exclusiveMinimum", "above"),
        ("minimum", "from"),
        ("exclusiveMaximum", "below"),
        ("maximum", "up to"),
    )
    limits = [f"{word} {_number(part[key])}" for key, word in words if key in part]
    return " " + ", ".join(limits) if limits else ""


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _parameters(callback: Callable[..., Any] | None) -> Iterator[tuple[str, object, ParameterInfo, bool]]:
    """Yield the name, the type and the declaration of each parameter of a command, and whether it is required."""
    parameters = inspect.signature(callback, eval_str=True).parameters if callback else {}
    for name, parameter in parameters.items():
        annotation, *declared = get_args(parameter.annotation) or (parameter.annotation,)
        for one in declared:
            if isinstance(one, ParameterInfo):
                yield name, annotation, one, parameter.default is inspect.Parameter.empty


def _arguments(callback: Callable[..., Any]) -> dict[str, str]:
    """Return the meaning of each argument of a command, by its name on the command line."""
    return {
        name.upper() + ("..." if get_origin(annotation) is list else ""): _cell(declared.help or "")
        for name, annotation, declared, _ in _parameters(callback)
        if isinstance(declared, ArgumentInfo)
    }


def _options(callback: Callable[..., Any] | None) -> list[str]:
    """Return the table of a command's options."""
    rows = []
    for name, annotation, declared, is_required in _parameters(callback):
        if isinstance(declared, OptionInfo) and not declared.hidden:
            names = declared.param_decls or ("--" + name.strip("_").replace("_", "-"),)
            meaning = _cell(declared.help or "") + (" Required." if is_required else "")
            rows.append(f"| {', '.join(f'`{own}`' for own in names)} | {_option_value(annotation)} | {meaning} |")
    return ["| option | value | meaning |", "|---|---|---|", *rows] if rows else []


def _option_value(annotation: object) -> str:
    """Return the values that an option takes, in words; "" for a switch."""
    inner = [part for part in get_args(annotation) if part is not type(None)]
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if inner:
        return _option_value(inner[0])
    words = {bool: "", int: "whole number", float: "number", Path: "path", str: "text"}
    return words[annotation] if isinstance(annotation, type) and annotation in words else "text"


def _sentence(callback: Callable[..., Any] | None) -> str:
    """Return the first paragraph of a docstring."""
    return _one_line((inspect.getdoc(callback) or "").split("\n\n")[0])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    """Return a text as a cell of a Markdown table."""
    return _one_line(text).replace("|", "\\|").replace("<", "&lt;")


def main(words: Sequence[str] | None = None) -> None:
    """Write the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tutorial", action="store_true", help="run the tutorial's commands, about a minute")
    arguments = parser.parse_args(words)
    for path, text in pages().items():
        path.write_text(text, "utf-8")
    if arguments.tutorial:
        write_tutorial()


if __name__ == "__main__":
    main()
