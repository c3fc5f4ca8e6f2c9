import numpy as np
import pytest
import torch
from PIL import Image

from finetune.batches import PlainImages, normaliser
from finetune.features import forward_all, logits, pooled
from finetune.images import Pixels, table_of_paths


@pytest.fixture
def images(tmp_path, small_plan):
    generator = np.random.default_rng(0)
    paths = [str(tmp_path / f"{number}.png") for number in range(70)]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return PlainImages(Pixels(table_of_paths(paths), 32), small_plan().preprocessing)


def whole_batch(images, preprocessing):
    pixels = torch.stack([pixels for pixels, _ in images.__getitems__(range(len(images)))])
    return normaliser(preprocessing, torch.device("cpu"))(pixels)


def test_the_head_of_the_pooled_features_gives_the_networks_logits(small_network, small_plan, images):
    network, preprocessing = small_network("test_convnext"), small_plan().preprocessing
    features = forward_all(network, images, preprocessing, "float32", pooled)
    made = network.get_classifier()(torch.from_numpy(features)).detach().numpy()
    expected = forward_all(network, images, preprocessing, "float32", logits)
    np.testing.assert_allclose(made, expected, atol=1e-5)


def test_images_come_out_in_order_whatever_the_batches(small_network, small_plan, images):
    network, preprocessing = small_network(), small_plan().preprocessing
    made = forward_all(network, images, preprocessing, "float32", logits)
    with torch.no_grad():
        expected = network(whole_batch(images, preprocessing)).numpy()
    np.testing.assert_allclose(made, expected, atol=1e-5)


def test_only_the_asked_members_are_looked_at(small_network, small_plan, images):
    network, preprocessing = small_network(), small_plan().preprocessing
    everything = forward_all(network, images, preprocessing, "float32", logits)
    some = forward_all(network, images, preprocessing, "float32", logits, members=[66, 3])
    np.testing.assert_allclose(some, everything[[66, 3]], atol=1e-5)


def test_half_precision_gives_nearly_the_same_in_float32(small_network, small_plan, images):
    network, preprocessing = small_network(), small_plan().preprocessing
    exact = forward_all(network, images, preprocessing, "float32", logits)
    rough = forward_all(network, images, preprocessing, "bfloat16", logits)
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).max() < 0.1 * np.abs(exact).max()


def test_the_network_is_looked_through_in_evaluation_mode_and_learns_nothing(small_network, small_plan, images):
    network = small_network().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    forward_all(network, images, small_plan().preprocessing, "float32", pooled)
    assert not network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_progress_is_told_up_to_the_last_image(small_network, small_plan, images):
    told = []
    forward_all(
        small_network(), images, small_plan().preprocessing, "float32", pooled, lambda *now: told.append(now[1:])
    )
    assert told == [(64, 70), (70, 70)]
