"""Define what an audit finds, and write it as tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from finetune.errors import DataError
from finetune.reading import AS_STORED, Reading
from finetune.value import FrozenModel

Kind = Literal["two labels", "copy", "near copy", "label", "unreadable", "unlabelled", "image", "class", "groups"]
"""Kind of a finding."""

KINDS: dict[Kind, str] = {
    "two labels": "pictures under two labels, of which at most one is right",
    "copy": "files with the same content as another one",
    "near copy": "re-encoded, resized, mirrored or cropped copies of another image",
    "label": "images whose label is probably wrong",
    "unreadable": "files that cannot be read as images",
    "unlabelled": "images without a label",
    "image": "blank, dark, tiny or unusually encoded images",
    "class": "classes and folders that look wrong",
    "groups": "groups of images that resemble each other",
}
"""Each kind in words, in the order in which they are printed."""


class AuditFinding(FrozenModel):
    """One finding: a row of audit.csv."""

    kind: Kind
    """Kind of the finding."""
    split: str = ""
    """Split of the image; empty: the finding is about no single image."""
    path: str = ""
    """Path of the image, or `image N` where it has none."""
    label: str = ""
    """Label of the image."""
    other_split: str = ""
    """Split of the other image."""
    other_path: str = ""
    """Image that this one is a copy of."""
    suggested_label: str = ""
    """Label of the other image, or the label that the probe suggests."""
    score: float | None = None
    """Correlation of the pixels of a copy; the probability of the given label; None for other kinds."""
    about: str = ""
    """The finding in words."""

    @property
    def crosses_splits(self) -> bool:
        """Whether both images are in different splits."""
        return bool(self.other_split) and self.split != self.other_split


class Audit(FrozenModel):
    """The findings of an audit, and what copies add to the test accuracy."""

    data: str
    """The audited data, as given."""
    num_images: int
    """Number of readable, labelled images."""
    num_classes: int
    """Number of classes."""
    findings: tuple[AuditFinding, ...]
    """All findings, by kind in the order of `KINDS`, the surest first."""
    test_accuracy: float | None = None
    """Accuracy of a linear probe on the test images, 0 .. 1; None: no test image has a copy in the training split."""
    test_accuracy_without_copies: float | None = None
    """The same without the training images that are copies of test images."""
    clean_rows: tuple[tuple[str, ...], ...] = ()
    """Path, label, split and, if there are groups, group of each image to keep: each picture once, on one side."""
    notes: tuple[str, ...] = ()
    """Sentences about how the data was read, and what was not checked."""
    reading: Reading = AS_STORED
    """How the values of the images become 8-bit channels."""

    def of_kind(self, kind: Kind) -> tuple[AuditFinding, ...]:
        """Return the findings of one kind."""
        return tuple(finding for finding in self.findings if finding.kind == kind)

    def save_findings(self, path: Path) -> None:
        """Write the findings as a CSV table, one row for each."""
        columns = list(AuditFinding.model_fields)
        pd.DataFrame([finding.model_dump() for finding in self.findings], columns=columns).to_csv(path, index=False)

    def save_clean(self, path: Path) -> None:
        """Write a CSV table of the images to keep, which `--data` accepts. No image file is changed.

        Raises:
            DataError: an image is not a file.
        """
        missing = [row[0] for row in self.clean_rows if not Path(row[0]).is_file()]
        if missing:
            raise DataError(
                f"{missing[0]} is not a file, so that no table can name it; a clean table is for images in files"
            )
        columns = (
            ["path", "label", "split", "group"][: len(self.clean_rows[0])] if self.clean_rows else ["path", "label"]
        )
        pd.DataFrame(self.clean_rows, columns=columns).to_csv(path, index=False)


def sort_findings(findings: Sequence[AuditFinding]) -> tuple[AuditFinding, ...]:
    """Return findings by kind; copies across splits before others, then labels with the lowest probability first."""
    order = {kind: number for number, kind in enumerate(KINDS)}

    def key(finding: AuditFinding) -> tuple[int, bool, float]:
        score = finding.score or 0.0
        return order[finding.kind], not finding.crosses_splits, score if finding.kind == "label" else -score

    return tuple(sorted(findings, key=key))
