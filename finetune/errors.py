"""Define every error that the toolkit raises on purpose, as one tree.

FinetuneError            the input is wrong: one sentence that says what to do; the command line exits with status 2
├── RecipeError          a recipe, a plan or an option has an impossible value or an unknown key
├── DataError            the images, their labels or their splits cannot be used as they are
├── ModelError           the network is unknown, or its weights cannot be found or do not match it
├── DivergenceError      the loss or a gradient of a training became infinite or NaN
├── TuningError          a hyper-parameter search would be wasted, or does not match the one in the run folder
├── RunFolderError       a run folder is missing, incomplete or already in use
├── ExportError          a model cannot be exported or read, or the exported one does not agree with its run
├── PublishError         a model cannot be published, or the hub refuses it
├── ServeError           a model cannot be served: a library is missing, or the address is not free
└── CacheError           the cache cannot be written to, or one of its settings has an impossible value

Any other exception is a defect of this library.
"""

import difflib
from collections.abc import Iterable, Sequence

from finetune.history import Row


class FinetuneError(Exception):
    """The input is wrong; the sentence says what was given, what was expected and what to do next."""


class RecipeError(FinetuneError):
    """A recipe, a plan or an option has an impossible value or an unknown key."""


class DataError(FinetuneError):
    """The images, their labels or their splits cannot be used as they are."""


class ModelError(FinetuneError):
    """The network is unknown, or its weights cannot be found or do not match it."""


class DivergenceError(FinetuneError):
    """The loss or a gradient of a training became infinite or NaN."""

    def __init__(self, sentence: str, history: Sequence[Row] = ()) -> None:
        """Hold the sentence and the history.

        Args:
            sentence: the message, which names the step and the layer.
            history: rows of the training's history; the last one says where it diverged (`diverged_in`).
        """
        super().__init__(sentence)
        self.history = tuple(history)


class TuningError(FinetuneError):
    """A hyper-parameter search would be wasted, or does not match the one in the run folder."""


class RunFolderError(FinetuneError):
    """A run folder is missing, incomplete or already in use."""


class ExportError(FinetuneError):
    """A model cannot be exported or read, or the exported one does not agree with its run."""


class PublishError(FinetuneError):
    """A model cannot be published, or the hub refuses it."""


class ServeError(FinetuneError):
    """A model cannot be served: a library is missing, or the address is not free."""


class CacheError(FinetuneError):
    """The cache cannot be written to, or one of its settings has an impossible value."""


def nearest_names(name: str, known: Iterable[str], most: int = 3) -> str:
    """Return "; did you mean 'a' or 'b'?" for the known names nearest to `name`, or "" if none is near.

    >>> nearest_names("stratgy", ["strategy", "steps"])
    "; did you mean 'strategy'?"
    """
    near = difflib.get_close_matches(name, list(known), n=most, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(match) for match in near)}?" if near else ""


def missing_libraries(purpose: str, names: Sequence[str]) -> str:
    """Return the sentence that names libraries of an extra that are not installed.

    >>> missing_libraries("an export as ONNX", ["onnx", "onnxscript"])
    'an export as ONNX needs onnx and onnxscript; install the libraries: pip install onnx onnxscript'
    """
    listed = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return f"{purpose} needs {listed}; install the libraries: pip install {' '.join(names)}"


def quoted_names(names: Sequence[str], most: int = 8) -> str:
    """Return the first `most` names in quotes, and the number of the remaining ones.

    >>> quoted_names(["cat", "dog", "owl"], most=2)
    "'cat', 'dog' and 1 more"
    """
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
