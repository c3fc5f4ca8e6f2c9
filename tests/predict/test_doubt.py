"""When a model should not answer: the limits, and the labels that are withheld."""

import json
from functools import partial

import numpy as np
import pytest
from safetensors.numpy import save_file

from finetune.errors import RunFolderError
from finetune.predict.doubt import (
    UNLIKE,
    UNSURE,
    Doubt,
    LeastProbability,
    Limits,
    find_least_probability,
    label_with_doubt,
    least_probability_in_set,
)
from finetune.predict.labelling import label_files
from finetune.predict.model import TrainedModel
from finetune.predict.neighbours import Neighbours, label_with_distances
from tests.path_table import table_of_paths


def calibrated(count, seed, confident=0.5):
    """Probabilities of the best class between `confident` and 1, and whether it is right, as often as they say."""
    generator = np.random.default_rng(seed)
    probabilities = generator.uniform(confident, 1.0, count)
    return probabilities, generator.uniform(size=count) < probabilities


def test_labels_above_the_limit_are_as_often_right_as_asked_on_new_images():
    right = []
    for seed in range(40):
        least = find_least_probability(*calibrated(400, seed), wanted=0.85)
        probabilities, is_right = calibrated(4000, 1000 + seed)
        right.append(is_right[probabilities >= least.value].mean())
    assert np.mean(right) == pytest.approx(0.85, abs=0.01)


def test_the_limit_is_the_smallest_and_counts_one_further_image_as_wrong():
    probabilities = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    least = find_least_probability(probabilities, np.array([True, True, True, False, True]), wanted=0.74)
    assert (least.value, least.share, least.right) == (0.7, 0.6, 1.0)  # 3 of 3 + 1; 4 of 5 + 1 would be .67


def test_images_of_equal_probability_are_labelled_together_or_not_at_all():
    probabilities = np.array([0.9, 0.9, 0.9, 0.9])
    assert find_least_probability(probabilities, np.array([True, True, True, False]), wanted=0.7) is None


def test_a_set_holds_the_right_class_as_often_as_asked_on_new_images():
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        own = generator.beta(4.0, 2.0, 151)
        covered.append(own[-1] >= least_probability_in_set(own[:-1], 0.9))
    assert np.mean(covered) == pytest.approx(0.9, abs=0.05)


def test_a_set_of_more_coverage_than_the_held_out_images_can_show_has_every_class():
    assert least_probability_in_set(np.full(5, 0.9), 0.9) == 0.0


def test_an_image_far_from_all_training_images_is_beyond_the_limit():
    generator = np.random.default_rng(0)
    cluster = generator.normal(size=(200, 8)) + 20.0 * np.eye(8)[0]
    neighbours = Neighbours.among(cluster[:150])
    assert (neighbours.distances(cluster[150:]) <= neighbours.limit).mean() > 0.9
    assert (neighbours.distances(20.0 * np.eye(8)[1:]) > neighbours.limit).all()


def test_neighbours_are_read_as_they_were_written(tmp_path):
    features = np.random.default_rng(0).normal(size=(20, 8))
    neighbours = Neighbours.among(features)
    neighbours.save(tmp_path / "n.safetensors")
    again = Neighbours.load(tmp_path / "n.safetensors")
    assert again.limit == neighbours.limit
    np.testing.assert_allclose(again.distances(features), 0.0, atol=1e-3)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "is missing, because an earlier version made this run"),
        (b"x" * 20, "is damaged"),
        ({"features": np.full((2, 3), np.nan), "limit": np.zeros(1)}, "its numbers are not those of features"),
        ({"features": np.zeros((2, 3))}, "is damaged"),
    ],
)
def test_a_missing_or_damaged_file_of_neighbours_is_refused_in_a_sentence(tmp_path, content, sentence):
    path = tmp_path / "n.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        save_file(content, path)
    with pytest.raises(RunFolderError, match=sentence):
        Neighbours.load(path)


def test_features_of_another_network_are_refused():
    with pytest.raises(RunFolderError, match="have 3 features, but its network has 4"):
        Neighbours.among(np.eye(3)).distances(np.ones((1, 4)))


@pytest.fixture
def model(small_network, small_plan):
    return TrainedModel(
        network=small_network(), plan=small_plan(), class_names=("a", "b", "c"), temperature=2.0
    )  # fmt: skip


@pytest.fixture
def files(image_folder, tmp_path):
    return [str(path) for path in sorted(image_folder(tmp_path).rglob("*.png"))]


def labelled(model, files, neighbours, least, farthest):
    doubt = Doubt(limits=Limits(least=least, farthest=farthest))
    label = partial(label_with_distances, model, neighbours)
    ((made, _),) = label_with_doubt(model, label, iter([files]), 1, doubt)
    return made


def test_labels_are_withheld_from_unsure_and_unlike_images_and_the_guess_remains(model, files):
    (plain, _), *_ = label_files(model, iter([files]))
    probabilities = np.asarray(plain["probability"])
    neighbours = Neighbours.among(model.features_of(table_of_paths(files)))
    least = LeastProbability(value=float(np.median(probabilities)), share=0.5, right=1.0, interval=(0.9, 1.0))
    made = labelled(model, files, neighbours, least, farthest=1e-3)
    assert made["guess"] == plain["label"]
    unsure = probabilities < least.value
    assert made["withheld"] == [UNSURE if one else "" for one in unsure]
    assert made["label"] == ["" if one else label for one, label in zip(unsure, plain["label"], strict=True)]
    assert set(labelled(model, files, neighbours, least, farthest=-1.0)["withheld"]) == {UNLIKE}


def test_probabilities_are_those_of_a_prediction_without_doubt(model, files):
    (plain, _), *_ = label_files(model, iter([files]))
    neighbours = Neighbours.among(model.features_of(table_of_paths(files)))
    least = LeastProbability(value=0.0, share=1.0, right=1.0, interval=(0.9, 1.0))
    made = labelled(model, files, neighbours, least, neighbours.limit)
    assert {name: made[name] for name in plain} == plain


def test_a_set_has_the_classes_above_its_limit_and_always_the_best(model, files):
    (plain, _), *_ = label_files(model, iter([files]))
    ((made, _),) = label_with_doubt(model, model.label, iter([files]), 1, Doubt(least_in_set=0.0))
    assert all(json.loads(one)[0] == best for one, best in zip(made["set"], plain["label"], strict=True))
    assert all(sorted(json.loads(one)) == ["a", "b", "c"] for one in made["set"])
    ((made, _),) = label_with_doubt(model, model.label, iter([files]), 1, Doubt(least_in_set=1.0))
    assert [json.loads(one) for one in made["set"]] == [[best] for best in plain["label"]]
