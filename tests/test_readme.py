import re
import shlex
from pathlib import Path

import pytest

from finetune.cli import app, main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
RUN = "runs/imgs-20261124-120000"
"""The folder that the README's examples name."""


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands():
    """Return the words of each `finetune` command in the README."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("finetune ")]


@pytest.fixture
def place(tmp_path, monkeypatch, image_folder, weights_file):
    """A folder like the one that the README's examples are run in; returns the options that make a training tiny."""
    for name in ("imgs", "more"):
        image_folder(tmp_path / name, {"a": 8, "b": 8})
    image_folder(tmp_path / "new", {".": 6})
    for number, path in enumerate(sorted((tmp_path / "new").glob("*.jpg")), start=1):
        path.rename(path.with_name(f"{number}.jpg"))
    monkeypatch.chdir(tmp_path)
    return {"model": "test_efficientnet", "weights": str(weights_file()), "steps": 2, "batch_size": 4, "image_size": 32}


def test_the_first_line_installs_and_trains_on_the_demo():
    (line,) = blocks("bash")[0].splitlines()
    assert line.startswith("python3 -m venv .venv && . .venv/bin/activate && pip install -e . && ")
    assert line.endswith("python scripts/finetune.py --data demo:digits")


def test_the_second_line_installs_and_runs_the_tests():
    (line,) = blocks("bash")[1].splitlines()
    assert line.startswith('python3 -m venv .venv && . .venv/bin/activate && pip install -e ".[dev]" && pytest')


def test_every_command_runs(place):
    ran = []
    for words in commands():
        arguments = [
            path for word in words[1:] for path in (sorted(map(str, Path().glob(word))) if "*" in word else [word])
        ]
        if "--data" in words and words[1] in {"train", "plan"}:
            for key, value in place.items():
                arguments += ["--set", f"{key}={value}"]
            if "--output" not in words:
                arguments += ["--output", RUN]
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0, words
        ran.append(words[1])
    assert {"train", "plan", "predict", "evaluate"} <= set(ran)
    assert Path("predictions.csv").exists()


def test_the_python_example_runs(place, tmp_path):
    (code,) = blocks("python")
    settings = {key: value for key, value in place.items() if key != "model"}
    paths = [str(path) for path in sorted((tmp_path / "imgs").rglob("*.*"))]
    code = code.replace('Recipe(data="imgs"', f'Recipe(data="imgs", **{place!r}')
    code = code.replace("ImageClassifier(", f'ImageClassifier(model="test_efficientnet", settings={settings!r}, ')
    names = {"paths": paths, "labels": [Path(path).parent.name for path in paths], "new_paths": paths[:2]}
    exec(compile(code, "README.md", "exec"), names)
    assert len(names["model"].class_names) == 2


def test_every_option_that_is_named_exists():
    from typer.main import get_command

    known = {
        option
        for command in get_command(app).commands.values()
        for parameter in command.params
        for option in parameter.opts
    }
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "recipes" / "README.md"]:
        text = re.sub(r"`?python -m experiments\..*", "", page.read_text("utf-8"))  # other programs' own options
        text = re.sub(r"`--runs [^`]*`", "", text)
        named = {option for option in re.findall(r"(?<![\w-])--[a-z][a-z_-]+", text) if "_" not in option}
        # Every command has --help and completion; --index-url is pip's; the launchers' options have underscores, except
        # --nnodes.
        assert named - {"--help", "--version", "--nnodes", "--index-url"} <= known, page


def test_the_pages_have_no_open_places():
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CHANGELOG.md"]:
        text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)
        assert not re.findall(r"^[A-Z]{8,}\b|^[A-Z]{3,}$|TODO|TBD", text, re.MULTILINE), path


def test_the_readme_is_short_and_starts_with_a_command():
    assert len(README.splitlines()) <= 90
    assert len(README.partition("```bash")[0].split()) <= 50
    assert README.index("```python") < README.index("\n## ")
