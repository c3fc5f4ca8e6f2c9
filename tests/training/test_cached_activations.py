import numpy as np
import pytest
import torch
from PIL import Image

from finetune.data import Pixels
from finetune.data.augmentation import Key
from finetune.data.batches import PlainImages, VariedImages, normaliser
from finetune.network.tail import cut
from finetune.progress import no_progress
from finetune.training.cached_activations import cache_activations
from tests.path_table import table_of_paths

NUM_IMAGES, VIEWS = 70, 2
ALL = np.arange(NUM_IMAGES)


@pytest.fixture(scope="module")
def cached(tmp_path_factory, small_network, small_plan):
    """Cached activations, their images as training and as prediction see them, the tail, and the normalisation."""
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = [str(folder / f"{number}.png") for number in range(NUM_IMAGES)]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    plan = small_plan()
    pixels = Pixels(table_of_paths(paths), 32)
    varied = VariedImages(pixels, plan.preprocessing, plan.augmentation, seed=0)
    plain = PlainImages(pixels, plan.preprocessing)
    tail = cut(small_network(), 2, 32)
    made = cache_activations(
        tail, varied, plain, ALL, ALL, VIEWS, 0, plan.preprocessing, plan.forward, "weights", no_progress
    )
    return made, varied, plain, tail, normaliser(plan.preprocessing, torch.device("cpu"), "channels_last")


def activation(tail, normalise, pixels):
    with torch.no_grad():
        return tail.prefix(normalise(pixels[None]))[0]


def test_the_plain_activations_are_those_of_the_images_as_prediction_sees_them(cached):
    made, _, plain, tail, normalise = cached
    for index in (0, 66):
        expected = activation(tail, normalise, plain.__getitems__([index])[0][0])
        torch.testing.assert_close(made.plain.of([index])[0].float(), expected, rtol=0.01, atol=0.01)


def test_a_pass_sees_the_activations_of_its_own_view(cached):
    made, varied, _, tail, normalise = cached
    for index, view in ((0, 0), (5, 1), (66, 1)):
        expected = activation(tail, normalise, varied.__getitems__([Key(index, view)])[0][0])
        (held, number), *_ = made.__getitems__([Key(index, view)])
        assert number == index
        torch.testing.assert_close(held.float(), expected, rtol=0.01, atol=0.01)


def test_later_passes_take_turns_with_the_views(cached):
    made = cached[0]
    (third, _), (first, _), (second, _) = made.__getitems__([Key(3, 2), Key(3, 0), Key(3, 1)])
    assert torch.equal(third, first)
    assert not torch.equal(second, first)


def test_a_cached_number_takes_two_bytes(cached):
    assert cached[0].plain.of([0, 1]).dtype == torch.bfloat16


def test_every_view_and_the_plain_images_have_a_row_for_each_image(cached):
    made = cached[0]
    assert len(made) == NUM_IMAGES
    assert [len(each.outputs) for each in (*made.views, made.plain)] == [NUM_IMAGES] * (VIEWS + 1)


def test_cached_activations_are_found_bit_for_bit_and_nothing_is_sent_forward(cached, small_plan):
    made, varied, plain, tail, _ = cached
    plan, sent = small_plan(), []
    handle = tail.network.conv_stem.register_forward_pre_hook(lambda _, inputs: sent.append(len(inputs[0])))
    again = cache_activations(
        tail, varied, plain, ALL, ALL, VIEWS, 0, plan.preprocessing, plan.forward, "weights", no_progress
    )
    handle.remove()
    assert sent == []
    assert [each.outputs.found for each in (*again.views, again.plain)] == [True] * (VIEWS + 1)
    for one, other in zip((*made.views, made.plain), (*again.views, again.plain), strict=True):
        assert torch.equal(one.of(ALL), other.of(ALL))


@pytest.mark.parametrize(
    ("weights", "seed", "views", "found"),
    [
        ("other", 0, 2, [False] * 3),
        ("weights", 1, 2, [False, False, True]),
        ("weights", 0, 3, [True, True, False, True]),
    ],
    ids=["weights", "seed", "one view more"],
)
def test_only_what_is_not_in_the_cache_is_sent_forward(cached, small_plan, weights, seed, views, found):
    _, _, plain, tail, _ = cached
    plan = small_plan()
    varied = VariedImages(plain.pixels, plan.preprocessing, plan.augmentation, seed)
    made = cache_activations(
        tail, varied, plain, ALL, ALL, views, 0, plan.preprocessing, plan.forward, weights, no_progress
    )
    assert [each.outputs.found for each in (*made.views, made.plain)] == found


def test_activations_are_the_same_where_batches_are_computed_in_parallel(cached, small_plan):
    made, varied, plain, tail, _ = cached
    plan = small_plan()
    settings = plan.forward.changed(parallel_parts=2, batch_size=9)
    other = cache_activations(
        tail, varied, plain, ALL, ALL, VIEWS, 0, plan.preprocessing, settings, "in parallel", no_progress
    )
    for one, two in zip((*made.views, made.plain), (*other.views, other.plain), strict=True):
        torch.testing.assert_close(two.of(ALL).float(), one.of(ALL).float(), rtol=0.01, atol=0.01)


def test_only_training_images_have_views_and_only_evaluated_images_a_plain_one(cached, small_plan):
    whole, varied, plain, tail, _ = cached
    trained, evaluated = np.array([3, 5, 66]), np.array([5, 20])
    plan = small_plan()
    arguments = 0, plan.preprocessing, plan.forward, "weights", no_progress
    made = cache_activations(tail, varied, plain, trained, evaluated, VIEWS, *arguments)
    assert [len(each.outputs) for each in (*made.views, made.plain)] == [len(trained)] * VIEWS + [len(evaluated)]
    keys = [Key(66, 1), Key(3, 0), Key(66, 0)]
    for (own, _), (other, _) in zip(made.__getitems__(keys), whole.__getitems__(keys), strict=True):
        torch.testing.assert_close(own.float(), other.float(), rtol=0.01, atol=0.01)
    torch.testing.assert_close(made.plain.of([20, 5]).float(), whole.plain.of([20, 5]).float(), rtol=0.01, atol=0.01)
    for missing in (lambda: made.__getitems__([Key(20, 0)]), lambda: made.plain.of([67])):
        with pytest.raises(IndexError, match="have no cached activations"):
            missing()


def test_small_images_see_views_of_their_own_size(cached, small_plan):
    _, _, plain, tail, _ = cached
    preprocessing = small_plan().preprocessing.changed(image_size=128)
    varied = VariedImages(plain.pixels, preprocessing, small_plan().augmentation, seed=0)
    larger = PlainImages(plain.pixels, preprocessing)
    arguments = preprocessing, small_plan().forward, "weights", no_progress
    made = cache_activations(tail, varied, larger, ALL, ALL, 3, 2, *arguments)
    normalise = normaliser(preprocessing, torch.device("cpu"), "channels_last")
    for view, is_small, number in ((0, True, 0), (3, True, 1), (1, False, 2), (2, False, 2)):
        ((held, _),) = made.__getitems__([Key(5, view, is_small)])
        expected = activation(tail, normalise, varied.__getitems__([Key(5, number, is_small)])[0][0])
        assert held.shape == expected.shape
        torch.testing.assert_close(held.float(), expected, rtol=0.01, atol=0.01)
    again = cache_activations(tail, varied, larger, ALL, ALL, 3, 1, *arguments)
    assert [each.outputs.found for each in (*again.views, again.plain)] == [True, False, True, True]
