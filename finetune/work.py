"""Count the images that a run decodes, sends forward and sends backward."""

from finetune.value import FrozenModel


class Work(FrozenModel):
    """Amount of computation of a run, in images."""

    forward_images: int = 0
    """Images sent forward through the whole network or a part of it."""
    backward_images: int = 0
    """Images for which gradients were computed."""
    forward_equivalents: float = 0.0
    """Computation in units of one forward pass of one image through the whole network."""
    decoded_images: int = 0
    """Images decoded from their files."""
    decoded_bytes: int = 0
    """Size of the decoded files, in bytes."""
    cache_hits: int = 0
    """Images whose pixels, features or activations were read from the cache; each of the three counts separately."""

    def __add__(self, other: "Work") -> "Work":
        """Return the sum."""
        return self._combined(other, 1)

    def __sub__(self, other: "Work") -> "Work":
        """Return the difference."""
        return self._combined(other, -1)

    def _combined(self, other: "Work", sign: int) -> "Work":
        own, added = self.model_dump(), other.model_dump()
        # One decimal, as forward equivalents are estimates; otherwise sums would show rounding errors.
        return Work(**{name: round(value + sign * added[name], 1) for name, value in own.items()})
