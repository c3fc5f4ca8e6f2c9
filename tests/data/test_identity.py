"""Tell whether the images of an evaluation are those of the run."""

import pytest

from finetune.data.identity import DataIdentity


def identity(images):
    return DataIdentity(digest="d", counts={}, images=images)


@pytest.fixture
def run():
    """Images without paths of their own, which are numbered in each split."""
    rows = {"image 0": "train\ta\t1\tx", "image 1": "train\tb\t1\ty", "test: image 0": "test\ta\t1\tz"}
    return identity(rows)


def test_images_without_paths_are_the_same_whatever_their_numbers_are(run):
    everything = {"image 0": "test\ta\t1\tz", "image 1": "test\ta\t1\tx", "image 2": "test\tb\t1\ty"}
    assert run.difference_from_part(identity(everything)) == ""
    assert run.difference_from_part(identity({"image 5": "test\ta\t1\tz"})) == ""


def test_an_image_of_another_content_is_a_change(run):
    assert run.difference_from_part(identity({"image 0": "test\ta\t1\tother"})) != ""
