"""Find the first part of a network that has a NaN or an infinity, after a loss or a gradient was not finite."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def first_not_finite(network: nn.Module, loss_of: Callable[[], Tensor]) -> str:
    """Return the first part of a network that is not finite, in the order of computation; "" if all parts are finite.

    A part is `the images`, `the weights NAME`, `the input of NAME`, `the output of NAME` or `the gradient of NAME`.
    Gradients are computed from the head downwards.

    Args:
        network: the network to search.
        loss_of: function that sends a batch through the network and returns the loss.
    """
    # First the weights, which need no forward pass; then the outputs, from the stem upwards; then the gradients, from
    # the head downwards.
    for name, parameter in network.named_parameters():
        if not _is_finite(parameter):
            return f"the weights {_short(name)}"
    passed: list[str] = []
    found: list[str] = []

    def check(name: str) -> Any:  # noqa: ANN401  (torch's hook type)
        def hook(_module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            if found or _is_finite(output):
                passed.append(name)
            elif all(map(_is_finite, inputs)):
                found.append(f"the output of {_short(name)}")
            else:
                found.append(f"the input of {_short(name)}" if passed else "the images")

        return hook

    leaves = [(name, module) for name, module in network.named_modules() if not list(module.children())]
    hooks = [module.register_forward_hook(check(name)) for name, module in leaves]
    loss = loss_of()
    for hook in hooks:
        hook.remove()
    if found or not _is_finite(loss):
        return found[0] if found else ""
    return _first_gradient(network, loss)


def _first_gradient(network: nn.Module, loss: Tensor) -> str:
    trained = [(name, own) for name, own in network.named_parameters() if own.requires_grad]
    gradients = torch.autograd.grad(loss, [own for _, own in trained], allow_unused=True)
    for (name, _), gradient in reversed(list(zip(trained, gradients, strict=True))):
        if not _is_finite(gradient):
            return f"the gradient of {_short(name)}"
    return ""


def _is_finite(value: object) -> bool:
    return not isinstance(value, Tensor) or bool(torch.isfinite(value).all())


def _short(name: str) -> str:
    """Return a name within the network, without the prefixes of wrappers."""
    return name.removeprefix("module.").removeprefix("network.")
