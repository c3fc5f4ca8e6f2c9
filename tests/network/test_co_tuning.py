import pytest
import torch
from torch import nn

from finetune.errors import ModelError
from finetune.network.backbone import create_network
from finetune.network.co_tuning import add_source_head, without_source
from finetune.network.head import find_head

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def source():
    torch.manual_seed(1)
    return nn.Linear(256, 7)


@pytest.fixture
def co_tuned(small_network, source):
    """A network of 3 classes with a pretrained classifier of 7 next to its head."""
    network = small_network()
    add_source_head(network, "classifier", source)
    return network.eval()


def test_while_it_is_trained_a_network_gives_the_logits_of_both_heads(small_network, co_tuned, source):
    expected = small_network()
    features = expected.forward_head(expected.forward_features(IMAGES), pre_logits=True)
    co_tuned.classifier.training = True  # and nothing else, whose dropout and batch norms would change the features
    torch.testing.assert_close(co_tuned(IMAGES), torch.cat([expected(IMAGES), source(features)], dim=1))


def test_in_evaluation_the_pretrained_classifier_is_left_out(small_network, co_tuned):
    torch.testing.assert_close(co_tuned(IMAGES), small_network()(IMAGES))
    assert find_head(co_tuned).num_classes == 3


def test_the_pretrained_classifier_is_copied(co_tuned, source):
    with torch.no_grad():
        co_tuned.classifier.source.weight.zero_()
    assert source.weight.abs().sum() > 0


def test_a_network_without_the_pretrained_classifier_is_a_plain_one_and_a_copy(small_network, co_tuned):
    alone = without_source(co_tuned)
    assert alone.state_dict().keys() == small_network().state_dict().keys()
    assert torch.equal(alone(IMAGES), co_tuned(IMAGES))
    assert hasattr(co_tuned.classifier, "source")


def test_a_network_that_has_none_is_left_as_it_is(small_network):
    network = small_network()
    assert without_source(network) is network


def test_a_created_network_keeps_the_classifier_of_its_weights(weights_file, small_network):
    network, _ = create_network("test_efficientnet", str(weights_file()), 3, None, keeps_source_head=True)
    assert torch.equal(network.classifier.source.weight, small_network(num_classes=1000).classifier.weight)


def test_random_weights_have_no_classifier_to_keep():
    with pytest.raises(ModelError, match=r"--set training\.co_tuning=0"):
        create_network("test_efficientnet", "random", 3, None, keeps_source_head=True)
