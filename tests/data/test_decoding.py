import io

import numpy as np
import pytest
from PIL import ExifTags, Image, features

from finetune.data import load_images
from finetune.data.decoding import native_size, read_image
from finetune.data.scanning import why_unreadable

UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}
"""What each EXIF orientation does to the stored pixels, written without Pillow."""


def noise(height=12, width=20, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth(width, height):
    """A scene without fine grain, so that JPEG and scaling change little."""
    across, down = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    waves = (across, down, 0.5 + 0.5 * np.sin(9 * across + 5 * down))
    return Image.fromarray((np.stack(waves, axis=-1) * 255).astype(np.uint8))


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_orientation(image, orientation, kind="PNG"):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, kind, exif=exif)


def pixels(source, shorter_side=None):
    image = read_image(source, shorter_side)
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(values):
    """Grey values as RGB pixels."""
    return np.repeat(np.asarray(values, dtype=np.uint8)[..., None], 3, axis=-1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_upright_by_each_orientation_tag(orientation):
    stored = noise()
    source = with_orientation(Image.fromarray(stored), orientation)
    np.testing.assert_array_equal(pixels(source), UPRIGHT[orientation](stored))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_that_is_decoded_smaller_is_turned_upright_too(orientation):
    image = smooth(320, 192)
    made = pixels(with_orientation(image, orientation, "JPEG"), shorter_side=48)
    expected = UPRIGHT[orientation](np.asarray(image.resize((80, 48), Image.Resampling.BOX)))
    assert made.shape == expected.shape
    assert np.abs(made.astype(int) - expected).mean() < 4


def test_an_image_without_an_orientation_tag_stays_as_it_is():
    stored = noise()
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(stored))), stored)


def test_an_impossible_orientation_tag_is_passed_over():
    stored = noise()
    np.testing.assert_array_equal(pixels(with_orientation(Image.fromarray(stored), 99)), stored)


def with_segment(content, segment):
    """Return a JPEG file with a metadata segment (APP1) at its beginning."""
    return content[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + content[2:]


ONE_TAG = b"Exif\0\0II*\0\x08\0\0\0\x01\0"

BROKEN = {
    "no TIFF header": b"Exif\0\0" + b"garbage!" * 4,
    "an orientation of another type": ONE_TAG + b"\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",
    "an end in the middle": ONE_TAG + b"\x12\x01",
    "the marker twice": b"Exif\0\0Exif\0\0II*\0\x08\0\0\0\0\0",
    "XMP in another encoding": b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><dc:creator>Ren\xe9</dc:creator></x:xmpmeta>",
}


@pytest.mark.parametrize("segment", BROKEN.values(), ids=BROKEN.keys())
def test_pixels_are_read_though_the_metadata_are_broken(segment):
    plain = encoded(Image.new("RGB", (40, 30), "red"), "JPEG")
    broken = with_segment(plain, segment)
    assert why_unreadable([broken]) == [None]
    assert np.array_equal(np.asarray(read_image(broken)), np.asarray(read_image(plain)))


def test_files_with_broken_metadata_are_counted(image_folder, tmp_path):
    root = image_folder(tmp_path / "images")
    file = root / "a" / "000.jpg"
    file.write_bytes(with_segment(file.read_bytes(), BROKEN["an orientation of another type"]))
    assert load_images(str(root)).notes == (
        "metadata of 1 file cannot be read: the pixels are used as they are stored",
    )


def test_a_tiff_image_is_turned_upright_once():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    assert read_image(encoded(Image.new("RGB", (40, 30)), "TIFF", exif=exif)).size == (30, 40)


def test_black_and_white_becomes_rgb():
    ink = noise(channels=1)[..., 0] > 127
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(ink))), grey(ink * 255))


def test_grey_becomes_rgb():
    values = noise(channels=1)[..., 0]
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(values))), grey(values))


def test_a_palette_is_looked_up():
    image = Image.fromarray(noise()).quantize(16)
    np.testing.assert_array_equal(pixels(encoded(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_the_transparent_colour_of_a_palette_is_white(kind):
    image = Image.new("P", (6, 4), 1)
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.paste(0, (0, 0, 3, 4))
    made = pixels(encoded(image, kind, transparency=0))
    assert np.unique(made[:, :3].reshape(-1, 3), axis=0).tolist() == [[255, 255, 255]]
    assert np.unique(made[:, 3:].reshape(-1, 3), axis=0).tolist() == [[200, 0, 0]]


def test_a_palette_with_an_alpha_channel_is_laid_on_white():
    palette = Image.new("P", (6, 4), 1)
    palette.putpalette([10, 20, 30, 200, 0, 0])
    image = palette.convert("PA")
    image.putalpha(Image.fromarray(np.repeat(np.uint8([[0, 0, 0, 255, 255, 255]]), 4, axis=0)))
    source = encoded(image, "TIFF")
    assert Image.open(io.BytesIO(source)).mode == "PA"
    assert pixels(source)[0].tolist() == [[255] * 3] * 3 + [[200, 0, 0]] * 3


def test_the_transparent_colour_of_an_rgb_file_is_white():
    stored = np.full((4, 6, 3), (10, 20, 30), dtype=np.uint8)
    stored[:, 3:] = (200, 0, 0)
    made = pixels(encoded(Image.fromarray(stored), transparency=(10, 20, 30)))
    assert made[0].tolist() == [[255] * 3] * 3 + [[200, 0, 0]] * 3


def test_half_transparent_colours_are_mixed_with_white():
    stored = noise(channels=4).astype(float)
    share = stored[..., 3:] / 255
    expected = stored[..., :3] * share + 255 * (1 - share)
    made = pixels(encoded(Image.fromarray(stored.astype(np.uint8), "RGBA")))
    assert np.abs(made - expected).max() <= 1


def test_half_transparent_grey_is_mixed_with_white():
    stored = noise(channels=2).astype(float)
    share = stored[..., 1] / 255
    expected = stored[..., 0] * share + 255 * (1 - share)
    made = pixels(encoded(Image.fromarray(stored.astype(np.uint8), "LA")))
    assert np.abs(made - expected[..., None]).max() <= 1


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
@pytest.mark.parametrize(
    ("ink", "colour"),
    [
        ((0, 255, 255, 0), (255, 0, 0)),
        ((255, 0, 0, 0), (0, 255, 255)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((0, 0, 0, 0), (255, 255, 255)),
    ],
)
def test_printing_inks_become_the_colours_they_print(kind, ink, colour):
    made = pixels(encoded(Image.new("CMYK", (16, 16), ink), kind))
    assert np.abs(made.astype(int) - np.array(colour)).max() <= 4


def test_luma_and_chroma_become_rgb():
    stored = np.asarray(smooth(24, 16))
    source = encoded(Image.fromarray(stored).convert("YCbCr"), "TIFF")
    if Image.open(io.BytesIO(source)).mode != "YCbCr":
        pytest.skip("this Pillow turns such files into RGB when it opens them")
    assert np.abs(pixels(source).astype(int) - stored).max() <= 3


DEEP = [
    pytest.param("PNG", np.uint16, 1000, 5080, id="16-bit png"),
    pytest.param("TIFF", np.uint16, 1000, 5080, id="16-bit tiff"),
    pytest.param("TIFF", np.int32, -70_000, 70_000, id="32-bit tiff"),
    pytest.param("TIFF", np.float32, -0.25, 0.75, id="float tiff"),
]


@pytest.mark.parametrize(("kind", "depth", "low", "high"), DEEP)
def test_deep_grey_is_stretched_from_its_least_to_its_greatest_value(kind, depth, low, high):
    values = np.linspace(low, high, 18 * 12).reshape(12, 18).astype(depth)
    expected = (values.astype(float) - values.min()) / (float(values.max()) - float(values.min())) * 255
    made = pixels(encoded(Image.fromarray(values), kind))
    assert (made.min(), made.max()) == (0, 255)
    assert np.abs(made - expected[..., None]).max() <= 0.51


@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_16_bits_are_read_in_either_byte_order(byte_order):
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    mode = {"<u2": "I;16", ">u2": "I;16B"}[byte_order]
    image = Image.frombytes(mode, (8, 8), values.astype(byte_order).tobytes())
    assert np.abs(pixels(encoded(image, "TIFF")) - values[..., None] / 257).max() <= 0.51


@pytest.mark.parametrize("value", [0, 7, 255, 256, 40_000, 65_535])
def test_constant_deep_grey_stays_constant(value):
    made = pixels(encoded(Image.fromarray(np.full((6, 9), value, dtype=np.uint16))))
    assert np.unique(made).tolist() == [min(value, 255)]


def test_deep_grey_that_is_decoded_smaller_keeps_its_shades():
    values = np.linspace(500, 4500, 64 * 96).reshape(64, 96).astype(np.uint16)
    made = pixels(encoded(Image.fromarray(values)), shorter_side=16)
    assert made.shape == (16, 24, 3)
    assert made[0].mean() < 10
    assert made[-1].mean() > 245


def test_holes_in_a_float_image_leave_the_contrast_of_the_rest():
    values = np.linspace(1000, 1010, 64, dtype=np.float32).reshape(8, 8)
    values[0, :3] = np.nan, np.inf, -np.inf
    made = pixels(encoded(Image.fromarray(values), "TIFF"))[..., 0].astype(int)
    assert made[-1, -1] - made[0, 3] > 240


def test_of_an_animation_the_first_frame_is_read():
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    source = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(source)).n_frames == 3
    assert np.unique(pixels(source).reshape(-1, 3), axis=0).tolist() == [[255, 0, 0]]


def test_a_path_a_text_bytes_and_rows_of_datasets_give_the_same_pixels(tmp_path):
    stored = noise()
    content = encoded(Image.fromarray(stored))
    path = tmp_path / "image.png"
    path.write_bytes(content)
    rows = [{"path": str(path), "bytes": None}, {"path": None, "bytes": content}, {"path": str(path)}]
    for source in [path, str(path), content, *rows]:
        np.testing.assert_array_equal(pixels(source), stored)


def test_of_a_row_with_path_and_bytes_the_bytes_are_read():
    stored = noise()
    row = {"path": "nowhere.png", "bytes": encoded(Image.fromarray(stored))}
    np.testing.assert_array_equal(pixels(row), stored)


@pytest.mark.parametrize(
    "name",
    ["with spaces.png", "bücher 日本 🐦.png", "image", "photo.JPG", "photo.tif", "notes.txt", "a.b.c", "#1%20?.png"],
)
def test_the_content_counts_and_not_the_name(tmp_path, name):
    stored = noise()
    path = tmp_path / name
    path.write_bytes(encoded(Image.fromarray(stored)))
    np.testing.assert_array_equal(pixels(path), stored)
    assert why_unreadable([str(path)]) == [None]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [(640, 480), (300, 451), (97, 797), (128, 128), (65, 64)])
@pytest.mark.parametrize("asked", [32, 50, 64])
def test_an_image_that_is_decoded_smaller_has_at_least_the_asked_side_and_its_shape(kind, size, asked):
    made = read_image(encoded(smooth(*size), kind), asked)
    assert asked <= min(made.size) < 2 * asked
    assert made.width / made.height == pytest.approx(size[0] / size[1], rel=0.03)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_that_is_decoded_smaller_looks_like_the_full_one(kind):
    source = encoded(smooth(512, 384), kind)
    small = read_image(source, 96)
    full = read_image(source).resize(small.size, Image.Resampling.BOX)
    assert small.size == (128, 96)
    assert np.abs(np.asarray(small).astype(int) - np.asarray(full)).mean() < 1.5


def test_an_image_that_is_smaller_than_asked_for_is_not_enlarged():
    stored = noise(12, 20)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(stored)), shorter_side=32), stored)


def test_the_native_size_is_that_of_the_stored_pixels():
    assert native_size(with_orientation(smooth(40, 24), 6)) == (40, 24)


def test_the_native_size_is_read_from_the_header_alone():
    content = encoded(smooth(160, 120), "JPEG")
    assert native_size({"path": None, "bytes": content[: len(content) // 2]}) == (160, 120)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_truncated_image_is_unreadable(kind):
    content = encoded(Image.fromarray(noise(64, 64)), kind)
    (reason,) = why_unreadable([content[: len(content) * 2 // 3]])
    assert reason
    assert "\n" not in reason


@pytest.mark.parametrize("content", [b"", b"no image at all\n" * 20, b"\xff\xd8", b"\x89PNG\r\n\x1a\n", bytes(500)])
def test_a_file_that_is_no_image_is_unreadable(content):
    (reason,) = why_unreadable([content])
    assert reason
    assert "\n" not in reason


def test_a_missing_file_and_a_folder_are_unreadable(tmp_path):
    missing, folder = why_unreadable([str(tmp_path / "nowhere.png"), str(tmp_path)])
    assert "No such file" in missing
    assert "directory" in folder


def test_reasons_come_in_the_order_of_the_images():
    good, bad = encoded(Image.fromarray(noise())), b"text"
    wanted = np.random.default_rng(0).integers(0, 2, 100).astype(bool)
    reasons = why_unreadable([good if readable else bad for readable in wanted])
    assert [reason is None for reason in reasons] == wanted.tolist()


def test_an_image_that_would_burst_memory_is_unreadable(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    (reason,) = why_unreadable([encoded(Image.fromarray(noise()))])
    assert "decompression bomb" in reason


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_a_damaged_avif_is_unreadable_and_stops_nothing():
    content = bytearray(encoded(Image.fromarray(noise(24, 36)), "AVIF"))
    start = content.index(b"mdat") + 4
    content[start:] = bytes(len(content) - start)
    (reason,) = why_unreadable([bytes(content)])
    assert reason


@pytest.mark.parametrize("row", [None, {"path": None, "bytes": None}])
def test_a_row_without_an_image_is_unreadable_and_stops_nothing(row):
    (reason,) = why_unreadable([row])
    assert reason
