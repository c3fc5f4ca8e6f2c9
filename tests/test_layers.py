"""Imports point downwards: a module imports only from the layers below its own."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "finetune"

LAYERS = (
    ("errors",),
    ("value", "cache"),
    ("recipe", "preprocessing"),
    ("evidence", "metrics", "schedule", "similarity"),
    ("workload", "forecast", "selection"),
    ("prior",),
    ("candidates",),
    ("strategy",),
    ("plan",),
    ("planning",),
    ("decisions", "diagnosis", "search"),
    ("images", "augmentation", "processes"),
    ("network",),
    ("batches", "probing"),
    ("features",),
    ("prediction",),
    ("recommendation",),
    ("audit", "labelling", "plots", "training"),
    ("execution", "run_folder"),
    ("report", "classifier"),
    ("pipeline",),
    ("tuning",),
    ("cli",),
)
"""From the lowest to the highest; modules of one layer do not import each other."""

PURE = ("errors", "value", "recipe", "preprocessing", "evidence", "metrics", "schedule", "similarity", "workload",
        "forecast", "selection", "prior", "candidates", "strategy", "plan", "planning", "decisions",
        "diagnosis", "search")  # fmt: skip
"""Values and decisions, which know nothing of networks and data sets."""

HEAVY = {"torch", "torchvision", "timm", "accelerate", "datasets"}

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path):
    """Return the module or the folder right below the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Return the full names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {node.module} if node.module != "finetune" else {f"finetune.{alias.name}" for alias in node.names}
    return names


def test_every_module_has_a_layer():
    assert {room(path) for path in MODULES} == {name for layer in LAYERS for name in layer}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    own = room(path)
    imported = {name.split(".")[1] for name in imports(path) if name.startswith("finetune.")} - {own}
    assert {name for name in imported if level[name] >= level[own]} == set()


@pytest.mark.parametrize("name", PURE)
def test_decisions_import_no_networks_and_no_data_sets(name):
    used = {module.partition(".")[0] for module in imports(PACKAGE / f"{name}.py")}
    assert used & HEAVY == set()


@pytest.mark.parametrize("name", ["images", "network", "audit", "training", "tuning"])
def test_modules_of_a_room_form_no_cycle(name):
    below = {
        path.stem: {module.split(".")[2] for module in imports(path) if module.startswith(f"finetune.{name}.")}
        for path in (PACKAGE / name).glob("*.py")
        if path.stem != "__init__"
    }
    assert below
    while below:
        free = [module for module, imported in below.items() if not imported & below.keys()]
        assert free, f"a cycle among {sorted(below)}"
        for module in free:
            del below[module]
