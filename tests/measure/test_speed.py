import numpy as np
import pytest
import torch
from PIL import Image

from finetune.data import Pixels
from finetune.data.batches import VariedImages
from finetune.errors import ModelError
from finetune.measure import speed as speed_module
from finetune.measure import step_speed, timing
from finetune.measure.machine import layouts, precisions
from finetune.measure.speed import measure_speed
from finetune.measure.timing import REPETITIONS, Rate, time_rate
from tests.path_table import table_of_paths


@pytest.fixture(scope="module")
def images(tmp_path_factory, small_plan):
    path = tmp_path_factory.mktemp("speed") / "1.png"
    Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)).save(path)
    plan = small_plan()
    return VariedImages(Pixels(table_of_paths([str(path)] * 8), 32), plan.preprocessing, plan.augmentation, 0)


@pytest.fixture(scope="module", params=["test_efficientnet", "test_resnet"])
def measured(request, small_network, small_plan, images):
    """A network that was timed, what it was before, and its speeds; 4 stages of the second cannot be cut."""
    network = small_network(request.param)
    for number, parameter in enumerate(network.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    return network, before, measure_speed(network, small_plan().preprocessing, 4, (2, 4), images)


@pytest.mark.parametrize(
    ("best", "times"), [(Rate(), 1 + REPETITIONS), (Rate(1e3, 1e3), 1 + REPETITIONS), (Rate(1e12, 1e12), 1)]
)
def test_the_first_way_is_timed_as_often_as_those_that_come_near_the_best_and_hopeless_ones_never(best, times):
    calls = []
    time_rate(lambda: calls.append(1), 1, torch.device("cpu"), best)
    assert len(calls) == times


def test_what_takes_long_is_repeated_less_often(monkeypatch):
    monkeypatch.setattr(timing, "ENOUGH", 0.0)
    calls = []
    time_rate(lambda: calls.append(1), 1, torch.device("cpu"))
    assert len(calls) == 2


def test_a_slow_network_is_timed_with_fewer_images(small_network, small_plan, images, monkeypatch):
    monkeypatch.setattr(speed_module, "TRAINING_SECONDS", 0.0)
    seen = set()
    own = step_speed._time_training
    monkeypatch.setattr(
        step_speed,
        "_time_training",
        lambda module, inputs, *rest: seen.add(len(inputs)) or own(module, inputs, *rest),
    )
    measured = measure_speed(small_network("test_efficientnet"), small_plan().preprocessing, 32, (4,), images)
    assert seen == {speed_module.LEAST_TIMED}
    assert measured.micro_batch == 32


def test_norm_tuning_is_timed_only_where_it_is_asked_for(small_network, small_plan, images, monkeypatch):
    monkeypatch.setattr(speed_module, "time_norm_tuning", lambda *_: pytest.fail("this takes time"))
    network, preprocessing = small_network("test_efficientnet"), small_plan().preprocessing
    speed = measure_speed(network, preprocessing, 4, (4,), images, with_norms=False)
    assert speed.fastest("norm_tuning", 0).images_per_second == speed.fastest("full", 0).images_per_second


def test_all_strategies_are_timed_with_the_settings_that_are_fastest_for_full(measured):
    speed = measured[2]
    full = speed.fastest("full", 0)
    assert {own.parallel_parts for own in speed.training} == {full.parallel_parts}
    assert {own.precision for own in speed.training} <= {full.precision, "float32"}


def test_every_way_of_training_is_timed(measured):
    timed = {speed.strategy for speed in measured[2].training}
    assert timed == {"norm_tuning", "partial", "full", "scratch"}


@pytest.mark.parametrize(("batch_size", "most"), [(4, 4), (48, 32)])
def test_no_more_images_are_trained_on_at_once_than_memory_should_hold(
    small_network, small_plan, images, monkeypatch, batch_size, most
):
    seen = set()
    own = step_speed._time_training
    monkeypatch.setattr(
        step_speed,
        "_time_training",
        lambda module, inputs, *rest: seen.add(len(inputs)) or own(module, inputs, *rest),
    )
    monkeypatch.setattr(speed_module, "TRAINING_SECONDS", 60.0)
    measured = measure_speed(small_network("test_efficientnet"), small_plan().preprocessing, batch_size, (4,), images)
    assert seen == {most}
    assert measured.micro_batch == most


@pytest.fixture
def small_memory(monkeypatch, small_network, small_plan, images):
    """Measure a network where no more than some images fit into memory, in training and in forward passes."""

    def measure(in_training, forward):
        def holds(module, name, most, count):
            own = getattr(module, name)

            def guarded(*arguments):
                if count(*arguments) > most:
                    raise torch.OutOfMemoryError
                return own(*arguments)

            monkeypatch.setattr(module, name, guarded)

        holds(step_speed, "_time_training", in_training, lambda _module, inputs, *_: len(inputs))
        holds(speed_module, "_time_forward", forward, lambda _network, _size, settings, *_: settings.batch_size)
        return measure_speed(small_network("test_efficientnet"), small_plan().preprocessing, 20, (4,), images)

    return measure


def test_what_does_not_fit_into_memory_is_trained_on_in_halves(small_memory):
    assert small_memory(in_training=7, forward=1_000).micro_batch == 5


def test_forward_batches_that_do_not_fit_into_memory_are_not_used(small_memory):
    assert small_memory(in_training=20, forward=16).forward.batch_size <= 16


@pytest.mark.parametrize(("in_training", "forward"), [(0, 1_000), (20, 0)])
def test_a_network_that_does_not_fit_with_one_image_is_refused_with_what_to_do(small_memory, in_training, forward):
    with pytest.raises(ModelError, match=r"does not fit into the memory of .*; give a smaller --image-size"):
        small_memory(in_training, forward)


def test_all_rates_are_positive(measured):
    speed = measured[2]
    assert speed.forward_images_per_second > 0
    assert speed.reading_images_per_second > 0
    assert all(training.images_per_second > 0 for training in speed.training)


def test_a_forward_pass_is_faster_than_training_everything(measured):
    speed = measured[2]
    assert speed.forward_images_per_second > speed.fastest("full", 0).images_per_second


def test_the_frozen_part_is_timed_only_where_the_network_can_be_cut(measured):
    network, _, speed = measured
    partial = speed.fastest("partial", 4)
    assert (speed.fastest("partial", 2).trainable_stages, partial.trainable_stages) == (2, 4)
    assert (partial.prefix_images_per_second is None) == (type(network).__name__ == "ResNet")


def test_afterwards_the_network_trains_everything_and_is_as_it_was(measured):
    network, before, _ = measured
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_the_cpu_is_timed_in_what_it_computes_in(measured):
    assert measured[2].forward.precision in precisions(torch.device("cpu"))


@pytest.mark.parametrize(
    ("has_instructions", "timed"), [(True, ("bfloat16", "float32")), (False, ("float32",))], ids=["has", "lacks"]
)
def test_half_precision_is_timed_on_cpus_with_instructions_for_it(monkeypatch, has_instructions, timed):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_instructions)
    assert precisions(torch.device("cpu")) == timed


def test_the_nearest_number_of_timed_stages_is_taken(measured):
    speed = measured[2]
    other = speed.fastest("partial", 4).changed(trainable_stages=1, images_per_second=123.0)
    both = speed.changed(training=[speed.fastest("partial", 4), other])
    assert both.fastest("partial", 2).images_per_second == 123.0


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("test_efficientnet", "cuda", ("contiguous",)),
        ("test_resnet", "cuda", ("channels_last", "contiguous")),
        ("test_efficientnet", "cpu", ("channels_last", "contiguous")),
    ],
)
def test_on_cuda_depthwise_convolutions_are_left_in_the_layout_that_no_kernel_is_compiled_for(
    small_network, name, device, expected
):
    assert layouts(small_network(name), torch.device(device)) == expected
