"""Check the classes and the layout of the data: names that differ in spelling alone, and classes without images."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from finetune.auditing.findings import AuditFinding
from finetune.auditing.images import AuditedImages
from finetune.data import describe_overlooked
from finetune.data.image_splits import LEAST_TO_TEST
from finetune.data.splitting import LEAST_TO_HOLD_OUT
from finetune.errors import quoted_names


def check_classes(data: str, images: AuditedImages, has_splits: bool) -> Iterator[AuditFinding]:
    """Yield findings about classes and folders.

    Args:
        data: the data, as given.
        images: its images.
        has_splits: whether the data has a test split of its own.
    """
    yield from _rare_classes(images, has_splits)
    for split in dict.fromkeys(images.splits) if has_splits else ():
        present = {images.label(index) for index in images.in_split(split)}
        for name in images.class_names:
            if name not in present:
                yield AuditFinding(
                    kind="class", split=split, label=name, about=f"no image of this class in the {split} split"
                )
    spelled: dict[str, list[str]] = defaultdict(list)
    for name in images.class_names:
        spelled["".join(filter(str.isalnum, name.casefold())) or name].append(name)
    for names in spelled.values():
        if len(names) > 1:
            counts = [int((images.labels == images.class_names.index(name)).sum()) for name in names]
            rare = names[int(np.argmin(counts))]
            about = f"the names {quoted_names(names)} differ in case, spaces or punctuation alone"
            yield AuditFinding(kind="class", label=rare, suggested_label=names[int(np.argmax(counts))], about=about)
    root = Path(data).expanduser()
    if root.is_dir():
        for path, about in describe_overlooked(root):
            yield AuditFinding(
                kind="class", path=str(path.absolute()), label=path.name if path.is_dir() else "", about=about
            )


def _rare_classes(images: AuditedImages, has_splits: bool) -> Iterator[AuditFinding]:
    """Yield the classes that have too few images for a run that is not allowed to train on rare classes."""
    rows = images.in_split("train") if has_splits else np.arange(len(images))
    counts = np.bincount(images.labels[rows], minlength=len(images.class_names))
    least, kind = (LEAST_TO_HOLD_OUT, "training image") if has_splits else (LEAST_TO_TEST, "image")
    for name, count in zip(images.class_names, counts.tolist(), strict=True):
        if 0 < count < least:
            yield AuditFinding(
                kind="class",
                label=name,
                about=f"{count} {kind}{'' if count == 1 else 's'}, but a run needs {least} of each class, unless it is "
                f"given --allow-rare",
            )
