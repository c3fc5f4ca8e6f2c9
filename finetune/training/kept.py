"""Activations at a frozen boundary, computed once for several augmented views of each image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from finetune.batches import Images, Key, PlainImages, VariedImages, make_loader, normaliser
from finetune.evidence import Precision
from finetune.features import Progress, autocast
from finetune.network.tail import Tail
from finetune.preprocessing import Preprocessing


class KeptActivations:
    """What the frozen part makes of every image: some augmented views for training, the plain one for judging."""

    def __init__(self, views: list[Tensor], plain: Tensor) -> None:
        """Hold tensors (n_images, ...), one for each view."""
        self._views = views
        self.plain = plain
        """(n_images, ...), of the images as prediction sees them."""

    @property
    def computed(self) -> int:
        """Images that went through the frozen part."""
        return (len(self._views) + 1) * len(self.plain)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.plain)

    def __getitems__(self, keys: Sequence[Key]) -> list[tuple[Tensor, int]]:
        """Return the activations of (index, pass over the images); passes take turns with the views."""
        return [(self._views[number % len(self._views)][index], index) for index, number in keys]


def keep_activations(
    tail: Tail,
    varied: VariedImages,
    plain: PlainImages,
    num_views: int,
    preprocessing: Preprocessing,
    precision: Precision,
    progress: Progress,
) -> KeptActivations:
    """Send `num_views` views of every image, and the plain one, through the part below the boundary.

    They are kept in bfloat16: two bytes a number, with float32's range.
    """
    device = next(tail.parameters()).device
    normalise = normaliser(preprocessing, device)
    tail.network.eval()
    total = (num_views + 1) * len(plain)
    done = 0

    def collect(dataset: Images, keys: Sequence[Key] | None) -> Tensor:
        nonlocal done
        kept: Tensor | None = None
        position = 0
        for pixels, _ in make_loader(dataset, device, members=keys):
            with torch.inference_mode(), autocast(device, precision):
                activation = tail.prefix(normalise(pixels)).to(torch.bfloat16).cpu()
            if kept is None:
                kept = torch.empty((len(plain), *activation.shape[1:]), dtype=torch.bfloat16)
            kept[position : position + len(activation)] = activation
            position += len(activation)
            done += len(activation)
            progress("sending views through the frozen stages", done, total)
        assert kept is not None
        return kept

    views = [collect(varied, [(index, view) for index in range(len(plain))]) for view in range(num_views)]
    return KeptActivations(views, collect(plain, None))
