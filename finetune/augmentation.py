"""From a decoded image to the square that the network sees: as prediction sees it, or varied by a seed.

Everything works on uint8 tensors: PyTorch resizes them three times as fast as Pillow, to the same values but for
rounding.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandAugment, RandomResizedCrop, TrivialAugmentWide
from torchvision.transforms.v2 import functional

from finetune.errors import RecipeError
from finetune.plan import AugmentationPlan
from finetune.preprocessing import Preprocessing
from finetune.recipe import Mixing

Key = tuple[int, int]
"""Which image, and which of its augmented views."""

ASPECT = (3 / 4, 4 / 3)
"""Least and greatest width over height of a random crop."""

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a pixel's brightness (ITU-R BT.601)."""

CONCENTRATION = {"mixup": 0.2, "cutmix": 1.0}
"""Both parameters of the beta distribution that the share of an image is drawn from: ImageNet's in the two papers."""

POLICIES: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "randaugment": lambda: RandAugment(interpolation=InterpolationMode.BILINEAR),
    "trivialaugment": lambda: TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR),
}
"""Cubuk et al. 2020 and Mueller & Hutter 2021."""


def plain_view(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """Return an image as prediction sees it, (3, size, size) uint8: its shorter side resized, the centre cut out."""
    return _plain(_to_tensor(image), preprocessing)


class Variation:
    """How training images are varied: a function of the image, its key and the seed."""

    def __init__(self, preprocessing: Preprocessing, plan: AugmentationPlan, seed: int) -> None:
        """Vary as planned."""
        self._preprocessing = preprocessing
        self._plan = plan
        self._seed = seed
        self._policy = POLICIES[plan.policy]() if plan.policy != "none" else None

    def __call__(self, images: Sequence[Image.Image], keys: Sequence[Key]) -> list[Tensor]:
        """Return each image varied, (3, size, size) uint8; the global random state is left as it was."""
        state = torch.get_rng_state()
        varied = []
        for image, key in zip(images, keys, strict=True):
            seed = int(np.random.SeedSequence((self._seed, *key)).generate_state(1)[0])
            torch.default_generator.manual_seed(seed)  # torch.manual_seed seeds accelerators, too, and takes 10 x
            varied.append(self._vary(_to_tensor(image)))
        torch.set_rng_state(state)
        return varied

    def _vary(self, image: Tensor) -> Tensor:
        plan, size = self._plan, self._preprocessing.image_size
        if plan.smallest_crop < 1.0:
            box = RandomResizedCrop.get_params(image, [plan.smallest_crop, 1.0], list(ASPECT))
            view: Tensor = functional.resized_crop(
                image, *box, [size, size], _interpolation(self._preprocessing), antialias=True
            )
        else:
            view = _plain(image, self._preprocessing)
        for is_on, axis in ((plan.horizontal_flip, -1), (plan.vertical_flip, -2)):
            if is_on and torch.rand(()) < 0.5:
                view = view.flip(axis)
        if plan.color_jitter > 0:
            view = _jitter(view, plan.color_jitter)
        return view if self._policy is None else self._policy(view)


def mix(inputs: Tensor, mixing: Mixing, seed: Sequence[int]) -> tuple[Tensor, float]:
    """Return a batch of which each image is mixed with the one before it, and the share that is its own.

    Mixup (Zhang et al. 2018) takes a weighted mean of the two, CutMix (Yun et al. 2019) cuts a box out of the other.
    Activations that are kept are mixed where they lie (Verma et al. 2019, manifold mixup).

    Args:
        inputs: (n, channels, height, width) pixels (uint8) or activations; or (n, tokens, width), for mixup.
        mixing: none returns the inputs.
        seed: decides what is drawn.

    Raises:
        RecipeError: a box was to be cut out of tokens, which have no place.
    """
    if mixing == "none" or len(inputs) < 2:
        return inputs, 1.0
    generator = np.random.default_rng(seed)
    share = float(generator.beta(CONCENTRATION[mixing], CONCENTRATION[mixing]))
    others = inputs.roll(1, dims=0)
    if mixing == "mixup":
        mixed = inputs.float().lerp(others.float(), 1.0 - share)
        return (mixed.round() if inputs.dtype == torch.uint8 else mixed).to(inputs.dtype), share
    if inputs.ndim != 4:
        raise RecipeError(
            "cutmix needs images or maps, but this network's activations are tokens; mix by mixup instead"
        )
    height, width = inputs.shape[-2:]
    box = np.sqrt(1.0 - share) * np.array([height, width])
    centre = generator.uniform(size=2) * np.array([height, width])
    top, left = np.maximum(np.round(centre - box / 2), 0).astype(int)
    bottom, right = np.minimum(np.round(centre + box / 2), [height, width]).astype(int)
    mixed = inputs.clone()
    mixed[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return mixed, 1.0 - float((bottom - top) * (right - left)) / (height * width)


def _to_tensor(image: Image.Image) -> Tensor:
    """Return (3, h, w) with the channels of a pixel beside each other in memory, which resizes fastest."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _plain(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    size = preprocessing.image_size
    resized = functional.resize(image, [preprocessing.shorter_side], _interpolation(preprocessing), antialias=True)
    square: Tensor = functional.center_crop(resized, [size, size])
    return square.contiguous()


def _interpolation(preprocessing: Preprocessing) -> InterpolationMode:
    """Return the network's own way of resizing, or bicubic where tensors can not be resized so."""
    return InterpolationMode.BILINEAR if preprocessing.interpolation == "bilinear" else InterpolationMode.BICUBIC


def _jitter(view: Tensor, strength: float) -> Tensor:
    """Return a view with brightness, contrast and saturation each changed by a factor within 1 +- `strength`.

    It is torchvision's ColorJitter in this order, in one step instead of three with rounding between them.
    """
    brightness, contrast, saturation = (1.0 + strength * (2.0 * torch.rand(3) - 1.0)).tolist()
    values = view.float()
    grey = values[0] * GREY[0] + values[1] * GREY[1] + values[2] * GREY[2]
    scale = brightness * contrast
    level = float(grey.mean()) * brightness * (1.0 - contrast)
    changed = values.mul_(saturation * scale).add_(grey.mul_((1.0 - saturation) * scale).add_(level))
    return changed.round_().clamp_(0.0, 255.0).to(torch.uint8)
