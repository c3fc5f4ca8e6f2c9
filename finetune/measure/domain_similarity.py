"""Measure how similar the images are to those that the network was pretrained on."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.cache import make_key, read_value, write_value
from finetune.data import Pixels, even_sample
from finetune.data.batches import PlainImages, normaliser, read_in_turn
from finetune.data.label_sets import rarest_class
from finetune.decide.evidence import ForwardSettings
from finetune.device import autocast
from finetune.measure.domain import DomainProbe
from finetune.measure.network import MeasuredNetwork, takes
from finetune.measure.similarity import similarity
from finetune.network.backbone import is_built_for_one_size, native_preprocessing
from finetune.network.cpu import ThreadTeam
from finetune.network.outputs import digest_weights
from finetune.work import Work

DOMAIN_SAMPLE = 200
"""Number of images on which the domain similarity is measured; another draw changes it by about .02
(experiments/log.md, 2026-11-26)."""

DOMAIN_SIZE = 128
"""Side of the images on which the domain similarity is measured, in pixels: that of the calibration, whatever the image
size of the training, unless the network does not take it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainSimilarity:
    """The domain similarity of the images to the network's pretraining images."""

    similarity: float
    """Domain similarity: 0 is far, 1 is near."""
    parts: dict[str, float]
    """Measured parts of the similarity, by name."""
    is_calibrated: bool
    """Whether the similarity was calibrated for this network."""
    work: Work
    """Images decoded and sent forward for the measurement."""


def measure_domain(
    network: nn.Module,
    about: MeasuredNetwork,
    pixels: Pixels,
    labels: NDArray[np.int64],
    seed: int,
    settings: ForwardSettings,
) -> DomainSimilarity:
    """Return the domain similarity of `DOMAIN_SAMPLE` images, evenly drawn from the classes; its parts are cached."""
    labels = rarest_class(labels)
    chosen = even_sample(labels, DOMAIN_SAMPLE, seed)
    reading = about.preprocessing.reading
    preprocessing = native_preprocessing(network, DOMAIN_SIZE, reading).changed(crop_fraction=1.0)
    if is_built_for_one_size(about.name) or not takes(network, about.name, preprocessing):
        preprocessing = preprocessing.changed(image_size=about.preprocessing.image_size)
    images = PlainImages(pixels, preprocessing)
    members: list[int] = chosen.tolist()
    all_weights = digest_weights(network)
    key = make_key("domain", all_weights, images.describe(members), labels[chosen].tolist(), settings.precision)
    parts = read_value("features", key)
    if parts is not None:
        work = Work(cache_hits=len(members))
    else:
        probe = DomainProbe(network, about.has_source_head)
        device = next(network.parameters()).device
        normalise = normaliser(preprocessing, device, settings.layout)
        batches = read_in_turn(images, device, settings.loader_workers, settings.batch_size, members)

        def measure(read: Callable[[], tuple[Tensor, Tensor]]) -> tuple[tuple[Tensor, Tensor | None], Tensor]:
            sample, indices = read()
            with autocast(device, settings.precision):
                return probe.measure(normalise(sample)), torch.from_numpy(labels)[indices]

        with probe.watching(), ThreadTeam(settings.parallel_parts, settings.num_threads) as team:
            for moments, groups in team.map(measure, batches):
                probe.collect(moments, groups)
        parts = probe.parts(list(probe.groups.values()))
        write_value("features", key, f"domain similarity: {len(members)} images", parts)
        work = Work(forward_images=len(members), forward_equivalents=float(len(members)))
        work += Work() if pixels.is_cached else pixels.reading_work(len(members))
    # A network with neither batch norms nor a classifier of several classes has no parts; 0.5 is neither near nor far.
    # The networks were calibrated with red, green and blue.
    value, is_calibrated = similarity(parts, about.name if reading.is_rgb else "") if parts else (0.5, False)
    return DomainSimilarity(similarity=value, parts=parts, is_calibrated=is_calibrated, work=work)
