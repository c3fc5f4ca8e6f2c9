"""Carry out an audit: compute frozen features once, and look for everything that they and the pixels show."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.auditing.classes import check_classes
from finetune.auditing.copies import Pair, clusters, find_near_copies
from finetune.auditing.features import compute_features
from finetune.auditing.findings import Audit, AuditFinding, sort_findings
from finetune.auditing.images import AuditedImages, all_images
from finetune.auditing.label_errors import MISSING, can_check_labels, find_label_errors, held_out_probabilities
from finetune.auditing.oddities import find_oddities
from finetune.data import RANKS, ImageSplits, Pixels, load_with_copies, same_content
from finetune.data.grouping import describe_rule
from finetune.data.splitting import are_in_small_classes
from finetune.measure.shift import find_groups
from finetune.predict.linear_probe import cross_validate, fit_head
from finetune.progress import Progress, no_progress
from finetune.reading import AS_STORED, Reading
from finetune.recipe import TableColumns


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copies:
    """Which images show the same picture."""

    same_file: NDArray[np.intp]
    """First image with the same content, for each image, (n_images,)."""
    same_picture: NDArray[np.intp]
    """First image that shows the same picture, for each image, (n_images,)."""
    kept: NDArray[np.intp]
    """The image that stays, for each image, (n_images,)."""
    pairs: dict[int, list[Pair]]
    """Pairs of images with changed pixels, by each of their images."""


def audit(
    data: str,
    progress: Progress = no_progress,
    reading: Reading = AS_STORED,
    columns: TableColumns | None = None,
) -> Audit:
    """Look for faults in labelled images: copies, wrong labels, odd images, groups and classes; nothing is changed.

    Frozen features of the network that `model: auto` stands for are computed, or read from the cache.

    Args:
        data: labelled images, in any form that `load_images` accepts except a stream.
        progress: called with the work in progress.
        reading: how the values of the images become 8-bit channels: the section `image` of a recipe.
        columns: columns of a table: the section `columns` of a recipe; None: those with the usual names.

    Raises:
        DataError: the data cannot be loaded, or is a stream.
    """
    splits = load_with_copies(data, reading, columns)
    images = all_images(splits)
    features, pixels = compute_features(data, splits, images, progress)
    copies = _find_copies(images, features, pixels, progress)
    findings = [
        *_left_out(splits),
        *check_classes(data, images, not splits.test_was_made),
        *_describe_copies(images, copies),
    ]
    findings += [
        _finding("image", images, index, about=about) for index, about in find_oddities(images.sources, pixels)
    ]
    findings += _check_labels(images, features, copies, progress)
    findings += _look_for_groups(splits, images, features)
    accuracy, without = _inflation(images, features, copies)
    return Audit(
        data=data,
        num_images=len(images),
        num_classes=len(images.class_names),
        findings=sort_findings(findings),
        test_accuracy=accuracy,
        test_accuracy_without_copies=without,
        clean_rows=tuple(_clean_rows(images, copies)),
        reading=splits.reading,
        notes=splits.notes if can_check_labels() else (*splits.notes, MISSING),
    )


def _find_copies(images: AuditedImages, features: NDArray[np.float32], pixels: Pixels, progress: Progress) -> _Copies:
    """Return which images show the same picture."""
    same = [(rows[0], row) for rows in same_content(images.sources) for row in rows[1:]]
    same_file = clusters(len(images), same)
    unique = np.unique(same_file)
    changed = find_near_copies(features, unique, pixels, progress)
    same_picture = clusters(len(images), [*same, *((pair.first, pair.second) for pair in changed)])
    kept = np.arange(len(images))
    order = sorted(range(len(images)), key=lambda index: (RANKS[images.splits[index]], index), reverse=True)
    for index in order:  # the last one to write is the first by rank
        kept[same_picture[index]] = index
    pairs: dict[int, list[Pair]] = defaultdict(list)
    for pair in changed:
        pairs[pair.first].append(pair)
        pairs[pair.second].append(pair)
    return _Copies(same_file=same_file, same_picture=same_picture, kept=kept[same_picture], pairs=pairs)


def _describe_copies(images: AuditedImages, copies: _Copies) -> Iterator[AuditFinding]:
    """Yield a finding for each image that shows the picture of an image that stays."""
    for index in range(len(images)):
        kept = int(copies.kept[index])
        if kept == index:
            continue
        if copies.same_file[kept] == copies.same_file[index]:
            yield _copy(images, index, kept, 1.0, "the same content")
            continue
        # Of several copies of one picture, the one that stays may be less like this one than another.
        found = copies.pairs[int(copies.same_file[index])]
        ends = {pair.second if pair.first == copies.same_file[index] else pair.first: pair for pair in found}
        own = ends.get(int(copies.same_file[kept])) or max(found, key=lambda pair: pair.match.score)
        other = kept if int(copies.same_file[kept]) in ends else next(end for end, pair in ends.items() if pair is own)
        yield _copy(images, index, other, own.match.score, own.match.change)


def _copy(images: AuditedImages, index: int, other: int, score: float, change: str) -> AuditFinding:
    """Return the finding that an image is a copy of another one."""
    same_label = images.labels[index] == images.labels[other]
    return _finding(
        "two labels" if not same_label else "copy" if change == "the same content" else "near copy",
        images,
        index,
        other_split=images.splits[other],
        other_path=images.paths[other],
        suggested_label="" if same_label else images.label(other),
        score=round(score, 3),
        about=change,
    )


def _check_labels(
    images: AuditedImages, features: NDArray[np.float32], copies: _Copies, progress: Progress
) -> Iterator[AuditFinding]:
    """Yield the images whose label is probably wrong; copies do not vouch for each other."""
    if not can_check_labels():
        return
    progress("checking labels", 0, 1)
    chosen = np.unique(copies.same_file)
    # The only picture of a class cannot be compared with others of its class.
    chosen = chosen[~are_in_small_classes(images.labels[chosen])]
    if len(np.unique(images.labels[chosen])) < 2:
        return
    pictures = copies.same_picture[chosen]
    groups = images.groups[chosen] if images.groups is not None else None
    if groups is None and len(np.unique(pictures)) < len(pictures):
        groups = pictures.astype(str)
    labels = images.labels[chosen]
    probabilities = held_out_probabilities(features[chosen], labels, len(images.class_names), groups)
    for number in find_label_errors(probabilities, labels):
        row, best = probabilities[number], int(probabilities[number].argmax())
        yield _finding(
            "label",
            images,
            int(chosen[number]),
            suggested_label=images.class_names[best],
            score=round(float(row[labels[number]]), 4),
            about=f"the probe gives '{images.class_names[best]}' a probability of {row[best]:.2f}",
        )
    progress("checking labels", 1, 1)


def _look_for_groups(
    splits: ImageSplits, images: AuditedImages, features: NDArray[np.float32]
) -> Iterator[AuditFinding]:
    """Yield the groups of training images that file names, folders or EXIF show, if a probe loses accuracy on them."""
    if images.groups is not None:
        return
    train = images.in_split("train")
    found = find_groups(features[train], splits, np.arange(len(train)), 0)
    if found is not None:
        yield AuditFinding(
            kind="groups",
            about=f"{len(np.unique(found.groups))} groups by {describe_rule(found.rule)}: a probe is less accurate on "
            f"groups that it has not seen; keep each of them in one split: --groups {found.rule!r}",
        )


def _inflation(
    images: AuditedImages, features: NDArray[np.float32], copies: _Copies
) -> tuple[float | None, float | None]:
    """Return the test accuracy of a linear probe with and without the training images that are copies of test images;
    None without such images."""
    train, test = images.in_split("train"), images.in_split("test")
    others = train[~np.isin(copies.same_picture[train], copies.same_picture[test])]
    divisible = images.labels[others][~are_in_small_classes(images.labels[others])]
    if len(others) in {0, len(train)} or len(np.unique(divisible)) < 2:
        return None, None
    count = len(images.class_names)
    strength = cross_validate(features[others], images.labels[others], count, 0).inverse_regularization
    accuracies = []
    for chosen in (train, others):
        head = fit_head(features[chosen], images.labels[chosen], count, strength)
        right = head.logits(features[test]).argmax(axis=1) == images.labels[test]
        accuracies.append(round(float(right.mean()), 4))
    return accuracies[0], accuracies[1]


def _clean_rows(images: AuditedImages, copies: _Copies) -> Iterator[tuple[str, ...]]:
    """Yield the row of each image that stays: one of each picture, none of a picture under two labels."""
    labels: dict[int, set[int]] = defaultdict(set)
    for picture, label in zip(copies.same_picture.tolist(), images.labels.tolist(), strict=True):
        labels[picture].add(label)
    for index in range(len(images)):
        if copies.kept[index] == index and len(labels[int(copies.same_picture[index])]) == 1:
            group = () if images.groups is None else (str(images.groups[index]),)
            yield images.paths[index], images.label(index), images.splits[index], *group


def _left_out(splits: ImageSplits) -> Iterator[AuditFinding]:
    """Yield the files that cannot be read as images, and the images without a label."""
    for file in splits.unreadable:
        yield AuditFinding(kind="unreadable", path=file.path, about=file.reason)
    for file in splits.left_out:
        yield AuditFinding(kind="unlabelled", path=file.path, about=file.reason)


def _finding(kind: str, images: AuditedImages, index: int, **further: object) -> AuditFinding:
    """Return a finding about one image."""
    own = {"kind": kind, "split": images.splits[index], "path": images.paths[index], "label": images.label(index)}
    return AuditFinding.model_validate(own | further)
