import io
import os
from pathlib import Path

import pandas as pd
import pytest

from finetune.data import check_images, list_images
from finetune.errors import DataError


def found(*given):
    return list(list_images([Path(path) for path in given]))


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Files in a folder and its subfolder, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("new/2.jpg", "new/1.jpg", "new/deep/3.png", "new/notes.txt", "new/.hidden.jpg", "new/out.csv.part"):
        Path(name).parent.mkdir(exist_ok=True, parents=True)
        Path(name).write_bytes(b"")
    return tmp_path


def standard_input(monkeypatch, content):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


@pytest.mark.usefixtures("pictures")
def test_files_folders_and_globs_stand_for_their_files_in_the_order_given():
    assert found("new/deep/3.png", "new") == ["new/deep/3.png", "new/1.jpg", "new/2.jpg", "new/deep/3.png"]
    assert found("new/*") == ["new/1.jpg", "new/2.jpg"]
    assert found("new/**/*.[jp][pn]g") == ["new/1.jpg", "new/2.jpg", "new/deep/3.png"]


@pytest.mark.usefixtures("pictures")
def test_a_file_whose_name_looks_like_a_glob_is_that_file():
    Path("new/[1].jpg").write_bytes(b"")
    assert found("new/[1].jpg") == ["new/[1].jpg"]


def test_standard_input_has_a_path_in_each_line_whatever_its_letters(monkeypatch):
    standard_input(monkeypatch, "a b.jpg\n\nü.jpg\r\n".encode() + b"\xff.jpg")
    assert found("-") == ["a b.jpg", "ü.jpg", os.fsdecode(b"\xff.jpg")]


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_the_paths_of_a_table_are_relative_to_its_folder(tmp_path, ending):
    table = pd.DataFrame({"number": [1, 2], "File": ["1.jpg", "/far/2.jpg"]})
    path = tmp_path / f"table.{ending}"
    if ending == "parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, sep="\t" if ending == "tsv" else ",", index=False)
    assert found(path) == [str(tmp_path / "1.jpg"), "/far/2.jpg"]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_without_a_column_of_paths_is_refused_at_once(tmp_path, ending):
    path = tmp_path / f"table.{ending}"
    table = pd.DataFrame({"kind": ["a"], "colour": ["b"]})
    table.to_parquet(path) if ending == "parquet" else table.to_csv(path, index=False)
    with pytest.raises(DataError, match="has no column of paths; its columns are kind, colour: rename one"):
        list_images([path])


def test_a_damaged_table_is_refused(tmp_path):
    (tmp_path / "table.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match="cannot be read as a table"):
        list_images([tmp_path / "table.parquet"])
    (tmp_path / "table.csv").write_bytes(b"path\n\xff\n")
    with pytest.raises(DataError, match="cannot be read as a table"):
        found(tmp_path / "table.csv")


def test_a_folder_is_read_while_its_files_are_used(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_bytes(b"")
    paths = list_images([tmp_path])
    assert next(paths) == str(tmp_path / "a" / "1.jpg")
    (tmp_path / "b" / "2.jpg").write_bytes(b"")
    assert list(paths) == [str(tmp_path / "b" / name) for name in ("1.jpg", "2.jpg")]


@pytest.mark.usefixtures("pictures")
def test_what_is_not_there_is_named():
    check_images([Path("new"), Path("-"), Path("new/*.jpg")])
    with pytest.raises(DataError, match="there is no image or folder nowhere"):
        check_images([Path("new"), Path("nowhere")])
    with pytest.raises(DataError, match=r"no file matches new/\*.gif"):
        check_images([Path("new/*.gif")])
