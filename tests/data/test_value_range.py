"""Images deeper than 8 bits: one range for a data set, from its training images, from the recipe, or for each image."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from finetune.data import Pixels, load_images, load_scored_images, read_image
from finetune.errors import RecipeError
from finetune.progress import no_progress
from finetune.reading import AS_STORED, Reading
from finetune.recipe import TableColumns, load_recipe
from tests.path_table import table_of_paths


def write_set(root, levels=(300, 3000), count=20, side=24):
    """Write 16-bit images of classes that differ in intensity alone, with shot noise."""
    generator = np.random.default_rng(0)
    for number, level in enumerate(levels):
        folder = root / f"class{number}"
        folder.mkdir(parents=True)
        for image in range(count):
            values = generator.poisson(level, (side, side)).astype(np.uint16)
            Image.fromarray(values).save(folder / f"{image}.png")
    return root


def encoded(values, kind="TIFF"):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(("kind", "dtype"), [("PNG", np.uint16), ("TIFF", np.int32), ("TIFF", np.float32)])
def test_a_range_becomes_0_to_255_whatever_the_values_of_an_image_are(kind, dtype):
    values = np.array([[0, 100, 140, 151], [355, 610, 700, 999]], dtype=dtype)
    made = np.asarray(read_image(encoded(values, kind), reading=Reading(range=(100, 610))))
    # (value - 100) / 2, limited and rounded to the nearest level; halves to even
    assert made[..., 0].tolist() == [[0, 0, 20, 26], [128, 255, 255, 255]]
    assert (made[..., 0] == made[..., 2]).all()


def test_holes_of_a_float_image_get_the_ends_of_the_range():
    values = np.array([[np.nan, np.inf, -np.inf, 0.5]], dtype=np.float32)
    made = np.asarray(read_image(encoded(values), reading=Reading(range=(0, 1))))
    assert made[0, :, 0].tolist() == [0, 255, 0, 128]


def test_8_bit_images_keep_their_values_whatever_the_range_is():
    values = np.arange(64, dtype=np.uint8).reshape(8, 8)
    made = np.asarray(read_image(encoded(values, "PNG"), reading=Reading(range=(0, 10))))
    np.testing.assert_array_equal(made[..., 1], values)


def test_the_range_of_a_set_is_that_of_its_training_images_and_is_told(tmp_path):
    splits = load_images(str(write_set(tmp_path / "set")))
    ((low, high),) = splits.reading.ranges
    # Shot noise of a level has the standard deviation sqrt(level); a thousandth is 3.1 of them away.
    assert low == pytest.approx(300 - 3.1 * 300**0.5, abs=15)
    assert high == pytest.approx(3000 + 3.1 * 3000**0.5, abs=60)
    (said,) = [note for note in splits.notes if "deeper than 8 bits" in note]
    assert said.startswith("34 training images are deeper than 8 bits: values from ")
    assert f"{low:g} to {high:,g} become 0 to 255" in said


def test_one_bright_image_does_not_set_the_range(tmp_path):
    root = write_set(tmp_path / "set", levels=(300, 400), count=60)
    Image.fromarray(np.full((24, 24), 60_000, dtype=np.uint16)).save(root / "class0" / "burnt.png")
    ((_, high),) = load_images(str(root)).reading.ranges
    assert high < 1000


def test_classes_that_differ_in_their_range_alone_are_told_and_how_to_remove_it(tmp_path):
    root = str(write_set(tmp_path / "set"))
    (warning,) = [note for note in load_images(root).notes if "tell its class" in note]
    assert "in 100 % of 34 images" in warning
    assert "image.range=per_image removes it" in warning
    (warning,) = [note for note in load_images(root, reading=Reading(range="per_image")).notes if "its class" in note]
    assert "scaling each image by itself removes that; --set 'image.range=[" in warning


def test_deep_images_with_sets_of_labels_have_one_range_too(tmp_path):
    root = write_set(tmp_path / "set")
    rows = [f"{path.relative_to(tmp_path)},{path.parent.name}" for path in sorted(root.rglob("*.png"))]
    (tmp_path / "table.csv").write_text("path,labels\n" + "\n".join(rows), "utf-8")
    splits = load_images(str(tmp_path / "table.csv"), columns=TableColumns(delimiter=";"))
    assert any("in 100 % of 34 images" in note for note in splits.notes)


def test_classes_of_one_range_get_no_warning(tmp_path):
    splits = load_images(str(write_set(tmp_path / "set", levels=(300, 300))))
    assert not [note for note in splits.notes if "tell its class" in note]


def test_a_set_of_8_bit_images_says_nothing_and_is_read_as_it_is_stored(image_folder, tmp_path):
    splits = load_images(str(image_folder(tmp_path / "set")))
    assert splits.reading == AS_STORED
    assert splits.notes == ()


def test_each_image_has_its_own_range_if_asked_which_is_told(tmp_path):
    splits = load_images(str(write_set(tmp_path / "set")), reading=Reading(range="per_image"))
    assert splits.reading == Reading(range="per_image")
    assert "34 training images are deeper than 8 bits: each is scaled from its own smallest" in " ".join(splits.notes)


def test_a_range_that_is_given_is_kept_also_for_scored_images(tmp_path):
    root, reading = str(write_set(tmp_path / "set")), Reading(range=(0, 4095))
    assert load_images(root, reading=reading).reading == reading
    scored = load_scored_images(root, ("class0", "class1"), reading=reading)
    assert scored.reading == reading


def test_the_cache_tells_ranges_apart_and_finds_entries_of_8_bit_images_again(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.full((8, 8), 1000, dtype=np.uint16)).save(path)
    table = table_of_paths([str(path)])
    digests = {
        Pixels(table, 8, reading).digest()
        for reading in (AS_STORED, Reading(range=(0, 2000)), Reading(range=(0, 4000)), Reading(range="per_image"))
    }
    assert len(digests) == 4
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "plain.bmp")
    plain = Pixels(table_of_paths([str(tmp_path / "plain.bmp")]), 8)
    assert plain.digest() == "41013717fa91fd7f5bff2e2de3c3a7e4"  # that of the version before ranges


def test_cached_images_of_one_range_are_not_found_with_another(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.full((8, 8), 1000, dtype=np.uint16)).save(path)
    levels = []
    for high in (2000, 4000):
        images = Pixels(table_of_paths([str(path)]), 8, Reading(range=(0, high)))
        images.cache(no_progress)
        assert images.is_cached
        levels.append(int(images.read([0])[0][0, 0, 0]))
    assert levels == [128, 64]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([4, 1], "the lower one first"),
        ("auto", "per_image"),
        ([[0, 1], [0, 2]], "three such pairs"),
        ([0, float("inf")], "finite"),
    ],
)
def test_a_range_that_is_none_is_refused_in_one_sentence(given, reason):
    with pytest.raises(RecipeError, match=reason) as caught:
        load_recipe(data="x", image={"range": given})
    assert "\n" not in str(caught.value)


def test_a_range_of_a_recipe_is_a_pair_or_three():
    one = load_recipe(data="x", **{"image.range": [1, 2]})
    assert one.image.ranges == ((1.0, 2.0),)
    three = load_recipe(data="x", **{"image.range": [[0, 1], [0, 2], [0, 3]]})
    assert three.image.ranges == ((0.0, 1.0), (0.0, 2.0), (0.0, 3.0))


def test_a_range_without_deep_images_is_told(image_folder, tmp_path):
    splits = load_images(str(image_folder(tmp_path / "set")), reading=Reading(range=(0, 10)))
    assert splits.notes == ("no image is deeper than 8 bits, so image.range changes nothing",)


def test_8_bit_images_among_deep_ones_are_told(tmp_path):
    root = write_set(tmp_path / "set", count=10)
    for number in range(10):
        Image.fromarray(np.full((8, 8), number, dtype=np.uint8)).save(root / "class0" / f"plain{number}.png")
    (said,) = [note for note in load_images(str(root)).notes if "deeper than 8 bits" in note]
    assert re.match(r"1\d of 25 training images are deeper than 8 bits: ", said)
    assert said.endswith("; 8-bit images keep their values")


def test_scored_images_of_another_depth_are_told(image_folder, tmp_path):
    deep = str(write_set(tmp_path / "deep", count=6))
    (said,) = load_scored_images(deep, ("class0", "class1")).notes
    assert "no range for images deeper than 8 bits" in said
    plain = str(image_folder(tmp_path / "plain"))
    (said,) = load_scored_images(plain, ("a", "b"), reading=Reading(range=(0, 10))).notes
    assert said.endswith("8-bit images keep their values")
