"""A run that is killed at any of its file operations can be resumed or started again, and ends with the same model."""

import hashlib
import os
import shutil
import sys
import traceback

import pytest

from finetune.recipe import load_recipe
from finetune.runs import pipeline, places
from finetune.runs.folder import RunFolder
from tests.conftest import make_image_folder

KILLED = 77
"""Exit status of a process that ended at a file operation."""

WRITES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}
"""Names that `sys.audit` has for what changes the disk, in addition to opening a file to write it."""


def changes_disk(event, arguments):
    """Return whether an audited event changes the disk."""
    if event != "open":
        return event in WRITES
    _, mode, flags = arguments
    return bool(flags & (os.O_WRONLY | os.O_RDWR)) if mode is None else not mode.startswith("r")


def in_child(work, place, at=None):
    """Do some work in a copy of this process; return its exit status, and the number of its operations below a folder.

    Args:
        work: function without arguments.
        place: folder whose operations are counted.
        at: number of the operation at which the process ends, before it does it; None: it does all of them.
    """
    read, write = os.pipe()
    child = os.fork()
    if not child:
        count = 0

        def audit(event, arguments):
            nonlocal count
            if changes_disk(event, arguments) and any(
                str(place) in os.fsdecode(each) for each in arguments[:2] if isinstance(each, (str, bytes, os.PathLike))
            ):
                count += 1
                if count == at:
                    os._exit(KILLED)

        status = 1
        try:
            sys.addaudithook(audit)
            work()
            status = 0
        except BaseException:  # whatever it is, the child must not return
            traceback.print_exc()
        finally:
            os.write(write, str(count).encode())
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        counted = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), int(counted or 0)


def weights_in(folder):
    """Return a digest of each weights file of a run."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("model.safetensors"))
    }


@pytest.fixture
def recipe(weights, tmp_path, request):
    """A recipe of a training of a second."""
    make_image_folder(tmp_path / "images", splits={"train": {"a": 8, "b": 8}, "test": {"a": 3, "b": 3}})
    return load_recipe(
        data=str(tmp_path / "images"), model="test_efficientnet", weights=str(weights), image_size=32, batch_size=4,
        refit=False, **request.param,
    )  # fmt: skip


def continue_as_its_files_say(recipe, folder):
    """Resume a run, or start it again, as the checks of the command line allow it; exactly one of both is allowed."""
    if places.is_finished(folder):
        return
    if places.is_resumable(folder) and not places.holds_only_a_plan(folder):
        assert "continue with: finetune train --resume" in places.describe_interruption(folder)
        with pytest.raises(places.RunFolderError, match="continue it: finetune train --resume"):
            places.refuse_if_taken(folder)
        pipeline.resume(folder)
    else:
        assert places.holds_only_a_plan(folder) or "nothing to resume" in places.describe_interruption(folder)
        pipeline.run(recipe, folder)


SOME = int(os.environ.get("FINETUNE_KILLS", "13"))
"""Every how many-th operation is tried; 1: all."""


@pytest.mark.slow
@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize(
    "recipe",
    [{"strategy": "partial", "steps": 4}, {"strategy": "partial", "steps": 2, "ensemble": "seeds:2"}],
    indirect=True,
    ids=["one network", "an ensemble"],
)
def test_a_run_that_is_killed_at_any_file_operation_ends_with_the_same_model(recipe, tmp_path):
    reference, folder = tmp_path / "reference", tmp_path / "run"
    pipeline.run(recipe, reference)  # fills the cache, so that the others are quick
    expected = weights_in(reference)
    status, total = in_child(lambda: pipeline.run(recipe, folder), folder)
    assert status == 0
    assert weights_in(folder) == expected
    assert total > 40
    for at in range(1, total + 1, SOME):
        shutil.rmtree(folder)
        status, _ = in_child(lambda: pipeline.run(recipe, folder), folder, at)
        if status == 0 and at > total / 2:
            break  # the state of a run is written every second, so that a quicker run has fewer operations
        assert status == KILLED
        before = sorted(str(file.relative_to(folder)) for file in folder.rglob("*")) if folder.exists() else []
        assert in_child(lambda: continue_as_its_files_say(recipe, folder), folder)[0] == 0, (at, before)
        assert RunFolder(folder).is_finished()
        assert weights_in(folder) == expected, (at, before)
