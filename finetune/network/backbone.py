"""Create a timm network, find its stages and normalisation layers, and set which of them are trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.models import group_parameters
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from finetune.decide.evidence import StageProfile
from finetune.decide.plan import Plan
from finetune.decide.preprocessing import Preprocessing, make_normalisation
from finetune.errors import ModelError
from finetune.network.co_tuning import add_source_head
from finetune.network.head import find_head, give_head, has_head, recorded_features
from finetune.network.stem import RGB, build_network, channel_arguments
from finetune.network.weights import WeightsReport, create_pretrained
from finetune.reading import AS_STORED, Reading

BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A block of layers that is trained or frozen as a whole."""

    name: str
    """Name of the stage: that of its module or, without a module, `stem` for the first stage and the path of its
    parameters for any other."""
    parameters: tuple[str, ...]
    """Names of the stage's parameters within the network."""
    module: str | None
    """Name of the module that computes the stage's output; None if the stage is not a single module."""


def create_network(
    name: str,
    weights: str,
    num_classes: int,
    image_size: int | None,
    keeps_source_head: bool = False,
    num_channels: int = RGB,
) -> tuple[nn.Module, WeightsReport | None]:
    """Return the network with a new head, in channels-last layout, and a report of its weights' source (None: random).

    Args:
        name: any timm classifier.
        weights: `pretrained`, `random`, or the path of a file.
        num_classes: number of outputs of the new head.
        image_size: side of the input in pixels, for networks that are built for one size (position embeddings); None:
            the side of the pretraining.
        keeps_source_head: whether the pretrained classifier stays next to the new head, for co-tuning.
        num_channels: number of channels of the images.

    Raises:
        ModelError: the weights cannot be found or do not match the network, the network does not end in a linear
            layer, it cannot be built for this size or these channels, or there is no pretrained classifier to keep.
    """
    arguments = input_arguments(name, image_size, num_channels)
    report: WeightsReport | None
    source: nn.Linear | None
    if weights == "random":
        network: Any = build_network(name, num_classes=num_classes, **arguments)
        report, source = None, None
    else:
        network, report = create_pretrained(name, None if weights == "pretrained" else weights, **arguments)
        source = find_head(network).single if has_head(network) else None
        give_head(network, num_classes)
    head = find_head(network)
    if keeps_source_head:
        if source is None:
            raise ModelError(
                f"co-tuning needs the linear classifier that {name} was pretrained with, which these weights do not "
                f"have; leave it out: --set training.co_tuning=0"
            )
        add_source_head(network, head.names[0], source)
    made: nn.Module = network.to(memory_format=torch.channels_last)
    return made, report


def is_built_for_one_size(name: str) -> bool:
    """Return whether the network takes images of one size only, that for which it is built."""
    config = timm.get_pretrained_cfg(name)
    return bool(config and config.fixed_input_size)


def size_arguments(name: str, image_size: int | None) -> dict[str, Any]:
    """Return the arguments of `timm.create_model` that build the network for a side of the image, in pixels.

    Raises:
        ModelError: the network can only be built for the size that it was pretrained on.
    """
    side = network_image_size(name)
    if image_size in {None, side} or not is_built_for_one_size(name):
        return {}
    try:
        with torch.device("meta"):  # the shapes alone, without any numbers
            timm.create_model(name, img_size=image_size)
    except Exception as error:  # networks raise errors of many kinds
        raise ModelError(
            f"{name} cannot be built for images of {image_size} px ({_first_line(error)}); leave out --image-size, "
            f"which makes it {side} px, or choose another --model"
        ) from error
    return {"img_size": image_size}


def input_arguments(name: str, image_size: int | None, num_channels: int) -> dict[str, Any]:
    """Return the arguments of `timm.create_model` that build the network for a side, in pixels, and some channels.

    Raises:
        ModelError: the network can only be built for the size that it was pretrained on.
    """
    return size_arguments(name, image_size) | channel_arguments(num_channels)


def check_forward(network: nn.Module, name: str, image_size: int, num_channels: int = RGB) -> None:
    """Check that the network takes images of this side, in pixels, and of this number of channels, and that its logits
    are those of its head.

    Raises:
        ModelError: layers share weights, the forward pass fails, or its logits are not those of the head.
    """
    if len(list(network.named_parameters(remove_duplicate=False))) > len(list(network.named_parameters())):
        raise ModelError(
            f"{name} uses the same weights in several layers, which the files of a run cannot hold; choose another "
            f"--model"
        )
    device = next(network.parameters()).device
    shape = (1, num_channels, image_size, image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    network.eval()
    try:
        with torch.no_grad(), recorded_features(network) as features:
            logits, inputs = network(images), features(network, images).cpu().float()
    except ModelError:
        raise
    except Exception as error:  # networks raise errors of many kinds
        channels = "" if num_channels == RGB else f" and {num_channels} channels"
        raise ModelError(
            f"{name} cannot process images of {image_size} px{channels} ({_first_line(error)}); give another "
            f"--image-size, such as {network_image_size(name)}, or choose another --model"
        ) from error
    weight, bias = find_head(network).classifier()
    expected = inputs @ weight.float().T + bias.float()
    if not isinstance(logits, Tensor) or logits.shape != expected.shape:
        raise ModelError(f"{name} does not return one row of logits for each image; choose another --model")
    if not torch.allclose(logits.cpu().float(), expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max())):
        raise ModelError(f"{name} does not end in its linear layer: something follows it; choose another --model")


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:150] if text else type(error).__name__


def network_image_size(name: str) -> int:
    """Return the side of the images that the network was pretrained on, in pixels."""
    config = timm.get_pretrained_cfg(name)
    return int(config.input_size[-1]) if config else 224


def native_preprocessing(network: nn.Module, image_size: int, reading: Reading = AS_STORED) -> Preprocessing:
    """Return the preprocessing of the network's pretraining, at `image_size` pixels, for images that are read so."""
    config: dict[str, Any] = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    mean, std = make_normalisation(config["mean"], config["std"], reading.num_channels)
    return Preprocessing(
        image_size=image_size,
        crop_fraction=float(config["crop_pct"]),
        interpolation=str(config["interpolation"]),
        mean=mean,
        std=std,
        reading=reading,
    )


def find_stages(network: nn.Module) -> tuple[Stage, ...]:
    """Return the stages from the stem upwards, without the head.

    They are timm's own groups of parameters (`group_matcher`), else the modules named in `feature_info`. Parameters
    above the last group (a last norm, a pooling) belong to the last stage.
    """
    head = find_head(network)
    own = [name for name, _ in network.named_parameters() if not head.owns(name)]
    groups = _matched_groups(network) or _feature_groups(network, own)
    below = [[name for name in group if not head.owns(name)] for group in groups]
    below = [group for group in below if group]
    stages = [_stage(network, group, "stem" if number == 0 else None) for number, group in enumerate(below)]
    # Norms and pooling after the last block, such as a norm before the head, are not a stage of their own.
    while len(stages) > 1 and _is_tail(network, stages[-1]):
        *stages, last = stages
        merged = (*stages[-1].parameters, *last.parameters)
        stages[-1] = Stage(name=stages[-1].name, parameters=merged, module=None)
    return tuple(stages)


def profile_stages(network: nn.Module, image_size: int, num_channels: int = RGB) -> tuple[StageProfile, ...]:
    """Return the size and the cost of each stage, measured with one blank image of `image_size` pixels."""
    stages = find_stages(network)
    modules = dict(network.named_modules())
    values: dict[str, int] = {}

    def count_values(name: str) -> Any:  # noqa: ANN401  (torch's hook type)
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                values[name] = output.numel()

        return hook

    named = [stage.module for stage in stages if stage.module]
    hooks = [modules[name].register_forward_hook(count_values(name)) for name in named]
    network.eval()
    counter = FlopCounterMode(display=False)
    device = next(network.parameters()).device
    # With gradients: the counter's hooks need them in networks whose attention pools from a learned query.
    with torch.enable_grad(), counter:
        network(torch.zeros(1, num_channels, image_size, image_size, device=device))
    for hook in hooks:
        hook.remove()
    network.eval()  # networks that keep attention biases (TinyViT) forget those of this pass, which hold its graph
    flops = _flops_by_module(counter, network)
    amounts = [_stage_flops(stage, flops) for stage in stages]
    total = sum(amounts) or 1
    sizes = dict(network.named_parameters())
    return tuple(
        StageProfile(
            name=stage.name,
            num_parameters=sum(sizes[name].numel() for name in stage.parameters),
            forward_share=amount / total,
            output_values=values.get(stage.module) if stage.module else None,
        )
        for stage, amount in zip(stages, amounts, strict=True)
    )


def find_norms(network: nn.Module) -> dict[str, nn.Module]:
    """Return the normalisation layers that have weights, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if "norm" in type(module).__name__.lower()
        and any(parameter.ndim == 1 for parameter in module.parameters(recurse=False))
    }


def set_trainable(network: nn.Module, plan: Plan) -> dict[str, list[str]]:
    """Freeze the parameters that the plan does not train, and return the names of the trained parameters by stage."""
    head = find_head(network)
    norms = {f"{name}.{part}" for name, norm in find_norms(network).items() for part, _ in norm.named_parameters()}
    trained: dict[str, list[str]] = {}
    rates = {stage.name: stage.learning_rate for stage in plan.stages}
    for stage in find_stages(network):
        names = stage.parameters if rates[stage.name] > 0 else ()
        if plan.strategy == "norm_tuning":
            names = tuple(name for name in names if name in norms)
        trained[stage.name] = list(names)
    trained["head"] = [name for name, _ in network.named_parameters() if head.owns(name)]
    chosen = {name for names in trained.values() for name in names}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in chosen)
    return {stage: names for stage, names in trained.items() if names}


def set_training_mode(network: nn.Module, freeze_statistics: bool) -> None:
    """Set trained modules to training mode and frozen ones to evaluation mode.

    A frozen batch norm in training mode would still update its running statistics, and frozen dropout would add noise.

    Args:
        network: a network that has `requires_grad` set on its trained parameters only.
        freeze_statistics: whether trained batch norms stay in evaluation mode as well.
    """
    network.eval()

    def enter(module: nn.Module) -> None:
        own = list(module.parameters())
        is_frozen = bool(own) and not any(parameter.requires_grad for parameter in own)
        if is_frozen or (freeze_statistics and isinstance(module, BATCH_NORMS)):
            return  # together with all modules inside, because dropout has no parameters that show whether it is frozen
        module.training = True
        for child in module.children():
            enter(child)

    enter(network)


def check_stages(network: nn.Module, plan: Plan) -> None:
    """Check that the plan's stages are those of the network.

    Raises:
        ModelError: the plan was made for other stages.
    """
    found = [stage.name for stage in find_stages(network)]
    planned = [stage.name for stage in plan.stages]
    if found != planned:
        raise ModelError(f"the plan has the stages {', '.join(planned)}, but {plan.model} has {', '.join(found)}")


def _matched_groups(network: Any) -> list[list[str]]:  # noqa: ANN401
    """Return the names of the parameters in each of timm's coarse groups; an empty list if the network has no such
    groups."""
    try:
        matcher = network.group_matcher(coarse=True)
    except (AttributeError, AssertionError, NotImplementedError):
        return []
    groups: Mapping[Any, list[str]] = group_parameters(network, matcher)
    return [groups[key] for key in sorted(groups)]


def _feature_groups(network: nn.Module, names: list[str]) -> list[list[str]]:
    """Return the names of the parameters in each module of `feature_info`, after those of the stem, which are before
    the first of these modules."""
    info = getattr(network, "feature_info", None)
    modules = [str(entry["module"]) for entry in info] if info else []
    groups: list[list[str]] = [[] for _ in range(len(modules) + 1)]
    current = 0
    for name in names:
        inside = [number for number, module in enumerate(modules) if name.startswith(module + ".")]
        current = inside[0] + 1 if inside else current
        groups[current].append(name)
    return groups


def _stage(network: nn.Module, names: list[str], fallback: str | None) -> Stage:
    module = _common_module(names)
    inside = {name for name, _ in network.named_parameters() if module is not None and name.startswith(module + ".")}
    if not inside <= set(names) or module not in dict(network.named_modules()):
        module = None  # there is no such module, or it also contains other stages
    first = names[0].split(".")
    own_name = ".".join(first[:2]) if len(first) > 2 and first[1].isdigit() else first[0]
    return Stage(name=module or fallback or own_name, parameters=tuple(names), module=module)


def _common_module(names: list[str]) -> str | None:
    """Return the path of the innermost module that contains all parameters, or None.

    >>> _common_module(["blocks.0.conv.weight", "blocks.0.bn.bias"])
    'blocks.0'
    """
    paths = [name.split(".")[:-1] for name in names]
    shared: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) != 1:
            break
        shared.append(parts[0])
    return ".".join(shared) or None


def _is_tail(network: nn.Module, stage: Stage) -> bool:
    """Return whether a last group has only norms and pooling and no block: all of its parameters are vectors."""
    parameters = dict(network.named_parameters())
    return all(parameters[name].ndim == 1 for name in stage.parameters)


def _flops_by_module(counter: FlopCounterMode, network: nn.Module) -> dict[str, int]:
    """Return the number of floating-point operations of each module, by the module's name."""
    root = type(network).__name__
    counts = counter.get_flop_counts()
    return {
        name.removeprefix(root + "."): int(sum(by_operator.values()))
        for name, by_operator in counts.items()
        if name not in {"Global", root}
    }


def _stage_flops(stage: Stage, flops: dict[str, int]) -> int:
    """Return the number of floating-point operations of a stage: those of its innermost modules with parameters, or of
    the whole module if that is more (attention has products without parameters)."""
    owners = {name.rpartition(".")[0] for name in stage.parameters}
    inner = sum(flops.get(owner, 0) for owner in owners)
    return max(inner, flops.get(stage.module, 0) if stage.module else 0)
