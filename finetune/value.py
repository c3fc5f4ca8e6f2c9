"""Define the base class of all values that the toolkit passes between its parts and saves.

A value is frozen, its fields are checked, and reading its JSON file gives an equal value. Some fields have an alias.
Files use the alias as the key, so that files of earlier versions can be read; Python code uses the attribute's name.
Keys that earlier versions wrote and that no longer exist are listed in `removed_keys` and ignored.
"""

import json
import reprlib
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from finetune.errors import FinetuneError, RecipeError, nearest_names
from finetune.files import write_text


def is_none(value: object) -> bool:
    """Return whether a field has no value, so that files of data without it stay as they were."""
    return value is None


def is_unset(value: object) -> bool:
    """Return whether a field is false or 0, so that files of data that does not need it stay as they were."""
    return not value


class FrozenModel(BaseModel):
    """A frozen value with checked fields. `changed` returns a copy with other values, `save` writes a file, `load`
    reads it."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        validate_by_name=True,
        validate_by_alias=True,
    )

    removed_keys: ClassVar[frozenset[str]] = frozenset()
    """Keys in files of earlier versions that are dropped when a file is read."""

    @model_validator(mode="before")
    @classmethod
    def _drop_removed_keys(cls, content: object) -> object:
        if not cls.removed_keys or not isinstance(content, dict):
            return content
        return {key: value for key, value in content.items() if key not in cls.removed_keys}

    def changed(self, **changes: Any) -> Self:  # noqa: ANN401  (any field may change; validation holds the types)
        """Return a copy with new values for some fields, given by attribute name; the copy is checked again.

        Raises:
            RecipeError: a field is unknown or has a wrong value; one sentence names it.
        """
        unknown = sorted(changes.keys() - type(self).model_fields.keys())
        if unknown:
            known = nearest_names(unknown[0], type(self).model_fields)
            raise RecipeError(f"{type(self).__name__}: unknown field '{unknown[0]}'{known}")
        computed = set(type(self).model_computed_fields)
        return self.parse({**self.model_dump(exclude=computed), **changes}, origin=type(self).__name__)

    @classmethod
    def structure(cls) -> str:
        """Return the names and the types of all fields as a text, for cache keys; their documentation is left out."""
        return json.dumps(_without_texts(cls.model_json_schema()), sort_keys=True)

    def save(self, path: Path, durable: bool = True) -> None:
        """Write the value as indented JSON; the file appears whole or not at all.

        Args:
            path: the file.
            durable: whether to wait until the disk has it.
        """
        text = json.dumps(self.model_dump(mode="json", by_alias=True), indent=2, ensure_ascii=False) + "\n"
        write_text(path, text, durable)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return the value in a file that `save` wrote and a person may have edited.

        Raises:
            RecipeError: there is no such file, it is not JSON, or a key is unknown or has a wrong value.
        """
        if not path.exists():
            raise RecipeError(f"there is no file {path}; expected the {cls.__name__.lower()} of a run")
        content = read_json(path)
        return cls.parse(content, origin=str(path))

    @classmethod
    def parse(cls, content: object, origin: str, kind: type[FinetuneError] = RecipeError) -> Self:
        """Return `content` as a checked value.

        Args:
            content: keys and values, as read from a file.
            origin: source of the content, such as a path, for the error.
            kind: type of the error.

        Raises:
            FinetuneError: one sentence about the first wrong key; a RecipeError unless `kind` says otherwise.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise kind(f"{origin}: {explain(cls, error)}") from None
        except RecipeError as error:  # from a class whose constructor explains its errors itself
            raise kind(f"{origin}: {error}") from None


def read_json(path: Path, kind: type[FinetuneError] = RecipeError) -> Any:  # noqa: ANN401  (JSON holds anything)
    """Return the content of a JSON file.

    Args:
        path: the file.
        kind: type of the error.

    Raises:
        FileNotFoundError: there is no such file.
        FinetuneError: the file cannot be read or is not JSON; of the given kind.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except RecursionError:
        raise kind(f"{path} is not valid JSON: it is nested too deeply") from None
    except ValueError as error:  # also of bytes that are not UTF-8, and of numbers that are too long
        raise kind(f"{path} is not valid JSON: {error}") from None
    except OSError as error:
        raise kind(f"{path} cannot be read: {error.strerror}") from None


def _without_texts(schema: object) -> object:
    """Return a JSON schema without titles and descriptions."""
    if isinstance(schema, list):
        return [_without_texts(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    # A field called `title` has a schema, which is not a text.
    texts = {key for key in ("title", "description") if isinstance(schema.get(key), str)}
    return {key: _without_texts(part) for key, part in schema.items() if key not in texts}


def explain(cls: type[BaseModel], error: ValidationError) -> str:
    """Return one sentence about the first problem that the validation of a `cls` found; unknown keys come before wrong
    values.

    The sentence uses the input's own names of the keys: those of the file, or those of the attributes in Python.
    """
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problem = problems[0]
    key = ".".join(str(part) for part in problem["loc"]) or cls.__name__.lower()
    if problem["type"] == "extra_forbidden":
        owner = _owner(cls, problem["loc"][:-1])
        known = [field.alias or name for name, field in owner.model_fields.items()] if owner else []
        return f"unknown key '{key}'{nearest_names(str(problem['loc'][-1]), known)}"
    if problem["type"] == "missing":
        return f"the key '{key}' is missing"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if not problem["loc"]:
        return message  # from a rule over several keys, whose sentence names them
    return f"{key}: {message}, but {_shortened(problem['input'])} was given"


def _shortened(value: object) -> str:
    """Return a value as Python writes it, without the middle of long texts and the ends of long lists."""
    short = reprlib.Repr()
    short.maxstring, short.maxlong, short.maxother, short.maxlist, short.maxtuple = 100, 40, 100, 8, 8
    try:
        return short.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return "a number of too many digits"


def _owner(cls: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """Return the model class that holds the key at `location`, or None if the key is inside a list."""
    for part in location:
        fields = {alias: field for name, field in cls.model_fields.items() for alias in (name, field.alias)}
        annotation = fields[part].annotation if part in fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return None
        cls = annotation
    return cls
