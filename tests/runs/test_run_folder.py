import json
from datetime import datetime

import pytest

import finetune
from finetune.errors import RunFolderError
from finetune.runs import environment
from finetune.runs import folder as run_folder
from finetune.runs.environment import describe_environment
from finetune.runs.folder import RunFolder
from finetune.runs.places import default_folder, describe_interruption, refuse_if_taken


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def write(folder, *names):
    folder.path.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder.path / name).write_text("{}")


def test_a_new_and_an_empty_folder_are_free(folder):
    refuse_if_taken(folder.path)
    folder.path.mkdir()
    refuse_if_taken(folder.path)


def test_a_folder_with_a_plan_alone_is_free(folder):
    write(folder, "recipe.yaml", "evidence.json", "choice.json", "plan.json")
    assert folder.holds_only_a_plan()
    refuse_if_taken(folder.path)


def test_a_begun_training_is_no_longer_a_plan_alone(folder):
    write(folder, "plan.json")
    folder.checkpoints.mkdir()
    assert not folder.holds_only_a_plan()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["plan.json", "metrics.json"], "holds another run, which is not overwritten; give a new folder"),
        (["plan.json", "history.jsonl"], "which is not overwritten; continue it: finetune train --resume"),
        (["plan.json", "tuning.json"], "which is not overwritten; continue it: finetune tune --resume"),
        (["notes.txt"], "is neither empty nor a run folder; give a new folder with --output"),
    ],
)
def test_a_taken_folder_says_by_what_and_what_to_do(folder, names, said):
    write(folder, *names)
    with pytest.raises(RunFolderError, match=said):
        refuse_if_taken(folder.path)


def test_a_file_is_not_a_folder(folder):
    folder.path.write_text("")
    with pytest.raises(RunFolderError, match="is a file; give a new folder with --output"):
        refuse_if_taken(folder.path)


def test_a_model_of_an_unfinished_run_says_how_to_continue(folder, small_plan):
    folder.path.mkdir()
    small_plan().save(folder.path / "plan.json")
    with pytest.raises(RunFolderError, match=r"is not finished \(config\.json is missing\); continue it: .*--resume"):
        folder.read_model()


def test_a_process_other_than_the_main_one_writes_nothing(folder, monkeypatch):
    monkeypatch.setattr(run_folder, "from_main_process", lambda _make: None)
    folder.begin([None, None], plot=True)
    folder.write_decisions(None)
    folder.write_choice(None)
    folder.write_history([{"step": 1}])
    folder.write_model(None, None, None)
    assert not folder.path.exists()


@pytest.mark.parametrize(
    ("data", "stem"),
    [
        ("./imgs", "imgs"), ("/a/b/flowers/", "flowers"), ("table.csv", "table"), ("demo:digits", "demo-digits"),
        ("hf:who/what", "hf-who-what"), ("/", "images"),
    ],
)  # fmt: skip
def test_the_default_folder_is_named_after_data_and_time(data, stem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = default_folder(data)
    name, _, time = path.name.rpartition("-")
    name, _, day = name.rpartition("-")
    assert (path.parent.name, name) == ("runs", stem)
    assert abs((datetime.strptime(f"{day}{time}", "%Y%m%d%H%M%S") - datetime.now()).total_seconds()) < 60


def test_two_default_folders_of_one_second_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = default_folder("imgs")
    first.mkdir(parents=True)
    assert default_folder("imgs") != first


def test_the_environment_is_plain_and_names_the_versions():
    described = json.loads(json.dumps(describe_environment()))
    assert {"date", "command", "python", "platform", "device", "threads", "packages"} == described.keys()
    assert all(described["packages"][name] for name in ("torch", "timm", "accelerate", "datasets", "scikit-learn"))


def test_a_package_that_is_not_installed_is_named_as_missing(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("pytest", "no-such-package"))
    packages = describe_environment()["packages"]
    assert packages == {
        "finetune": finetune.__version__,
        "pytest": pytest.__version__,
        "no-such-package": "not installed",
    }


def test_a_folder_without_a_history_says_when_there_is_one(folder, small_plan):
    with pytest.raises(RunFolderError, match="there is no run in"):
        folder.read_history()
    folder.path.mkdir()
    small_plan().save(folder.path / "plan.json")
    with pytest.raises(RunFolderError, match=r"there is no history in .* yet; .* finetune train --plan .*--resume"):
        folder.read_history()


@pytest.mark.parametrize("members", ["members", "members/1"])
def test_what_a_run_wrote_before_its_plan_is_not_a_run(folder, members):
    write(folder, "recipe.yaml", "evidence.json", "plan.json.partial", "tuning.json")
    (folder.path / members).mkdir(parents=True)
    refuse_if_taken(folder.path)
    assert "nothing to resume" in describe_interruption(folder.path)


def test_members_of_something_else_are_not_the_beginning_of_a_run(folder):
    write(folder, "recipe.yaml")
    (folder.path / "members" / "photographs").mkdir(parents=True)
    with pytest.raises(RunFolderError, match="is neither empty nor a run folder"):
        refuse_if_taken(folder.path)
