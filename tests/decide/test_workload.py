import math

import pytest

from finetune.decide.workload import (
    boundary_values,
    cached_views,
    cost_per_image,
    default_batch_size,
    default_steps,
    default_trainable_stages,
    expected_seconds,
    size_workload,
    small_cost,
    small_views,
    steps_at,
    tail_share,
)
from finetune.errors import RecipeError
from finetune.recipe import Recipe, TrainingRecipe

RECIPE = Recipe(data="x")


@pytest.mark.parametrize(("images", "steps"), [(10, 100), (100, 100), (1_225, 350), (10_000, 1_000)])
def test_steps_grow_with_the_root_of_the_images_from_100_on(images, steps):
    assert default_steps(images) == steps


@pytest.mark.parametrize(("images", "size"), [(50, 32), (9_999, 32), (10_000, 128)])
def test_large_sets_have_larger_batches(images, size):
    assert default_batch_size(images) == size


def test_partial_trains_the_last_stages_that_take_at_most_72_percent_of_the_work(evidence):
    assert default_trainable_stages(evidence.stages) == 3
    assert tail_share(evidence.stages, 3) == pytest.approx(0.6)
    assert tail_share(evidence.stages, 4) == pytest.approx(0.9)


def test_partial_trains_fewer_stages_where_the_network_cannot_be_cut_at_the_boundary(evidence):
    uncut = tuple(stage.changed(output_values=None) if stage.name == "layer1" else stage for stage in evidence.stages)
    assert default_trainable_stages(uncut) == 2


def test_partial_trains_one_stage_where_there_is_no_cut_at_all(evidence):
    assert default_trainable_stages(tuple(stage.changed(output_values=None) for stage in evidence.stages)) == 1


@pytest.mark.parametrize(("trained", "values"), [(1, 8192), (3, 32768), (4, 65536), (5, None)])
def test_the_boundary_is_the_output_of_the_last_frozen_stage(evidence, trained, values):
    assert boundary_values(evidence.stages, trained) == values


def test_no_more_views_are_cached_than_there_are_passes():
    assert cached_views(100, steps=15, batch_size=20, values=10, num_bytes=2**30) == 3


def test_at_most_six_views_are_cached():
    assert cached_views(100, steps=10_000, batch_size=20, values=10, num_bytes=2**30) == 6


def test_the_views_fit_on_the_disk():
    values = 2**30 // (2 * 100 * 6)  # bytes for six: five views and the plain one
    assert cached_views(100, steps=10_000, batch_size=20, values=values, num_bytes=2**30) == 5


def test_nothing_is_cached_where_the_disk_does_not_hold_two_views():
    values = 2**30 // (2 * 100 * 2)
    assert cached_views(100, steps=10_000, batch_size=20, values=values, num_bytes=2**30) == 0


def test_nothing_is_cached_where_the_network_cannot_be_cut():
    assert cached_views(100, steps=10_000, batch_size=20, values=None, num_bytes=2**30) == 0


def test_only_partial_caches_views(evidence):
    kept = {
        strategy: size_workload(RECIPE, evidence, strategy).cached_views
        for strategy in ("norm_tuning", "partial", "full")
    }
    assert kept == {"norm_tuning": 0, "partial": 6, "full": 0}


def of_size(evidence, images, **changes):
    return evidence.changed(num_images=images, images_per_class=images / evidence.num_classes, **changes)


@pytest.mark.parametrize(
    ("images", "trainings", "refit"), [(599, 3, 1.0), (600, 1, 0.25), (999, 1, 0.25), (1000, 1, 0.0)]
)
def test_below_600_images_there_are_three_folds_and_below_1000_a_refit(evidence, images, trainings, refit):
    load = size_workload(RECIPE, of_size(evidence, images), "full")
    assert (load.trainings, load.refit_steps) == (trainings, math.ceil(refit * load.steps))


def test_a_given_validation_split_spares_the_folds(evidence):
    load = size_workload(RECIPE, of_size(evidence, 300, has_validation=True), "full")
    assert (load.trainings, load.refit_steps) == (1, math.ceil(load.steps / 4))


def test_folds_are_always_refitted_because_none_of_them_saw_all_images(evidence):
    load = size_workload(RECIPE.changed(refit=False), of_size(evidence, 300), "full")
    assert (load.trainings, load.refit_steps) == (3, load.steps)


@pytest.mark.parametrize(("images", "asked"), [(800, False), (5_000, True)])
def test_the_recipe_decides_about_the_refit_where_images_are_held_out(evidence, images, asked):
    load = size_workload(RECIPE.changed(refit=asked), of_size(evidence, images), "full")
    assert (load.trainings, load.refit_steps > 0) == (1, asked)


def test_random_weights_get_five_times_the_steps(evidence):
    full, scratch = (size_workload(RECIPE, evidence, strategy).steps for strategy in ("full", "scratch"))
    assert (full, scratch) == (155, 775)


def test_asked_steps_stay(evidence):
    assert size_workload(RECIPE.changed(steps=7), evidence, "scratch").steps == 7


def test_asked_epochs_are_counted_in_batches_and_rounded_up(evidence):
    assert size_workload(RECIPE.changed(epochs=1, batch_size=100), evidence, "full").steps == 3


def test_a_time_budget_shortens_the_training_to_fit(evidence):
    free = size_workload(RECIPE, evidence, "full")
    tight = size_workload(RECIPE.changed(time_budget=100), evidence, "full")
    assert expected_seconds("full", free, evidence) > 200
    assert tight.steps < free.steps
    assert 95 < expected_seconds("full", tight, evidence) <= 100


@pytest.mark.parametrize(("seconds", "trainings", "refit_share"), [(1e6, 3, 1.0), (200, 1, 0.25)])
def test_a_time_budget_that_is_too_short_for_folds_holds_one_part_out(evidence, seconds, trainings, refit_share):
    free = size_workload(RECIPE, evidence, "full")
    load = size_workload(RECIPE.changed(time_budget=seconds), evidence, "full")
    assert (load.trainings, load.steps) == (trainings, free.steps)
    assert load.refit_steps == math.ceil(refit_share * load.steps)


def test_an_ensemble_of_folds_keeps_its_folds_in_a_short_time_budget(evidence):
    recipe = RECIPE.changed(time_budget=100, ensemble="folds")
    assert size_workload(recipe, evidence, "full").trainings == 3


def test_a_generous_time_budget_changes_nothing(evidence):
    assert size_workload(RECIPE.changed(time_budget=1e6), evidence, "full") == size_workload(RECIPE, evidence, "full")


def test_asked_steps_outrank_the_time_budget(evidence):
    assert size_workload(RECIPE.changed(time_budget=1, steps=500), evidence, "full").steps == 500


def test_at_least_one_stage_stays_frozen_under_partial(evidence):
    recipe = RECIPE.changed(training=TrainingRecipe(trainable_stages=9))
    assert size_workload(recipe, evidence, "partial").trainable_stages == 4


def test_a_backward_pass_costs_two_forward_passes():
    assert cost_per_image("full", 0.6, cached=False) == 3.0
    assert cost_per_image("linear_probe", 0.6, cached=False) == 0.0


def test_partial_costs_only_its_trained_stages_where_views_are_cached():
    assert cost_per_image("partial", 0.5, cached=True) == pytest.approx(1.5)
    assert cost_per_image("partial", 0.5, cached=False) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("changes", "forward"),
    [({}, 0), ({"cache_bytes": 0}, 240), ({"num_images": 5000, "num_held": 5000}, 0), ({"num_held": 5001}, 5001)],
)
def test_a_linear_probe_sends_forward_what_its_measurement_has_not_cached(evidence, changes, forward):
    measured = evidence.changed(**changes)
    load = size_workload(RECIPE, measured, "linear_probe")
    expected = forward / 200 + forward / 500 + 0.5
    assert expected_seconds("linear_probe", load, measured) == pytest.approx(expected)


def test_full_costs_reading_and_training_of_every_image_of_every_step(evidence):
    load = size_workload(RECIPE, evidence, "full")
    trained = 4 * 155 * 32
    assert expected_seconds("full", load, evidence) == pytest.approx(
        240 * (1 / 200 + 1 / 500) + trained * (1 / 50 + 1 / 500)
    )


def test_cached_views_are_read_and_sent_through_the_frozen_stages_once(evidence):
    load = size_workload(RECIPE, evidence, "partial")
    views = 240 * 7 * (1 / 400 + 1 / 500)
    assert expected_seconds("partial", load, evidence) == pytest.approx(
        240 * (1 / 200 + 1 / 500) + views + 4 * 155 * 32 / 100
    )


def test_views_of_held_out_images_are_not_cached_without_a_refit(evidence):
    known = of_size(evidence, 1200, num_held=1200)
    load = size_workload(RECIPE, known, "partial")
    assert (load.trainings, load.refit_steps, load.cached_views) == (1, 0, 6)
    views = (960 * 6 + 2 * 240) * (1 / 400 + 1 / 500)
    assert expected_seconds("partial", load, known) == pytest.approx(
        known.num_held * (1 / 200 + 1 / 500) + views + load.steps * 32 / 100
    )


@pytest.mark.parametrize("batch_size", [8, 16, 32, 48, 64])
def test_another_batch_size_takes_the_steps_that_see_as_many_images(evidence, batch_size):
    more = evidence.changed(num_images=2_400)
    load = size_workload(RECIPE.changed(batch_size=batch_size), more, "full")
    usual = size_workload(RECIPE, more, "full")
    assert load.steps * batch_size == pytest.approx(usual.steps * usual.batch_size, abs=batch_size)


def test_of_a_large_set_too_another_batch_size_sees_as_many_images(evidence):
    large = evidence.changed(num_images=40_000, num_held=40_000)
    usual, asked = (size_workload(RECIPE.changed(batch_size=size), large, "full") for size in (None, 512))
    assert (usual.batch_size, asked.steps) == (128, usual.steps // 4)


def test_the_largest_batches_leave_100_steps():
    assert [steps_at(size, 200, 32) for size in (32, 64, 65, 1024)] == [200, 100, 100, 100]


@pytest.mark.parametrize("length", [{"steps": 7}, {"epochs": 3.0}])
def test_an_asked_length_is_not_changed_by_the_batch(evidence, length):
    load = size_workload(RECIPE.changed(batch_size=256, **length), evidence, "full")
    assert load.steps == (7 if "steps" in length else math.ceil(3 * 240 / 256))


def test_processes_share_the_time_of_a_training_but_not_of_the_features(evidence):
    load = size_workload(RECIPE, evidence, "full")
    features = 240 / 200 + 240 / 500
    alone, eight = (
        expected_seconds("full", load, evidence.changed(speed=evidence.speed.changed(num_processes=count)))
        for count in (1, 8)
    )
    assert eight - features == pytest.approx((alone - features) / 8)


@pytest.mark.parametrize("prefer", ["accuracy", "balanced", "speed"])
def test_from_600_images_on_half_of_the_steps_of_all_layers_see_smaller_ones(evidence, prefer):
    load = size_workload(RECIPE.changed(prefer=prefer), of_size(evidence, 600, takes_any_size=True), "full")
    assert load.small_steps == round(load.steps / 2)


@pytest.mark.parametrize(
    ("known", "asked", "strategy"),
    [
        ({"num_images": 599}, {}, "full"),
        ({"takes_any_size": False}, {}, "full"),
        ({"image_size": 96}, {}, "full"),
        ({}, {}, "partial"),
        ({}, {}, "norm_tuning"),
        ({}, {}, "scratch"),
        ({}, {"training": TrainingRecipe(progressive_resizing=0)}, "full"),
    ],
    ids=["few", "one size", "no smaller", "last stages", "norms", "scratch", "not wanted"],
)
def test_no_step_sees_smaller_images_where_they_cannot_or_are_not_known_to_pay(evidence, known, asked, strategy):
    side = evidence.preprocessing.changed(image_size=known.pop("image_size", 128))
    known = {"num_images": 900, "takes_any_size": True, "preprocessing": side} | known
    assert size_workload(RECIPE.changed(**asked), evidence.changed(**known), strategy).small_steps == 0


def test_a_share_of_small_images_that_is_asked_for_stays_and_leaves_a_step(evidence):
    known = evidence.changed(takes_any_size=True)
    for steps, share, small in ((40, 0.25, 10), (2, 0.9, 1), (1, 0.9, 0)):
        recipe = RECIPE.changed(steps=steps, training=TrainingRecipe(progressive_resizing=share))
        assert size_workload(recipe, known, "full").small_steps == small


@pytest.mark.parametrize("known", [{"takes_any_size": False}, {"image_size": 96}])
def test_small_images_that_a_network_does_not_take_are_refused_with_what_to_do(evidence, known):
    side = evidence.preprocessing.changed(image_size=known.pop("image_size", 128))
    known = evidence.changed(**{"takes_any_size": True, "preprocessing": side} | known)
    recipe = RECIPE.changed(training=TrainingRecipe(progressive_resizing=0.5))
    with pytest.raises(RecipeError, match=r"progressive_resizing.* leave it out"):
        size_workload(recipe, known, "full")


@pytest.mark.parametrize("strategy", ["partial", "full"])
def test_smaller_images_take_less_time_by_their_area(evidence, strategy):
    known = of_size(evidence, 900, takes_any_size=True)
    usual, small = (
        size_workload(RECIPE.changed(training=TrainingRecipe(progressive_resizing=share)), known, strategy)
        for share in (0.0, 0.5)
    )
    rate = 100 if strategy == "partial" else 50
    steps = small.small_steps * 32 * (1 - small_cost(known.preprocessing)) / rate
    views = 3 * 900 * (1 - small_cost(known.preprocessing)) / 400 if strategy == "partial" else 0.0
    saved = expected_seconds(strategy, usual, known) - expected_seconds(strategy, small, known)
    assert small_cost(known.preprocessing) == (96 / 128) ** 2
    assert saved == pytest.approx(steps + views)


def test_a_refit_from_the_beginning_sees_small_images_as_the_folds_did(evidence):
    recipe = RECIPE.changed(training=TrainingRecipe(progressive_resizing=0.5))
    known = evidence.changed(takes_any_size=True)
    usual, small = (size_workload(asked, known, "full") for asked in (RECIPE, recipe))
    saved = expected_seconds("full", usual, known) - expected_seconds("full", small, known)
    assert saved == pytest.approx(4 * 78 * 32 * (1 - (96 / 128) ** 2) / 50)


@pytest.mark.parametrize(
    ("views", "small", "steps", "expected"),
    [(6, 50, 100, 3), (6, 1, 100, 1), (2, 99, 100, 1), (6, 0, 100, 0), (0, 5, 9, 0)],
)
def test_each_size_has_a_share_of_the_views_and_at_least_one(views, small, steps, expected):
    assert small_views(views, small, steps) == expected
