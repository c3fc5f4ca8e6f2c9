from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from finetune.network.cpu.interception import BATCH_NORM, CONVOLUTION, Interception


class Noting(Interception):
    """Notes its name and the function, and passes the call on."""

    def __init__(self, name, noted):
        self.name = name
        self.noted = noted

    def call(self, function, arguments, options):
        self.noted.append((self.name, function))
        return self.pass_on(function, *arguments, **options)


def is_torchs_own():
    return nn.functional.conv2d is torch.conv2d and nn.functional.batch_norm is BATCH_NORM


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


def test_a_call_goes_through_the_contexts_from_the_inner_to_the_outer_one(network):
    images, noted = torch.ones(1, 3, 8, 8), []
    expected = network(images)
    with Noting("outer", noted), Noting("inner", noted):
        assert torch.equal(network(images), expected)
    functions = [CONVOLUTION, CONVOLUTION, BATCH_NORM, BATCH_NORM]
    assert noted == list(zip(["inner", "outer"] * 2, functions, strict=True))


def test_torchs_functions_are_its_own_again_after_the_last_context_and_after_an_error(network):
    noted = []
    with Noting("outer", noted):
        with pytest.raises(RuntimeError), Noting("inner", noted):
            network(torch.ones(1, 5, 8, 8))
        network(torch.ones(1, 3, 8, 8))
        assert not is_torchs_own()
    assert is_torchs_own()
    assert [name for name, _ in noted] == ["inner", "outer", "outer", "outer"]


def test_a_context_of_one_thread_intercepts_nothing_in_another(network):
    noted = []
    with Noting("this one", noted), ThreadPoolExecutor(1) as pool:
        pool.submit(network, torch.ones(1, 3, 8, 8)).result()
    assert noted == []


def test_threads_that_come_and_go_leave_torchs_functions(network):
    noted = []

    def work(number):
        with Noting(number, noted):
            network(torch.ones(1, 3, 8, 8))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(100)))
    assert is_torchs_own()
    assert sorted(noted, key=lambda one: one[0]) == [
        (number, function) for number in range(100) for function in (CONVOLUTION, BATCH_NORM)
    ]
