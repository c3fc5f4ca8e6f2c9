"""Count the images that a run decodes, sends forward and sends backward."""

from finetune.value import FrozenModel


class Work(FrozenModel):
    """Amount of computation in a run, counted in images."""

    forward_images: int = 0
    """Number of images sent forward through the whole network or a part of it."""
    backward_images: int = 0
    """Number of images for which gradients were computed."""
    forward_equivalents: float = 0.0
    """Amount of computation, in forward passes of one image through the whole network."""
    decoded_images: int = 0
    """Number of images decoded from their files."""
    decoded_bytes: int = 0
    """Size of the decoded files, in bytes."""
    cache_hits: int = 0
    """Number of times that an image's pixels, features or activations were read from the cache; each of the three
    counts separately."""

    def __add__(self, other: "Work") -> "Work":
        """Return the sum of two amounts of work."""
        return self._combined(other, 1)

    def __sub__(self, other: "Work") -> "Work":
        """Return the difference of two amounts of work."""
        return self._combined(other, -1)

    def _combined(self, other: "Work", sign: int) -> "Work":
        own, added = self.model_dump(), other.model_dump()
        # One decimal, as forward equivalents are estimates; otherwise sums would show rounding errors.
        return Work(**{name: round(value + sign * added[name], 1) for name, value in own.items()})
