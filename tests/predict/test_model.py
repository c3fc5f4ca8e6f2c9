from dataclasses import replace

import numpy as np
import pytest
import torch

from finetune.errors import DataError
from finetune.predict.links import log_loss, softmax
from finetune.predict.metrics import score
from finetune.predict.model import HeldOut, TrainedModel, average, fit_temperature
from finetune.work import Work


@pytest.fixture
def model(small_network, small_plan):
    return TrainedModel(
        network=small_network(), plan=small_plan(), class_names=("a", "b", "c"), temperature=2.0
    )  # fmt: skip


def test_a_prediction_is_the_most_probable_class(model, image_folder, tmp_path):
    paths = sorted(image_folder(tmp_path).rglob("*.*"))
    probabilities = model.predict_proba(paths)
    assert probabilities.shape == (12, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    assert model.predict(paths) == [model.class_names[best] for best in probabilities.argmax(axis=1)]


def test_a_prediction_does_not_depend_on_the_other_images(model, image_folder, tmp_path):
    paths = sorted(image_folder(tmp_path).rglob("*.*"))
    together = model.predict_proba(paths)
    alone = np.concatenate([model.predict_proba([path]) for path in paths])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_the_temperature_divides_the_logits(model, image_folder, tmp_path):
    paths = sorted(image_folder(tmp_path).rglob("*.*"))
    hot = model.predict_proba(paths)
    cold = TrainedModel(network=model.network, plan=model.plan, class_names=model.class_names, temperature=1.0)
    logits = np.log(cold.predict_proba(paths))
    np.testing.assert_allclose(hot, softmax(logits / 2.0), rtol=1e-4)


def test_a_file_that_is_not_there_is_named(model, image_folder, tmp_path):
    paths = sorted(image_folder(tmp_path).rglob("*.*"))
    with pytest.raises(DataError, match=r"nowhere\.png cannot be read as an image: .*No such file"):
        model.predict([*paths, "nowhere.png"])


def test_a_file_that_is_not_an_image_is_named(model, tmp_path):
    (tmp_path / "a.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"a\.png cannot be read as an image"):
        model.predict([tmp_path / "a.png"])


def test_no_images_give_no_predictions(model):
    assert model.predict([]) == []
    assert model.predict_proba([]).shape == (0, 3)


def test_the_fitted_temperature_has_the_least_log_loss():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 4000)
    scores = generator.normal(size=(4000, 3)) + 2.0 * np.eye(3)[labels]
    fitted = fit_temperature(5.0 * scores, labels)
    losses = {t: log_loss(5.0 * scores / t, labels) for t in (fitted, 0.9 * fitted, 1.1 * fitted)}
    assert min(losses, key=losses.get) == fitted


def test_overconfident_scores_are_cooled_by_as_much_as_they_are_too_large():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 400)
    scores = generator.normal(size=(400, 3)) + 2.0 * np.eye(3)[labels]
    assert fit_temperature(4.0 * scores, labels) == pytest.approx(4.0 * fit_temperature(scores, labels), rel=0.01)


@pytest.mark.parametrize(("images", "expected"), [(30, 1 / 31), (300, 1 / 301)])
def test_predictions_that_were_all_right_may_still_be_wrong(images, expected):
    # One wrong answer in n + 1 of two classes: half of the further image's, so that 1 - p is about 1 / (2 (n + 1)).
    labels = np.arange(images) % 2
    scores = 8.0 * np.eye(2)[labels]
    wrong = 1.0 - softmax(scores / fit_temperature(scores, labels)).max(axis=1).mean()
    assert wrong == pytest.approx(expected / 2, rel=0.01)


def test_work_adds_up():
    first = Work(forward_images=1, backward_images=2, forward_equivalents=3.5)
    assert first + first == Work(forward_images=2, backward_images=4, forward_equivalents=7.0)


def test_predicting_changes_nothing_in_the_network(model, image_folder, tmp_path):
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    model.predict(sorted(image_folder(tmp_path).rglob("*.*")))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.network.state_dict().items())


def evaluated(model, seed, **changes):
    """A model with random probabilities of 60 held-out images, right for most."""
    generator = np.random.default_rng(seed)
    labels = np.arange(60) % 3
    scores = generator.normal(size=(60, 3)) + 1.5 * np.eye(3)[labels]
    held_out = HeldOut(labels=labels, probabilities=softmax(scores))
    work = Work(forward_images=10 * seed)
    return replace(model, held_out=held_out, work=work, seconds=float(seed), **changes)


def test_an_ensemble_predicts_the_mean_of_its_members(model, image_folder, tmp_path):
    paths = sorted(image_folder(tmp_path).rglob("*.*"))
    members = [evaluated(model, 1), evaluated(model, 2, temperature=0.5)]
    ensemble = replace(average(members), temperature=1.0)
    mean = np.mean([member.predict_proba(paths) for member in members], axis=0)
    np.testing.assert_allclose(ensemble.predict_proba(paths), mean, rtol=1e-6)


def test_an_ensemble_is_evaluated_and_calibrated_on_its_mean_over_the_held_out_images(model):
    members = [evaluated(model, seed) for seed in (1, 2, 3)]
    ensemble = average(members)
    labels = members[0].held_out.labels
    mean = np.mean([member.held_out.probabilities for member in members], axis=0)
    assert ensemble.validation.top1 == score(mean, labels, ["a", "b", "c"]).top1
    assert ensemble.validation.top1 > max(
        score(m.held_out.probabilities, labels, ["a", "b", "c"]).top1 for m in members
    )
    assert ensemble.temperature == fit_temperature(np.log(mean), labels)


def test_an_ensemble_took_what_its_members_took(model):
    ensemble = average([evaluated(model, 1), evaluated(model, 2, note="rejected")])
    assert (ensemble.work.forward_images, ensemble.seconds, ensemble.note) == (30, 3.0, "member 2: rejected")


def test_members_that_were_evaluated_on_other_images_are_refused(model):
    other = evaluated(model, 2)
    other = replace(other, held_out=replace(other.held_out, labels=other.held_out.labels[::-1]))
    with pytest.raises(ValueError, match="evaluated on the same held-out images"):
        average([evaluated(model, 1), other])
