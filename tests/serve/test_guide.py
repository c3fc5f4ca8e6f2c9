"""The guide to serving: its output is what the server answers."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from finetune.serve import app, batching, server, uploads
from finetune.serve.answers import Answer, FailedImage, Health, LabelledImage
from finetune.serve.networks import ServedNetworks
from tests.export.pictures import write_pictures
from tests.serve.running import running

GUIDE = (Path(__file__).parent.parent.parent / "docs" / "guides" / "serving.md").read_text("utf-8")
ADDRESS = "http://127.0.0.1:8000"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder like the one in which the guide's examples run."""
    place = tmp_path_factory.mktemp("guide")
    (place / "new").mkdir()
    for number, path in enumerate(sorted(write_pictures(place / "made", 2).rglob("*.*")), start=1):
        shutil.copy(path, place / "new" / f"{number}.jpg")
    (place / "new" / "notes.txt").write_text("no image\n")
    return place


@pytest.fixture(scope="module")
def url(trained):
    with running(ServedNetworks(trained())) as address:
        yield address


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_command_has_the_answer_that_is_shown(url, folder):
    (command,) = [block for block in blocks("bash") if block.startswith("curl")]
    done = subprocess.run(
        command.replace(ADDRESS, url), shell=True, cwd=folder, capture_output=True, text=True, check=True
    )
    shown, printed = (Answer.parse(json.loads(text), "the answer") for text in (blocks("json")[0], done.stdout))
    assert [type(image) for image in shown.images] == [LabelledImage, FailedImage]
    assert [type(image) for image in printed.images] == [LabelledImage, FailedImage]
    assert [image.name for image in printed.images] == [image.name for image in shown.images]
    assert printed.images[1] == shown.images[1]


def test_the_example_in_python_runs(url, folder, monkeypatch, capsys):
    pytest.importorskip("requests")
    monkeypatch.chdir(folder)
    (code,) = blocks("python")
    exec(compile(code.replace(ADDRESS, url), "serving.md", "exec"), {})
    assert [line.split()[:1] for line in capsys.readouterr().out.splitlines()] == [["new/1.jpg"], ["new/2.jpg"]]


def test_the_state_that_is_shown_has_all_keys():
    assert Health.parse(json.loads(blocks("json")[1]), "the state").status == "ok"


def test_the_limits_are_those_of_the_code():
    statuses = {int(status) for status in re.findall(r"^\| (\d+) \|", GUIDE, re.MULTILINE)}
    assert statuses == {*app.REFUSALS, app.FAILED}
    for limit in (
        f"{uploads.MOST_BYTES // 2**20} MiB or {batching.MOST_WAITING} files",
        f"{uploads.MOST_PIXELS / 1e6:.0f} million pixels",
        f"more than {uploads.MOST_ELONGATED} times",
        f"up to {batching.MOST_TOGETHER}",
        f"at most {server.PATIENCE_SECONDS} s",
    ):
        assert limit in GUIDE, limit
