import io
import itertools

import pandas as pd
import pytest
from PIL import Image

from finetune.data import groups_of, labels_of, load_images, load_scored_images, paths_of
from finetune.data.table import load_table
from finetune.errors import DataError
from finetune.recipe import TableColumns

KINDS = ["csv", "tsv", "parquet"]


@pytest.fixture
def write(tmp_path):
    """The factory of a table file of columns; the images that it names need not be there."""

    def write_table(kind="csv", /, **columns):
        path = tmp_path / f"table.{kind}"
        frame = pd.DataFrame(columns)
        if kind == "parquet":
            frame.to_parquet(path)
        else:
            frame.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
        return path

    return write_table


@pytest.fixture
def pictures(image_folder, tmp_path):
    """Relative paths of 12 images of `a` and 12 of `b` below the table's folder, and their classes."""
    image_folder(tmp_path / "images", {"a": 12, "b": 12})
    paths = sorted((tmp_path / "images").rglob("*.*"))
    return [str(path.relative_to(tmp_path)) for path in paths], [path.parent.name for path in paths]


def read(file, /, **columns):
    return load_table(file, TableColumns(**columns))


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_of_each_kind_gives_images_and_labels(write, tmp_path, kind):
    table = read(write(kind, path=["x/1.png", "2.png"], label=["cat", "dog"]))
    assert table.sources == [str(tmp_path / "x/1.png"), str(tmp_path / "2.png")]
    assert table.labels == ["cat", "dog"]
    assert (table.splits, table.groups, table.class_names) == (None, None, None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_of_each_kind_is_loaded_with_its_pixels(write, pictures, kind):
    splits = load_images(str(write(kind, path=pictures[0], label=pictures[1])))
    assert (splits.class_names, len(splits.train), len(splits.test)) == (("a", "b"), 20, 4)
    assert splits.test_was_made


@pytest.mark.parametrize("path", ["path", "image", "file", "file_name", "filename", "image_path", "Path", "FILE_NAME"])
@pytest.mark.parametrize("label", ["label", "class", "target", "labels", "class_name", "category", "Label"])
def test_columns_are_known_under_their_usual_names(write, path, label):
    table = read(write(**{"id": ["7", "8"], label: ["cat", "dog"], path: ["1.png", "2.png"]}))
    assert [source.rpartition("/")[2] for source in table.sources] == ["1.png", "2.png"]
    assert table.labels == ["cat", "dog"]


def test_asked_columns_go_before_usual_ones(write, tmp_path):
    usual = {"path": ["1", "2"], "label": ["x", "y"], "split": ["test", "test"], "group": ["o", "o"]}
    asked = {"where": ["3", "4"], "kind": ["p", "q"], "fold": ["train", "test"], "who": ["m", "n"]}
    table = read(write(**usual, **asked), path="where", label="kind", split="fold", group="who")
    assert table.sources == [str(tmp_path / "3"), str(tmp_path / "4")]
    assert (table.labels, table.splits, table.groups) == (["p", "q"], ["train", "test"], ["m", "n"])


@pytest.mark.parametrize(("missing", "there"), [("label", "path"), ("path", "label")])
def test_a_missing_column_is_refused_with_the_columns_there_are(write, missing, there):
    path = write(**{there: ["1", "2"], "weight": ["x", "y"]})
    with pytest.raises(DataError, match=rf"no {missing} column; .*{there}, weight: .*--set columns\.{missing}=NAME"):
        read(path)


@pytest.mark.parametrize("column", ["path", "label", "split", "group"])
def test_an_asked_column_that_is_missing_is_refused_with_the_nearest_one(write, column):
    path = write(path=["1"], label=["x"], kinds=["train"])
    with pytest.raises(DataError, match=r"no column 'kind'; did you mean 'kinds'.*the columns are path, label, kinds"):
        read(path, **{column: "kind"})


def test_a_split_column_is_read_under_the_usual_names_of_splits(write):
    given = ["train", "Training", "val", "validation", " valid ", "dev", "test", "TESTING"]
    table = read(write(path=[str(number) for number in range(8)], label=["x", "y"] * 4, split=given))
    assert table.splits == ["train"] * 2 + ["validation"] * 4 + ["test"] * 2


def test_a_split_column_parts_the_images(write, pictures):
    given = (["train"] * 7 + ["val"] * 3 + ["test"] * 2) * 2
    splits = load_images(str(write(path=pictures[0], label=pictures[1], split=given)))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (14, 6, 4)
    assert not splits.test_was_made
    assert [path.partition("images/")[2] for path in paths_of(splits.test)] == [
        name.partition("images/")[2] for name, split in zip(pictures[0], given, strict=True) if split == "test"
    ]


def test_a_split_column_in_another_case_is_no_less_a_split_column(write):
    table = read(write(path=["1", "2"], label=["x", "y"], Split=["train", "test"], Group=["m", "n"]))
    assert (table.splits, table.groups) == (["train", "test"], ["m", "n"])


def test_an_unknown_split_name_is_refused_with_the_file_and_the_column(write):
    path = write(path=["1", "2"], label=["x", "y"], split=["train", "holdout"])
    with pytest.raises(
        DataError, match=r"table\.csv, column 'split': 'holdout' is not a split; expected train, validation"
    ):
        read(path)


@pytest.mark.parametrize("seed", range(3))
def test_a_group_is_whole_in_the_made_test_split(write, pictures, seed):
    groups = [str(number // 3) for number in range(24)]
    splits = load_images(str(write(path=pictures[0], label=pictures[1], group=groups)), seed=seed)
    train, test = set(groups_of(splits.train)), set(groups_of(splits.test))
    assert not train & test
    assert train | test == set(groups)


def test_groups_stay_with_their_images(write, pictures):
    groups = [str(number // 3) for number in range(24)]
    splits = load_images(str(write(path=pictures[0], label=pictures[1], group=groups)))
    of_image = {name.partition("images/")[2]: group for name, group in zip(pictures[0], groups, strict=True)}
    for split in (splits.train, splits.test):
        assert [of_image[path.partition("images/")[2]] for path in paths_of(split)] == groups_of(split).tolist()


def test_a_group_that_straddles_given_splits_is_refused(write):
    path = write(path=list("1234"), label=list("xyxy"), split=["train", "train", "test", "test"], group=list("mnno"))
    with pytest.raises(DataError, match="in train and in test; all images of a group must be in one split"):
        read(path)


@pytest.mark.parametrize(
    ("labels", "sets"),
    [
        ([["x"], ["y"]], [("x",), ("y",)]),
        ([["x", "y"], []], [("x", "y"), ()]),
        ([[0, 1], [1, 1]], [("0", "1"), ("1",)]),
    ],
)
def test_lists_are_sets_of_labels(write, labels, sets):
    table = read(write("parquet", path=["1", "2"], label=labels))
    assert table.sets == sets
    assert "each image has any number of labels (column 'label', lists)" in table.notes[0]


@pytest.mark.parametrize(
    ("delimiter", "cells"),
    [
        (";", ["b; a", " a ;a", "", "b"]),
        ("|", ["b|a", "a", " ", "b"]),
        (",", ["b,a", "a", "", "b,"]),
        ("json", ['["b", "a"]', '["a"]', "[]", ' ["b"]']),
    ],
)
def test_a_delimiter_that_was_asked_for_parts_the_labels(write, delimiter, cells):
    path = write(path=list("1234"), label=cells)
    assert read(path, delimiter=delimiter).sets == [("a", "b"), ("a",), (), ("b",)]


def test_columns_of_0_and_1_are_sets_of_labels(write):
    path = write(path=list("123"), cat=["1", "0", "0"], dog=["1", "true", ""], age=["7", "8", "9"])
    table = read(path, labels=["dog", "cat"])
    assert table.sets == [("cat", "dog"), ("dog",), ()]
    assert table.class_names == ["dog", "cat"]


def test_a_column_of_other_values_is_no_label(write):
    path = write(path=list("12"), cat=["1", "0"], age=["7", "8"])
    with pytest.raises(DataError, match="column 'age': '7' is neither 0 nor 1"):
        read(path, labels=["cat", "age"])


def test_a_cell_that_is_no_json_list_is_refused(write):
    path = write(path=list("12"), label=['["a"]', "a"])
    with pytest.raises(DataError, match="holds no JSON list of labels in every cell"):
        read(path, delimiter="json")


@pytest.mark.parametrize("several", ["cat|dog", "cat;dog", "cat, dog", "dog | bird"])
def test_labels_joined_in_one_text_are_refused(write, several):
    with pytest.raises(DataError, match=r"several labels per image \('.*'\); to train on .*columns\.delimiter="):
        read(write(path=["1", "2", "3"], label=["cat", several, "dog"]))


def test_a_class_name_may_hold_a_comma(write):
    names = ["salmon, smoked", "bread; rye", "salmon, smoked"]
    assert read(write(path=["1", "2", "3"], label=names)).labels == names


def test_an_image_with_two_labels_in_two_rows_is_refused(write):
    with pytest.raises(DataError, match=r"1\.png is listed as 'x' and as 'y'; list an image once"):
        read(write(path=["1.png", "2.png", "1.png"], label=["x", "y", "y"]))


@pytest.mark.parametrize("empty", ["", "  "])
def test_images_without_a_label_are_left_out_and_counted(write, pictures, empty):
    labels = [empty if number in {0, 12} else name for number, name in enumerate(pictures[1])]
    splits = load_images(str(write(path=pictures[0], label=labels)))
    assert len(splits.train) + len(splits.test) == 22
    assert splits.class_names == ("a", "b")
    assert [file.reason for file in splits.left_out] == ["it has no label"] * 2
    assert "2 images have no label and are left out; the first is" in splits.notes[0]


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_missing_labels_of_a_parquet_table_are_no_class(write, missing):
    assert read(write("parquet", path=list("1234"), label=["x", missing, "y", missing])).labels == ["x", "", "y", ""]


def test_missing_labels_among_numbers_are_no_class(write):
    table = read(write("parquet", path=list("1234"), label=[1.0, None, 0.0, None]))
    assert table.labels == ["1.0", "", "0.0", ""]


def test_a_table_without_any_label_is_refused(write, pictures):
    with pytest.raises(DataError, match=r"none of the 24 images of .* has a label; fill in the labels"):
        load_images(str(write(path=pictures[0], label=[""] * 24)))


def test_class_names_that_differ_in_unicode_normalisation_are_one_class(write, pictures):
    labels = ["b"] * 12 + ["caf\u00e9"] * 6 + ["cafe\u0301"] * 6
    splits = load_images(str(write(path=pictures[0], label=labels)))
    assert splits.class_names == ("b", "caf\u00e9")
    assert "2 spellings of one class, which differ in Unicode normalisation alone" in splits.notes[0]


def test_a_class_name_with_a_comma_may_begin_with_another_class(write):
    names = ["maillot", "maillot, tank suit", "projectile, missile", "missile"]
    assert read(write(path=list("1234"), label=names)).labels == names


@pytest.mark.parametrize("separator", [",", ";", "\t", ", ", "|"])
@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_table_is_read_with_any_usual_separator(tmp_path, separator, kind):
    rows = [("path", "label"), ("1.png", "cat"), ("2.png", "dog")]
    (tmp_path / f"t.{kind}").write_text("\n".join(map(separator.join, rows)))
    table = read(tmp_path / f"t.{kind}")
    assert (table.sources, table.labels) == ([str(tmp_path / "1.png"), str(tmp_path / "2.png")], ["cat", "dog"])


@pytest.mark.parametrize("marks", [["True", "False"], ["1", "0"], [True, False]])
def test_fastais_mark_makes_the_validation_split(write, marks):
    assert read(write("parquet", path=["1", "2"], label=["x", "y"], is_valid=marks)).splits == ["validation", "train"]


def test_a_mark_that_is_neither_true_nor_false_is_refused(write):
    with pytest.raises(DataError, match="column 'is_valid': 'maybe' is neither True nor False"):
        read(write(path=["1", "2"], label=["x", "y"], is_valid=["maybe", "True"]))


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_a_group_are_each_a_group_of_their_own(write, kind):
    groups = read(write(kind, path=list("1234"), label=list("xyxy"), group=["m", "m", None, None])).groups
    assert len({*groups}) == 3


def test_two_spellings_of_one_path_with_two_labels_are_refused(write):
    with pytest.raises(DataError, match=r"\./1\.png is listed as 'x' and as 'y'"):
        read(write(path=["1.png", "2.png", "./1.png"], label=["x", "y", "y"]))


def test_empty_paths_are_counted(write):
    with pytest.raises(DataError, match="1 rows have no path"):
        read(write(path=["1", ""], label=["x", "y"]))


def test_relative_paths_start_at_the_tables_folder(write, pictures, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = write(path=pictures[0], label=pictures[1])
    monkeypatch.chdir(elsewhere)
    assert load_images(str(path)).unreadable == ()
    monkeypatch.chdir(tmp_path)
    assert load_images("table.csv").unreadable == ()


def test_absolute_paths_stay_as_they_are(write):
    assert read(write(path=["/data/1.png"], label=["x"])).sources == ["/data/1.png"]


@pytest.mark.parametrize("kind", ["csv", "tsv"])
@pytest.mark.parametrize("label", ["01", "NA", "nan", "None", "null", "1.0", "1e5", "True", "ä ö"])
def test_labels_are_kept_as_they_are_written(write, kind, label):
    assert read(write(kind, path=["1", "2"], label=[label, "x"])).labels == [label, "x"]


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_groups_are_kept_as_they_are_written(write, kind):
    assert read(write(kind, path=["1", "2"], label=["x", "y"], group=["01", "1"])).groups == ["01", "1"]


def test_space_around_labels_does_not_make_classes(write, pictures):
    labels = ["a ", *pictures[1][1:]]
    splits = load_images(str(write("parquet", path=pictures[0], label=labels)))
    assert splits.class_names == ("a", "b")
    assert splits.notes == ("2 spellings of one class, which differ in white space alone, are merged as 'a'",)


def test_numbers_of_a_parquet_table_become_class_names(write):
    assert read(write("parquet", path=["1", "2"], label=[3, 10])).labels == ["3", "10"]


def test_a_parquet_table_may_hold_the_images(write):
    rows = []
    for number in range(12):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (number, 0, 0)).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": f"{number}.png"})
    path = write("parquet", image=rows, label=["x", "y"] * 6)
    splits = load_images(str(path))
    assert (len(splits.train), len(splits.test), splits.unreadable) == (10, 2, ())


def test_a_spreadsheets_byte_order_mark_is_no_part_of_a_column_name(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("path,label\n1.png,x\n", "utf-8-sig")
    assert read(path).labels == ["x"]


def test_missing_files_of_a_table_are_listed_as_unreadable(write, pictures, tmp_path):
    path = write(path=["nowhere.png", *pictures[0]], label=["a", *pictures[1]])
    (entry,) = load_images(str(path)).unreadable
    assert entry.path == str(tmp_path / "nowhere.png")
    assert "No such file" in entry.reason


def test_the_test_rows_of_a_table_are_scored(write, pictures):
    splits = itertools.cycle(["train", "test", "train"])
    path = write(path=pictures[0], label=pictures[1], split=[next(splits) for _ in pictures[0]])
    assert labels_of(load_scored_images(str(path), ("b", "a")).test).tolist() == [1] * 4 + [0] * 4


@pytest.mark.parametrize("name", ["table.txt", "table.xlsx", "table", "image.png"])
def test_a_file_of_another_kind_is_refused(tmp_path, name):
    (tmp_path / name).write_text("path,label\n1.png,x\n")
    with pytest.raises(DataError, match="is a file, but not a CSV, TSV or Parquet table; give a folder or a table"):
        load_images(str(tmp_path / name))


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_file_is_refused(tmp_path, kind):
    path = tmp_path / f"table.{kind}"
    path.write_bytes(b"")
    with pytest.raises(DataError, match=rf"table\.{kind} cannot be read as a table"):
        load_images(str(path))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_no_table_is_refused(tmp_path, kind):
    path = tmp_path / f"table.{kind}"
    path.write_bytes(b"\xff\xfe\x00\x81" * 50)
    with pytest.raises(DataError, match=rf"table\.{kind} cannot be read as a table"):
        load_images(str(path))


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_without_rows_is_refused(write, kind):
    with pytest.raises(DataError, match=rf"table\.{kind}"):
        load_images(str(write(kind, path=[], label=[])))
