"""Build networks for images of any number of channels, and adapt the first layer of a pretrained one to them."""

from collections.abc import Mapping
from typing import Any

import timm
from timm.models import adapt_input_conv
from torch import nn

from finetune.errors import ModelError

RGB = 3
"""Number of channels of the images that networks are pretrained on."""

PRETRAINED_ARGUMENTS: Mapping[str, Mapping[str, Any]] = {"fbnetc_100": {"bn_eps": 1e-3}}
"""Arguments that timm adds, by architecture, where it loads pretrained weights itself: the weights were trained with
them."""


def channel_arguments(num_channels: int) -> dict[str, Any]:
    """Return the arguments of `timm.create_model` that build a network for images of this number of channels."""
    return {} if num_channels == RGB else {"in_chans": num_channels}


def build_network(name: str, **arguments: Any) -> Any:  # noqa: ANN401  (timm's networks share methods, but no type)
    """Return timm's network of this name, as it is built for pretrained weights, but with random ones.

    Raises:
        ModelError: the network cannot be built for the number of channels that it is asked for.
    """
    arguments = {**PRETRAINED_ARGUMENTS.get(name.partition(".")[0], {}), **arguments}
    if "in_chans" not in arguments:
        return timm.create_model(name, pretrained=False, **arguments)
    try:
        return timm.create_model(name, pretrained=False, **arguments)
    except Exception as error:  # networks raise errors of many kinds
        raise _refused(name, arguments["in_chans"], error) from error


def adapt_stem(network: Any, name: str, **arguments: Any) -> nn.Module:  # noqa: ANN401
    """Return a pretrained network of red, green and blue as one of another number of channels.

    Its first layer gets the weights that timm gives it: those of red, green and blue in turn, multiplied by 3 / n, so
    that their sum stays the same.

    Args:
        network: the network with its pretrained weights.
        name: timm's name of it.
        arguments: arguments of `timm.create_model`, among them the number of channels, `in_chans`.

    Raises:
        ModelError: the first layer is none that can be adapted.
    """
    num_channels = arguments["in_chans"]
    adapted: nn.Module = build_network(name, num_classes=network.num_classes, **arguments)
    state = network.state_dict()
    listed = network.pretrained_cfg.get("first_conv") or ()
    try:
        for layer in (listed,) if isinstance(listed, str) else listed:
            state[f"{layer}.weight"] = adapt_input_conv(num_channels, state[f"{layer}.weight"])
        adapted.load_state_dict(state, strict=True)
    except Exception as error:  # timm refuses some layers, and other layers have other shapes
        raise _refused(name, num_channels, error) from error
    return adapted


def _refused(name: str, num_channels: int, error: Exception) -> ModelError:
    """Return the error of a network that cannot take images of this number of channels."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:150]
    return ModelError(
        f"the first layer of {name} cannot be adapted to images of {num_channels} channels ({reason}); choose another "
        f"--model, or read three channels: --set 'image.channels=[0, 1, 2]'"
    )
