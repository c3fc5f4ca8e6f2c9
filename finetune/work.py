"""Count what a run does in images: decoded, forward, backward."""

from finetune.value import FrozenModel


class Work(FrozenModel):
    """How much was computed; a forward equivalent is one image through the whole network once."""

    forward_images: int = 0
    """Images sent forward, wholly or in part."""
    backward_images: int = 0
    """Images whose gradients were taken."""
    forward_equivalents: float = 0.0
    decoded_images: int = 0
    """Images decoded from their files."""
    decoded_bytes: int = 0
    """Size of these files."""
    cache_hits: int = 0
    """Images whose pixels, features or activations were there from before, each counted apart."""

    def __add__(self, other: "Work") -> "Work":
        """Return the sum."""
        return self._combined(other, 1)

    def __sub__(self, other: "Work") -> "Work":
        """Return the difference."""
        return self._combined(other, -1)

    def _combined(self, other: "Work", sign: int) -> "Work":
        mine, its = self.model_dump(), other.model_dump()
        return Work(**{name: round(value + sign * its[name], 1) for name, value in mine.items()})
