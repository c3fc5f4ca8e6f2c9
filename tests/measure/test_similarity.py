import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.data import Pixels, labels_of, load_images, stratified_subset
from finetune.data.batches import PlainImages, make_loader, normaliser
from finetune.measure.domain import measure_domain_parts
from finetune.measure.similarity import CALIBRATIONS, GENERIC, similarity
from finetune.network.backbone import native_preprocessing
from finetune.network.weights import create_embedded

LITE0 = "tf_efficientnet_lite0"
TYPICAL = {name: scale.mean for name, scale in CALIBRATIONS[LITE0].parts.items()} | {"logit_skewness": 1.1}


def scores(network, part, values, parts=TYPICAL):
    return [similarity(parts | {part: value}, network)[0] for value in values]


@pytest.mark.parametrize("part", ["late_vigour", "energy"])
@pytest.mark.parametrize("network", sorted(CALIBRATIONS))
def test_more_of_what_the_pretraining_images_excite_is_nearer(network, part):
    scale = CALIBRATIONS[network].parts[part]
    values = scores(network, part, [scale.mean + spreads * scale.spread for spreads in (-2, -1, 0, 1, 2)])
    assert all(lower < higher for lower, higher in pairwise(values))


@pytest.mark.parametrize("network", sorted(CALIBRATIONS))
def test_a_log_std_ratio_in_the_middle_alone_is_no_sign_of_nearness(network):
    values = scores(network, "middle_vigour", [-0.25, -0.2, -0.1, 0.0])
    assert all(higher > lower for higher, lower in pairwise(values))


def test_a_single_part_moves_the_score_by_three_spreads_at_most():
    scale = CALIBRATIONS[LITE0].parts["energy"]
    at_three, beyond = scores(LITE0, "energy", [scale.mean + 3 * scale.spread, scale.mean + 300 * scale.spread])
    assert at_three == beyond < 1


def test_typical_parts_give_the_intercept():
    value, _ = similarity(TYPICAL, LITE0)
    assert value == pytest.approx(1 / (1 + np.exp(-CALIBRATIONS[LITE0].intercept)))


def test_an_embedded_network_is_calibrated():
    assert similarity(TYPICAL, LITE0)[1] is True


def test_a_weights_tag_is_ignored():
    assert similarity(TYPICAL, f"{LITE0}.in1k") == similarity(TYPICAL, LITE0)


def test_another_network_with_batch_norm_is_uncalibrated_and_leaves_the_energy_out():
    value, calibrated = similarity(TYPICAL, "resnet50")
    assert calibrated is False
    assert value == GENERIC[0].score(TYPICAL)
    assert value == similarity(TYPICAL | {"energy": 1000.0}, "resnet50")[0]


def test_a_network_without_batch_norm_is_scored_by_its_logits_skewness():
    low, high = scores("vit_tiny_patch16_224", "logit_skewness", [0.8, 1.4], parts={"energy": 10.0})
    assert low < 0.5 < high


def test_a_calibrated_network_without_its_head_falls_back_to_its_batch_norms():
    parts = {name: TYPICAL[name] for name in ("late_vigour", "middle_vigour")}
    assert similarity(parts, LITE0) == (GENERIC[0].score(parts), False)


@pytest.mark.parametrize("parts", [{}, {"energy": 10.0}, {"late_vigour": 0.0}])
def test_without_parts_to_score_there_is_no_score(parts):
    with pytest.raises(ValueError, match="'resnet50' gave no parts to score the domain by"):
        similarity(parts, "resnet50")


IMAGE_SETS = os.environ.get("FINETUNE_IMAGE_SETS")


@pytest.mark.skipif(not IMAGE_SETS, reason="FINETUNE_IMAGE_SETS names no folder of real image sets")
def test_flowers_and_clothing_are_nearer_than_brain_scans_and_blood_cells():
    near = [nearness_of_real(name) for name in ("flowers12", "clothing10")]
    far = [nearness_of_real(name) for name in ("brainmri3", "wbc4")]
    assert max(far) < 0.5 < min(near)


def nearness_of_real(name, count=60):
    network, _ = create_embedded()
    splits = load_images(str(Path(IMAGE_SETS, name)))
    chosen = splits.train.select(stratified_subset(labels_of(splits.train), count, seed=0))
    preprocessing = native_preprocessing(network, 128).changed(crop_fraction=1.0)
    images = PlainImages(Pixels(chosen, 128), preprocessing)
    normalise, labels = (
        normaliser(preprocessing, torch.device("cpu"), "channels_last"),
        torch.from_numpy(labels_of(chosen)),
    )
    batches = ((normalise(pixels), labels[indices]) for pixels, indices in make_loader(images, torch.device("cpu"), 0))
    return similarity(measure_domain_parts(network, batches), LITE0)[0]
