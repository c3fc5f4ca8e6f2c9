import pytest

from finetune.decide.candidates import LEARNING_RATES, learning_rates
from finetune.decide.families import RATES, family_of


@pytest.mark.parametrize(
    ("architecture", "name", "tag", "has_head", "family"),
    [
        ("cnn", "tf_efficientnet_lite0", "in1k", True, "cnn"),
        ("cnn", "regnety_320", "seer", False, "cnn"),
        ("cnn", "resnet50_clip", "openai", True, "clip"),
        ("layer_norm_cnn", "convnext_tiny", "in12k_ft_in1k", True, "layer_norm_cnn"),
        ("layer_norm_cnn", "convnext_tiny", "dinov3_lvd1689m", False, "self_supervised_vit"),
        ("vit", "vit_tiny_patch16_224", "augreg_in21k_ft_in1k", True, "supervised_vit"),
        ("vit", "vit_small_patch14_dinov2", "lvd142m", False, "self_supervised_vit"),
        ("vit", "vit_base_patch16_224", "mae", False, "self_supervised_vit"),
        ("vit", "vit_base_patch16_siglip_224", "v2_webli", False, "clip"),
        ("vit", "vit_base_patch16_clip_224", "openai", True, "clip"),
        ("vit", "vit_base_patch16_clip_224", "openai_ft_in1k", True, "supervised_vit"),
        ("vit", "vit_tiny_patch16_224", "", False, "self_supervised_vit"),
        ("hybrid", "caformer_s18", "sail_in22k_ft_in1k", True, "hybrid"),
    ],
)
def test_the_family_follows_from_the_layers_and_the_pretraining(architecture, name, tag, has_head, family):
    assert family_of(architecture, name, tag, has_head) == family


@pytest.mark.parametrize("family", RATES)
def test_the_rates_of_a_family_are_its_multiple_of_those_of_the_grid(family):
    rate, _ = learning_rates("full", 1.0, family)
    assert rate == pytest.approx(RATES[family].factor * LEARNING_RATES["full"][0], rel=0.01)


def test_full_fine_tuning_of_a_self_supervised_transformer_starts_near_1e_5():
    rate, lowest = learning_rates("full", 1.0, "self_supervised_vit")
    assert 1e-5 <= rate <= 2e-5
    assert lowest == 0.03


def test_no_rate_is_higher_than_the_highest_that_was_seen_to_be_safe():
    far, _ = learning_rates("full", 0.0, "cnn", highest=1e-4)
    near, _ = learning_rates("full", 1.0, "cnn", highest=1e-4)
    assert (far, near) == (1e-4, 5e-5)


def test_a_safe_rate_above_the_tables_changes_nothing():
    assert learning_rates("full", 0.0, "cnn", highest=1.0) == learning_rates("full", 0.0, "cnn")
