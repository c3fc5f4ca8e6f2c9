"""Cache the activations at the frozen boundary, which are computed once for several augmented views of each image."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from finetune.cache import make_key
from finetune.data.augmentation import Key
from finetune.data.batches import Images, PlainImages, VariedImages
from finetune.decide.evidence import ForwardSettings
from finetune.decide.preprocessing import Preprocessing
from finetune.network.forward import forward_batches
from finetune.network.outputs import Outputs, cached_outputs
from finetune.network.tail import Tail
from finetune.processes import own_turns, wait_for_everyone
from finetune.progress import Progress


class Activations:
    """The output of the frozen stages for some images."""

    def __init__(self, outputs: Outputs, indices: NDArray[np.intp]) -> None:
        """Hold a row of `outputs` for each image of `indices`, ascending indices (n,)."""
        self.outputs = outputs
        self._indices = indices

    def of(self, images: Sequence[int] | NDArray[np.intp]) -> Tensor:
        """Return the activations (n, ...) of images by their indices (n,).

        Raises:
            IndexError: an image has no cached activations.
        """
        # The indices are sorted, so a binary search finds the rows. For a missing image it finds another row.
        rows = np.searchsorted(self._indices, images).clip(max=len(self._indices) - 1)
        if not np.array_equal(self._indices[rows], images):
            raise IndexError("some of these images have no cached activations")
        return self.outputs[rows]


class CachedActivations:
    """Activations at the frozen boundary: several augmented views of each training image, and one plain view of each
    evaluated image."""

    def __init__(self, views: list[Activations], plain: Activations, num_small: int = 0) -> None:
        """Hold the activations of each view; the first `num_small` views are those of small images."""
        self.views = views
        """Activations of the training images, one for each view."""
        self.plain = plain
        """Activations of the evaluated images, as prediction sees them."""
        self._by_size = {True: views[:num_small], False: views[num_small:]}

    def __len__(self) -> int:
        """Return the number of training images."""
        return len(self.views[0].outputs)

    def __getitems__(self, keys: Sequence[Key]) -> list[tuple[Tensor, int]]:
        """Return the activations and the image index of each key.

        Pass number p over the images uses view p mod V of the V views of its image size.
        """
        made: dict[Key, Tensor] = {}
        # One read of the cache for each view in the batch, not one for each image.
        for number, is_small in sorted({key[1:] for key in keys}):
            indices = [key.image for key in keys if key[1:] == (number, is_small)]
            views = self._by_size[is_small]
            rows = views[number % len(views)].of(indices)
            made |= {Key(index, number, is_small): row for index, row in zip(indices, rows, strict=True)}
        return [(made[key], key.image) for key in keys]


def cache_activations(
    tail: Tail,
    varied: VariedImages,
    plain: PlainImages,
    trained: NDArray[np.intp],
    evaluated: NDArray[np.intp],
    num_views: int,
    num_small: int,
    preprocessing: Preprocessing,
    settings: ForwardSettings,
    weights: str,
    progress: Progress,
) -> CachedActivations:
    """Send images through the frozen stages, or read their activations from the cache.

    Each process computes some views and reads the others from the cache; it also computes those that are missing there.

    Args:
        tail: the network, cut at the boundary between frozen and trained stages.
        varied: the images as training sees them.
        plain: the images as prediction sees them.
        trained: ascending indices of the training images, which get augmented views.
        evaluated: ascending indices of the images that are evaluated, which get one plain view.
        num_views: number of augmented views of each training image.
        num_small: number of views, counted from the first, that have the smaller image size.
        preprocessing: the preprocessing of the network.
        settings: settings of the forward passes.
        weights: digest of the frozen weights, for the key of the cache.
        progress: called with the work in progress.
    """
    total = num_views * len(trained) + len(evaluated)  # all views are one task

    def collect(
        images: Images, described: str, keys: Sequence[int] | Sequence[Key], indices: NDArray[np.intp], number: int
    ) -> Activations:
        # The key names everything that the activations depend on: boundary, weights, pixels, views and precision.
        outputs = cached_outputs(
            "activations",
            make_key(tail.boundary, weights, described, keys, settings.precision),
            f"{'plain images' if number == num_views else f'view {number + 1}'} through the frozen stages",
            lambda: forward_batches(tail, images, preprocessing, settings, Tail.prefix, keys),
            len(indices),
            lambda _about, done, *_: progress("caching activations", number * len(trained) + done, total),
        )
        return Activations(outputs, indices)

    def collect_view(number: int) -> Activations:
        if number == num_views:  # the plain view
            indices: list[int] = evaluated.tolist()
            return collect(plain, plain.describe(indices), indices, evaluated, number)
        # A view depends on the seed of `varied`, the image and the view's number, and on nothing else of the training.
        keys = [Key(index, number, number < num_small) for index in trained.tolist()]
        return collect(varied, varied.describe(trained.tolist()), keys, trained, number)

    # Views first, the plain images last; processes take turns: of P processes, process p computes p, p + P, p + 2P ...
    own = {number: collect_view(number) for number in own_turns(num_views + 1)}
    # After this point the views of the other processes are in the cache.
    wait_for_everyone()
    *views, last = [own[number] if number in own else collect_view(number) for number in range(num_views + 1)]
    return CachedActivations(views, last, num_small)
