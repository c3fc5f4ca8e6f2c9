import json
import math

import numpy as np
import pytest

from finetune.data import stratified_holdout
from finetune.decide.choice import choose_strategy
from finetune.decide.plan import Plan, plan_of_cycle, plan_of_refit, shortened
from finetune.decide.planning import flips_are_safe, make_plan
from finetune.decide.workload import HELD_OUT, held_out_share
from finetune.errors import FinetuneError, RecipeError
from finetune.reading import Reading
from finetune.recipe import STRATEGIES, AugmentationRecipe, Recipe, TableColumns, TrainingRecipe

AUTO = Recipe(data="./imgs")


def planned(evidence, **asked):
    recipe = AUTO.changed(**asked)
    return make_plan(recipe, evidence, choose_strategy(evidence, recipe))


def of_size(evidence, images, **changes):
    return evidence.changed(num_images=images, images_per_class=images / evidence.num_classes, **changes)


def values_in(content):
    if isinstance(content, dict):
        return [value for part in content.values() for value in values_in(part)]
    if isinstance(content, (list, tuple)):
        return [value for part in content for value in values_in(part)]
    return [content]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_in_a_plan_is_left_to_be_decided(evidence, strategy):
    # A table's columns are not numbers of the training; those that are left out are found by name when it is read.
    # Images of 8 bits have no range, channels or pages to choose.
    left_out = {"columns": True, "preprocessing": {"reading": True}}
    values = values_in(planned(evidence, strategy=strategy).model_dump(exclude=left_out))
    assert len(values) > 40
    assert None not in values
    assert "auto" not in values


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_plan_is_the_same_after_a_trip_through_a_file(evidence, strategy, tmp_path):
    plan = planned(evidence, strategy=strategy, columns=TableColumns(label="kind"))
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def edited(evidence, tmp_path, **changes):
    planned(evidence, strategy="partial").save(tmp_path / "plan.json")
    content = json.loads((tmp_path / "plan.json").read_text("utf-8"))
    (tmp_path / "plan.json").write_text(json.dumps(content | changes), "utf-8")
    return Plan.load(tmp_path / "plan.json")


def test_an_edited_plan_is_taken_as_it_is(evidence, tmp_path):
    assert edited(evidence, tmp_path, steps=20, warmup_steps=3).steps == 20


def test_an_edited_plan_with_an_unknown_key_is_refused(evidence, tmp_path):
    with pytest.raises(RecipeError, match=r"plan\.json: unknown key 'warmup_step'; did you mean 'warmup_steps'"):
        edited(evidence, tmp_path, warmup_step=3)


def test_an_edited_plan_with_too_long_a_warm_up_is_refused(evidence, tmp_path):
    with pytest.raises(RecipeError, match="a warm-up of 20 steps does not fit into 20 steps"):
        edited(evidence, tmp_path, steps=20, warmup_steps=20)


@pytest.mark.parametrize(
    ("images", "fold", "said"), [(240, 4, "cross_validation, with 3"), (700, 1, "held_out, with 0")]
)
def test_a_fold_that_does_not_exist_is_refused(evidence, images, fold, said):
    plan = planned(evidence.changed(num_images=images), strategy="full")
    with pytest.raises(RecipeError, match=f"no fold {fold}, because validation is {said} folds; set fold to 0"):
        Plan.parse(plan.model_dump() | {"fold": fold}, origin="plan.json")


def test_an_edited_plan_with_a_wrong_rate_is_refused_with_its_stage(evidence, tmp_path):
    stages = [{"name": "stem", "learning_rate": -1.0}]
    with pytest.raises(RecipeError, match=r"stages\.0\.learning_rate: .*greater than or equal to 0"):
        edited(evidence, tmp_path, stages=stages)


@pytest.mark.parametrize("rate", [0.0, 1e-3], ids=["none", "all"])
def test_partial_with_none_or_all_of_the_stages_trained_is_refused(evidence, rate):
    plan = planned(evidence, strategy="partial")
    stages = [stage.changed(learning_rate=rate) for stage in plan.stages]
    with pytest.raises(RecipeError, match="trains 1 to 4 of the last stages"):
        plan.changed(stages=stages)


@pytest.mark.parametrize("changes", [{"weights": "pretrained"}, {"steps": 0, "warmup_steps": 0}])
def test_scratch_needs_random_weights_and_steps(evidence, changes):
    with pytest.raises(RecipeError, match="scratch needs weights: random and at least one step"):
        planned(evidence, strategy="scratch").changed(**changes)


def rates(plan):
    return [stage.learning_rate for stage in plan.stages]


def test_partial_freezes_the_lower_stages_and_raises_the_rate_towards_the_head(evidence):
    plan = planned(evidence, strategy="partial")
    peak = plan.head_learning_rate
    assert rates(plan) == pytest.approx([0.0, 0.0, 0.6 * peak, 0.6**0.5 * peak, peak])
    assert plan.trainable_stages == 3


def test_full_trains_every_stage_geometrically_from_the_lowest_rate_on(evidence):
    recipe = TrainingRecipe(learning_rate=1e-3, lowest_rate_fraction=0.0001)
    assert rates(planned(evidence, strategy="full", training=recipe)) == pytest.approx([1e-7, 1e-6, 1e-5, 1e-4, 1e-3])


def test_a_linear_probe_trains_no_stage_and_takes_no_step(evidence):
    plan = planned(evidence, strategy="linear_probe")
    assert (rates(plan), plan.steps, plan.warmup_steps, plan.folds) == ([0.0] * 5, 0, 0, 5)


def test_a_linear_probe_takes_the_steps_that_were_asked_for(evidence):
    assert planned(evidence, strategy="linear_probe", steps=30).steps == 30


def test_the_recipes_number_of_stages_is_kept(evidence):
    assert planned(evidence, strategy="partial", training=TrainingRecipe(trainable_stages=1)).trainable_stages == 1


def test_a_fresh_plan_warms_up_for_a_tenth_of_its_steps(evidence):
    plan = planned(evidence, steps=200)
    assert (plan.steps, plan.warmup_steps) == (200, 20)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_warm_up_always_leaves_a_step(evidence, steps):
    plan = planned(evidence, strategy="full", steps=steps, training=TrainingRecipe(warmup_fraction=0.99))
    assert plan.warmup_steps == steps - 1


def test_a_plan_says_that_its_time_budget_is_too_short_for_folds(evidence):
    plan = planned(evidence, strategy="full", time_budget=200)
    assert plan.validation == "held_out"
    assert "20 % of the images are held out: the time budget is too short for 3 folds" in plan.reasons


def test_a_linear_probe_is_cross_validated_whatever_the_time_budget(evidence):
    assert planned(evidence, strategy="linear_probe", time_budget=20).validation == "cross_validation"


def test_a_time_budget_reduces_the_planned_steps(evidence):
    whole, cut = (planned(evidence, strategy="full", time_budget=seconds) for seconds in (None, 100))
    assert 1 <= cut.steps < whole.steps


@pytest.mark.parametrize(
    ("images", "validation", "refit"),
    [
        (599, "cross_validation", True),
        (600, "held_out", True),
        (999, "held_out", True),
        (1000, "held_out", False),
    ],
)
def test_below_600_images_are_cross_validated_and_below_1000_refitted(evidence, images, validation, refit):
    plan = planned(of_size(evidence, images))
    assert (plan.validation, plan.refit) == (validation, refit)


@pytest.mark.parametrize(("each", "refit"), [(2, True), (3, True), (4, False), (10, False)])
def test_the_final_model_is_trained_on_all_images_where_a_large_part_of_them_is_held_out(evidence, each, refit):
    counts = {f"class {number}": each for number in range(1000)}
    many = evidence.changed(num_images=1000 * each, num_held=1000 * each, num_classes=1000, class_counts=counts)
    plan = planned(many, strategy="full")
    assert (plan.validation, plan.refit) == ("held_out", refit)
    stay, held = stratified_holdout(np.repeat(np.arange(1000), each), HELD_OUT, 0)
    assert held_out_share(many) == len(held) / (len(stay) + len(held))


def test_no_more_folds_are_planned_than_the_smallest_class_has_images(evidence):
    few = evidence.changed(class_counts={"a": 2, "b": 60}, num_images=62, num_held=62, num_classes=2)
    assert planned(few, strategy="full").folds == 2


@pytest.mark.parametrize("images", [300, 5000])
def test_a_given_validation_split_is_used(evidence, images):
    assert planned(of_size(evidence, images, has_validation=True)).validation == "given"


TRAINING = {
    "optimizer": "sgd",
    "schedule": "inverse_sqrt",
    "weight_decay": 0.0,
    "evaluations": 7,
    "label_smoothing": 0.0,
    "clip_norm": 3.0,
    "accumulation": 4,
    "precision": "float16",
    "batch_norm_statistics": "updated",
    "keep": "best",
    "imbalance": "class_weights",
}


@pytest.mark.parametrize(("key", "value"), TRAINING.items())
def test_what_the_recipe_fixes_of_the_training_stays_fixed(evidence, key, value):
    assert getattr(planned(evidence, training=TrainingRecipe(**{key: value})), key) == value


@pytest.mark.parametrize(
    ("batch_size", "strategy", "parts"),
    [(32, "full", 1), (128, "full", 4), (100, "partial", 4), (8, "full", 1), (128, "scratch", 1)],
)
def test_a_batch_is_split_into_parts_of_the_size_that_was_timed_unless_statistics_move(
    evidence, batch_size, strategy, parts
):
    assert planned(evidence, strategy=strategy, batch_size=batch_size).accumulation == parts


AUGMENTATION = {
    "horizontal_flip": False,
    "vertical_flip": True,
    "smallest_crop": 1.0,
    "color_jitter": 0.0,
    "policy": "randaugment",
    "mixing": "cutmix",
}


@pytest.mark.parametrize(("key", "value"), AUGMENTATION.items())
def test_what_the_recipe_fixes_of_the_augmentation_stays_fixed(evidence, key, value):
    plan = planned(evidence, augmentation=AugmentationRecipe(**{key: value}))
    assert getattr(plan.augmentation, key) == value
    assert getattr(planned(evidence).augmentation, key) != value


@pytest.mark.parametrize(
    ("images", "crop", "policy"), [(4_999, 0.5, "none"), (5_000, 0.35, "none"), (20_000, 0.35, "trivialaugment")]
)
def test_more_images_are_varied_more(evidence, images, crop, policy):
    augmentation = planned(of_size(evidence, images)).augmentation
    assert (augmentation.smallest_crop, augmentation.policy) == (crop, policy)


def of_channels(evidence, count):
    """The same measurements, of images of a number of channels."""
    about = evidence.preprocessing
    return evidence.changed(
        preprocessing=about.changed(
            reading=Reading(channels=tuple(range(count))), mean=(0.5,) * count, std=(0.2,) * count
        )
    )


def test_images_without_colours_are_varied_without_a_policy_that_changes_colours(evidence):
    augmentation = planned(of_channels(of_size(evidence, 20_000), 13)).augmentation
    assert (augmentation.smallest_crop, augmentation.policy, augmentation.color_jitter) == (0.35, "none", 0.1)


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
def test_a_policy_that_changes_colours_is_refused_for_images_without_colours(evidence, policy):
    with pytest.raises(
        RecipeError, match=rf"augmentation\.policy={policy} changes colours, which images of 4 channels"
    ):
        planned(of_channels(evidence, 4), augmentation=AugmentationRecipe(policy=policy))


def test_a_plan_says_that_the_first_layer_takes_other_channels(evidence):
    def said(evidence, **asked):
        return [text for text in planned(evidence, **asked).reasons if text.startswith("the first layer takes")]

    (sentence,) = said(of_channels(evidence, 13))
    assert "13 channels: its weights of red, green and blue are repeated and scaled (timm)" in sentence
    assert said(of_channels(evidence, 13), strategy="scratch") == said(evidence) == []


def test_test_time_flips_are_planned_where_they_were_asked_for(evidence):
    assert planned(evidence, augmentation=AugmentationRecipe(test_time_flips=True)).test_time_flips
    assert not planned(evidence).test_time_flips


@pytest.mark.parametrize(("chirality", "planned_flips"), [(0.52, True), (0.9, False), (None, False)])
def test_where_accuracy_is_preferred_images_that_look_alike_mirrored_are_flipped_at_test_time(
    evidence, chirality, planned_flips
):
    mirrored = evidence.changed(chirality=chirality)
    assert planned(mirrored, prefer="accuracy").test_time_flips is planned_flips
    declined = AugmentationRecipe(test_time_flips=False)
    assert not planned(mirrored, prefer="accuracy", augmentation=declined).test_time_flips


@pytest.mark.parametrize(("optimizer", "decay"), [("adamw", 0.02), ("sgd", 1e-4)])
def test_each_optimizer_has_its_own_weight_decay(evidence, optimizer, decay):
    assert planned(evidence, training=TrainingRecipe(optimizer=optimizer)).weight_decay == decay


@pytest.mark.parametrize(("optimizer", "factor"), [("adamw", 2.0), ("sgd", 4.0)])
def test_a_larger_batch_has_higher_rates_in_every_stage_and_a_warm_up_and_says_so(evidence, optimizer, factor):
    usual, larger = (
        planned(evidence, strategy="full", batch_size=size, training=TrainingRecipe(optimizer=optimizer))
        for size in (32, 128)
    )
    assert larger.head_learning_rate == pytest.approx(factor * usual.head_learning_rate, rel=0.05)
    for one, other in zip(usual.stages, larger.stages, strict=True):
        assert other.learning_rate == pytest.approx(factor * one.learning_rate, rel=0.05)
    assert larger.warmup_steps == larger.steps // 10 > 0
    assert larger.reasons[-2].startswith("128 images a step with")
    assert f"rates are {2 if optimizer == 'adamw' else 200} x those of AdamW with 32" in larger.reasons[-2]


def test_a_plan_says_where_rates_stop_rising_with_the_batch(evidence):
    plan = planned(evidence, strategy="full", batch_size=512)
    assert plan.reasons[-2].endswith("(the square root of the batch, up to 4 x)")


def test_a_rate_that_was_given_is_not_changed_by_the_batch_and_the_plan_says_so(evidence):
    plan = planned(evidence, strategy="full", batch_size=256, training=TrainingRecipe(learning_rate=3e-4))
    assert plan.head_learning_rate == 3e-4
    assert plan.reasons[-2] == "256 images a step with AdamW: the learning rate is the one in the recipe"


def test_an_asked_warm_up_of_zero_is_zero(evidence):
    assert planned(evidence, training=TrainingRecipe(warmup_fraction=0)).warmup_steps == 0


@pytest.mark.parametrize(("horizon", "decay"), [(0.0, 0.0), (0.05, 0.9), (0.5, 0.99)])
def test_the_average_looks_back_over_its_share_of_the_steps(evidence, horizon, decay):
    plan = planned(evidence, steps=200, training=TrainingRecipe(average_horizon=horizon))
    assert plan.average_decay == pytest.approx(decay)


def test_the_precision_is_the_fastest_that_was_timed(evidence):
    assert planned(evidence, strategy="full").precision == "bfloat16"


@pytest.mark.parametrize(("strategy", "statistics"), [("full", "frozen"), ("scratch", "updated")])
def test_only_random_weights_update_the_batch_norm_statistics(evidence, strategy, statistics):
    assert planned(evidence, strategy=strategy).batch_norm_statistics == statistics


@pytest.mark.parametrize(("strategy", "weights"), [("full", "w.pt"), ("scratch", "random")])
def test_weights_from_a_file_are_planned_except_for_scratch(evidence, strategy, weights):
    assert planned(evidence, strategy=strategy, weights="w.pt").weights == weights


@pytest.mark.parametrize(("images", "keep"), [(4999, "last"), (5000, "best")])
def test_large_sets_keep_their_best_weights(evidence, images, keep):
    assert planned(of_size(evidence, images)).keep == keep


@pytest.mark.parametrize(("chirality", "safe"), [(0.52, True), (0.69, True), (0.7, False), (0.9, False)])
def test_images_with_a_left_and_a_right_are_not_flipped(evidence, chirality, safe):
    measured = evidence.changed(chirality=chirality)
    assert flips_are_safe(measured) is safe
    assert planned(measured).augmentation.horizontal_flip is safe


def test_top1_needs_no_answer_to_unequal_classes(evidence):
    assert planned(evidence).imbalance == "none"


def test_balanced_accuracy_takes_the_answer_that_the_probe_did_best_with(evidence):
    plan = planned(evidence.changed(metric="balanced_accuracy", imbalance=6.0))
    assert plan.imbalance == "logit_adjustment"
    assert any(
        "6.0 x the images of the smallest: models are compared by balanced accuracy" in reason
        for reason in plan.reasons
    )


@pytest.mark.parametrize("strategy", ["partial", "full", "norm_tuning"])
def test_where_there_is_a_pretrained_classifier_it_is_co_tuned_and_the_plan_says_so(evidence, strategy):
    plan = planned(evidence.changed(source_classes=1000), strategy=strategy)
    assert plan.co_tuning == 2.3
    assert sum("co-tuning (weight 2.3)" in reason for reason in plan.reasons) == 1


@pytest.mark.parametrize(
    ("known", "asked"),
    [
        ({"source_classes": 0}, {}),
        ({}, {"strategy": "scratch"}),
        ({}, {"strategy": "linear_probe"}),
        ({}, {"training": {"co_tuning": 0}}),
        ({"num_images": 600, "images_per_class": 150.0}, {}),
    ],
    ids=["no classifier", "scratch", "probe", "not wanted", "many images"],
)
def test_nothing_is_co_tuned_where_it_cannot_be_or_does_not_pay_or_is_not_wanted(evidence, known, asked):
    plan = planned(evidence.changed(**{"source_classes": 1000, **known}), **{"strategy": "partial", **asked})
    assert plan.co_tuning == 0
    assert not any("co-tuning" in reason for reason in plan.reasons)


def test_with_many_images_co_tuning_can_be_asked_for(evidence):
    known = of_size(evidence, 5000, source_classes=1000)
    assert planned(known, strategy="full", training={"co_tuning": 1.5}).co_tuning == 1.5


def test_the_reasons_give_size_flips_speed_and_length(evidence):
    plan = planned(evidence, strategy="partial", training={"trainable_stages": 4})
    size, flips, forward, training, views, _ = plan.reasons
    assert size == "128 px: the images have 150 px"
    assert "52 % of pairs, so flips are on" in flips
    assert forward == (
        "forward in float32, channels last, batches of 64: 200 images/s on a CPU, the fastest of the settings that "
        "were timed; its arithmetic changes 0.0 % of the features' variance"
    )
    assert training == "bfloat16 training at 100 images/s: 3 x 155 steps and 155 on all images"
    assert views.startswith("6 augmented views of each image")


def test_the_reason_of_the_speed_says_if_another_precision_was_asked_for(evidence):
    reasons = planned(evidence, strategy="partial", training={"trainable_stages": 4, "precision": "float16"}).reasons
    assert any(reason.startswith("bfloat16 training at 100 images/s, float16 was asked for: ") for reason in reasons)


@pytest.mark.parametrize(
    ("images", "schedule", "patience", "said"),
    [
        (240, "constant", 0, "with 240 held-out images, early stopping would follow noise"),
        (4_999, "constant", 0, "early stopping would follow noise"),
        (5_000, "constant", 3, "stops after 3 evaluations without a lower held-out log-loss"),
        (5_000, None, 0, "the loss falls most at the end, where the rate decays"),
    ],
)
def test_a_training_stops_early_only_with_many_held_out_images_and_a_rate_that_stays(
    evidence, images, schedule, patience, said
):
    recipe = TrainingRecipe(schedule=schedule)
    plan = planned(evidence.changed(num_images=images), strategy="full", training=recipe)
    assert plan.patience == patience
    assert said in plan.reasons[-1]


def test_patience_with_cross_validated_images_is_refused_with_what_to_do(evidence):
    with pytest.raises(RecipeError, match=r"held out in one training.*give a validation split, or set patience to 0"):
        planned(evidence, training=TrainingRecipe(patience=2))


def test_patience_keeps_the_best_weights_and_has_ten_evaluations(evidence):
    plan = planned(evidence.changed(num_images=700), training=TrainingRecipe(patience=2, minimum_gain=0.01))
    assert (plan.patience, plan.minimum_gain, plan.keep, plan.evaluations) == (2, 0.01, "best", 10)


def test_no_limit_is_planned_as_zero(evidence):
    assert planned(evidence).limit == 0
    assert planned(evidence, limit=50).limit == 50


def test_the_refit_takes_a_quarter_of_the_steps_at_a_quarter_of_the_rates(evidence):
    plan = planned(of_size(evidence, 900))
    refit = plan_of_refit(plan)
    assert refit.steps == plan.refit_steps == math.ceil(plan.steps / 4)
    assert refit.warmup_steps == round(refit.steps * 0.1)
    assert refit.head_learning_rate == plan.head_learning_rate / 4
    assert [stage.learning_rate for stage in refit.stages] == [stage.learning_rate / 4 for stage in plan.stages]
    assert 1 / (1 - refit.average_decay) == pytest.approx(0.05 * refit.steps, rel=0.05)


def test_a_plan_with_small_images_says_so_and_its_refit_and_further_cycles_see_none(evidence):
    plan = planned(of_size(evidence, 900, takes_any_size=True), strategy="full")
    assert plan.small_steps == round(plan.steps / 2)
    assert sum(f"the first {plan.small_steps} steps see images of 96 px" in reason for reason in plan.reasons) == 1
    assert plan_of_refit(plan).small_steps == plan_of_cycle(plan.changed(cycle=1)).small_steps == 0
    assert shortened(plan, plan.steps // 2).small_steps == pytest.approx(plan.small_steps / 2, abs=1)


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"small_steps": 150}, "small_steps"), ({"small_steps": 5, "cached_views": 1}, "cached_views")],
)
def test_a_plan_whose_images_are_never_full_size_is_refused(evidence, changes, match):
    plan = planned(of_size(evidence, 900), strategy="partial", steps=150)
    with pytest.raises(FinetuneError, match=match):
        plan.changed(**changes)


@pytest.mark.parametrize("images", [300, 5_000])
def test_the_refit_after_a_cross_validation_and_no_refit_keep_the_plan(evidence, images):
    plan = planned(of_size(evidence, images))
    assert plan_of_refit(plan) == plan


def test_a_plan_whose_refit_has_no_steps_is_refused(evidence):
    plan = planned(of_size(evidence, 900))
    with pytest.raises(FinetuneError, match="refit_steps"):
        plan.changed(refit_steps=0)


def test_flips_that_the_recipe_fixes_are_not_explained_by_the_images(evidence):
    plan = planned(evidence, augmentation=AugmentationRecipe(horizontal_flip=False))
    assert any(reason.endswith("52 % of pairs; flips are off, as the recipe asks") for reason in plan.reasons)


def test_a_plan_says_which_correction_of_unequal_classes_it_has_and_that_weights_are_bounded(evidence):
    counts = {"a": 237, "b": 1, "c": 1, "d": 1}
    answers = {"none": 0.5, "logit_adjustment": 0.6}
    uneven = evidence.changed(
        metric="balanced_accuracy",
        imbalance=237.0,
        class_counts=counts,
        probe=evidence.probe.changed(answers=answers).model_dump(),
    )
    expected = (
        "predictions are made as if all classes were equally frequent (logit adjustment) (balanced accuracy of the "
        "linear probe: 50.0 % with none, 60.0 % with logit adjustment)"
    )
    assert expected in planned(uneven).reasons
    expected = (
        "all classes weigh the same in the loss (class weights), except the smallest: an image weighs at most 100 x "
        "one of the largest class (as the recipe asks)"
    )
    assert expected in planned(uneven, training={"imbalance": "class_weights"}).reasons


@pytest.mark.parametrize("answers", [{"none": 0.6, "logit_adjustment": 0.5}, {"none": 0.5, "logit_adjustment": 0.6}])
def test_balanced_accuracy_takes_logit_adjustment_whatever_a_few_held_out_images_say(evidence, answers):
    probe = evidence.probe.changed(answers=answers).model_dump()
    assert planned(evidence.changed(metric="balanced_accuracy", probe=probe)).imbalance == "logit_adjustment"
    assert planned(evidence.changed(metric="top1", probe=probe)).imbalance == "none"


def test_a_class_with_one_image_does_not_limit_the_number_of_folds(evidence):
    counts = {"a": 120, "b": 100, "c": 19, "d": 1}
    assert planned(evidence.changed(class_counts=counts, metric="balanced_accuracy")).folds == 3
