"""Define how an image becomes the square input of the network, and choose the side of that square."""

from collections.abc import Sequence
from typing import Self

from pydantic import Field, model_validator

from finetune.reading import Reading
from finetune.value import FrozenModel

PLAIN_SIZES = (96, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512)
"""Sides of the square input to choose from, in pixels."""

STRIDE = 32
"""Stride of the last feature map in most networks, in pixels of the image."""


class Preprocessing(FrozenModel):
    """Preprocessing of an image: its shorter side is resized, the centre is cropped, and the colours are normalised."""

    image_size: int
    """Side of the square input, in pixels."""
    crop_fraction: float
    """Ratio of the square's side to the shorter side of the resized image."""
    interpolation: str
    """Interpolation of the resizing, such as `bicubic`."""
    mean: tuple[float, ...]
    """Mean that is subtracted from each channel (red, green, blue, or those of `reading`), 0 .. 1."""
    std: tuple[float, ...]
    """Standard deviation by which each channel (red, green, blue, or those of `reading`) is divided, 0 .. 1."""

    reading: Reading = Field(Reading(), repr=False)
    """How the values in an image file become 8-bit channels before they are resized."""

    @model_validator(mode="after")
    def _each_channel_is_normalised(self) -> Self:
        if self.reading.channels == "all":
            raise ValueError("reading.channels: expected a list of channels; all stands for them in a recipe alone")
        if not len(self.mean) == len(self.std) == self.num_channels:
            raise ValueError(
                f"mean and std need one value for each of the {self.num_channels} channels, but have {len(self.mean)} "
                f"and {len(self.std)}"
            )
        return self

    @property
    def num_channels(self) -> int:
        """Number of channels of the network's input."""
        return self.reading.num_channels

    @property
    def shorter_side(self) -> int:
        """Shorter side of the resized image, in pixels."""
        return max(self.image_size, int(self.image_size / self.crop_fraction))

    def smaller(self) -> "Preprocessing":
        """Return the preprocessing for steps on smaller images, with about three quarters of the side; small squares
        keep their side."""
        side = max(STRIDE * round(0.75 * self.image_size / STRIDE), PLAIN_SIZES[0])
        return self.changed(image_size=min(side, self.image_size))


def make_normalisation(
    mean: Sequence[float], std: Sequence[float], num_channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of each channel of an input, from those of a network's pretraining.

    For other than red, green and blue, each channel gets the averages over the three: the adapted first layer has the
    weights of red, green and blue in turn, and which channel gets which of them means nothing.

    >>> make_normalisation((0.4, 0.5, 0.6), (0.2, 0.2, 0.2), 4)
    ((0.5, 0.5, 0.5, 0.5), (0.2, 0.2, 0.2, 0.2))
    """
    if num_channels == len(mean):
        return tuple(mean), tuple(std)
    usual = (round(sum(values) / len(values), 4) for values in (mean, std))
    first, second = ((value,) * num_channels for value in usual)
    return first, second


def choose_image_size(native_side: int, network_side: int, has_accelerator: bool) -> tuple[int, str]:
    """Return the side of the square, in pixels, and the reason.

    A side larger than that of the pretraining does not help, and enlarging small images to it gains nothing. With too
    small a side, the last stage has too few pixels. Without an accelerator a smaller side is chosen, because one size
    less halves the time.

    Args:
        native_side: median of the stored images' shorter sides, in pixels.
        network_side: side of the images that the network was pretrained on, in pixels.
        has_accelerator: whether the network runs on an accelerator.


    >>> choose_image_size(150, 224, has_accelerator=False)[0]
    128
    """
    if network_side <= 160:
        return network_side, f"{network_side} px, the size that the network was trained at"
    smallest = 128 if network_side >= 192 else network_side
    within = [side for side in PLAIN_SIZES if smallest <= side <= network_side]
    if not has_accelerator:
        fit = max((side for side in within if side * 1.15 <= native_side), default=smallest)
        size = min(fit, 160) if fit > smallest else smallest
        if size == smallest and native_side < smallest:
            return size, f"{size} px: the images have {native_side} px, and less would starve the last stage"
        return size, f"{size} px: the images have {native_side} px, and each step up costs time on a CPU"
    size = max((side for side in within if side <= max(native_side * 1.5, smallest)), default=smallest)
    return size, f"{size} px: the images have {native_side} px and the network was trained at {network_side} px"
