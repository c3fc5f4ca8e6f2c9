"""Cut a network at its frozen boundary, so that its trained upper part can start from cached activations."""

import threading
from typing import Any

import torch
from torch import Tensor, nn

from finetune.network.backbone import find_stages
from finetune.network.stem import RGB

PEEK_SIZE = 32
"""Side of the small stand-in image that is sent through the frozen part, until cached activations replace its
activation, in pixels."""


class Tail(nn.Module):
    """The part of a network above a boundary module: it takes activations at the boundary and returns logits.

    The network itself is not changed. A small stand-in image is sent through all of it, and a hook at the boundary
    replaces the stand-in's activation with the cached ones. In this way, any network with a single module at the
    boundary can be cut, however its upper modules are connected.
    """

    def __init__(self, network: nn.Module, boundary: str, image_size: int, num_channels: int = RGB) -> None:
        """Cut `network` at the output of the module named `boundary`."""
        super().__init__()
        self.network = network
        self.boundary = boundary
        """Name of the module at whose output the network is cut."""
        # Several threads may compute at once, so each has its own activation that replaces the stand-in's.
        self._own = threading.local()
        self._handle = network.get_submodule(boundary).register_forward_hook(self._at_boundary)
        device = next(network.parameters()).device
        self._stand_in = torch.zeros(1, num_channels, image_size, image_size, device=device)

    def forward(self, activation: Tensor) -> Tensor:
        """Return logits (n, num_classes) of activations (n, ...) at the boundary."""
        self._own.activation = activation
        try:
            output: Tensor = self.network(self._stand_in)
        finally:
            del self._own.activation
        return output

    def prefix(self, inputs: Tensor) -> Tensor:
        """Return the activations (n, ...) of images (n, channels, h, w) at the boundary; the part above it is not
        computed.

        Raises:
            RuntimeError: the forward pass did not reach the boundary.
        """
        # The hook raises at the boundary, which skips everything above it.
        self._own.is_caught = True
        try:
            self.network(inputs)
        except _Caught as caught:
            return caught.activation
        finally:
            del self._own.is_caught
        raise RuntimeError(f"the forward pass did not reach the network's boundary {self.boundary}")

    def state_dict(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        """Return the state of the whole network under the network's own names, so that it can be loaded with or without
        a cut."""
        return self.network.state_dict(*arguments, **options)

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        """Load the state of the whole network."""
        return self.network.load_state_dict(*arguments, **options)

    def release(self) -> None:
        """Remove the hook from the network."""
        self._handle.remove()

    def shrink_stand_in(self) -> None:
        """Use a smaller stand-in image, for networks that accept one."""
        full = self._stand_in
        self._stand_in = full[:, :, :PEEK_SIZE, :PEEK_SIZE].contiguous()

    def _at_boundary(self, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:  # noqa: ANN401
        if hasattr(self._own, "is_caught"):
            raise _Caught(output)
        activation: Tensor = getattr(self._own, "activation", output)
        return activation


class _Caught(Exception):  # noqa: N818  (not an error: it ends a forward pass early)
    """Stops a forward pass at the boundary, and carries the activation out of it."""

    def __init__(self, activation: Tensor) -> None:
        self.activation = activation


def cut(network: nn.Module, trainable_stages: int, image_size: int, num_channels: int = RGB) -> Tail | None:
    """Return the part of `network` above the frozen stages, or None if the network cannot be cut there.

    The cut is tested: for two random images, the two parts must give the same logits as the whole network.

    Args:
        network: in any mode; it is left in evaluation mode.
        trainable_stages: number of stages above the cut.
        image_size: side of the network's input, in pixels.
        num_channels: number of channels of the network's input.
    """
    stages = find_stages(network)
    frozen = len(stages) - trainable_stages
    boundary = stages[frozen - 1].module if 1 <= frozen < len(stages) else None
    if boundary is None:
        return None
    network.eval()
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, num_channels, image_size, image_size, generator=generator).to(device)
    # First try a small stand-in, which costs almost nothing. Some networks (with position embeddings or attention
    # windows) accept images of one size only, and need a stand-in of that size.
    with torch.no_grad():
        whole = network(images)
        tail = Tail(network, boundary, image_size, num_channels)
        try:
            activation = tail.prefix(images)
            tail.shrink_stand_in()
            if _agrees(tail, activation, whole):
                return tail
            tail.release()
            tail = Tail(network, boundary, image_size, num_channels)
            if _agrees(tail, activation, whole):
                return tail
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError):
            pass  # the boundary's output is not one tensor, or the part above needs more than this tensor
    tail.release()
    return None


def _agrees(tail: Tail, activation: Tensor, whole: Tensor) -> bool:
    """Return whether the tail computes the logits `whole` (n, num_classes), up to rounding."""
    try:
        return torch.allclose(tail(activation), whole, rtol=1e-3, atol=1e-4)
    except (RuntimeError, ValueError, AssertionError):
        return False
