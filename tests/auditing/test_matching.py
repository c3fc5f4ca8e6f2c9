"""Changed copies of a picture are recognised by their pixels, and other pictures are not."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from finetune.auditing.matching import Pattern
from tests.auditing.pictures import cropped, picture


def pattern(image):
    return Pattern(np.asarray(image.convert("RGB")))


def encoded(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


CHANGES = {
    "re-encoded": lambda image: encoded(image, 40),
    "reduced": lambda image: image.resize((70, 56)),
    "brightened": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "mirrored": ImageOps.mirror,
    "cropped": cropped,
    "mirrored and cropped": lambda image: encoded(cropped(ImageOps.mirror(image)), 70),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_the_same_picture_in_both_directions(change):
    original, copy = pattern(picture(0)), pattern(CHANGES[change](picture(0)))
    expected = change if change in {"mirrored", "cropped", "mirrored and cropped"} else "re-encoded"
    for match in (original.compare(copy), copy.compare(original)):
        assert match.is_same
        assert match.change == expected


def test_other_pictures_are_not_the_same():
    patterns = [pattern(picture(number)) for number in range(8)]
    scores = [one.compare(other).score for place, one in enumerate(patterns) for other in patterns[:place]]
    assert max(scores) < 0.7


def test_blank_images_are_not_the_same_picture():
    grey = np.full((60, 80, 3), 90, dtype=np.uint8)
    assert not Pattern(grey).compare(Pattern(grey + 1)).is_same


@pytest.mark.parametrize("size", [(1, 1), (300, 4), (8, 8)])
def test_images_of_any_shape_are_compared(size):
    assert not pattern(picture(1, size)).compare(pattern(picture(2))).is_same


def test_images_of_a_few_pixels_are_not_compared():
    small = picture(0).resize((48, 23))
    match = pattern(small).compare(pattern(small))
    assert not match.is_same
    large = picture(0).resize((48, 24))
    assert pattern(large).compare(pattern(large)).is_same
