import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from finetune.cli import main
from finetune.errors import PublishError, RunFolderError
from finetune.publish import prepare
from finetune.runs.folder import Averaged, RunFolder
from tests.publish.hub import TOKEN

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def command(server, tmp_path):
    """The function that runs Python with the stand-in as the hub, in a process of its own."""

    def run(*arguments, **environment):
        variables = {**os.environ, **server.environment(tmp_path / "home"), **environment}
        return subprocess.run(
            [sys.executable, *map(str, arguments)], env=variables, cwd=tmp_path, capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    return run


def test_a_published_model_is_the_same_when_timm_downloads_it(server, command, finished_run, tmp_path, image_folder):
    done = command(ROOT / "scripts" / "finetune.py", "push", finished_run.path, "user/pets")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"published: {server.endpoint}/user/pets\n"
    assert len(server.commits) == 1
    files = server.repositories["user/pets"]
    assert sorted(files) == ["README.md", "config.json", "model.safetensors", "plan.json"]

    # The card's own example, on an image whose size needs no resizing, in which timm differs.
    (example,) = re.findall(r"```python\n(.*?)```", files["README.md"].decode(), re.DOTALL)
    image = next(image_folder(tmp_path / "new", size=(32, 32)).rglob("*.png"))
    image.rename(tmp_path / "image.jpg")
    example += "print(probabilities.tolist())"
    loaded = command("-c", example)
    assert loaded.returncode == 0, loaded.stderr
    name, found = loaded.stdout.splitlines()[-2:]
    expected = finished_run.read_model().predict_proba([tmp_path / "image.jpg"])[0]
    assert name.rpartition(" ")[0] == ("a", "b|<img>")[expected.argmax()]
    np.testing.assert_allclose(json.loads(found), expected, atol=0.02)

    # A copy of the repository is a run folder for predictions.
    (tmp_path / "copy").mkdir()
    for file, content in files.items():
        (tmp_path / "copy" / file).write_bytes(content)
    again = RunFolder(tmp_path / "copy").read_model().predict_proba([tmp_path / "image.jpg"])[0]
    np.testing.assert_array_equal(again, expected)
    state = load_file(tmp_path / "copy" / "model.safetensors")
    own = finished_run.read_model().network.state_dict()
    assert all(torch.equal(state[key], own[key].cpu()) for key in own)


@pytest.mark.parametrize(
    ("repository", "token", "said"),
    [
        ("user/pets", "hf_of_nobody", "you are not logged in; run hf auth login, or set HF_TOKEN"),
        pytest.param("other/pets", TOKEN, "your token may not write there", marks=pytest.mark.slow),
    ],
)
def test_a_refusal_of_the_hub_says_what_to_do(server, command, finished_run, repository, token, said):
    done = command(ROOT / "scripts" / "finetune.py", "push", finished_run.path, repository, HF_TOKEN=token)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {repository} could not be published on {server.endpoint}: {said}")
    assert server.commits == []


def test_a_dry_run_prints_what_would_go_and_sends_nothing(finished_run, capsys):
    with pytest.raises(SystemExit) as ended:  # the tests have no network
        main(["push", str(finished_run.path), "user/pets", "--dry-run"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    sizes = dict(line.split(" kB  ")[::-1] for line in printed.splitlines()[:4])
    assert sizes.keys() == {"README.md", "config.json", "plan.json", "model.safetensors"}
    weights = finished_run.path / "model.safetensors"
    assert float(sizes["model.safetensors"].replace(",", "")) == round(weights.stat().st_size / 1e3, 1)
    assert "# pets" in printed


def test_the_configuration_does_not_claim_a_licence_that_is_not_known(finished_run):
    assert json.loads((finished_run.path / "config.json").read_text())["pretrained_cfg"]["license"] == "apache-2.0"
    published = json.loads(prepare(finished_run.path, "user/pets").files["config.json"])
    assert "license" not in published["pretrained_cfg"]


def test_the_published_plan_has_no_paths(finished_run):
    plan = json.loads(prepare(finished_run.path, "user/pets").files["plan.json"])
    assert (plan["data"], plan["weights"]) == ("imgs", "weights.pt")


@pytest.mark.parametrize("name", ["pets", "user/", "/pets", "a/b/c"])
def test_a_name_without_an_owner_is_refused(finished_run, name):
    with pytest.raises(PublishError, match="is not the name of a repository; expected user/name"):
        prepare(finished_run.path, name)


def test_an_ensemble_is_refused_with_the_way_out(tmp_path):
    Averaged(members=("members/1", "members/2"), temperature=1.0).save(tmp_path / "ensemble.json")
    with pytest.raises(PublishError, match=r"is an ensemble of 2 networks.* push a member \(.*members/1\)"):
        prepare(tmp_path, "user/pets")


def test_an_unfinished_run_is_refused(finished_run, tmp_path):
    for name in ("plan.json", "recipe.yaml", "evidence.json", "choice.json"):
        (tmp_path / name).write_bytes((finished_run.path / name).read_bytes())
    with pytest.raises(RunFolderError, match="is not finished; continue it: finetune train --resume"):
        prepare(tmp_path, "user/pets")
