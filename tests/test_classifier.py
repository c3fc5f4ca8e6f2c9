import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from finetune import ImageClassifier
from finetune.errors import DataError, RecipeError
from tests.labelled_patches import write_patches
from tests.predict.damage import damaged_png


@pytest.fixture
def settings(weights_file):
    return {"weights": str(weights_file()), "image_size": 32, "steps": 4, "batch_size": 4}


@pytest.fixture
def images(image_folder, tmp_path):
    paths = sorted(image_folder(tmp_path / "images", {"a": 10, "b": 10}).rglob("*.*"))
    return paths, [path.parent.name for path in paths]


def classifier(settings, **parameters):
    return ImageClassifier(model="test_efficientnet", strategy="linear_probe", settings=settings, **parameters)


def test_a_fitted_classifier_answers_in_the_order_of_its_classes(settings, images):
    paths, labels = images
    fitted = classifier(settings).fit(paths, labels)
    probabilities = fitted.predict_proba(paths)
    assert fitted.classes_.tolist() == ["a", "b"]
    assert probabilities.shape == (20, 2)
    assert fitted.predict(paths).tolist() == [fitted.classes_[best] for best in probabilities.argmax(axis=1)]


def test_the_score_is_the_share_of_right_predictions(settings, images):
    paths, labels = images
    fitted = classifier(settings).fit(paths, labels)
    assert fitted.score(paths, labels) == np.mean(fitted.predict(paths) == np.asarray(labels))


def test_labels_keep_their_type(settings, images):
    paths, labels = images
    numbers = [10 if label == "a" else 9 for label in labels]
    fitted = classifier(settings).fit(paths, numbers)
    assert set(fitted.classes_.tolist()) == {9, 10}
    assert set(fitted.predict(paths).tolist()) <= {9, 10}


def test_classes_are_sorted_as_scikit_learns_scorers_take_them_to_be(settings, images):
    paths, labels = images
    fitted = classifier(settings).fit(paths, [10 if label == "a" else 9 for label in labels])
    assert fitted.classes_.tolist() == [9, 10]
    assert (fitted.predict_proba(paths).argmax(axis=1) == (fitted.predict(paths) == 10)).all()


def test_a_parameter_among_the_settings_is_refused(settings, images):
    with pytest.raises(RecipeError, match="seed is not one of the settings"):
        classifier({**settings, "seed": 3}).fit(*images)


def test_what_was_decided_can_be_looked_at(settings, images):
    fitted = classifier(settings).fit(*images)
    assert fitted.evidence_.num_images == 20
    assert fitted.choice_.strategy == fitted.plan_.strategy == "linear_probe"
    assert fitted.plan_.steps == 4


def test_a_clone_has_the_parameters_and_is_not_fitted(settings, images):
    fitted = classifier(settings, seed=3).fit(*images)
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError, match="call fit with paths and labels first"):
        copy.predict(images[0])


def test_groups_are_never_parted(settings, images):
    paths, labels = images
    groups = [number % 5 for number in range(20)]
    fitted = classifier(settings).fit(paths, labels, groups)
    assert fitted.model_.validation.num_images == 20


def test_an_unknown_setting_is_named(images):
    with pytest.raises(RecipeError, match="unknown key 'stps'; did you mean 'steps'"):
        ImageClassifier(settings={"stps": 3}).fit(*images)


def test_one_class_is_too_few(settings, images):
    with pytest.raises(DataError, match="there is only one class"):
        classifier(settings).fit(images[0], ["a"] * 20)


def test_paths_and_labels_of_different_number_are_refused(settings, images):
    with pytest.raises(DataError, match="20 paths and 19 labels"):
        classifier(settings).fit(images[0], images[1][:-1])


def test_images_that_were_left_out_are_listed_and_warned_of(settings, images, tmp_path):
    paths, labels = images
    bad = tmp_path / "bad.png"
    bad.write_bytes(damaged_png())
    with pytest.warns(UserWarning, match="left out") as warned:
        fitted = classifier(settings).fit([*paths, "nowhere.jpg", "there.jpg", bad], [*labels, "c", "a", "b"])
    assert [file.path for file in fitted.left_out_] == ["nowhere.jpg", "there.jpg", str(bad)]
    assert "no file of class 'c' can be read" in str(warned[0].message)
    assert str(warned[-1].message).startswith("3 files cannot be read and are left out")
    assert fitted.classes_.tolist() == ["a", "b"]


def test_lists_for_some_images_only_are_refused(settings, images):
    paths, labels = images
    with pytest.raises(DataError, match="some images have a list of labels and others have not"):
        classifier(settings).fit(paths, [["a", "b"], *labels[1:]])


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    return write_patches(tmp_path_factory.mktemp("patches"), 30)


def test_lists_of_labels_are_fitted_and_predicted_as_sets(settings, patches):
    with pytest.warns(UserWarning, match="any number of labels"):
        fitted = classifier(settings).fit(patches["path"], patches["labels"].map(list))
    assert fitted.classes_.tolist() == ["blue", "green", "red"]
    found = fitted.predict(patches["path"][:5])
    assert all(isinstance(names, tuple) and {*names} <= {"blue", "green", "red"} for names in found)
    share = np.mean([{*own} == {*names} for own, names in zip(found, patches["labels"][:5], strict=True)])
    assert fitted.score(patches["path"][:5], list(patches["labels"][:5])) == share


def test_missing_names_in_a_list_are_no_labels(settings, patches):
    labels = [[*names, None, float("nan"), ""] for names in patches["labels"]]
    with pytest.warns(UserWarning, match="any number of labels"):
        fitted = classifier(settings).fit(patches["path"], labels)
    assert fitted.classes_.tolist() == ["blue", "green", "red"]


def test_a_matrix_of_labels_is_fitted_and_predicted_as_one(settings, patches):
    matrix = np.array([[int(name in names) for name in ("red", "green", "blue")] for names in patches["labels"]])
    with pytest.warns(UserWarning, match="any number of labels"):
        fitted = classifier(settings).fit(patches["path"], matrix)
    assert fitted.classes_.tolist() == [0, 1, 2]
    found = fitted.predict(patches["path"])
    assert found.shape == matrix.shape
    assert set(np.unique(found)) <= {0, 1}
    assert fitted.score(patches["path"], matrix) == (found == matrix).all(axis=1).mean()


def test_a_column_of_the_matrix_without_an_image_is_refused(settings, patches):
    matrix = np.zeros((len(patches), 3), dtype=int)
    matrix[::2, 0] = matrix[1::2, 2] = 1
    with pytest.raises(DataError, match="no image has the label of column 1 of the matrix"):
        classifier(settings).fit(patches["path"], matrix)


def test_a_single_path_is_not_taken_for_a_list_of_letters(settings, images):
    fitted = classifier(settings).fit(*images)
    with pytest.raises(DataError, match="give a list of paths"):
        fitted.predict(str(images[0][0]))
