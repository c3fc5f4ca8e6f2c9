"""The base of every value that flows through the toolkit: frozen, checked, and the same after a trip through JSON."""

import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from finetune.errors import RecipeError, nearest_names


class FrozenModel(BaseModel):
    """A frozen value; change it with `changed`, save it with `save`, read it with `load`."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        validate_by_name=True,
        validate_by_alias=True,
    )

    def changed(self, **changes: Any) -> Self:  # noqa: ANN401  (any field may change; validation holds the types)
        """Return a copy with `changes` made and checked."""
        computed = set(type(self).model_computed_fields)
        return self.parse({**self.model_dump(exclude=computed), **changes}, origin=type(self).__name__)

    def save(self, path: Path) -> None:
        """Write the value as readable JSON, whole or not at all."""
        partial = path.with_name(path.name + ".partial")
        partial.write_text(
            json.dumps(self.model_dump(mode="json", by_alias=True), indent=2, ensure_ascii=False) + "\n", "utf-8"
        )
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a value that `save` wrote and a person may have edited.

        Raises:
            RecipeError: no such file, no JSON, an unknown key or a wrong value, named with its key.
        """
        try:
            content = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise RecipeError(f"there is no file {path}; expected the {cls.__name__.lower()} of a run") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path} is not valid JSON: {error}") from None
        return cls.parse(content, origin=str(path))

    @classmethod
    def parse(cls, content: object, origin: str) -> Self:
        """Return `content` as a checked value; `origin` names its source in errors.

        Raises:
            RecipeError: one sentence about the first wrong key.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise RecipeError(f"{origin}: {explain(cls, error)}") from None
        except RecipeError as error:  # of a value that explains itself
            raise RecipeError(f"{origin}: {error}") from None


def explain(cls: type[BaseModel], error: ValidationError) -> str:
    """Return one sentence about the first thing that is wrong with a `cls`, unknown keys before values."""
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
        return message  # a rule over several keys, which names them itself
    return f"{key}: {message}, but {problem['input']!r} was given"


def _owner(cls: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """Return the model class that holds the key at `location`, or None where it is inside a list."""
    for part in location:
        field = cls.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return None
        cls = annotation
    return cls
