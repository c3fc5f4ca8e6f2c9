import pytest
import torch

from finetune.device import best_device, to_layout
from finetune.measure.machine import device_name, precisions


@pytest.fixture
def apple(monkeypatch):
    """A computer with an Apple GPU, as far as PyTorch says."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


def test_without_an_accelerator_the_processor_is_the_device():
    assert best_device().type == "cpu"


@pytest.mark.usefixtures("apple")
def test_an_apple_gpu_is_the_device_where_there_is_no_cuda_device():
    assert best_device().type == "mps"
    assert device_name(best_device()).endswith("GPU (MPS)")


@pytest.mark.usefixtures("apple")
def test_an_apple_gpu_computes_in_float32_which_needs_no_gradient_scaler():
    assert precisions(best_device()) == ("float32",)


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_weights_have_the_strides_of_their_layout_whatever_they_had_before(small_network, layout):
    once, twice = small_network(), small_network()
    to_layout(once, layout)
    for other in ("contiguous", "channels_last", layout):
        to_layout(twice, other)
    pairs = list(zip(once.parameters(), twice.parameters(), strict=True))
    assert {before.stride() == after.stride() for before, after in pairs} == {True}
    assert all(torch.equal(before, after) for before, after in pairs)
    tiny = next(weight for weight, _ in pairs if weight.dim() == 4 and weight.shape[2:] == (1, 1))
    assert (tiny.stride()[2] == 1) == (layout == "contiguous")
