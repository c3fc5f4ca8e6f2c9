import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from finetune.data import Unreadable
from finetune.errors import DataError, RunFolderError
from finetune.predict import rows as rows_of_tables
from finetune.predict.rows import PrintedRows, write_chunks
from finetune.predict.shard_files import task_of
from finetune.predict.shards import Place, Shard, part_of

PATHS = [f"{number}.jpg" for number in range(23)]
ENDINGS = pytest.mark.parametrize("ending", ["csv", "parquet"])


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(rows_of_tables, "CHUNK", 4)
    monkeypatch.setattr(rows_of_tables, "GROUPED", 2)


class Stopped(BaseException):
    """The process ends here."""


def make(chunks):
    """Yield a row for each file; every fifth one is left out."""
    for chunk in chunks:
        bad = [path for path in chunk if int(Path(path).stem) % 5 == 0]
        left = [path for path in chunk if path not in bad]
        columns = {"path": left, "label": ["a" for _ in left], "p_a": [int(Path(path).stem) / 7 for path in left]}
        columns["features"] = np.array([[int(Path(path).stem), 0.5] for path in left], np.float16).reshape(-1, 2)
        yield columns, [Unreadable(path=path, reason="bad") for path in bad]


def stopped_after(count):
    """Return `make` of a process that ends in the chunk number `count`."""

    def stopping(chunks):
        for number, made in enumerate(make(chunks)):
            if number == count:
                raise Stopped
            yield made

    return stopping


def write(output, paths=PATHS, make=make, task="task"):
    """Write a table; return the files that were left out."""
    return write_together(output, [paths], make, task)


def write_together(output, lists, make=make, task="task"):
    """Write a table as several processes do, each of which is given a list; return the files that were left out."""
    left_out = []
    count = len(lists)
    shards = [Shard(output, task, Place(rank=rank, count=count), left_out.extend) for rank in range(count)]
    stopped = False
    for shard, paths in reversed([*zip(shards, lists, strict=True)]):  # the main one waits for the others
        try:
            write_chunks(iter(paths), make, shard, left_out.extend)
        except Stopped:
            shard._lock.release()  # as the system does when a process ends
            stopped = True
            continue
        if not stopped:
            shard.finish()
    if stopped:
        raise Stopped
    return [file.path for file in left_out]


def read(path):
    return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)


@ENDINGS
def test_a_table_has_a_row_for_each_file_that_was_not_left_out_and_nothing_else_stays(tmp_path, ending):
    output = tmp_path / f"out.{ending}"
    assert write(output) == ["0.jpg", "5.jpg", "10.jpg", "15.jpg", "20.jpg"]
    table = read(output)
    numbers = [number for number in range(23) if number % 5]
    assert table["path"].tolist() == [f"{number}.jpg" for number in numbers]
    exact = {"csv": [float(f"{number / 7:.4g}") for number in numbers], "parquet": np.float32(numbers) / np.float32(7)}
    assert table["p_a"].tolist() == pytest.approx(list(exact[ending]), abs=1e-7 if ending == "parquet" else 0)
    assert list(tmp_path.iterdir()) == [output]


@ENDINGS
@pytest.mark.parametrize("chunks", [0, 1, 3, 5])
def test_a_continued_table_is_equal_to_the_last_byte(tmp_path, ending, chunks):
    everything = write(tmp_path / f"whole.{ending}")
    output = tmp_path / f"out.{ending}"
    with pytest.raises(Stopped):
        write(output, make=stopped_after(chunks))
    for name, content in (("0.rows", b"half of a row"), ("0.jsonl", b'{"number": 7')):
        with (part_of(output) / name).open("ab") as file:
            file.write(content)  # the process ended while it wrote
    assert not output.exists()
    assert write(output) == everything  # those that were left out before, too
    assert output.read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()


@ENDINGS
@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1), (1, 3)])
def test_any_number_of_processes_write_and_continue_the_table_of_one(tmp_path, ending, before, after):
    write(tmp_path / f"whole.{ending}")
    output = tmp_path / f"out.{ending}"
    with pytest.raises(Stopped):
        write_together(output, [PATHS] * before, stopped_after(1))
    write_together(output, [PATHS] * after)
    assert output.read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"out.{ending}", f"whole.{ending}"]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (PATHS[:4], "no process was given images 5 to 8 of the list"),
        ([*PATHS[:4], "9.jpg", *PATHS[5:]], "images 5 to 8 of the list are not those of"),
    ],
)
def test_processes_with_different_lists_are_refused(tmp_path, other, said):
    with pytest.raises(DataError, match=said):
        write_together(tmp_path / "out.csv", [PATHS, other])


def test_a_process_that_failed_ends_the_main_one_with_its_reason(tmp_path):
    shard = Shard(tmp_path / "out.csv", "task", Place(rank=0, count=2), lambda _: None)
    Shard(tmp_path / "out.csv", "task", Place(rank=1, count=2), lambda _: None).fail("the disk is full")
    with pytest.raises(RunFolderError, match="process 1 failed: the disk is full"):
        shard.finish()


HOLDER = """
import sys
from pathlib import Path
from finetune.predict.shards import Place, Shard
shard = Shard(Path(sys.argv[1]), "task", Place(rank=int(sys.argv[2]), count=2), lambda _: None)
print("at work", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_table_that_another_process_writes_is_refused_until_that_process_is_dead(tmp_path, rank):
    output = tmp_path / "out.csv"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(output), str(rank)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "at work\n"
    (part_of(output) / "task").write_text("task")
    with pytest.raises(RunFolderError, match=rf"out.csv.part is being written by process {holder.pid} on \S+; wait"):
        write(output)
    holder.kill()
    holder.wait()
    write(output)
    assert len(read(output)) == 18


def test_a_continued_table_computes_no_chunk_twice(tmp_path):
    seen = []
    with pytest.raises(Stopped):
        write(tmp_path / "out.csv", make=stopped_after(2))

    def watched(chunks):
        for chunk in chunks:
            seen.extend(chunk)
            yield from make([chunk])

    write(tmp_path / "out.csv", make=watched)
    assert seen == PATHS[8:]


@pytest.mark.parametrize("paths", [["x.jpg", *PATHS[1:]], PATHS[:3]])
def test_other_images_do_not_continue_a_table(tmp_path, paths):
    with pytest.raises(Stopped):
        write(tmp_path / "out.csv", make=stopped_after(2))
    with pytest.raises(DataError, match="images 1 to 4 of the list are not those of"):
        write(tmp_path / "out.csv", paths=paths)


def test_another_model_does_not_continue_a_table(tmp_path):
    with pytest.raises(Stopped):
        write(tmp_path / "out.csv", make=stopped_after(2))
    with pytest.raises(RunFolderError, match="rows of another model or of other options"):
        write(tmp_path / "out.csv", task="other")


def test_missing_rows_and_damaged_indexes_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(Stopped):
        write(tmp_path / "out.csv", make=stopped_after(2))
    part = part_of(tmp_path / "out.csv")
    (part / "0.rows").write_bytes(b"")
    with pytest.raises(RunFolderError, match=r"rows are missing in \S+0\.rows; delete"):
        write(tmp_path / "out.csv")
    (part / "0.jsonl").write_text("[]\n")
    with pytest.raises(RunFolderError, match=r"0\.jsonl, line 1, is damaged"):
        write(tmp_path / "out.csv")
    (tmp_path / "other.csv.part").write_bytes(b"mine")
    with pytest.raises(RunFolderError, match="is not the beginning of a table"):
        write(tmp_path / "other.csv")
    assert (tmp_path / "other.csv.part").read_bytes() == b"mine"


def test_nothing_readable_is_refused_with_the_first_reason_and_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match=r"none of the 2 files can be read as an image; the first is 0\.jpg: bad"):
        write(tmp_path / "out.csv", paths=["0.jpg", "5.jpg"])
    assert list(tmp_path.iterdir()) == []


def test_printed_rows_have_one_header(capsys):
    write_chunks(iter(PATHS), make, PrintedRows(), lambda _: None)
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], len(lines)) == ("path,label,p_a,features", 19)
    assert lines[1].startswith("1.jpg,a,0.1429,")


@ENDINGS
def test_a_name_that_is_not_utf_8_is_escaped(tmp_path, ending):
    name = os.fsdecode(b"\xff.jpg")
    output = tmp_path / f"out.{ending}"
    write(output, paths=[name], make=lambda chunks: (({"path": chunk, "p_a": [0.5]}, []) for chunk in chunks))
    assert read(output)["path"].tolist() == ["\\udcff.jpg"]


def test_the_task_depends_on_the_weights_and_the_options(tmp_path):
    (tmp_path / "members" / "1").mkdir(parents=True)
    weights = tmp_path / "members" / "1" / "model.safetensors"
    weights.write_bytes(b"1")
    first = task_of(tmp_path, "predict", 1)
    (tmp_path / "report.html").write_bytes(b"")
    assert first == task_of(tmp_path, "predict", 1) != task_of(tmp_path, "predict", 2)
    weights.write_bytes(b"2")
    assert first != task_of(tmp_path, "predict", 1)
    assert task_of(weights, 1) != task_of(weights, 2)
    assert task_of("resnet18", 1) != task_of("resnet50", 1)
