"""Wings import only what stands below them, decisions know no network, and torch is patched behind one door."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "finetune"

GROUND = (
    "errors",
    "value",
    "reading",
    "recipe",
    "recipe_texts",
    "recipe_tuning",
    "recipe_labels",
    "cache",
    "processes",
    "work",
    "history",
    "names",
    "files",
    "interruption",
    "device",
    "progress",
    "system_settings",
    "templates",
)
"""Modules that every wing may import."""

WINGS = (
    "decide",
    "data",
    "network",
    "predict",
    "measure",
    "auditing",
    "training",
    "ensemble",
    "runs",
    "export",
    "publish",
    "serve",
    "tuning",
)
"""Folders from the lowest to the highest; each imports the ground and what stands before it."""

FACES = (
    "checks",
    "classifier",
    "report_options",
    "cli_audit",
    "cli_compare",
    "cli_sharing",
    "cli_models",
    "cli",
    "__init__",
)
"""Modules that import everything: scikit-learn's manner, the command line and its options, and the package."""

HEAVY = {"torch", "torchvision", "timm", "accelerate", "datasets"}
"""Libraries that decisions do without."""

PATCHED = {"torch", "nn", "functional", "F", "torchvision", "timm"}
"""Names below which an assignment changes a library."""

FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    """Return a module's name below the package: `decide.choice`; a folder's is that of its `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def wing(name):
    """Return the position of a module's wing: 0 is the ground."""
    first = name.partition(".")[0]
    if first in GROUND:
        return 0
    return 1 + (*WINGS, *FACES).index(first)


@cache
def imports(path):
    """Return the full names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported(name):
    """Return the package's own modules that one of them imports."""
    found = {module.partition(".")[2] for module in imports(MODULES[name]) if module.startswith("finetune.")}
    return found & MODULES.keys() - {name}


def reached(name):
    """Return a module and all of the package's modules that its imports lead to."""
    found, left = set(), {name}
    while left:
        module = left.pop()
        found.add(module)
        left |= imported(module) - found
    return found


def in_folder(name):
    return [module for module in MODULES if module == name or module.startswith(f"{name}.")]


def test_every_module_belongs_to_the_ground_a_wing_or_a_face():
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert rooms - {*GROUND, *WINGS, *FACES} == set()
    assert {*WINGS, *FACES} - rooms == set()


@pytest.mark.parametrize("name", [name for name in MODULES if wing(name)])
def test_wings_import_only_what_stands_below_them(name):
    allowed = wing(name)
    assert {module for module in imported(name) if wing(module) > allowed} == set()


@pytest.mark.parametrize("name", [name for name in MODULES if not wing(name)])
def test_the_ground_imports_only_the_ground(name):
    assert {module for module in imported(name) if wing(module)} == set()


@pytest.mark.parametrize("name", ["the ground", *WINGS])
def test_the_modules_of_a_wing_form_no_cycle(name):
    members = [module for module in MODULES if not wing(module)] if name == "the ground" else in_folder(name)
    TopologicalSorter({module: imported(module) & {*members} for module in members}).prepare()


@pytest.mark.parametrize("name", in_folder("decide"))
def test_decisions_and_the_ground_they_use_import_no_network_and_no_data_set(name):
    heavy = {module: {used.partition(".")[0] for used in imports(MODULES[module])} & HEAVY for module in reached(name)}
    assert {module: used for module, used in heavy.items() if used} == {}


def is_patch(node):
    """Return whether a statement changes a function of torch, or a class sees all its calls."""
    if isinstance(node, ast.ClassDef):
        return any("TorchFunctionMode" in ast.unparse(base) for base in node.bases)
    targets = node.targets if isinstance(node, ast.Assign) else []
    parts = [part for target in targets for part in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return any(isinstance(part, ast.Attribute) and ast.unparse(part).partition(".")[0] in PATCHED for part in parts)


def patches(name):
    """Return the lines of a module that patch torch."""
    return [node.lineno for node in ast.walk(ast.parse(MODULES[name].read_text("utf-8"))) if is_patch(node)]


def test_torch_is_patched_in_network_cpu_alone():
    found = {name for name in MODULES if patches(name)}
    assert found
    assert found - {*in_folder("network.cpu")} == set()
