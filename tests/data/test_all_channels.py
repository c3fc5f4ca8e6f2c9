"""Images of other channels than red, green and blue: their pixels, how many `all` are, and what is left out."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.data import Pixels, load_images, read_pixels, why_unreadable
from finetune.data.augmentation import Key, Variation, mix, plain_view
from finetune.data.kinds import describe_kinds
from finetune.data.scanning import read_or_explain, scan
from finetune.decide.plan import AugmentationPlan
from finetune.decide.preprocessing import Preprocessing
from finetune.errors import DataError, RecipeError
from finetune.progress import no_progress
from finetune.reading import Reading
from finetune.recipe import load_recipe
from tests.path_table import table_of_paths

tifffile = pytest.importorskip("tifffile")

BANDS = tuple(range(13))
NAMES = tuple(f"B{number}" for number in BANDS)

PREPROCESSING = Preprocessing(
    image_size=32, crop_fraction=1.0, interpolation="bicubic", mean=(0.45,) * 13, std=(0.22,) * 13,
    reading=Reading(channels=BANDS),
)  # fmt: skip


def random_bands(seed=0, side=8, dtype=np.uint16, count=13):
    """Values (channels, height, width) that fill their type."""
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (count, side, side + 2)).astype(dtype)


def encoded(values, form="planes"):
    buffer = io.BytesIO()
    if form == "planes":
        options = {"planarconfig": "separate"} if len(values) > 1 else {}
        tifffile.imwrite(buffer, values if options else values[0], photometric="minisblack", **options)
    elif form == "samples":
        tifffile.imwrite(buffer, np.moveaxis(values, 0, -1), photometric="minisblack", planarconfig="contig")
    else:
        metadata = {"axes": "CYX", "Channel": {"Name": list(NAMES[: len(values)])}}
        tifffile.imwrite(buffer, values, ome=True, photometric="minisblack", metadata=metadata)
    return buffer.getvalue()


def write_set(root, counts=None, count=13, names="ab", dtype=np.uint16):
    """Write TIFFs of two classes; `counts` are numbers of channels that differ, by the number of the image."""
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(8):
            values = random_bands([ord(name), number], dtype=dtype, count=(counts or {}).get(number, count))
            (root / name / f"{number}.tif").write_bytes(encoded(values))
    return str(root)


@pytest.mark.parametrize("form", ["planes", "samples", "ome"])
def test_8_bit_values_of_every_channel_are_kept(form):
    values = random_bands(dtype=np.uint8)
    made = read_pixels(encoded(values, form), reading=Reading(channels=BANDS))
    np.testing.assert_array_equal(made, np.moveaxis(values, 0, -1))


def test_nothing_is_logged_about_more_channels_than_pillow_knows(caplog):
    read_pixels(encoded(random_bands(), "samples"), reading=Reading(channels=BANDS))
    assert caplog.records == []


@pytest.mark.parametrize("form", ["planes", "samples", "ome"])
def test_each_channel_of_deep_values_has_its_own_range(form):
    values = random_bands()
    ranges = tuple((100 * band, 40_000 + 1000 * band) for band in BANDS)
    made = read_pixels(encoded(values, form), reading=Reading(channels=BANDS, range=ranges))
    for band, (low, high) in enumerate(ranges):
        share = (values[band].astype(np.float32) - low) * np.float32(255.0 / (high - low))
        np.testing.assert_array_equal(made[..., band], share.clip(0, 255).round().astype(np.uint8))


def test_without_a_range_each_channel_is_scaled_by_itself():
    values = random_bands(dtype=np.uint16) // np.arange(1, 14, dtype=np.uint16)[:, None, None]
    made = read_pixels(encoded(values), reading=Reading(channels=BANDS))
    assert made.min(axis=(0, 1)).tolist() == [0] * 13
    assert made.max(axis=(0, 1)).tolist() == [255] * 13


def test_channels_are_read_in_the_order_of_their_names():
    values = random_bands(dtype=np.uint8)
    made = read_pixels(encoded(values, "ome"), reading=Reading(channels=("B7", "B1", 12, "B0")))
    np.testing.assert_array_equal(made, np.moveaxis(values[[7, 1, 12, 0]], 0, -1))


@pytest.mark.parametrize("count", [2, 4, 5])
def test_few_channels_of_8_bits_are_all_read(count):
    values = random_bands(dtype=np.uint8, count=count)
    made = read_pixels(encoded(values, "samples"), reading=Reading(channels=tuple(range(count))))
    np.testing.assert_array_equal(made, np.moveaxis(values, 0, -1))


def test_channels_of_a_png_can_be_any_number_as_well():
    values = np.moveaxis(random_bands(dtype=np.uint8, count=3), 0, -1)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    made = read_pixels(buffer.getvalue(), reading=Reading(channels=(2, 0)))
    np.testing.assert_array_equal(made, values[..., [2, 0]])
    assert why_unreadable([buffer.getvalue()], Reading(channels=(0, 1, 2, 3))) == [
        "image.channels asks for channel 3, but it has channels 0 to 2"
    ]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_every_channel_is_turned_upright(orientation):
    values = np.moveaxis(random_bands(dtype=np.uint8), 0, -1)
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer, values, photometric="minisblack", planarconfig="contig",
        extratags=[(274, "H", 1, orientation, True)],
    )  # fmt: skip
    turned = np.rot90(values, {1: 0, 3: 2, 6: -1, 8: 1}[orientation])
    np.testing.assert_array_equal(read_pixels(buffer.getvalue(), reading=Reading(channels=BANDS)), turned)


def test_a_large_image_is_reduced_to_means_of_squares_in_every_channel():
    values = random_bands(dtype=np.uint8, side=32)
    made = read_pixels(encoded(values), 8, Reading(channels=BANDS))
    means = values[:, :, :32].reshape(13, 8, 4, 8, 4).mean(axis=(2, 4))
    assert made.shape == (8, 9, 13)
    np.testing.assert_allclose(np.moveaxis(made[:, :8], -1, 0), means, atol=0.51)


def test_the_question_about_many_channels_offers_to_read_all_of_them():
    (reason,) = why_unreadable([encoded(random_bands())])
    assert reason == (
        "it has 13 channels; say which become red, green and blue: --set 'image.channels=[0, 1, 2]', or read all of "
        "them: --set image.channels=all"
    )


def test_all_channels_are_those_of_most_training_images_which_is_said(tmp_path):
    splits = load_images(write_set(tmp_path), reading=Reading(channels="all"))
    assert splits.reading.channels == BANDS
    assert len(splits.reading.ranges) == 13
    assert "image.channels=all: 13 channels, as all 16 images have" in splits.notes


def test_a_file_with_another_number_of_channels_is_left_out_with_its_reason(tmp_path):
    splits = load_images(write_set(tmp_path, {2: 12, 5: 14}), reading=Reading(channels="all"))
    reasons = {one.path.removeprefix(f"{tmp_path}/"): one.reason for one in splits.unreadable}
    assert reasons == {
        f"{name}/{number}.tif": f"it has {count} channels, but most images have 13 (image.channels=all)"
        for name in "ab"
        for number, count in ((2, 12), (5, 14))
    }
    assert "image.channels=all: 13 channels, as 12 of 16 images have" in splits.notes


def test_the_training_images_say_how_many_all_channels_are(tmp_path):
    write_set(tmp_path / "train", count=4)
    write_set(tmp_path / "test", count=5)
    with pytest.raises(DataError):  # no test image is left, and a class of it is gone
        load_images(str(tmp_path / "test"), reading=Reading(channels=BANDS))
    splits = load_images(str(tmp_path), reading=Reading(channels="all"))
    assert splits.reading.channels == (0, 1, 2, 3)
    assert len(splits.unreadable) == 16


@pytest.mark.parametrize(("count", "expected"), [(1, (0,)), (3, (0, 1, 2))])
def test_all_of_one_or_three_channels_become_red_green_and_blue(tmp_path, count, expected):
    splits = load_images(write_set(tmp_path, count=count), reading=Reading(channels="all"))
    assert splits.reading.channels == expected
    assert splits.reading.num_channels == 3


def test_ranges_of_another_number_than_all_channels_are_refused(tmp_path):
    reading = Reading(channels="all", range=((0, 1), (0, 2)))
    with pytest.raises(RecipeError, match=r"image\.range has 2 ranges, but the images have 13 channels"):
        load_images(write_set(tmp_path), reading=reading)


def test_a_constant_channel_does_not_decide_for_the_others(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(8):
            values = random_bands([ord(name), number])
            values[3] = 7
            (tmp_path / name / f"{number}.tif").write_bytes(encoded(values))
    splits = load_images(str(tmp_path), reading=Reading(channels="all"))
    assert splits.reading.ranges[3] == (7.0, 14.0)
    assert splits.reading.ranges[4][1] > 60_000


def test_channels_that_are_not_read_are_told():
    reading = Reading(channels=(0, 4, 7, 9))
    sentences = describe_kinds([each.kind for each in scan([encoded(random_bands())], reading)], reading)
    assert sentences == [
        "1 image has 13 channels, of which 4 are read (0, 4, 7, 9); --set image.channels=all reads all of them"
    ]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"channels": "most"}, "expected all, or a list of channels"),
        ({"channels": []}, "expected all, or a list of channels"),
        ({"channels": [0, 1], "range": [[0, 1]] * 3}, "3 ranges were given; expected .low, high., or 2 such pairs"),
        ({"channels": [4], "range": [[0, 1]] * 2}, "one channel has one range, but 2 were given"),
    ],
)
def test_channels_and_ranges_that_do_not_fit_are_refused_in_one_sentence(keys, expected):
    with pytest.raises(RecipeError, match=expected) as caught:
        load_recipe(data="x", image=keys)
    assert "\n" not in str(caught.value)


def test_the_pixels_of_the_cache_are_those_of_the_files(tmp_path):
    paths = []
    for number in range(3):
        paths.append(tmp_path / f"{number}.tif")
        paths[-1].write_bytes(encoded(random_bands(number, dtype=np.uint8)))
    pixels = Pixels(table_of_paths(paths), 8, Reading(channels=BANDS))
    direct = pixels.read([0, 1, 2])
    pixels.cache(no_progress)
    assert pixels.is_cached
    for cached, read in zip(pixels.read([0, 1, 2]), direct, strict=True):
        np.testing.assert_array_equal(cached, read)
    assert direct[0].shape == (8, 10, 13)


def test_the_cache_tells_numbers_of_channels_apart(tmp_path):
    path = tmp_path / "one.tif"
    path.write_bytes(encoded(random_bands(dtype=np.uint8)))
    table = table_of_paths([path])
    digests = {
        Pixels(table, 8, Reading(channels=channels)).digest() for channels in (BANDS, BANDS[:12], BANDS[:3], BANDS[:1])
    }
    assert len(digests) == 4


def test_a_file_of_a_prediction_has_its_channels_or_a_reason(tmp_path):
    for name, count in (("right", 13), ("short", 12)):
        (tmp_path / f"{name}.tif").write_bytes(encoded(random_bands(count=count)))
    pixels, kind = read_or_explain(str(tmp_path / "right.tif"), 8, Reading(channels=BANDS))
    assert pixels.shape == (8, 10, 13)
    assert kind.num_channels == 13
    assert read_or_explain(str(tmp_path / "short.tif"), 8, Reading(channels=BANDS)) == (
        "image.channels asks for channel 12, but it has channels 0 to 11"
    )


def test_a_view_resizes_every_channel_as_it_resizes_colours():
    image = np.moveaxis(random_bands(dtype=np.uint8, side=40), 0, -1)
    rgb = PREPROCESSING.changed(reading=Reading(), mean=(0.45,) * 3, std=(0.22,) * 3)
    whole = plain_view(image, PREPROCESSING)
    for first in (0, 3, 6, 9):
        colours = plain_view(np.ascontiguousarray(image[..., first : first + 3]), rgb)
        np.testing.assert_array_equal(whole[first : first + 3], colours)


def test_a_training_view_changes_brightness_and_contrast_of_all_channels_alike():
    plan = AugmentationPlan(
        horizontal_flip=False, vertical_flip=False, smallest_crop=1.0, color_jitter=0.4, policy="none", mixing="none"
    )
    image = np.random.default_rng(0).integers(90, 160, (32, 32, 13), dtype=np.uint8)
    (view,) = Variation(PREPROCESSING, plan, seed=0)([image], [Key(0, 0)])
    plain = plain_view(image, PREPROCESSING).float()
    assert view.shape == (13, 32, 32)
    slopes = torch.stack(
        [torch.cov(torch.stack([a.flatten(), b.flatten()])) for a, b in zip(plain, view.float(), strict=True)]
    )
    factors = slopes[:, 0, 1] / slopes[:, 0, 0]
    assert float(factors.std()) < 0.01
    assert abs(float(factors.mean()) - 1.0) > 0.02


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_images_of_any_number_of_channels_are_mixed(mixing):
    pixels = torch.randint(0, 256, (4, 13, 16, 16), dtype=torch.uint8)
    mixed, share = mix(pixels, mixing, [0])
    assert mixed.shape == pixels.shape
    assert 0.0 < share < 1.0


@pytest.mark.parametrize(
    ("channels", "stored"), [(None, "null"), ((2, 0, 1), "[2,0,1]"), ((4,), "[4]"), (("GFP", 1, 0), '["GFP",1,0]')]
)
def test_what_names_one_or_three_channels_in_cache_keys_stays_the_same(channels, stored):
    reading = Reading(channels=channels)
    assert reading.model_dump_json() == f'{{"range":null,"window":null,"channels":{stored},"pages":null}}'
    about = PREPROCESSING.changed(reading=reading, mean=(0.485, 0.456, 0.406), std=(0.5, 0.5, 0.5))
    assert str(about) == (
        "image_size=32 crop_fraction=1.0 interpolation='bicubic' mean=(0.485, 0.456, 0.406) std=(0.5, 0.5, 0.5)"
    )


def test_a_preprocessing_lists_its_channels():
    with pytest.raises(RecipeError, match=r"reading\.channels: expected a list of channels"):
        PREPROCESSING.changed(reading=Reading(channels="all"))


def test_a_normalisation_of_another_number_of_channels_is_refused():
    with pytest.raises(RecipeError, match="one value for each of the 13 channels, but have 3 and 13"):
        PREPROCESSING.changed(mean=(0.5, 0.5, 0.5))
