"""An audit names each fault once, with what to do, and changes no file."""

import csv
import json
import shutil

import pytest
from PIL import ImageOps

import finetune
from finetune.auditing.classes import check_classes
from finetune.auditing.images import all_images
from finetune.cli import main
from finetune.data import load_images
from tests.auditing.pictures import cropped, picture

COLOURS = {"cat": (220, 60, 40), "dog": (40, 90, 220)}


def make(root, train=12, test=5):
    number = 0
    for split, count in (("train", train), ("test", test)):
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for _ in range(count):
                picture(number, colour=colour).save(root / split / name / f"{number:02d}.png")
                number += 1
    return root


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return make(tmp_path_factory.mktemp("clean") / "images")


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """A folder in which each kind of fault was planted once."""
    root = make(tmp_path_factory.mktemp("faulty") / "images")
    cat = COLOURS["cat"]
    shutil.copy(root / "train" / "cat" / "00.png", root / "test" / "cat" / "copy.png")
    ImageOps.mirror(picture(1, colour=cat)).save(root / "test" / "cat" / "mirrored.jpg", quality=80)
    cropped(picture(2, colour=cat)).save(root / "train" / "cat" / "cropped.jpg", quality=90)
    shutil.copy(root / "train" / "cat" / "03.png", root / "train" / "dog" / "two.png")
    (root / "train" / "dog" / "broken.png").write_bytes(b"no image")
    (root / "train" / "owl").mkdir()
    return root


@pytest.fixture(scope="module")
def found(faulty):
    return finetune.audit(str(faulty))


def named(findings):
    return [
        (finding.path.rpartition("/")[2], finding.other_path.rpartition("/")[2], finding.about) for finding in findings
    ]


def test_each_planted_copy_is_found_with_its_original(found):
    assert named(found.of_kind("copy")) == [("00.png", "copy.png", "the same content")]
    assert sorted(named(found.of_kind("near copy"))) == [
        ("01.png", "mirrored.jpg", "mirrored"),
        ("cropped.jpg", "02.png", "cropped"),
    ]
    assert [finding.crosses_splits for finding in found.of_kind("near copy")] == [True, False]


def test_one_picture_under_two_labels_is_found(found):
    (finding,) = found.of_kind("two labels")
    assert {finding.label, finding.suggested_label} == {"cat", "dog"}


def test_unreadable_files_and_empty_class_folders_are_found(found):
    assert named(found.of_kind("unreadable"))[0][0] == "broken.png"
    assert [(finding.label, finding.about) for finding in found.of_kind("class")] == [
        ("owl", "a class folder without images")
    ]


def test_the_test_accuracy_is_given_with_and_without_copies(found):
    assert 0.5 <= found.test_accuracy_without_copies <= found.test_accuracy <= 1.0


def test_a_clean_set_has_no_findings(clean):
    audit = finetune.audit(str(clean))
    assert audit.findings == ()
    assert audit.test_accuracy is None
    assert len(audit.clean_rows) == audit.num_images == 34


def test_the_command_writes_a_row_for_each_finding_and_a_page_and_exits_2_if_strict(faulty, tmp_path, capsys):
    before, strict = sorted(faulty.rglob("*")), ("--strict", "--json")
    with pytest.raises(SystemExit) as ended:
        main(["audit", str(faulty), "--output", str(tmp_path / "out"), "--clean", str(tmp_path / "kept.csv"), *strict])
    assert ended.value.code == 2
    with (tmp_path / "out" / "audit.csv").open() as file:
        rows = list(csv.DictReader(file))
    said = capsys.readouterr()
    assert sum(json.loads(said.out)["findings"].values()) == len(rows)
    assert f"{len(rows)} findings in {faulty}" in said.err
    assert [row["kind"] for row in rows][:2] == ["two labels", "copy"]
    page = (tmp_path / "out" / "audit.html").read_text("utf-8")
    assert page.count("data:image/jpeg;base64") >= 8
    assert sorted(faulty.rglob("*")) == before
    # The clean table has each picture once, none under two labels, and is read as it is.
    splits = load_images(str(tmp_path / "kept.csv"))
    assert (len(splits.train), len(splits.test)) == (24 - 1 - 2, 12)


def test_names_that_differ_in_case_alone_are_one_class_misspelled(clean, tmp_path):
    rows = [(path, path.parent.name) for path in sorted(clean.rglob("*.png"))]
    rows[:4] = [(path, name.upper()) for path, name in rows[:4]]
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *(f"{path},{name}" for path, name in rows)]))
    (finding,) = check_classes("table.csv", all_images(load_images(str(tmp_path / "table.csv"))), has_splits=False)
    assert finding.label == "CAT"
    assert finding.suggested_label == "cat"
    assert "differ in case, spaces or punctuation alone" in finding.about


@pytest.mark.slow
def test_the_groups_of_the_images_stay_in_the_clean_table(clean, tmp_path):
    rows = [f"{path},{path.parent.name},{number % 6}" for number, path in enumerate(sorted(clean.rglob("*.png")))]
    (tmp_path / "table.csv").write_text("\n".join(["path,label,group", *rows]))
    audited = finetune.audit(str(tmp_path / "table.csv"))
    audited.save_clean(tmp_path / "kept.csv")
    splits = load_images(str(tmp_path / "kept.csv"))
    assert splits.group_rule == "column"
    assert len(splits.train) + len(splits.test) == 34


def test_the_columns_of_a_table_can_be_named(image_folder, tmp_path, capsys):
    root = image_folder(tmp_path / "images", {"a": 6, "b": 6})
    rows = [f"{path},{path.parent.name}" for path in sorted(root.rglob("*.*"))]
    (tmp_path / "table.csv").write_text("\n".join(["file_path,diagnosis", *rows]))
    with pytest.raises(SystemExit) as ended:
        main([
            "audit", str(tmp_path / "table.csv"), "--json",
            "--set", "columns.path=file_path", "--set", "columns.label=diagnosis",
        ])  # fmt: skip
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["images"] == 12


def test_a_class_without_test_images_is_named(image_folder, tmp_path):
    root = image_folder(tmp_path, splits={"train": {"a": 4, "b": 4}, "test": {"a": 2}})
    (finding,) = check_classes(str(root), all_images(load_images(str(root))), has_splits=True)
    assert (finding.split, finding.label, finding.about) == ("test", "b", "no image of this class in the test split")


def test_a_stream_is_refused():
    with pytest.raises(finetune.DataError, match="images of a stream are not compared"):
        finetune.audit("stream:nowhere")


@pytest.mark.parametrize(
    ("splits", "about"),
    [
        (None, "2 images, but a run needs 3 of each class, unless it is given --allow-rare"),
        (
            {"train": {"a": 4, "b": 1, "c": 4}, "test": {"a": 1, "b": 1, "c": 1}},
            "1 training image, but a run needs 2 of each class",
        ),
    ],
)
def test_a_class_with_too_few_images_for_a_run_is_a_finding(image_folder, tmp_path, splits, about):
    root = image_folder(tmp_path, {"a": 5, "b": 2, "c": 5}, splits=splits)
    images = all_images(load_images(str(root), allow_rare=True))
    (finding,) = check_classes(str(root), images, has_splits=splits is not None)
    assert (finding.kind, finding.label) == ("class", "b")
    assert finding.about.startswith(about)
