"""The trained upper part of a network, fed with activations that were kept at its frozen boundary."""

import threading
from typing import Any

import torch
from torch import Tensor, nn

from finetune.network.backbone import find_stages

PEEK_SIZE = 32
"""Side of the stand-in image that walks through the frozen part while the kept activations take its place, in
pixels."""


class Tail(nn.Module):
    """The network above a boundary module: activations at the boundary in, logits out.

    The network stays as it is: a stand-in image walks through it, and at the boundary a hook puts the kept
    activations in the place of what the stand-in became. So any network with one module at the boundary can be cut,
    however its parts are wired above it.
    """

    def __init__(self, network: nn.Module, boundary: str, image_size: int) -> None:
        """Cut `network` at the output of the module named `boundary`."""
        super().__init__()
        self.network = network
        self.boundary = boundary
        """Name of the module at whose output the network is cut."""
        # Several threads may compute at once: what one of them carries across the boundary is its own.
        self._carried = threading.local()
        self._handle = network.get_submodule(boundary).register_forward_hook(self._at_boundary)
        device = next(network.parameters()).device
        self._stand_in = torch.zeros(1, 3, image_size, image_size, device=device)

    def forward(self, activation: Tensor) -> Tensor:
        """Return logits (n, num_classes) of activations (n, ...) at the boundary."""
        self._carried.activation = activation
        try:
            output: Tensor = self.network(self._stand_in)
        finally:
            del self._carried.activation
        return output

    def prefix(self, inputs: Tensor) -> Tensor:
        """Return the activations at the boundary of images (n, 3, h, w); the part above is not computed."""
        self._carried.is_caught = True
        try:
            self.network(inputs)
        except _Caught as caught:
            return caught.activation
        finally:
            del self._carried.is_caught
        raise RuntimeError(f"the network never came to its boundary {self.boundary}")

    def state_dict(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        """Return the whole network's, under its own names: whoever goes on from it may cut it or not."""
        return self.network.state_dict(*arguments, **options)

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        """Load the whole network's."""
        return self.network.load_state_dict(*arguments, **options)

    def release(self) -> None:
        """Give the network back as it was."""
        self._handle.remove()

    def shrink_stand_in(self) -> None:
        """Let a smaller stand-in walk, where the network takes one."""
        full = self._stand_in
        self._stand_in = full[:, :, :PEEK_SIZE, :PEEK_SIZE].contiguous()

    def _at_boundary(self, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:  # noqa: ANN401
        if hasattr(self._carried, "is_caught"):
            raise _Caught(output)
        activation: Tensor = getattr(self._carried, "activation", output)
        return activation


class _Caught(Exception):  # noqa: N818  (no error: it ends a forward pass early)
    """The boundary was reached."""

    def __init__(self, activation: Tensor) -> None:
        self.activation = activation


def cut(network: nn.Module, trainable_stages: int, image_size: int) -> Tail | None:
    """Return the part of `network` above the frozen stages, or None where it can not be cut there.

    The cut is proved: two random images must have the same logits, whole and in two parts.
    """
    stages = find_stages(network)
    frozen = len(stages) - trainable_stages
    boundary = stages[frozen - 1].module if 1 <= frozen < len(stages) else None
    if boundary is None:
        return None
    network.eval()
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, image_size, image_size, generator=generator).to(device)
    with torch.no_grad():
        whole = network(images)
        tail = Tail(network, boundary, image_size)
        try:
            activation = tail.prefix(images)
            tail.shrink_stand_in()
            if _agrees(tail, activation, whole):
                return tail
            tail.release()
            tail = Tail(network, boundary, image_size)
            if _agrees(tail, activation, whole):
                return tail
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError):
            pass  # what leaves the boundary is no plain tensor, or the part above needs more than that
    tail.release()
    return None


def _agrees(tail: Tail, activation: Tensor, whole: Tensor) -> bool:
    try:
        return torch.allclose(tail(activation), whole, rtol=1e-3, atol=1e-4)
    except (RuntimeError, ValueError, AssertionError):
        return False
