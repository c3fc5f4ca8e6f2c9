"""Train compiled networks, on the CPU."""

import pytest
import torch

from finetune.data import load_images
from finetune.training import Checkpoints, train

pytestmark = pytest.mark.slow


@pytest.fixture
def splits(image_folder, tmp_path):
    return load_images(str(image_folder(tmp_path / "images", {"a": 6, "b": 6, "c": 6})))


@pytest.fixture
def plan(small_plan, weights_file):
    name = "test_efficientnet"
    return small_plan(name, strategy="full", weights=str(weights_file(name)), refit=True, compiled=True)


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    """The modules that are compiled: captured and differentiated as on a GPU, without the minutes that it takes to
    translate them to C++."""
    modules = []
    compile_module = torch.compile

    def capture(module):
        modules.append(module)
        return compile_module(module, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", capture)
    return modules


def test_a_compiled_training_ends_with_the_weights_of_another_to_rounding(plan, splits, compiled):
    found, usual = train(plan, splits), train(plan.changed(compiled=False), splits)
    assert len(compiled) == 2  # the training and its refit
    weights, expected = found.network.state_dict(), usual.network.state_dict()
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)


def test_a_compiled_training_that_was_interrupted_ends_with_the_same_weights(plan, splits, tmp_path):
    expected = train(plan, splits)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.begin()

    def interrupt(task, done, _total, _history=()):
        if (task, done) == ("training (validation)", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(plan, splits, interrupt, checkpoints)
    resumed = train(plan, splits, checkpoints=checkpoints)
    for found, other in zip(resumed.network.state_dict().values(), expected.network.state_dict().values(), strict=True):
        assert torch.equal(found, other)
