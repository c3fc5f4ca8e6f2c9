import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from finetune.errors import ModelError
from finetune.network.backbone import check_forward, create_network, size_arguments
from finetune.network.head import find_head, give_head, has_head, recorded_features
from finetune.network.weights import create_pretrained

ENDINGS = {
    "test_resnet": ("fc",),
    "dla46_c": ("fc",),
    "levit_128s": ("head.linear", "head_dist.linear"),
    "deit_tiny_distilled_patch16_224": ("head", "head_dist"),
    "crossvit_9_240": ("head.0", "head.1"),
    "caformer_s18": ("head.fc.fc2",),
    "repvit_m0_9": ("head.head.l", "head.head_dist.l"),
}
"""Networks that end in one linear layer, in a convolution, in two averaged heads and in an MLP, and their heads."""

IMAGES = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[name for name in ENDINGS if name != "crossvit_9_240"])
def ending(request):
    """A network of each ending with a head of 3 classes, and its name."""
    torch.manual_seed(0)
    network = timm.create_model(request.param)
    give_head(network, 3)
    return network.eval(), request.param


def test_the_head_is_the_last_linear_layer_or_the_layers_that_are_averaged(ending):
    network, name = ending
    head = find_head(network)
    assert (head.names, head.num_classes) == (ENDINGS[name], 3)


def test_the_head_as_one_classifier_gives_the_logits_of_the_recorded_features(ending):
    network, _ = ending
    weight, bias = find_head(network).classifier()
    with torch.inference_mode(), recorded_features(network) as features:
        logits = features(network, IMAGES) @ weight.T + bias
        torch.testing.assert_close(logits, network(IMAGES), rtol=1e-3, atol=1e-4)


def test_a_loaded_classifier_gives_its_own_logits(ending):
    network, _ = ending
    head = find_head(network)
    weight, bias = torch.randn(3, head.width), torch.randn(3)
    head.load(weight, bias)
    with torch.inference_mode(), recorded_features(network) as features:
        expected = features(network, IMAGES) @ weight.T + bias
        torch.testing.assert_close(network(IMAGES), expected, rtol=1e-3, atol=1e-3)


def test_a_subtracted_bias_lowers_the_logits_by_its_factor(ending):
    network, _ = ending
    before = network(IMAGES)
    find_head(network).subtract_from_bias(torch.tensor([0.0, 1.0, 2.0]), factor=2.0)
    torch.testing.assert_close(network(IMAGES), before - torch.tensor([0.0, 2.0, 4.0]), rtol=1e-3, atol=1e-4)


def test_the_layers_of_an_mlp_head_below_the_last_one_keep_their_weights():
    network = timm.create_model("caformer_s18")
    before = network.head.fc.fc1.weight.clone()
    give_head(network, 3)
    assert torch.equal(network.head.fc.fc1.weight, before)


def test_a_network_without_a_head_gets_the_one_that_timm_defines():
    network = timm.create_model("test_vit", num_classes=0)
    assert not has_head(network)
    assert give_head(network, 3).names == ("head",)
    assert has_head(network)


def test_features_are_recorded_by_each_thread_for_itself(small_network):
    from concurrent.futures import ThreadPoolExecutor

    network = small_network()
    batches = [torch.full((2, 3, 64, 64), float(number)) for number in range(8)]
    with torch.inference_mode(), recorded_features(network) as features:
        alone = [features(network, batch) for batch in batches]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda batch: features(network, batch).clone(), batches))
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other)


def test_recording_leaves_no_hook_behind(small_network):
    network = small_network()
    with recorded_features(network):
        pass
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_heads_that_are_summed_with_trained_weights_are_refused():
    with pytest.raises(ModelError, match="sums 4 heads with trained weights"):
        find_head(timm.create_model("efficientvim_m1"))


def test_an_encoder_without_a_classifier_is_refused():
    with pytest.raises(ModelError, match="encoder without a classifier"):
        give_head(nn.Conv2d(3, 4, 1), 3)


def test_a_network_that_adds_something_to_its_head_is_refused():
    network = timm.create_model("volo_d1_224", num_classes=3)
    with pytest.raises(ModelError, match="something follows it"):
        check_forward(network, "volo_d1_224", 224)


def test_a_network_with_shared_layers_is_refused():
    network = timm.create_model("coat_lite_tiny", num_classes=3)
    with pytest.raises(ModelError, match="uses the same weights in several layers"):
        check_forward(network, "coat_lite_tiny", 224)


def test_a_size_that_a_network_cannot_process_is_refused_with_one_that_it_can():
    network = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    with pytest.raises(ModelError, match=r"vit_tiny cannot process images of 96 px \(.+\); give another --image-size"):
        check_forward(network, "vit_tiny", 96)


def test_a_network_of_one_size_is_built_for_another_one_where_timm_offers_it():
    assert size_arguments("vit_tiny_patch16_224", 96) == {"img_size": 96}
    assert size_arguments("vit_tiny_patch16_224", 224) == {}
    assert size_arguments("resnet18", 96) == {}


def test_a_size_that_a_network_cannot_be_built_for_is_refused_with_its_own_size():
    with pytest.raises(ModelError, match=r"nest_tiny cannot be built for images of 100 px \(.+which makes it 224 px"):
        create_network("nest_tiny", "random", 3, 100)


def state_without(name, *endings):
    torch.manual_seed(3)
    state = timm.create_model(name).state_dict()
    return {key: tensor.clone() for key, tensor in state.items() if not key.endswith(endings)}


@pytest.mark.parametrize(
    ("change", "has"),
    [
        (lambda: state_without("test_efficientnet", "classifier.weight", "classifier.bias"), False),
        (lambda: state_without("test_efficientnet", "num_batches_tracked"), True),
        (lambda: state_without("test_efficientnet") | {"loss.center": torch.zeros(7)}, True),
        (
            lambda: (
                state_without("test_efficientnet", "classifier.weight", "classifier.bias", "num_batches_tracked")
                | {"loss.center": torch.zeros(7)}
            ),
            False,
        ),
        (lambda: {f"backbone.{key}": tensor for key, tensor in state_without("test_efficientnet").items()}, True),
    ],
    ids=["no head", "no counters", "a loss's tensor", "all three", "a prefix"],
)
def test_weights_that_fill_all_but_the_head_and_counters_are_taken(tmp_path, change, has):
    state = change()
    save_file(state, tmp_path / "weights.safetensors")
    network, report = create_pretrained("test_efficientnet", str(tmp_path / "weights.safetensors"))
    assert torch.equal(network.state_dict()["conv_stem.weight"], state_without("test_efficientnet")["conv_stem.weight"])
    assert has_head(network) == has
    assert ("no classifier" in report.source) != has
