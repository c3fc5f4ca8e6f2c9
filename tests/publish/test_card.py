import doctest
import re
from dataclasses import replace

import pytest
import yaml

from finetune.decide.evidence import GroupFinding
from finetune.publish import card
from finetune.publish.card import Described, write_card
from finetune.publish.licence import Base, find_base


@pytest.fixture
def described(finished_run):
    return Described(
        repository="user/pets",
        run=finished_run.read_decisions(),
        metrics=finished_run.read_metrics(),
        base=Base(name="timm/resnet18.a1_in1k", repository="timm/resnet18.a1_in1k", licence="cc-by-nc-4.0"),
        counts={"train": 16, "test": 10},
        temperature=1.25,
    )


def header(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_the_header_has_the_licence_and_the_name_of_the_base(described):
    found = header(write_card(described))
    assert found["license"] == "cc-by-nc-4.0"
    assert found["base_model"] == "timm/resnet18.a1_in1k"
    assert found["library_name"] == "timm"


def test_the_metrics_are_those_of_the_test_images_with_their_interval(described):
    test = described.metrics.test
    text = write_card(described)
    low, high = test.top1_interval
    assert f"| test, 10 | {100 * test.top1:.1f} % | {100 * low:.1f} % to {100 * high:.1f} % |" in text
    (result,) = header(text)["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == round(test.top1, 4)
    assert result["dataset"]["name"] == "imgs (test images)"


def test_without_test_images_the_card_says_that_choices_used_the_held_out_ones(described):
    text = write_card(replace(described, metrics=described.metrics.changed(test=None)))
    assert "There is no test split." in text
    assert "choices were made by them" in text
    assert header(text)["model-index"][0]["results"][0]["dataset"]["name"] == "imgs (held-out images)"


def test_names_of_classes_are_shown_as_text(described):
    text = write_card(described)
    assert "<img>" not in text
    assert r"b\|&lt;img&gt;" in text


def test_the_reasons_of_the_choice_are_in_the_card(described):
    text = write_card(described)
    for reason in described.run.choice.reasons:
        assert reason.split(";")[0].replace("_", "\\_") in text


def test_a_loss_on_unseen_groups_is_stated(described):
    groups = GroupFinding(
        rule="folder", description="folders", num_groups=9, random_accuracy=0.9, grouped_accuracy=0.7, error=0.01,
        used=False,
    )  # fmt: skip
    run = replace(described.run, evidence=described.run.evidence.changed(groups=groups))
    assert "right for 90.0 % of images of known groups and for 70.0 % of those of unseen ones" in write_card(
        replace(described, run=run)
    )


def test_no_path_of_this_machine_is_in_the_card(described):
    assert "secret" in described.run.recipe.data
    assert not re.search(r"secret|/tmp|/home", write_card(described))


@pytest.mark.parametrize(
    ("network", "weights", "licence"),
    [
        ("tf_efficientnet_lite0", "pretrained", "apache-2.0"),
        ("convnextv2_tiny", "pretrained", "cc-by-nc-4.0"),
        ("convnextv2_tiny.fcmae_ft_in22k_in1k", "pretrained", "cc-by-nc-4.0"),
        ("convnextv2_tiny", "random", "unknown"),
        ("convnextv2_tiny", "files/mine.safetensors", "unknown"),
    ],
)
def test_the_licence_is_that_of_the_weights(network, weights, licence):
    assert find_base(network, weights).licence == licence


def test_an_unknown_licence_is_called_unknown(described):
    text = write_card(replace(described, base=find_base("test_vit", "random")))
    assert header(text)["license"] == "unknown"
    assert "The licence of the pretrained weights (random weights) is not known." in text


def test_the_examples_are_right():
    assert doctest.testmod(card).failed == 0
