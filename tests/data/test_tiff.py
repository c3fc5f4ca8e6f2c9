"""Channels and pages of TIFFs: what becomes red, green and blue, and what is said about it."""

import io

import numpy as np
import pytest
from PIL import Image

from finetune.data import load_images, native_size, read_image, read_pixels, why_unreadable
from finetune.data.kinds import describe_kinds
from finetune.data.scanning import scan
from finetune.errors import DataError, RecipeError
from finetune.reading import AS_STORED, Reading
from finetune.recipe import load_recipe

tifffile = pytest.importorskip("tifffile")

NAMES = ["DAPI", "GFP", "RFP", "Cy5", "BF"]


def encoded(values, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def counted(*shape, dtype=np.uint8):
    """Different values, so that a wrong order shows."""
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def ome(values, axes, names=NAMES):
    metadata = {"axes": axes, "Channel": {"Name": names[: values.shape[axes.index("C")]]}}
    return encoded(values, ome=True, photometric="minisblack", metadata=metadata)


def pixels(source, **reading):
    return np.asarray(read_image(source, reading=Reading(**reading)))


def said(source, **reading):
    reading = Reading(**reading)
    return describe_kinds([each.kind for each in scan([source], reading)], reading)


def reason(source, **reading):
    (found,) = why_unreadable([source], Reading(**reading))
    return found


STACK = counted(4, 5, 6)
"""Four pages of 5 x 6 pixels, with values from 0 to 119."""


@pytest.mark.parametrize(
    ("pages", "expected"),
    [(None, STACK[0]), ("first", STACK[0]), ("middle", STACK[2]), (3, STACK[3]), ("max", STACK[3])],
)
@pytest.mark.parametrize("form", ["plain", "imagej", "ome"])
def test_of_a_stack_the_page_is_read_that_was_asked_for(form, pages, expected):
    options = {
        "plain": {},
        "imagej": {"imagej": True, "metadata": {"axes": "ZYX"}},
        "ome": {"ome": True, "metadata": {"axes": "ZYX"}},
    }[form]
    source = encoded(STACK, photometric="minisblack", **options)
    np.testing.assert_array_equal(pixels(source, pages=pages), np.stack([expected] * 3, axis=-1))


def test_the_maximum_over_pages_is_taken_value_by_value():
    stack = np.random.default_rng(0).integers(0, 256, (3, 7, 8), dtype=np.uint8)
    made = pixels(encoded(stack, photometric="minisblack"), pages="max")
    np.testing.assert_array_equal(made[..., 1], stack.max(axis=0))


def test_which_page_is_read_is_said_and_how_to_change_it():
    source = encoded(STACK, photometric="minisblack")
    assert said(source) == [
        "1 image has 4 pages: of each, its first page is read; --set image.pages=max (or middle, a number, or "
        "channels) changes it"
    ]
    assert "of each, the maximum over its pages is read" in said(source, pages="max")[0]


def test_a_page_that_a_stack_has_not_is_told_and_single_pages_are_read_anyway():
    assert reason(encoded(STACK, photometric="minisblack"), pages=4) == (
        "it has 4 pages, but image.pages asks for page 4 (counted from 0)"
    )
    assert reason(encoded(STACK[0]), pages=4) is None


def test_pages_may_be_the_channels_of_an_image():
    source = encoded(STACK, photometric="minisblack")
    found = read_pixels(source, None, Reading(pages="channels", channels=(3, 0, 1, 2)))
    np.testing.assert_array_equal(found, np.moveaxis(STACK[[3, 0, 1, 2]], 0, -1))
    np.testing.assert_array_equal(pixels(source, pages="channels", channels=(2, 1, 0)), found[..., [3, 2, 1]])
    assert reason(source, pages="channels").startswith("it has 4 channels; say which become red, green and blue")
    assert not any("pages" in sentence for sentence in said(source, pages="channels", channels=(0, 1, 2)))


def test_one_range_also_holds_for_pages():
    stack = counted(3, 2, 2, dtype=np.uint16) * 100
    made = pixels(encoded(stack, photometric="minisblack"), pages="middle", range=(400, 910))
    assert made[..., 0].tolist() == [[0, 50], [100, 150]]


CHANNELS = counted(5, 4, 6)
"""Five channels of 4 x 6 pixels, with values from 0 to 119."""


@pytest.mark.parametrize(
    ("channels", "order"),
    [((2, 0, 1), (2, 0, 1)), (("RFP", "DAPI", "GFP"), (2, 0, 1)), ((4,), (4, 4, 4)), (("BF", 0, "BF"), (4, 0, 4))],
)
def test_channels_of_an_ome_tiff_become_colours_by_number_or_name(channels, order):
    made = pixels(ome(CHANNELS, "CYX"), channels=channels)
    np.testing.assert_array_equal(made, np.moveaxis(CHANNELS[list(order)], 0, -1))


def test_samples_of_a_pixel_are_channels_too():
    source = encoded(np.moveaxis(CHANNELS, 0, -1), photometric="minisblack", planarconfig="contig")
    np.testing.assert_array_equal(pixels(source, channels=(2, 0, 1)), np.moveaxis(CHANNELS[[2, 0, 1]], 0, -1))


def test_pages_and_channels_of_a_stack_are_told_apart():
    stack = counted(2, 3, 4, 4, 5)[0]  # 3 slices of 4 channels
    made = pixels(ome(stack, "ZCYX"), channels=("Cy5", "DAPI", "GFP"), pages=1)
    np.testing.assert_array_equal(made, np.moveaxis(stack[1][[3, 0, 1]], 0, -1))


def test_each_channel_has_its_own_range():
    values = np.stack([np.full((2, 2), level, dtype=np.uint16) for level in (150, 1500, 15_000)])
    made = pixels(ome(values, "CYX"), range=((100, 200), (1000, 2000), (10_000, 30_000)))
    assert made[0, 0].tolist() == [128, 128, 64]


@pytest.mark.parametrize("count", [2, 4, 5])
def test_channels_whose_colours_are_not_known_are_a_question(count):
    expected = "DAPI, GFP, RFP" if count > 3 else "0, 1, 1"
    assert reason(ome(CHANNELS[:count], "CYX")) == (
        f"it has {count} channels ({', '.join(NAMES[:count])}); say which become red, green and blue: "
        f"--set 'image.channels=[{expected}]', or read all of them: --set image.channels=all"
    )


def test_three_channels_are_taken_in_their_order_which_is_said():
    source = ome(CHANNELS[:3], "CYX")
    np.testing.assert_array_equal(pixels(source), np.moveaxis(CHANNELS[:3], 0, -1))
    assert said(source) == [
        "1 image has 3 channels (DAPI, GFP, RFP), which become red, green and blue in this order; "
        "--set 'image.channels=[2, 0, 1]' changes it"
    ]


@pytest.mark.parametrize("channels", [(0, 1, 7), ("DAPI", "GFP", "mCherry")])
def test_a_channel_that_an_image_has_not_is_told(channels):
    assert reason(ome(CHANNELS, "CYX"), channels=channels) == (
        f"image.channels asks for channel {channels[2]}, but it has DAPI, GFP, RFP, Cy5, BF"
    )


def test_channels_of_8_bit_colours_are_chosen_as_well():
    values = counted(4, 5, 3)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    np.testing.assert_array_equal(pixels(buffer.getvalue(), channels=(2, 0, 1)), values[..., [2, 0, 1]])
    np.testing.assert_array_equal(pixels(buffer.getvalue(), channels=(1,)), values[..., [1, 1, 1]])
    assert reason(buffer.getvalue(), channels=(3, 0, 1)) == (
        "image.channels asks for channel 3, but it has channels 0 to 2"
    )


def test_the_fourth_channel_beside_colours_is_left_out_unless_it_is_asked_for():
    values = counted(4, 5, 4)
    source = encoded(values, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(pixels(source), values[..., :3])
    np.testing.assert_array_equal(pixels(source, channels=(3, 0, 1)), values[..., [3, 0, 1]])
    assert "more channels than red, green and blue" in said(source)[0]


def test_deep_colours_share_one_range():
    values = np.array([[[0, 1000, 2000], [500, 1500, 2550]]], dtype=np.uint16)
    source = encoded(values, photometric="rgb")
    assert pixels(source, range=(0, 2550)).tolist() == [[[0, 100, 200], [50, 150, 255]]]
    assert pixels(source).tolist() == [[[0, 100, 200], [50, 150, 255]]]


def test_white_is_zero_is_turned_round():
    stack = np.stack([counted(2, 3), counted(2, 3)])
    made = pixels(encoded(stack, photometric="miniswhite"))
    np.testing.assert_array_equal(made[..., 0], 255 - counted(2, 3))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_stack_is_turned_upright(orientation):
    stack = np.random.default_rng(0).integers(0, 256, (2, 4, 6), dtype=np.uint8)
    source = encoded(stack, photometric="minisblack", extratags=[(274, "H", 1, orientation, True)])
    turned = np.rot90(stack[0], {1: 0, 3: 2, 6: -1, 8: 1}[orientation])
    np.testing.assert_array_equal(pixels(source)[..., 0], turned)


@pytest.mark.parametrize(
    "options",
    [{"bigtiff": True}, {"compression": "lzw"}, {"compression": "zstd"}, {"compression": "deflate", "tile": (16, 16)}],
)
@pytest.mark.parametrize("pages", [1, 2])
def test_compressed_and_big_files_have_the_same_values(options, pages):
    pytest.importorskip("imagecodecs")
    values = counted(pages, 16, 16, dtype=np.uint16)
    source = encoded(values, photometric="minisblack", **options)
    np.testing.assert_array_equal(pixels(source, range=(0, 255))[..., 0], values[0].clip(0, 255))


def test_the_native_size_of_a_stack_is_that_of_a_page():
    assert native_size(encoded(STACK, photometric="minisblack")) == (6, 5)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_stack_is_unreadable():
    content = encoded(np.random.default_rng(0).integers(0, 256, (4, 64, 64), dtype=np.uint8), photometric="minisblack")
    assert reason(content[: len(content) // 3])


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("channels", [], "expected all, or a list of channels"),
        ("channels", [0, -1, 2], "numbers from 0, or names"),
        ("pages", "last", "first, middle, max, channels, or the number of a page"),
        ("pages", -1, "first, middle, max, channels, or the number of a page"),
    ],
)
def test_what_is_neither_channel_nor_page_is_refused_in_one_sentence(key, given, expected):
    with pytest.raises(RecipeError, match=expected):
        load_recipe(data="x", **{f"image.{key}": given})


def test_a_set_of_five_channels_is_refused_until_they_are_mapped(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(8):
            values = np.random.default_rng([ord(label), number]).integers(0, 4000, (5, 16, 16), dtype=np.uint16)
            (tmp_path / label / f"{number}.ome.tif").write_bytes(ome(values, "CYX"))
    with pytest.raises(DataError, match=r"it has 5 channels .* --set 'image.channels=\[DAPI, GFP, RFP\]'"):
        load_images(str(tmp_path))
    splits = load_images(str(tmp_path), reading=Reading(channels=("RFP", "DAPI", "GFP")))
    assert len(splits.reading.ranges) == 3
    assert splits.reading.channels == ("RFP", "DAPI", "GFP")


def test_nothing_is_said_of_plain_images():
    buffer = io.BytesIO()
    Image.fromarray(counted(4, 5, 3)).save(buffer, "PNG")
    grey = encoded(counted(4, 5))
    assert describe_kinds([each.kind for each in scan([buffer.getvalue(), grey])], AS_STORED) == []
