"""The measuring programs: all of them can be imported, started and found in their list."""

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parent.parent / "experiments"

MODULES = sorted(path.stem for path in EXPERIMENTS.glob("*.py") if path.stem != "__init__")

PROGRAMS = [name for name in MODULES if 'if __name__ == "__main__":' in (EXPERIMENTS / f"{name}.py").read_text("utf-8")]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_can_be_imported(name):
    import_module(f"experiments.{name}")


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_shows_its_command(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        import_module(f"experiments.{name}").main()
    assert ended.value.code == 0
    assert f"python -m experiments.{name} " in capsys.readouterr().out


def test_the_list_of_programs_has_every_program():
    text = (EXPERIMENTS / "README.md").read_text("utf-8")
    assert set(PROGRAMS) <= set(re.findall(r"python -m experiments\.([a-z_]+)", text))
