"""Pictures with details of their own, which survive a change of the encoding."""

import numpy as np
from PIL import Image


def picture(number, size=(120, 96), colour=None):
    """A picture of patches that is different for every number, (width, height) in pixels."""
    generator = np.random.default_rng([7, number])
    grid = Image.fromarray(generator.integers(0, 256, (9, 11, 3), dtype=np.uint8))
    image = grid.resize(size, Image.Resampling.BICUBIC)
    if colour is None:
        return image
    return Image.blend(image, Image.new("RGB", size, colour), 0.4)


def cropped(image, share=0.8):
    """The part of a picture at the lower right, without a margin."""
    width, height = image.size
    left, top = round(0.9 * (1 - share) * width), round(0.7 * (1 - share) * height)
    return image.crop((left, top, left + round(share * width), top + round(share * height)))
