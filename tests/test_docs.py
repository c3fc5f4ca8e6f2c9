"""The documentation: links, navigation, generated pages, the tutorial, and the map of the code."""

import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pandas as pd
import pytest

import finetune
from experiments.write_reference import pages as generated_pages
from experiments.write_reference import run_tutorial
from finetune.cli import app, main

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TOP = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "recipes" / "README.md"]
ALL = [*TOP, *PAGES]
WIDTH = 256
"""Number of features of the network that stands for the ones of the guides."""

TITLES = ("Found", "Measured", "Chosen", "Expected", "Plan", "Result", "Next", "Learning curve of ")


def name_of(path):
    return str(path.relative_to(ROOT))


def without_code(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def anchors(page):
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.*)$", without_code(page.read_text("utf-8")), re.MULTILINE)
    plain = [re.sub(r"[`*]", "", title).strip().lower() for title in titles]
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", title)) for title in plain}


def nav_pages(entries):
    for entry in entries:
        for value in entry.values():
            if isinstance(value, str):
                yield value
            else:
                yield from nav_pages(value)


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_every_link_leads_to_a_page_and_a_heading(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text("utf-8"))):
        if target.startswith("http"):
            continue
        place, _, anchor = target.partition("#")
        path = (page.parent / place).resolve() if place else page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_of_the_docs_stay_within_the_site(page):
    for target in re.findall(r"\]\(([^)#\s]+)", without_code(page.read_text("utf-8"))):
        if not target.startswith("http"):
            assert (page.parent / target).resolve().is_relative_to(DOCS), target


def test_every_page_is_in_the_navigation():
    project = tomllib.loads((ROOT / "zensical.toml").read_text("utf-8"))["project"]
    listed = list(nav_pages(project["nav"]))
    assert sorted(listed) == [str(page.relative_to(DOCS)) for page in PAGES]


def test_every_page_is_linked_from_the_index():
    linked = set(re.findall(r"\]\(([^)#\s]+\.md)", (DOCS / "index.md").read_text("utf-8")))
    assert linked == {str(page.relative_to(DOCS)) for page in PAGES} - {"index.md"}


@pytest.mark.parametrize("page", generated_pages(), ids=name_of)
def test_a_generated_page_is_up_to_date(page):
    assert page.read_text("utf-8") == generated_pages()[page], "run python -m experiments.write_reference"


def test_the_map_of_the_code_names_every_module_once():
    text = (DOCS / "architecture.md").read_text("utf-8").partition("## The tree")[2]
    named = []
    folder = ""
    for line in text.splitlines():
        if line.startswith("### "):
            folder = line.split("`")[1]
        elif match := re.match(r"\| `(\w+\.py)` \| \S", line):
            named.append(folder + match[1])
    modules = [path for path in (ROOT / "finetune").rglob("*.py") if path.name != "__init__.py"]
    assert sorted(named) == sorted(name_of(path) for path in modules)


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_every_file_that_a_page_names_exists(page):
    names = re.findall(r"`((?:finetune|scripts|recipes|experiments|tests)/[\w/.]+\.\w+)`", page.read_text("utf-8"))
    missing = [name for name in names if not (ROOT / name).exists()]
    assert missing == []


def test_every_page_that_the_code_names_exists():
    modules = [path for folder in ("finetune", "experiments", "scripts") for path in (ROOT / folder).rglob("*.py")]
    for path in modules:
        for name in re.findall(r"\b(?:docs|recipes)/[\w/-]+\.md", path.read_text("utf-8")):
            assert (ROOT / name).exists(), f"{name_of(path)}: {name}"


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_every_module_that_a_page_runs_exists(page):
    for name in re.findall(r"python -m experiments\.(\w+)", page.read_text("utf-8")):
        assert name == "NAME" or (ROOT / "experiments" / f"{name}.py").exists(), name


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_every_command_of_a_page_has_the_options_that_it_names(page):
    from typer.main import get_command

    known = {
        name: {option for parameter in command.params for option in parameter.opts} | {"--help"}
        for name, command in get_command(app).commands.items()
    }
    text = page.read_text("utf-8")
    commands = [line for block in blocks(page, "bash") for line in re.sub(r"\\\n", " ", block).splitlines()]
    commands += re.findall(r"`(finetune [^`\n]*)`", without_code(text))
    for command in commands:
        words = shlex.split(command, comments=True)
        if words[:1] != ["finetune"] or len(words) == 1 or words[1].startswith("-"):
            continue
        assert words[1] in known, command
        assert {word for word in words if word.startswith("--")} <= known[words[1]], command


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_recipe_key_that_a_page_sets_exists(page):
    from finetune.recipe import Recipe

    for section, key in re.findall(r"--set (\w+)\.(\w+)=", page.read_text("utf-8")):
        assert section == "section" or key in Recipe.model_fields[section].annotation.model_fields, f"{section}.{key}"


def words(text):
    """Return the words of a text; numbers, number formats and line breaks differ between machines."""
    return set(re.findall(r"[A-Za-z]{3,}", re.sub(r"\b(?:bfloat16|float16|float32)\b", "", text)))


@pytest.mark.slow
def test_the_tutorial_shows_what_its_commands_print(tmp_path):
    results = run_tutorial(tmp_path)
    assert len(results) >= 5
    for shown, printed in results:
        lines = [line for line in shown.splitlines() if line.strip()]
        assert lines
        missing = words(shown) - words(printed)
        # Another machine has other timings and may need another training, so that a few words differ.
        assert len(missing) <= 0.25 * len(words(shown)), "run python -m experiments.write_reference --tutorial"
        titles = {title for title in TITLES if any(line.startswith(title) for line in lines)}
        assert titles <= {title for title in TITLES if any(line.startswith(title) for line in printed.splitlines())}


@pytest.fixture
def place(tmp_path, monkeypatch, image_folder, weights_file):
    """A folder like the one in which the guides' examples run; returns the keys that make a training tiny."""
    image_folder(tmp_path / "imgs", {"a": 8, "b": 8})
    image_folder(tmp_path / "new", {".": 6})
    for number, path in enumerate(sorted((tmp_path / "new").glob("*.jpg")), start=1):
        path.rename(path.with_name(f"{number}.jpg"))
    monkeypatch.chdir(tmp_path)
    return {"model": "test_efficientnet", "weights": str(weights_file()), "steps": 2, "batch_size": 4, "image_size": 32}


def run_python(page, names, place):
    """Run the Python examples of a page one after another, on a tiny training."""
    settings = {key: value for key, value in place.items() if key not in {"model", "steps"}}
    for code in blocks(page, "python"):
        code = code.replace('Recipe(data="imgs"', f'Recipe(data="imgs", **{place!r}')
        # A search with a fixed rate does not check that the loss falls, which two steps do not show.
        fixed = "training={'learning_rate': 1e-3}, tuning={'trials': 2, 'weight_decay': (1e-3, 1e-1)}"
        code = code.replace('tuning={"trials": 10}', f"strategy='full', {fixed}")
        code = code.replace("ImageClassifier(", 'ImageClassifier(model="test_efficientnet", ')
        code = code.replace('settings={"steps": 100}', f"settings={ {**settings, 'steps': 2}!r}")
        exec(compile(code, str(page), "exec"), names)
    return names


@pytest.fixture
def finished_run(place):
    recipe = finetune.Recipe(data="imgs", strategy="partial", **place)
    finetune.run(recipe, Path("runs/mine"))
    return place


@pytest.mark.slow
def test_the_python_examples_of_the_guide_run(finished_run, tmp_path):
    paths = [str(path) for path in sorted((tmp_path / "imgs").rglob("*.*"))]
    names = {"paths": paths, "labels": [Path(path).parent.name for path in paths], "new_paths": paths[:2]}
    names = run_python(DOCS / "guides" / "from-python.md", names, finished_run)
    assert names["tuned"].class_names == ("a", "b")


@pytest.fixture
def no_network(monkeypatch):
    """Publishing is tried as a dry run alone."""
    monkeypatch.setattr("finetune.publish.push", lambda publication: f"https://hub/{publication.repository}")


def commands_of(page):
    """Return the words of each `finetune` command on a page that uses the run of `finished_run`."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [
        shlex.split(line, comments=True)[1:] for line in lines if line.startswith("finetune") and "runs/mine" in line
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("finished_run")
def test_the_examples_of_exporting_run(capsys):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    page = DOCS / "guides" / "export.md"
    for arguments in commands_of(page):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0, arguments
    assert Path("predictions.csv").exists()
    capsys.readouterr()
    run_python(page, {}, {})
    assert [line.split()[0] in {"a", "b"} for line in capsys.readouterr().out.splitlines()] == [True, True]


@pytest.mark.usefixtures("finished_run", "no_network")
def test_the_commands_of_publishing_run(capsys):
    for arguments in commands_of(DOCS / "guides" / "publishing.md"):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0, arguments
    printed = capsys.readouterr().out
    assert "# flowers" in printed
    assert printed.endswith("published: https://hub/user/flowers\n")


def test_the_guide_to_features_shows_what_its_commands_print(finished_run, capsys):
    """In a folder with the guide's six images; the network is another one, and so is the width."""
    text = (DOCS / "guides" / "many-images.md").read_text("utf-8").partition("## Features instead of labels")[2]
    text = text.partition("\n## ")[0]
    commands, *_ = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    first, second = re.findall(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for command, width in zip(commands.splitlines(), (WIDTH, int(second.split()[1])), strict=True):
        with pytest.raises(SystemExit) as ended:
            main(shlex.split(command, comments=True)[1:])
        assert (ended.value.code, capsys.readouterr().out) == (0, first)
        exec(compile(code, "many-images.md", "exec"), {})
        assert capsys.readouterr().out == f"{second.split()[0]} {width}\n"
        Path("features.parquet").unlink()
    assert finished_run


def test_the_guide_to_withheld_labels_shows_what_its_commands_print(finished_run, capsys):
    """The numbers are those of another run, and two classes of few images reach a smaller share."""
    page = DOCS / "guides" / "withheld-labels.md"
    (shown,) = blocks(page, "text")
    for command in (line for block in blocks(page, "bash") for line in block.splitlines()):
        with pytest.raises(SystemExit) as ended:
            main(shlex.split(command.replace("0.95", "0.05"))[1:])
        printed = capsys.readouterr()
        assert ended.value.code == 0
        table = pd.read_csv("labels.csv", keep_default_na=False)
        Path("labels.csv").unlink()
        if "--sets" in command:
            assert {json.loads(one)[0] for one in table["set"]} <= {"a", "b"}
            continue
        assert set(table["withheld"]) <= {"", "unsure", "unlike the training images"}
        assert re.sub(r"[\d.]+", "N", printed.err + printed.out) == re.sub(r"[\d.]+", "N", shown)
    assert finished_run


def test_the_examples_of_moving_a_model_run(finished_run, capsys):
    names = run_python(DOCS / "guides" / "moving-a-model.md", {}, finished_run)
    assert names["probabilities"].sum().item() == pytest.approx(1)
    assert capsys.readouterr().out.split()[-2] in {"a", "b"}
    Path("copy").mkdir()
    for name in ("plan.json", "config.json", "model.safetensors"):
        shutil.copy(Path("runs/mine") / name, "copy")
    assert finetune.RunFolder(Path("copy")).read_model().predict(["new/1.jpg"])[0] in {"a", "b"}
