"""Activations at a frozen boundary, computed once for several augmented views of each image."""

from collections.abc import Sequence

from torch import Tensor

from finetune.augmentation import Key
from finetune.batches import Images, PlainImages, VariedImages
from finetune.cache import make_key
from finetune.evidence import ForwardSettings
from finetune.features import Outputs, Progress, kept_outputs, stream
from finetune.network.tail import Tail
from finetune.preprocessing import Preprocessing
from finetune.processes import own_turns, wait_for_everyone


class KeptActivations:
    """What the frozen part makes of every image: some augmented views for training, the plain one for judging."""

    def __init__(self, views: list[Outputs], plain: Outputs, num_small: int = 0) -> None:
        """Hold activations (n_images, ...), for each view; the first `num_small` are those of small images."""
        self.views = views
        """(n_images, ...) each."""
        self.plain = plain
        """(n_images, ...), of the images as prediction sees them."""
        self._by_size = {True: views[:num_small], False: views[num_small:]}

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.plain)

    def __getitems__(self, keys: Sequence[Key]) -> list[tuple[Tensor, int]]:
        """Return the activations of each key; passes over the images take turns with the views of a size."""
        made: dict[Key, Tensor] = {}
        for number, is_small in sorted({key[1:] for key in keys}):
            indices = [key.image for key in keys if key[1:] == (number, is_small)]
            views = self._by_size[is_small]
            rows = views[number % len(views)][indices]
            made |= {Key(index, number, is_small): row for index, row in zip(indices, rows, strict=True)}
        return [(made[key], key.image) for key in keys]


def keep_activations(
    tail: Tail,
    varied: VariedImages,
    plain: PlainImages,
    num_views: int,
    num_small: int,
    preprocessing: Preprocessing,
    settings: ForwardSettings,
    weights: str,
    progress: Progress,
) -> KeptActivations:
    """Send `num_views` views of every image, and the plain one, through the part below the boundary.

    Views that an earlier training sent through the same weights are read from the disk. Several processes take turns
    with the views, and find those of the others on the disk, too; where they do not, each makes its own.

    Args:
        tail: the network above the boundary, and below.
        varied: the images as training sees them.
        plain: the images as prediction sees them.
        num_views: how many varied views of each.
        num_small: how many of those, from the first, are small.
        preprocessing: of the network.
        settings: how images are sent forward.
        weights: a digest of the frozen weights.
        progress: told what is going on.
    """

    def collect(images: Images, described: str, view: int | None) -> Outputs:
        is_small = view is not None and view < num_small
        key = make_key(tail.boundary, weights, described, view, is_small, settings.precision)
        keys = None if view is None else [Key(index, view, is_small) for index in range(len(images))]
        name = "plain images" if view is None else f"view {view + 1} of {num_views}"
        return kept_outputs(
            "activations",
            key,
            f"{name} through the frozen stages",
            lambda: stream(tail, images, preprocessing, settings, Tail.prefix, keys),
            len(images),
            progress,
        )

    def collect_view(number: int) -> Outputs:
        if number == num_views:
            return collect(plain, plain.describe(), None)
        return collect(varied, varied.describe(), number)

    own = {number: collect_view(number) for number in own_turns(num_views + 1)}
    wait_for_everyone()
    *views, last = [own[number] if number in own else collect_view(number) for number in range(num_views + 1)]
    return KeptActivations(views, last, num_small)
