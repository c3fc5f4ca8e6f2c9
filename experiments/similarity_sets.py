"""Measure the parts of the domain similarity on labelled image sets, and on random reductions of them."""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from finetune.measure.domain import DomainProbe, Moments
from finetune.network.weights import create_pretrained

DOMAINS = {
    "flowers12": "near",
    "scene15": "near",
    "clothing10": "near",
    "cifar10": "near",
    "pacs_cartoon7": "medium",
    "signdigits10": "medium",
    "magtile5": "medium",
    "ucmerced21": "far",
    "brainmri3": "far",
    "fashion10": "far",
    "wbc4": "far",
}
"""Distance of each set from ImageNet, by the name of the set; assigned by hand."""

SIZE = 128
"""Side of the square images, in pixels."""

FOLDS = 10
"""Number of folds of each class; reductions are made of whole folds."""

DRAWS = 6
"""Number of random reductions of each kind."""

Parts = Mapping[str, float]
"""Values of the parts of the similarity, by name."""

Labelled = tuple[Image.Image, int]
"""An image and its label."""


@dataclass(frozen=True)
class MeasuredSet:
    """The parts of the similarity, measured on one set and on random reductions of it."""

    full: Parts
    """Parts measured on all images."""
    half: Sequence[Parts]
    """Parts measured on random halves of the images."""
    imbalanced: Sequence[Parts]
    """Parts measured with half of the classes reduced to 20 % of their images."""
    narrow: Sequence[Parts]
    """Parts measured on two or three of the classes."""


Table = dict[str, MeasuredSet]
"""Measurements by the name of the set."""


def balanced_subset(folder: Path, limit: int, seed: int) -> list[tuple[Path, int]]:
    """Return paths and labels of at most `limit` images of a folder of class folders, as balanced as possible."""
    generator = random.Random(seed)
    queues = [sorted(path for path in child.iterdir()) for child in sorted(folder.iterdir()) if child.is_dir()]
    for queue in queues:
        generator.shuffle(queue)
    rounds = range(max(map(len, queues)))
    return [(queue[turn], label) for turn in rounds for label, queue in enumerate(queues) if turn < len(queue)][:limit]


def crop_centre(image: Image.Image) -> Image.Image:
    """Return the central square of an image, after its shorter side is resized to `SIZE` (also enlarged)."""
    image = image.convert("RGB")
    scale = SIZE / min(image.size)
    width, height = (max(SIZE, round(side * scale)) for side in image.size)
    left, top = (width - SIZE) // 2, (height - SIZE) // 2
    return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + SIZE, top + SIZE))


def read_set(folder: Path, change: Callable[[Image.Image], Image.Image], limit: int, seed: int) -> Iterator[Labelled]:
    """Yield the prepared images of a set's class-balanced subset."""
    for path, label in balanced_subset(folder / "train", limit, seed):
        with Image.open(path) as image:
            yield crop_centre(change(image.convert("RGB"))), label


def digit_images() -> Iterator[Labelled]:
    """Yield scikit-learn's digits of 8 x 8 pixels, a far set."""
    digits = load_digits()
    for values, label in zip(digits.images[:300], digits.target[:300], strict=True):
        yield crop_centre(Image.fromarray((values * 15.9).astype(np.uint8))), int(label)


def photo_images(seed: int) -> Iterator[Labelled]:
    """Yield crops of scikit-learn's two photographs, a near but narrow set."""
    generator = random.Random(seed)
    for label, values in enumerate(load_sample_images().images):
        image = Image.fromarray(values)
        for _ in range(30):
            side = int(min(image.size) * generator.uniform(0.6, 1))
            left, top = generator.randint(0, image.width - side), generator.randint(0, image.height - side)
            yield crop_centre(image.crop((left, top, left + side, top + side))), label


def grey(image: Image.Image) -> Image.Image:
    """Return the image without its colours."""
    return image.convert("L")


def quarter(image: Image.Image) -> Image.Image:
    """Return the image at a quarter of the resolution that the network sees."""
    return crop_centre(image).resize((SIZE // 4, SIZE // 4), Image.Resampling.BICUBIC)


def sanity_sets(data: Path, limit: int, seed: int) -> dict[str, tuple[str, Iterator[Labelled]]]:
    """Return the sets that are checked but not fitted: distance and images, by name."""
    sets: dict[str, tuple[str, Iterator[Labelled]]] = {
        "digits 8x8": ("far", digit_images()),
        "2 photographs": ("near", photo_images(seed)),
    }
    for name in ("flowers12", "clothing10"):
        for change in (grey, quarter):
            sets[f"{name} {change.__name__}"] = ("near", read_set(data / name, change, limit, seed))
    return sets


def load_network(name: str) -> torch.nn.Module:
    """Return the frozen pretrained network with its original head."""
    network, _ = create_pretrained(name, None)
    return network.eval()


def batches(network: torch.nn.Module, labelled: Iterable[Labelled]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches of normalised images (n_images, 3, SIZE, SIZE) and their labels (n_images,), 50 images at most."""
    config: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    mean, deviation = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    listed = list(labelled)
    for start in range(0, len(listed), 50):
        part = listed[start : start + 50]
        values = torch.from_numpy(np.stack([np.asarray(image) for image, _ in part])).permute(0, 3, 1, 2).float() / 255
        yield (values - mean) / deviation, torch.tensor([label for _, label in part])


def measure(network: torch.nn.Module, labelled: Iterable[Labelled], seed: int) -> MeasuredSet:
    """Return the parts of a set and of its reductions, from a single pass over the images.

    Moments are collected for each fold of each class (a cell); those of a reduction are sums over some of the cells.
    """
    probe = DomainProbe(network)
    seen: dict[int, int] = {}
    for images, labels in batches(network, labelled):
        cells = []
        for label in labels.tolist():
            seen[label] = seen.get(label, -1) + 1
            cells.append(label * FOLDS + seen[label] % FOLDS)
        probe.add(images, torch.tensor(cells))
    labels_seen = sorted(seen)
    generator = random.Random(seed)
    everything = range(FOLDS)

    def reduced(folds: Mapping[int, Iterable[int]]) -> Parts:
        chosen = [[probe.groups.get(label * FOLDS + fold) for fold in kept] for label, kept in folds.items()]
        return probe.parts([total for cells in chosen if (total := _sum_moments(cells)) is not None])

    half, imbalanced, narrow = [], [], []
    for _ in range(DRAWS):
        half.append(reduced({label: generator.sample(everything, FOLDS // 2) for label in labels_seen}))
        small = set(generator.sample(labels_seen, len(labels_seen) // 2))
        fifth = FOLDS // 5
        imbalanced.append(
            reduced({label: generator.sample(everything, fifth if label in small else FOLDS) for label in labels_seen})
        )
        few = generator.sample(labels_seen, min(len(labels_seen), generator.choice((2, 3))))
        narrow.append(reduced(dict.fromkeys(few, everything)))
    return MeasuredSet(reduced(dict.fromkeys(labels_seen, everything)), half, imbalanced, narrow)


def _sum_moments(cells: Iterable[Moments | None]) -> Moments | None:
    total: Moments | None = None
    for cell in cells:
        if cell is not None:
            total = cell if total is None else total + cell
    return total


def measure_all(data: Path, names: Sequence[str], cache: Path, limit: int, seed: int) -> dict[str, Table]:
    """Return the measurements of all sets by network; those that the cache file holds are not repeated."""
    stored = json.loads(cache.read_text()) if cache.exists() else {}
    for name in names:
        network = load_network(name)
        table = stored.setdefault(name, {})
        sources = {key: read_set(data / key, lambda image: image, limit, seed) for key in DOMAINS}
        sources |= {key: labelled for key, (_, labelled) in sanity_sets(data, limit, seed).items()}
        for key, labelled in sources.items():
            if key not in table:
                table[key] = asdict(measure(network, labelled, seed))
                cache.write_text(json.dumps(stored))
                print(f"measured {key} with {name}", flush=True)
    return {name: {key: MeasuredSet(**entry) for key, entry in stored[name].items()} for name in names}
