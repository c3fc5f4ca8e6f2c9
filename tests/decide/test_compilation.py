import pytest

from finetune.decide.choice import choose_strategy
from finetune.decide.compilation import COMPILED_GAIN, COMPILING_SECONDS, compiling_pays
from finetune.decide.planning import make_plan
from finetune.recipe import Recipe


@pytest.fixture
def on_gpu(evidence):
    return evidence.changed(speed=evidence.speed.changed(device_kind="cuda"))


@pytest.mark.parametrize(("seconds", "pays"), [(60, False), (719, False), (721, True), (36_000, True)])
def test_compiling_pays_on_a_gpu_where_it_saves_twice_its_time(on_gpu, seconds, pays):
    assert (COMPILING_SECONDS, COMPILED_GAIN) == (60, 1.2)
    assert compiling_pays(seconds, on_gpu.speed) is pays


@pytest.mark.parametrize("kind", ["cpu", "mps"])
def test_compiling_pays_on_no_other_device(evidence, kind):
    assert not compiling_pays(36_000, evidence.speed.changed(device_kind=kind))


@pytest.mark.parametrize(
    ("steps", "training", "is_compiled"),
    [(100, {}, False), (10_000, {}, True), (10_000, {"compiled": False}, False), (100, {"compiled": True}, True)],
)
def test_a_plan_compiles_long_trainings_on_a_gpu_unless_the_recipe_says_otherwise(on_gpu, steps, training, is_compiled):
    recipe = Recipe(data="images", strategy="full", steps=steps, training=training)
    plan = make_plan(recipe, on_gpu, choose_strategy(on_gpu, recipe))
    assert plan.compiled is is_compiled
    assert any("compiled" in reason for reason in plan.reasons) is is_compiled


def test_a_linear_probe_has_no_steps_to_compile(on_gpu):
    recipe = Recipe(data="images", strategy="linear_probe", training={"compiled": True})
    assert not make_plan(recipe, on_gpu, choose_strategy(on_gpu, recipe)).compiled
