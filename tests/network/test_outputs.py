import numpy as np
import pytest
import torch
from conftest import FORWARD
from PIL import Image

from finetune.data import Pixels
from finetune.data.batches import PlainImages, normaliser
from finetune.network.forward import forward_all, forward_batches, logits
from finetune.network.head import recorded_features
from finetune.network.outputs import cached_outputs, count_work, digest_weights, frozen_features
from finetune.progress import no_progress
from finetune.work import Work
from tests.path_table import table_of_paths


def of_images(hook):
    """Leave out the pass of one blank image that only looks for what can be folded."""
    return lambda *arguments: hook(*arguments) if len(arguments[1][0]) > 1 else None


@pytest.fixture
def forwarded(small_network):
    """A network and the sizes of the batches that it was sent."""
    network, sizes = small_network(), []
    network.conv_stem.register_forward_pre_hook(of_images(lambda _, inputs: sizes.append(len(inputs[0]))))
    return network, sizes


@pytest.fixture
def images(tmp_path, small_plan):
    generator = np.random.default_rng(0)
    paths = [str(tmp_path / f"{number}.png") for number in range(70)]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return PlainImages(Pixels(table_of_paths(paths), 32), small_plan().preprocessing)


def whole_batch(images, preprocessing):
    pixels = torch.stack([pixels for pixels, _ in images.__getitems__(range(len(images)))])
    return normaliser(preprocessing, torch.device("cpu"), "channels_last")(pixels)


def test_the_head_of_the_features_gives_the_networks_logits(small_network, small_plan, images):
    network, preprocessing = small_network("test_convnext"), small_plan().preprocessing
    with recorded_features(network) as compute:
        features = forward_all(network, images, preprocessing, FORWARD, compute)
    made = network.get_classifier()(torch.from_numpy(features)).detach().numpy()
    expected = forward_all(network, images, preprocessing, FORWARD, logits)
    np.testing.assert_allclose(made, expected, atol=1e-5)


def test_images_come_out_in_order_whatever_the_batches(small_network, small_plan, images):
    network, preprocessing = small_network(), small_plan().preprocessing
    made = forward_all(network, images, preprocessing, FORWARD, logits)
    with torch.no_grad():
        expected = network(whole_batch(images, preprocessing)).numpy()
    np.testing.assert_allclose(made, expected, atol=1e-5)


def test_only_the_given_members_are_computed(small_network, small_plan, images):
    network, preprocessing = small_network(), small_plan().preprocessing
    everything = forward_all(network, images, preprocessing, FORWARD, logits)
    some = forward_all(network, images, preprocessing, FORWARD, logits, indices=[66, 3])
    np.testing.assert_allclose(some, everything[[66, 3]], atol=1e-5)


def test_half_precision_gives_nearly_the_same_in_float32(small_network, small_plan, images):
    network, preprocessing = small_network(), small_plan().preprocessing
    exact = forward_all(network, images, preprocessing, FORWARD, logits)
    rough = forward_all(network, images, preprocessing, FORWARD.changed(precision="bfloat16"), logits)
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).max() < 0.1 * np.abs(exact).max()


def test_the_network_is_in_evaluation_mode_and_not_changed(small_network, small_plan, images):
    network = small_network().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    forward_all(network, images, small_plan().preprocessing, FORWARD, logits)
    assert not network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_progress_is_reported_up_to_the_last_image(small_network, small_plan, images):
    reported = []
    forward_all(
        small_network(), images, small_plan().preprocessing, FORWARD, logits, lambda *now: reported.append(now[1:])
    )
    assert reported == [(64, 70), (70, 70)]


SIDE_BY_SIDE = FORWARD.changed(batch_size=9, parallel_parts=2)


def test_batches_side_by_side_give_the_results_of_one_after_another_in_order(small_network, small_plan, images):
    network, preprocessing = small_network(), small_plan().preprocessing
    alone = forward_all(network, images, preprocessing, SIDE_BY_SIDE.changed(parallel_parts=1), logits)
    together = forward_all(network, images, preprocessing, SIDE_BY_SIDE, logits)
    assert alone.shape == (70, 3)
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_thread_computes_in_the_given_precision_and_keeps_no_gradients(
    small_network, small_plan, images, precision
):
    network, seen = small_network(), []
    see = of_images(lambda *now: seen.append((str(now[2].dtype), now[2].requires_grad)))
    network.conv_stem.register_forward_hook(see)
    settings = SIDE_BY_SIDE.changed(precision=precision)
    forward_all(network, images, small_plan().preprocessing, settings, logits)
    assert seen == [(f"torch.{precision}", False)] * 8


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_the_layout_changes_nothing_but_rounding(small_network, small_plan, images, layout):
    network, preprocessing = small_network(), small_plan().preprocessing
    made = forward_all(network, images, preprocessing, FORWARD.changed(layout=layout), logits)
    with torch.no_grad():
        expected = network(whole_batch(images, preprocessing)).numpy()
    np.testing.assert_allclose(made, expected, atol=1e-5)


def test_batches_are_sent_forward_only_as_they_are_asked_for(forwarded, small_plan, images):
    network, sizes = forwarded
    outputs = forward_batches(network, images, small_plan().preprocessing, FORWARD.changed(batch_size=10), logits)
    next(outputs)
    assert sizes == [10]
    outputs.close()
    assert sizes == [10]


def frozen(network, images, plan, indices=None, weights="some weights", **changes):
    settings = FORWARD.changed(**changes)
    return frozen_features(network, images, plan.preprocessing, settings, weights, no_progress, indices)


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("indices", [None, [66, 3, 5]])
def test_frozen_features_are_computed_once_and_then_found_bit_for_bit(forwarded, small_plan, images, indices):
    (network, sizes), plan = forwarded, small_plan()
    first = frozen(network, images, plan, indices)
    sent = sum(sizes)
    again = frozen(network, images, plan, indices)
    assert (first.found, again.found) == (False, True)
    assert sent == sum(sizes) == len(first) == len(again) == (70 if indices is None else 3)
    assert torch.equal(first[:], again[:])
    np.testing.assert_array_equal(first.numpy(), again.numpy())


@pytest.mark.usefixtures("empty_cache")
def test_frozen_features_are_those_of_a_forward_pass_in_bfloat16(small_network, small_plan, images):
    network, plan = small_network(), small_plan()
    with recorded_features(network) as compute:
        exact = forward_all(network, images, plan.preprocessing, FORWARD, compute)
    kept = frozen(network, images, plan)
    assert kept[:2].dtype == torch.bfloat16
    assert kept.numpy().dtype == np.float32
    np.testing.assert_array_equal(kept.numpy(), torch.from_numpy(exact).bfloat16().float().numpy())
    np.testing.assert_array_equal(kept.numpy([69, 1]), kept.numpy()[[69, 1]])


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize(
    "change", ["weights", "indices", "order", "precision", "mirrored", "size", "crop", "images", "normalisation"]
)
def test_features_are_cached_by_everything_that_they_depend_on(small_network, small_plan, images, tmp_path, change):
    network, plan = small_network(), small_plan()
    preprocessing = plan.preprocessing
    first = frozen(network, images, plan, [3, 5])
    changed = {
        "size": preprocessing.changed(image_size=40),
        "crop": preprocessing.changed(crop_fraction=0.9),
        "normalisation": preprocessing.changed(std=(0.4, 0.4, 0.4)),
    }.get(change, preprocessing)
    pixels = images.pixels
    if change == "images":
        Image.new("RGB", (32, 32), "red").save(tmp_path / "5.png")
        pixels = Pixels(table_of_paths([str(tmp_path / f"{number}.png") for number in range(70)]), 32)
    other = frozen(
        network,
        PlainImages(pixels, changed, mirrored=change == "mirrored"),
        plan.changed(preprocessing=changed),
        {"indices": [3, 6], "order": [5, 3]}.get(change, [3, 5]),
        "other weights" if change == "weights" else "some weights",
        precision="bfloat16" if change == "precision" else "float32",
    )
    assert not other.found
    assert torch.equal(other[:], first[:]) == (change == "weights")


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("changes", [{"batch_size": 16}, {"parallel_parts": 2}, {"layout": "contiguous"}])
def test_features_are_cached_without_the_settings_of_speed(small_network, small_plan, images, changes):
    frozen(small_network(), images, small_plan(), [3, 5])
    assert frozen(small_network(), images, small_plan(), [3, 5], **changes).found


@pytest.mark.usefixtures("empty_cache")
def test_features_that_cannot_be_cached_are_the_same(small_network, small_plan, images, monkeypatch):
    kept = frozen(small_network(), images, small_plan())
    monkeypatch.setenv("FINETUNE_CACHE_LIMIT", "0")
    other = frozen(small_network(), images, small_plan(), weights="other weights")
    again = frozen(small_network(), images, small_plan(), weights="other weights")
    assert not other.found
    assert not again.found
    assert torch.equal(other[:], kept[:])
    assert len(other) == 70


def test_features_whose_file_was_cut_short_are_computed_again(forwarded, small_plan, images, empty_cache):
    (network, sizes), plan = forwarded, small_plan()
    first = frozen(network, images, plan)[:]
    (file,) = empty_cache.rglob("features/*/rows")
    file.write_bytes(file.read_bytes()[:-1])
    sizes.clear()

    def at_most_once(*_):
        assert sum(sizes) <= 70

    network.conv_stem.register_forward_pre_hook(at_most_once)
    again = frozen(network, images, plan)
    assert not again.found
    assert sum(sizes) == 70
    assert torch.equal(again[:], first)
    assert frozen(network, images, plan).found


def test_a_pass_that_is_interrupted_caches_nothing(forwarded, small_plan, images, empty_cache):
    (network, sizes), plan = forwarded, small_plan()

    def stop(_task, done, _total):
        if done == 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        frozen_features(network, images, plan.preprocessing, FORWARD, "w", stop)
    assert list(empty_cache.rglob("rows")) == []
    sizes.clear()
    assert not frozen_features(network, images, plan.preprocessing, FORWARD, "w").found
    assert sum(sizes) == 70


@pytest.mark.usefixtures("empty_cache")
def test_cached_outputs_may_have_any_shape():
    def outputs():
        yield torch.arange(24.0).reshape(2, 3, 4)
        yield torch.full((1, 3, 4), -2.5)

    reported = []
    made = cached_outputs("activations", "k", "things", outputs, 3, lambda *now: reported.append(now[1:]))
    again = cached_outputs("activations", "k", "things", outputs, 3, no_progress)
    assert reported == [(2, 3), (3, 3)]
    assert again.found
    assert torch.equal(again[[2, 0]].float(), torch.stack([torch.full((3, 4), -2.5), torch.arange(12.0).reshape(3, 4)]))
    assert torch.equal(made[:], again[:])


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("is_kept", [False, True])
def test_the_work_behind_features_is_counted_once(small_network, small_plan, images, is_kept):
    if is_kept:
        images.pixels.cache(no_progress)
    reading = Work() if is_kept else images.pixels.reading_work(70)
    first, again = (frozen(small_network(), images, small_plan()) for _ in range(2))
    assert count_work(first, images.pixels, 0.5) == Work(forward_images=70, forward_equivalents=35.0) + reading
    assert count_work(again, images.pixels, 0.5) == Work(cache_hits=70)


def test_a_digest_of_weights_leaves_out_the_head_alone(small_network):
    network = small_network()
    below, whole = digest_weights(network, ("classifier",)), digest_weights(network)
    assert below != whole
    with torch.no_grad():
        network.classifier.weight[0, 0] += 1
    assert digest_weights(network, ("classifier",)) == below
    assert digest_weights(network) != whole


@pytest.mark.parametrize("name", ["conv_stem.weight", "bn2.bias", "bn1.running_mean", "bn1.num_batches_tracked"])
def test_a_digest_of_weights_sees_each_number(small_network, name):
    network = small_network()
    before = digest_weights(network, ("classifier",))
    with torch.no_grad():
        network.state_dict()[name].view(-1)[:1] += 1
    assert digest_weights(network, ("classifier",)) != before


def test_a_digest_of_weights_does_not_see_their_layout(small_network):
    network = small_network()
    before = digest_weights(network)
    assert digest_weights(network.to(memory_format=torch.channels_last), "") == before
