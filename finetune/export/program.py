"""Write a model as a program of `torch.export`, which runs in PyTorch without this toolkit and without timm."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.export.network import SquareProbabilities
from finetune.export.resizing import ResizedSquare

EXAMPLE = (2, 120, 150)
"""Number, height and width of the images with which the program is traced: two images, because a dimension of one is
taken as fixed."""


class ImageProbabilities(nn.Module):
    """The probabilities (n, num_classes) of decoded images (n, height, width, channels) uint8 of any size."""

    def __init__(self, squares: SquareProbabilities) -> None:
        """Put resizing and cropping before the networks."""
        super().__init__()
        self._resized = nn.ModuleList(map(ResizedSquare, squares.preprocessings))
        self._squares = squares

    def forward(self, images: Tensor) -> Tensor:
        """Return the probabilities of images of one size."""
        probabilities: Tensor = self._squares(*(resized(images) for resized in self._resized))
        return probabilities


def write_program(squares: SquareProbabilities, metadata: Mapping[str, object], path: Path) -> "ProgramModel":
    """Write the program of a model, from decoded images to probabilities, and return it as it is read from the file.

    Args:
        squares: the networks, from squares to probabilities.
        metadata: values to store in the file, as JSON.
        path: file to write.
    """
    dynamic = dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)
    with torch.no_grad():
        program = torch.export.export(
            ImageProbabilities(squares).eval(),
            (torch.zeros((*EXAMPLE, squares.preprocessings[0].num_channels), dtype=torch.uint8),),
            dynamic_shapes={"images": dynamic},
        )
    stored = {f"{key}.json": json.dumps(value, ensure_ascii=False) for key, value in metadata.items()}
    torch.export.save(program, path, extra_files=stored)
    return ProgramModel(path)


class ProgramModel:
    """A model in a file of `torch.export`."""

    def __init__(self, path: Path) -> None:
        """Read the file."""
        self._module = torch.export.load(path).module()

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the probabilities (num_classes) of an image (height, width, channels)."""
        with torch.inference_mode():
            probabilities: NDArray[np.float64] = self._module(torch.from_numpy(image)[None])[0].double().numpy()
        return probabilities
