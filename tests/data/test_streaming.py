from itertools import islice

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image

import finetune
from finetune.data import labels_of, load_images, read_image, streaming
from finetune.data.batches import BatchShare, StreamedBatches
from finetune.errors import DataError
from finetune.recipe import TableColumns
from finetune.training import Checkpoints, train

COUNT, SAMPLED = 48, 24
"""Images of the training split, and those of them that are held in memory."""

NAMES = ["ant", "bee", "fly"]


@pytest.fixture(autouse=True)
def _small(monkeypatch, tmp_path):
    monkeypatch.setattr(streaming, "SAMPLE", SAMPLED)
    monkeypatch.setattr(streaming, "BUFFER", 16)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # after each pass over Parquet files


def split_of(count, first=0, feature=None):
    """Images that tell their number in red and their class in green."""
    labels = [number % len(NAMES) for number in range(count)]
    images = [Image.new("RGB", (40, 40), (first + number, 80 * label, 0)) for number, label in enumerate(labels)]
    values = labels if feature is None else [NAMES[label] for label in labels]
    features = Features({"img": datasets.Image(), "fine_label": feature or ClassLabel(names=NAMES)})
    return Dataset.from_dict({"img": images, "fine_label": values}, features=features)


@pytest.fixture
def name(tmp_path):
    """A folder of Parquet files, as the hub has them."""
    return write(tmp_path, train=split_of(COUNT), test=split_of(9, first=200))


def write(tmp_path, **splits):
    for split, dataset in splits.items():
        (tmp_path / "set" / "data").mkdir(parents=True, exist_ok=True)
        dataset.to_parquet(str(tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet"))
    return f"stream:{tmp_path / 'set'}"


def number_of(source):
    return read_image(source).getpixel((0, 0))[0]


def numbers_of(split):
    return [number_of(source) for source in split["image"]]


def one_pass(splits, start=0):
    """Numbers and classes of the stream's images, each once."""
    count = COUNT - len(splits.validation)
    return [(number_of(source), label) for source, label in islice(splits.stream.read(start), count)]


def test_a_sample_of_each_split_is_held_and_a_part_of_it_judges(name):
    splits = load_images(name)
    assert splits.class_names == tuple(NAMES)
    assert len(splits.train) + len(splits.validation) == SAMPLED
    assert len(splits.validation) == pytest.approx(0.2 * SAMPLED, abs=2)
    assert len(splits.test) == 9
    assert splits.num_training_images == splits.stream.num_images == COUNT
    numbers = numbers_of(splits.train)
    assert [number % 3 for number in numbers] == labels_of(splits.train).tolist()


def test_the_stream_yields_every_training_image_once_a_pass_but_none_that_judges(name):
    splits = load_images(name)
    judging = set(numbers_of(splits.validation))
    seen = one_pass(splits)
    assert sorted(number for number, _ in seen) == sorted(set(range(COUNT)) - judging)
    assert all(number % 3 == label for number, label in seen)


def test_each_pass_has_another_order_and_the_same_one_each_time(name):
    splits = load_images(name)
    count = COUNT - len(splits.validation)
    first, second = one_pass(splits), one_pass(splits, start=count)
    assert sorted(first) == sorted(second)
    assert first != second
    assert one_pass(splits, start=count) == second
    assert first != sorted(first)


def test_reading_from_a_position_on_is_reading_on(name):
    splits = load_images(name)
    assert one_pass(splits, start=7)[:20] == one_pass(splits)[7:27]


def test_another_seed_samples_and_orders_otherwise(name):
    one, other = (load_images(name, seed=seed) for seed in (0, 1))
    assert sorted(numbers_of(one.train)) != sorted(numbers_of(other.train))
    assert one_pass(one) != one_pass(other)


def test_a_given_validation_split_judges(tmp_path):
    name = write(tmp_path, train=split_of(COUNT), validation=split_of(6, first=100))
    splits = load_images(name)
    assert sorted(numbers_of(splits.validation)) == list(range(100, 106))
    assert len(splits.train) == SAMPLED
    assert sorted(number_of(source) for source, _ in islice(splits.stream.read(0), COUNT)) == list(range(COUNT))


def test_what_fits_into_the_sample_is_no_stream(tmp_path):
    name = write(tmp_path, train=split_of(SAMPLED))
    splits = load_images(name)
    assert splits.stream is None
    assert len(splits.train) + len(splits.test) == SAMPLED
    assert splits.test_was_made


def test_images_that_cannot_be_read_are_passed_over(tmp_path):
    broken = {"bytes": b"no image", "path": None}
    table = split_of(COUNT).cast_column("img", datasets.Image(decode=False))
    rows = [broken if number in {5, 30} else row for number, row in enumerate(table["img"])]
    content = {"img": rows, "fine_label": table["fine_label"][:]}
    undecoded = Features({"img": datasets.Image(decode=False), "fine_label": ClassLabel(names=NAMES)})
    name = write(tmp_path, train=Dataset.from_dict(content, features=undecoded))
    splits = load_images(name)
    count = COUNT - 2 - len(splits.validation)
    seen = [number_of(source) for source, _ in islice(splits.stream.read(0), count)]
    assert sorted(seen) == sorted(set(range(COUNT)) - {5, 30} - set(numbers_of(splits.validation)))


def test_classes_without_names_are_refused(tmp_path):
    with pytest.raises(DataError, match="is not a ClassLabel"):
        load_images(write(tmp_path, train=split_of(COUNT, feature=Value("string"))), TableColumns(label="fine_label"))


def test_a_class_that_the_sample_lacks_is_refused(tmp_path):
    table = split_of(COUNT).cast_column("fine_label", ClassLabel(names=[*NAMES, "wasp"]))
    with pytest.raises(DataError, match="'wasp'"):
        load_images(write(tmp_path, train=table))


def test_a_limit_is_refused(name):
    with pytest.raises(DataError, match="--limit"):
        load_images(name, limit=10)


@pytest.fixture
def batches(name, small_plan):
    stream, plan = load_images(name).stream, small_plan()

    def make(steps, **share):
        return list(StreamedBatches(stream, plan.preprocessing, plan.augmentation, BatchShare(6, steps, 0, **share)))

    return make


def test_the_first_steps_of_a_stream_see_small_images(name, small_plan):
    stream, plan = load_images(name).stream, small_plan()
    larger = plan.preprocessing.changed(image_size=128)
    made = StreamedBatches(stream, larger, plan.augmentation, BatchShare(6, range(1, 4), 0, small_steps=2))
    assert [images.shape[-1] for images, _ in made] == [96, 128, 128]


def test_processes_share_each_batch(batches):
    whole = batches(range(3))
    parts = [batches(range(3), rank=rank, world_size=2) for rank in (0, 1)]
    for number, (images, labels) in enumerate(whole):
        assert images.dtype == torch.uint8
        assert images.shape == (6, 3, 32, 32)
        for rank in (0, 1):
            assert torch.equal(parts[rank][number][0], images[rank::2])
            assert torch.equal(parts[rank][number][1], labels[rank::2])


def test_a_batch_depends_on_its_step_alone(batches):
    whole, later = batches(range(9)), batches(range(5, 9))
    for (images, labels), (again, labels_again) in zip(whole[5:], later, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, labels_again)


@pytest.mark.parametrize("strategy", ["full", "partial", "linear_probe"])
def test_an_interrupted_training_on_a_stream_goes_on_to_the_same_model(
    name, small_plan, weights_file, tmp_path, strategy
):
    splits = load_images(name)
    weights = str(weights_file())
    plan = small_plan("test_efficientnet", strategy=strategy, weights=weights, validation="given", cached_views=0)
    expected = train(plan, splits)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.begin()

    def interrupt(task, done, *_):
        if task.startswith("training") and done == 3:
            raise KeyboardInterrupt

    if plan.steps:
        with pytest.raises(KeyboardInterrupt):
            train(plan, splits, interrupt, checkpoints)
    model = train(plan, splits, checkpoints=checkpoints)
    for name_, value in model.network.state_dict().items():
        assert torch.equal(value, expected.network.state_dict()[name_])
    assert expected.work.backward_images == plan.steps * plan.batch_size


@pytest.mark.usefixtures("empty_cache")
def test_a_run_on_a_stream_stores_no_data_set(name, tmp_path, weights_file):
    recipe = finetune.Recipe(
        data=name, model="test_efficientnet", weights=str(weights_file()), strategy="full", steps=3, image_size=32
    )
    model = finetune.run(recipe, tmp_path / "run")
    assert model.test.num_images == 9
    assert model.plan.validation == "given"
    assert not list((tmp_path / "datasets").rglob("*.arrow"))
    probabilities = model.probabilities(load_images(name).test)
    assert np.allclose(probabilities.sum(axis=1), 1.0)
