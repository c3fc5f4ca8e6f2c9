from dataclasses import replace

import numpy as np
import pytest

from finetune.data import files_below, why_unreadable
from finetune.predict.labelling import label_files
from finetune.predict.model import TrainedModel
from tests.path_table import table_of_paths
from tests.predict.damage import damaged_jpeg, damaged_png
from tests.predict.one_chunk import label_images


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


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (2, 2), (3, 3), (9, 3)])
def test_the_most_probable_classes_come_in_order_and_no_more_than_there_are(
    model, image_folder, tmp_path, asked, given
):
    table, _ = label_images(model, files_below(image_folder(tmp_path)), top_k=asked)
    ranks = [column for column in table if column.startswith("label_")]
    assert ranks == [f"label_{rank}" for rank in range(2, given + 1)]
    shares = [table["probability"], *(table[f"probability_{rank}"] for rank in range(2, given + 1))]
    assert all(list(row) == sorted(row, reverse=True) for row in zip(*shares, strict=True))


def test_unreadable_files_are_left_out_with_a_reason(model, image_folder, tmp_path):
    image_folder(tmp_path)
    (tmp_path / "a" / "broken.png").write_bytes(b"no image")
    table, unreadable = label_images(model, files_below(tmp_path))
    assert len(table["path"]) == 12
    assert [(file.path, file.reason) for file in unreadable] == [
        (str(tmp_path / "a" / "broken.png"), "not an image of a known format")
    ]


@pytest.mark.parametrize("damaged", [damaged_jpeg, damaged_png])
def test_a_file_with_whole_ends_and_damaged_pixels_is_left_out_and_the_others_are_predicted(
    model, image_folder, tmp_path, damaged
):
    paths = files_below(image_folder(tmp_path))
    expected = model.predict_proba(paths)
    bad = tmp_path / "a" / "bad"
    bad.write_bytes(damaged())
    assert why_unreadable([str(bad)]) == [None]
    table, unreadable = label_images(model, [*paths[:3], str(bad), *paths[3:]])
    assert [file.path for file in unreadable] == [str(bad)]
    assert unreadable[0].reason
    assert table["path"] == paths
    np.testing.assert_allclose(np.array([table[f"p_{name}"] for name in "abc"]).T, expected, atol=1e-7)


def test_files_that_cannot_be_read_give_a_table_without_rows(model, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    table, unreadable = label_images(model, [tmp_path / "broken.png", tmp_path / "nowhere.png"])
    assert table["path"] == []
    assert len(unreadable) == 2


def test_a_file_in_a_table_of_several_chunks_has_the_row_that_it_has_in_one(model, image_folder, tmp_path):
    paths = files_below(image_folder(tmp_path))
    whole, _ = label_images(model, paths)
    parts = [table for table, _ in label_files(model, iter([paths[:5], paths[5:6], paths[6:]]))]
    assert [path for part in parts for path in part["path"]] == whole["path"]
    np.testing.assert_allclose([value for part in parts for value in part["p_a"]], whole["p_a"], atol=1e-6)


def test_worker_processes_that_read_ahead_change_no_bit(model, image_folder, tmp_path):
    image_folder(tmp_path)
    (tmp_path / "a" / "broken.png").write_bytes(b"no image")
    chunks = [files_below(tmp_path)[:7], files_below(tmp_path)[7:]]
    found = []
    for workers in (0, 1):
        forward = model.plan.forward.changed(batch_size=3, loader_workers=workers)
        own = replace(model, plan=model.plan.changed(forward=forward))
        found.append(list(label_files(own, iter(chunks))))
    assert found[0] == found[1]
    assert [len(left_out) for _, left_out in found[0]] == [1, 0]


def test_the_rows_of_an_ensemble_with_flips_are_those_of_its_evaluation(averaged, image_folder, tmp_path):
    paths = files_below(image_folder(tmp_path))
    bad = tmp_path / "bad.png"
    bad.write_bytes(damaged_png())
    model = averaged()
    table, left_out = label_images(model, [*paths, str(bad)])
    found = np.array([table[f"p_{name}"] for name in model.class_names]).T
    # With the damaged file at the end, the batches are those of the evaluation, and so is every bit.
    assert (found == model.probabilities(table_of_paths(paths))).all()
    assert [file.path for file in left_out] == [str(bad)]
