"""Activations at a frozen boundary, computed once for several augmented views of each image."""

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
    """What the frozen part makes of some images."""

    def __init__(self, outputs: Outputs, members: NDArray[np.intp]) -> None:
        """Hold the rows of the images with the indices `members`, ascending."""
        self.outputs = outputs
        self._members = members

    def of(self, images: Sequence[int] | NDArray[np.intp]) -> Tensor:
        """Return the activations (n, ...) of images.

        Raises:
            IndexError: an image that none were kept of.
        """
        rows = np.searchsorted(self._members, images).clip(max=len(self._members) - 1)
        if not np.array_equal(self._members[rows], images):
            raise IndexError("no activations were kept of some of these images")
        return self.outputs[rows]


class KeptActivations:
    """What the frozen part makes of the images: some augmented views of those that are trained on, and the plain one of
    those that are judged."""

    def __init__(self, views: list[Activations], plain: Activations, num_small: int = 0) -> None:
        """Hold activations for each view; the first `num_small` are those of small images."""
        self.views = views
        self.plain = plain
        """Of the images as prediction sees them."""
        self._by_size = {True: views[:num_small], False: views[num_small:]}

    def __len__(self) -> int:
        """Return the number of images that are trained on."""
        return len(self.views[0].outputs)

    def __getitems__(self, keys: Sequence[Key]) -> list[tuple[Tensor, int]]:
        """Return the activations of each key; passes over the images take turns with the views of a size."""
        made: dict[Key, Tensor] = {}
        for number, is_small in sorted({key[1:] for key in keys}):
            indices = [key.image for key in keys if key[1:] == (number, is_small)]
            views = self._by_size[is_small]
            rows = views[number % len(views)].of(indices)
            made |= {Key(index, number, is_small): row for index, row in zip(indices, rows, strict=True)}
        return [(made[key], key.image) for key in keys]


def keep_activations(
    tail: Tail,
    varied: VariedImages,
    plain: PlainImages,
    trained: NDArray[np.intp],
    judged: NDArray[np.intp],
    num_views: int,
    num_small: int,
    preprocessing: Preprocessing,
    settings: ForwardSettings,
    weights: str,
    progress: Progress,
) -> KeptActivations:
    """Send images through the part below the boundary.

    Views that an earlier training sent through the same weights are read from the disk. Several processes take turns
    with the views, and find those of the others on the disk, too; where they do not, each makes its own.

    Args:
        tail: the network above the boundary, and below.
        varied: the images as training sees them.
        plain: the images as prediction sees them.
        trained: ascending indices of the images of which varied views are kept.
        judged: of those of which the plain one is kept.
        num_views: how many varied views of each.
        num_small: how many of those, from the first, are small.
        preprocessing: of the network.
        settings: how images are sent forward.
        weights: a digest of the frozen weights.
        progress: told what is going on.
    """

    def collect(
        images: Images, described: str, keys: Sequence[int] | Sequence[Key], members: NDArray[np.intp], name: str
    ) -> Activations:
        outputs = cached_outputs(
            "activations",
            make_key(tail.boundary, weights, described, keys, settings.precision),
            f"{name} through the frozen stages",
            lambda: forward_batches(tail, images, preprocessing, settings, Tail.prefix, keys),
            len(members),
            progress,
        )
        return Activations(outputs, members)

    def collect_view(number: int) -> Activations:
        if number == num_views:
            members: list[int] = judged.tolist()
            return collect(plain, plain.describe(members), members, judged, "plain images")
        keys = [Key(index, number, number < num_small) for index in trained.tolist()]
        described = varied.describe(trained.tolist())
        return collect(varied, described, keys, trained, f"view {number + 1} of {num_views}")

    own = {number: collect_view(number) for number in own_turns(num_views + 1)}
    wait_for_everyone()
    *views, last = [own[number] if number in own else collect_view(number) for number in range(num_views + 1)]
    return KeptActivations(views, last, num_small)
