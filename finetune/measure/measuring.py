"""Measure the evidence for the choice: the images, the network on them, and the machine."""

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from finetune.cache import make_key, read_value, size_limit, write_value
from finetune.data import (
    ImageSplits,
    Pixels,
    Ties,
    Together,
    even_sample,
    groups_of,
    labels_of,
    stratified_subset,
    together_of,
)
from finetune.data.batches import PlainImages, VariedImages
from finetune.data.label_sets import count_images, has_sets
from finetune.decide.budget import OVERHEAD_SECONDS, least_following, refuse_short_budget
from finetune.decide.class_weights import UNEQUAL
from finetune.decide.evidence import (
    Evidence,
    ForwardSettings,
    GroupFinding,
    MachineSpeed,
    ProbeResult,
    StageProfile,
)
from finetune.decide.plan import AugmentationPlan
from finetune.decide.preprocessing import Preprocessing
from finetune.decide.workload import default_batch_size, default_trainable_stages, half_stages, measured_images
from finetune.device import MEMORY_FORMATS
from finetune.errors import CacheError
from finetune.measure.domain_similarity import measure_domain
from finetune.measure.machine import is_busy, machine_name
from finetune.measure.network import MeasuredNetwork, load_network
from finetune.measure.probing import chirality, evaluate_probe
from finetune.measure.rates import HighestRate, measure_highest_rate
from finetune.measure.shift import Grouping, find_groups, known_groups, measure_groups
from finetune.measure.speed import measure_speed
from finetune.network.backbone import profile_stages
from finetune.network.head import find_head, give_head
from finetune.network.outputs import count_work, digest_weights, frozen_features
from finetune.processes import first_alone, from_main_process, in_every_process, num_processes
from finetune.progress import Progress, no_progress
from finetune.recipe import METRIC_OF_COSTS, METRIC_OF_SETS, Layout, Metric, Recipe
from finetune.work import Work

FLIPS_CHECKED = 400
"""Number of images on which the chirality is measured."""

USUAL_AUGMENTATION = AugmentationPlan(
    horizontal_flip=True, vertical_flip=False, smallest_crop=0.5, color_jitter=0.1, policy="none", mixing="none"
)
"""Augmentation with which the reading of images is timed, because no augmentation is planned yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    """The training images that are measured: all, or a stratified sample of them."""

    pixels: Pixels
    """Pixels of the images of the sample."""
    labels: NDArray[np.int64]
    """Class of each image of the sample, (n,), or its set of labels, (n, num_classes)."""
    groups: NDArray[np.str_] | None
    """Group of each image of the sample, (n,); None where the images have no groups."""
    pictures: NDArray[np.int64] | None
    """Number of the picture that each image of the sample shows, (n,); None where each shows another one."""
    indices: NDArray[np.intp]
    """Index of each image of the sample among the training images, (n,)."""
    counts: NDArray[np.int64]
    """Number of training images of each class, before sampling, (num_classes,)."""

    def together(self, grouping: Grouping | None) -> Together | None:
        """Return what keeps images of the sample together: groups, if they are used, and copies of one picture."""
        groups = grouping.groups if grouping is not None and grouping.used else None
        return groups if self.pictures is None else Ties(groups, self.pictures)


def measure_evidence(
    recipe: Recipe, splits: ImageSplits, progress: Progress = no_progress, seconds_before: float = 0.0
) -> Evidence:
    """Return the measurements that the choice is based on, from the training images alone.

    Args:
        recipe: the recipe, which names one network.
        splits: labelled images; the validation and the test split are not measured.
        progress: called with the work in progress.
        seconds_before: time that the command took before, in seconds.

    Raises:
        ModelError: the network is unknown, or its weights cannot be found.
        RecipeError: the recipe names several networks, which must be measured one at a time, or its time budget is too
            short.
    """
    start = time.perf_counter()

    def refuse(following: float) -> None:
        refuse_short_budget(recipe.time_budget, seconds_before + time.perf_counter() - start, following)

    from_main_process(lambda: refuse(OVERHEAD_SECONDS))
    network, about = in_every_process(lambda: load_network(recipe, splits))
    sample = _draw_sample(splits, about.preprocessing, recipe.seed)
    with first_alone():
        work = sample.pixels.cache(progress)
    num_test = 0 if splits.test is None else len(splits.test)
    # The machine is measured first, while no other process computes, so that everything below runs with the fastest
    # settings. The similarity is next, because computing the features removes the pretrained classifier that it needs.
    stages, speed = from_main_process(lambda: _measure_machine(network, about, recipe, splits, sample, progress))
    from_main_process(lambda: refuse(least_following(len(sample.pixels), num_test, speed)))
    network.to(memory_format=MEMORY_FORMATS[speed.forward.layout])
    domain = from_main_process(
        lambda: measure_domain(network, about, sample.pixels, sample.labels, recipe.seed, speed.forward)
    )
    features, mirrored, own_work = _compute_features(network, about, sample, recipe, speed.forward, progress)
    layout = None if domain.is_calibrated else speed.forward.layout
    found = from_main_process(
        lambda: _read_features(network, about, sample, splits, features, layout, recipe, progress)
    )
    return from_main_process(
        lambda: Evidence(
            **_describe(about, sample, splits),
            metric=_choose_metric(recipe, sample),
            domain_similarity=round(domain.similarity, 3),
            similarity_parts={part: round(value, 4) for part, value in domain.parts.items()},
            similarity_calibrated=domain.is_calibrated,
            probe=found.probe,
            groups=found.groups,
            chirality=mirrored,
            stages=stages,
            speed=speed,
            highest_rate=None if found.highest is None else found.highest.rate,
            cache_bytes=size_limit() // 2 if splits.stream is None else 0,
            num_test=num_test,
            seconds_before=round(seconds_before, 2),
            seconds=round(time.perf_counter() - start, 2),
            work=work + domain.work + own_work + (Work() if found.highest is None else found.highest.work),
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Findings:
    """What the features of the sample say."""

    probe: ProbeResult
    """Result of the linear probe."""
    groups: GroupFinding | None
    """Accuracy on unseen groups; None: no groups are known."""
    highest: HighestRate | None
    """Highest rate at which the loss falls; None: it was not looked for."""


def _read_features(
    network: nn.Module,
    about: MeasuredNetwork,
    sample: _Sample,
    splits: ImageSplits,
    features: NDArray[np.float32],
    layout: Layout | None,
    recipe: Recipe,
    progress: Progress,
) -> _Findings:
    """Return what the features say of the images, and the highest rate of a network that is not calibrated; `layout` is
    None for one that is."""
    progress("cross-validating the linear probe", 0, 1)
    grouping = _grouping(splits, sample, features, recipe)
    together, metric = sample.together(grouping), _choose_metric(recipe, sample)
    probe = evaluate_probe(features, sample.labels, together, len(sample.counts), metric, recipe.seed)
    strength = probe.inverse_regularization
    groups = None if grouping is None else measure_groups(features, sample.labels, grouping, strength, recipe.seed)
    progress("cross-validating the linear probe", 1, 1)
    highest = None if layout is None else _find_highest_rate(network, about, sample, features, layout, recipe)
    return _Findings(probe=probe, groups=groups, highest=highest)


def _choose_metric(recipe: Recipe, sample: _Sample) -> Metric:
    """Return the metric by which strategies are compared."""
    if has_sets(sample.labels):
        return METRIC_OF_SETS
    if recipe.metric is None and recipe.labels.decide_answers:
        return METRIC_OF_COSTS
    return recipe.metric or ("balanced_accuracy" if _imbalance(sample) >= UNEQUAL else "top1")


def _grouping(splits: ImageSplits, sample: _Sample, features: NDArray[np.float32], recipe: Recipe) -> Grouping | None:
    """Return the groups of the sample: those that are known, else those that are found, if they may be looked for."""
    known = known_groups(splits, sample.groups)
    if known is None and recipe.groups == "auto" and splits.stream is None and not splits.has_sets:
        return find_groups(features, splits, sample.indices, recipe.seed)
    return known


def _find_highest_rate(
    network: nn.Module,
    about: MeasuredNetwork,
    sample: _Sample,
    features: NDArray[np.float32],
    layout: Layout,
    recipe: Recipe,
) -> HighestRate | None:
    """Return the highest rate at which the loss falls, if layers may be trained at a rate that the recipe leaves open;
    the network's weights change."""
    if recipe.strategy not in {"auto", "partial", "full"} or recipe.training.learning_rate is not None:
        return None
    images = PlainImages(sample.pixels, about.preprocessing)
    return measure_highest_rate(network, images, features, sample.labels, about.preprocessing, layout, recipe.seed)


def _describe(about: MeasuredNetwork, sample: _Sample, splits: ImageSplits) -> dict[str, Any]:
    """Return the entries of the evidence that describe the network and the images, and need no measurement."""
    num_images, num_held = splits.num_training_images, len(splits.train)
    counts = zip(splits.class_names, sample.counts, strict=True)
    return {
        "model": about.name,
        "model_reason": about.reason,
        "weights": about.source,
        "takes_any_size": about.takes_any_size,
        "source_classes": about.source_classes,
        "family": about.family,
        "licence": about.licence,
        "num_images": num_images,
        "num_held": num_held,
        "num_classes": len(sample.counts),
        # Of images with sets of labels, each counts for each of its labels.
        "images_per_class": round(
            int(sample.counts.sum()) / len(sample.counts) if splits.has_sets else num_images / len(sample.counts), 1
        ),
        # Of a stream only a sample is counted; the counts are scaled up to the whole stream.
        "class_counts": {name: round(int(count) * num_images / num_held) for name, count in counts},
        "imbalance": round(_imbalance(sample), 2),
        "num_unreadable": len(splits.unreadable),
        "native_shorter_side": about.native_side,
        "preprocessing": about.preprocessing,
        "image_size_reason": about.size_reason,
        "has_validation": splits.validation is not None,
    }


def _imbalance(sample: _Sample) -> float:
    """Return the number of images of the largest class over that of the smallest."""
    return float(sample.counts.max() / sample.counts.min())


def _draw_sample(splits: ImageSplits, preprocessing: Preprocessing, seed: int) -> _Sample:
    """Return the training images to measure: at most `measured_images`."""
    labels, groups = labels_of(splits.train), groups_of(splits.train)
    counts = count_images(labels, len(splits.class_names))
    members = stratified_subset(labels, measured_images(len(counts)), seed)
    together = together_of(splits.train)
    table = splits.train if len(members) == len(labels) else splits.train.select(members)
    return _Sample(
        pixels=Pixels(table, preprocessing.shorter_side, preprocessing.reading),
        labels=labels[members],
        groups=None if groups is None else groups[members],
        pictures=together.pictures[members] if isinstance(together, Ties) else None,
        indices=members,
        counts=counts,
    )


def _compute_features(
    network: Any,  # noqa: ANN401  (timm's networks share methods, but no type)
    about: MeasuredNetwork,
    sample: _Sample,
    recipe: Recipe,
    settings: ForwardSettings,
    progress: Progress,
) -> tuple[NDArray[np.float32], float | None, Work]:
    """Return the features of the sample (n, width), the chirality of its images, and the work that this took.

    The chirality is None for a linear probe, which is not trained on mirrored images. The network loses its pretrained
    classifier.
    """
    device = next(network.parameters()).device
    weights = digest_weights(network, leave_out=find_head(network).names)
    give_head(network, len(sample.counts))
    network = network.to(device).to(memory_format=MEMORY_FORMATS[settings.layout])
    plain = PlainImages(sample.pixels, about.preprocessing)
    outputs = frozen_features(network, plain, about.preprocessing, settings, weights, progress)
    features, work = outputs.numpy(), count_work(outputs, sample.pixels)
    if recipe.strategy == "linear_probe":
        return features, None, work
    checked = even_sample(sample.labels, FLIPS_CHECKED, recipe.seed)
    flipped = PlainImages(sample.pixels, about.preprocessing, mirrored=True)
    mirrored = frozen_features(network, flipped, about.preprocessing, settings, weights, indices=checked.tolist())
    work += count_work(mirrored, sample.pixels)
    return features, chirality(features[checked], mirrored.numpy(), recipe.seed), work


def _measure_machine(
    network: nn.Module,
    about: MeasuredNetwork,
    recipe: Recipe,
    splits: ImageSplits,
    sample: _Sample,
    progress: Progress,
) -> tuple[tuple[StageProfile, ...], MachineSpeed]:
    """Return the costs of the network's stages and the speeds of this machine, measured once and then cached.

    Speeds that were measured while the machine was busy are measured again by the first run that finds it idle.
    """
    name, preprocessing, pixels = about.name, about.preprocessing, sample.pixels
    device = next(network.parameters()).device
    processes = num_processes()
    batch_size = math.ceil((recipe.batch_size or default_batch_size(splits.num_training_images)) / processes)
    asked = recipe.training.trainable_stages
    # A head that is trained alone is taken to be as fast as the norms.
    with_norms = recipe.strategy in {"norm_tuning", "linear_probe"}
    # The key includes the structure of the values, so that measurements of an older version are not found.
    structure = MachineSpeed.structure(), StageProfile.structure()
    depths_asked = asked or "usual and short"
    key = make_key(
        name, preprocessing, batch_size, depths_asked, with_norms, pixels.is_cached, machine_name(device), structure
    )

    def measure() -> dict[str, Any]:
        progress("timing this machine", 0, 1)
        stages = profile_stages(network, preprocessing.image_size, preprocessing.num_channels)
        depths = {asked} if asked else {half_stages(stages), default_trainable_stages(stages)}
        depths = {min(depth, len(stages) - 1) for depth in depths}
        images = VariedImages(pixels, preprocessing, USUAL_AUGMENTATION, recipe.seed)
        speed = measure_speed(network, preprocessing, batch_size, sorted(depths), images, with_norms)
        progress("timing this machine", 1, 1)
        return {"stages": [stage.model_dump() for stage in stages], "speed": speed.model_dump()}

    found = read_value("measurements", key)
    if found is None:
        what = f"speed of {name} at {preprocessing.image_size} px"
        if is_busy():
            key, what = make_key(key, "busy"), f"{what} on a busy machine"
            found = read_value("measurements", key)
        if found is None:
            found = measure()
            write_value("measurements", key, what, found)
    origin = "a measurement in the cache is damaged (remove it with 'finetune cache --clear')"
    stages = tuple(StageProfile.parse(stage, origin, CacheError) for stage in found["stages"])
    return stages, MachineSpeed.parse(found["speed"], origin, CacheError).changed(num_processes=processes)
