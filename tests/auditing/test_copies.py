"""Copies are found among the nearest neighbours, and joined to pictures."""

import numpy as np
from PIL import ImageOps

from finetune.auditing.copies import clusters, find_near_copies, nearest_pairs, whitened
from finetune.data import Pixels
from finetune.progress import no_progress
from tests.auditing.pictures import picture
from tests.path_table import table_of_paths


def test_neighbours_are_pairs_without_the_image_itself():
    vectors = np.eye(4, dtype=np.float32) + 0.1
    vectors[1] = vectors[0]
    assert (0, 1) in nearest_pairs(vectors, 1)
    assert all(first < second for first, second in nearest_pairs(vectors, 3))
    assert nearest_pairs(vectors[:1], 5) == []


def test_whitened_features_have_length_one_whatever_their_scale():
    features = np.random.default_rng(0).normal(size=(40, 12)).astype(np.float32) * np.logspace(
        -3, 3, 12, dtype=np.float32
    )
    assert np.allclose(np.linalg.norm(whitened(features), axis=1), 1.0, atol=1e-5)
    assert np.isfinite(whitened(np.ones((5, 3), dtype=np.float32))).all()


def test_pairs_are_joined_to_the_smallest_index():
    assert clusters(6, [(4, 2), (2, 5), (0, 1)]).tolist() == [0, 0, 2, 3, 2, 2]


def test_only_pairs_whose_pixels_agree_are_copies(tmp_path):
    images = [*(picture(number) for number in range(6)), ImageOps.mirror(picture(2))]
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    table = table_of_paths([str(tmp_path / f"{number}.png") for number in range(7)])
    features = np.random.default_rng(0).normal(size=(7, 16)).astype(np.float32)
    (pair,) = find_near_copies(features, np.arange(7), Pixels(table, 96), no_progress)
    assert (pair.first, pair.second, pair.match.change) == (2, 6, "mirrored")
    assert find_near_copies(features, np.arange(6), Pixels(table, 96), no_progress) == []
