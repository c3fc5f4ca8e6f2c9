import itertools
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from finetune.measure.machine import precisions
from finetune.network.cpu import convolutions, quick_gradients

CPU = torch.device("cpu")
OURS, TORCHS = "_DepthwiseBackward", "ConvolutionBackward0"
CHANNELS = 6
ROUNDING = 2.0**-7 if "bfloat16" in precisions(CPU) else 2.0**-6
"""Of the largest value: two roundings to the 8 significant bits of bfloat16; PyTorch's own loops, on processors that do
not have it, round on the way through a sum, too."""

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CASES = list(itertools.product((5, 7, 9), (1, 2, 3), ("none", "same", "uneven")))


def padding_of(kind, side):
    return {"none": (0, 0), "same": (side // 2, side // 2), "uneven": (1, side // 2)}[kind]


def arguments(side, seed=0, shape=(13, 11), layout="contiguous", dtype=torch.bfloat16):
    """Images, weight and bias of a depthwise convolution, to be differentiated."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(3, CHANNELS, *shape, generator=generator).to(dtype)
    weight = torch.randn(CHANNELS, 1, side, side, generator=generator).to(dtype)
    bias = torch.randn(CHANNELS, generator=generator).to(dtype)
    images = images.contiguous(memory_format=LAYOUTS[layout])
    return images.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


def convolve(images, weight, bias=None, **options):
    with quick_gradients(CPU):
        return nn.functional.conv2d(images, weight, bias, groups=len(weight), **options)


def upstream_of(output, seed=1):
    return torch.randn(output.shape, generator=torch.Generator().manual_seed(seed)).to(output.dtype)


def exact_gradients(inputs, upstream, **options):
    """The gradients in double precision, of the same numbers."""
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    output = nn.functional.conv2d(*wide, groups=len(wide[1]), **options)
    return torch.autograd.grad(output, wide, upstream.double())


def assert_equal_but_for_rounding(own, exact):
    scale = exact.abs().max().item()
    torch.testing.assert_close(own.double(), exact, rtol=ROUNDING, atol=ROUNDING * scale)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("side", "stride", "padding"), CASES)
def test_the_gradients_are_the_exact_ones_but_for_rounding(side, stride, padding, layout):
    options = {"stride": stride, "padding": padding_of(padding, side)}
    inputs = arguments(side, layout=layout)
    output = convolve(*inputs, **options)
    upstream = upstream_of(output)
    assert output.grad_fn.name() == OURS
    for own, exact in zip(
        torch.autograd.grad(output, inputs, upstream), exact_gradients(inputs, upstream, **options), strict=True
    ):
        assert_equal_but_for_rounding(own, exact)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [(2, 2), (3, 3), (1, 2), (2, 1)])
def test_the_gradients_of_strided_3x3_kernels_are_the_exact_ones_but_for_rounding(stride, layout):
    inputs = arguments(3, layout=layout)
    output = convolve(*inputs, stride=stride, padding=1)
    upstream = upstream_of(output)
    assert output.grad_fn.name() == OURS
    exact = exact_gradients(inputs, upstream, stride=stride, padding=1)
    for own, expected in zip(torch.autograd.grad(output, inputs, upstream), exact, strict=True):
        assert_equal_but_for_rounding(own, expected)


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (5, 2), (7, 7), (17, 6)])
@pytest.mark.parametrize("stride", [1, 2])
def test_maps_of_any_shape_have_the_exact_gradients_but_for_rounding(shape, stride):
    inputs = arguments(5, shape=shape)
    output = convolve(*inputs, stride=stride, padding=2)
    upstream = upstream_of(output)
    exact = exact_gradients(inputs, upstream, stride=stride, padding=2)
    for own, expected in zip(torch.autograd.grad(output, inputs, upstream), exact, strict=True):
        assert_equal_but_for_rounding(own, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("side", "stride"), [(3, 2), (5, 1), (7, 2), (9, 3)])
def test_the_forward_values_are_those_of_a_plain_convolution(side, stride, layout):
    images, weight, bias = arguments(side, layout=layout)
    plain = nn.functional.conv2d(images, weight, bias, stride, side // 2, groups=CHANNELS)
    assert torch.equal(convolve(images, weight, bias, stride=stride, padding=side // 2), plain)


def test_a_convolution_without_a_bias_has_the_gradients_of_the_others():
    images, weight, _ = arguments(5)
    output = convolve(images, weight, padding=2)
    upstream = upstream_of(output)
    exact = exact_gradients((images, weight), upstream, padding=2)
    for own, expected in zip(torch.autograd.grad(output, (images, weight), upstream), exact, strict=True):
        assert_equal_but_for_rounding(own, expected)


def test_no_gradient_is_computed_for_what_is_frozen():
    images, weight, bias = arguments(5)
    convolve(images.detach(), weight, bias.detach(), padding=2).sum().backward()
    assert weight.grad is not None
    assert bias.grad is None
    frozen = convolve(images.detach(), weight.detach(), bias.detach(), padding=2)
    assert frozen.grad_fn is None


@pytest.mark.parametrize(("side", "stride"), [(3, 2), (5, 1), (7, 2)])
def test_under_autocast_float32_parameters_get_float32_gradients(side, stride):
    inputs = arguments(side, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = convolve(*inputs, stride=stride, padding=1)
    assert (output.dtype, output.grad_fn.name()) == (torch.bfloat16, OURS)
    upstream = upstream_of(output)
    gradients = torch.autograd.grad(output, inputs, upstream)
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    rounded = [tensor.detach().to(torch.bfloat16) for tensor in inputs]
    for own, exact in zip(gradients, exact_gradients(rounded, upstream, stride=stride, padding=1), strict=True):
        assert_equal_but_for_rounding(own, exact)


def test_under_autocast_the_forward_values_are_those_of_a_plain_convolution():
    inputs = arguments(7, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        plain = nn.functional.conv2d(*inputs, padding=3, groups=CHANNELS)
        assert torch.equal(convolve(*inputs, padding=3), plain)


def test_a_layer_of_a_network_is_taken_over_too():
    layer = nn.Conv2d(4, 4, 5, padding=2, groups=4)
    with torch.autocast("cpu", torch.bfloat16), quick_gradients(CPU):
        output = layer(torch.ones(1, 4, 8, 8))
    assert output.grad_fn.name() == OURS


@pytest.mark.parametrize(
    ("weight_shape", "options"),
    [
        ((CHANNELS, 1, 3, 3), {"groups": CHANNELS}),
        ((CHANNELS, 2, 5, 5), {"groups": CHANNELS // 2}),
        ((2 * CHANNELS, 1, 5, 5), {"groups": CHANNELS}),
        ((CHANNELS, CHANNELS, 5, 5), {}),
        ((CHANNELS, 1, 5, 5), {"groups": CHANNELS, "dilation": 2}),
        ((CHANNELS, 1, 4, 4), {"groups": CHANNELS}),
        ((CHANNELS, 1, 5, 3), {"groups": CHANNELS}),
        ((CHANNELS, 1, 5, 5), {"groups": CHANNELS, "padding": "same"}),
        ((CHANNELS, 1, 5, 5), {"groups": CHANNELS, "padding": "valid"}),
    ],
    ids=["3x3", "grouped", "multiplied", "dense", "dilated", "even", "oblong", "same", "valid"],
)
def test_other_convolutions_in_bfloat16_are_left_alone(weight_shape, options):
    images = torch.ones(1, CHANNELS, 9, 9, dtype=torch.bfloat16)
    weight = torch.ones(weight_shape, dtype=torch.bfloat16, requires_grad=True)
    with quick_gradients(CPU):
        output = nn.functional.conv2d(images, weight, **options)
    assert output.grad_fn.name() == TORCHS
    assert torch.equal(output, nn.functional.conv2d(images, weight, **options))


@pytest.mark.parametrize(("side", "dtype"), [(3, torch.float32), (3, torch.float64), (7, torch.float64)])
def test_convolutions_whose_gradients_are_fast_or_not_known_to_be_slow_are_left_alone(side, dtype):
    output = convolve(*arguments(side, dtype=dtype), stride=2)
    assert output.grad_fn.name() == TORCHS


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("side", "stride", "padding"), CASES)
def test_the_gradients_of_wide_kernels_in_float32_are_the_exact_ones_but_for_rounding(side, stride, padding, layout):
    options = {"stride": stride, "padding": padding_of(padding, side)}
    inputs = arguments(side, layout=layout, dtype=torch.float32)
    output = convolve(*inputs, **options)
    upstream = upstream_of(output)
    assert output.grad_fn.name() == OURS
    for own, exact in zip(
        torch.autograd.grad(output, inputs, upstream), exact_gradients(inputs, upstream, **options), strict=True
    ):
        torch.testing.assert_close(own.double(), exact, rtol=1e-5, atol=1e-5 * exact.abs().max().item())


def test_outside_the_context_every_convolution_is_plain():
    images, weight, bias = arguments(7)
    convolve(images, weight, bias)
    assert nn.functional.conv2d(images, weight, bias, groups=CHANNELS).grad_fn.name() == TORCHS


def test_a_pass_without_gradients_is_left_alone(monkeypatch):
    taken = []
    own = convolutions._convolve
    monkeypatch.setattr(convolutions, "_convolve", lambda *args, **kwargs: (taken.append(1), own(*args, **kwargs))[1])
    with torch.no_grad():
        convolve(*arguments(7))
    assert taken == []
    convolve(*arguments(7))
    assert taken == [1]


def test_arguments_by_keyword_mean_what_they_mean_in_torch():
    images, weight, bias = arguments(5)
    options = {"stride": 2, "padding": 2, "groups": CHANNELS}
    with quick_gradients(CPU):
        output = torch.conv2d(input=images, weight=weight, bias=bias, **options)
    assert torch.equal(output, torch.conv2d(images, weight, bias, **options))


def test_an_image_without_a_batch_has_its_gradients_too():
    images, weight, bias = arguments(5)
    single = images.detach()[0].requires_grad_()
    output = convolve(single, weight, bias, padding=2)
    upstream = upstream_of(output)
    exact = exact_gradients((single, weight, bias), upstream, padding=2)
    for own, expected in zip(torch.autograd.grad(output, (single, weight, bias), upstream), exact, strict=True):
        assert_equal_but_for_rounding(own, expected)


@pytest.mark.parametrize("device", ["cuda", "mps", "meta"])
def test_where_the_network_is_not_on_a_cpu_nothing_is_taken_over(device):
    context = quick_gradients(torch.device(device))
    assert isinstance(context, nullcontext)
    with context:
        output = nn.functional.conv2d(*arguments(7)[:2], groups=CHANNELS)
    assert output.grad_fn.name() == TORCHS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("padding", [0, (0, 0)])
def test_pointwise_convolutions_with_large_weights_are_products_with_the_exact_gradients(dtype, biased, padding):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 64, 2, 3, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(80, 64, 1, 1, generator=generator).to(dtype)
    bias = torch.randn(80, generator=generator).to(dtype)
    inputs = [tensor.requires_grad_() for tensor in ((images, weight, bias) if biased else (images, weight))]
    with quick_gradients(CPU):
        output = nn.functional.conv2d(*inputs, padding=padding)
    assert output.grad_fn.name() == "_ProductBackward"
    assert output.is_contiguous(memory_format=torch.channels_last)
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    exact = nn.functional.conv2d(*wide)
    upstream = upstream_of(output)
    gradients = torch.autograd.grad(output, inputs, upstream), torch.autograd.grad(exact, wide, upstream.double())
    rounding = ROUNDING if dtype == torch.bfloat16 else 1e-5
    for own, other in zip((output, *gradients[0]), (exact, *gradients[1]), strict=True):
        torch.testing.assert_close(own.double(), other, rtol=rounding, atol=rounding * other.abs().max().item())


def test_an_activation_in_place_keeps_the_gradient_of_a_product():
    images = torch.randn(2, 64, 2, 2).contiguous(memory_format=torch.channels_last).requires_grad_()
    layer = nn.Conv2d(64, 64, 1)
    with quick_gradients(CPU):
        output = nn.functional.relu(layer(images), inplace=True)
    upstream = upstream_of(output)
    plain = nn.functional.relu(layer(images))
    for own, exact in zip(
        torch.autograd.grad(output, (images, layer.weight), upstream),
        torch.autograd.grad(plain, (images, layer.weight), upstream),
        strict=True,
    ):
        torch.testing.assert_close(own, exact, rtol=1e-4, atol=1e-5)


def test_only_what_is_frozen_has_no_gradient_of_a_product():
    images = torch.randn(1, 64, 2, 2).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(64, 64, 1, 1, requires_grad=True), torch.randn(64)
    with quick_gradients(CPU):
        nn.functional.conv2d(images, weight, bias).sum().backward()
        frozen = nn.functional.conv2d(images, weight.detach(), bias)
    assert weight.grad is not None
    assert frozen.grad_fn is None


@pytest.mark.parametrize(
    ("side", "options"),
    [(40, {}), (2, {"stride": 2}), (2, {"padding": 1}), (2, {"groups": 2})],
    ids=["many pixels", "strided", "padded", "grouped"],
)
def test_other_pointwise_convolutions_are_left_alone(side, options):
    images = torch.ones(1, 64, side, side).contiguous(memory_format=torch.channels_last)
    weight = torch.ones(64, 64 // options.get("groups", 1), 1, 1, requires_grad=True)
    with quick_gradients(CPU):
        output = nn.functional.conv2d(images, weight, **options)
    assert output.grad_fn.name() == TORCHS


def test_pointwise_convolutions_of_images_that_are_not_channels_last_are_left_alone():
    images, weight = torch.ones(1, 64, 2, 2), torch.ones(64, 64, 1, 1, requires_grad=True)
    with quick_gradients(CPU):
        assert nn.functional.conv2d(images, weight).grad_fn.name() == TORCHS
