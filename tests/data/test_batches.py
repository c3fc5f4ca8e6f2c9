import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import PLAIN
from PIL import Image
from scipy.stats import ks_2samp
from torch.utils.data import DataLoader, IterableDataset
from torchvision.transforms import (
    CenterCrop,
    Compose,
    InterpolationMode,
    Normalize,
    RandomResizedCrop,
    Resize,
    ToTensor,
    v2,
)
from torchvision.transforms.functional import adjust_brightness, adjust_contrast, adjust_saturation

from finetune.data import Pixels, batches
from finetune.data.augmentation import ASPECT, Key, _jitter, _random_box
from finetune.data.batches import (
    BatchShare,
    PlainImages,
    StepSampler,
    VariedImages,
    make_loader,
    make_stream_loader,
    normaliser,
    read_in_turn,
)
from finetune.decide.plan import AugmentationPlan
from finetune.errors import DataError
from finetune.progress import no_progress
from tests.path_table import table_of_paths


@pytest.fixture
def table(tmp_path):
    """Six images of noise in three shapes, each different."""
    generator = np.random.default_rng(0)
    for number in range(6):
        height, width = ((32, 32), (32, 40), (50, 36))[number % 3]
        noise = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
    return table_of_paths([str(tmp_path / f"{number}.png") for number in range(6)])


@pytest.fixture
def preprocessing(small_plan):
    return small_plan().preprocessing


def varied(table, preprocessing, seed=0, **changes):
    return VariedImages(Pixels(table, 32), preprocessing, AugmentationPlan(**(PLAIN | changes)), seed)


def pixels_of(images, keys):
    return [pixels for pixels, _ in images.__getitems__([key if isinstance(key, int) else Key(*key) for key in keys])]


def test_every_batch_is_full_even_where_the_images_do_not_divide_by_it():
    assert [len(batch) for batch in StepSampler(range(10), BatchShare(4, range(7), seed=0))] == [4] * 7


def test_each_pass_is_a_permutation_and_passes_run_into_each_other():
    keys = [key for batch in StepSampler(range(10), BatchShare(4, range(5), seed=0)) for key in batch]
    assert sorted(key.image for key in keys if key.view == 0) == list(range(10))
    assert sorted(key.image for key in keys if key.view == 1) == list(range(10))
    assert [key.view for key in keys] == [0] * 10 + [1] * 10


def test_passes_differ_in_their_order_and_so_do_seeds():
    first = [index for batch in StepSampler(range(10), BatchShare(10, range(2), seed=0)) for index, *_ in batch]
    other = [index for batch in StepSampler(range(10), BatchShare(10, range(1), seed=1)) for index, *_ in batch]
    assert first[:10] != first[10:]
    assert first[:10] != other


def test_a_batch_larger_than_the_set_takes_several_passes():
    (batch,) = StepSampler([3, 7], BatchShare(5, range(1), seed=0))
    assert sorted(index for index, *_ in batch[:2]) == sorted(index for index, *_ in batch[2:4]) == [3, 7]
    assert [view for _, view, _ in batch] == [0, 0, 1, 1, 2]


def test_only_members_are_drawn():
    drawn = {index for batch in StepSampler([2, 5, 11], BatchShare(4, range(6), seed=0)) for index, *_ in batch}
    assert drawn == {2, 5, 11}


def test_a_resumed_sampler_goes_on_with_the_same_batches():
    whole = list(StepSampler(range(10), BatchShare(4, range(9), seed=3)))
    assert list(StepSampler(range(10), BatchShare(4, range(5, 9), seed=3))) == whole[5:]


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_processes_share_every_batch_among_them(world_size):
    whole = list(StepSampler(range(10), BatchShare(6, range(4), seed=0)))
    parts = [list(StepSampler(range(10), BatchShare(6, range(4), 0, rank, world_size))) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        shared = [key for part in parts for key in part[step]]
        assert sorted(shared) == sorted(batch)
        assert {len(part[step]) for part in parts} == {6 // world_size}


def test_the_first_steps_see_the_images_of_others_small():
    small, others = ([*StepSampler(range(10), BatchShare(4, range(6), 0, small_steps=steps))] for steps in (4, 0))
    assert [[key.is_small for key in batch] for batch in small] == [[True] * 4] * 4 + [[False] * 4] * 2
    assert [[key[:2] for key in batch] for batch in small] == [[key[:2] for key in batch] for batch in others]


def test_steps_that_are_resumed_see_images_of_the_size_that_they_would_have_seen():
    whole = list(StepSampler(range(10), BatchShare(4, range(9), 3, small_steps=6)))
    assert list(StepSampler(range(10), BatchShare(4, range(4, 9), 3, small_steps=6))) == whole[4:]


@pytest.mark.parametrize("crop", [0.5, 1.0])
def test_a_small_view_is_the_same_view_with_fewer_pixels(tmp_path, preprocessing, crop):
    slope = np.add.outer(np.arange(200), np.arange(240))[..., None] * np.array([0.5, 0.3, 0.1])
    Image.fromarray(slope.astype(np.uint8)).save(tmp_path / "slope.png")
    table, larger = table_of_paths([str(tmp_path / "slope.png")]), preprocessing.changed(image_size=128)
    plan = AugmentationPlan(**(PLAIN | {"smallest_crop": crop, "horizontal_flip": True}))
    images = VariedImages(Pixels(table, larger.shorter_side), larger, plan, 0)
    ((usual, _), (small, _)) = images.__getitems__([Key(0, 5), Key(0, 5, is_small=True)])
    assert (usual.shape, small.shape) == ((3, 128, 128), (3, 96, 96))
    shrunk = v2.functional.resize(usual, [96, 96])
    assert (shrunk.float() - small.float()).abs().mean() < (2.0 if crop < 1 else 12.0)


def test_a_varied_image_is_a_function_of_seed_index_and_view(table, preprocessing):
    changes = {"horizontal_flip": True, "smallest_crop": 0.5, "color_jitter": 0.4, "policy": "randaugment"}
    first = pixels_of(varied(table, preprocessing, **changes), [(1, 0), (2, 0), (1, 1)])
    again = pixels_of(varied(table, preprocessing, **changes), [(1, 1), (1, 0), (2, 0)])
    assert torch.equal(first[0], again[1])
    assert torch.equal(first[1], again[2])
    assert torch.equal(first[2], again[0])


def test_views_and_seeds_vary_an_image_differently(table, preprocessing):
    images = varied(table, preprocessing, smallest_crop=0.3)
    other = varied(table, preprocessing, seed=1, smallest_crop=0.3)
    first, second = pixels_of(images, [(1, 0), (1, 1)])
    assert not torch.equal(first, second)
    assert not torch.equal(first, pixels_of(other, [(1, 0)])[0])


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
def test_a_policy_changes_most_views(table, preprocessing, policy):
    keys = [(number, view) for number in range(6) for view in range(4)]
    plain = pixels_of(varied(table, preprocessing), keys)
    changed = pixels_of(varied(table, preprocessing, policy=policy), keys)
    assert sum(not torch.equal(first, second) for first, second in zip(plain, changed, strict=True)) > len(keys) / 2


@pytest.mark.parametrize("policy", ["none", "randaugment", "trivialaugment"])
def test_the_global_random_states_do_not_decide_how_an_image_is_varied(table, preprocessing, policy):
    images = varied(table, preprocessing, smallest_crop=0.3, color_jitter=0.4, policy=policy)
    made = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        made.append(pixels_of(images, [(number, 5) for number in range(6)]))
    assert all(torch.equal(first, second) for first, second in zip(*made, strict=True))


@pytest.mark.parametrize("policy", ["none", "randaugment", "trivialaugment"])
def test_the_global_random_states_are_left_as_they_were(table, preprocessing, policy):
    images = varied(table, preprocessing, smallest_crop=0.3, color_jitter=0.4, policy=policy)
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    expected = random.random(), np.random.random(), torch.rand(1)
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    images.__getitems__([Key(0, 0), Key(1, 0)])
    assert (random.random(), np.random.random(), torch.rand(1)) == expected


def test_without_flips_no_view_is_mirrored(table, preprocessing):
    plain = pixels_of(PlainImages(Pixels(table, 32), preprocessing), [0])[0]
    views = pixels_of(varied(table, preprocessing, color_jitter=1e-9), [(0, view) for view in range(40)])
    assert all((view.int() - plain.int()).abs().max() <= 2 for view in views)


def test_random_crops_are_spread_as_torchvisions_are():
    own = np.array([_random_box(120, 160, 0.3, np.random.default_rng(number)) for number in range(4000)])
    image = torch.zeros(3, 120, 160)
    torch.manual_seed(0)
    usual = np.array([RandomResizedCrop.get_params(image, [0.3, 1.0], list(ASPECT)) for _ in range(4000)])
    assert (own[:, :2] >= 0).all()
    assert (own[:, 0] + own[:, 2]).max() <= 120
    assert (own[:, 1] + own[:, 3]).max() <= 160
    for describe in (lambda box: box[:, 2] * box[:, 3], lambda box: box[:, 3] / box[:, 2], lambda box: box[:, 0]):
        assert ks_2samp(describe(own), describe(usual)).pvalue > 0.01


def test_an_image_too_narrow_for_a_crop_gives_its_middle():
    assert _random_box(400, 10, 0.9, np.random.default_rng(0)) == (193, 0, 13, 10)


def test_colours_are_jittered_as_torchvision_does_it():
    for seed in range(6):
        view = torch.randint(90, 160, (3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
        brightness, contrast, saturation = np.random.default_rng(seed).uniform(0.7, 1.3, 3)
        usual = adjust_contrast(adjust_brightness(view.float() / 255, brightness), contrast)
        usual = 255 * adjust_saturation(usual, saturation)
        own = _jitter(view, 0.3, np.random.default_rng(seed))
        assert (own.float() - usual).abs().max() <= 0.6


@pytest.mark.parametrize(("flip", "axis"), [("horizontal_flip", -1), ("vertical_flip", -2)])
def test_a_flip_gives_the_image_or_its_mirror_image_about_half_of_the_time(table, preprocessing, flip, axis):
    plain = pixels_of(PlainImages(Pixels(table, 32), preprocessing), [0])[0]
    views = pixels_of(varied(table, preprocessing, **{flip: True}), [(0, view) for view in range(100)])
    mirrored = sum(torch.equal(view, plain.flip(axis)) for view in views)
    assert mirrored + sum(torch.equal(view, plain) for view in views) == 100
    assert 30 <= mirrored <= 70


@pytest.mark.parametrize("index", [1, 2])
def test_without_cropping_a_view_shows_what_prediction_sees_in_any_shape(table, preprocessing, index):
    plain = pixels_of(PlainImages(Pixels(table, 32), preprocessing), [index])[0]
    views = pixels_of(varied(table, preprocessing, horizontal_flip=True), [(index, view) for view in range(8)])
    assert all(torch.equal(view, plain) or torch.equal(view, plain.flip(-1)) for view in views)


def test_a_plan_that_varies_nothing_gives_the_plain_images(table, preprocessing):
    plain = pixels_of(PlainImages(Pixels(table, 32), preprocessing), range(6))
    views = pixels_of(varied(table, preprocessing), [(index, 3) for index in range(6)])
    assert all(torch.equal(view, own) for view, own in zip(views, plain, strict=True))


def test_varied_images_have_the_networks_size_and_carry_their_index(table, preprocessing):
    made = varied(table, preprocessing, smallest_crop=0.3).__getitems__([Key(5, 0), Key(2, 1)])
    assert [index for _, index in made] == [5, 2]
    assert all(pixels.shape == (3, 32, 32) and pixels.dtype == torch.uint8 for pixels, _ in made)


def test_mirrored_images_are_the_plain_ones_flipped_left_to_right(table, preprocessing):
    pixels = Pixels(table, 32)
    plain = pixels_of(PlainImages(pixels, preprocessing), [1])[0]
    mirrored = pixels_of(PlainImages(pixels, preprocessing, mirrored=True), [1])[0]
    assert torch.equal(mirrored, plain.flip(-1))


def test_what_the_network_sees_is_what_torchvisions_own_transforms_give(table, preprocessing):
    pixels = Pixels(table, 32)
    usual = Compose([
        Resize(preprocessing.shorter_side, InterpolationMode.BICUBIC),
        CenterCrop(32),
        ToTensor(),
        Normalize(preprocessing.mean, preprocessing.std),
    ])  # fmt: skip
    expected = torch.stack([usual(Image.fromarray(image)) for image in pixels.read(range(6))])
    made = torch.stack(pixels_of(PlainImages(pixels, preprocessing), range(6)))
    normalise = normaliser(preprocessing, torch.device("cpu"), "channels_last")
    one_level = 1 / 255 / min(preprocessing.std)  # Pillow rounds between the two directions
    torch.testing.assert_close(normalise(made), expected, rtol=0, atol=1.01 * one_level)
    assert (normalise(made) - expected).abs().mean() < 0.02 * one_level


def test_plain_images_are_torchvisions_own_on_tensors_to_the_last_bit(table, preprocessing):
    pixels = Pixels(table, 32)
    usual = v2.Compose([v2.Resize(preprocessing.shorter_side, InterpolationMode.BICUBIC), v2.CenterCrop(32)])
    made = pixels_of(PlainImages(pixels, preprocessing), range(6))
    for own, image in zip(made, pixels.read(range(6)), strict=True):
        assert torch.equal(own, usual(torch.from_numpy(image).permute(2, 0, 1)))


@pytest.mark.parametrize(("layout", "other"), [("channels_last", "contiguous"), ("contiguous", "channels_last")])
def test_normalised_images_are_in_the_asked_layout_with_the_same_values(preprocessing, layout, other):
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made = normaliser(preprocessing, torch.device("cpu"), layout)(pixels)
    assert made.is_contiguous(memory_format=batches.MEMORY_FORMATS[layout])
    assert torch.equal(made, normaliser(preprocessing, torch.device("cpu"), other)(pixels))


def test_a_loader_gives_all_images_in_order_or_the_asked_ones(table, preprocessing):
    images = PlainImages(Pixels(table, 32), preprocessing)
    device = torch.device("cpu")
    everything = [int(index) for _, indices in make_loader(images, device, 0, batch_size=4) for index in indices]
    some = [int(index) for _, indices in make_loader(images, device, 0, keys=[4, 0]) for index in indices]
    assert (everything, some) == (list(range(6)), [4, 0])


@pytest.mark.usefixtures("empty_cache")
def test_processes_that_read_ahead_give_the_same_batches(table, preprocessing):
    pixels = Pixels(table, 32)
    pixels.cache(no_progress)
    images = VariedImages(pixels, preprocessing, AugmentationPlan(**PLAIN | {"smallest_crop": 0.3}), 0)
    keys = [Key(number % 6, number // 6) for number in range(12)]
    made = [
        [batch for batch, _ in make_loader(images, torch.device("cpu"), workers, batch_size=3, keys=keys)]
        for workers in (0, 2)
    ]
    assert len(made[0]) == 4
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("keys", [None, [5, 0, 3, 2, 1]])
def test_batches_that_are_read_in_turn_are_the_loaders(table, preprocessing, workers, keys):
    images = PlainImages(Pixels(table, 32), preprocessing)
    device = torch.device("cpu")
    expected = list(make_loader(images, device, 0, batch_size=2, keys=keys))
    made = [read() for read in read_in_turn(images, device, workers, 2, keys)]
    assert len(made) == len(expected) == 3
    for (pixels, indices), (own, others) in zip(made, expected, strict=True):
        assert torch.equal(pixels, own)
        assert torch.equal(indices, others)


@pytest.mark.parametrize("policy", ["none", "randaugment", "trivialaugment"])
def test_views_are_the_same_where_several_threads_make_them(table, preprocessing, policy):
    images = varied(table, preprocessing, smallest_crop=0.3, color_jitter=0.4, horizontal_flip=True, policy=policy)
    keys = [[(index, view)] for view in range(30) for index in range(6)]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda one: pixels_of(images, one)[0], keys))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(pixels_of(images, one)[0], view) for one, view in zip(keys, made, strict=True))


SENTENCE = "a.png cannot be decoded (it is cut short); remove it from the data and start again"


class Broken:
    """Images that cannot be decoded."""

    def __len__(self):
        return 3

    def __getitems__(self, _keys):
        raise DataError(SENTENCE)


class BrokenStream(IterableDataset):
    """A stream whose first image cannot be decoded."""

    def __iter__(self):
        raise DataError(SENTENCE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork next to threads
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("is_stream", [False, True])
def test_an_image_that_a_worker_cannot_decode_is_reported_in_the_same_sentence(workers, is_stream):
    cpu = torch.device("cpu")
    loader = (
        make_stream_loader(BrokenStream(), cpu, workers)
        if is_stream
        else make_loader(Broken(), cpu, workers, batch_size=1)
    )
    assert loader.num_workers == workers
    with pytest.raises(DataError) as caught:
        next(iter(loader))
    assert str(caught.value) == SENTENCE


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_loader_starts_its_workers_and_draws_their_seed_when_it_is_asked_for_an_iterator(table, preprocessing):
    images = PlainImages(Pixels(table, 32), preprocessing)
    states = []
    for make in (make_loader, lambda images, *_, **__: DataLoader(images, batch_size=2, sampler=range(6))):
        torch.manual_seed(0)
        iter(make(images, torch.device("cpu"), 0, batch_size=2))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
