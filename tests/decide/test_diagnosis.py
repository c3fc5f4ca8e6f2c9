"""Each verdict on a real training that was broken on purpose, and none on one that was not."""

import re
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from conftest import PLAIN, coloured_image
from PIL import Image

import finetune
from finetune.data import labels_of, load_images
from finetune.decide.curve import BANDS, Curve
from finetune.decide.diagnosis import KINDS, describe_checks, diagnose
from finetune.decide.learning_rules import no_gap
from finetune.errors import DivergenceError
from finetune.recipe import load_recipe, parse_assignment
from finetune.training import train

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "when-a-run-went-wrong.md"


@pytest.fixture
def coloured(image_folder, tmp_path):
    """The factory of classes of coloured images: numbers of each to train on and to hold out."""
    numbers = count()

    def make(train=16, validation=16, classes="abc"):
        counts = {"train": dict.fromkeys(classes, train), "val": dict.fromkeys(classes, validation)}
        return load_images(str(image_folder(tmp_path / f"coloured-{next(numbers)}", splits=counts)))

    return make


@pytest.fixture
def mislabelled(tmp_path):
    """Three classes; two fifths of the few training images have a random label, the held-out ones the right one."""
    random = np.random.default_rng(0)
    for split, images in (("train", 8), ("val", 30)):
        for label in range(3):
            for number in range(images):
                is_wrong = split == "train" and random.random() < 0.4
                folder = tmp_path / split / "abc"[random.integers(3) if is_wrong else label]
                folder.mkdir(parents=True, exist_ok=True)
                coloured_image(label, number + 100 * (split == "val")).save(folder / f"{label}-{number}.png")
    return load_images(str(tmp_path))


@pytest.fixture
def entangled(tmp_path):
    """Images of one colour each; the class is whether red and green are both strong or both weak."""
    random = np.random.default_rng(0)
    for split, images in (("train", 600), ("val", 240)):
        for number in range(images):
            red, green = random.uniform(20, 235, 2)
            folder = tmp_path / split / ("alike" if (red > 128) == (green > 128) else "unlike")
            folder.mkdir(parents=True, exist_ok=True)
            noisy = np.array([red, green, 128]) + random.integers(-20, 21, (32, 32, 3))
            Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return load_images(str(tmp_path))


@pytest.fixture
def trained(small_plan, weights_file, evidence):
    """The function that trains a changed plan of 40 steps and returns its history, the plan and the evidence."""

    def carry_out(splits, strategy="full", rate=1e-3, **changes):
        usual = {"weights": "random" if strategy == "scratch" else str(weights_file()), "steps": 40, "batch_size": 8,
                 "warmup_steps": 4, "validation": "given", "evaluations": 4, "head_learning_rate": rate}  # fmt: skip
        plan = small_plan(strategy=strategy, **(usual | changes))
        scaled = [stage.changed(learning_rate=stage.learning_rate * rate / 1e-3) for stage in plan.stages]
        plan = plan.changed(stages=scaled)
        counts = np.bincount(labels_of(splits.train))
        known = evidence.changed(
            num_classes=len(counts),
            class_counts=dict(zip(splits.class_names, counts.tolist(), strict=True)),
            num_held=int(counts.sum()),
        )
        try:
            history = train(plan, splits).history
        except DivergenceError as error:
            history = error.history
        return history, plan, known

    return carry_out


def kinds(run):
    return [verdict.kind for verdict in diagnose(*run)]


def found(run, kind):
    """The verdict of this kind, which is the first one; what it proposes can be given in a recipe, or in the plan."""
    verdict = diagnose(*run)[0]
    assert verdict.kind == kind
    for change in verdict.changes:
        key, value = parse_assignment(change)
        if key.startswith("plan."):
            assert run[1].changed(**{key.removeprefix("plan."): value}) != run[1]
        else:
            assert load_recipe(**{"data": "x", key: value})
    return verdict


@pytest.mark.parametrize("strategy", ["norm_tuning", "partial", "full"])
def test_a_healthy_training_draws_no_verdict(coloured, trained, strategy):
    run = trained(coloured(), strategy)
    assert len(run[0]) == 40
    assert diagnose(*run) == ()


@pytest.mark.slow
def test_a_healthy_training_from_random_weights_draws_no_verdict(coloured, trained):
    assert diagnose(*trained(coloured(12, 16, "abcdef"), "scratch", steps=100)) == ()


def test_a_healthy_cross_validation_draws_no_verdict_unless_the_images_are_few(coloured, trained):
    history, plan, known = trained(coloured(24, 2), "partial", validation="cross_validation", refit=True)
    assert {row["phase"] for row in history if "seen_loss" in row} == {"fold-1"}
    assert diagnose(history, plan, known) == ()
    assert describe_checks(history).startswith(
        "120 steps of fold-1, fold-2, refit; 4 evaluations on 36 held-out images; "
    )
    few = found((history, plan, known.changed(num_held=12)), "noisy_validation")
    assert few.changes == ("data=MORE_IMAGES",)


def test_a_training_without_steps_has_nothing_to_diagnose(small_plan, evidence):
    assert diagnose((), small_plan(strategy="linear_probe"), evidence) == ()
    assert describe_checks(()) == "nothing was trained step by step, so there is no curve"


def test_a_rate_of_10_diverges_and_the_verdict_names_step_and_layer(coloured, trained):
    history, plan, known = trained(coloured(), rate=10.0)
    (verdict,) = diagnose(history, plan, known)
    assert verdict.kind == "diverged"
    assert verdict.numbers["step"] == history[-1]["step"] == len(history) < 10
    assert verdict.numbers["last_train_loss"] == history[-2]["train_loss"]
    assert re.search(r"first in the (input|output) of \S+; the step before had a loss of ", verdict.sentence)


def test_float32_is_proposed_where_a_coarser_arithmetic_diverged(coloured, trained):
    run = trained(coloured(), rate=10.0, precision="bfloat16")
    assert found(run, "diverged").changes[1] == "training.precision=float32"


def test_a_rate_that_throws_the_network_back_is_reported_with_the_stage_that_moves_most(coloured, trained):
    run = trained(coloured(), rate=0.03)
    verdict = found(run, "diverged")
    assert verdict.numbers["largest_loss"] > 10 * verdict.numbers["loss_of_constant_answer"]
    (stage,) = [key for key in verdict.numbers if key.startswith("update_ratio:")]
    assert verdict.numbers[stage] == max(diagnose(*run)[1].numbers[key] for key in (stage, "update_ratio:stem"))
    assert f"{stage.partition(':')[2]} moved most" in verdict.sentence


def test_the_rate_that_is_proposed_heals_a_training_that_was_too_fast(coloured, trained):
    images = coloured()
    change = found(trained(images, rate=0.03), "diverged").changes[0]
    assert parse_assignment(change)[0] == "training.learning_rate"
    assert diagnose(*trained(images, rate=float(change.partition("=")[2]))) == ()


def test_random_weights_that_hardly_move_start_flat_and_need_a_higher_rate(coloured, trained):
    verdict = found(trained(coloured(), "scratch", rate=1e-6), "flat_start")
    assert "no stage moves enough" in verdict.sentence
    assert verdict.changes == ("training.learning_rate=1e-05",)
    assert verdict.numbers["loss_of_constant_answer"] == pytest.approx(np.log(3))
    assert verdict.numbers["loss_after_a_third"] == pytest.approx(np.log(3), abs=0.02)


def test_a_warm_up_of_the_whole_training_is_the_cause_of_a_flat_start(coloured, trained):
    verdict = found(trained(coloured(), "scratch", rate=1e-4, warmup_steps=39), "flat_start")
    assert "the warm-up takes 39 of 40 steps" in verdict.sentence
    assert verdict.changes == ("training.warmup_fraction=0.1",)


def test_random_weights_that_start_flat_need_pretraining_or_more_steps(coloured, trained):
    verdict = found(trained(coloured(12, 16, "abcdef"), "scratch", rate=1e-4), "flat_start")
    assert verdict.changes == ("strategy=auto", "steps=160")


def test_stages_that_hardly_move_are_reported_with_their_ratios(coloured, trained):
    run = trained(coloured(), rate=1e-6)
    verdict = found(run, "update_ratio")
    ratios = {key: value for key, value in verdict.numbers.items() if key.startswith("update_ratio:")}
    assert set(ratios) == {f"update_ratio:{stage.name}" for stage in run[1].stages} | {"update_ratio:head"}
    assert all(value < BANDS["backbone"][0] for value in ratios.values())
    assert verdict.changes[0].startswith("training.learning_rate=")


def test_stages_that_move_too_far_are_reported_even_if_the_training_ends_well(coloured, trained):
    verdict = found(trained(coloured(), rate=2e-3), "update_ratio")
    assert "they move too far" in verdict.sentence
    assert max(verdict.numbers.values()) > verdict.numbers["highest"] == BANDS["backbone"][1]


def test_low_stages_alone_that_hardly_move_are_held_back_too_much(coloured, trained, small_plan):
    rates = [{"name": stage.name, "learning_rate": 1e-3} for stage in small_plan().stages]
    rates[0]["learning_rate"] = 1e-7
    verdict = found(trained(coloured(), stages=rates), "update_ratio")
    assert [key for key in verdict.numbers if ":" in key] == ["update_ratio:stem"]
    assert verdict.changes == ("training.lowest_rate_fraction=0.5",)


@pytest.mark.slow
def test_a_decay_after_a_third_of_the_steps_ends_the_learning_and_is_reported(coloured, trained):
    images = coloured(12, 16, "abcdef")
    unlike = {"strategy": "scratch", "rate": 5e-4, "steps": 60, "warmup_steps": 1}
    verdict = found(trained(images, schedule="step", **unlike), "early_decay")
    assert verdict.numbers["decay_step"] == 22
    assert verdict.numbers["fall_per_step_before"] > 4 * verdict.numbers["fall_per_step_after"]
    assert verdict.changes == ("training.schedule=cosine",)
    assert "early_decay" not in kinds(trained(images, schedule="cosine", **unlike))


def test_a_training_that_is_too_short_still_improves_at_its_end(entangled, trained):
    short = trained(entangled, "scratch", batch_size=16, warmup_steps=1, batch_norm_statistics="updated")
    verdict = found(short, "still_improving")
    assert verdict.numbers["loss_before"] - verdict.numbers["loss_at_end"] > 2 * verdict.numbers["standard_error"]
    assert verdict.changes == ("steps=80",)


def test_memorised_images_open_a_gap(mislabelled, trained):
    verdict = found(trained(mislabelled, augmentation=PLAIN, steps=100), "growing_gap")
    assert verdict.numbers["seen_loss_at_end"] < verdict.numbers["seen_loss_at_best"]
    assert verdict.numbers["validation_loss_at_end"] > 1.5 * verdict.numbers["best_validation_loss"]
    assert verdict.changes == ("augmentation.policy=trivialaugment", "strategy=partial", "training.keep=best")


def test_a_head_that_cannot_tell_images_apart_leaves_no_gap_and_needs_more_layers(entangled, trained):
    verdict = found(trained(entangled, "linear_probe", probe_inverse_regularization=3e-4), "no_gap")
    assert verdict.numbers["seen_top1"] < 0.85
    assert verdict.changes[0] == "strategy=full"


def test_of_sets_of_labels_a_gap_is_that_of_the_most_probable_label(entangled, trained):
    history, plan, known = trained(entangled, "linear_probe", probe_inverse_regularization=3e-4)
    sets = known.changed(metric="mean_average_precision")
    sentence = no_gap(Curve(history, plan, sets)).sentence
    assert "of the training images have one of their labels as the most probable one" in sentence


def test_a_dozen_held_out_images_are_too_few(coloured, trained):
    run = trained(coloured(16, 4))
    assert kinds(run) == ["noisy_validation"]
    verdict = found(run, "noisy_validation")
    assert verdict.numbers["validation_images"] == 12
    assert verdict.numbers["half_width"] == pytest.approx(0.16, abs=0.01)
    assert verdict.changes == ("plan.validation=cross_validation",)


def test_label_smoothing_and_class_weights_do_not_make_a_good_training_look_worse(coloured, trained):
    assert diagnose(*trained(coloured(), "partial", label_smoothing=0.3, imbalance="class_weights")) == ()


def test_a_diagnosis_is_the_same_after_the_history_went_through_a_file(coloured, trained, tmp_path):
    history, plan, known = trained(coloured(16, 4), "partial")
    folder = finetune.RunFolder(tmp_path)
    plan.save(tmp_path / "plan.json")
    folder.write_history(history)
    assert finetune.diagnose(folder.read_history(), plan, known) == diagnose(history, plan, known) != ()


def test_every_kind_of_verdict_is_documented():
    page = PAGE.read_text("utf-8")
    assert all(f"| {kind.replace('_', ' ')} |" in page for kind in KINDS)
