"""Find the training images that new images are compared to."""

import numpy as np
import pytest

from finetune.data import load_images
from finetune.decide import workload
from finetune.progress import no_progress
from finetune.runs import doubt
from finetune.runs.doubt import find_neighbours
from finetune.training import train


@pytest.fixture
def splits(image_folder, tmp_path):
    return load_images(str(image_folder(tmp_path / "images", {"a": 6, "b": 6})))


@pytest.fixture
def probe(small_plan, weights_file, splits):
    name = "test_efficientnet"
    return train(small_plan(name, strategy="linear_probe", weights=str(weights_file(name))), splits)


def test_a_linear_probe_is_compared_by_the_features_that_its_measurement_cached(probe, splits):
    tasks = []
    found = find_neighbours(probe, splits, lambda task, *_: tasks.append(task))
    assert tasks == []  # no image is sent forward again
    features = probe.features_of(splits.train)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    # The cache has 8 bits of precision, and the images are drawn in another order: each row has one that is like it.
    cosines = found.features @ unit.T
    np.testing.assert_allclose(cosines.max(axis=1), 1.0, atol=1e-2)


def test_of_more_images_than_were_measured_those_that_are_drawn_are_sent_forward(probe, splits, monkeypatch):
    monkeypatch.setattr(workload, "PROBE_SAMPLE", 8)
    monkeypatch.setattr(doubt, "MOST", 4)
    monkeypatch.setattr(doubt, "frozen_features", None)  # a call would fail
    assert len(find_neighbours(probe, splits, no_progress).features) == 4


def test_without_a_cache_the_images_are_sent_forward(probe, splits, monkeypatch):
    cached = find_neighbours(probe, splits, no_progress)
    monkeypatch.setenv("FINETUNE_CACHE_LIMIT", "0")
    computed = find_neighbours(probe, splits, no_progress)
    np.testing.assert_allclose(computed.features, cached.features, atol=2e-2)
