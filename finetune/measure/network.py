"""Load the network that is measured, and check that it can be trained before any image is decoded."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

from finetune.data import ImageSplits, native_size
from finetune.data.decoding import undecodable
from finetune.decide.families import Family, family_of
from finetune.decide.planning import refuse_colour_policy
from finetune.decide.preprocessing import Preprocessing, choose_image_size
from finetune.device import best_device
from finetune.errors import ModelError, RecipeError
from finetune.network.architecture import architecture_of
from finetune.network.backbone import (
    check_forward,
    input_arguments,
    is_built_for_one_size,
    native_preprocessing,
    network_image_size,
)
from finetune.network.head import find_head, give_head, has_head
from finetune.network.stem import build_network
from finetune.network.weights import create_pretrained, explain_model, licence_of, resolve_model
from finetune.recipe import Recipe

SIZES_READ = 200
"""Approximate number of images whose native size is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredNetwork:
    """The description of the network that is measured."""

    name: str
    """timm's name of the network."""
    reason: str
    """Reason why `auto` stands for this network, in words; empty if the network was asked for."""
    source: str
    """Source of the network's weights, in words."""
    source_classes: int
    """Number of outputs of the pretrained classifier, one linear layer; 0 if there is none."""
    has_source_head: bool
    """Whether the weights include a pretrained head of any kind."""
    takes_any_size: bool
    """Whether the network can be trained on smaller images than those that it predicts from."""
    preprocessing: Preprocessing
    """Preprocessing at the image size of the training."""
    size_reason: str
    """Reason for the image size of the training, in words."""
    native_side: int
    """Median shorter side of the stored images, in pixels."""
    family: Family
    """Family of the network, which sets its learning rates."""
    licence: str
    """Licence of the pretrained weights, as timm states it; empty if it is not known."""


def load_network(recipe: Recipe, splits: ImageSplits) -> tuple[Any, MeasuredNetwork]:
    """Return the recipe's network with its original head, on its device and in evaluation mode, and its description."""
    device = best_device()
    if len(recipe.models) > 1:
        raise RecipeError(
            f"networks are measured one at a time, and {len(recipe.models)} were given ({', '.join(recipe.models)}); "
            f"finetune.run chooses one of them"
        )
    has_accelerator = device.type != "cpu"
    name = resolve_model(recipe.models[0], has_accelerator)
    native_side = _native_side(splits)
    size, reason = _image_size(recipe, name, native_side, has_accelerator)
    refuse_colour_policy(recipe, splits.reading)
    num_channels = splits.reading.num_channels
    network, report = _load(name, recipe, size, num_channels)
    has_source_head = recipe.strategy != "scratch" and has_head(network)
    source = find_head(network).single if has_source_head else None
    if not has_head(network):
        give_head(network, len(splits.class_names))
    network = network.to(device).eval()
    # A network that cannot be trained is refused here, before any image is decoded.
    check_forward(network, name, size, num_channels)
    preprocessing = native_preprocessing(network, size, splits.reading)
    return network, MeasuredNetwork(
        name=name,
        reason=explain_model(recipe.models[0], name, has_accelerator),
        source=str(report),
        source_classes=source.out_features if source is not None else 0,
        has_source_head=has_source_head,
        takes_any_size=not is_built_for_one_size(name) and takes(network, name, preprocessing.smaller()),
        preprocessing=preprocessing,
        size_reason=reason,
        native_side=native_side,
        family=_family(network, name, has_source_head, from_file=recipe.weights is not None),
        licence=licence_of(name) if recipe.weights is None and recipe.strategy != "scratch" else "",
    )


def _family(network: nn.Module, name: str, has_source_head: bool, from_file: bool) -> Family:
    """Return the family of a network; the tag of weights from a file is not known."""
    base, _, tag = name.partition(".")
    config = timm.get_pretrained_cfg(name)
    known = "" if from_file or config is None else (tag or config.tag or "")
    return family_of(architecture_of(network), base, known, has_source_head)


def takes(network: nn.Module, name: str, preprocessing: Preprocessing) -> bool:
    """Return whether the network takes images of this side and these channels; attention in blocks needs some multiple
    of a side."""
    try:
        check_forward(network, name, preprocessing.image_size, preprocessing.num_channels)
    except ModelError:
        return False
    return True


def _image_size(recipe: Recipe, name: str, native_side: int, has_accelerator: bool) -> tuple[int, str]:
    """Return the side of the network's input in pixels, and the reason for it."""
    if recipe.image_size is not None:
        return recipe.image_size, f"{recipe.image_size} px was asked for"
    side = network_image_size(name)
    if is_built_for_one_size(name):
        return side, f"{side} px, the size that the network is built for"
    return choose_image_size(native_side, side, has_accelerator)


def _load(name: str, recipe: Recipe, size: int, num_channels: int) -> tuple[Any, object]:
    """Return the network with its original head, and the source of its weights."""
    arguments = input_arguments(name, size, num_channels)
    if recipe.strategy == "scratch":
        torch.manual_seed(recipe.seed)
        return build_network(name, **arguments), "random numbers: scratch was asked for"
    return create_pretrained(name, recipe.weights, **arguments)


def _native_side(splits: ImageSplits) -> int:
    """Return the median shorter side of a sample of the training images, in pixels."""
    count = len(splits.train)
    rows = splits.train.select(range(0, count, max(1, count // SIZES_READ)))["image"]
    try:
        return int(np.median([min(native_size(row)) for row in rows]))
    except Exception as error:  # the files were scanned: one was removed or replaced since then
        raise undecodable("a training image", error) from None
