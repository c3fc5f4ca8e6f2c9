import numpy as np
import pytest
import torch
from PIL import Image

from finetune.batches import PlainImages, VariedImages, normaliser
from finetune.features import no_progress
from finetune.images import Pixels, table_of_paths
from finetune.network.tail import cut
from finetune.training.kept import keep_activations

NUM_IMAGES, VIEWS = 70, 2


@pytest.fixture(scope="module")
def kept(tmp_path_factory, small_network, small_plan):
    """What was kept, the images it was made of, and the tail that made it."""
    folder, generator = tmp_path_factory.mktemp("kept"), np.random.default_rng(0)
    paths = [str(folder / f"{number}.png") for number in range(NUM_IMAGES)]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    plan = small_plan()
    pixels = Pixels(table_of_paths(paths), 32)
    varied = VariedImages(pixels, plan.preprocessing, plan.augmentation, seed=0)
    plain = PlainImages(pixels, plan.preprocessing)
    tail = cut(small_network(), 2, 32)
    made = keep_activations(tail, varied, plain, VIEWS, plan.preprocessing, "float32", no_progress)
    return made, varied, plain, tail, normaliser(plan.preprocessing, torch.device("cpu"))


def activation(tail, normalise, pixels):
    with torch.no_grad():
        return tail.prefix(normalise(pixels[None]))[0]


def test_the_plain_activations_are_those_of_the_images_as_prediction_sees_them(kept):
    made, _, plain, tail, normalise = kept
    for index in (0, 66):
        expected = activation(tail, normalise, plain.__getitems__([index])[0][0])
        torch.testing.assert_close(made.plain[index].float(), expected, rtol=0.01, atol=0.01)


def test_a_pass_sees_the_activations_of_its_own_view(kept):
    made, varied, _, tail, normalise = kept
    for index, view in ((0, 0), (5, 1), (66, 1)):
        expected = activation(tail, normalise, varied.__getitems__([(index, view)])[0][0])
        (held, number), *_ = made.__getitems__([(index, view)])
        assert number == index
        torch.testing.assert_close(held.float(), expected, rtol=0.01, atol=0.01)


def test_later_passes_take_turns_with_the_views(kept):
    made = kept[0]
    (third, _), (first, _), (second, _) = made.__getitems__([(3, 2), (3, 0), (3, 1)])
    assert torch.equal(third, first)
    assert not torch.equal(second, first)


def test_activations_are_kept_in_two_bytes_a_number(kept):
    assert kept[0].plain.dtype == torch.bfloat16


def test_every_view_and_the_plain_image_are_counted(kept):
    assert len(kept[0]) == NUM_IMAGES
    assert kept[0].computed == (VIEWS + 1) * NUM_IMAGES
