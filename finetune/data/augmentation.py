"""Turn a decoded image into the square input of the network: plain, as for a prediction, or augmented.

All operations work on uint8 tensors: PyTorch resizes them three times as fast as Pillow, to the same values except for
rounding.
"""

import math
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandAugment, TrivialAugmentWide
from torchvision.transforms.v2 import functional

from finetune.decide.plan import AugmentationPlan
from finetune.decide.preprocessing import Preprocessing
from finetune.errors import RecipeError
from finetune.recipe import Mixing


class Key(NamedTuple):
    """The key of an augmented view of an image."""

    image: int
    """Index of the image."""
    view: int
    """Number of the view of this image."""
    is_small: bool = False
    """Whether the view has the smaller size of progressive resizing (`Preprocessing.smaller`)."""


ASPECT = (3 / 4, 4 / 3)
"""Smallest and largest ratio of width to height of a random crop."""

ATTEMPTS = 10
"""Number of random crops that are tried before the centre of the image is taken."""

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the grey value of a pixel (ITU-R Recommendation BT.601)."""

CONCENTRATION = {"mixup": 0.2, "cutmix": 1.0}
"""Parameter alpha of the distribution Beta(alpha, alpha) of the mixing weight: the values of the two papers for
ImageNet."""

GLOBAL_STATE = threading.Lock()
"""Lock that one thread holds while it draws from PyTorch's global random state."""

POLICIES: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "randaugment": lambda: RandAugment(interpolation=InterpolationMode.BILINEAR),
    "trivialaugment": lambda: TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR),
}
"""Published augmentation policies by name (Cubuk et al. 2020; Mueller & Hutter 2021)."""


def plain_view(image: NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
    """Return an image (h, w, channels) as a prediction uses it: the centre of the resized image, (channels, size, size)
    uint8."""
    return _plain(_to_tensor(image), preprocessing)


class Variation:
    """Augment training images; a view depends only on the image, its key and the seed."""

    def __init__(self, preprocessing: Preprocessing, plan: AugmentationPlan, seed: int) -> None:
        """Prepare the augmentation that `plan` describes, for inputs as in `preprocessing`."""
        self._preprocessing = preprocessing
        self._smaller = preprocessing.smaller()
        self._plan = plan
        self._seed = seed
        self._policy = POLICIES[plan.policy]() if plan.policy != "none" else None

    def __call__(self, images: Sequence[NDArray[np.uint8]], keys: Sequence[Key]) -> list[Tensor]:
        """Return a view (channels, size, size) uint8 of each image (h, w, channels); the global random state
        stays the same."""
        return [self._vary(_to_tensor(image), key) for image, key in zip(images, keys, strict=True)]

    def _vary(self, image: Tensor, key: Key) -> Tensor:
        """Return a view of an image: a random crop, flips, colour jitter and a policy, as planned."""
        plan = self._plan
        preprocessing = self._smaller if key.is_small else self._preprocessing
        size = preprocessing.image_size
        generator = np.random.default_rng((self._seed, key.image, key.view))
        if plan.smallest_crop < 1.0:
            height, width = image.shape[-2:]
            box = _random_box(height, width, plan.smallest_crop, generator)
            view: Tensor = functional.resized_crop(
                image, *box, [size, size], _interpolation(preprocessing), antialias=True
            )
        else:
            view = _plain(image, preprocessing)
        for is_on, axis in ((plan.horizontal_flip, -1), (plan.vertical_flip, -2)):
            if is_on and generator.random() < 0.5:
                view = view.flip(axis)
        if plan.color_jitter > 0:
            view = _jitter(view, plan.color_jitter, generator)
        return view if self._policy is None else self._apply_policy(self._policy, view, generator)

    def _apply_policy(self, policy: Callable[[Tensor], Tensor], view: Tensor, generator: np.random.Generator) -> Tensor:
        """Apply a policy of torchvision, which draws from the global random state, in one thread at a time."""
        with GLOBAL_STATE:
            state = torch.get_rng_state()
            # torch.manual_seed would also seed accelerators, which takes ten times as long.
            torch.default_generator.manual_seed(int(generator.integers(2**32)))
            varied = policy(view)
            torch.set_rng_state(state)
        return varied


def mix(inputs: Tensor, mixing: Mixing, seed: Sequence[int]) -> tuple[Tensor, float]:
    """Return a batch in which each image is mixed with the image before it, and the weight of an image's own label
    (lambda in both papers).

    Mixup (Zhang et al. 2018) takes the weighted mean of two images; CutMix (Yun et al. 2019) replaces a box of one by
    that of the other. Cached activations are mixed at the frozen boundary (manifold mixup, Verma et al. 2019).

    Args:
        inputs: (n, channels, height, width) pixels (uint8) or activations; for mixup also (n, tokens, width).
        mixing: kind of mixing; `none` returns the inputs.
        seed: seed of the draw.

    Raises:
        RecipeError: the inputs are tokens and the mixing is `cutmix`, which needs positions in the image.
    """
    if mixing == "none" or len(inputs) < 2:
        return inputs, 1.0
    generator = np.random.default_rng(seed)
    mixing_share = float(generator.beta(CONCENTRATION[mixing], CONCENTRATION[mixing]))  # lambda of both papers
    others = inputs.roll(1, dims=0)
    if mixing == "mixup":
        # x' = lambda x + (1 - lambda) other
        mixed = inputs.float().lerp(others.float(), 1.0 - mixing_share)
        return (mixed.round() if inputs.dtype == torch.uint8 else mixed).to(inputs.dtype), mixing_share
    if inputs.ndim != 4:
        raise RecipeError(
            "cutmix needs images or maps, but this network's activations are tokens; mix by mixup instead"
        )
    # A box with sqrt(1 - lambda) of both sides has 1 - lambda of the area. The box is clipped at the edges of the
    # image, so lambda is computed again from the clipped box.
    height, width = inputs.shape[-2:]
    box = np.sqrt(1.0 - mixing_share) * np.array([height, width])
    centre = generator.uniform(size=2) * np.array([height, width])
    top, left = np.maximum(np.round(centre - box / 2), 0).astype(int)
    bottom, right = np.minimum(np.round(centre + box / 2), [height, width]).astype(int)
    mixed = inputs.clone()
    mixed[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return mixed, 1.0 - float((bottom - top) * (right - left)) / (height * width)


def _to_tensor(image: NDArray[np.uint8]) -> Tensor:
    """Return an image (h, w, channels) as a view (channels, h, w); the channels of a pixel stay next to each other in
    memory, which is fastest to resize."""
    return torch.from_numpy(image).permute(2, 0, 1)


def _plain(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Resize the shorter side of an image, and return the centre (channels, size, size)."""
    size = preprocessing.image_size
    resized = functional.resize(image, [preprocessing.shorter_side], _interpolation(preprocessing), antialias=True)
    square: Tensor = functional.center_crop(resized, [size, size])
    return square.contiguous()


def _interpolation(preprocessing: Preprocessing) -> InterpolationMode:
    """Return the interpolation of the network's pretraining, or bicubic if tensors do not support it."""
    return InterpolationMode.BILINEAR if preprocessing.interpolation == "bilinear" else InterpolationMode.BICUBIC


def _random_box(height: int, width: int, smallest: float, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a random crop, in pixels.

    Its area is a fraction between `smallest` and 1 of the image's, and its aspect ratio is within `ASPECT`. This is
    torchvision's RandomResizedCrop (Szegedy et al. 2015) on plain numbers, which takes a quarter of the time.
    """
    for _ in range(ATTEMPTS):
        # width x height = area and width / height = ratio; the ratio is uniform in its logarithm.
        area = height * width * generator.uniform(smallest, 1.0)
        ratio = math.exp(generator.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        tall, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < tall <= height and 0 < wide <= width:
            return int(generator.integers(height - tall + 1)), int(generator.integers(width - wide + 1)), tall, wide
    # The largest crop in the centre with an allowed aspect ratio.
    tall, wide = min(height, round(width / ASPECT[0])), min(width, round(height * ASPECT[1]))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def _jitter(view: Tensor, strength: float, generator: np.random.Generator) -> Tensor:
    """Return a view (channels, h, w) uint8 with brightness, contrast and saturation multiplied by factors in 1 +-
    `strength`; without saturation unless the channels are red, green and blue.

    This equals torchvision's ColorJitter in this order, but is computed in one step instead of three steps with
    rounding after each. The grey value of a pixel with other channels is their mean.
    """
    if len(view) != len(GREY):
        brightness, contrast = generator.uniform(1.0 - strength, 1.0 + strength, 2).tolist()
        values = view.float()
        level = float(values.mean()) * brightness * (1.0 - contrast)
        return values.mul_(brightness * contrast).add_(level + 0.5).clamp_(0.0, 255.0).to(torch.int32).to(torch.uint8)
    # With factors b, c, s and the grey value g(x) of a pixel, whose weights add up to 1:
    #   brightness  x1 = b x
    #   contrast    x2 = c x1 + (1 - c) mean(g(x1))
    #   saturation  x3 = s x2 + (1 - s) g(x2)
    # Together: x3 = c b (s x + (1 - s) g(x)) + b (1 - c) mean(g(x)), a matrix product and an added level.
    brightness, contrast, saturation = generator.uniform(1.0 - strength, 1.0 + strength, 3).tolist()
    scale = brightness * contrast
    values = view.reshape(3, -1).float()
    level = float(values.mean(dim=1) @ torch.tensor(GREY)) * brightness * (1.0 - contrast)
    colours = torch.eye(3) * (saturation * scale) + torch.tensor(GREY) * ((1.0 - saturation) * scale)
    changed = torch.addmm(torch.tensor(level + 0.5), colours, values).clamp_(0.0, 255.0)  # + 0.5: truncation rounds
    # Converting by way of int32 takes half as long as converting directly.
    return changed.to(torch.int32).to(torch.uint8).view_as(view)
