"""Compare the pixels of two images: is one the other again, re-encoded, resized, mirrored or cropped?

Both images are reduced to small grey images without their slow changes of brightness. One of them, at several sizes,
is laid over the other at every place, and the normalised cross-correlation of the best place is the score (template
matching; Lewis, "Fast Normalized Cross-Correlation", 1995). At 128 pixels copies score 0.96 and more, and other
photographs of the same object 0.92 at most; only icons and neighbouring slices of an MRI volume come nearer
(experiments/log.md, 2026-11-29).
"""

from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

COARSE, FINE = 32, 128
"""Longer sides of the grey images that are compared first, and then, in pixels."""

SMALLEST_PART = 0.55
"""Smallest side of a cropped copy, as a share of the original's side."""

LEAST_SIDE = 24
"""Shorter side below which an image is not compared, in pixels: with so few details, different images look the same."""

COARSE_SIDES = tuple(range(COARSE, round(SMALLEST_PART * COARSE) - 1, -1))
"""Longer sides of the laid image in the coarse comparison, in pixels."""

COARSE_SCORE = 0.75
"""Score of the coarse comparison below which there is no fine one."""

SAME = 0.94
"""Score from which on two images show the same picture."""

BORDER = 0.06
"""Share of a side that is left out at each border of the laid image: a filter has other values at borders."""

FAINT = 1.0
"""Smallest deviation of the grey values that counts, of 255: what is fainter is noise of the encoding."""

WHOLE = 0.97
"""Relative size from which on a copy is not called cropped."""


@dataclass(frozen=True, slots=True)
class Match:
    """How well one image shows the picture of another."""

    score: float
    """Normalised cross-correlation at the best place, size and side, -1 .. 1."""
    mirrored: bool
    """Whether one of them is mirrored."""
    size: float
    """Side of the part that both show, as a share of the larger image's side, 0 .. 1."""

    @property
    def is_same(self) -> bool:
        """Whether both show the same picture."""
        return self.score >= SAME

    @property
    def change(self) -> str:
        """The change from one to the other, in a word."""
        if self.mirrored:
            return "mirrored" if self.size >= WHOLE else "mirrored and cropped"
        return "re-encoded" if self.size >= WHOLE else "cropped"


class Pattern:
    """The small grey images of one image: to be laid over others, and to have others laid over it."""

    def __init__(self, image: NDArray[np.uint8]) -> None:
        """Reduce an image (height, width, channels)."""
        self._shorter_side = min(image.shape[:2])
        self.grey = _grey(image, FINE)
        self._field = _Field(_resized(self.grey, COARSE))
        self._templates = _Templates(_resized(self.grey, COARSE), COARSE, COARSE_SIDES)

    def compare(self, other: "Pattern") -> Match:
        """Return how well one of the images shows the picture of the other; not at all if one is too small."""
        best = Match(-1.0, False, 1.0)
        if min(self._shorter_side, other._shorter_side) < LEAST_SIDE:
            return best
        for field, templates in ((self._field, other._templates), (other._field, self._templates)):
            for mirrored in (False, True):
                score, side = field.best(templates, mirrored)
                if score > best.score:
                    best = Match(score, mirrored, side / COARSE)
                    inner = other if templates is other._templates else self
        if best.score < COARSE_SCORE:
            return best
        return inner._refine(other if inner is self else self, best)

    def _refine(self, outer: "Pattern", found: Match) -> Match:
        """Return the match of this image within another one, at twice the resolution, near a coarse match."""
        middle, step = round(found.size * FINE), FINE // COARSE
        sides = tuple(side for side in range(middle - step, middle + step + 1) if side <= FINE)
        score, side = _Field(outer.grey).best(_Templates(self.grey, FINE, sides), found.mirrored)
        return Match(score, found.mirrored, side / FINE)


class _Field:
    """An image over which others are laid."""

    def __init__(self, grey: NDArray[np.float32]) -> None:
        """Prepare a grey image (height, width)."""
        values = _details(grey)
        self.shape = values.shape
        self.side = max(values.shape)
        grid = (self.side, self.side)
        self.spectrum = scipy.fft.rfft2(values, grid)
        self.power = scipy.fft.rfft2(values**2, grid)

    def best(self, templates: "_Templates", mirrored: bool) -> tuple[float, int]:
        """Return the highest score of a template at any place, and the template's longer side in pixels."""
        grid = (self.side, self.side)
        spectra = templates.mirrored if mirrored else templates.spectra
        # Cross-correlation by the convolution theorem: sum_x A(x + d) T(x) = F^-1[F(A) conj(F(T))](d).
        products = scipy.fft.irfft2(self.spectrum * spectra, grid)
        energies = scipy.fft.irfft2(self.power * templates.areas, grid)
        best = (-1.0, self.side)
        for number, ((height, width), pixels) in enumerate(zip(templates.shapes, templates.counts, strict=True)):
            rows, columns = self.shape[0] - height + 1, self.shape[1] - width + 1
            if rows < 1 or columns < 1:
                continue
            energy = np.maximum(energies[number, :rows, :columns], pixels * FAINT**2)
            score = float((products[number, :rows, :columns] / np.sqrt(energy)).max())
            if score > best[0]:
                best = (score, templates.sides[number])
        return best


class _Templates:
    """An image in several sizes, to be laid over others."""

    def __init__(self, grey: NDArray[np.float32], grid: int, sides: tuple[int, ...]) -> None:
        """Prepare a grey image (height, width) with the given longer sides, for fields of side `grid`, in pixels."""
        self.sides = sides
        parts, masks = [], []
        self.shapes: list[tuple[int, int]] = []
        for side in sides:
            values = _details(_resized(grey, side))
            height, width = values.shape
            mask = np.zeros((height, width), dtype=np.float32)
            down, right = (max(1, round(BORDER * length)) if length > 8 else 0 for length in (height, width))
            mask[down : height - down, right : width - right] = 1.0
            energy = float((values**2 * mask).sum())
            parts.append(values * mask / np.sqrt(max(energy, float(mask.sum()) * FAINT**2)))
            masks.append(mask)
            self.shapes.append((height, width))
        self.counts = [float(mask.sum()) for mask in masks]
        self.spectra = _spectra(parts, grid)
        self.mirrored = _spectra([part[:, ::-1] for part in parts], grid)
        self.areas = _spectra(masks, grid)


def small_details(image: NDArray[np.uint8], side: int) -> NDArray[np.float32]:
    """Return the details of an image (height, width, channels) in grey, reduced to a square of `side` pixels."""
    grey = _in_grey(image).resize((side, side), Image.Resampling.BOX)
    return _details(np.asarray(grey, dtype=np.float32))


def _spectra(parts: list[NDArray[np.float32]], grid: int) -> NDArray[np.complex64]:
    """Return the conjugate spectra of several images, each padded to a square of `grid` pixels."""
    padded = np.zeros((len(parts), grid, grid), dtype=np.float32)
    for place, part in zip(padded, parts, strict=True):
        place[: part.shape[0], : part.shape[1]] = part
    spectra: NDArray[np.complex64] = np.conj(scipy.fft.rfft2(padded))
    return spectra


def _details(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return an image without noise and without slow changes of brightness (a difference of Gaussians)."""
    side = max(grey.shape)
    fineness, coarseness = (1.0 if side > COARSE else 0.6), max(2.0, side / 20.0)
    details: NDArray[np.float32] = gaussian_filter(grey, fineness) - gaussian_filter(grey, coarseness)
    return details


def _grey(image: NDArray[np.uint8], side: int) -> NDArray[np.float32]:
    """Return an image (height, width, channels) in grey, with the given longer side in pixels."""
    return _resized(np.asarray(_in_grey(image), dtype=np.float32), side)


def _in_grey(image: NDArray[np.uint8]) -> Image.Image:
    """Return an image (height, width, channels) in grey: of other channels than red, green and blue, their mean."""
    if image.shape[-1] == 3:
        return Image.fromarray(image).convert("L")
    return Image.fromarray(image.mean(axis=-1).round().astype(np.uint8))


def _resized(grey: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Return a grey image with the given longer side, in pixels."""
    height, width = grey.shape
    factor = side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    if size == (width, height):
        return grey
    # Pillow's bicubic filter widens where it reduces, so that details do not alias.
    return np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
