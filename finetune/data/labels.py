"""Read class names: missing ones are missing, and spellings that look the same are one class."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from finetune.errors import DataError
from finetune.names import as_unicode


def label_text(value: object) -> str:
    """Return a label as a class name, without white space around it, in Unicode's composed form (NFC), and with bytes
    that are not UTF-8 escaped; "" if it is missing (None, NaN, an empty text)."""
    # NaN is the only value that differs from itself; pandas' NA cannot be compared.
    if value is None or type(value).__name__ in {"NAType", "NaTType"} or value != value:
        return ""
    return as_unicode(unicodedata.normalize("NFC", str(value)).strip())


def describe_merged(labels: Iterable[object]) -> list[str]:
    """Return a sentence for each class whose name is spelt in several ways."""
    spellings: dict[str, set[str]] = defaultdict(set)
    for label in labels:
        if name := label_text(label):
            spellings[name].add(str(label))
    return [
        f"{len(found)} spellings of one class, which differ in {_difference(found)} alone, are merged as {name!r}"
        for name, found in sorted(spellings.items())
        if len(found) > 1
    ]


def read_labels(values: Sequence[Any], name: str, declared: bool = False) -> list[str]:
    """Return the texts in a column of labels called `name`; "" where a label is missing.

    Args:
        values: the column.
        name: name of the column, for the error.
        declared: whether the data set lists its classes, so that a name with a comma is surely one label.

    Raises:
        DataError: an image has several labels; the sentence says how to ask for that.
    """
    labels = ["" if not label_text(value) else str(value) for value in values]
    if not declared:
        _refuse_joined({label_text(label) for label in labels} - {""}, name)
    return labels


def is_list(value: object) -> bool:
    """Return whether a label is a list, an array or the like."""
    return not isinstance(value, (str, bytes)) and getattr(value, "shape", None) != () and hasattr(value, "__len__")


def _refuse_joined(known: set[str], name: str) -> None:
    """Raise a DataError if a label is made of others.

    Names with a comma are common ("maillot, tank suit", next to "maillot"): all parts have to be classes of their own.
    """
    for label in sorted(known):
        by_comma = [part.strip() for part in label.split(",")]
        by_others = [part.strip() for part in re.split(r"[|;]", label)]
        if (len(by_comma) > 1 and known.issuperset(by_comma)) or (
            len(by_others) > 1 and not known.isdisjoint(by_others)
        ):
            delimiter = "," if len(by_others) == 1 else next(each for each in "|;" if each in label)
            raise DataError(
                f"column '{name}' holds several labels per image ({label!r}); to train on sets of labels, name what "
                f"stands between them: --set 'columns.delimiter=\"{delimiter}\"'"
            )


def _difference(spellings: set[str]) -> str:
    """Return what tells spellings of one name apart."""
    if len({spelling.strip() for spelling in spellings}) == 1:
        return "white space"
    if len({unicodedata.normalize("NFC", spelling) for spelling in spellings}) == 1:
        return "Unicode normalisation"
    return "white space and Unicode normalisation"
