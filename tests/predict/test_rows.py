import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from finetune.data import Unreadable
from finetune.errors import DataError, RunFolderError
from finetune.predict import rows as rows_of_tables
from finetune.predict.rows import PrintedRows, RowFile, part_of, task_of, write_chunks

PATHS = [f"{number}.jpg" for number in range(23)]
ENDINGS = pytest.mark.parametrize("ending", ["csv", "parquet"])


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(rows_of_tables, "CHUNK", 4)
    monkeypatch.setattr(rows_of_tables, "GROUPED", 2)


class Stopped(BaseException):
    """The process ends here."""


def make(chunk):
    """Return a row for each file; every fifth one is left out."""
    bad = [path for path in chunk if int(Path(path).stem) % 5 == 0]
    left = [path for path in chunk if path not in bad]
    columns = {"path": left, "label": ["a" for _ in left], "p_a": [int(Path(path).stem) / 7 for path in left]}
    return columns, [Unreadable(path=path, reason="bad") for path in bad]


def stopped_after(count):
    """Return `make` of a process that ends in the chunk number `count`."""
    done = []

    def stopping(chunk):
        if len(done) == count:
            raise Stopped
        done.append(chunk)
        return make(chunk)

    return stopping


def write(output, paths=PATHS, make=make, resume=False, task="task"):
    """Write a table; return the files that were left out."""
    left_out = []
    file = RowFile(output, task, resume)
    write_chunks(iter(paths), make, file, left_out.extend)
    file.finish()
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
    write(tmp_path / f"whole.{ending}")
    output = tmp_path / f"out.{ending}"
    with pytest.raises(Stopped):
        write(output, make=stopped_after(chunks))
    with part_of(output)[0].open("ab") as file:
        file.write(b"half of a row")  # the process ended while it wrote
    assert not output.exists()
    assert len(write(output, resume=True)) == 5 - len(range(0, 4 * chunks, 5))
    assert output.read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()


def test_a_continued_table_computes_no_chunk_twice(tmp_path):
    seen = []
    with pytest.raises(Stopped):
        write(tmp_path / "out.csv", make=stopped_after(2))
    write(tmp_path / "out.csv", make=lambda chunk: (seen.extend(chunk), make(chunk))[1], resume=True)
    assert seen == PATHS[8:]


def test_a_table_of_which_nothing_is_written_is_begun_by_resume(tmp_path):
    write(tmp_path / "out.csv", resume=True)
    assert len(read(tmp_path / "out.csv")) == 18


@pytest.mark.parametrize("paths", [["x.jpg", *PATHS[1:]], PATHS[:3]])
def test_other_images_do_not_continue_a_table(tmp_path, paths):
    with pytest.raises(Stopped):
        write(tmp_path / "out.csv", make=stopped_after(2))
    with pytest.raises(DataError, match="the first 8 images are not those of"):
        write(tmp_path / "out.csv", paths=paths, resume=True)


def test_another_model_does_not_continue_a_table(tmp_path):
    with pytest.raises(Stopped):
        write(tmp_path / "out.csv", make=stopped_after(2))
    with pytest.raises(RunFolderError, match="rows of another model or of other options"):
        write(tmp_path / "out.csv", task="other", resume=True)


def test_missing_rows_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(Stopped):
        write(tmp_path / "out.csv", make=stopped_after(2))
    part, state = part_of(tmp_path / "out.csv")
    part.write_bytes(b"")
    with pytest.raises(RunFolderError, match="rows are missing"):
        write(tmp_path / "out.csv", resume=True)
    state.unlink()
    part.write_bytes(b"mine")
    with pytest.raises(RunFolderError, match="is not the beginning of a prediction"):
        write(tmp_path / "out.csv", resume=True)
    assert part.read_bytes() == b"mine"


def test_nothing_readable_is_refused_with_the_first_reason():
    with pytest.raises(DataError, match=r"none of the 2 files can be read as an image; the first is 0\.jpg: bad"):
        write_chunks(iter(["0.jpg", "5.jpg"]), make, PrintedRows(), lambda _: None)


def test_printed_rows_have_one_header(capsys):
    write_chunks(iter(PATHS), make, PrintedRows(), lambda _: None)
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], len(lines)) == ("path,label,p_a", 19)
    assert lines[1] == "1.jpg,a,0.1429"


@ENDINGS
def test_a_name_that_is_not_utf_8_is_escaped(tmp_path, ending):
    name = os.fsdecode(b"\xff.jpg")
    output = tmp_path / f"out.{ending}"
    write(output, paths=[name], make=lambda chunk: ({"path": chunk, "p_a": [0.5]}, []))
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
