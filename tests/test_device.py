import pytest
import torch

from finetune.device import best_device
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
