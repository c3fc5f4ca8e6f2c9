"""Where in a network a number stopped being one; looked for only once that has happened."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def first_not_finite(network: nn.Module, loss_of: Callable[[], Tensor]) -> str:
    """Return the first part of a network that is not finite, in the order in which it computes, or "" if all is.

    That is `the images`, `the weights NAME`, `the input of NAME`, `the output of NAME` or `the gradient of NAME`; a
    gradient comes to be from the head downwards.

    Args:
        network: what is looked at.
        loss_of: sends a batch through it and returns its loss.
    """
    for name, parameter in network.named_parameters():
        if not _is_finite(parameter):
            return f"the weights {_short(name)}"
    passed: list[str] = []
    found: list[str] = []

    def look(name: str) -> Any:  # noqa: ANN401  (torch's hook type)
        def hook(_module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            if found or _is_finite(output):
                passed.append(name)
            elif all(map(_is_finite, inputs)):
                found.append(f"the output of {_short(name)}")
            else:
                found.append(f"the input of {_short(name)}" if passed else "the images")

        return hook

    leaves = [(name, module) for name, module in network.named_modules() if not list(module.children())]
    hooks = [module.register_forward_hook(look(name)) for name, module in leaves]
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
    """Return a name within the network, also where the network is wrapped."""
    return name.removeprefix("module.").removeprefix("network.")
