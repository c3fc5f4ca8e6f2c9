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

    def __init__(self, views: list[Outputs], plain: Outputs) -> None:
        """Hold activations (n_images, ...), for each view."""
        self.views = views
        """(n_images, ...) each."""
        self.plain = plain
        """(n_images, ...), of the images as prediction sees them."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.plain)

    def __getitems__(self, keys: Sequence[Key]) -> list[tuple[Tensor, int]]:
        """Return the activations of (index, pass over the images); passes take turns with the views."""
        made: dict[Key, Tensor] = {}
        for number in sorted({number for _, number in keys}):
            indices = [index for index, other in keys if other == number]
            rows = self.views[number % len(self.views)][indices]
            made |= {(index, number): row for index, row in zip(indices, rows, strict=True)}
        return [(made[key], key[0]) for key in keys]


def keep_activations(
    tail: Tail,
    varied: VariedImages,
    plain: PlainImages,
    num_views: int,
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
        preprocessing: of the network.
        settings: how images are sent forward.
        weights: a digest of the frozen weights.
        progress: told what is going on.
    """

    def collect(images: Images, described: str, view: int | None) -> Outputs:
        key = make_key(tail.boundary, weights, described, view, settings.precision)
        keys: list[Key] | None = None if view is None else [(index, view) for index in range(len(images))]
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
    return KeptActivations(views, last)
