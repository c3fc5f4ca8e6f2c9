"""Measuring the images, the network on them, and the machine, before anything is decided."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.cache import make_key, read_value, size_limit, write_value
from finetune.data import ImageSplits, Pixels, even_sample, groups_of, labels_of, native_size, stratified_subset
from finetune.data.batches import PlainImages, VariedImages, normaliser, read_in_turn
from finetune.decide.evidence import Evidence, ForwardSettings, LearningCurve, MachineSpeed, ProbeResult, StageProfile
from finetune.decide.plan import AugmentationPlan
from finetune.decide.preprocessing import Preprocessing, choose_image_size
from finetune.decide.workload import default_batch_size, default_trainable_stages, short_stages
from finetune.device import MEMORY_FORMATS, autocast, best_device
from finetune.errors import CacheError, RecipeError
from finetune.measure.domain import DomainProbe
from finetune.measure.machine import is_busy, machine_name
from finetune.measure.similarity import similarity
from finetune.measure.speed import measure_speed
from finetune.network.backbone import (
    find_head,
    native_preprocessing,
    network_image_size,
    profile_stages,
    takes_image_size,
)
from finetune.network.cpu.threads import ThreadTeam
from finetune.network.outputs import count_work, digest_weights, frozen_features
from finetune.network.weights import create_pretrained, resolve_model
from finetune.predict.linear_probe import CURVE_SHARES, ProbeFolds, cross_validate, error_slope, learning_curve
from finetune.predict.metrics import log_loss, metric_error, metric_value
from finetune.processes import num_processes
from finetune.progress import Progress, no_progress
from finetune.recipe import Metric, Recipe
from finetune.work import Work

IMBALANCED = 5.0
"""Images of the largest class over those of the smallest from which on balanced accuracy chooses."""

SIZES_READ = 200
"""Images whose size is read."""

PROBE_SAMPLE = 5000
"""Most images that the probe is cross-validated on: its error is below half a point then."""

DOMAIN_SAMPLE = 200
"""Images that the domain similarity is measured on: other ones change it by about .02 (experiments/log.md, 2026-11-26)."""

DOMAIN_SIZE = 128
"""And at so many pixels, whatever the training's image size."""

CHIRALITY_REGULARIZATION = 1e-3
"""Regularisation of the classifier that tells images from their mirrored copies: a strong one, for a faint
difference."""

FLIPS_CHECKED = 400
"""Images that are looked at mirrored."""

USUAL_AUGMENTATION = AugmentationPlan(
    horizontal_flip=True, vertical_flip=False, smallest_crop=0.5, color_jitter=0.1, policy="none", mixing="none"
)
"""What reading images is timed with, before it is planned."""


def measure_evidence(recipe: Recipe, splits: ImageSplits, progress: Progress = no_progress) -> Evidence:
    """Return what the choice rests on, from the training images alone.

    Raises:
        ModelError: an unknown network, or weights that are not to be had.
        RecipeError: several networks, of which one is to be chosen first.
    """
    start = time.perf_counter()
    device = best_device()
    if len(recipe.models) > 1:
        raise RecipeError(
            f"networks are measured one at a time, and {len(recipe.models)} were given ({', '.join(recipe.models)}); "
            f"finetune.run chooses one of them"
        )
    name = resolve_model(recipe.models[0], has_accelerator=device.type != "cpu")
    side = _native_side(splits)
    size, reason = _image_size(recipe, name, side, has_accelerator=device.type != "cpu")
    network, report = _load(name, recipe, size)
    head, layer = find_head(network)
    network = network.to(device).eval()
    labels, groups = labels_of(splits.train), groups_of(splits.train)
    counts = np.bincount(labels, minlength=len(splits.class_names))
    num_images = splits.num_training_images
    preprocessing = native_preprocessing(network, size)
    sample = stratified_subset(labels, max(PROBE_SAMPLE, 2 * len(counts)), recipe.seed)
    labels_seen = labels[sample]
    table = splits.train if len(sample) == len(labels) else splits.train.select(sample)
    pixels = Pixels(table, preprocessing.shorter_side)
    work = pixels.cache(progress)
    stages, speed = _machine(network, name, preprocessing, recipe, num_images, pixels, progress)
    network.to(memory_format=MEMORY_FORMATS[speed.forward.layout])
    domain = _similarity(network, name, pixels, labels_seen, recipe.seed, speed.forward)
    weights = digest_weights(network, leave_out=head)
    network.reset_classifier(len(counts))
    network = network.to(device).to(memory_format=MEMORY_FORMATS[speed.forward.layout])
    plain = PlainImages(pixels, preprocessing)
    seen = frozen_features(network, plain, preprocessing, speed.forward, weights, progress)
    features = seen.numpy()
    work += domain.work + count_work(seen, pixels)
    told_apart = None
    if recipe.strategy != "linear_probe":  # which sees no image mirrored
        checked = even_sample(labels_seen, FLIPS_CHECKED, recipe.seed)
        mirrored = PlainImages(pixels, preprocessing, mirrored=True)
        flipped = frozen_features(network, mirrored, preprocessing, speed.forward, weights, members=checked.tolist())
        work += count_work(flipped, pixels)
        told_apart = chirality(features[checked], flipped.numpy(), recipe.seed)
    imbalance = float(counts.max() / counts.min())
    metric: Metric = recipe.metric or ("balanced_accuracy" if imbalance >= IMBALANCED else "top1")
    progress("cross-validating the linear probe", 0, 1)
    probe = _probe(features, labels_seen, None if groups is None else groups[sample], len(counts), metric, recipe.seed)
    progress("cross-validating the linear probe", 1, 1)
    return Evidence(
        model=name,
        weights=str(report),
        takes_any_size=not takes_image_size(name),
        source_classes=0 if recipe.strategy == "scratch" else layer.out_features,
        num_images=num_images,
        num_held=len(labels),
        num_classes=len(counts),
        images_per_class=round(num_images / len(counts), 1),
        class_counts={
            name: round(int(count) * num_images / len(labels))
            for name, count in zip(splits.class_names, counts, strict=True)
        },
        imbalance=round(imbalance, 2),
        num_unreadable=len(splits.unreadable),
        native_shorter_side=side,
        preprocessing=preprocessing,
        image_size_reason=reason,
        domain_similarity=round(domain.similarity, 3),
        similarity_parts={part: round(value, 4) for part, value in domain.parts.items()},
        similarity_calibrated=domain.is_calibrated,
        probe=probe,
        chirality=told_apart,
        stages=stages,
        speed=speed,
        cache_bytes=size_limit() // 2 if splits.stream is None else 0,
        seconds=round(time.perf_counter() - start, 2),
        work=work,
        metric=metric,
        has_validation=splits.validation is not None,
    )


def _image_size(recipe: Recipe, name: str, native_side: int, has_accelerator: bool) -> tuple[int, str]:
    """Return the side of the square that the network sees, and why."""
    if recipe.image_size is not None:
        return recipe.image_size, f"{recipe.image_size} px was asked for"
    side = network_image_size(name)
    if takes_image_size(name):
        return side, f"{side} px, the one size that the network is built for"
    return choose_image_size(native_side, side, has_accelerator)


def _load(name: str, recipe: Recipe, size: int) -> tuple[Any, object]:
    """Return the network with its original head, and where its weights came from."""
    arguments: dict[str, Any] = {"img_size": size} if takes_image_size(name) else {}
    if recipe.strategy == "scratch":
        torch.manual_seed(recipe.seed)
        return timm.create_model(name, **arguments), "random numbers: scratch was asked for"
    return create_pretrained(name, recipe.weights, **arguments)


def _native_side(splits: ImageSplits) -> int:
    """Return the median shorter side of a sample of the training images, in pixels."""
    count = len(splits.train)
    rows = splits.train.select(range(0, count, max(1, count // SIZES_READ)))["image"]
    return int(np.median([min(native_size(row)) for row in rows]))


def _machine(
    network: nn.Module,
    name: str,
    preprocessing: Preprocessing,
    recipe: Recipe,
    num_images: int,
    pixels: Pixels,
    progress: Progress,
) -> tuple[tuple[StageProfile, ...], MachineSpeed]:
    """Return what the network's stages cost and how fast this machine is with it, measured once and then remembered.

    What a busy machine shows is used, but not remembered.
    """
    device = next(network.parameters()).device
    processes = num_processes()
    batch_size = math.ceil((recipe.batch_size or default_batch_size(num_images)) / processes)
    asked = recipe.training.trainable_stages
    # Their schemas, so that an older version's measurements are not mistaken for this one's.
    schemas = MachineSpeed.model_json_schema(), StageProfile.model_json_schema()
    key = make_key(
        name, preprocessing, batch_size, asked or "usual and short", pixels.is_cached, machine_name(device), schemas
    )

    def measure() -> dict[str, Any]:
        progress("timing this machine", 0, 1)
        stages = profile_stages(network, preprocessing.image_size)
        depths = {asked} if asked else {short_stages(stages), default_trainable_stages(stages)}
        depths = {min(depth, len(stages) - 1) for depth in depths}
        images = VariedImages(pixels, preprocessing, USUAL_AUGMENTATION, recipe.seed)
        speed = measure_speed(network, preprocessing, batch_size, sorted(depths), images)
        progress("timing this machine", 1, 1)
        return {"stages": [stage.model_dump() for stage in stages], "speed": speed.model_dump()}

    found = read_value("measurements", key)
    if found is None:
        busy = is_busy()
        found = measure()
        if not busy:
            write_value("measurements", key, f"speed of {name} at {preprocessing.image_size} px", found)
    origin = "a measurement in the cache is damaged (remove it with 'finetune cache --clear')"
    stages = tuple(StageProfile.parse(stage, origin, CacheError) for stage in found["stages"])
    return stages, MachineSpeed.parse(found["speed"], origin, CacheError).changed(num_processes=processes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Domain:
    similarity: float
    parts: dict[str, float]
    is_calibrated: bool
    """Whether the scale was fitted for this network."""
    work: Work


def _similarity(
    network: nn.Module,
    name: str,
    pixels: Pixels,
    labels: NDArray[np.int64],
    seed: int,
    settings: ForwardSettings,
) -> _Domain:
    """Return the domain similarity of a sample of the images."""
    chosen = even_sample(labels, DOMAIN_SAMPLE, seed)
    preprocessing = native_preprocessing(network, DOMAIN_SIZE).changed(crop_fraction=1.0)
    if takes_image_size(name):
        preprocessing = preprocessing.changed(image_size=network_image_size(name))
    images = PlainImages(pixels, preprocessing)
    members: list[int] = chosen.tolist()
    all_weights = digest_weights(network, leave_out="")
    key = make_key("domain", all_weights, images.describe(members), labels[chosen].tolist(), settings.precision)
    parts = read_value("features", key)
    if parts is not None:
        work = Work(cache_hits=len(members))
    else:
        probe = DomainProbe(network)
        device = next(network.parameters()).device
        normalise = normaliser(preprocessing, device, settings.layout)
        batches = read_in_turn(images, device, settings.loader_workers, settings.batch_size, members)

        def measure(read: Callable[[], tuple[Tensor, Tensor]]) -> tuple[tuple[Tensor, Tensor | None], Tensor]:
            sample, indices = read()
            with autocast(device, settings.precision):
                return probe.measure(normalise(sample)), torch.from_numpy(labels)[indices]

        with probe.watching(), ThreadTeam(settings.parallel_parts, settings.num_threads) as streams:
            for moments, groups in streams.map(measure, batches):
                probe.collect(moments, groups)
        parts = probe.parts(list(probe.groups.values()))
        write_value("features", key, f"domain similarity: {len(members)} images", parts)
        work = Work(forward_images=len(members), forward_equivalents=float(len(members)))
        work += Work() if pixels.is_cached else pixels.reading_work(len(members))
    # Without batch norms and a classifier of many classes nothing tells near from far.
    value, is_calibrated = similarity(parts, name) if parts else (0.5, False)
    return _Domain(similarity=value, parts=parts, is_calibrated=is_calibrated, work=work)


def _probe(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    groups: NDArray[np.str_] | None,
    num_classes: int,
    metric: Metric,
    seed: int,
) -> ProbeResult:
    folds = cross_validate(features, labels, num_classes, seed, groups)
    predicted = folds.logits.argmax(axis=1)
    return ProbeResult(
        accuracy=round(metric_value("top1", predicted, labels), 4),
        accuracy_error=round(metric_error("top1", predicted, labels), 4),
        balanced_accuracy=round(metric_value("balanced_accuracy", predicted, labels), 4),
        log_loss=round(log_loss(folds.logits, labels), 4),
        inverse_regularization=folds.inverse_regularization,
        answers=_answers(features, labels, folds, groups, seed) if metric == "balanced_accuracy" else {"none": 0.0},
        curve=_curve(features, labels, folds, groups, seed),
    )


def _curve(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    folds: ProbeFolds,
    groups: NDArray[np.str_] | None,
    seed: int,
) -> LearningCurve:
    fewer = learning_curve(features, labels, folds.logits.shape[1], seed, folds.inverse_regularization, groups)
    wrong = np.stack([*fewer, folds.logits.argmax(axis=1) != labels])
    learned_from = len(labels) * (1.0 - 1.0 / len(folds.heads))
    slope, error = error_slope(wrong[0], wrong[-1], 1.0 / CURVE_SHARES[0])
    return LearningCurve(
        num_images=tuple(round(share * learned_from) for share in (*CURVE_SHARES, 1.0)),
        accuracy=tuple(round(1.0 - float(row.mean()), 4) for row in wrong),
        slope=round(slope, 3),
        slope_error=round(error, 3),
    )


def chirality(features: NDArray[np.float32], mirrored: NDArray[np.float32], seed: int) -> float:
    """Return the share of pairs in which a linear classifier tells an image's features from its mirrored copy's.

    Networks are trained to see mirrored images alike, so that the labels of mirrored copies say little; whether the
    images have a left and a right, their features still tell. Neither image of a pair is in the classifier's own fold.
    """
    count = len(features)
    both = np.concatenate([features, mirrored])
    side = np.repeat(np.arange(2), count)
    pair = np.tile(np.arange(count), 2).astype(str)
    scores = cross_validate(both, side, 2, seed, pair, inverse_regularizations=(CHIRALITY_REGULARIZATION,)).logits
    looks_mirrored = scores[:, 1] - scores[:, 0]
    return round(float((looks_mirrored[count:] > looks_mirrored[:count]).mean()), 3)


def _answers(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    folds: ProbeFolds,
    groups: NDArray[np.str_] | None,
    seed: int,
) -> dict[str, float]:
    """Return the held-out balanced accuracy under each answer to unequal classes."""
    counts = np.bincount(labels, minlength=folds.logits.shape[1])
    prior = np.log(np.maximum(counts, 1) / counts.sum())
    weighted = cross_validate(
        features, labels, len(counts), seed, groups, (folds.inverse_regularization,), balanced=True
    )
    scores = {"none": folds.logits, "class_weights": weighted.logits, "logit_adjustment": folds.logits - prior}
    return {
        name: round(metric_value("balanced_accuracy", score.argmax(axis=1), labels), 4)
        for name, score in scores.items()
    }
