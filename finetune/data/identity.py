"""Identify the images of a run, so that a run is not continued on other data."""

import hashlib
import os
from collections import Counter

from finetune.data.cleaning import size_of
from finetune.data.decoding import in_threads
from finetune.data.image_splits import ImageSplits, labels_of, paths_of
from finetune.value import FrozenModel


class DataIdentity(FrozenModel):
    """What identifies the images of a run; a file that is replaced by one of the same size is not noticed."""

    digest: str
    """Digest of each image's split, path, size in bytes and class."""
    counts: dict[str, int]
    """Number of images of each class in each split: `train/cat`."""
    all_decoded: bool = False
    """Whether all images were decoded, and those that cannot be were left out."""

    def difference(self, other: "DataIdentity") -> str:
        """Return how other images differ from these, in words; "" if they are the same."""
        if self.digest == other.digest:
            return ""
        names = sorted({*self.counts} | {*other.counts})
        changes = [
            f"{name} had {self.counts.get(name, 0)} images and has {other.counts.get(name, 0)}"
            for name in names
            if self.counts.get(name, 0) != other.counts.get(name, 0)
        ]
        further = f"; and {len(changes) - 5} more differences" if len(changes) > 5 else ""
        return "; ".join(changes[:5]) + further if changes else "files were replaced, renamed or moved"


def identify(splits: ImageSplits) -> DataIdentity:
    """Return what identifies the images of a run. Paths count relative to the folder that holds all of them."""
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    rows: list[tuple[str, str, int, str]] = []
    for split, part in parts.items():
        if part is not None:
            names = [splits.class_names[label] for label in labels_of(part)]
            sizes = in_threads(size_of, part["image"])
            rows += zip([split] * len(names), paths_of(part), sizes, names, strict=True)
    folders = {os.path.dirname(path) for _, path, _, _ in rows}  # noqa: PTH120  (called for each image)
    root = os.path.commonpath(folders) if len({os.path.isabs(folder) for folder in folders}) == 1 else ""  # noqa: PTH117
    texts = sorted(f"{split}\0{path.removeprefix(root)}\0{size}\0{name}\0" for split, path, size, name in rows)
    return DataIdentity(
        digest=hashlib.blake2b("\n".join(texts).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest(),
        counts=dict(sorted(Counter(f"{split}/{name}" for split, _, _, name in rows).items())),
        all_decoded=splits.all_decoded,
    )
