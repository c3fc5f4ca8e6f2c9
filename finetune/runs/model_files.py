"""Write and read a trained network: the files `model.safetensors` and `config.json`, in timm's format."""

import copy
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from timm.models import save_for_hf

from finetune.decide.plan import Plan
from finetune.device import best_device, to_layout
from finetune.errors import RunFolderError
from finetune.files import PARTIAL, errors_named, replacing
from finetune.network.backbone import input_arguments
from finetune.network.stem import build_network
from finetune.predict.model import TrainedModel
from finetune.reading import AS_STORED
from finetune.runs.places import resume_command
from finetune.value import read_json

WEIGHTS, CONFIG = "model.safetensors", "config.json"
"""Names that timm gives to its two files."""

LARGEST_SIDE = 4096
"""Largest image size of a network that is read, in pixels: larger position embeddings would fill the memory."""


def write_network(model: TrainedModel, folder: Path) -> None:
    """Write a trained network, its class names, its preprocessing and its temperature into a folder.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` reads the files, too.
    """
    preprocessing = model.plan.preprocessing
    # How the values of deep images become 8-bit channels, which timm leaves to its user.
    reading = {} if preprocessing.reading == AS_STORED else {"reading": preprocessing.reading.model_dump(mode="json")}
    side, channels = preprocessing.image_size, preprocessing.num_channels
    # The format has neither devices nor memory layouts. The copy is converted; the model itself stays unchanged.
    network = copy.deepcopy(model.network).cpu().to(memory_format=torch.contiguous_format)
    partial = folder / f"model{PARTIAL}"  # timm's function writes two files with names of its own
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    with errors_named(folder / WEIGHTS):
        save_for_hf(
            network,
            str(partial),
            model_config={
                "label_names": list(model.class_names),
                "temperature": model.temperature,
                **reading,
                **({} if model.thresholds is None else {"thresholds": list(model.thresholds)}),
            },
            model_args=input_arguments(model.plan.model, side, channels) or None,
            safe_serialization=True,
            data_config={
                "input_size": (channels, side, side),
                "crop_pct": side / preprocessing.shorter_side,
                "crop_mode": "center",
                "interpolation": preprocessing.interpolation,
                "mean": preprocessing.mean,
                "std": preprocessing.std,
            },
        )
    # safetensors makes its file readable for the owner alone; this file gets the permissions of the other one.
    shutil.copymode(partial / CONFIG, partial / WEIGHTS)
    for name in (WEIGHTS, CONFIG):
        with replacing(folder / name) as file:
            (partial / name).rename(file)
    shutil.rmtree(partial, ignore_errors=True)


def read_network(folder: Path, plan: Plan) -> TrainedModel:
    """Return the network that `write_network` wrote, ready to predict.

    Args:
        folder: a run folder.
        plan: the plan of the run.

    Raises:
        RunFolderError: a file is missing, because the run is not finished, or damaged.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).exists():
            raise RunFolderError(
                f"the run in {folder} is not finished ({name} is missing); continue it: {resume_command(folder)}"
            )
    config = StoredConfig.read(folder / CONFIG)
    state = _read_weights(folder / WEIGHTS)
    if not 0 < plan.preprocessing.image_size <= LARGEST_SIDE:
        raise RunFolderError(
            f"{folder / 'plan.json'}: preprocessing.image_size must be 1 to {LARGEST_SIDE} px, but is "
            f"{plan.preprocessing.image_size}"
        )
    try:
        arguments = input_arguments(plan.model, plan.preprocessing.image_size, plan.preprocessing.num_channels)
        network = build_network(plan.model, num_classes=len(config.label_names), **arguments)
    except Exception as error:  # timm's networks raise exceptions of any type
        raise RunFolderError(
            f"{folder / 'plan.json'}: the network {plan.model} cannot be built for images of "
            f"{plan.preprocessing.image_size} px: {_one_line(error)}"
        ) from None
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise RunFolderError(
            f"{folder / WEIGHTS} does not hold the weights of {plan.model} for the {len(config.label_names)} classes "
            f"of {CONFIG}: {_one_line(error)}"
        ) from None
    network = network.to(best_device()).eval()
    to_layout(network, plan.forward.layout)
    if plan.has_sets != (config.thresholds is not None):
        raise RunFolderError(
            f"{folder / CONFIG} and plan.json do not agree whether an image has one label: the metric is {plan.metric}"
        )
    return TrainedModel(
        network=network,
        plan=plan,
        class_names=config.label_names,
        temperature=config.temperature,
        thresholds=config.thresholds,
    )


@dataclass(frozen=True, slots=True)
class StoredConfig:
    """What a prediction needs of timm's `config.json`."""

    label_names: tuple[str, ...]
    """Names of the classes."""
    temperature: float
    """Divisor of the scores before the softmax."""
    thresholds: tuple[float, ...] | None = None
    """Probability from which each label is given; None: each image has one label."""

    @classmethod
    def read(cls, path: Path) -> "StoredConfig":
        """Return the checked content of a file.

        Raises:
            RunFolderError: the file is not JSON, or a value is missing or impossible.
        """
        config = read_json(path, RunFolderError)
        if not isinstance(config, dict):
            raise RunFolderError(f"{path} is not the configuration of a network; expected keys and values")
        names, temperature = config.get("label_names"), config.get("temperature")
        if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
            raise RunFolderError(
                f"{path}: label_names must be the names of two or more classes, but are {names!r:.100}"
            )
        if len(set(names)) < len(names):
            raise RunFolderError(f"{path}: label_names has a class twice")
        if not isinstance(temperature, (int, float)) or temperature is True or not 0 < temperature < math.inf:
            raise RunFolderError(f"{path}: temperature must be a positive number, but is {temperature!r:.100}")
        thresholds = config.get("thresholds")
        if thresholds is not None and not _are_shares(thresholds, len(names)):
            raise RunFolderError(
                f"{path}: thresholds must be a number from 0 to 1 for each class, but are {thresholds!r:.100}"
            )
        return cls(
            label_names=tuple(names),
            temperature=float(temperature),
            thresholds=None if thresholds is None else tuple(map(float, thresholds)),
        )


def _are_shares(values: object, count: int) -> bool:
    """Return whether a value is a list of `count` numbers from 0 to 1."""
    if not isinstance(values, list) or len(values) != count:
        return False
    return all(isinstance(value, (int, float)) and value is not True and 0.0 <= value <= 1.0 for value in values)


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file.

    Raises:
        RunFolderError: the file is damaged, or a tensor has infinite values or NaN.
    """
    try:
        state: dict[str, torch.Tensor] = load_file(path)
    except Exception as error:  # safetensors' own type, OSError, ValueError of a wrong shape, ...
        raise RunFolderError(f"{path} is damaged: {_one_line(error)}") from None
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise RunFolderError(f"{path} is damaged: the tensor {name} has infinite values or NaN")
    return state


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
