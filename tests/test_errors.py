import doctest
import inspect

import pytest

from finetune import errors
from finetune.errors import DataError, FinetuneError, nearest_names, quoted_names

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, Exception) and kind is not FinetuneError
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_caught_as_one_kind_and_keeps_its_sentence(kind):
    with pytest.raises(FinetuneError) as caught:
        raise kind("what to do")
    assert str(caught.value) == "what to do"


def test_the_tree_in_the_docstring_has_every_error_with_its_sentence():
    lines = [line.lstrip("├└─ ") for line in errors.__doc__.splitlines() if line.startswith(("├", "└"))]
    tree = dict(line.split(maxsplit=1) for line in lines)
    assert tree.keys() == {kind.__name__ for kind in KINDS}
    assert {name: sentence.capitalize() + "." for name, sentence in tree.items()} == {
        kind.__name__: kind.__doc__.capitalize() for kind in KINDS
    }


def test_an_error_of_the_toolkit_is_not_one_of_the_standard_library():
    assert FinetuneError.__bases__ == (Exception,)


def test_the_sentence_of_a_data_error_is_not_changed():
    assert str(DataError("a text with DataError: in it")) == "a text with DataError: in it"


def test_the_examples_are_right():
    assert doctest.testmod(errors).failed == 0


def test_names_are_quoted_and_the_rest_is_counted():
    assert quoted_names(["a", "b"]) == "'a', 'b'"
    assert quoted_names(list("abcdefghij")).endswith("'h' and 2 more")


def test_the_nearest_name_is_proposed():
    assert nearest_names("stratgy", ["seed", "strategy", "steps"]) == "; did you mean 'strategy'?"


def test_several_near_names_are_joined_the_nearest_first():
    proposed = nearest_names("resnet51", ["resnet50", "vit", "resnet510"])
    assert proposed == "; did you mean 'resnet510' or 'resnet50'?"


def test_no_more_names_are_proposed_than_asked_for():
    assert nearest_names("abcd", ["abce", "abcf", "abcg"], most=2).count("'") == 4


def test_nothing_is_proposed_where_nothing_is_near():
    assert nearest_names("zzz", ["strategy", "steps"]) == ""
