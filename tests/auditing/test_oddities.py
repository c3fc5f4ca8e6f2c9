"""Blank, dark and tiny images, and those of another colour mode, are named with the reason."""

import pytest
from PIL import Image

from finetune.auditing.oddities import find_oddities
from finetune.data import Pixels
from tests.auditing.pictures import picture
from tests.path_table import table_of_paths


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """Files of 60 usual images."""
    folder = tmp_path_factory.mktemp("usual")
    for number in range(60):
        picture(number).save(folder / f"{number:02d}.bmp")
    return [str(path) for path in sorted(folder.iterdir())]


def oddities(paths):
    table = table_of_paths(paths)
    return [(paths[index], about) for index, about in find_oddities(table["image"], Pixels(table, 96))]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (120, 96), (90, 90, 90)), "blank: its grey values vary by 0.0 of 255"),
        (picture(99).point(lambda value: value // 12), "dark: 95 % of its pixels are below"),
        (picture(99, (30, 20)), "tiny: 30 x 20 pixels; the median shorter side of the set is 96"),
        (picture(99).convert("RGBA"), "colour mode RGBA; 60 images have RGB"),
    ],
)
def test_an_odd_image_is_named_with_the_reason(usual, tmp_path, image, expected):
    image.save(tmp_path / "odd.png")
    ((path, about),) = oddities([*usual, str(tmp_path / "odd.png")])
    assert path == str(tmp_path / "odd.png")
    assert expected in about


def test_usual_images_are_not_odd(usual):
    assert oddities(usual) == []


def test_a_set_of_dark_images_is_not_odd(tmp_path):
    for number in range(20):
        picture(number).point(lambda value: value // 10).save(tmp_path / f"{number}.bmp")
    assert oddities([str(path) for path in sorted(tmp_path.iterdir())]) == []
