"""Resize and crop images of any size by matrix products, which `torch.export` can trace for every height and width.

PyTorch's own resizing cannot be exported for sizes that are not known: its kernels need them as numbers. Both passes of
a separable interpolation are linear, so each is a matrix of weights, made from positions alone.
"""

from typing import Any

import torch
from torch import Tensor, nn

from finetune.decide.preprocessing import Preprocessing

CUBIC = -0.5
"""Parameter a of the cubic kernel (Keys 1981) with which PyTorch and Pillow resize with antialiasing."""


class ResizedSquare(nn.Module):
    """The centre (n, channels, size, size) of images (n, height, width, channels) whose shorter side is resized, all
    uint8."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        """Prepare the resizing and cropping of `preprocessing`."""
        super().__init__()
        self._size = preprocessing.image_size
        self._shorter_side = preprocessing.shorter_side
        self._kernel = linear if preprocessing.interpolation == "bilinear" else cubic

    def forward(self, images: Tensor) -> Tensor:
        """Return the squares of images of one size."""
        height, width = images.shape[1], images.shape[2]
        shorter: Any = torch.sym_min(height, width)  # a symbol while it is traced
        pixels = images.permute(0, 3, 1, 2).to(torch.float32)
        # Pillow and PyTorch round to whole grey levels after each of the two passes.
        wide = _rounded(pixels @ self._weights(width, shorter).T)
        return _rounded(self._weights(height, shorter) @ wide).to(torch.uint8)

    def _weights(self, side: int, shorter: int) -> Tensor:
        """Return the weights (size, side) with which the pixels of a side make those of the square."""
        resized = self._shorter_side * side // shorter
        margin = resized - self._size
        start = (margin + (margin // 2) % 2) // 2  # margin / 2, half rounded to even
        # Pixel i of the resized side has its centre at (i + 1/2) scale of the image. Shrinking widens the kernel by the
        # scale, so that each pixel is a mean (antialiasing).
        scale: Any = torch.sym_float(side) / torch.sym_float(resized)
        centres = (torch.arange(self._size, dtype=torch.float32) + start + 0.5) * scale
        distances = torch.arange(side, dtype=torch.float32) + 0.5 - centres[:, None]
        weights = self._kernel(distances / torch.sym_max(scale, 1.0))
        return weights / weights.sum(dim=1, keepdim=True)  # beyond the edges there are no pixels


def linear(distances: Tensor) -> Tensor:
    """Return the triangle kernel at `distances` from its centre, in pixels."""
    return (1.0 - distances.abs()).clamp(min=0.0)


def cubic(distances: Tensor) -> Tensor:
    """Return the cubic kernel at `distances` from its centre, in pixels (Keys 1981, equation 4, with a = -1/2)."""
    near = distances.abs()
    # |d| < 1: (a + 2) |d|^3 - (a + 3) |d|^2 + 1;  1 <= |d| < 2: a (|d|^3 - 5 |d|^2 + 8 |d| - 4);  else 0
    inner = ((CUBIC + 2.0) * near - (CUBIC + 3.0)) * near * near + 1.0
    outer = CUBIC * (((near - 5.0) * near + 8.0) * near - 4.0)
    return torch.where(near < 1.0, inner, torch.where(near < 2.0, outer, torch.zeros_like(near)))


def _rounded(levels: Tensor) -> Tensor:
    """Return grey levels as whole numbers from 0 to 255, halves rounded up."""
    return (levels + 0.5).floor().clamp(0.0, 255.0)
