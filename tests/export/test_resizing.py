import numpy as np
import pytest
import torch

from finetune.data.augmentation import plain_view
from finetune.decide.preprocessing import Preprocessing
from finetune.export.resizing import ResizedSquare, cubic, linear
from tests.export.pictures import SHAPES, smooth_image


def preprocessing(size=32, crop_fraction=0.875, interpolation="bicubic"):
    return Preprocessing(
        image_size=size, crop_fraction=crop_fraction, interpolation=interpolation, mean=(0, 0, 0), std=(1, 1, 1)
    )


def assert_near(found, expected):
    """Both round to whole grey levels twice, so that few pixels differ, by one level or two."""
    gaps = np.abs(found.astype(int) - expected.astype(int))
    assert gaps.max() <= 2
    assert gaps.mean() < 0.15


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("size", "fraction"), [(32, 1.0), (32, 0.875), (45, 0.9)])
def test_the_square_is_that_of_a_prediction(interpolation, shape, size, fraction):
    own = preprocessing(size, fraction, interpolation)
    image = smooth_image(*shape)
    found = ResizedSquare(own)(torch.from_numpy(image)[None])[0]
    assert_near(found.numpy(), plain_view(image, own).numpy())


def test_one_trace_resizes_images_of_every_shape():
    own = preprocessing()
    traced = torch.export.export(
        ResizedSquare(own),
        (torch.zeros(2, 60, 80, 3, dtype=torch.uint8),),
        dynamic_shapes={"images": dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)},
    ).module()
    for shape in SHAPES:
        image = smooth_image(*shape)
        assert_near(traced(torch.from_numpy(image)[None])[0].numpy(), plain_view(image, own).numpy())


@pytest.mark.parametrize("kernel", [linear, cubic])
def test_a_kernel_interpolates_and_its_weights_add_up_to_one(kernel):
    whole = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    torch.testing.assert_close(kernel(whole), torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(kernel(whole + 0.3).sum(), torch.tensor(1.0))
