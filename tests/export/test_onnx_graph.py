import numpy as np
import pytest

from finetune.data.augmentation import plain_view
from finetune.decide.preprocessing import Preprocessing
from tests.export.pictures import SHAPES, smooth_image

onnxruntime = pytest.importorskip("onnxruntime")
onnx_graph = pytest.importorskip("finetune.export.onnx_graph", exc_type=ImportError)

WAYS = [
    Preprocessing(image_size=size, crop_fraction=fraction, interpolation=kind, mean=(0, 0, 0), std=(1, 1, 1))
    for kind, size, fraction in (("bicubic", 32, 0.875), ("bilinear", 32, 0.875), ("bicubic", 45, 1.0))
]


@pytest.fixture(scope="module")
def squares():
    graph = onnx_graph.square_graph(WAYS)
    return onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_squares_are_those_of_predictions(squares, shape):
    image = smooth_image(*shape)
    for found, own in zip(squares.run(None, {"images": image[None]}), WAYS, strict=True):
        gaps = np.abs(found[0].astype(int) - plain_view(image, own).numpy().astype(int))
        assert gaps.max() <= 2
        assert gaps.mean() < 0.15


def test_images_of_one_shape_are_a_batch(squares):
    images = np.stack([smooth_image(50, 70, seed) for seed in range(3)])
    together = squares.run(None, {"images": images})[0]
    for image, square in zip(images, together, strict=True):
        np.testing.assert_array_equal(square, squares.run(None, {"images": image[None]})[0][0])
