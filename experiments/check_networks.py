"""Check that timm's architectures can be planned, trained by every strategy, saved, reloaded and used.

    python -m experiments.check_networks [--models NAME ...] [--sample 60 --seed 0] [--largest 30] [--results FILE]
    python -m experiments.check_networks --results FILE --write

The weights are random numbers, saved to a file that is read as pretrained weights. For each architecture: the evidence
is measured on 24 small images, each strategy is planned and trained for two steps, the model is saved, reloaded through
timm and through this library, and both must predict what the trained model predicts. Rows are appended to FILE, and
networks that are already in it are not checked again. With --quick, fixed speeds stand in for the timing of the
machine, which takes most of the time. The second form writes the table of docs/explanation/networks.md.
"""

import argparse
import random
import tempfile
import time
import traceback
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from experiments.pages import mark_of, write_between
from experiments.paths import PAGES, RESULTS
from experiments.rows import Row, append_row, read_rows
from finetune import Evidence, ImageSplits, Recipe, choose_strategy, load_images, make_plan, measure_evidence, train
from finetune.decide.evidence import ForwardSettings, MachineSpeed, StageProfile, TrainingSpeed
from finetune.decide.preprocessing import Preprocessing
from finetune.decide.workload import default_trainable_stages, half_stages
from finetune.errors import FinetuneError, ModelError
from finetune.measure import measuring
from finetune.measure.machine import layouts
from finetune.network.backbone import check_forward, network_image_size, profile_stages, size_arguments
from finetune.network.head import give_head, has_head
from finetune.network.weights import create_pretrained
from finetune.recipe import Strategy
from finetune.runs.model_files import read_network, write_network

Measured = tuple[tuple[StageProfile, ...], MachineSpeed]
"""Costs of a network's stages, and speeds of the machine."""

FAMILIES = (
    "aimv2_large_patch14_224", "beit_base_patch16_224", "caformer_s18", "cait_xxs24_224", "coat_lite_tiny",
    "coatnet_nano_rw_224", "convformer_s18", "convit_tiny", "convmixer_768_32", "convnext_atto", "convnextv2_atto",
    "crossvit_9_240", "cspresnet50", "davit_tiny", "deit3_small_patch16_224", "deit_tiny_distilled_patch16_224",
    "densenet121", "dla34", "dpn68", "edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0",
    "efficientnet_b0", "efficientvit_b0", "efficientvit_m0", "eva02_tiny_patch14_224", "fastvit_t8",
    "focalnet_tiny_srf",
    "gcvit_xxtiny", "ghostnet_100", "hardcorenas_a", "hgnetv2_b0", "hiera_tiny_224", "hrnet_w18_small",
    "inception_next_atto", "inception_v3", "levit_128s", "maxvit_pico_rw_256", "mambaout_femto", "mixer_s32_224",
    "mobilenetv3_small_050", "mobilenetv4_conv_small", "mobileone_s0", "mobilevit_xxs", "mobilevitv2_050",
    "mvitv2_tiny", "nest_tiny", "nextvit_small", "nf_regnet_b0", "pit_ti_224", "poolformer_s12", "pvt_v2_b0",
    "rdnet_tiny", "regnetx_002", "repghostnet_050", "repvgg_a0", "repvit_m0_9", "res2net50_14w_8s", "resnest14d",
    "resnet18", "resnet50_clip", "resnetv2_50", "rexnet_100", "sequencer2d_s", "shvit_s1", "starnet_s1",
    "swin_tiny_patch4_window7_224", "swinv2_cr_tiny_224", "swinv2_tiny_window8_256", "tiny_vit_5m_224", "tresnet_m",
    "twins_svt_small", "vgg11_bn", "visformer_tiny", "vit_base_patch16_siglip_224", "vit_pe_core_tiny_patch16_384",
    "vit_small_patch14_dinov2", "vit_small_patch16_dinov3", "vit_tiny_patch16_224", "volo_d1_224", "vovnet39a",
    "wide_resnet50_2", "xception41", "xcit_nano_12_p16_224",
)  # fmt: skip
"""One or more architectures of each family."""

STRATEGIES: tuple[Strategy, ...] = ("linear_probe", "norm_tuning", "partial", "full", "scratch")
"""Strategies that are trained."""

SIDES = (96, 98, 128)
"""Sides of the images to try before that of the pretraining, in pixels: the smaller, the quicker."""

TOLERANCE = 1e-4
"""Largest difference between the probabilities of the trained and of a reloaded model."""


def fixed_speeds(network: nn.Module, _name: str, preprocessing: Preprocessing, *_: object) -> Measured:
    """Return the costs of the network's stages, measured, and fixed speeds instead of those of this machine."""
    stages = profile_stages(network, preprocessing.image_size)
    depths = {min(depth, len(stages) - 1) for depth in (half_stages(stages), default_trainable_stages(stages))}
    timed = [("full", 0), ("scratch", 0), ("norm_tuning", 0), *(("partial", depth) for depth in depths)]
    forward = ForwardSettings(
        precision="float32",
        layout=layouts(network, torch.device("cpu"))[0],
        batch_size=16,
        parallel_parts=1,
        num_threads=1,
        loader_workers=0,
    )
    training = [
        TrainingSpeed(
            strategy=strategy,
            trainable_stages=depth,
            precision="float32",
            parallel_parts=1,
            images_per_second=50.0,
            prefix_images_per_second=100.0 if strategy == "partial" else None,
            gradient_error=0.0,
        )
        for strategy, depth in timed
    ]
    speed = MachineSpeed(
        device="not timed",
        num_threads=1,
        forward=forward,
        forward_images_per_second=100.0,
        forward_error=0.0,
        reading_images_per_second=1000.0,
        micro_batch=8,
        training=tuple(training),
    )
    return stages, speed


def write_images(folder: Path) -> ImageSplits:
    """Write 24 training, 6 validation and 6 test images of three colours into a folder, and load them."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("validation", 2), ("test", 2)):
        for number, name in enumerate(("red", "green", "blue")):
            (folder / split / name).mkdir(parents=True)
            for image in range(count):
                pixels = generator.integers(0, 160, (80, 96, 3))
                pixels[..., number] += 90
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{image}.png")
    return load_images(str(folder))


def check(name: str, splits: ImageSplits, folder: Path) -> Row:
    """Return the row of an architecture: what was run, or the sentence of its refusal, or a traceback."""
    start = time.perf_counter()
    row: Row = {"model": name, "date": str(date.today()), "timm": timm.__version__}
    try:
        torch.manual_seed(0)
        network = timm.create_model(name)
        row["parameters"] = sum(parameter.numel() for parameter in network.parameters())
        weights = folder / "weights.safetensors"
        state = network.state_dict()
        save_file({key: tensor.clone().contiguous() for key, tensor in state.items()}, weights)
        row["image_size"] = side = smallest_side(name, weights)
        recipe = Recipe(data="images", model=name, weights=str(weights), image_size=side, steps=2, batch_size=8)
        evidence = measure_evidence(recipe, splits)
        row["stages"] = len(evidence.stages)
        for strategy in STRATEGIES:
            _check_strategy(recipe.changed(strategy=strategy), evidence, splits, folder / strategy)
        row["result"] = "passed"
    except FinetuneError as error:
        row["result"], row["sentence"] = "refused", str(error)
    except Exception as error:  # the point is to find errors of any kind
        row["result"] = "failed"
        row["sentence"] = f"{type(error).__name__}: {str(error)[:200]}"
        row["traceback"] = traceback.format_exc()[-9500:]
    row["seconds"] = round(time.perf_counter() - start, 1)
    return row


def smallest_side(name: str, weights: Path) -> int:
    """Return the first side of `SIDES` for which the network can be built with its weights, else its own, in pixels."""
    for side in SIDES:
        try:
            network, _ = create_pretrained(name, str(weights), **size_arguments(name, side))
            if not has_head(network):
                give_head(network, 3)
            check_forward(network, name, side)
        except ModelError:
            continue
        return side
    return network_image_size(name)


def _check_strategy(recipe: Recipe, evidence: Evidence, splits: ImageSplits, folder: Path) -> None:
    """Train a strategy, save and reload the model, and compare the predictions.

    Raises:
        AssertionError: a reloaded model predicts something else.
    """
    assert splits.test is not None
    plan = make_plan(recipe, evidence, choose_strategy(evidence, recipe))
    assert plan.strategy == recipe.strategy, f"{recipe.strategy} was asked for, {plan.strategy} was planned"
    model = train(plan, splits)
    expected = model.probabilities(splits.test)
    folder.mkdir()
    write_network(model, folder)
    own = read_network(folder, plan).probabilities(splits.test)
    assert np.abs(own - expected).max() <= TOLERANCE, "the reloaded model predicts something else"
    reloaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(1, 3, plan.preprocessing.image_size, plan.preprocessing.image_size)
    with torch.no_grad():
        difference = reloaded(images) - model.network.cpu().float().eval()(images)
    assert float(difference.abs().max()) <= 1e-3, "timm reloads another network"


def draw_names(count: int, seed: int, largest: float) -> list[str]:
    """Return a random sample of timm's architectures of at most `largest` million parameters."""
    names = timm.list_models()
    random.Random(seed).shuffle(names)
    drawn: list[str] = []
    for name in names:
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
        if size <= largest * 1e6:
            drawn.append(name)
        if len(drawn) == count:
            break
    return drawn


def write_table(rows: Sequence[Row]) -> None:
    """Write the table of the rows into the page."""
    page = PAGES / "networks.md"
    lines = ["| network | parameters (M) | side (px) | stages | result |", "|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: str(row["model"])):
        size = f"{row['parameters'] / 1e6:.1f}" if "parameters" in row else ""
        result = row["result"] if row["result"] == "passed" else f"{row['result']}: {row['sentence']}"
        lines.append(
            f"| `{row['model']}` | {size} | {row.get('image_size', '')} | {row.get('stages', '')} | {result} |"
        )
    write_between(page, mark_of("check_networks"), "\n".join(lines))


def main() -> None:
    """Check networks, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(FAMILIES), help="architectures; one of each family else")
    parser.add_argument("--sample", type=int, default=0, help="number of architectures to draw at random instead")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--largest", type=float, default=30.0, help="most parameters of a drawn network, in millions")
    parser.add_argument("--results", type=Path, default=RESULTS / "networks.jsonl", help="file of the rows")
    parser.add_argument("--quick", action="store_true", help="do not time the machine; use fixed speeds")
    parser.add_argument("--write", action="store_true", help="write the table of the page; nothing is checked")
    asked = parser.parse_args()
    rows = read_rows(asked.results)
    if asked.write:
        write_table(rows)
        return
    if asked.quick:
        setattr(measuring, "_measure_machine", fixed_speeds)  # noqa: B010  (mypy compares the names of arguments)
    known = {row["model"] for row in rows}
    for name in draw_names(asked.sample, asked.seed, asked.largest) if asked.sample else asked.models:
        if name in known:
            continue
        with tempfile.TemporaryDirectory() as folder:
            row = check(name, write_images(Path(folder, "images")), Path(folder))
        append_row(asked.results, row)
        print(name, row["result"], row.get("sentence", ""), f"{row['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
