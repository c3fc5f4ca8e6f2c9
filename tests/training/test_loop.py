import copy
import io
import threading
import time

import pytest
import timm
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from finetune.data.augmentation import mix
from finetune.data.batches import BatchShare, StepSampler, make_loader
from finetune.decide.schedule import learning_rate_factor
from finetune.errors import DivergenceError
from finetune.network.backbone import find_stages, set_trainable
from finetune.network.co_tuning import add_source_head
from finetune.training.accelerator import make_accelerator
from finetune.training.loop import train_steps
from finetune.training.optimizer import parameter_groups
from finetune.training.task import Task

CPU = torch.device("cpu")
NUM_IMAGES, NUM_CLASSES = 10, 3
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
UNEQUAL = torch.tensor([0.5, 1.0, 2.0])
"""Class weights."""


class Inputs:
    """Random images, the same at each call."""

    def __init__(self, dtype=torch.float32):
        self.tensors = torch.randn(NUM_IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(7)).to(dtype)

    def __len__(self):
        return NUM_IMAGES

    def __getitems__(self, keys):
        return [(self.tensors[index], index) for index, *_ in keys]


@pytest.fixture
def optimizer_steps():
    """What the optimizer did in each step: {id of the parameter: (weights before, gradient, weights after)}."""
    steps = []

    def before(optimizer, *_):
        own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        steps.append({id(own): [own.detach().clone(), own.grad.clone()] for own in own})

    def after(optimizer, *_):
        for group in optimizer.param_groups:
            for own in group["params"]:
                steps[-1][id(own)].append(own.detach().clone())

    hooks = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)
    yield steps
    for hook in hooks:
        hook.remove()


def make_task(network, plan, inputs=None, **changes):
    inputs = inputs or Inputs()

    def loader(steps):
        share = BatchShare(plan.batch_size, steps, plan.seed)
        return make_loader(inputs, CPU, 0, StepSampler(range(NUM_IMAGES), share))

    content = {
        "name": "validation",
        "module": network,
        "groups": set_trainable(network, plan),
        "make_loader": loader,
        "prepare": lambda batch: batch,
        "labels": LABELS,
        "class_weights": torch.ones(NUM_CLASSES),
        "on_step": lambda _: None,
    }
    return Task(**(content | changes))


def in_training(hook):
    """Leave out the pass that only looks for what can be folded."""
    return lambda *arguments: hook(*arguments) if torch.is_grad_enabled() else None


def train(network, plan, **changes):
    task = make_task(network, plan, **changes)
    train_steps(task, plan, make_accelerator(plan))
    return task


def state_of(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def parameters_of(network):
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def differing(first, second):
    assert set(first) == set(second)
    return {name for name in first if not torch.equal(first[name], second[name])}


def batch_of(plan, step):
    (keys,) = StepSampler(range(NUM_IMAGES), BatchShare(plan.batch_size, range(step, step + 1), plan.seed))
    return torch.tensor([index for index, *_ in keys])


def loss_of(network, plan, step, class_weights=None):
    """The loss of a step by torch's own cross-entropy: the weighted mean over the images of the batch."""
    indices = batch_of(plan, step)
    losses = nn.functional.cross_entropy(
        network(Inputs().tensors[indices]), LABELS[indices], reduction="none", label_smoothing=plan.label_smoothing
    )
    weights = torch.ones(NUM_CLASSES) if class_weights is None else class_weights
    return (losses * weights[LABELS[indices]]).sum() / len(indices)


def noisy_network():
    """A network whose training draws random numbers."""
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=NUM_CLASSES, img_size=32, drop_path_rate=0.5).eval()


def stage_rates(network, rates):
    return [
        {"name": stage.name, "learning_rate": rate} for stage, rate in zip(find_stages(network), rates, strict=True)
    ]


def without_seconds(history):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def evaluator(losses, seen=None, network=None):
    """An evaluation that returns these losses one after the other, and adds the weights to `seen`."""
    remaining = iter(losses)

    def evaluate():
        if seen is not None:
            seen.append(state_of(network))
        return next(remaining), 0.5

    return evaluate


def test_every_stage_learns_at_its_own_rate_times_the_schedule_in_every_step(
    small_network, small_plan, optimizer_steps
):
    network = small_network()
    rates = [1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3]
    plan = small_plan(strategy="full", stages=stage_rates(network, rates), head_learning_rate=6.4e-3, warmup_steps=2)
    expected = {
        name: rate for stage, rate in zip(find_stages(network), rates, strict=True) for name in stage.parameters
    }
    train(network, plan)
    assert len(optimizer_steps) == plan.steps
    for name, parameter in network.named_parameters():
        first, second = torch.zeros_like(parameter), torch.zeros_like(parameter)
        for number, step in enumerate(optimizer_steps, start=1):
            before, gradient, after = step[id(parameter)]
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            rate = expected.get(name, 6.4e-3) * learning_rate_factor(number - 1, plan.steps, plan.warmup_steps)
            direction = first / (1 - 0.9**number) / ((second / (1 - 0.999**number)).sqrt() + 1e-8)
            decay = plan.weight_decay if parameter.ndim > 1 else 0.0
            moved = before - rate * (direction + decay * before)
            torch.testing.assert_close(after, moved, rtol=1e-5, atol=2e-3 * rate)


def test_sgd_steps_with_nesterovs_momentum_and_decays_matrices_alone(small_network, small_plan, optimizer_steps):
    network = small_network()
    plan = small_plan(strategy="full", optimizer="sgd", weight_decay=0.01)
    train(network, plan)
    assert len(optimizer_steps) == plan.steps
    for parameter in network.parameters():
        momentum = torch.zeros_like(parameter)
        for number, step in enumerate(optimizer_steps):
            before, gradient, after = step[id(parameter)]
            gradient = gradient + (0.01 * before if parameter.ndim > 1 else 0.0)
            momentum = gradient if number == 0 else 0.9 * momentum + gradient
            rate = 1e-3 * learning_rate_factor(number, plan.steps, plan.warmup_steps)
            moved = before - rate * (gradient + 0.9 * momentum)
            torch.testing.assert_close(after, moved, rtol=1e-5, atol=1e-7)


def test_position_embeddings_and_class_tokens_are_not_decayed(small_network, small_plan):
    network, plan = small_network("test_vit"), small_plan("test_vit", strategy="full", weight_decay=0.5)
    task = make_task(network, plan)
    groups = parameter_groups(task, plan, dict(network.named_parameters()))
    decays = {id(each): group["weight_decay"] for group in groups for each in group["params"]}
    assert decays[id(network.pos_embed)] == decays[id(network.cls_token)] == 0.0
    assert decays[id(network.blocks[0].attn.qkv.weight)] == 0.5


def test_matrices_are_decayed_and_biases_and_norms_are_not(small_network, small_plan, optimizer_steps):
    network, plan = small_network(), small_plan(strategy="full", weight_decay=0.5)
    task = make_task(network, plan, class_weights=torch.zeros(NUM_CLASSES))
    train_steps(task, plan, make_accelerator(plan))
    for name, parameter in network.named_parameters():
        before, gradient, after = optimizer_steps[0][id(parameter)]
        rate = 1e-3 * learning_rate_factor(0, plan.steps, plan.warmup_steps)
        assert not gradient.any()
        shrunk = before * (1 - rate * 0.5) if name.endswith("weight") and "bn" not in name else before
        torch.testing.assert_close(after, shrunk, rtol=1e-7, atol=0)


def test_a_whole_training_moves_every_trained_parameter_and_nothing_else(small_network, small_plan):
    network, plan = small_network(), small_plan(strategy="partial", trained=2)
    before = state_of(network)
    train(network, plan)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert len(trained) == 13 + 16 + 2
    assert differing(before, network.state_dict()) == trained


def test_a_full_training_with_frozen_statistics_moves_the_parameters_alone(small_network, small_plan):
    network, plan = small_network(), small_plan(strategy="full")
    before = state_of(network)
    train(network, plan, evaluate=evaluator([1.0, 1.0]))
    assert differing(before, network.state_dict()) == {name for name, _ in network.named_parameters()}


def test_updated_statistics_move_in_the_trained_stages_and_only_there(small_network, small_plan):
    network, plan = small_network(), small_plan(strategy="partial", trained=2, batch_norm_statistics="updated")
    before = dict(network.named_buffers())
    before = {name: tensor.clone() for name, tensor in before.items()}
    train(network, plan)
    trained = {name for name in before if name.startswith(("blocks.3.", "blocks.4.", "bn2."))}
    assert differing(before, dict(network.named_buffers())) == trained


def test_a_trained_networks_noise_differs_from_seed_to_seed(small_plan):
    losses = {
        seed: train(noisy_network(), small_plan("test_vit", strategy="full", batch_size=10, seed=seed)).history[0]
        for seed in (0, 1)
    }
    assert losses[0]["train_loss"] != pytest.approx(losses[1]["train_loss"], rel=1e-3)


def test_dropout_of_the_frozen_stages_makes_no_noise_in_training(small_plan):
    network = noisy_network()
    plan = small_plan("test_vit", strategy="linear_probe", steps=3, warmup_steps=1)
    images = Inputs().tensors[batch_of(plan, 2)]
    expected = network.forward_head(network.forward_features(images), pre_logits=True)
    seen = []
    network.head.register_forward_pre_hook(in_training(lambda _, inputs: seen.append(inputs[0].detach().clone())))
    train(network, plan)
    assert len(seen) == plan.steps
    torch.testing.assert_close(seen[2], expected)


@pytest.mark.parametrize("accumulation", [2, 4])
@pytest.mark.parametrize("class_weights", [torch.ones(NUM_CLASSES), UNEQUAL], ids=["equal", "unequal"])
def test_a_batch_in_parts_trains_the_weights_of_a_whole_batch(small_network, small_plan, accumulation, class_weights):
    trained = []
    for parts in (1, accumulation):
        network = small_network().double()
        plan = small_plan(strategy="full", batch_size=7, accumulation=parts)
        train(network, plan, inputs=Inputs(torch.float64), class_weights=class_weights)
        trained.append(parameters_of(network))
    assert all((trained[0][name] - trained[1][name]).abs().max() < 1e-6 for name in trained[0])


def test_the_gradient_is_clipped_to_the_plans_norm(small_network, small_plan, optimizer_steps):
    train(small_network(), small_plan(strategy="full", clip_norm=1e9))
    whole = torch.cat([gradient.flatten() for _, gradient, _ in optimizer_steps[0].values()])
    assert whole.norm() > 0.05
    optimizer_steps.clear()
    train(small_network(), small_plan(strategy="full", clip_norm=0.05))
    clipped = torch.cat([gradient.flatten() for _, gradient, _ in optimizer_steps[0].values()])
    torch.testing.assert_close(clipped, whole * 0.05 / whole.norm(), rtol=1e-3, atol=1e-9)
    for step in optimizer_steps:
        norm = torch.cat([gradient.flatten() for _, gradient, _ in step.values()]).norm()
        assert norm <= 0.05 * 1.001


def test_a_gradient_below_the_plans_norm_stays_as_it_is(small_network, small_plan, optimizer_steps):
    train(small_network(), small_plan(strategy="full", clip_norm=1e9))
    train(small_network(), small_plan(strategy="full", clip_norm=1e3))
    steps = len(optimizer_steps) // 2
    for one, other in zip(optimizer_steps[0].values(), optimizer_steps[steps].values(), strict=True):
        assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("class_weights", [torch.ones(NUM_CLASSES), UNEQUAL], ids=["equal", "unequal"])
def test_the_gradient_is_that_of_torchs_smoothed_and_weighted_loss(
    small_network, small_plan, optimizer_steps, smoothing, class_weights
):
    plan = small_plan(strategy="full", label_smoothing=smoothing, clip_norm=1e9)
    reference = small_network()
    loss = loss_of(reference, plan, 0, class_weights)
    loss.backward()
    network = small_network()
    task = train(network, plan, class_weights=class_weights)
    assert task.history[0]["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    for own, expected in zip(network.parameters(), reference.parameters(), strict=True):
        scale = expected.grad.abs().max()
        torch.testing.assert_close(optimizer_steps[0][id(own)][1], expected.grad, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("count", [1, 2])
def test_co_tuning_adds_the_pretrained_classifiers_loss_to_the_objective_and_not_to_the_history(
    small_network, small_plan, optimizer_steps, count
):
    plan = plan_of_parts(small_plan, count, co_tuning=2.0, clip_norm=1e9)
    relation = torch.rand(NUM_CLASSES, 7, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    torch.manual_seed(0)
    source = nn.Linear(256, 7)
    reference, indices = small_network(), batch_of(plan, 0)
    loss = loss_of(reference, plan, 0, UNEQUAL)
    features = reference.forward_head(reference.forward_features(Inputs().tensors[indices]), pre_logits=True)
    each = -(relation[LABELS[indices]] * source(features).log_softmax(dim=1)).sum(dim=1)
    (loss + 2.0 * (UNEQUAL[LABELS[indices]] * each).mean()).backward()
    network = small_network()
    add_source_head(network, "classifier", source)
    task = train(network, plan, class_weights=UNEQUAL, relation=relation)
    assert task.history[0]["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    expected = dict(reference.named_parameters()) | {
        f"classifier.source.{name}": parameter for name, parameter in source.named_parameters()
    }
    for name, own in network.named_parameters():
        scale = expected[name].grad.abs().max()
        torch.testing.assert_close(optimizer_steps[0][id(own)][1], expected[name].grad, rtol=1e-4, atol=1e-4 * scale)


def test_a_class_of_weight_0_does_not_count(small_network, small_plan):
    plan, weights = small_plan(strategy="full", accumulation=2), torch.tensor([1.0, 1.0, 0.0])
    others = Inputs()
    others.tensors[LABELS == 2] = 3.0
    networks = small_network(), small_network()
    for network, inputs in zip(networks, (Inputs(), others), strict=True):
        train(network, plan, inputs=inputs, class_weights=weights)
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_the_average_that_is_left_is_the_exponential_moving_one(small_network, small_plan):
    network, plan = small_network(), small_plan(strategy="full", average_decay=0.7)
    average, each = parameters_of(network), []
    train(network, plan, on_step=lambda _: each.append(parameters_of(network)), evaluate=evaluator([1.0, 2.0]))
    for weights in each:
        average = {name: 0.7 * value + 0.3 * weights[name] for name, value in average.items()}
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.detach(), average[name], rtol=1e-5, atol=1e-7)
    assert differing(each[-1], parameters_of(network)) == set(average)


def test_without_an_average_the_last_weights_are_left(small_network, small_plan):
    network, each = small_network(), []
    train(network, small_plan(average_decay=0.0), on_step=lambda _: each.append(parameters_of(network)))
    assert differing(each[-1], parameters_of(network)) == set()
    assert differing(each[-2], parameters_of(network)) != set()


@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize(("keep", "left"), [("best", 1), ("last", 2)])
def test_the_weights_of_the_best_or_of_the_last_evaluation_are_left(small_network, small_plan, keep, left, decay):
    network, evaluated = small_network(), []
    plan = small_plan(strategy="full", keep=keep, evaluations=3, average_decay=decay)
    train(network, plan, evaluate=evaluator([3.0, 1.0, 2.0], evaluated, network))
    assert len(evaluated) == 3
    assert differing(evaluated[left], network.state_dict()) == set()


def test_the_best_network_has_the_batch_norm_statistics_that_it_was_evaluated_with(small_network, small_plan):
    network, evaluated = small_network(), []
    plan = small_plan(strategy="full", keep="best", evaluations=3, batch_norm_statistics="updated")
    train(network, plan, evaluate=evaluator([3.0, 1.0, 2.0], evaluated, network))
    assert differing(evaluated[1], network.state_dict()) == set()


def test_an_evaluation_sees_the_average(small_network, small_plan):
    network, evaluated, each = small_network(), [], []
    average = parameters_of(network)
    plan = small_plan(strategy="full", average_decay=0.5, evaluations=1)
    train(
        network,
        plan,
        on_step=lambda _: each.append(parameters_of(network)),
        evaluate=evaluator([1.0], evaluated, network),
    )
    for weights in each:
        average = {name: 0.5 * value + 0.5 * weights[name] for name, value in average.items()}
    for name, value in average.items():
        torch.testing.assert_close(evaluated[0][name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_evaluations_do_not_change_the_training(small_network, small_plan, name):
    states = []
    for evaluations in (1, 3):
        network = noisy_network() if name == "test_vit" else small_network(name)
        plan = small_plan(name, strategy="full", evaluations=evaluations, batch_norm_statistics="updated")

        def evaluate(network=network):
            network.eval()
            with torch.inference_mode():
                network(torch.rand(2, 3, 32, 32))
            return 1.0, 0.5

        train(network, plan, evaluate=evaluate)
        states.append(state_of(network))
    assert differing(*states) == set()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_the_step_and_what_to_do(small_network, small_plan, value):
    network, plan, inputs = small_network(), small_plan(strategy="full", batch_size=2), Inputs()
    inputs.tensors[batch_of(plan, 2)[0]] = value
    sentence = (
        r"the loss became (nan|inf) at step 3 of the training 'validation', first in the images; lower the learning "
        r"rate \(--set training\.learning_rate=\.\.\.\) or train in float32 \(--set training\.precision=float32\)"
    )
    with pytest.raises(DivergenceError, match=sentence) as raised:
        train(network, plan, inputs=inputs)
    assert [row.get("diverged_in") for row in raised.value.history] == [None, None, "the images"]
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())


@pytest.mark.parametrize(("name", "keep"), [("test_vit", "last"), ("test_efficientnet", "best")])
def test_a_training_resumed_at_any_checkpoint_ends_with_the_same_weights_and_history(
    small_network, small_plan, name, keep
):
    plan = small_plan(
        name, strategy="full", steps=7, warmup_steps=2, keep=keep, evaluations=3, batch_norm_statistics="updated"
    )
    losses = {2: 3.0, 5: 1.0, 7: 2.0}

    def network():
        return noisy_network() if name == "test_vit" else small_network(name)

    files = []

    def save(content):
        files.append(io.BytesIO())
        torch.save(content, files[-1])

    whole = network()
    history = train(whole, plan, evaluate=evaluator(losses.values()), save=save).history
    assert len(files) == plan.steps - 1
    for file in files:
        file.seek(0)
        checkpoint = torch.load(file, weights_only=True)
        resumed = network()
        rest = [loss for step, loss in losses.items() if step > checkpoint["step"]]
        task = train(resumed, plan, evaluate=evaluator(rest), resumed=checkpoint)
        assert differing(whole.state_dict(), resumed.state_dict()) == set()
        assert without_seconds(task.history) == without_seconds(history)


@pytest.mark.parametrize("until", [1, 3, 6])
def test_a_training_that_paused_ends_with_the_weights_of_one_that_did_not(small_network, small_plan, until):
    plan = small_plan(strategy="full", steps=7, warmup_steps=2, average_decay=0.5)
    checkpoints, paused, whole = [], small_network(), small_network()
    train(paused, plan, until=until, save=lambda content: checkpoints.append(copy.deepcopy(content)))
    assert checkpoints[-1]["step"] == until
    task = train(paused, plan, resumed=checkpoints[-1])
    history = train(whole, plan).history
    assert differing(whole.state_dict(), paused.state_dict()) == set()
    assert without_seconds(task.history) == without_seconds(history)


def test_a_resumed_training_does_not_repeat_steps(small_network, small_plan):
    checkpoints, steps = [], []
    train(small_network(), small_plan(), save=lambda content: checkpoints.append(copy.deepcopy(content)))
    train(small_network(), small_plan(), on_step=steps.append, resumed=checkpoints[3])
    assert steps == [5, 6]


def test_a_long_training_has_ten_equal_parts_between_its_checkpoints(small_network, small_plan):
    saved = []
    plan = small_plan(strategy="linear_probe", steps=40, warmup_steps=0, batch_size=1)
    train(small_network(), plan, save=lambda content: saved.append(content["step"]))
    assert saved == [4, 8, 12, 16, 20, 24, 28, 32, 36]


def test_the_history_has_one_row_a_step_with_its_learning_rate(small_network, small_plan):
    plan = small_plan(steps=6, warmup_steps=2, head_learning_rate=4e-3)
    history = train(small_network(), plan).history
    assert [(row["phase"], row["step"]) for row in history] == [("validation", step) for step in range(1, 7)]
    rates = [4e-3 * learning_rate_factor(step, 6, 2) for step in range(6)]
    assert [row["learning_rate"] for row in history] == pytest.approx(rates)
    always = {"phase", "step", "train_loss", "learning_rate", "gradient_norm", "seconds"}
    assert all({key for key in row if not key.startswith("update_ratio:")} == always for row in history)


def test_the_first_step_and_each_tenth_of_the_way_have_the_update_ratio_of_each_stage(
    small_network, small_plan, optimizer_steps
):
    network, plan = small_network(), small_plan(steps=20, average_decay=0.0)
    parameters = dict(network.named_parameters())
    task = train(network, plan)
    ratios = {"update_ratio:blocks.3.0", "update_ratio:blocks.4", "update_ratio:head"}
    assert [row["step"] for row in task.history if ratios <= set(row)] == [1, *range(2, 21, 2)]
    for step in (0, 9):
        for stage, names in task.groups.items():
            moves = [optimizer_steps[step][id(parameters[name])] for name in names]
            change = torch.cat([(after - before).flatten() for before, _, after in moves]).norm()
            weights = torch.cat([before.flatten() for before, _, _ in moves]).norm()
            assert task.history[step][f"update_ratio:{stage}"] == pytest.approx(float(change / weights), rel=1e-4)


def test_every_row_has_the_norm_of_the_gradient_before_clipping(small_network, small_plan, optimizer_steps):
    history = train(small_network(), small_plan(strategy="full", clip_norm=1e9)).history
    for row, step in zip(history, optimizer_steps, strict=True):
        whole = torch.cat([gradient.flatten() for _, gradient, _ in step.values()])
        assert row["gradient_norm"] == pytest.approx(float(whole.norm()), rel=1e-4)
    clipped = train(small_network(), small_plan(strategy="full", clip_norm=1e-3)).history
    assert clipped[0]["gradient_norm"] == history[0]["gradient_norm"]


def test_the_row_of_an_evaluation_has_its_details(small_network, small_plan):
    history = train(
        small_network(),
        small_plan(evaluations=3),
        evaluate=evaluator([3.0, 1.0, 2.0]),
        details=lambda: {"seen_top1": 1},
    ).history
    assert [row["step"] for row in history if row.get("seen_top1") == 1] == [2, 4, 6]


def test_the_history_has_every_evaluation_at_its_step(small_network, small_plan):
    history = train(small_network(), small_plan(evaluations=3), evaluate=evaluator([3.0, 1.0, 2.0])).history
    found = {
        row["step"]: (row["validation_loss"], row["validation_top1"]) for row in history if "validation_loss" in row
    }
    assert found == {2: (3.0, 0.5), 4: (1.0, 0.5), 6: (2.0, 0.5)}


@pytest.mark.parametrize("schedule", ["linear", "step", "inverse_sqrt", "constant"])
def test_the_plans_schedule_reaches_the_optimizer(small_network, small_plan, schedule):
    plan = small_plan(strategy="full", schedule=schedule, warmup_steps=2, steps=6)
    rates = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[-1]["lr"]))
    train(small_network(), plan)
    hook.remove()
    assert rates == pytest.approx([1e-3 * learning_rate_factor(step, 6, 2, schedule) for step in range(6)])


def test_a_schedule_is_walked_by_steps_however_many_parts_a_batch_has(small_network, small_plan):
    histories = [train(small_network(), small_plan(accumulation=count)).history for count in (1, 2)]
    whole, parts = ([row["learning_rate"] for row in history] for history in histories)
    assert whole == parts


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_a_mixed_batch_has_the_loss_of_both_labels_by_their_shares(small_network, small_plan, mixing):
    plan = small_plan(strategy="full", steps=1, warmup_steps=0)
    plan = plan.changed(augmentation=plan.augmentation.changed(mixing=mixing))
    network = small_network()
    indices = batch_of(plan, 0)
    mixed, share = mix(Inputs().tensors[indices], mixing, (plan.noise_seed, 0))
    with torch.no_grad():
        scores = network(mixed)
    losses = [
        nn.functional.cross_entropy(scores, LABELS[own], label_smoothing=plan.label_smoothing)
        for own in (indices, indices.roll(1))
    ]
    (row,) = train(network, plan).history
    assert 0 < share < 1
    assert row["train_loss"] == pytest.approx(float(share * losses[0] + (1 - share) * losses[1]), rel=1e-4)


def test_a_mixed_batch_in_parts_trains_the_weights_of_a_whole_one(small_network, small_plan):
    plan = small_plan(strategy="full", precision="float32")
    plan = plan.changed(augmentation=plan.augmentation.changed(mixing="mixup"))
    whole, parts = small_network(), small_network()
    train(whole, plan)
    train(parts, plan.changed(accumulation=2))
    for name, tensor in parameters_of(whole).items():
        torch.testing.assert_close(parameters_of(parts)[name], tensor, rtol=1e-4, atol=5e-5)


def test_a_training_stops_where_the_held_out_loss_has_not_fallen_for_the_plans_patience(small_network, small_plan):
    plan = small_plan(steps=12, evaluations=6, patience=2)
    task = make_task(small_network(), plan, evaluate=evaluator([3.0, 2.0, 2.5, 2.1, 1.0, 1.0]))
    reached = train_steps(task, plan, make_accelerator(plan))
    assert (reached.step, reached.is_over, len(task.history)) == (8, True, 8)


def test_a_training_that_stopped_leaves_its_best_weights(small_network, small_plan):
    seen, network = [], small_network()
    plan = small_plan(strategy="full", steps=12, evaluations=6, patience=2, keep="best", average_decay=0.0)
    train(network, plan, evaluate=evaluator([3.0, 2.0, 2.5, 2.1], seen, network))
    assert differing(state_of(network), seen[1]) == set()


def test_a_training_without_patience_takes_all_its_steps(small_network, small_plan):
    plan = small_plan(steps=12, evaluations=6, patience=0)
    assert len(train(small_network(), plan, evaluate=evaluator([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])).history) == 12


def test_a_training_that_stopped_and_is_resumed_takes_no_further_step(small_network, small_plan):
    kept = []
    plan = small_plan(strategy="full", steps=12, evaluations=6, patience=2)
    first, second = small_network(), small_network()
    train(first, plan, evaluate=evaluator([3.0, 2.0, 2.5, 2.1]), save=lambda state: kept.append(copy.deepcopy(state)))
    task = train(second, plan, evaluate=evaluator([]), resumed=kept[-1])
    assert len(task.history) == 8
    assert differing(state_of(first), state_of(second)) == set()


def test_where_time_is_short_fewer_steps_go_through_the_whole_schedule(small_network, small_plan):
    plan = small_plan(steps=200, warmup_steps=0)
    begin = time.perf_counter()
    train(small_network(), plan.changed(steps=20))
    seconds = time.perf_counter() - begin
    history = train(small_network(), plan, seconds=2 * seconds).history
    assert 5 <= len(history) < 150
    assert history[0]["learning_rate"] == 1e-3
    assert history[-1]["learning_rate"] < 0.1 * 1e-3


def test_with_time_to_spare_every_step_is_taken(small_network, small_plan):
    assert len(train(small_network(), small_plan(steps=6), seconds=600.0).history) == 6


def test_without_time_the_first_step_is_followed_by_the_end(small_network, small_plan):
    assert len(train(small_network(), small_plan(steps=50), seconds=0.0).history) == 2


def test_weights_that_are_not_finite_are_named_instead_of_their_outputs(small_network, small_plan):
    network = small_network()
    with torch.no_grad():
        network.blocks[4][0].conv_pw.weight[0, 0] = float("nan")
    with pytest.raises(
        DivergenceError, match=r"at step 1 of .*, first in the weights blocks\.4\.0\.conv_pw\.weight; lower"
    ):
        train(network, small_plan())


def test_a_gradient_that_is_not_finite_stops_a_training_whose_loss_is(small_network, small_plan):
    network = small_network()
    network.classifier.register_full_backward_hook(in_backward)
    with pytest.raises(
        DivergenceError,
        match=r"the gradient became infinite or not a number at step 1 .*, first in the gradient of bn2",
    ):
        train(network, small_plan(strategy="full"))
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())


def in_backward(_module, gradients, _outputs):
    return tuple(None if gradient is None else gradient * float("nan") for gradient in gradients)


def test_a_training_learns(small_network, small_plan):
    plan = small_plan(strategy="full", steps=8, batch_size=NUM_IMAGES, average_decay=0.0, label_smoothing=0.0)
    history = train(small_network(), plan).history
    assert history[-1]["train_loss"] < 0.9 * history[0]["train_loss"]


def test_after_a_training_in_bfloat16_one_in_float32_is_as_if_it_were_the_first(small_network, small_plan):
    states = {}
    for run, precision in (("first", "float32"), ("half", "bfloat16"), ("again", "float32")):
        network = small_network()
        train(network, small_plan(strategy="full", precision=precision))
        states[run] = state_of(network)
    assert differing(states["first"], states["again"]) == set()
    assert differing(states["first"], states["half"]) != set()


def test_a_training_in_bfloat16_gives_a_module_back_that_computes_in_float32(small_network, small_plan):
    network, fresh = small_network("test_convnext"), small_network("test_convnext")
    train(network, small_plan("test_convnext", strategy="full", precision="bfloat16"))
    fresh.load_state_dict(network.state_dict())
    network.eval()
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    with torch.no_grad():
        assert torch.equal(network(Inputs().tensors), fresh(Inputs().tensors))


def test_a_training_in_bfloat16_has_nearly_the_gradients_of_one_in_float32(small_network, small_plan, optimizer_steps):
    gradients = []
    for precision in ("float32", "bfloat16"):
        optimizer_steps.clear()
        network = small_network("test_convnext")
        train(network, small_plan("test_convnext", strategy="full", precision=precision))
        gradients.append(torch.cat([optimizer_steps[0][id(own)][1].flatten() for own in network.parameters()]))
    exact, rounded = gradients
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() < 0.05 * exact.norm()


def test_a_second_training_of_the_same_network_is_in_its_precision_too(small_network, small_plan):
    network, seen = small_network(), []
    network.conv_stem.register_forward_hook(in_training(lambda _module, _inputs, output: seen.append(output.dtype)))
    plan = small_plan(strategy="full", precision="bfloat16", steps=2)
    for _ in range(2):
        train(network, plan)
    assert seen == [torch.bfloat16] * 4


def plan_of_parts(small_plan, count, **changes):
    return small_plan(**({"strategy": "full", "average_decay": 0.0, "parallel_parts": count} | changes))


def movement(network, start):
    return torch.cat([(value - start[name]).flatten() for name, value in parameters_of(network).items()])


@pytest.mark.parametrize(
    "changes",
    [{}, {"batch_size": 8, "accumulation": 2}, {"batch_size": 5}, {"batch_size": 7, "accumulation": 2}],
    ids=["4", "8 in 2", "5", "7 in 2"],
)
def test_parts_of_a_batch_in_parallel_give_the_gradients_of_the_whole_batch(
    small_network, small_plan, optimizer_steps, changes
):
    network, plan = small_network(), plan_of_parts(small_plan, 2, **changes)
    parameters = dict(network.named_parameters())
    task = train(network, plan, class_weights=UNEQUAL)
    assert len(optimizer_steps) == plan.steps
    for step in (0, 3):
        before = small_network()
        with torch.no_grad():
            for name, parameter in before.named_parameters():
                parameter.copy_(optimizer_steps[step][id(parameters[name])][0])
        loss = loss_of(before, plan, step, UNEQUAL)
        loss.backward()
        length = nn.utils.clip_grad_norm_(before.parameters(), plan.clip_norm)
        assert length > 0
        for name, parameter in before.named_parameters():
            found = optimizer_steps[step][id(parameters[name])][1]
            torch.testing.assert_close(found, parameter.grad, rtol=1e-3, atol=1e-5)
        assert task.history[step]["train_loss"] == pytest.approx(float(loss.detach()), rel=1e-5)


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        ("full", {}),
        ("full", {"batch_size": 7, "accumulation": 2}),
        ("partial", {"batch_size": 8, "accumulation": 2}),
        ("partial", {"batch_size": 5}),
    ],
    ids=["4", "7 in 2", "8 in 2", "5"],
)
def test_parts_of_a_batch_in_parallel_train_the_weights_of_one_after_another(
    small_network, small_plan, strategy, changes
):
    networks = [small_network() for _ in range(2)]
    start = parameters_of(networks[0])
    histories = [
        train(network, plan_of_parts(small_plan, count, strategy=strategy, **changes)).history
        for network, count in zip(networks, (1, 2), strict=True)
    ]
    one, two = (movement(network, start) for network in networks)
    assert one.norm() > 0
    assert (two - one).norm() < 1e-2 * one.norm()
    losses = [[row["train_loss"] for row in history] for history in histories]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_parts_of_a_batch_are_computed_in_other_threads_than_the_calling_one(small_network, small_plan):
    network, seen = small_network(), []
    see = in_training(lambda _, inputs: seen.append((threading.get_ident(), len(inputs[0]))))
    network.conv_stem.register_forward_pre_hook(see)
    train(network, plan_of_parts(small_plan, 2, batch_size=8, accumulation=2))
    assert len(seen) == 6 * 4
    assert {size for _, size in seen} == {2}
    assert threading.get_ident() not in {thread for thread, _ in seen}


@pytest.mark.parametrize("size", [1, 2])
def test_a_batch_with_fewer_images_than_parallel_parts_is_trained_on(small_network, small_plan, size):
    network = small_network()
    history = train(network, plan_of_parts(small_plan, 3, batch_size=size)).history
    assert len(history) == 6
    whole = train(small_network(), plan_of_parts(small_plan, 1, batch_size=size)).history
    assert [row["train_loss"] for row in history] == pytest.approx([row["train_loss"] for row in whole], rel=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_in_parallel_parts_twice_gives_the_same_weights_bit_for_bit(small_network, small_plan, precision):
    states = []
    for _ in range(2):
        network = small_network()
        train(network, plan_of_parts(small_plan, 2, batch_size=7, precision=precision))
        states.append(state_of(network))
    assert differing(*states) == set()


def test_every_parallel_part_is_computed_in_the_trainings_precision(small_network, small_plan):
    network, seen = small_network(), []
    network.conv_stem.register_forward_hook(in_training(lambda _module, _inputs, output: seen.append(output.dtype)))
    train(network, plan_of_parts(small_plan, 2, precision="bfloat16", steps=2))
    assert seen == [torch.bfloat16] * 4


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_training_in_parallel_parts_that_is_resumed_ends_with_the_weights_of_an_uninterrupted_one(
    small_network, small_plan, accumulation
):
    plan = plan_of_parts(small_plan, 2, batch_size=7, accumulation=accumulation, average_decay=0.5)
    whole, checkpoints = small_network(), []
    history = train(whole, plan, save=lambda content: checkpoints.append(copy.deepcopy(content))).history
    for checkpoint in (checkpoints[0], checkpoints[3]):
        resumed = small_network()
        task = train(resumed, plan, resumed=checkpoint)
        assert differing(whole.state_dict(), resumed.state_dict()) == set()
        assert without_seconds(task.history) == without_seconds(history)


def test_the_next_batch_is_read_while_this_one_is_computed_with_and_none_is_left_out(small_network, small_plan):
    plan, events = plan_of_parts(small_plan, 2), []

    class Recorded(Inputs):
        def __getitems__(self, keys):
            events.append(("read", [index for index, *_ in keys]))
            return super().__getitems__(keys)

    train(small_network(), plan, inputs=Recorded(), on_step=lambda step: events.append(("step", step)))
    assert [what for what, _ in events] == ["read"] * 2 + ["step", "read"] * 4 + ["step", "step"]
    read = [indices for what, indices in events if what == "read"]
    assert read == [batch_of(plan, step).tolist() for step in range(6)]


def test_a_batch_that_is_read_ahead_is_there_before_anything_else_draws_random_numbers(small_network, small_plan):
    events = []

    class Slow(Inputs):
        def __getitems__(self, keys):
            time.sleep(0.05)
            events.append("read")
            return super().__getitems__(keys)

    def evaluate():
        events.append("evaluated")
        return 1.0, 0.5

    train(small_network(), plan_of_parts(small_plan, 2, evaluations=6), inputs=Slow(), evaluate=evaluate)
    assert events == ["read"] + ["read", "evaluated"] * 5 + ["evaluated"]


@pytest.mark.parametrize("count", [1, 2])
def test_no_batch_is_read_beyond_the_last_step(small_network, small_plan, count):
    read = []

    class Recorded(Inputs):
        def __getitems__(self, keys):
            read.append(len(keys))
            return super().__getitems__(keys)

    train(small_network(), plan_of_parts(small_plan, count), inputs=Recorded())
    assert read == [4] * 6


@pytest.mark.parametrize("why", ["statistics", "drop path", "dropout", "dropout without a module"])
def test_where_parts_of_a_batch_would_not_be_independent_they_are_computed_one_after_another(
    small_network, small_plan, why
):
    def network():
        if why == "drop path":
            return noisy_network()
        made = small_network()
        if why == "dropout":
            made.global_pool = nn.Sequential(made.global_pool, nn.Dropout(0.5))
        if why == "dropout without a module":
            made.drop_rate = 0.5  # timm's networks drop features in a function of torch, some of them by default
        return made

    name = "test_vit" if why == "drop path" else "test_efficientnet"
    changes = {"batch_norm_statistics": "updated"} if why == "statistics" else {}
    states, threads = [], set()
    for count in (1, 2):
        own = network()
        own.register_forward_pre_hook(lambda *_: threads.add(threading.get_ident()))
        train(own, small_plan(name, strategy="full", parallel_parts=count, **changes))
        states.append(state_of(own))
    assert differing(*states) == set()
    assert threads == {threading.get_ident()}


def test_dropout_that_is_frozen_leaves_the_parts_in_parallel(small_plan):
    network, threads = noisy_network(), set()
    network.register_forward_pre_hook(in_training(lambda *_: threads.add(threading.get_ident())))
    train(network, small_plan("test_vit", strategy="linear_probe", steps=2, warmup_steps=0, parallel_parts=2))
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("count", [1, 2])
def test_after_a_training_the_number_of_threads_is_that_of_before(small_network, small_plan, count):
    torch.set_num_threads(2)
    try:
        train(small_network(), plan_of_parts(small_plan, count, num_threads=1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_a_loss_that_is_not_finite_is_named_with_parallel_parts_too(small_network, small_plan):
    plan, inputs = plan_of_parts(small_plan, 2, batch_size=2), Inputs()
    inputs.tensors[batch_of(plan, 2)[0]] = float("nan")
    with pytest.raises(DivergenceError, match=r"the loss became nan at step 3 .*, first in the images"):
        train(small_network(), plan, inputs=inputs)
    assert torch.get_num_threads() == 1
