import io

import numpy as np
import pandas as pd
import pytest

from finetune.errors import DataError
from finetune.predict.labelling import label_images, write_columns
from finetune.predict.model import TrainedModel


@pytest.fixture
def model(small_network, small_plan):
    return TrainedModel(network=small_network(), plan=small_plan(), class_names=("a", "b", "c"), temperature=1.0)


def test_a_row_has_the_path_the_label_and_every_probability(model, image_folder, tmp_path):
    path = next(image_folder(tmp_path).rglob("*.jpg"))
    table, unreadable = label_images(model, [path])
    assert unreadable == []
    assert list(table) == ["path", "label", "probability", "p_a", "p_b", "p_c"]
    row = {name: values[0] for name, values in table.items()}
    assert row["path"] == str(path)
    assert row["probability"] == row[f"p_{row['label']}"] == max(row[f"p_{name}"] for name in "abc")


def test_the_probabilities_are_the_models(model, image_folder, tmp_path):
    paths = sorted(image_folder(tmp_path).rglob("*.*"))
    table, _ = label_images(model, paths)
    np.testing.assert_allclose(
        np.array([table[f"p_{name}"] for name in "abc"]).T, model.predict_proba(paths), atol=1e-7
    )


def test_a_folder_stands_for_the_files_in_and_below_it(model, image_folder, tmp_path):
    image_folder(tmp_path)
    table, _ = label_images(model, [tmp_path])
    assert table["path"] == sorted(str(path) for path in tmp_path.rglob("*.*"))


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (2, 2), (3, 3), (9, 3)])
def test_the_most_probable_classes_come_in_order_and_no_more_than_there_are(
    model, image_folder, tmp_path, asked, given
):
    table, _ = label_images(model, [image_folder(tmp_path)], top_k=asked)
    ranks = [column for column in table if column.startswith("label_")]
    assert ranks == [f"label_{rank}" for rank in range(2, given + 1)]
    shares = [table["probability"], *(table[f"probability_{rank}"] for rank in range(2, given + 1))]
    assert all(list(row) == sorted(row, reverse=True) for row in zip(*shares, strict=True))


def test_unreadable_files_are_left_out_with_a_reason(model, image_folder, tmp_path):
    image_folder(tmp_path)
    (tmp_path / "a" / "broken.png").write_bytes(b"no image")
    table, unreadable = label_images(model, [tmp_path])
    assert len(table["path"]) == 12
    assert [(file.path, file.reason) for file in unreadable] == [
        (str(tmp_path / "a" / "broken.png"), "not an image of a known format")
    ]


def test_nothing_readable_is_refused_with_the_first_reason(model, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"none of the 1 files can be read as an image; the first is .*broken\.png"):
        label_images(model, [tmp_path])


def test_a_missing_file_is_named(model, tmp_path):
    with pytest.raises(DataError, match="there is no image or folder"):
        label_images(model, [tmp_path / "nowhere.png"])


def test_a_written_table_reads_back_to_the_same_numbers_of_4_digits(model, image_folder, tmp_path):
    table, _ = label_images(model, [image_folder(tmp_path)])
    file = io.StringIO()
    write_columns(table, file)
    file.seek(0)
    read = pd.read_csv(file).to_dict("list")
    assert list(read) == list(table)
    assert (read["path"], read["label"]) == (table["path"], table["label"])
    assert all(read[f"p_{name}"] == [float(f"{value:.4g}") for value in table[f"p_{name}"]] for name in "abc")
