"""Compare two processes on the CPU, which shard a network (FSDP2) and share its batches and images, with one."""

import json
import shutil

import pytest
import timm
import torch
from conftest import make_image_folder, run_two_processes

from finetune.data import load_images
from finetune.errors import RecipeError
from finetune.network.backbone import create_network
from finetune.training import Checkpoints, train
from finetune.training.sharding import is_sharding_requested

USUAL = {"strategy": "full", "batch_size": 7, "steps": 5, "clip_norm": 10.0}

WAYS = {
    "accumulated": {"accumulation": 4},
    "sgd": {"optimizer": "sgd", "weight_decay": 1e-3},
    "sharded": {"keep": "best", "evaluations": 3},
    "sharded, sgd": {"optimizer": "sgd", "weight_decay": 1e-3, "accumulation": 5},
    "sharded, norms": {"strategy": "norm_tuning", "refit": True},
    "sharded, last stages": {"strategy": "partial", "cached_views": 0},
}
"""Changes of the usual plan for two processes; one process computes the whole batch at once."""

INTERRUPTED = ("sharded", "sharded, last stages")

STRAY = 20
"""Number of parameters that may differ by more than rounding: AdamW makes a whole step of a gradient that is 0 except
for rounding."""

SCRIPT = """
import json
import os
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])

import shutil

from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from finetune.data import load_images
from finetune.decide.plan import Plan
from finetune.errors import DataError, RunFolderError
from finetune.processes import is_main_process, divide_rows
from finetune.training import Checkpoints, train

sys.path.insert(0, str(folder))
from tasks import train_in_turn

made = []


def rows(indices):
    made.append(indices)
    return torch.tensor([[10.0 * member] for member in indices]).reshape(-1, 1).numpy()


def mistake(indices):
    if rank == 1:
        raise DataError("the second half cannot be read")
    return rows(indices)


os.environ |= {  # as `accelerate launch --use_fsdp` leaves them
    "FSDP_VERSION": "2",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP",
    "FSDP_MIN_NUM_PARAMS": "20000",
}
is_main_process()
shared = {"rows": [divide_rows(rows, range(count)).tolist() for count in (7, 1)], "made": list(made)}
try:
    divide_rows(mistake, range(4))
except DataError as error:
    shared["error"] = str(error)
own = folder / f"disk of {rank}"
own.mkdir()
os.chdir(own)
try:
    Checkpoints(Path("run"), writes=is_main_process()).begin()
except RunFolderError as error:
    shared["unseen"] = str(error)
(folder / f"shared-{rank}.json").write_text(json.dumps(shared))


def done(file, model):
    held_out = torch.from_numpy(model.held_out.probabilities)
    content = {"state": model.network.state_dict(), "held_out": held_out}
    torch.save(content, folder / f"{file.stem}-{rank}.pt")


shards = []


def look_at_shards(optimizer, *_):
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    held = sum(parameter.to_local().numel() for parameter in parameters if isinstance(parameter, DTensor))
    shards.append([held, sum(parameter.numel() for parameter in parameters)])


def interrupted(phase, step):
    def progress(task, done, _total, _history=()):
        if (task, done) == (f"training ({phase})", step):
            raise KeyboardInterrupt

    return progress


for file in sorted((folder / "plans").iterdir()):
    os.environ["ACCELERATE_USE_FSDP"] = "true" if file.stem.startswith("sharded") else "false"
    plan = Plan.load(file)
    hook = register_optimizer_step_post_hook(look_at_shards)
    done(file, train(plan, load_images(plan.data)))
    hook.remove()
(folder / f"shards-{rank}.json").write_text(json.dumps(shards))

os.environ["ACCELERATE_USE_FSDP"] = "true"
for way in ("sharded", "sharded, last stages"):
    plan = Plan.load(folder / "plans" / f"{way}.json")
    checkpoints = Checkpoints(folder / f"checkpoints of {way}", writes=is_main_process())
    checkpoints.begin()
    try:
        train(plan, load_images(plan.data), interrupted("validation", 3), checkpoints)
    except KeyboardInterrupt:
        torch.distributed.barrier()
    assert checkpoints.step("validation")["step"] == 3
    torch.distributed.barrier()
    if rank == 0:
        shutil.copytree(folder / f"checkpoints of {way}", folder / f"left of {way}")
    torch.distributed.barrier()
    done(Path(f"{way}, resumed"), train(plan, load_images(plan.data), checkpoints=checkpoints))

os.environ["ACCELERATE_USE_FSDP"] = "false"
torch.save(train_in_turn(folder, rank, 2), folder / f"in turn-{rank}.pt")
torch.distributed.destroy_process_group()
"""

TASKS = """
import timm
import torch

from finetune.data.batches import BatchShare, StepSampler, make_loader
from finetune.decide.plan import Plan
from finetune.network.backbone import set_trainable
from finetune.training.accelerator import make_accelerator
from finetune.training.loop import train_steps
from finetune.training.task import Task

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])


class Inputs:
    tensors = torch.randn(10, 3, 32, 32, generator=torch.Generator().manual_seed(7))

    def __len__(self):
        return 10

    def __getitems__(self, keys):
        return [(self.tensors[index], index) for index, *_ in keys]


def train_in_turn(folder, rank, count):
    '''The head alone, then the norms, then all layers of one network; its weights after each.'''
    torch.manual_seed(0)
    network, states = timm.create_model("test_efficientnet", num_classes=3).eval(), []
    for strategy in ("linear_probe", "norm_tuning", "full"):
        plan = Plan.load(folder / f"{strategy}.json")

        def loader(steps):
            sampler = StepSampler(range(10), BatchShare(plan.batch_size, steps, plan.seed, rank, count))
            return make_loader(Inputs(), torch.device("cpu"), 0, sampler)

        task = Task(
            name=strategy,
            module=network,
            groups=set_trainable(network, plan),
            make_loader=loader,
            prepare=lambda batch: batch,
            labels=LABELS,
            class_weights=torch.ones(3),
            on_step=lambda _: None,
        )
        train_steps(task, plan, make_accelerator(plan))
        states.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
    return states
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sharding")


@pytest.fixture(scope="module")
def plans(folder, small_plan):
    """A plan for each way; its images and weights are in the folder."""
    data, weights = make_image_folder(folder / "images", {"a": 6, "b": 5, "c": 8}), folder / "weights.pt"
    torch.manual_seed(0)
    torch.save(timm.create_model("test_efficientnet").state_dict(), weights)
    same = {"data": str(data), "weights": str(weights)}
    for strategy in ("linear_probe", "norm_tuning", "full"):
        small_plan(strategy=strategy, steps=3, warmup_steps=1, batch_size=5).save(folder / f"{strategy}.json")
    return {way: small_plan(**(USUAL | changes | same)) for way, changes in WAYS.items()}


@pytest.fixture(scope="module")
def alone(plans):
    """The model that one process trains, for each way."""
    return {way: train(plan.changed(accumulation=1), load_images(plan.data)) for way, plan in plans.items()}


@pytest.fixture(scope="module")
def together(folder, plans):
    """The final weights of each of two processes, for each way."""
    (folder / "plans").mkdir()
    for way, plan in plans.items():
        plan.save(folder / "plans" / f"{way}.json")
    moving = {"strategy": "scratch", "weights": "random", "batch_norm_statistics": "updated", "refit": True}
    plans["sgd"].changed(optimizer="adamw", **moving).save(folder / "plans" / "scratch.json")
    (folder / "script.py").write_text(SCRIPT)
    (folder / "tasks.py").write_text(TASKS)
    run_two_processes(folder / "script.py", folder)
    ways = [*plans, *(f"{way}, resumed" for way in INTERRUPTED), "in turn", "scratch"]
    return {way: [torch.load(folder / f"{way}-{rank}.pt", weights_only=True) for rank in (0, 1)] for way in ways}


def start_of(plan):
    torch.manual_seed(plan.seed)
    return create_network(plan.model, plan.weights, 3, plan.preprocessing.image_size)[0].state_dict()


def assert_same_training(own, expected, start, rate):
    """Assert that two trainings moved the weights below the head equally, except for rounding."""

    def movement(state):
        return torch.cat([(state[name] - start[name]).flatten().float() for name in start if "classifier" not in name])

    whole = movement(expected)
    assert whole.norm() > 0
    apart = (movement(own) - whole).abs().sort().values
    assert apart[:-STRAY].norm() < 1e-4 * whole.norm()
    assert apart[-STRAY:].max() < 0.1 * rate
    torch.testing.assert_close(own["classifier.weight"], expected["classifier.weight"], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_the_weights_of_one(plans, alone, together, way):
    plan = plans[way]
    for result in together[way]:
        expected = alone[way].network.state_dict()
        assert_same_training(result["state"], expected, start_of(plan), plan.head_learning_rate)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_both_processes_have_the_same_predictions_for_every_held_out_image(alone, together, way):
    one, two = (result["held_out"] for result in together[way])
    assert torch.equal(one, two)
    expected = torch.from_numpy(alone[way].held_out.probabilities)
    torch.testing.assert_close(one, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_both_processes_end_with_the_same_moving_statistics(together):
    one, two = (result["state"] for result in together["scratch"])
    assert {name for name in one if not torch.equal(one[name], two[name])} == set()
    assert one["bn2.running_mean"].any()


@pytest.mark.slow
def test_each_process_makes_a_part_of_the_rows_and_gets_all(folder, together):
    assert together
    one, two = (json.loads((folder / f"shared-{rank}.json").read_text()) for rank in (0, 1))
    assert one["rows"] == two["rows"] == [[[10.0 * row] for row in range(count)] for count in (7, 1)]
    assert (one["made"], two["made"]) == ([[0, 1, 2, 3], [0]], [[4, 5, 6], []])


@pytest.mark.slow
def test_a_mistake_in_one_process_is_raised_in_both(folder, together):
    assert together
    for rank in (0, 1):
        assert json.loads((folder / f"shared-{rank}.json").read_text())["error"] == "the second half cannot be read"


@pytest.mark.slow
def test_a_run_folder_that_one_of_them_does_not_see_is_refused_in_both(folder, together):
    assert together
    for rank in (0, 1):
        assert "run is not seen by all machines" in json.loads((folder / f"shared-{rank}.json").read_text())["unseen"]


@pytest.mark.slow
def test_each_process_holds_a_part_of_the_weights(folder, together):
    assert together
    held = [json.loads((folder / f"shards-{rank}.json").read_text()) for rank in (0, 1)]
    assert any(one for one, _ in held[0])
    for (one, all_of_one), (two, all_of_two) in zip(*held, strict=True):
        assert all_of_one == all_of_two
        assert one == two == 0 or (one + two == all_of_one and max(one, two) < 0.6 * all_of_one)


@pytest.mark.slow
@pytest.mark.parametrize("way", INTERRUPTED)
def test_a_sharded_training_that_was_interrupted_ends_with_the_weights_of_an_uninterrupted_one(together, way):
    for result in together[f"{way}, resumed"]:
        for name, tensor in together[way][0]["state"].items():
            torch.testing.assert_close(result["state"][name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("way", INTERRUPTED)
def test_one_process_continues_what_two_processes_with_shards_began(plans, alone, folder, together, tmp_path, way):
    assert together
    shutil.copytree(folder / f"left of {way}", tmp_path / "left")
    plan, reported = plans[way], []
    left = Checkpoints(tmp_path / "left")
    model = train(plan, load_images(plan.data), lambda *task: reported.append(task), left)
    assert ("training (validation)", 3, plan.steps) not in reported
    expected = alone[way].network.state_dict()
    assert_same_training(model.network.state_dict(), expected, start_of(plan), plan.head_learning_rate)


@pytest.mark.slow
def test_both_processes_train_layers_that_are_unfrozen_later_equally(folder, together, plans):
    assert plans
    namespace = {}
    exec((folder / "tasks.py").read_text(), namespace)
    expected = namespace["train_in_turn"](folder, 0, 1)
    torch.manual_seed(0)
    start = timm.create_model("test_efficientnet", num_classes=3).state_dict()
    one, two = together["in turn"]
    for number, state in enumerate(expected):
        assert {name for name in state if not torch.equal(one[number][name], two[number][name])} == set()
        if number:
            assert_same_training(one[number], state, start, 1e-3)
        start = state


@pytest.mark.parametrize(
    ("version", "precision", "advice"), [("1", "float32", "--fsdp_version 2"), ("2", "float16", "precision=float32")]
)
def test_unsupported_sharding_is_refused(monkeypatch, version, precision, advice):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", version)
    with pytest.raises(RecipeError, match=advice):
        is_sharding_requested(precision)
