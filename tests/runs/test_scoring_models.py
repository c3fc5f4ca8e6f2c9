"""Models that have scored the same test images are counted, once each, and their number is said where it is large."""

import copy
import shutil
from dataclasses import replace

import pytest

from finetune import cache
from finetune.cli import main
from finetune.runs.comparing import compare
from finetune.runs.folder import RunFolder
from finetune.runs.run_data import contents_in
from finetune.runs.scoring_models import OFTEN, count_models, describe_models, remember_model

IMAGES = ["10 aa", "12 bb"]


def with_other_weights(model, number):
    """Return a model whose weights are others for each number."""
    network = copy.deepcopy(model.network)
    next(network.parameters()).data.add_(number + 1.0)
    return replace(model, network=network)


@pytest.fixture
def models(trained):
    """Two models with different weights."""
    return trained("test_resnet"), trained("test_efficientnet")


@pytest.mark.usefixtures("empty_cache")
def test_a_model_counts_once_however_often_it_is_scored(models):
    first, second = models
    assert remember_model(IMAGES, first) == 1
    assert remember_model(reversed(IMAGES), first) == 1
    assert remember_model(IMAGES, second) == 2
    assert remember_model(IMAGES[:1], second) == 1
    assert count_models(IMAGES) == 2


@pytest.mark.usefixtures("empty_cache")
def test_clearing_the_cache_keeps_the_count(models):
    remember_model(IMAGES, models[0])
    cache.write_value("measurements", cache.make_key("one"), "one", {})
    cache.clear()
    assert cache.list_entries() == []
    assert count_models(IMAGES) == 1


def test_a_cache_that_is_switched_off_stays_empty(models, empty_cache, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE_LIMIT", "0")
    assert remember_model(IMAGES, models[0]) == 1
    assert not empty_cache.exists()


def test_a_cache_that_cannot_be_written_to_ends_no_run(models, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("")
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache" / "below"))
    assert remember_model(IMAGES, models[0]) == 1


def test_few_models_are_not_worth_a_sentence():
    assert describe_models(OFTEN - 1, 269, "test images") == ""
    assert describe_models(14, 269, "test images").startswith("these 269 test images have been scored by 14 models")


@pytest.mark.usefixtures("empty_cache")
def test_runs_and_comparisons_say_that_a_test_split_was_read_often(finished_run, tmp_path, capsys, trained):
    tested = contents_in(finished_run, "test")
    for number in range(OFTEN - 1):
        remember_model(tested, with_other_weights(trained("test_resnet"), number))
    data = str(finished_run.path.parent / "secret" / "imgs")
    with pytest.raises(SystemExit):
        main(["evaluate", str(finished_run.path), "--data", data])
    assert f"these 10 images have been scored by {OFTEN} models" in capsys.readouterr().out
    other = RunFolder(tmp_path / "other")
    shutil.copytree(finished_run.path, other.path)
    assert any(f"have been scored by {OFTEN} models" in note for note in compare([finished_run, other]).notes)
