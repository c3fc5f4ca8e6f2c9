import re

import pytest
from PIL import Image

from finetune.data import groups_of, label_paths, load_images, paths_of
from finetune.data.decoding import read_exif
from finetune.data.grouping import candidate_rules, group_by_path
from finetune.errors import DataError, RecipeError
from finetune.recipe import Recipe

SPEAKERS = 5


@pytest.fixture
def speakers(tmp_path):
    """A folder of two classes of 20 images each, named after five speakers."""

    def write(form="{label}/speaker{speaker}_{number:02d}.png", splits=("",)):
        for place, split in enumerate(splits):
            for row, label in enumerate(("a", "b")):
                for number in range(20):
                    name = form.format(label=label, speaker=number % SPEAKERS, number=number)
                    file = tmp_path / "images" / split / name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    Image.new("RGB", (16, 16), (number, place, row)).save(file)  # each a picture of its own
        return tmp_path / "images"

    return write


def shared(splits):
    return {*groups_of(splits.train)} & {*groups_of(splits.test)}


def test_a_pattern_keeps_the_images_with_the_same_match_in_one_split(speakers):
    splits = load_images(str(speakers()), groups=r"(speaker\d+)")
    assert {*groups_of(splits.train), *groups_of(splits.test)} == {f"speaker{number}" for number in range(SPEAKERS)}
    assert not shared(splits)
    assert splits.group_rule == r"(speaker\d+)"


def test_a_folder_below_or_above_the_class_is_the_group():
    paths = ["train/a/s1/0.jpg", "train/a/s2/1.jpg", "train/s3/b/2.jpg"]
    assert group_by_path("folder", paths, ["a", "a", "b"]) == ["s1", "s2", "s3"]
    assert group_by_path("folder", ["a/0.jpg", "b/s1/1.jpg"], ["a", "b"]) == [None, "s1"]


def test_folders_below_the_classes_are_never_divided(speakers):
    splits = load_images(str(speakers("{label}/s{speaker}/{number}.png")), groups="folder")
    assert not shared(splits)


@pytest.mark.parametrize("rule", ["auto", "groups.csv"])
def test_a_table_in_the_data_folder_gives_the_groups(speakers, rule):
    root = speakers()
    lines = [f"{file.relative_to(root).as_posix()},{file.name[7]}" for file in root.rglob("*.png")]
    (root / "groups.csv").write_text("\n".join(["path,group", *lines]))
    splits = load_images(str(root), groups=rule)
    assert splits.group_rule == "groups.csv"
    assert not shared(splits)
    assert groups_of(load_images(str(root), groups="none").train) is None


def test_a_table_without_all_images_names_one(speakers):
    root = speakers()
    (root / "groups.csv").write_text("path,group\na/speaker0_00.png,x\n")
    with pytest.raises(DataError, match=r"no group for 39 of 40 images, such as .*png; list every image by its path"):
        load_images(str(root))


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (r"(person\d+)", "finds a group for none of 40 images, and not for a/speaker0_00.png"),
        (r"(speaker[12])", "finds a group for 16 of 40 images"),
        (r"(speaker)", "gives one group to all images"),
        (r"(.+)", "gives every image a group of its own"),
        ("folder", "finds a group for none"),
        ("exif:camera", "finds a group for none"),
        ("persons.csv", "there is no table persons.csv"),
        ("column", "has no group column"),
    ],
)
def test_a_rule_that_gives_no_groups_says_why(speakers, rule, sentence):
    with pytest.raises(DataError, match=re.escape(sentence)):
        load_images(str(speakers()), groups=rule)


@pytest.mark.parametrize("rule", [r"speaker\d+", r"(a)(b)", "("])
def test_a_pattern_has_one_group_in_parentheses(rule):
    with pytest.raises(RecipeError, match="groups: "):
        Recipe(data="images", groups=rule)


def test_given_splits_that_a_pattern_shares_are_counted_and_those_of_a_table_are_refused(speakers):
    root = speakers(splits=("train", "test"))
    assert load_images(str(root), groups=r"(speaker\d+)").num_shared == 40
    lines = [f"{file.relative_to(root).as_posix()},{file.name[7]}" for file in root.rglob("*.png")]
    (root / "groups.csv").write_text("\n".join(["path,group", *lines]))
    with pytest.raises(DataError, match="all images of a group must be in one split"):
        load_images(str(root))


def test_a_rule_replaces_the_group_column_of_a_table(speakers):
    root = speakers()
    files = sorted(root.rglob("*.png"))
    lines = [f"{file.relative_to(root).as_posix()},{file.parent.name},{file.stem}" for file in files]
    (root / "table.csv").write_text("\n".join(["path,label,group", *lines]))
    splits = load_images(str(root / "table.csv"), groups=r"(speaker\d+)")
    assert {*groups_of(splits.train)} < {f"speaker{number}" for number in range(SPEAKERS)}
    assert groups_of(load_images(str(root / "table.csv"), groups="none").train) is None


def test_neighbouring_numbers_are_one_block_in_all_classes_where_they_run_through_them():
    paths = [f"{'ab'[number % 2]}/IMG_{number:04d}.jpg" for number in range(80)]
    blocks = group_by_path(r"blocks:(\d+)[^/]*$", paths, [path[0] for path in paths])
    assert len({*blocks}) == 10
    assert {blocks.index(block) for block in blocks} == {8 * number for number in range(10)}


def test_numbers_that_begin_anew_in_each_class_are_blocks_of_its_own():
    paths = [f"{label}/{number:03d}.jpg" for label in "ab" for number in range(40)]
    blocks = group_by_path(r"blocks:(\d+)[^/]*$", paths, [path[0] for path in paths])
    assert len({*blocks}) == 20
    assert not {*blocks[:40]} & {*blocks[40:]}


def test_numbers_that_repeat_are_no_sequence():
    paths = [f"a/{number % 4:02d}b{number}.jpg" for number in range(40)]
    assert {*group_by_path(r"blocks:(\d+)[^/]*$", paths, ["a"] * 40)} == {None}


def test_the_named_pattern_is_tried_where_parts_are_a_word_and_a_number():
    rules = candidate_rules(["a/speaker1_02.jpg", "b/speaker2_03.jpg"])
    assert r"(speaker\d+)" in rules
    assert [group_by_path(rule, ["x1/a2-b3_c4.jpg"], ["x1"])[0] for rule in rules[2:7]] == ["b3", "c4", "2", "3", "4"]


def test_the_camera_the_day_and_the_place_are_read_from_exif(tmp_path):
    exif = Image.Exif()
    exif[271], exif[272], exif[306] = "Canon", "R5", "2024:05:01 10:00:00"
    exif[0x8825] = {1: "N", 2: (48.0, 8.0, 15.0), 3: "E", 4: (11.0, 34.0, 12.0)}
    file = str(tmp_path / "image.jpg")
    Image.new("RGB", (16, 16)).save(file, exif=exif)
    assert [read_exif(file, kind) for kind in ("camera", "date", "place")] == [
        "Canon R5",
        "2024:05:01",
        "N48.13 E11.57",
    ]


def test_groups_of_paths_in_python_are_given_ones(speakers):
    files = sorted(map(str, speakers().rglob("*.png")))
    splits = label_paths(files, [file[-17] for file in files], [file[-8] for file in files])
    assert splits.group_rule == "column"
    assert len(paths_of(splits.train)) == 40
