import pytest
import timm
import torch
from conftest import FAMILIES
from torch import nn

from finetune.errors import ModelError
from finetune.network.backbone import (
    check_stages,
    create_network,
    find_norms,
    find_stages,
    profile_stages,
    set_trainable,
    set_training_mode,
)
from finetune.network.head import find_head


def trained_names(network):
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def head_names(network):
    head = find_head(network)
    return {name for name, _ in network.named_parameters() if head.owns(name)}


def step(network, seed=0):
    torch.manual_seed(seed)
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 0])
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    nn.functional.cross_entropy(network(images), labels).backward()
    optimizer.step()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_stages_hold_every_parameter_but_the_heads_exactly_once(small_network, name):
    network = small_network(name)
    held = [parameter for stage in find_stages(network) for parameter in stage.parameters]
    assert len(held) == len(set(held))
    assert set(held) | head_names(network) == {parameter for parameter, _ in network.named_parameters()}
    assert not set(held) & head_names(network)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_stages_come_in_the_order_in_which_an_image_passes_them(small_network, name):
    network = small_network(name)
    passed = []
    for module_name, module in network.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_hook(lambda *_, module_name=module_name: passed.append(module_name))
    network(torch.zeros(1, 3, 64, 64))
    first = []
    for stage in find_stages(network):
        owners = {parameter.rpartition(".")[0] for parameter in stage.parameters}
        first.append(min(number for number, owner in enumerate(passed) if owner in owners))
    assert len(first) >= 4
    assert first == sorted(first)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_stages_have_different_names_and_come_from_the_network_itself(small_network, name):
    network = small_network(name)
    modules = dict(network.named_modules())
    stages = find_stages(network)
    assert len({stage.name for stage in stages}) == len(stages)
    assert all(stage.module in modules for stage in stages if stage.module is not None)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_shares_of_a_forward_pass_are_positive_and_sum_to_1(small_network, name):
    shares = [stage.forward_share for stage in profile_stages(small_network(name), 64)]
    assert min(shares) > 0
    assert sum(shares) == pytest.approx(1.0)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_profile_counts_every_parameter_below_the_head(small_network, name):
    network = small_network(name)
    sizes = dict(network.named_parameters())
    below = sum(parameter.numel() for parameter in sizes.values()) - sum(sizes[n].numel() for n in head_names(network))
    assert sum(stage.num_parameters for stage in profile_stages(network, 64)) == below


def test_a_network_whose_own_groups_are_layer_by_layer_alone_has_the_stages_of_its_features():
    stages = find_stages(timm.create_model("rdnet_tiny"))
    assert [stage.name for stage in stages] == [
        "stem", "dense_stages.0.0", "dense_stages.1", "dense_stages.5", "dense_stages.6",
    ]  # fmt: skip


def test_the_profile_gives_the_size_of_the_activation_that_leaves_a_stage(small_network):
    profile = {stage.name: stage for stage in profile_stages(small_network("test_resnet"), 64)}
    assert profile["layer1.0"].output_values == 32 * 16 * 16


def test_a_profile_leaves_no_hook_behind(small_network):
    network = small_network()
    profile_stages(network, 64)
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("test_resnet", {"BatchNorm2d"}),
        ("test_efficientnet", {"BatchNormAct2d"}),
        ("test_convnext", {"LayerNorm", "LayerNorm2d"}),
        ("test_vit", {"LayerNorm"}),
        ("swin_tiny_patch4_window7_224", {"LayerNorm"}),
    ],
)
def test_the_norms_of_a_family_are_found(small_network, name, kinds):
    assert {type(norm).__name__ for norm in find_norms(small_network(name)).values()} == kinds


def test_group_norms_are_norms_and_norms_without_weights_are_none():
    network = nn.Sequential(nn.GroupNorm(2, 4), nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 4))
    assert list(find_norms(network)) == ["0"]


def test_a_linear_probe_trains_the_head_alone(small_network, small_plan):
    network = small_network()
    groups = set_trainable(network, small_plan(strategy="linear_probe"))
    assert list(groups) == ["head"]
    assert trained_names(network) == head_names(network)


@pytest.mark.parametrize("name", FAMILIES)
def test_norm_tuning_trains_the_norms_and_the_head_alone(small_network, small_plan, name):
    network = small_network(name)
    norms = {
        parameter
        for parameter, _ in network.named_parameters()
        if isinstance(network.get_submodule(parameter.rpartition(".")[0]), (nn.BatchNorm2d, nn.LayerNorm))
    }
    set_trainable(network, small_plan(name, strategy="norm_tuning"))
    assert trained_names(network) == norms | head_names(network)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_partial_trains_the_last_stages_and_the_head(small_network, small_plan, name, count):
    network = small_network(name)
    last = find_stages(network)[-count:]
    groups = set_trainable(network, small_plan(name, strategy="partial", trained=count))
    assert list(groups) == [stage.name for stage in last] + ["head"]
    assert trained_names(network) == {n for stage in last for n in stage.parameters} | head_names(network)


def test_full_trains_everything_even_what_was_frozen_before(small_network, small_plan):
    network = small_network()
    set_trainable(network, small_plan(strategy="linear_probe"))
    set_trainable(network, small_plan(strategy="full"))
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_frozen_batch_norm_statistics_do_not_move_in_a_step_that_trains_the_weights(small_network, small_plan):
    network = small_network()
    set_trainable(network, small_plan(strategy="full"))
    set_training_mode(network, freeze_statistics=True)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    step(network)
    after = network.state_dict()
    buffers = {name for name, _ in network.named_buffers()}
    assert all(torch.equal(before[name], after[name]) for name in buffers)
    assert not torch.equal(before["conv_stem.weight"], after["conv_stem.weight"])


def test_updated_batch_norm_statistics_move_where_the_norm_is_trained_and_only_there(small_network, small_plan):
    network = small_network()
    set_trainable(network, small_plan(strategy="partial", trained=2))
    set_training_mode(network, freeze_statistics=False)
    before = {name: tensor.clone() for name, tensor in network.named_buffers()}
    step(network)
    moved = {name for name, tensor in network.named_buffers() if not torch.equal(tensor, before[name])}
    trained = {name for name in before if name.startswith(("blocks.3.", "blocks.4.", "bn2."))}
    assert moved == trained


def test_dropout_of_a_frozen_part_stays_off_and_of_a_trained_part_is_on():
    network = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Dropout()), nn.Sequential(nn.Linear(4, 2), nn.Dropout()))
    network[0].requires_grad_(False)
    set_training_mode(network, freeze_statistics=True)
    assert not network[0].training
    assert not network[0][0].training
    assert network[1].training
    assert network[1][1].training


def test_a_frozen_stage_computes_the_same_in_training_as_in_evaluation(small_plan):
    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet", num_classes=3, drop_path_rate=0.5)
    set_trainable(network, small_plan(strategy="linear_probe"))
    images = torch.randn(2, 3, 64, 64)
    expected = network.eval().forward_features(images)
    set_training_mode(network, freeze_statistics=True)
    assert torch.equal(network.forward_features(images), expected)


def test_a_plan_of_other_stages_is_refused(small_network, small_plan):
    with pytest.raises(ModelError, match=r"the plan has the stages stem, blocks\.0\.0"):
        check_stages(small_network("test_resnet"), small_plan("test_efficientnet"))


def test_a_created_network_has_the_weights_of_the_file_and_a_head_of_the_asked_size(weights_file):
    network, report = create_network("test_efficientnet", str(weights_file()), 5, None)
    torch.manual_seed(0)
    expected = timm.create_model("test_efficientnet").state_dict()
    assert find_head(network).num_classes == 5
    assert torch.equal(network.state_dict()["conv_stem.weight"], expected["conv_stem.weight"])
    assert report.matched == report.total == len(expected)


def test_a_network_of_fixed_size_is_built_for_the_asked_size():
    network, _ = create_network("test_vit", "random", 3, 64)
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
