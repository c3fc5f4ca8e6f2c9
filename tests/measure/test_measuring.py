import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from finetune.cache import list_entries
from finetune.data import Pixels, decoding, labels_of, load_images
from finetune.decide import workload
from finetune.decide.evidence import ForwardSettings, MachineSpeed
from finetune.errors import ModelError, RecipeError
from finetune.measure import domain_similarity, measure_evidence, measuring
from finetune.measure.network import load_network, takes
from finetune.measure.probing import chirality
from finetune.recipe import Recipe
from finetune.work import Work


@pytest.fixture
def measured(image_folder, weights_file, tmp_path):
    """Return the factory of evidence of a tree of images, with what the recipe says."""

    def measure(splits, **options):
        root = image_folder(tmp_path / "images", splits=splits)
        recipe = Recipe(
            data=str(root),
            model="test_efficientnet",
            weights=str(weights_file()),
            image_size=32,
            batch_size=4,
            **options,
        )
        return measure_evidence(recipe, load_images(str(root), limit=recipe.limit))

    return measure


def test_the_training_images_are_counted_by_class(measured):
    evidence = measured({"train": {"a": 12, "b": 6}, "test": {"a": 5, "b": 5}})
    assert evidence.num_images == 18
    assert evidence.class_counts == {"a": 12, "b": 6}
    assert (evidence.images_per_class, evidence.imbalance, evidence.num_classes) == (9.0, 2.0, 2)
    assert not evidence.has_validation


def test_a_given_validation_split_is_noted_and_not_counted(measured):
    evidence = measured({"train": {"a": 6, "b": 6}, "val": {"a": 5, "b": 5}})
    assert evidence.has_validation
    assert evidence.num_images == 12


def test_classes_that_differ_in_colour_are_predicted_by_the_probe_better_than_by_chance(measured):
    evidence = measured({"train": {"a": 20, "b": 20}})
    assert evidence.probe_accuracy > 0.8
    assert 0 < evidence.probe_accuracy_error < 0.1


@pytest.mark.parametrize(("largest", "metric"), [(14, "top1"), (15, "balanced_accuracy")])
def test_from_five_to_one_on_balanced_accuracy_chooses(measured, largest, metric):
    evidence = measured({"train": {"a": largest, "b": 3}})
    assert evidence.metric == metric
    assert (len(evidence.probe.answers) > 1) == (metric == "balanced_accuracy")


def test_a_given_metric_chooses(measured):
    assert measured({"train": {"a": 6, "b": 6}}, metric="balanced_accuracy").metric == "balanced_accuracy"


def test_a_network_without_norms_and_source_classes_that_tell_the_domain_is_neither_near_nor_far(
    image_folder, tmp_path
):
    root = image_folder(tmp_path / "images", {"a": 6, "b": 6})
    network = timm.create_model("test_convnext", num_classes=2)
    save_file(network.state_dict(), tmp_path / "own.safetensors")
    recipe = Recipe(data=str(root), model="test_convnext", weights=str(tmp_path / "own.safetensors"), image_size=32)
    evidence = measure_evidence(recipe, load_images(str(root)))
    assert (evidence.domain_similarity, evidence.similarity_calibrated) == (0.5, False)


def test_the_similarity_is_between_0_and_1_and_is_uncalibrated_for_other_networks(measured):
    evidence = measured({"train": {"a": 6, "b": 6}})
    assert 0.0 <= evidence.domain_similarity <= 1.0
    assert not evidence.similarity_calibrated
    assert {"late_vigour", "middle_vigour"} <= evidence.similarity_parts.keys()


def test_the_similarity_is_measured_at_the_size_of_the_training_if_the_network_does_not_take_its_own(
    image_folder, tmp_path
):
    # The attention of HaloNet is computed in blocks of 8 x 8, and 128 px leave 4 x 4 in its last stage.
    root = image_folder(tmp_path / "images", {"a": 3, "b": 3})
    splits = load_images(str(root))
    recipe = Recipe(data=str(root), model="halonet26t", strategy="scratch", image_size=256)
    network, about = load_network(recipe, splits)
    assert not takes(network, about.name, about.preprocessing.changed(image_size=domain_similarity.DOMAIN_SIZE))
    settings = ForwardSettings(
        precision="float32", layout="contiguous", batch_size=2, streams=1, num_threads=1, loader_workers=0
    )
    pixels = Pixels(splits.train, 256)
    found = domain_similarity.measure_domain(network, about, pixels, labels_of(splits.train), 0, settings)
    assert found.parts


def test_the_same_images_give_the_same_evidence_except_for_times(measured):
    def timeless(evidence):
        return evidence.changed(
            seconds=0.0,
            speed=first.speed,
            cache_bytes=0,
            work=first.work,
        )

    first = measured({"train": {"a": 8, "b": 8}})
    second = measured({"train": {"a": 8, "b": 8}})
    if first.speed.forward.precision == second.speed.forward.precision:
        assert timeless(first) == timeless(second)


def test_random_weights_are_measured_where_scratch_was_asked_for(measured):
    evidence = measured({"train": {"a": 6, "b": 6}}, strategy="scratch")
    assert evidence.weights == "random numbers: scratch was asked for"


def test_the_size_is_the_given_one_and_says_so(measured):
    evidence = measured({"train": {"a": 6, "b": 6}})
    assert evidence.preprocessing.image_size == 32
    assert evidence.image_size_reason == "32 px was asked for"


def test_the_native_size_is_the_median_shorter_side(measured):
    assert measured({"train": {"a": 6, "b": 6}}).native_shorter_side == 32


def test_a_network_that_is_not_known_is_refused(image_folder, tmp_path):
    root = image_folder(tmp_path)
    with pytest.raises(ModelError, match="timm has no model 'test_efficientnett'; did you mean 'test_efficientnet"):
        measure_evidence(Recipe(data=str(root), model="test_efficientnett"), load_images(str(root)))


def test_images_with_a_left_and_a_right_differ_from_their_mirrored_copies():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(60, 8)).astype(np.float32)
    mirrored = features + generator.normal(size=features.shape).astype(np.float32) * 0.1
    assert chirality(features, mirrored + np.float32(2.0) * np.eye(8, dtype=np.float32)[0], 0) > 0.95


def test_images_that_look_like_their_mirrored_copies_are_told_apart_by_chance():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(200, 8)).astype(np.float32)
    mirrored = features + generator.normal(size=features.shape).astype(np.float32) * 0.1
    assert chirality(features, mirrored, 0) == pytest.approx(0.5, abs=0.12)


def test_evidence_leaves_the_global_random_state_to_training(measured):
    torch.manual_seed(5)
    before = np.random.get_state()[1].copy()
    measured({"train": {"a": 6, "b": 6}})
    assert np.array_equal(np.random.get_state()[1], before)


def test_images_too_small_for_their_size_are_measured(image_folder, weights_file, tmp_path):
    root = image_folder(tmp_path / "images", {"a": 6, "b": 6})
    for shade, path in enumerate(root.rglob("*.png")):
        Image.new("L", (3, 5), shade).save(path)
    recipe = Recipe(data=str(root), model="test_efficientnet", weights=str(weights_file()), image_size=32, batch_size=4)
    assert measure_evidence(recipe, load_images(str(root))).num_images == 10


def size_of(folder, *endings):
    return sum(path.stat().st_size for ending in endings for path in folder.rglob(f"*.{ending}"))


@pytest.mark.usefixtures("empty_cache")
def test_a_first_measurement_decodes_each_image_once_and_forwards_it_for_domain_probe_and_flips(measured, tmp_path):
    evidence = measured({"train": {"a": 8, "b": 6}})
    size = size_of(tmp_path / "images", "jpg", "png")
    assert evidence.work == Work(
        forward_images=3 * 14, forward_equivalents=3 * 14.0, decoded_images=14, decoded_bytes=size
    )


@pytest.mark.usefixtures("empty_cache")
def test_a_second_measurement_decodes_and_forwards_nothing_and_finds_the_same(measured, monkeypatch):
    monkeypatch.setattr(measuring, "is_busy", lambda: False)
    first = measured({"train": {"a": 8, "b": 6}})

    def refused(*_arguments, **_options):
        raise AssertionError("this was done before")

    for module, name in ((decoding, "read_image"), (measuring, "measure_speed"), (domain_similarity, "DomainProbe")):
        monkeypatch.setattr(module, name, refused)
    second = measured({"train": {"a": 8, "b": 6}})
    assert second.work == Work(cache_hits=4 * 14)
    assert second == first.changed(work=second.work, seconds=second.seconds, cache_bytes=second.cache_bytes)


@pytest.mark.usefixtures("empty_cache")
def test_only_some_images_are_sent_forward_for_the_domain_and_mirrored(measured, monkeypatch):
    monkeypatch.setattr(domain_similarity, "DOMAIN_SAMPLE", 6)
    monkeypatch.setattr(measuring, "FLIPS_CHECKED", 10)
    work = measured({"train": {"a": 8, "b": 6}}).work
    assert (work.forward_images, work.decoded_images) == (14 + 6 + 10, 14)


@pytest.mark.usefixtures("empty_cache")
def test_a_linear_probe_looks_at_no_mirrored_image(measured):
    evidence = measured({"train": {"a": 8, "b": 6}}, strategy="linear_probe")
    assert evidence.chirality is None
    assert evidence.work.forward_images == 2 * 14


@pytest.mark.usefixtures("empty_cache")
def test_of_many_images_only_the_probes_sample_is_decoded(measured, monkeypatch):
    monkeypatch.setattr(workload, "PROBE_SAMPLE", 12)
    evidence = measured({"train": {"a": 15, "b": 15}})
    assert evidence.num_images == 30
    assert (evidence.work.forward_images, evidence.work.decoded_images) == (36, 12)


@pytest.mark.usefixtures("empty_cache")
def test_where_nothing_can_be_cached_each_pass_decodes_every_image(measured, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE_LIMIT", "0")
    work = measured({"train": {"a": 8, "b": 6}}).work
    assert (work.forward_images, work.decoded_images, work.cache_hits) == (3 * 14, 3 * 14, 0)


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize(
    ("busy", "times"), [([False, False], [1, 1]), ([True, True], [1, 1]), ([True, False, False], [1, 2, 2])]
)
def test_the_machine_is_timed_once_and_again_when_it_is_idle_after_it_was_busy(measured, monkeypatch, busy, times):
    timed, own, found = [], measuring.measure_speed, []
    monkeypatch.setattr(measuring, "measure_speed", lambda *rest: timed.append(rest) or own(*rest))
    for is_busy in busy:
        monkeypatch.setattr(measuring, "is_busy", lambda is_busy=is_busy: is_busy)
        measured({"train": {"a": 8, "b": 6}})
        found.append(len(timed))
    assert found == times


@pytest.mark.usefixtures("empty_cache")
def test_speeds_that_were_measured_on_a_busy_machine_are_marked_in_the_cache(measured, monkeypatch):
    monkeypatch.setattr(measuring, "is_busy", lambda: True)
    measured({"train": {"a": 8, "b": 6}})
    assert [entry.about for entry in list_entries() if entry.kind == "measurements"] == [
        "speed of test_efficientnet at 32 px on a busy machine"
    ]


@pytest.mark.usefixtures("empty_cache")
def test_what_an_older_version_measured_of_the_machine_is_measured_again(measured, monkeypatch):
    monkeypatch.setattr(measuring, "is_busy", lambda: False)
    timed, own = [], measuring.measure_speed
    monkeypatch.setattr(measuring, "measure_speed", lambda *rest: timed.append(rest) or own(*rest))
    measured({"train": {"a": 6, "b": 6}})

    class Older(MachineSpeed):
        """A speed with one more key."""

        number_of_cores: int = 1

    monkeypatch.setattr(measuring, "MachineSpeed", Older)
    measured({"train": {"a": 6, "b": 6}})
    assert len(timed) == 2


@pytest.mark.usefixtures("empty_cache")
def test_images_of_which_one_has_changed_are_measured_again(measured, monkeypatch, tmp_path):
    monkeypatch.setattr(measuring, "is_busy", lambda: False)
    measured({"train": {"a": 8, "b": 8}})
    root = tmp_path / "images" / "train"
    (root / "a" / "000.jpg").write_bytes((root / "b" / "000.jpg").read_bytes())
    recipe = Recipe(
        data=str(root),
        model="test_efficientnet",
        weights=str(tmp_path / "test_efficientnet.safetensors"),
        image_size=32,
        batch_size=4,
    )
    splits = load_images(str(tmp_path / "images"))
    work = measure_evidence(recipe, splits).work
    assert (work.decoded_images, work.forward_images, work.cache_hits) == (16, 3 * 16, 0)


def test_the_evidence_has_the_probes_learning_curve_up_to_its_accuracy(measured):
    probe = measured({"train": {"a": 20, "b": 20}}).probe
    assert probe.curve.num_images == (8, 16, 32)
    assert probe.curve.accuracy[-1] == pytest.approx(probe.accuracy, abs=1e-4)
    assert probe.curve.slope_error > 0


def test_several_networks_are_not_measured_at_once(image_folder, tmp_path):
    splits = load_images(str(image_folder(tmp_path)))
    with pytest.raises(RecipeError, match=r"one at a time, and 2 were given \(a, b\); finetune.run chooses"):
        measure_evidence(Recipe(data="x", model="a,b"), splits)
