"""Two processes on the CPU against one."""

import json
from pathlib import Path

import pytest
import timm
import torch
from conftest import run_two_processes

from finetune import load_recipe, measure_evidence
from finetune.data import labels_of, load_images
from finetune.decide.preprocessing import Preprocessing
from finetune.network.backbone import create_network
from finetune.predict.metrics import score
from finetune.runs.folder import RunFolder
from finetune.training import train

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parent.parent / "scripts"

USUAL = {"batch_size": 6, "steps": 5, "clip_norm": 10.0}
"""Some gradients are longer than `clip_norm` and some shorter, so that their length counts; AdamW alone ignores it."""

STRAY = 20
"""Number of parameters that may differ by more than rounding."""

AT_128 = Preprocessing(
    image_size=128, crop_fraction=1.0, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)

WAYS = {
    "full": {"strategy": "full"},
    "full-uneven": {"strategy": "full", "batch_size": 5, "accumulation": 2, "imbalance": "class_weights"},
    "full-best": {"strategy": "full", "keep": "best", "evaluations": 3},
    "full-small": {"strategy": "full", "preprocessing": AT_128, "small_steps": 3},
    "partial": {"strategy": "partial", "refit": True, "co_tuning": 1.0},
    "norm_tuning": {"strategy": "norm_tuning", "validation": "cross_validation"},
    "full-patient": {"strategy": "full", "steps": 8, "evaluations": 8, "patience": 2, "minimum_gain": 9.0},
}

SCRIPT = """
import json
import os
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
folder, rank = Path(sys.argv[1]), os.environ["RANK"]
written, own = [], torch.save


def save(content, file, *rest, **options):
    written.append(str(file))
    own(content, file, *rest, **options)


import numpy as np

import finetune.errors
from finetune.data import load_images
from finetune.decide import candidates, contest, decision
from finetune.decide.belief import DRAWS, Belief
from finetune.decide.plan import Plan
from finetune.network import outputs
from finetune.training import Checkpoints, evaluation, monitor, pace, train

for file in sorted((folder / "plans").iterdir()):
    plan = Plan.load(file)
    model = train(plan, load_images(plan.data))
    content = {"validation": model.validation.model_dump(), "work": model.work.model_dump()}
    content |= {"history": list(model.history), "temperature": model.temperature}
    torch.save(content | {"state": model.network.state_dict()}, folder / f"{file.stem}-{rank}.pt")

interrupted = Plan.load(folder / "plans" / "full-best.json")
checkpoints = Checkpoints(folder / "interrupted", writes=rank == "0")
checkpoints.begin()


def interrupt(task, done, *_):
    if (task, done) == ("training (validation)", 3):
        raise KeyboardInterrupt


try:
    train(interrupted, load_images(interrupted.data), interrupt, checkpoints)
except KeyboardInterrupt:
    resumed = train(interrupted, load_images(interrupted.data), checkpoints=checkpoints)
    torch.save(resumed.network.state_dict(), folder / f"resumed-{rank}.pt")

hurried = Plan.load(folder / "plans" / "full.json").changed(steps=5000, time_budget=4.0)
own_look = monitor.first_not_finite
clock = pace.time.perf_counter
begun = clock()
if rank == "1":  # whose clock runs twice as fast
    pace.time.perf_counter = lambda: begun + 2.0 * (clock() - begun)
model = train(hurried, load_images(hurried.data))
pace.time.perf_counter = clock
torch.save({"history": list(model.history), "state": model.network.state_dict()}, folder / f"hurried-{rank}.pt")

diverging = Plan.load(folder / "plans" / "full.json").changed(head_learning_rate=10.0, clip_norm=1e30, optimizer="sgd")
diverging = diverging.changed(
    stages=[stage.changed(learning_rate=10.0) for stage in diverging.stages], steps=60, warmup_steps=0
)
if rank == "0":  # as if the image that is to blame were one of the other process's
    monitor.first_not_finite = lambda *_: ""
try:
    train(diverging, load_images(diverging.data))
except finetune.errors.DivergenceError as error:
    (folder / f"diverged-{rank}.txt").write_text(str(error))
monitor.first_not_finite = own_look
torch.save = save
os.environ["FINETUNE_CACHE"] = str(folder / "empty cache")
plan = Plan.load(folder / "plans" / "full.json")
(folder / f"first-{rank}.json").write_text(train(plan, load_images(plan.data)).work.model_dump_json())
recipe = finetune.load_recipe(folder / "recipe.yaml")
os.environ["FINETUNE_CACHE"] = str(folder / "cache of the evidence")
sent, forward = [], outputs.forward_batches


def counted(network, images, *rest):
    sent.append(len(rest[-1] or images))
    return forward(network, images, *rest)


outputs.forward_batches = counted
evidence = finetune.measure_evidence(recipe, load_images(recipe.data))
outputs.forward_batches = forward
(folder / f"evidence-{rank}.json").write_text(json.dumps({"sent": sent, "evidence": evidence.model_dump(mode="json")}))
finetune.run(recipe, folder / "run")
(folder / f"written-{rank}.json").write_text(json.dumps(written))


def two_equal(_prior, _evidence, names):
    mean = np.array([{"full_far": 0.81, "partial": 0.8}.get(name, 0.5) for name in names])
    return Belief(mean + 0.04 * np.random.default_rng(0).standard_normal((DRAWS, len(names))))


contest.believe, decision.PROBE_SUFFICES = two_equal, -1.0
candidates.expected_seconds = lambda *_: 1.0
# After so few steps both members are worse than the probe; they stay.
evaluation.STANDARD_ERRORS = (float("inf"), float("inf"))
model = finetune.run(recipe.changed(strategy="auto", prefer="accuracy"), folder / "averaged")
ended = {"strategy": model.plan.strategy, "top1": model.test.top1, "temperature": model.temperature}
(folder / f"averaged-{rank}.json").write_text(json.dumps(ended))
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def plans(folder, small_plan):
    """A plan for each way, and its images and weights in the folder."""
    from conftest import make_image_folder

    counts = {"train": {"a": 6, "b": 5, "c": 7}, "test": {"a": 2, "b": 2, "c": 2}}
    data, weights = make_image_folder(folder / "images", splits=counts), folder / "weights.pt"
    torch.manual_seed(0)
    torch.save(timm.create_model("test_efficientnet").state_dict(), weights)
    return {way: small_plan(data=str(data), weights=str(weights), **(USUAL | changes)) for way, changes in WAYS.items()}


@pytest.fixture(scope="module")
def alone(plans):
    """The model that one process trains, for each way."""
    return {way: train(plan, load_images(plan.data)) for way, plan in plans.items()}


@pytest.fixture(scope="module")
def together(folder, plans):
    """What each of two processes ended with, for each way; they left a run folder, too."""
    (folder / "plans").mkdir()
    for way, plan in plans.items():
        plan.save(folder / "plans" / f"{way}.json")
    plan = plans["full"]
    (folder / "recipe.yaml").write_text(
        f"data: {plan.data}\nmodel: {plan.model}\nweights: {plan.weights}\nstrategy: partial\nimage_size: 32\n"
        f"steps: 4\nbatch_size: 6\n"
    )
    (folder / "script.py").write_text(SCRIPT)
    run_two_processes(folder / "script.py", folder)
    return {way: [torch.load(folder / f"{way}-{rank}.pt", weights_only=True) for rank in (0, 1)] for way in plans}


@pytest.fixture(scope="module", params=list(WAYS))
def way(request):
    return request.param


def start_of(plan):
    torch.manual_seed(plan.seed)
    return create_network(plan.model, plan.weights, 3, plan.preprocessing.image_size)[0].state_dict()


def movement(state, start):
    return torch.cat([(state[name] - start[name]).flatten() for name in start if not name.startswith("classifier.")])


def test_both_processes_end_with_the_same_weights(together, way):
    one, two = (result["state"] for result in together[way])
    assert {name for name in one if not torch.equal(one[name], two[name])} == set()


def test_two_processes_train_the_weights_of_one(plans, alone, together, way):
    expected, own = alone[way].network.state_dict(), together[way][0]["state"]
    start = start_of(plans[way])
    whole = movement(expected, start)
    assert whole.norm() > 0
    # AdamW takes a whole step along a gradient that is 0 except for rounding, so a few numbers may differ.
    apart = (movement(own, start) - whole).abs().sort().values
    assert apart[:-STRAY].norm() < 5e-5 * whole.norm()
    assert apart[-STRAY:].max() < 0.1 * plans[way].head_learning_rate
    for name in ("classifier.weight", "classifier.bias"):
        torch.testing.assert_close(own[name], expected[name], rtol=1e-5, atol=1e-5)


def test_two_processes_report_the_loss_of_the_whole_batch(alone, together, way):
    for result in together[way]:
        losses = [row["train_loss"] for row in result["history"]]
        assert losses == pytest.approx([row["train_loss"] for row in alone[way].history], rel=1e-3)


def test_every_held_out_image_is_evaluated_once(alone, together, way):
    expected = alone[way].validation
    for result in together[way]:
        validation = result["validation"]
        assert validation["num_images"] == expected.num_images
        assert [entry["num_images"] for entry in validation["per_class"]] == [
            entry.num_images for entry in expected.per_class
        ]
        assert validation["top1"] == expected.top1
        assert validation["log_loss"] == pytest.approx(expected.log_loss, rel=1e-3, abs=1e-5)


def test_the_work_of_both_processes_together_is_that_of_one(alone, together, way):
    # One process may find in the cache what the other has decoded or sent forward.
    def images_of(work):
        return work["forward_images"] + work["decoded_images"] + work["cache_hits"], work["backward_images"]

    assert [images_of(result["work"]) for result in together[way]] == [images_of(alone[way].work.model_dump())] * 2


def test_both_processes_stop_early_at_the_same_step(together):
    steps = [[row["step"] for row in result["history"]] for result in together["full-patient"]]
    assert steps == [[1, 2, 3], [1, 2, 3]]


def test_two_processes_interrupted_and_resumed_end_with_the_weights_of_an_uninterrupted_training(folder, together):
    for rank, result in enumerate(together["full-best"]):
        resumed = torch.load(folder / f"resumed-{rank}.pt", weights_only=True)
        assert {name for name, tensor in result["state"].items() if not torch.equal(tensor, resumed[name])} == set()


def test_two_processes_whose_clocks_differ_spend_a_time_budget_in_the_same_steps(folder, together):
    assert together
    one, two = (torch.load(folder / f"hurried-{rank}.pt", weights_only=True) for rank in (0, 1))
    rates = [[row["learning_rate"] for row in result["history"]] for result in (one, two)]
    assert rates[0] == rates[1]
    assert 2 < len(rates[0]) < 5000
    assert rates[0][-1] < 0.01 * max(rates[0])
    assert {name for name in one["state"] if not torch.equal(one["state"][name], two["state"][name])} == set()


def test_the_layer_where_a_training_diverged_is_known_if_another_process_has_the_image(folder, together):
    assert together
    one, two = ((folder / f"diverged-{rank}.txt").read_text() for rank in (0, 1))
    assert one == two
    assert ", first in the " in one


def test_each_process_sends_half_of_the_measured_images_through_the_network(folder, together):
    assert together
    for rank in (0, 1):
        found = json.loads((folder / f"evidence-{rank}.json").read_text())
        assert found["sent"] == [9, 9]  # of 18 images, and of their mirrored copies


def test_two_processes_measure_the_evidence_of_one(folder, together):
    assert together
    first, second = (json.loads((folder / f"evidence-{rank}.json").read_text())["evidence"] for rank in (0, 1))
    assert first == second
    recipe = load_recipe(folder / "recipe.yaml")
    alone = measure_evidence(recipe, load_images(recipe.data)).model_dump(mode="json")
    for key in ("domain_similarity", "similarity_parts", "class_counts", "groups", "metric"):
        assert first[key] == alone[key]
    # Images are sent forward in other batches, which rounds differently.
    assert first["probe"]["log_loss"] == pytest.approx(alone["probe"]["log_loss"], abs=0.01)
    assert first["work"]["forward_images"] == 18 + 18 + 18


def test_one_process_alone_decodes_and_counts_the_features_and_the_other_finds_them(folder, together):
    assert together
    first, second = (json.loads((folder / f"first-{rank}.json").read_text()) for rank in (0, 1))
    assert (first["decoded_images"], second["decoded_images"]) == (18, 0)
    assert first["forward_images"] - second["forward_images"] == 18


def test_one_process_alone_writes_checkpoints(folder, together):
    assert together
    first, second = (json.loads((folder / f"written-{rank}.json").read_text()) for rank in (0, 1))
    assert any("checkpoints" in file for file in first)
    assert second == []


def test_two_processes_leave_one_finished_run_folder(folder, together):
    assert together
    run = RunFolder(folder / "run")
    assert run.is_finished()
    assert not run.checkpoints.exists()
    assert run.read_metrics().validation.num_images == 18
    assert run.read_model().class_names == ("a", "b", "c")


def test_every_test_image_is_evaluated_once(folder, plans, together):
    assert together
    run = RunFolder(folder / "run")
    test = load_images(plans["full"].data).test
    expected = score(run.read_model().probabilities(test), labels_of(test), ["a", "b", "c"])
    found = run.read_metrics().test
    assert (found.num_images, found.top1) == (6, expected.top1)
    assert found.log_loss == pytest.approx(expected.log_loss, rel=1e-5)


def test_the_command_of_the_docs_trains_in_two_processes(plans, tmp_path):
    plan = plans["full"]
    options = ("--data", plan.data, "--model", plan.model, "--set", f"weights={plan.weights}", "--image-size", "32")
    run_two_processes(
        SCRIPTS / "finetune.py", *options, "--strategy", "full", "--steps", "3", "--output", tmp_path / "run"
    )
    run = RunFolder(tmp_path / "run")
    assert run.is_finished()
    assert run.read_metrics().test.num_images == 6


def test_two_processes_average_to_one_end(folder, together):
    assert together
    ended = [json.loads((folder / f"averaged-{rank}.json").read_text()) for rank in (0, 1)]
    assert ended[0] == pytest.approx(ended[1])
    run = RunFolder(folder / "averaged")
    choice = run.read_decisions().choice
    assert set(choice.members) == {"partial", "full_far"}
    assert choice.strategy == ended[0]["strategy"]
    assert run.is_finished()
    assert not run.checkpoints.exists()
