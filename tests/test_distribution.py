"""The distribution: one name, one version, and a wheel that has all files that the package reads."""

import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest

import finetune
from finetune.serve.server import LIBRARIES

ROOT = Path(__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = SETTINGS["project"]
TEXTS = [
    path
    for pattern in ("*.md", "*.toml", "docs/**/*.md", "finetune/**/*.py", "experiments/*", "recipes/*", "scripts/*")
    for path in sorted(ROOT.glob(pattern))
    if path.suffix in {".md", ".toml", ".py", ".yaml", ""} and path.is_file()
]


def test_the_version_stands_in_one_place():
    assert PROJECT["dynamic"] == ["version"]
    assert "version" not in PROJECT
    assert SETTINGS["tool"]["hatch"]["version"]["path"] == "finetune/__init__.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", finetune.__version__)


def test_the_package_is_installed_by_its_name_and_with_extras_that_exist():
    """`pip install finetune` would install another project."""
    for path in TEXTS:
        text = path.read_text("utf-8")
        assert not re.findall(r"pip install \"?finetune(?!-images)\b", text), path
        assert not re.findall(r"\bfinetune\[", text), path
        for extras in re.findall(r"(?:finetune-images|-e [\"']\.)\[([\w,]+)\]", text):
            assert {*extras.split(",")} <= PROJECT["optional-dependencies"].keys(), path


def names_of(requirements):
    return {re.match(r"[\w.-]+", requirement)[0] for requirement in requirements}


def test_the_libraries_of_a_server_are_those_of_its_extra():
    assert names_of(PROJECT["optional-dependencies"]["serve"]) == {*LIBRARIES.values()}
    assert {*LIBRARIES.values()} <= names_of(PROJECT["optional-dependencies"]["dev"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, opened."""
    pytest.importorskip("hatchling", reason="building a wheel needs hatchling, of the extra 'dev'")
    place = tmp_path_factory.mktemp("wheel")
    code = f"from hatchling.build import build_wheel; print(build_wheel({str(place)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(place / done.stdout.split()[-1]) as opened:
        yield opened


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package_and_the_recipes(wheel):
    package = [path for path in (ROOT / "finetune").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    recipes = [ROOT / "finetune" / path.relative_to(ROOT) for path in (ROOT / "recipes").iterdir()]
    names = {str(path.relative_to(ROOT)) for path in [*package, *recipes]}
    assert {"finetune/decide/prior.json", "finetune/serve/templates/page.html"} <= names
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == names


@pytest.mark.slow
def test_the_metadata_of_the_wheel_are_complete(wheel):
    folder = f"finetune_images-{finetune.__version__}.dist-info"
    found = BytesParser().parsebytes(wheel.read(f"{folder}/METADATA"))
    assert (found["Name"], found["Version"]) == ("finetune-images", finetune.__version__)
    assert (found["License-Expression"], found["License-File"]) == ("Apache-2.0", "LICENSE")
    assert found["Requires-Python"] == ">=3.11"
    assert found["Description-Content-Type"] == "text/markdown"
    assert wheel.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert b"finetune = finetune.cli:main" in wheel.read(f"{folder}/entry_points.txt")
