import numpy as np
import pytest
import torch

from finetune.data.augmentation import plain_view
from finetune.data.decoding import read_image
from finetune.export.network import SquareProbabilities
from tests.path_table import table_of_paths


@pytest.mark.parametrize("kind", ["one network", "flips", "ensemble"])
def test_the_probabilities_are_those_of_the_model(trained, averaged, image_folder, tmp_path, kind):
    model = averaged() if kind == "ensemble" else trained(flips=kind == "flips")
    paths = sorted(str(path) for path in image_folder(tmp_path, size=(60, 40)).rglob("*.*"))
    squares = SquareProbabilities(model)
    views = [
        torch.stack([plain_view(np.array(read_image(path, own.shorter_side)), own) for path in paths])
        for own in squares.preprocessings
    ]
    with torch.inference_mode():
        found = squares(*views)
    np.testing.assert_allclose(found.numpy(), model.probabilities(table_of_paths(paths)), atol=1e-5)


def test_members_that_resize_in_the_same_way_share_a_square(trained):
    from finetune.predict.model import Ensemble

    members = (trained(), trained("test_efficientnet", mean=(0.1, 0.2, 0.3)))
    model = Ensemble(members=members, plan=members[0].plan, class_names=members[0].class_names, temperature=1.0)
    assert len(SquareProbabilities(model).preprocessings) == 1


def test_the_model_stays_unchanged(trained):
    model = trained()
    model.network.train()
    SquareProbabilities(model)
    assert model.network.training
