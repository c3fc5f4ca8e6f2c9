import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import finetune


def test_the_public_names_are_sorted_and_complete():
    assert finetune.__all__ == sorted(finetune.__all__, key=lambda name: (name[0].islower(), name))
    assert set(finetune.__all__) == set(finetune._HOMES)
    assert dir(finetune) == finetune.__all__


@pytest.mark.parametrize("name", finetune.__all__)
def test_a_public_name_is_there_and_explains_itself(name):
    thing = getattr(finetune, name)
    assert inspect.getdoc(thing)
    assert thing.__name__ == name


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(finetune.__file__).read_text("utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(finetune.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'fine'"):
        _ = finetune.fine


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, finetune; print([n for n in ('torch', 'timm', 'datasets', 'numpy') if n in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


PUBLIC = [
    (name, method)
    for name in finetune.__all__
    for method, _ in inspect.getmembers(getattr(finetune, name), inspect.isfunction)
    if inspect.isclass(getattr(finetune, name)) and not method.startswith("_")
    and inspect.getmodule(getattr(getattr(finetune, name), method)).__name__.startswith("finetune")
]  # fmt: skip


@pytest.mark.parametrize(("name", "method"), PUBLIC)
def test_a_public_method_explains_itself(name, method):
    assert inspect.getdoc(getattr(getattr(finetune, name), method))
