import pickle
from pathlib import Path

import pytest
import torch

from finetune.errors import RunFolderError
from finetune.training import Checkpoints

CONTENT = {"step": 3, "module": {"weight": torch.arange(6.0).reshape(2, 3)}, "best": None, "history": [{"phase": "a"}]}


class Malicious:
    """An object that a folder from elsewhere could hold: unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path / "checkpoints")
    made.begin()
    return made


def names(tmp_path):
    return sorted(file.name for file in (tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize(("write", "read"), [("save_step", "step"), ("finish", "finished")])
def test_content_is_read_as_it_was_written(checkpoints, write, read):
    getattr(checkpoints, write)("validation", CONTENT)
    content = getattr(checkpoints, read)("validation")
    assert torch.equal(content["module"].pop("weight"), CONTENT["module"]["weight"])
    assert content == {**CONTENT, "module": {}}


def test_another_process_finds_a_checkpoint(checkpoints, tmp_path):
    checkpoints.save_step("refit", {"step": 4})
    assert Checkpoints(tmp_path / "checkpoints").step("refit") == {"step": 4}


def test_a_later_checkpoint_replaces_an_earlier_one(checkpoints):
    checkpoints.save_step("refit", {"step": 1})
    checkpoints.save_step("refit", {"step": 2})
    assert checkpoints.step("refit") == {"step": 2}


def test_phases_do_not_see_each_others_checkpoints(checkpoints):
    checkpoints.save_step("fold-1", {"step": 1})
    checkpoints.finish("fold-2", {"step": 2})
    assert checkpoints.step("fold-2") is None
    assert checkpoints.finished("fold-1") is None


def test_a_phase_that_finished_keeps_no_step(checkpoints, tmp_path):
    checkpoints.save_step("refit", {"step": 1})
    checkpoints.finish("refit", {"logits": torch.zeros(2)})
    assert checkpoints.step("refit") is None
    assert names(tmp_path) == ["refit.pt"]


def test_a_file_whose_writing_was_killed_is_not_read(checkpoints, tmp_path):
    for name in ("refit-step.pt.partial", "refit.pt.partial"):
        (tmp_path / "checkpoints" / name).write_bytes(b"half of a checkpoint")
    assert checkpoints.step("refit") is None
    assert checkpoints.finished("refit") is None


def test_a_failure_while_writing_leaves_the_earlier_checkpoint_whole(checkpoints):
    checkpoints.save_step("refit", {"step": 1})
    with pytest.raises((AttributeError, pickle.PicklingError), match="local object"):
        checkpoints.save_step("refit", {"step": 2, "unwritable": lambda: None})
    assert checkpoints.step("refit") == {"step": 1}


def test_nothing_partial_is_left_after_writing(checkpoints, tmp_path):
    checkpoints.save_step("refit", CONTENT)
    checkpoints.finish("validation", CONTENT)
    assert names(tmp_path) == ["refit-step.pt", "validation.pt"]


def test_a_process_that_does_not_write_reads_but_changes_nothing(checkpoints, tmp_path):
    checkpoints.save_step("refit", {"step": 1})
    reader = Checkpoints(tmp_path / "checkpoints", writes=False)
    reader.save_step("refit", {"step": 2})
    reader.finish("refit", {"step": 3})
    assert reader.step("refit") == {"step": 1}
    assert names(tmp_path) == ["refit-step.pt"]


def test_a_process_that_does_not_write_makes_no_folder(tmp_path):
    Checkpoints(tmp_path / "checkpoints", writes=False).begin()
    assert list(tmp_path.iterdir()) == []


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints = Checkpoints(None)
    checkpoints.begin()
    checkpoints.save_step("refit", CONTENT)
    checkpoints.finish("refit", CONTENT)
    assert checkpoints.step("refit") is None
    assert checkpoints.finished("refit") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["refit-step.pt", "refit.pt"])
def test_a_file_with_code_is_refused_before_the_code_runs(checkpoints, tmp_path, name):
    torch.save({"step": 1, "history": Malicious(tmp_path / "ran")}, tmp_path / "checkpoints" / name)
    with pytest.raises(RunFolderError, match=r"is damaged .Weights only load failed"):
        checkpoints.step("refit") if "step" in name else checkpoints.finished("refit")
    assert not (tmp_path / "ran").exists()
