import json

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
    known = "'top1', 'balanced_accuracy', 'mean_average_precision' or 'mean_cost'"
    with pytest.raises(RecipeError, match=f"metric: .*{known}.*'f1' was given"):
        evidence.changed(metric="f1")


COMPUTED = {
    "probe_accuracy": 0.85,
    "probe_accuracy_error": 0.023,
    "forward_images_per_second": 200.0,
    "train_images_per_second": 50.0,
}


def saved(evidence, path, **changes):
    """The content of evidence.json with changes, written back."""
    evidence.save(path)
    content = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps(content), "utf-8")
    return content


def test_what_is_computed_stands_in_the_file_and_is_read_again(evidence, tmp_path):
    content = saved(evidence, tmp_path / "evidence.json")
    assert {key: content[key] for key in COMPUTED} == COMPUTED
    assert Evidence.load(tmp_path / "evidence.json") == evidence


def test_a_file_without_what_is_computed_is_read(evidence, tmp_path):
    content = saved(evidence, tmp_path / "evidence.json")
    (tmp_path / "evidence.json").write_text(json.dumps({k: v for k, v in content.items() if k not in COMPUTED}))
    assert Evidence.load(tmp_path / "evidence.json") == evidence


@pytest.mark.parametrize("key", COMPUTED)
def test_a_computed_key_that_was_edited_is_refused_with_what_to_do(evidence, tmp_path, key):
    saved(evidence, tmp_path / "evidence.json", **{key: 0.99})
    with pytest.raises(RecipeError, match=rf"{key} is 0\.99, but .* say {COMPUTED[key]}, .*; .* leave {key} out"):
        Evidence.load(tmp_path / "evidence.json")


def test_what_is_computed_follows_a_change(evidence):
    changed = evidence.changed(probe=evidence.probe.changed(accuracy=0.9))
    assert changed.probe_accuracy == 0.9
