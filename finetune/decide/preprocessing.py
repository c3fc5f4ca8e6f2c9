"""Describe how an image becomes the square that the network sees, and choose the side of that square."""

from finetune.value import FrozenModel

PLAIN_SIZES = (96, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512)
"""Sides of the square to choose from, in pixels."""

STRIDE = 32
"""Pixels of the image per pixel of the last map along a side, in most networks."""


class Preprocessing(FrozenModel):
    """The preprocessing of an image: resize its shorter side, crop the centre, normalise the colours."""

    image_size: int
    """Side of the square, in pixels."""
    crop_fraction: float
    """The square's side over the resized image's shorter side."""
    interpolation: str
    """Method of the resizing, such as `bicubic`."""
    mean: tuple[float, float, float]
    """Mean of each colour channel that is subtracted, 0 .. 1."""
    std: tuple[float, float, float]
    """Std of each colour channel that is divided by, 0 .. 1."""

    @property
    def shorter_side(self) -> int:
        """Shorter side of the resized image, in pixels."""
        return max(self.image_size, int(self.image_size / self.crop_fraction))

    def smaller(self) -> "Preprocessing":
        """Return the same with about three quarters of the side, for steps on smaller images; small squares stay."""
        side = max(STRIDE * round(0.75 * self.image_size / STRIDE), PLAIN_SIZES[0])
        return self.changed(image_size=min(side, self.image_size))


def choose_image_size(native_side: int, network_side: int, has_accelerator: bool) -> tuple[int, str]:
    """Return the side of the square, in pixels, and the reason.

    A side beyond the one that the network was trained at does not help, and enlarging small images to it gains nothing.
    Too small a side starves the network's last stage. Without an accelerator a smaller side is chosen, because
    one size less halves the time.

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
