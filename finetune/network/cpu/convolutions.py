"""Compute slow gradients of convolutions on a CPU from operations that have fast kernels.

On a CPU PyTorch computes convolutions with oneDNN, where two gradients of depthwise convolutions are slow: the gradient
of weights wider than 3 and, in bfloat16, the gradient of the input of strided convolutions. They took most of the time
of a step of an EfficientNet, and made bfloat16 slower than float32 (experiments/log.md, 2026-11-24 and -26). This
module computes

* the first from the weight gradients of windows of the kernel that are 3 wide, each over a shifted input,
* the second from convolutions of stride one, one for each remainder of the positions modulo the stride,
* 1 x 1 convolutions with large weights and few pixels, as in a network's last stages, as a product of matrices, which
  costs half of the time that oneDNN takes to rearrange the weights.

All results equal PyTorch's up to rounding.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from finetune.network.cpu.interception import CONVOLUTION, Function, Interception

QUICK = (torch.bfloat16, torch.float32)
"""Precisions in which the replacements were timed."""

WINDOW = 3
"""Width of the largest depthwise kernel whose weight gradient is fast in oneDNN, in pixels."""

LARGE_WEIGHT = 32
"""Smallest ratio of the number of values in a 1 x 1 weight to the number of pixels in the batch at which the product of
matrices is faster (experiments/log.md, 2026-11-26)."""

Pair = tuple[int, int]


def quick_gradients(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context for a forward pass that makes its backward pass faster; on devices other than CPUs it does
    nothing."""
    return _QuickGradients() if device.type == "cpu" else nullcontext()


class _QuickGradients(Interception):
    """Replaces the convolutions that have a slow gradient, and passes on all other calls."""

    def call(self, function: Function, arguments: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
        if function is CONVOLUTION and torch.is_grad_enabled():
            return _convolve(*arguments, **options)
        return self.pass_on(function, *arguments, **options)


def _convolve(
    input: Tensor,  # torch's own name, for calls by keyword
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Return `torch.conv2d` of the same arguments."""
    # Cast here, as autocast would: the backward pass runs outside autocast and needs its tensors in this precision.
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
    side = weight.shape[-1]
    steps = _pair(stride)
    if dtype in QUICK and groups == 1 and padding in (0, (0, 0)) and steps == (1, 1) and _is_matrix(input, weight):
        product: Tensor = _Product.apply(input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
        return product
    is_plain = input.ndim == 4 and _pair(dilation) == (1, 1) and weight.shape[-2] == side and side % 2
    # Each channel has its own k x k kernel.
    is_depthwise = weight.shape[0] == groups and weight.shape[1] == 1
    is_wide = side > WINDOW and dtype in QUICK
    has_slow_gradient = is_wide or (dtype == torch.bfloat16 and max(steps) > 1)
    if isinstance(padding, str) or not (is_plain and is_depthwise and has_slow_gradient):
        return nn.functional.conv2d(input, weight, bias, stride, padding, dilation, groups)
    cast = None if bias is None else bias.to(dtype)
    output: Tensor = _Depthwise.apply(input.to(dtype), weight.to(dtype), cast, steps, _pair(padding))
    return output


def _is_matrix(input: Tensor, weight: Tensor) -> bool:
    """Return whether a 1 x 1 convolution is faster as a product of matrices: few pixels, in channels-last layout."""
    # oneDNN's cost of rearranging grows with the size of the weight, the cost of the product with the number of pixels
    # n h w.
    return (
        weight.shape[2:] == (1, 1)
        and input.ndim == 4
        and input.is_contiguous(memory_format=torch.channels_last)
        and weight.numel() >= LARGE_WEIGHT * input.shape[0] * input.shape[2] * input.shape[3]
    )


class _Product(torch.autograd.Function):
    """A 1 x 1 convolution of channels-last images (n, c, h, w) with weight (d, c, 1, 1), as a product of matrices.

    A linear layer on a view would compute the same, but in-place activation functions copy a view, which then takes
    memory twice.
    """

    @staticmethod
    def forward(context: Any, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401
        # With X (n h w, c) the pixels and W (d, c): Y = X W^T + b.
        context.save_for_backward(images, weight)
        output = _like(images, len(weight))
        if bias is None:
            torch.mm(_rows(images), weight.flatten(1).t(), out=_rows(output))
        else:
            torch.addmm(bias, _rows(images), weight.flatten(1).t(), out=_rows(output))
        return output

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # noqa: ANN401
        images, weight = context.saved_tensors
        of_images, of_weight, of_bias = context.needs_input_grad
        # With G = dL/dY (n h w, d): dL/dX = G W, dL/dW = G^T X, dL/db = the sum of the rows of G.
        rows = _rows(gradient.contiguous(memory_format=torch.channels_last))
        result = None
        if of_images:
            result = _like(images, images.shape[1])
            torch.mm(rows, weight.flatten(1), out=_rows(result))
        return (
            result,
            torch.mm(rows.t(), _rows(images)).as_strided(weight.shape, weight.stride()) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _rows(images: Tensor) -> Tensor:
    """Return channels-last images (n, c, h, w) as a matrix (n h w, c) in the same memory."""
    return images.permute(0, 2, 3, 1).view(-1, images.shape[1])


def _like(images: Tensor, channels: int) -> Tensor:
    """Return an empty tensor (n, channels, h, w) of the images' size, in channels-last layout."""
    shape = (images.shape[0], channels, *images.shape[2:])
    return torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution of images (n, c, h, w) with weight (c, 1, k, k), k odd."""

    @staticmethod
    def forward(
        context: Any,  # noqa: ANN401  (torch's context takes any attributes)
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Pair,
        padding: Pair,
    ) -> Tensor:
        context.save_for_backward(images, weight)
        context.stride, context.padding = stride, padding
        return nn.functional.conv2d(images, weight, bias, stride, padding, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(
        context: Any,  # noqa: ANN401
        gradient: Tensor,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        images, weight = context.saved_tensors
        of_images, of_weight, of_bias = context.needs_input_grad[:3]
        return (
            _input_gradient(gradient, images, weight, context.stride, context.padding) if of_images else None,
            _weight_gradient(gradient, images, weight, context.stride, context.padding) if of_weight else None,
            gradient.sum((0, 2, 3)) if of_bias else None,
            None,
            None,
        )


def _input_gradient(gradient: Tensor, images: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """Return the gradient of the loss with respect to the images, (n, c, h, w)."""
    if max(stride) == 1 or images.dtype != torch.bfloat16:
        return _gradients(gradient, images, weight, stride, padding, (True, False, False))[0]
    height, width = (count + 2 * margin for count, margin in zip(images.shape[2:], padding, strict=True))
    # In one dimension, y[j] = sum_t w[t] x[s j + t] for the padded x, so dL/dx[i] = sum_t w[t] dL/dy[(i - t) / s] over
    # the taps t for which s divides i - t. All positions i = r (mod s) use the taps t = r, r + s, ..., and successive
    # positions use successive j. So for each remainder r the gradient is a convolution of stride one of dL/dy with
    # every s-th tap, flipped (the sub-pixel form of a transposed convolution, Shi et al. 2016).
    padded = torch.empty(
        *images.shape[:2], height, width, dtype=images.dtype, memory_format=torch.channels_last, device=images.device
    )
    for row in range(min(stride[0], height)):
        for column in range(min(stride[1], width)):
            wanted = padded[:, :, row :: stride[0], column :: stride[1]]
            taps = weight[:, :, row :: stride[0], column :: stride[1]].flip(2, 3)
            if 0 in taps.shape:  # the kernel is narrower than the stride and never covers these positions
                wanted.zero_()
                continue
            # A "full" convolution: a margin of zeros on both sides, one less than the taps.
            margins = (taps.shape[2] - 1, taps.shape[3] - 1)
            part = nn.functional.conv2d(gradient, taps, padding=margins, groups=len(weight))
            part = part[:, :, : wanted.shape[2], : wanted.shape[3]]
            if part.shape != wanted.shape:  # the last rows or columns are in no window of the convolution
                wanted.zero_()
            wanted[:, :, : part.shape[2], : part.shape[3]] = part
    return padded[:, :, padding[0] : height - padding[0], padding[1] : width - padding[1]]


def _weight_gradient(gradient: Tensor, images: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """Return the gradient of the loss with respect to the weight, (c, 1, k, k)."""
    side = weight.shape[-1]
    if side <= WINDOW:
        return _gradients(gradient, images, weight, stride, padding, (False, True, False))[1]
    # dL/dw[a, b] = sum over images and positions (p, q) of dL/dy[p, q] x[s p + a, s q + b], with the padded x: a tap's
    # gradient needs only the input shifted by the tap. So the columns b = left .. left + 2 of it are the weight
    # gradient of a k x 3 convolution over the input shifted by `left` columns.
    width = (gradient.shape[3] - 1) * stride[1] + WINDOW  # columns that a kernel 3 wide covers in all its positions
    result = torch.empty_like(weight)
    columns = weight[:, :, :, :WINDOW].contiguous()
    # Windows overlap by one column: k is odd, so windows two columns apart cover 5, 7, 9, ... exactly.
    for left in range(0, side - WINDOW + 1, WINDOW - 1):
        first = left - padding[1]
        # The zeros are added here, because oneDNN is slow on maps of few rows with a padding of half the kernel.
        seen = nn.functional.pad(images, (-first, first + width - images.shape[3], padding[0], padding[0]))
        window = _gradients(gradient, seen, columns, stride, (0, 0), (False, True, False))[1]
        result[:, :, :, left : left + WINDOW] = window
    return result


def _gradients(
    gradient: Tensor, images: Tensor, weight: Tensor, stride: Pair, padding: Pair, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return PyTorch's gradients of a depthwise convolution with respect to images, weight and bias; unwanted ones are
    not computed."""
    backward = torch.ops.aten.convolution_backward
    result: tuple[Tensor, Tensor, Tensor] = backward(
        gradient, images, weight, None, stride, padding, (1, 1), False, (0, 0), len(weight), wanted
    )
    return result


def _pair(value: int | Sequence[int]) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
