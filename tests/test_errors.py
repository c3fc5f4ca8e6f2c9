import pytest

from finetune.errors import (
    DataError,
    FinetuneError,
    ModelError,
    RecipeError,
    RunFolderError,
    TuningError,
    nearest_names,
)


@pytest.mark.parametrize("kind", [DataError, ModelError, RecipeError, RunFolderError, TuningError])
def test_every_kind_of_mistake_is_caught_as_one(kind):
    with pytest.raises(FinetuneError, match="what to do"):
        raise kind("what to do")


def test_a_mistake_is_no_defect_of_the_standard_kinds():
    assert FinetuneError.__bases__ == (Exception,)


def test_the_nearest_name_is_proposed():
    assert nearest_names("stratgy", ["seed", "strategy", "steps"]) == "; did you mean 'strategy'?"


def test_several_near_names_are_joined_the_nearest_first():
    proposed = nearest_names("resnet51", ["resnet50", "vit", "resnet510"])
    assert proposed == "; did you mean 'resnet510' or 'resnet50'?"


def test_no_more_names_are_proposed_than_asked_for():
    assert nearest_names("abcd", ["abce", "abcf", "abcg"], most=2).count("'") == 4


def test_nothing_is_proposed_where_nothing_is_near():
    assert nearest_names("zzz", ["strategy", "steps"]) == ""
