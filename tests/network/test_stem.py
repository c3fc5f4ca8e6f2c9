"""Networks of other channels than red, green and blue: their first layer, and the networks that have none to adapt."""

import inspect

import pytest
import timm
import torch
from conftest import FAMILIES, slow
from safetensors.torch import save_file
from timm.models import adapt_input_conv, model_entrypoint

from finetune.decide.preprocessing import make_normalisation
from finetune.errors import ModelError
from finetune.network.backbone import check_forward, create_network, native_preprocessing, profile_stages
from finetune.network.head import find_head
from finetune.network.stem import PRETRAINED_ARGUMENTS, adapt_stem
from finetune.network.tail import cut
from finetune.network.weights import create_embedded, create_pretrained
from finetune.reading import Reading


def first_layers(network):
    """The weights of the layers that the images enter."""
    listed = network.pretrained_cfg["first_conv"]
    names = (listed,) if isinstance(listed, str) else listed
    return [f"{name}.weight" for name in names]


@pytest.mark.parametrize("num_channels", [2, 4, 13])
@pytest.mark.parametrize("name", [*FAMILIES[1:4:2], *slow(FAMILIES[0], FAMILIES[2], *FAMILIES[4:])])
def test_the_first_layer_is_that_of_timm_and_all_others_are_unchanged(weights_file, name, num_channels):
    path = weights_file(name)
    narrow, _ = create_pretrained(name, str(path))
    wide, _ = create_pretrained(name, str(path), in_chans=num_channels)
    expected, adapted = narrow.state_dict(), wide.state_dict()
    for layer in first_layers(narrow):
        expected[layer] = adapt_input_conv(num_channels, expected[layer])
    assert expected.keys() == adapted.keys()
    assert all(torch.equal(expected[key], adapted[key]) for key in expected)


def test_timm_itself_gives_the_same_network(weights_file):
    path = weights_file("test_efficientnet")
    own, _ = create_pretrained("test_efficientnet", str(path), in_chans=13)
    timms = timm.create_model(
        "test_efficientnet", pretrained=True, pretrained_cfg_overlay={"file": str(path)}, in_chans=13
    )
    images = torch.randn(2, 13, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(own.eval()(images), timms.eval()(images))


@pytest.mark.parametrize("name", PRETRAINED_ARGUMENTS)
def test_a_network_is_built_as_timm_builds_it_for_pretrained_weights(weights_file, name):
    path = weights_file(name)
    own, _ = create_pretrained(name, str(path))
    timms = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(own.eval()(images), timms.eval()(images))


@pytest.mark.slow
def test_timm_builds_no_other_network_differently_for_pretrained_weights():
    names = timm.list_models()
    assert {name for name in names if "if pretrained" in inspect.getsource(model_entrypoint(name))} == {
        *PRETRAINED_ARGUMENTS
    }


def test_the_embedded_weights_are_adapted_as_well():
    narrow, wide = create_embedded()[0], create_embedded(in_chans=5)[0]
    torch.testing.assert_close(wide.conv_stem.weight, adapt_input_conv(5, narrow.conv_stem.weight), rtol=0, atol=0)


def test_equal_channels_give_what_grey_images_give(weights_file):
    path = str(weights_file("test_efficientnet"))
    grey = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        three = create_pretrained("test_efficientnet", path)[0].eval()(grey.expand(-1, 3, -1, -1))
        six = create_pretrained("test_efficientnet", path, in_chans=6)[0].eval()(grey.expand(-1, 6, -1, -1))
    torch.testing.assert_close(six, three, rtol=1e-3, atol=1e-4)


def test_weights_of_a_network_of_as_many_channels_are_used_as_they_are(tmp_path):
    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet", in_chans=13)
    save_file(network.state_dict(), tmp_path / "wide.safetensors")
    made, _ = create_pretrained("test_efficientnet", str(tmp_path / "wide.safetensors"), in_chans=13)
    assert torch.equal(made.conv_stem.weight, network.conv_stem.weight)


def test_random_weights_have_a_first_layer_of_their_own():
    network, _ = create_network("test_efficientnet", "random", 3, 64, num_channels=13)
    assert network.conv_stem.weight.shape[1] == 13
    assert find_head(network).num_classes == 3


def refusal(name, make):
    """The sentence with which a network of 13 channels is refused."""
    with pytest.raises(ModelError) as caught:
        make()
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"the first layer of {name} cannot be adapted to images of 13 channels (")
    assert text.endswith("choose another --model, or read three channels: --set 'image.channels=[0, 1, 2]'")
    return text


def test_a_network_whose_first_layer_is_not_known_is_refused(weights_file):
    network, _ = create_pretrained("test_efficientnet", str(weights_file()))
    network.pretrained_cfg["first_conv"] = None
    refusal("test_efficientnet", lambda: adapt_stem(network, "test_efficientnet", in_chans=13))


@pytest.mark.slow
def test_a_network_that_rearranges_pixels_before_its_first_layer_is_refused(weights_file):
    path = weights_file("tresnet_m")
    assert "not supported" in refusal("tresnet_m", lambda: create_pretrained("tresnet_m", str(path), in_chans=13))


def test_a_network_of_many_channels_is_profiled_and_cut(weights_file):
    network, _ = create_network("test_efficientnet", str(weights_file("test_efficientnet")), 2, 64, num_channels=13)
    check_forward(network, "test_efficientnet", 64, 13)
    stages = profile_stages(network, 64, 13)
    tail = cut(network, 2, 64, 13)
    images = torch.randn(2, 13, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(tail(tail.prefix(images)), network(images), rtol=1e-3, atol=1e-4)
    assert sum(stage.forward_share for stage in stages) == pytest.approx(1.0)


def test_each_channel_is_normalised_by_the_averages_of_the_pretraining():
    network = timm.create_model("test_efficientnet", in_chans=4)
    found = native_preprocessing(network, 64, Reading(channels=(0, 1, 2, 3)))
    assert found.mean == (0.449,) * 4
    assert found.std == (0.226,) * 4
    assert make_normalisation((0.5, 0.4, 0.3), (0.2, 0.2, 0.2), 3) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
