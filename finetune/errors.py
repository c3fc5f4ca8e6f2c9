"""What can go wrong, as one tree.

FinetuneError            a mistake of the person: one sentence that teaches; the command line exits with 2
├── RecipeError          a recipe, a plan or an option holds an impossible value or an unknown key
├── DataError            the images, their labels or their splits can not be used as they are
├── TuningError          a search for hyper-parameters would be wasted, or is another one
├── ModelError           an unknown network, or weights that cannot be found or do not match it
├── DivergenceError      a training whose loss or gradients became infinite or not a number
└── RunFolderError       a run folder is missing, incomplete or already taken

Anything else that is raised is a defect of this library.
"""

import difflib
from collections.abc import Iterable, Sequence

from finetune.history import Row


class FinetuneError(Exception):
    """A mistake of the person: what was given, what was expected, what to do next."""


class RecipeError(FinetuneError):
    """A recipe, a plan or an option holds an impossible value or an unknown key."""


class DataError(FinetuneError):
    """The images, their labels or their splits can not be used as they are."""

    def __str__(self) -> str:
        """Return the sentence, without the traceback that torch's loader wraps around what a worker of it raised."""
        return super().__str__().rpartition("DataError: ")[2].strip()


class ModelError(FinetuneError):
    """An unknown network, or weights that are not to be had or do not match."""


class DivergenceError(FinetuneError):
    """A training whose loss or gradients became infinite or not a number."""

    def __init__(self, sentence: str, history: Sequence[Row] = ()) -> None:
        """Hold the sentence and the history.

        Args:
            sentence: names the step and the layer.
            history: rows of the training's history; the last one says where it diverged (`diverged_in`).
        """
        super().__init__(sentence)
        self.history = tuple(history)


class TuningError(FinetuneError):
    """A search for hyper-parameters would be wasted, or is another one."""


class RunFolderError(FinetuneError):
    """A run folder is missing, incomplete or already taken."""


def nearest_names(name: str, known: Iterable[str], most: int = 3) -> str:
    """Return "; did you mean 'a' or 'b'?" for the known names nearest to `name`, or "" if none is near.

    >>> nearest_names("stratgy", ["strategy", "steps"])
    "; did you mean 'strategy'?"
    """
    near = difflib.get_close_matches(name, list(known), n=most, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(match) for match in near)}?" if near else ""
