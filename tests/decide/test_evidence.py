import pytest

from finetune.decide.evidence import Evidence
from finetune.errors import RecipeError


def test_the_fastest_way_of_a_strategy_is_the_one_that_was_timed(evidence):
    assert evidence.speed.fastest("full", 0).images_per_second == 50.0
    assert evidence.speed.fastest("norm_tuning", 0).images_per_second == 80.0


def test_a_number_of_stages_that_was_not_timed_counts_as_the_nearest_that_was(evidence):
    timed = evidence.speed.fastest("partial", 3)
    more = timed.changed(trainable_stages=1, images_per_second=170.0)
    speed = evidence.speed.changed(training=(timed, more))
    assert [speed.fastest("partial", count).images_per_second for count in (1, 3, 4)] == [170.0, 100.0, 100.0]


def test_the_order_of_the_stages_survives_a_file(evidence, tmp_path):
    evidence.save(tmp_path / "evidence.json")
    names = [stage.name for stage in Evidence.load(tmp_path / "evidence.json").stages]
    assert names == ["stem", "layer1", "layer2", "layer3", "layer4"]


def test_a_metric_that_is_not_known_is_refused(evidence):
    with pytest.raises(RecipeError, match=r"metric: .*'top1' or 'balanced_accuracy'.*'f1' was given"):
        evidence.changed(metric="f1")
