"""Parse the text of a recipe, and the texts of its keys; a text that is not one of them raises a ValueError."""

import re
from typing import Any

import yaml

_ENSEMBLE = re.compile(r"(seeds|snapshots):([2-9]|1\d)|folds|backbones|auto")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h)?")
_SECONDS = {None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: object) -> object:
    """Return the duration, in seconds, that a text such as "90", "90s", "10m" or "1.5h" gives; return any other object
    unchanged.

    >>> parse_duration("10m")
    600.0
    """
    if isinstance(text, str):
        match = _DURATION.fullmatch(text.strip())
        if not match:
            raise ValueError("expected a duration like 90s, 10m or 1.5h")
        return float(match[1]) * _SECONDS[match[2]]
    return text


def parse_ensemble(text: object) -> object:
    """Return the object unchanged, if it names an ensemble or is not a text.

    >>> parse_ensemble("seeds:3")
    'seeds:3'
    """
    if isinstance(text, str) and not _ENSEMBLE.fullmatch(text):
        raise ValueError("expected seeds:N or snapshots:N with 2 to 19 for N, folds, backbones, or auto")
    return text


def parse_groups(text: object) -> object:
    """Return the object unchanged, if it is a rule for groups or not a text.

    >>> parse_groups(r"(speaker\\d+)")
    '(speaker\\\\d+)'
    """
    if not isinstance(text, str) or text in {
        "auto",
        "none",
        "column",
        "folder",
        "exif:camera",
        "exif:date",
        "exif:place",
    }:
        return text
    if text.lower().endswith((".csv", ".tsv", ".parquet")):
        return text
    try:
        captured = re.compile(text.removeprefix("blocks:")).groups
    except re.error as error:
        raise ValueError(f"the pattern is not a regular expression ({error})") from None
    if captured != 1:
        raise ValueError(
            "expected auto, none, folder, a table with the columns path and group, or a pattern with one group in "
            "parentheses, such as (speaker\\d+)"
        )
    return text


def parse_model_names(text: object) -> object:
    """Return the names in a text with commas as a tuple; return any other object unchanged.

    >>> parse_model_names("resnet18, resnet34")
    ('resnet18', 'resnet34')
    """
    if isinstance(text, str) and "," in text:
        return tuple(name.strip() for name in text.split(",") if name.strip())
    return text


def parse_names(text: object) -> object:
    """Return the names in a text as a tuple; return any other object unchanged.

    >>> parse_names("tensorboard,mlflow")
    ('tensorboard', 'mlflow')
    """
    if isinstance(text, str):
        return tuple(name.strip() for name in text.split(",") if name.strip())
    return text


class _Loader(yaml.SafeLoader):
    """A loader of plain values without aliases: a short text with aliases can stand for more values than memory
    holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse an alias.

        Raises:
            YAMLError: the text has one.
        """
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*), which recipes do without; write the value out")
        return super().compose_node(parent, index)


def read_yaml(text: str) -> Any:  # noqa: ANN401  (YAML holds anything)
    """Return the plain values in a text.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: the text is not YAML.
    """
    return yaml.load(text, Loader=_Loader)  # a subclass of the safe loader


def read_numbers(content: dict[str, Any]) -> dict[str, Any]:
    """Return `content` with texts such as "2e-5" as numbers, because YAML 1.1 reads an exponent without a dot as
    text."""
    read: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            read[key] = read_numbers(value)
        elif isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
            read[key] = float(value)
        else:
            read[key] = value
    return read
