import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import FORWARD, PLAIN, coloured_image, slow
from safetensors.torch import load_file

from finetune.data import Pixels, decoding, groups_of, label_paths, labels_of, load_images
from finetune.data.batches import PlainImages
from finetune.decide.plan import CYCLE_RATE, CYCLE_SHARE
from finetune.decide.preprocessing import Preprocessing
from finetune.ensemble import averages
from finetune.ensemble.averages import blend, soup, with_flips
from finetune.errors import DivergenceError
from finetune.network import outputs as forward_passes
from finetune.network.backbone import create_network, find_norms, find_stages, profile_stages
from finetune.network.forward import forward_all, logits
from finetune.network.head import find_head, recorded_features
from finetune.predict.linear_probe import fit_head
from finetune.predict.links import log_loss, softmax
from finetune.progress import no_progress
from finetune.training import (
    Checkpoints,
    TrainingDivergedError,
    begin,
    cached_activations,
    evaluate_at,
    evaluation,
    finish,
    history_so_far,
    plan_phases,
    train,
)
from finetune.training import fit as fitting
from finetune.work import Work

AT_128 = Preprocessing(
    image_size=128, crop_fraction=1.0, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)

WAYS = {
    "linear_probe": {},
    "linear_probe, trained": {"steps": 4, "warmup_steps": 1},
    "norm_tuning": {},
    "partial": {},
    "partial, nothing kept": {"cached_views": 0},
    "full": {},
    "full, co-tuned": {"co_tuning": 2.0},
    "scratch": {"batch_norm_statistics": "updated"},
    "full, small first": {"preprocessing": AT_128, "small_steps": 3},
    "partial, small first": {"preprocessing": AT_128, "small_steps": 3},
}


@pytest.fixture
def splits(image_folder, tmp_path):
    """Three classes of 5, 4 and 6 training images; no validation split."""
    root = image_folder(tmp_path / "images", splits={"train": {"a": 5, "b": 4, "c": 6}, "test": {"a": 1, "b": 1}})
    return load_images(str(root))


@pytest.fixture
def given(image_folder, tmp_path):
    """The same with a validation split of 2 images of each class."""
    counts = {"train": {"a": 5, "b": 4, "c": 6}, "val": {"a": 2, "b": 2, "c": 2}, "test": {"a": 1, "b": 1}}
    return load_images(str(image_folder(tmp_path / "given", splits=counts)))


@pytest.fixture
def grouped(image_folder, tmp_path):
    """Twelve training images of two classes that belong together in threes."""
    root = image_folder(tmp_path / "grouped", {"a": 6, "b": 6})
    paths = sorted(str(path) for path in root.rglob("*.*"))
    labels = [Path(path).parent.name for path in paths]
    return label_paths(paths, labels, groups=[f"g{number // 3}" for number in range(len(paths))])


@pytest.fixture
def make_plan(small_plan, weights_file):
    """The factory of plans for a network whose weights lie in a file."""

    def make(way="partial", name="test_efficientnet", **changes):
        strategy = way.partition(",")[0]
        weights = "random" if strategy == "scratch" else str(weights_file(name))
        return small_plan(name, **({"strategy": strategy, "weights": weights} | WAYS[way] | changes))

    return make


def network_of(plan, num_classes=3):
    torch.manual_seed(plan.seed)
    return create_network(plan.model, plan.weights, num_classes, plan.preprocessing.image_size)[0].eval()


def features_of(plan, splits, table=None):
    images = PlainImages(Pixels(table or splits.train, plan.preprocessing.shorter_side), plan.preprocessing)
    network = network_of(plan, len(splits.class_names))
    with recorded_features(network) as features:
        exact = forward_all(network, images, plan.preprocessing, plan.forward, features)
    return torch.from_numpy(exact).bfloat16().float().numpy()  # as they are kept


def head_of(network):
    weight, bias = find_head(network).classifier()
    return weight.numpy(), bias.numpy()


def moved(plan, network):
    """The names of what differs from where the training began, without the head's."""
    start, head = network_of(plan).state_dict(), find_head(network)
    return {
        name
        for name, tensor in network.state_dict().items()
        if not head.owns(name) and not torch.equal(tensor, start[name])
    }


def assert_same_model(one, other):
    assert all(
        torch.equal(tensor, one.network.state_dict()[name]) for name, tensor in other.network.state_dict().items()
    )
    assert one.validation == other.validation
    assert one.temperature == other.temperature
    assert without_seconds(one.history) == without_seconds(other.history)


def without_seconds(history):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def interrupter(phase, step):
    """A progress that a person interrupts, and the (task, done) that it was told."""
    told = []

    def progress(task, done, _total, _history=()):
        told.append((task, done))
        if (task, done) == (f"training ({phase})", step):
            raise KeyboardInterrupt

    return progress, told


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path / "checkpoints")
    made.begin()
    return made


def indices(phases):
    return {phase.name: (phase.indices.tolist(), phase.held_out.tolist()) for phase in phases}


def test_given_validation_images_judge_and_the_refit_trains_on_them_too(small_plan, given):
    phases = plan_phases(small_plan(validation="given", refit=True), given)
    everything = list(range(21))
    assert indices(phases) == {"validation": (everything[:15], everything[15:]), "refit": (everything, [])}


def test_given_validation_images_are_never_trained_on_without_a_refit(small_plan, given):
    phases = plan_phases(small_plan(validation="given", refit=False), given)
    assert indices(phases) == {"validation": (list(range(15)), list(range(15, 21)))}


def test_held_out_images_are_a_fifth_of_each_class_and_the_refit_trains_on_all(small_plan, splits):
    first, refit = plan_phases(small_plan(validation="held_out", refit=True), splits)
    labels = labels_of(splits.train)
    assert sorted([*first.indices, *first.held_out]) == list(range(15))
    assert np.bincount(labels[first.held_out]).tolist() == [1, 1, 1]
    assert (first.name, refit.name) == ("validation", "refit")
    assert indices([refit]) == {"refit": (list(range(15)), [])}


def test_held_out_images_are_never_trained_on_without_a_refit(small_plan, splits):
    (only,) = plan_phases(small_plan(validation="held_out", refit=False), splits)
    assert not set(only.indices) & set(only.held_out)


@pytest.mark.parametrize("refit", [False, True])
def test_cross_validation_holds_every_image_out_once_and_ships_a_training_on_all(small_plan, splits, refit):
    *folds, last = plan_phases(small_plan(validation="cross_validation", folds=3, refit=refit), splits)
    assert [fold.name for fold in folds] == ["fold-1", "fold-2", "fold-3"]
    assert sorted(np.concatenate([fold.held_out for fold in folds])) == list(range(15))
    for fold in folds:
        assert sorted([*fold.indices, *fold.held_out]) == list(range(15))
    assert indices([last]) == {"refit": (list(range(15)), [])}


@pytest.mark.parametrize("validation", ["held_out", "cross_validation"])
def test_images_that_belong_together_are_never_parted(small_plan, grouped, validation):
    groups = groups_of(grouped.train)
    for phase in plan_phases(small_plan(validation=validation, folds=2, refit=False), grouped):
        assert not set(groups[phase.indices]) & set(groups[phase.held_out])


@pytest.mark.parametrize("validation", ["held_out", "cross_validation"])
def test_a_plan_that_holds_out_training_images_leaves_a_given_validation_split_alone(small_plan, given, validation):
    for phase in plan_phases(small_plan(validation=validation, refit=True), given):
        assert max(*phase.indices, *phase.held_out) < len(given.train)


@pytest.mark.parametrize("validation", ["held_out", "cross_validation"])
def test_a_plan_that_holds_out_training_images_trains_on_data_with_a_validation_split(make_plan, given, validation):
    model = train(make_plan("norm_tuning", steps=2, validation=validation, refit=True), given)
    assert model.validation.num_images == {"held_out": 3, "cross_validation": 15}[validation]


def test_the_folds_are_those_of_the_seed(small_plan, splits):
    held = [plan_phases(small_plan(seed=seed), splits)[0].held_out.tolist() for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2]


@pytest.mark.parametrize("imbalance", ["none", "class_weights"])
@pytest.mark.parametrize("validation", ["held_out", "cross_validation"])
def test_a_probe_without_steps_is_the_logistic_regression_on_the_phases_own_images(
    make_plan, splits, validation, imbalance
):
    plan = make_plan("linear_probe", validation=validation, imbalance=imbalance)
    indices = plan_phases(plan, splits)[-1].indices
    expected = fit_head(
        features_of(plan, splits)[indices],
        labels_of(splits.train)[indices],
        3,
        plan.probe_inverse_regularization,
        balanced=imbalance == "class_weights",
    )
    weight, bias = head_of(train(plan, splits).network)
    np.testing.assert_allclose(weight, expected.weight, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(bias, expected.bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", ["norm_tuning", "partial", "partial, nothing kept", "full"])
def test_the_head_of_every_strategy_starts_from_the_probe_of_the_phases_own_images(make_plan, splits, way):
    plan = make_plan(way, head_learning_rate=0.0, steps=2)
    (phase,) = plan_phases(plan, splits)
    labels = labels_of(splits.train)[phase.indices]
    expected = fit_head(features_of(plan, splits)[phase.indices], labels, 3, plan.probe_inverse_regularization)
    weight, bias = head_of(train(plan, splits).network)
    np.testing.assert_allclose(weight, expected.weight, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(bias, expected.bias, rtol=1e-4, atol=1e-4)


def test_after_a_cross_validation_the_refit_starts_from_the_weights_of_the_file(make_plan, splits):
    two, three = (
        train(make_plan("full", steps=2, validation="cross_validation", folds=folds, refit=True), splits)
        for folds in (2, 3)
    )
    ours, theirs = two.network.state_dict(), three.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("imbalance", ["none", "logit_adjustment"])
def test_elsewhere_the_refit_goes_on_from_the_weights_that_were_judged(make_plan, splits, monkeypatch, imbalance):
    states, own = [], fitting.train_steps

    def train_steps(task, plan, accelerator):
        states.append({name: value.clone() for name, value in task.module.state_dict().items()})
        reached = own(task, plan, accelerator)
        states.append({name: value.clone() for name, value in task.module.state_dict().items()})
        return reached

    monkeypatch.setattr(fitting, "train_steps", train_steps)
    train(make_plan("full", refit=True, imbalance=imbalance), splits)
    _, judged, start, end = states
    for name in judged:
        torch.testing.assert_close(start[name], judged[name])
    assert any(not torch.equal(start[name], end[name]) for name in start)


@pytest.mark.parametrize(
    ("way", "name"), [*((way, "test_efficientnet") for way in WAYS), ("partial", "test_convnext"), ("full", "test_vit")]
)
def test_every_strategy_gives_a_judged_model(make_plan, splits, way, name):
    model = train(make_plan(way, name), splits)
    assert model.validation.num_images == 3
    assert np.isfinite([model.validation.log_loss, model.validation.top1, model.temperature]).all()
    assert len(model.history) == model.plan.steps
    probabilities = model.probabilities(splits.test)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("way", ["partial", "full"])
def test_a_co_tuned_class_is_related_to_what_the_pretrained_classifier_takes_its_images_for(
    make_plan, splits, monkeypatch, way
):
    tasks, own = [], fitting.train_steps
    monkeypatch.setattr(fitting, "train_steps", lambda task, *rest: tasks.append(task) or own(task, *rest))
    plan = make_plan(way, co_tuning=1.0)
    state, model = finish(begin(plan, splits))
    pretrained = timm.create_model("test_efficientnet").eval()
    pretrained.load_state_dict(load_file(plan.weights))
    images = PlainImages(Pixels(splits.train, plan.preprocessing.shorter_side), plan.preprocessing)
    taken_for = softmax(forward_all(pretrained, images, plan.preprocessing, plan.forward, logits))
    indices = state.material.phases[0].indices
    for label in range(3):
        of_class = indices[labels_of(splits.train)[indices] == label]
        mean = torch.from_numpy(taken_for[of_class].mean(axis=0)).float()
        torch.testing.assert_close(tasks[0].relation[label], mean, rtol=0.05, atol=1e-5)
    assert model.network.state_dict().keys() == network_of(plan).state_dict().keys()


@pytest.mark.parametrize("way", ["partial, small first", "partial, nothing kept", "full, small first"])
@pytest.mark.parametrize("streams", [1, 2])
def test_the_first_steps_see_small_images_and_prediction_full_ones(make_plan, splits, monkeypatch, way, streams):
    sides, own = [], fitting.train_steps

    def train_steps(task, *rest):
        handle = task.module.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-1]))
        reached = own(task, *rest)
        handle.remove()
        return reached

    monkeypatch.setattr(fitting, "train_steps", train_steps)
    plan = make_plan(way, preprocessing=AT_128, small_steps=3, evaluations=1, parallel_parts=streams, refit=True)
    train(plan, splits)
    per_pixel = 128 // max(sides)
    assert [side for side in sides if side < max(sides)]
    assert set(sides) == {96 // per_pixel, 128 // per_pixel}
    assert sides == sorted(sides)


@pytest.mark.parametrize("way", ["linear_probe", "linear_probe, trained"])
def test_a_linear_probe_leaves_the_backbone_as_it_was(make_plan, splits, way):
    plan = make_plan(way)
    assert moved(plan, train(plan, splits).network) == set()


def test_norm_tuning_moves_the_norms_alone_and_not_their_statistics(make_plan, splits):
    plan = make_plan("norm_tuning")
    norms = {f"{name}.{part}" for name in find_norms(network_of(plan)) for part in ("weight", "bias")}
    assert moved(plan, train(plan, splits).network) == norms


@pytest.mark.parametrize("way", ["partial", "partial, nothing kept"])
def test_partial_moves_the_last_stages_alone_and_no_statistics(make_plan, splits, way):
    plan = make_plan(way)
    last = {name for stage in find_stages(network_of(plan))[-2:] for name in stage.parameters}
    assert moved(plan, train(plan, splits).network) == last


def test_full_moves_every_parameter_and_no_statistics(make_plan, splits):
    plan = make_plan("full")
    below = {name for stage in find_stages(network_of(plan)) for name in stage.parameters}
    assert moved(plan, train(plan, splits).network) == below


def test_scratch_moves_every_parameter_and_the_statistics(make_plan, splits):
    plan = make_plan("scratch")
    network = train(plan, splits).network
    head = find_head(network)
    assert moved(plan, network) == {name for name in network.state_dict() if not head.owns(name)}


def test_a_training_that_is_not_a_probe_moves_the_head(make_plan, splits):
    plan = make_plan("norm_tuning")
    (phase,) = plan_phases(plan, splits)
    labels = labels_of(splits.train)[phase.indices]
    probe = fit_head(features_of(plan, splits)[phase.indices], labels, 3, plan.probe_inverse_regularization)
    assert not np.allclose(head_of(train(plan, splits).network)[0], probe.weight, rtol=1e-3)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext"])
def test_kept_activations_train_what_the_images_themselves_do_but_for_rounding(make_plan, splits, name):
    states, losses = [], []
    for views in (0, 1):
        model = train(make_plan("partial", name, cached_views=views, augmentation=PLAIN), splits)
        states.append(model.network.state_dict())
        losses.append([row["train_loss"] for row in model.history])
    start = network_of(model.plan).state_dict()
    names = [name for stage in find_stages(model.network)[-2:] for name in stage.parameters]
    whole, kept = (torch.cat([(state[name] - start[name]).flatten() for name in names]) for state in states)
    assert whole.norm() > 0
    assert (kept - whole).norm() < 0.1 * whole.norm()
    assert losses[1][0] == pytest.approx(losses[0][0], rel=0.002)


def test_a_network_that_was_trained_on_kept_activations_sees_whole_images_again(make_plan, splits):
    network = train(make_plan("partial"), splits).network
    assert not any(module._forward_hooks for module in network.modules())
    with torch.no_grad():
        assert not torch.equal(network(torch.zeros(1, 3, 32, 32)), network(torch.ones(1, 3, 32, 32)))


@pytest.mark.parametrize("way", ["partial", "full", "scratch"])
def test_the_same_plan_gives_the_same_model_and_another_seed_another(make_plan, splits, way):
    one, two, other = (train(make_plan(way, seed=seed), splits) for seed in (0, 0, 1))
    assert_same_model(one, two)
    names = [name for stage in find_stages(one.network)[-2:] for name in stage.parameters]
    states = one.network.state_dict(), other.network.state_dict()
    assert all(not torch.equal(states[0][name], states[1][name]) for name in names)


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("way", ["linear_probe", "norm_tuning", "partial"])
def test_logit_adjustment_takes_the_log_frequencies_of_the_phases_images_from_the_bias(make_plan, splits, way, refit):
    plain, adjusted = (
        train(make_plan(way, imbalance=imbalance, refit=refit), splits) for imbalance in ("none", "logit_adjustment")
    )
    indices = plan_phases(plain.plan, splits)[-1].indices
    counts = np.bincount(labels_of(splits.train)[indices])
    assert len(set(counts)) > 1
    (weight, bias), (adjusted_weight, adjusted_bias) = head_of(plain.network), head_of(adjusted.network)
    np.testing.assert_allclose(adjusted_weight, weight, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(bias - adjusted_bias, np.log(counts / counts.sum()), rtol=1e-4, atol=1e-5)


def test_logit_adjustment_is_judged_with_its_adjustment(make_plan, splits):
    model = train(make_plan("norm_tuning", imbalance="logit_adjustment"), splits)
    (phase,) = plan_phases(model.plan, splits)
    held = splits.train.select(phase.held_out)
    judged = log_loss(np.log(model.probabilities(held)), labels_of(held))
    assert model.validation.log_loss == pytest.approx(judged, rel=1e-4)


def test_class_weights_are_inverse_to_the_counts_of_the_phases_images_and_1_on_average(make_plan, splits, monkeypatch):
    tasks = []
    own = fitting.train_steps
    monkeypatch.setattr(fitting, "train_steps", lambda task, *rest: tasks.append(task) or own(task, *rest))
    plan = make_plan("norm_tuning", imbalance="class_weights", refit=True)
    train(plan, splits)
    for phase, task in zip(plan_phases(plan, splits), tasks, strict=True):
        counts = np.bincount(labels_of(splits.train)[phase.indices])
        weights = task.class_weights.numpy()
        np.testing.assert_allclose(weights * counts, weights[0] * counts[0], rtol=1e-6)
        assert (weights * counts).sum() / counts.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("way", ["norm_tuning", "partial"])
def test_the_last_evaluation_of_a_training_agrees_with_the_judgement_of_the_shipped_network(make_plan, splits, way):
    model = train(make_plan(way, evaluations=2), splits)
    (phase,) = plan_phases(model.plan, splits)
    held = splits.train.select(phase.held_out)
    scores = model.temperature * np.log(model.probabilities(held))
    assert model.history[-1]["validation_loss"] == pytest.approx(log_loss(scores, labels_of(held)), rel=0.01)


def test_evaluations_of_a_training_in_bfloat16_are_in_the_precision_of_forward_passes(make_plan, splits):
    model = train(make_plan("full", precision="bfloat16", evaluations=1), splits)
    (phase,) = plan_phases(model.plan, splits)
    preprocessing = model.plan.preprocessing
    images = PlainImages(Pixels(splits.train, preprocessing.shorter_side), preprocessing)
    scores = forward_all(model.network, images, preprocessing, FORWARD, logits, indices=phase.held_out.tolist())
    exact = log_loss(scores, labels_of(splits.train)[phase.held_out])
    assert model.history[-1]["validation_loss"] == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("way", ["partial", "full"])
def test_an_evaluation_judges_as_many_images_that_were_trained_on_in_the_same_manner(make_plan, splits, way):
    model = train(make_plan(way, evaluations=1), splits)
    (phase,) = plan_phases(model.plan, splits)
    row = model.history[-1]
    assert row["validation_images"] == len(phase.held_out)
    seen = np.random.default_rng(model.plan.seed).permutation(phase.indices)[: len(phase.held_out)]
    assert not set(seen) & set(phase.held_out)
    for indices, loss in ((seen, "seen_loss"), (phase.held_out, "validation_loss")):
        scores = model.temperature * np.log(model.probabilities(splits.train.select(indices)))
        losses = [
            log_loss(one[None], label[None])
            for one, label in zip(scores, labels_of(splits.train)[indices], strict=True)
        ]
        assert row[loss] == pytest.approx(np.mean(losses), rel=0.02)
    assert row["validation_loss_error"] == pytest.approx(np.std(losses) / len(losses) ** 0.5, rel=0.05)
    assert row["seen_top1"] * len(seen) in range(len(seen) + 1)


def test_of_a_cross_validation_the_first_fold_is_looked_at_and_keeps_its_last_weights(make_plan, splits):
    plan = make_plan("full", validation="cross_validation", keep="best", evaluations=3)
    model = train(plan, splits)
    looked_at = [row for row in model.history if "validation_loss" in row]
    assert [(row["phase"], row["step"]) for row in looked_at] == [("fold-1", 2), ("fold-1", 4), ("fold-1", 6)]
    assert model.validation == train(plan.changed(keep="last", evaluations=1), splits).validation
    assert {phase.plan.keep for phase in plan_phases(plan, splits) if len(phase.held_out)} == {"last"}


def test_a_training_that_diverges_leaves_the_history_of_all_before_it(make_plan, splits):
    plan = make_plan("full", validation="cross_validation", folds=2)
    state, _ = evaluate_at(begin(plan, splits))
    state.material.network.register_forward_hook(lambda _module, _inputs, output: output * float("inf"))
    with pytest.raises(DivergenceError, match="at step 1 of the training 'refit'") as raised:
        finish(state)
    rows = raised.value.history
    assert [row["phase"] for row in rows] == ["fold-1"] * 6 + ["fold-2"] * 6 + ["refit"]
    assert "diverged_in" in rows[-1]


def test_what_a_diverged_phase_took_counts_and_the_phases_before_it_stay(make_plan, splits):
    state, _ = evaluate_at(begin(make_plan("full", validation="cross_validation", folds=2), splits))
    state.material.network.register_forward_hook(lambda _module, _inputs, output: output * float("inf"))
    with pytest.raises(TrainingDivergedError) as raised:
        finish(state)
    reached = raised.value.state
    assert reached.results == state.results
    assert reached.seconds > state.seconds


def test_activations_that_a_diverged_phase_cached_are_counted_and_kept(make_plan, splits):
    state = begin(make_plan("partial"), splits)
    (head,) = find_head(state.material.network).layers
    head.register_forward_hook(lambda _module, _inputs, output: output * float("inf"))
    with pytest.raises(TrainingDivergedError) as raised:
        evaluate_at(state)
    reached = raised.value.state
    assert reached.cached is not None
    assert reached.work.forward_images + reached.work.cache_hits > state.work.forward_images + state.work.cache_hits


@pytest.mark.parametrize("validation", ["held_out", "cross_validation"])
def test_the_metrics_are_those_of_all_held_out_images(make_plan, splits, validation):
    model = train(make_plan("linear_probe", validation=validation, folds=3), splits)
    features, labels = features_of(model.plan, splits), labels_of(splits.train)
    right = []
    for phase in plan_phases(model.plan, splits):
        if len(phase.held_out):
            head = fit_head(features[phase.indices], labels[phase.indices], 3, model.plan.probe_inverse_regularization)
            right += (head.logits(features[phase.held_out]).argmax(axis=1) == labels[phase.held_out]).tolist()
    assert model.validation.num_images == len(right)
    assert model.validation.top1 == pytest.approx(np.mean(right))


def test_given_validation_images_are_judged(make_plan, given):
    model = train(make_plan("linear_probe", validation="given"), given)
    features = features_of(model.plan, given, given.validation)
    weight, bias = head_of(model.network)
    found = (features @ weight.T + bias).argmax(axis=1)
    assert model.validation.num_images == 6
    assert model.validation.top1 == pytest.approx((found == labels_of(given.validation)).mean())


def test_a_given_validation_split_is_trained_on_in_the_refit(make_plan, given):
    model = train(make_plan("linear_probe", validation="given", refit=True), given)
    features = np.concatenate([features_of(model.plan, given), features_of(model.plan, given, given.validation)])
    labels = np.concatenate([labels_of(given.train), labels_of(given.validation)])
    expected = fit_head(features, labels, 3, model.plan.probe_inverse_regularization)
    np.testing.assert_allclose(head_of(model.network)[0], expected.weight, rtol=0, atol=1e-3 * expected.weight.max())


@pytest.mark.parametrize("way", ["linear_probe", "partial"])
def test_the_test_split_is_not_looked_at(make_plan, splits, way):
    expected = train(make_plan(way), splits)
    assert_same_model(train(make_plan(way), replace(splits, test=None)), expected)


@pytest.mark.parametrize(
    ("way", "validation"), [("linear_probe", "cross_validation"), ("full", "held_out"), ("scratch", "held_out")]
)
def test_the_temperature_is_between_a_tenth_and_ten(make_plan, splits, way, validation):
    assert 0.1 < train(make_plan(way, validation=validation), splits).temperature < 10


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize(
    ("way", "changes", "forward", "backward", "equivalents"),
    [
        ("linear_probe", {}, 15, 0, "15"),
        ("linear_probe", {"validation": "cross_validation"}, 15, 0, "15"),
        ("linear_probe, trained", {}, 15 + 16, 16, "15 + 16"),
        ("norm_tuning", {}, 15 + 24, 24, "15 + 24 * 2"),
        ("full", {}, 15 + 24, 24, "15 + 24 * 3"),
        ("full", {"refit": True}, 15 + 40, 40, "15 + 40 * 3"),
        ("full", {"validation": "cross_validation", "folds": 2}, 15 + 72, 72, "15 + 72 * 3"),
        ("scratch", {}, 24, 24, "24 * 3"),
        ("partial", {}, 15 + 30 + 24, 24, "15 + 30 * (1 - tail) + 24 * 3 * tail"),
        ("partial", {"refit": True}, 15 + 36 + 40, 40, "15 + 36 * (1 - tail) + 40 * 3 * tail"),
        ("partial, nothing kept", {}, 15 + 24, 24, "15 + 24 * (1 - tail + 3 * tail)"),
        ("full, small first", {}, 15 + 24, 24, "15 + 12 * (1 + small) * 3"),
        (
            "partial, small first",
            {},
            15 + 30 + 24,
            24,
            "15 + (18 + 12 * small) * (1 - tail) + 12 * (1 + small) * 3 * tail",
        ),
    ],
)
def test_work_is_counted(make_plan, splits, way, changes, forward, backward, equivalents):
    plan = make_plan(way, **changes)
    stages = profile_stages(network_of(plan), plan.preprocessing.image_size)
    tail, small = sum(stage.forward_share for stage in stages[-2:]), (96 / 128) ** 2
    work = train(plan, splits).work
    assert (work.forward_images, work.backward_images) == (forward, backward)
    assert work.forward_equivalents == pytest.approx(eval(equivalents, {"tail": tail, "small": small}), abs=0.2)
    size = sum(Path(row["path"]).stat().st_size for row in splits.train["image"])
    assert (work.decoded_images, work.decoded_bytes, work.cache_hits) == (15, size, 0)


@pytest.mark.parametrize(
    "way",
    [
        "partial",
        "full",
        "scratch",
        *slow(
            "norm_tuning",
            "full, co-tuned",
            "linear_probe, trained",
            "full, small first",
            "partial, small first",
        ),
    ],
)
@pytest.mark.parametrize(
    ("changes", "phase", "trained"),
    [
        ({"refit": True}, "validation", {"validation", "refit"}),
        ({"refit": True}, "refit", {"refit"}),
        ({"validation": "cross_validation", "folds": 2}, "fold-2", {"fold-2", "refit"}),
    ],
    ids=["validation", "refit", "fold"],
)
def test_an_interrupted_training_goes_on_to_the_model_of_an_uninterrupted_one(
    make_plan, splits, tmp_path, way, changes, phase, trained
):
    plan = make_plan(way, **changes)
    expected = train(plan, splits)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.begin()
    with pytest.raises(KeyboardInterrupt):
        train(plan, splits, interrupter(phase, 3)[0], checkpoints)
    progress, told = interrupter("none", 0)
    assert_same_model(train(plan, splits, progress, checkpoints), expected)
    steps = [(task, done) for task, done in told if task.startswith("training")]
    assert {task for task, _ in steps} == {f"training ({name})" for name in trained}
    assert steps[0] == (f"training ({phase})", 4)


class StoppingCheckpoints(Checkpoints):
    """Ends the program when the first fold is over."""

    def finish(self, phase, content):
        super().finish(phase, content)
        if phase == "fold-1":
            raise KeyboardInterrupt


@pytest.mark.parametrize("way", ["linear_probe", "norm_tuning", *slow("scratch")])
def test_a_cross_validation_interrupted_between_its_folds_goes_on_with_the_next(make_plan, splits, tmp_path, way):
    plan = make_plan(way, validation="cross_validation", folds=3)
    expected = train(plan, splits)
    checkpoints = StoppingCheckpoints(tmp_path / "checkpoints")
    checkpoints.begin()
    with pytest.raises(KeyboardInterrupt):
        train(plan, splits, no_progress, checkpoints)
    progress, told = interrupter("none", 0)
    assert_same_model(train(plan, splits, progress, Checkpoints(tmp_path / "checkpoints")), expected)
    trained = {"training (fold-2)", "training (fold-3)", "training (refit)"} if plan.steps else set()
    assert {task for task, _ in told if task.startswith("training")} == trained


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("before", [0, 2])
def test_what_kept_activations_began_may_go_on_without_them_and_the_other_way_round(
    make_plan, splits, checkpoints, before, keep
):
    plan = make_plan("partial", keep=keep, evaluations=6)
    with pytest.raises(KeyboardInterrupt):
        train(plan.changed(cached_views=before), splits, interrupter("validation", 3)[0], checkpoints)
    progress, told = interrupter("none", 0)
    train(plan.changed(cached_views=2 - before), splits, progress, checkpoints)
    assert ("training (validation)", 4) in told
    assert ("training (validation)", 3) not in told


def test_an_interrupted_training_goes_on_with_the_best_weights_that_it_had(make_plan, splits, tmp_path):
    plan = make_plan("full", keep="best", evaluations=6, batch_norm_statistics="updated")
    expected = train(plan, splits)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.begin()
    for step in (2, 5):
        with pytest.raises(KeyboardInterrupt):
            train(plan, splits, interrupter("validation", step)[0], checkpoints)
    assert_same_model(train(plan, splits, no_progress, checkpoints), expected)


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("way", ["linear_probe", "partial"])
@pytest.mark.parametrize("changes", [{"refit": True}, {"validation": "cross_validation"}], ids=["refit", "folds"])
def test_a_training_that_is_over_is_not_repeated(make_plan, splits, tmp_path, way, changes):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.begin()
    plan = make_plan(way, **changes)
    expected = train(plan, splits, no_progress, checkpoints)
    progress, told = interrupter("none", 0)
    again = train(plan, splits, progress, checkpoints)
    assert_same_model(again, expected)
    assert told == []
    # What was decoded and sent forward before the first training is found, the rest is that of the first time.
    assert again.work == expected.work + Work(
        forward_images=-15,
        forward_equivalents=-15.0,
        decoded_images=-15,
        decoded_bytes=-expected.work.decoded_bytes,
        cache_hits=30,
    )


def refuse(monkeypatch, *places):
    """Let nothing be decoded or sent forward from now on, by these names in these modules."""

    def refused(*_arguments, **_options):
        raise AssertionError("this was done before")

    for module, name in places:
        monkeypatch.setattr(module, name, refused)


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("way", ["linear_probe", "partial"])
@pytest.mark.parametrize("changes", [{}, {"validation": "cross_validation"}], ids=["held out", "folds"])
def test_a_second_training_on_frozen_stages_decodes_and_forwards_nothing_and_gives_the_same_model(
    make_plan, splits, monkeypatch, way, changes
):
    plan = make_plan(way, **changes)
    first = train(plan, splits)
    refuse(
        monkeypatch,
        (decoding, "read_image"),
        (forward_passes, "forward_batches"),
        (cached_activations, "forward_batches"),
    )
    second = train(plan, splits)
    assert_same_model(second, first)
    steps = first.work.backward_images
    assert (second.work.decoded_images, second.work.forward_images, second.work.backward_images) == (0, steps, steps)
    assert second.work.cache_hits == 15 + first.work.forward_images - steps  # the pixels, and all that was sent forward


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("way", ["norm_tuning", "full", "scratch"])
def test_a_second_training_of_every_stage_decodes_nothing_and_gives_the_same_model(make_plan, splits, monkeypatch, way):
    plan = make_plan(way)
    first = train(plan, splits)
    refuse(monkeypatch, (decoding, "read_image"))
    second = train(plan, splits)
    assert_same_model(second, first)
    assert (second.work.decoded_images, second.work.forward_images) == (0, 24)
    assert second.work.cache_hits == (15 if way == "scratch" else 30)


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize(
    ("changes", "forwarded", "found"),
    [
        # Of 15 images there are pixels and features, two views of the 12 that are trained on, plain activations of 6.
        ({"steps": 4, "head_learning_rate": 1e-2, "label_smoothing": 0.0}, 0, 2 * 15 + 2 * 12 + 6),  # the same views
        ({"cached_views": 3}, 12, 2 * 15 + 2 * 12 + 6),
        ({"cached_views": 1}, 0, 2 * 15 + 12 + 6),
        ({"seed": 1}, 2 * 12 + 6, 2 * 15),  # other images are held out
        ({"augmentation": PLAIN | {"horizontal_flip": True}}, 2 * 12, 2 * 15 + 6),
        ({"trained": 1}, 2 * 12 + 6, 2 * 15),  # another boundary
    ],
    ids=["rates", "more views", "fewer views", "seed", "augmentation", "boundary"],
)
def test_another_training_forwards_only_what_was_not_forwarded_before(make_plan, splits, changes, forwarded, found):
    train(make_plan("partial"), splits)
    plan = make_plan("partial", **changes)
    work = train(plan, splits).work
    assert work.decoded_images == 0
    assert work.cache_hits == found
    assert work.forward_images == forwarded + plan.steps * plan.batch_size


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("way", ["linear_probe", "partial", "full"])
def test_other_weights_are_sent_forward_anew(make_plan, splits, tmp_path, way):
    train(make_plan(way), splits)
    torch.manual_seed(1)
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "other.pt")
    work = train(make_plan(way, weights=str(tmp_path / "other.pt")), splits).work
    assert (work.decoded_images, work.cache_hits) == (0, 15)
    assert work.forward_images == {"linear_probe": 15, "partial": 15 + 30 + 24, "full": 15 + 24}[way]


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize(
    ("way", "changes", "looks"),
    [
        ("linear_probe", {}, 15),
        ("full", {}, 15 + 24),
        ("scratch", {}, 24),
        ("partial", {"refit": True}, 15 + 36),
        ("partial, nothing kept", {}, 15 + 24),
    ],
)
def test_where_nothing_can_be_kept_each_look_at_an_image_decodes_it_and_the_model_is_the_same(
    make_plan, splits, monkeypatch, tmp_path, way, changes, looks
):
    plan = make_plan(way, **changes)
    expected = train(plan, splits)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "other"))
    monkeypatch.setenv("FINETUNE_CACHE_LIMIT", "0")
    model = train(plan, splits)
    assert_same_model(model, expected)
    assert (model.work.decoded_images, model.work.cache_hits) == (looks, 0)
    assert model.work.forward_images == expected.work.forward_images


@pytest.mark.usefixtures("empty_cache")
def test_a_training_shares_the_decoded_images_with_one_that_has_a_validation_split(make_plan, given):
    train(make_plan("linear_probe"), replace(given, validation=None))
    work = train(make_plan("linear_probe", validation="given"), given).work
    assert (work.decoded_images, work.cache_hits) == (6, 15)


@pytest.mark.parametrize("way", ["partial", "full", "norm_tuning"])
def test_a_plan_with_streams_side_by_side_gives_nearly_the_model_of_one_after_another(make_plan, splits, way):
    one, two = (train(make_plan(way, parallel_parts=streams), splits) for streams in (1, 2))
    assert [row["train_loss"] for row in two.history] == pytest.approx(
        [row["train_loss"] for row in one.history], rel=1e-3
    )
    start = network_of(one.plan).state_dict()
    names = sorted(moved(one.plan, one.network))
    movements = [
        torch.cat([(model.network.state_dict()[name] - start[name]).flatten() for name in names])
        for model in (one, two)
    ]
    assert moved(two.plan, two.network) == set(names)
    assert (movements[1] - movements[0]).norm() < 0.02 * movements[0].norm()


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("way", ["partial", *slow("norm_tuning", "full")])
@pytest.mark.parametrize(
    "changes",
    [{"refit": True}, {"validation": "cross_validation", "folds": 2}, {"keep": "best", "evaluations": 3}],
    ids=["refit", "folds", "best"],
)
def test_a_training_that_was_looked_at_ends_as_if_it_had_not(make_plan, splits, checkpoints, monkeypatch, way, changes):
    monkeypatch.setenv("FINETUNE_CACHE_LIMIT", "0")  # or the second one would find what the first one made
    plan = make_plan(way, **changes)
    expected = train(plan, splits)
    state = begin(plan, splits, checkpoints=checkpoints)
    for share in (1 / 3, 2 / 3):
        state, _ = evaluate_at(state, share)
    _, model = finish(state)
    assert_same_model(model, expected)
    assert model.work.forward_equivalents == pytest.approx(expected.work.forward_equivalents, abs=0.5)


def test_a_look_judges_the_weights_that_an_evaluation_of_that_step_judges(make_plan, splits, checkpoints):
    plan = make_plan("full", evaluations=2, average_decay=0.5)
    _, look = evaluate_at(begin(plan, splits, checkpoints=checkpoints), 0.5)
    row = next(row for row in train(plan, splits).history if row["step"] == plan.steps // 2)
    assert log_loss(look.logits, look.labels) == pytest.approx(row["validation_loss"], rel=1e-6)


@pytest.mark.parametrize("way", ["full", "partial", "scratch"])
def test_a_look_before_the_first_step_judges_what_the_training_starts_from(make_plan, given, checkpoints, way):
    plan = make_plan(way, validation="given")
    state, start = evaluate_at(begin(plan, given, checkpoints=checkpoints), 0.0)
    assert history_so_far(state) == []
    if way != "scratch":
        probe = train(plan.changed(strategy="linear_probe", steps=0, warmup_steps=0), given)
        assert start.logits.argmax(axis=1).tolist() == probe.held_out.probabilities.argmax(axis=1).tolist()
    assert_same_model(finish(state)[1], train(plan, given))


def test_the_rows_of_a_training_that_paused_go_as_far_as_it(make_plan, splits, checkpoints):
    plan = make_plan("full", validation="cross_validation", folds=2)
    state, _ = evaluate_at(begin(plan, splits, checkpoints=checkpoints), 0.5)
    assert [(row["phase"], row["step"]) for row in history_so_far(state)] == [
        (fold, step) for fold in ("fold-1", "fold-2") for step in range(1, plan.steps // 2 + 1)
    ]


@pytest.mark.parametrize("validation", ["held_out", "cross_validation"])
def test_a_look_judges_every_held_out_image_once(make_plan, splits, checkpoints, validation):
    plan = make_plan("partial", validation=validation, folds=2)
    _, look = evaluate_at(begin(plan, splits, checkpoints=checkpoints), 0.5)
    held = np.sort(np.concatenate([phase.held_out for phase in plan_phases(plan, splits)]))
    assert look.indices.tolist() == held.tolist()
    assert look.labels.tolist() == labels_of(splits.train)[held].tolist()
    assert look.logits.shape == (len(held), 3)


def test_after_an_interruption_what_was_looked_at_is_not_trained_again(make_plan, splits, checkpoints):
    plan = make_plan("full")
    state, early = evaluate_at(begin(plan, splits, checkpoints=checkpoints), 1 / 3)
    evaluate_at(state, 2 / 3)
    progress, told = interrupter("none", 0)
    again = begin(plan, splits, progress, checkpoints)
    told.clear()
    again, found = evaluate_at(again, 1 / 3)
    assert found.logits.tolist() == early.logits.tolist()
    assert told == []
    assert_same_model(finish(again)[1], train(plan, splits))
    assert [done for task, done in told if task == "training (validation)"] == [5, 6]


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_look_that_was_interrupted_goes_on_to_the_same_judgement(make_plan, splits, tmp_path, step):
    plan = make_plan("full")
    expected, again = (Checkpoints(tmp_path / name) for name in ("whole", "again"))
    for made in (expected, again):
        made.begin()
    _, whole = evaluate_at(begin(plan, splits, checkpoints=expected), 0.5)
    with pytest.raises(KeyboardInterrupt):
        evaluate_at(begin(plan, splits, interrupter("validation", step)[0], again), 0.5)
    _, resumed = evaluate_at(begin(plan, splits, checkpoints=again), 0.5)
    assert resumed.logits.tolist() == whole.logits.tolist()


def test_a_paused_training_costs_the_steps_that_it_took(make_plan, splits, checkpoints):
    plan = make_plan("full")
    before = begin(plan, splits, checkpoints=checkpoints)
    after, _ = evaluate_at(before, 0.5)
    assert (after.work - before.work).forward_images == plan.steps // 2 * plan.batch_size


@pytest.mark.parametrize("way", ["full", *slow("norm_tuning", "partial")])
@pytest.mark.parametrize("changes", [{}, {"refit": True}, {"imbalance": "logit_adjustment"}])
def test_a_blend_lies_between_the_linear_probe_and_the_trained_network(make_plan, splits, way, changes):
    plan = make_plan(way, **changes)
    probe = train(
        make_plan("linear_probe", probe_inverse_regularization=plan.probe_inverse_regularization, **changes), splits
    )
    state, model = finish(begin(plan, splits, keeps_weights=True))
    trained = model.network.state_dict()
    for name, tensor in blend(state).network.state_dict().items():
        middle = 0.25 * probe.network.state_dict()[name].double() + 0.75 * trained[name].double()
        torch.testing.assert_close(tensor.double(), middle, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"validation": "cross_validation", "folds": 2}])
def test_a_blend_is_judged_as_itself_and_leaves_the_training_as_it_was(make_plan, splits, changes):
    plan = make_plan("full", imbalance="logit_adjustment", **changes)
    state, model = finish(begin(plan, splits, keeps_weights=True))
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    blended = blend(state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.network.state_dict().items())
    assert not np.array_equal(blended.held_out.probabilities, model.held_out.probabilities)
    if not changes:  # the network that ships is the one that was judged
        _, look = evaluate_at(state)
        own = blended.probabilities(splits.train.select(look.indices))
        np.testing.assert_allclose(own, blended.held_out.probabilities, rtol=0.02, atol=1e-6)


def test_random_weights_have_no_blend(make_plan, splits):
    state, _ = finish(begin(make_plan("scratch"), splits, keeps_weights=True))
    with pytest.raises(ValueError, match="linear probe"):
        blend(state)


def harmful(make_plan, **changes):
    """A plan whose rate is a hundred times what is good."""
    plan = make_plan("full", head_learning_rate=0.5, warmup_steps=0, steps=6, average_decay=0.0, **changes)
    return plan.changed(stages=[stage.changed(learning_rate=0.5 * (stage.learning_rate > 0)) for stage in plan.stages])


@pytest.mark.parametrize(
    "changes", [{"refit": True}, {"imbalance": "logit_adjustment"}, {"validation": "cross_validation", "folds": 2}]
)
def test_a_training_that_did_harm_ships_the_linear_probe_and_says_so(make_plan, image_folder, tmp_path, changes):
    splits = load_images(str(image_folder(tmp_path / "more", {"a": 20, "b": 20, "c": 20})))
    plan = harmful(make_plan, **changes)
    probe = train(
        make_plan("linear_probe", probe_inverse_regularization=plan.probe_inverse_regularization, **changes), splits
    )
    model = train(plan, splits)
    assert model.note.startswith("the training ended worse than its linear probe: ")
    for name, tensor in probe.network.state_dict().items():
        torch.testing.assert_close(model.network.state_dict()[name], tensor, rtol=1e-5, atol=1e-5)
    assert model.validation.top1 == probe.validation.top1


def test_a_linear_probe_that_ships_instead_is_judged_with_the_flips_it_predicts_with(make_plan, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "STANDARD_ERRORS", (-float("inf"), -float("inf")))  # all trainings do harm
    for label, name in enumerate("abc"):
        (tmp_path / name).mkdir()
        for number in range(8):  # of colours that do not tell the classes, so that the loss is not nothing
            coloured_image((label + number // 2) % 3, number).save(tmp_path / name / f"{number}.png")
    splits = load_images(str(tmp_path))
    probe, model = (train(make_plan(way, test_time_flips=True), splits) for way in ("linear_probe", "full"))
    assert model.rejected
    assert model.validation.log_loss == pytest.approx(probe.validation.log_loss, rel=1e-4)


def test_a_training_that_did_no_harm_has_no_note(make_plan, splits):
    assert train(make_plan("full"), splits).note == ""


@pytest.mark.slow
def test_all_trainings_together_keep_the_time_budget(make_plan, splits):
    plan = make_plan("full", validation="cross_validation", folds=2, refit=True, steps=5_000, time_budget=6.0)
    model = train(plan, splits)
    assert 0.85 * 6.0 <= model.seconds <= 1.25 * 6.0  # a busy machine stalls
    assert {row["phase"] for row in model.history} == {"fold-1", "fold-2", "refit"}


def test_a_resumed_training_counts_the_seconds_before_its_interruption(make_plan, splits, checkpoints):
    plan = make_plan("full", refit=True, steps=40, refit_steps=20)
    with pytest.raises(KeyboardInterrupt):
        train(plan, splits, interrupter("refit", 5)[0], checkpoints)
    judged = checkpoints.finished("validation")["seconds"]
    begun = checkpoints.step("refit")["history"][-1]["seconds"]
    start = time.perf_counter()
    resumed = train(plan, splits, checkpoints=checkpoints)
    assert resumed.seconds == pytest.approx(judged + begun + time.perf_counter() - start, rel=0.1)


def test_a_pause_is_no_interruption_and_its_seconds_count_once(make_plan, splits, checkpoints):
    start = time.perf_counter()
    state = begin(make_plan("full", steps=40), splits, checkpoints=checkpoints)
    for share in (0.4, 0.8):
        state, _ = evaluate_at(state, share)
    assert finish(state)[1].seconds <= time.perf_counter() - start


def test_a_training_that_stops_early_costs_the_steps_that_it_took(make_plan, splits):
    # Without a rate nothing is learned, so that the first evaluation stays the best.
    still = make_plan("full", head_learning_rate=0.0, steps=12, evaluations=6, patience=2, keep="best")
    plan = still.changed(stages=[stage.changed(learning_rate=0.0) for stage in still.stages])
    model = train(plan, splits)
    assert len(model.history) == 6
    assert model.work.backward_images == 6 * plan.batch_size


def test_re_estimated_statistics_are_those_of_the_training_images(make_plan, splits):
    plan = make_plan("full", batch_norm_statistics="re_estimated", steps=0, warmup_steps=0)
    network = begin(plan, splits).material.network
    images = PlainImages(Pixels([splits.train], plan.preprocessing.shorter_side), plan.preprocessing)
    pixels = torch.stack([image for image, _ in images.__getitems__(range(len(images)))]).float()
    first = next(part for part in network.modules() if isinstance(part, torch.nn.BatchNorm2d))
    seen = []
    hook = first.register_forward_hook(lambda _module, inputs, _outputs: seen.append(inputs[0]))
    with torch.no_grad():
        network((pixels / 255.0 - 0.5) / 0.5)
    hook.remove()
    torch.testing.assert_close(first.running_mean, seen[0].mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-4)


def test_re_estimated_statistics_stay_while_the_weights_train(make_plan, splits):
    plan = make_plan("full", batch_norm_statistics="re_estimated")
    state = begin(plan, splits)
    before = {name: value.clone() for name, value in state.material.network.named_buffers()}
    after = dict(finish(state)[1].network.named_buffers())
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.fixture
def snapshots(make_plan, splits):
    """A training that kept its weights and the further cycle that goes on from it."""

    def make(way="full", **changes):
        plan = make_plan(way, steps=10, **changes)
        first, model = finish(begin(plan, splits, keeps_weights=True))
        return first, model, begin(plan.changed(cycle=1), splits, previous=first, keeps_weights=True)

    return make


@pytest.mark.parametrize("changes", [{}, {"refit": True}, {"validation": "cross_validation"}])
def test_a_further_cycle_is_shorter_with_lower_rates_and_leaves_other_weights(snapshots, changes):
    before, model, cycle = snapshots(**changes)
    _, other = finish(cycle)
    for first, second in zip(before.material.phases, cycle.material.phases, strict=True):
        if first.earlier is None:  # the refit that goes on from what was judged is that of any training
            assert second.plan.steps == round(CYCLE_SHARE * first.plan.steps)
            assert second.plan.head_learning_rate == CYCLE_RATE * first.plan.head_learning_rate
            assert second.plan.keep == first.plan.keep
    first, second = (dict(each.network.named_parameters()) for each in (model, other))
    assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("changes", [{}, {"validation": "cross_validation"}])
def test_a_cycle_without_a_rate_leaves_the_weights_that_it_goes_on_from(snapshots, changes):
    first, model, cycle = snapshots(**changes)
    still = [stage.changed(learning_rate=0.0) for stage in cycle.plan.stages]
    for phase in cycle.material.phases:
        object.__setattr__(phase, "plan", phase.plan.changed(stages=still, head_learning_rate=0.0))
    _, other = finish(cycle)
    for name, tensor in model.network.state_dict().items():
        torch.testing.assert_close(other.network.state_dict()[name], tensor)
    assert first.plan == model.plan


@pytest.mark.parametrize("changes", [{"refit": True}, {"validation": "cross_validation"}])
@pytest.mark.parametrize("imbalance", [*slow("none"), "logit_adjustment"])
def test_the_plan_of_a_cycle_alone_gives_the_model_of_one_that_was_given_its_training(
    snapshots, splits, changes, imbalance
):
    *_, cycle = snapshots(**changes, imbalance=imbalance)
    (_, given), alone = finish(cycle), train(cycle.plan, splits)
    assert given.validation == alone.validation
    for name, tensor in given.network.state_dict().items():
        assert torch.equal(alone.network.state_dict()[name], tensor)


def test_an_interrupted_cycle_goes_on_to_the_model_of_an_uninterrupted_one(make_plan, splits, checkpoints):
    plan = make_plan("full", steps=10, refit=True, cycle=2)
    expected = train(plan, splits)
    # In what is judged and in the refit of the training before the cycle, then of the cycle itself.
    for phase, step in (("validation", 7), ("refit", 2), ("validation", 2), ("refit", 2)):
        with pytest.raises(KeyboardInterrupt):
            train(plan, splits, interrupter(phase, step)[0], checkpoints)
    assert checkpoints.step("refit") is not None
    resumed = train(plan, splits, checkpoints=checkpoints)
    for name, tensor in expected.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], tensor)


def test_trainings_with_other_seeds_differ_but_hold_the_same_images_out(make_plan, splits):
    first, second = (evaluate_at(begin(make_plan("full", training_seed=seed), splits))[1] for seed in (0, 1))
    assert first.indices.tolist() == second.indices.tolist()
    assert not np.array_equal(first.logits, second.logits)


def test_a_soup_has_the_mean_weights_of_those_whose_mean_is_better(make_plan, splits, monkeypatch):
    plans = [make_plan("full", training_seed=seed, refit=True) for seed in (0, 1)]
    finished = [finish(begin(plan, splits, keeps_weights=True)) for plan in plans]
    losses = iter([1.0, 2.0, 1.0, 0.9])  # of the two, which are sorted by it, then of the best and of the mean
    monkeypatch.setattr(averages, "_loss", lambda _: next(losses))
    mixed = soup(finished)
    own = [dict(model.network.named_parameters()) for _, model in finished]
    for name, tensor in mixed.network.named_parameters():
        torch.testing.assert_close(tensor, (own[0][name] + own[1][name]) / 2)


def test_no_soup_is_made_where_it_is_worse(make_plan, splits, monkeypatch):
    plans = [make_plan("full", training_seed=seed) for seed in (0, 1)]
    finished = [finish(begin(plan, splits, keeps_weights=True)) for plan in plans]
    losses = iter([1.0, 2.0, 1.0, 1.5])
    monkeypatch.setattr(averages, "_loss", lambda _: next(losses))
    network = finished[0][0].material.network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert soup(finished) is None
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_test_time_flips_judge_and_predict_the_mean_of_an_image_and_its_mirrored_copy(make_plan, splits):
    state, plain = finish(begin(make_plan("full"), splits, keeps_weights=True))
    flipped = with_flips(state)
    pixels = Pixels([splits.test], plain.plan.preprocessing.shorter_side)
    parts = []
    for mirrored in (False, True):
        images = PlainImages(pixels, plain.plan.preprocessing, mirrored)
        scores = forward_all(plain.network, images, plain.plan.preprocessing, plain.plan.forward, logits)
        parts.append(softmax(scores))
    mean = softmax(np.log(np.mean(parts, axis=0)) / flipped.temperature)
    np.testing.assert_allclose(flipped.probabilities(splits.test), mean, rtol=1e-4)
    assert flipped.validation.log_loss != plain.validation.log_loss


@pytest.mark.parametrize("way", ["linear_probe", "partial"])
def test_a_plan_with_test_time_flips_judges_as_the_model_with_flips_does(make_plan, splits, way):
    state, _ = finish(begin(make_plan(way), splits, keeps_weights=True))
    planned = train(make_plan(way, test_time_flips=True), splits)
    assert planned.validation.log_loss == pytest.approx(with_flips(state).validation.log_loss, abs=1e-4)
