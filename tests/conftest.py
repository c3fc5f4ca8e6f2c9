import csv
import gc
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_kept = tempfile.TemporaryDirectory(prefix="finetune-tests-")
# No network, no accelerator, a cache of this run's own, one thread: the libraries below look once, when they are
# imported.
for _own in ("FINETUNE_CACHE", "FINETUNE_CACHE_LIMIT"):
    os.environ.pop(_own, None)
os.environ["XDG_CACHE_HOME"] = _kept.name
os.environ["HF_HOME"] = str(Path(_kept.name, "huggingface"))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from finetune.decide.evidence import (
    Evidence,
    ForwardSettings,
    LearningCurve,
    MachineSpeed,
    ProbeResult,
    StageProfile,
    TrainingSpeed,
)
from finetune.decide.plan import AugmentationPlan, Plan, StagePlan
from finetune.decide.preprocessing import Preprocessing
from finetune.ensemble import members
from finetune.ensemble.recommendation import Offer, Option
from finetune.measure import machine, timing
from finetune.network.backbone import find_stages, size_arguments
from finetune.predict.metrics import score
from finetune.predict.model import Ensemble, TrainedModel
from finetune.recipe import Recipe, TableColumns
from finetune.runs.folder import Averaged, RunFolder, RunMetrics, Seconds
from finetune.runs.model_files import write_network
from finetune.runs.pipeline import run
from finetune.training import evaluation
from finetune.work import Work

FORWARD = ForwardSettings(
    precision="float32", layout="channels_last", batch_size=64, parallel_parts=1, num_threads=1, loader_workers=0
)

FAMILIES = (
    "test_resnet",
    "test_efficientnet",
    "test_convnext",
    "test_vit",
    "swin_tiny_patch4_window7_224",
    "mobilenetv3_small_050",
)
"""One network of each family."""

PLAIN = {
    "horizontal_flip": False,
    "vertical_flip": False,
    "smallest_crop": 1.0,
    "color_jitter": 0.0,
    "policy": "none",
    "mixing": "none",
}
"""An augmentation that varies nothing."""

CLASSES = {"a": 6, "b": 6}
COLOURS = ((220, 40, 40), (40, 200, 60), (50, 70, 220), (220, 200, 40), (180, 60, 200), (60, 200, 200))


def pytest_configure():
    torch.set_num_threads(1)


def pytest_collection_finish():
    """Spare the garbage collector what was imported: it is called after every training, and would search it all."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    _kept.cleanup()


def slow(*values):
    """Return values of a parameter that only `pytest -m ""` and `pytest -m slow` try."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def coloured_image(class_number: int, number: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """An image in its class's colour with noise, different for every number."""
    noise = np.random.default_rng([class_number, number]).integers(-30, 31, (size[1], size[0], 3))
    colour = np.array(COLOURS[class_number % len(COLOURS)])
    return Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8))


def make_image_folder(
    root: Path,
    classes: Mapping[str, int] = CLASSES,
    size: tuple[int, int] = (40, 32),
    splits: Mapping[str, Mapping[str, int]] | None = None,
) -> Path:
    """Write `classes` (name to number of images) below `root`; with `splits`, one such tree for each split.

    Even images are jpg, odd ones png; no two images of a call are alike.
    """
    names = sorted({name for tree in (splits or {"": classes}).values() for name in tree})
    numbers = dict.fromkeys(names, 0)
    for split, tree in (splits or {"": classes}).items():
        for name, count in tree.items():
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for _ in range(count):
                number = numbers[name]
                numbers[name] += 1
                ending = "jpg" if number % 2 == 0 else "png"
                coloured_image(names.index(name), number, size).save(folder / f"{number:03d}.{ending}")
    return root


def run_two_processes(script: Path, *arguments: str | Path) -> None:
    """Run a script in two processes on the CPU, which know of each other."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[:3000]


def run_two_machines(folder: Path, script: Path, *arguments: str | Path) -> None:
    """Run a script under two launchers with a process each, as on two machines that share a disk; each launcher has a
    cache of its own, in `folder`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    launch += ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{port}"]
    started = [
        subprocess.Popen(
            [*launch, "--node_rank", str(rank), str(script), *map(str, arguments)],
            env=os.environ | {"FINETUNE_CACHE": str(folder / f"cache of machine {rank}")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    printed = [launcher.communicate(timeout=300)[0] for launcher in started]
    assert [launcher.returncode for launcher in started] == [0, 0], "\n".join(text[:3000] for text in printed)


@pytest.fixture(scope="module", autouse=True)
def _quick_timing(request):
    """Let each network be timed once a worker, whatever else runs, and without repetitions: how fast a machine is
    matters to the tests of `measure` alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "BUSY", float("inf"))
        patch.setattr(machine, "WATCHED_SECONDS", 0.0)
        if request.path.parent.name != "measure":
            patch.setattr(timing, "REPETITIONS", 1)
        yield


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    """The folder of a cache of the test's own, in which nothing lies yet."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FINETUNE_CACHE", str(folder))
    return folder


@pytest.fixture
def image_folder() -> Callable[..., Path]:
    """The factory `make_image_folder`."""
    return make_image_folder


@pytest.fixture(scope="session")
def small_network():
    """The factory of networks with random weights for 64 px, the same at each call."""

    def make(name="test_efficientnet", num_classes=3):
        torch.manual_seed(0)
        arguments = size_arguments(name, 64)
        return timm.create_model(name, num_classes=num_classes, **arguments).eval()

    return make


@pytest.fixture(scope="session")
def small_plan(small_network):
    """The factory of plans for the small networks; `trained` says how many of the last stages `partial` trains."""

    def make(name="test_efficientnet", strategy="partial", trained=2, **changes):
        stages = find_stages(small_network(name))
        count = {"linear_probe": 0, "partial": trained}.get(strategy, len(stages))
        rates = [1e-3 if number >= len(stages) - count else 0.0 for number in range(len(stages))]
        plan = Plan(
            data="images",
            columns=TableColumns(),
            limit=0,
            model=name,
            weights="random" if strategy == "scratch" else "pretrained",
            preprocessing=Preprocessing(
                image_size=32, crop_fraction=1.0, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
            ),
            strategy=strategy,
            stages=tuple(
                StagePlan(name=stage.name, learning_rate=rate) for stage, rate in zip(stages, rates, strict=True)
            ),
            head_learning_rate=1e-3,
            probe_inverse_regularization=0.02,
            steps=0 if strategy == "linear_probe" else 6,
            warmup_steps=0 if strategy == "linear_probe" else 1,
            schedule="cosine",
            batch_size=4,
            accumulation=1,
            weight_decay=0.02,
            label_smoothing=0.05,
            clip_norm=1.0,
            average_decay=0.5,
            batch_norm_statistics="frozen",
            imbalance="none",
            augmentation=AugmentationPlan(
                horizontal_flip=True,
                vertical_flip=False,
                smallest_crop=0.5,
                color_jitter=0.1,
                policy="none",
                mixing="none",
            ),
            test_time_flips=False,
            cached_views=2 if strategy == "partial" else 0,
            precision="float32",
            parallel_parts=1,
            num_threads=1,
            forward=FORWARD,
            keep="last",
            evaluations=2,
            patience=0,
            minimum_gain=0.0,
            time_budget=0.0,
            validation="held_out",
            folds=2,
            refit=False,
            refit_steps=4,
            metric="top1",
            seed=0,
            training_seed=0,
            cycle=0,
        )
        return plan.changed(**changes)

    return make


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """A file with the weights that `test_efficientnet` has after `torch.manual_seed(0)`."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "weights.pt"
    torch.save(timm.create_model("test_efficientnet").state_dict(), path)
    return path


@pytest.fixture
def weights_file(tmp_path):
    """The factory of a file with the weights that a network of 1,000 classes has after `torch.manual_seed(0)`."""

    def make(name="test_efficientnet"):
        torch.manual_seed(0)
        path = tmp_path / f"{name}.safetensors"
        save_file(timm.create_model(name).state_dict(), path)
        return path

    return make


@pytest.fixture
def evidence() -> Evidence:
    """What could have been measured on 240 photographs of 4 classes, near the pretraining images, on a CPU."""
    return Evidence(
        model="test_resnet",
        weights="the file w.safetensors",
        num_images=240,
        num_classes=4,
        images_per_class=60.0,
        class_counts={"a": 60, "b": 60, "c": 60, "d": 60},
        imbalance=1.0,
        num_unreadable=0,
        num_held=240,
        native_shorter_side=150,
        preprocessing=Preprocessing(
            image_size=128, crop_fraction=0.875, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        ),
        image_size_reason="128 px: the images have 150 px",
        domain_similarity=0.8,
        similarity_parts={"late_vigour": -0.1},
        similarity_calibrated=True,
        probe=ProbeResult(
            accuracy=0.85,
            accuracy_error=0.023,
            balanced_accuracy=0.85,
            log_loss=0.5,
            strength=0.01,
            answers={"none": 0.84, "logit_adjustment": 0.86},
            curve=LearningCurve(num_images=(48, 96, 192), accuracy=(0.75, 0.81, 0.85), slope=0.37, slope_error=0.05),
        ),
        chirality=0.52,
        stages=(
            StageProfile(name="stem", num_parameters=400, forward_share=0.1, output_values=65536),
            StageProfile(name="layer1", num_parameters=4_000, forward_share=0.3, output_values=32768),
            StageProfile(name="layer2", num_parameters=20_000, forward_share=0.3, output_values=16384),
            StageProfile(name="layer3", num_parameters=80_000, forward_share=0.2, output_values=8192),
            StageProfile(name="layer4", num_parameters=300_000, forward_share=0.1, output_values=4096),
        ),
        speed=MachineSpeed(
            device="a CPU",
            num_threads=1,
            forward=FORWARD,
            forward_images_per_second=200.0,
            forward_error=0.0,
            reading_images_per_second=500.0,
            micro_batch=32,
            training=(
                _speed("norm_tuning", 0, 80.0, None),
                _speed("partial", 1, 250.0, 250.0),
                _speed("partial", 3, 100.0, 400.0),
                _speed("full", 0, 50.0, None),
                _speed("scratch", 0, 50.0, None),
            ),
        ),
        cache_bytes=2**30,
        seconds=12.5,
        work=Work(forward_images=1040, forward_equivalents=1040.0),
        metric="top1",
        has_validation=False,
    )


def _speed(strategy: str, stages: int, rate: float, prefix: float | None) -> TrainingSpeed:
    return TrainingSpeed(
        strategy=strategy,
        trainable_stages=stages,
        precision="bfloat16",
        parallel_parts=1,
        images_per_second=rate,
        prefix_images_per_second=prefix,
        gradient_error=0.0,
    )


@pytest.fixture(scope="session")
def recommend_place() -> Callable[[pytest.MonkeyPatch, int], None]:
    """The function that lets a place of what could ship be recommended, whatever the held-out images say."""

    def patched(patch: pytest.MonkeyPatch, place: int) -> None:
        own = members.recommend

        def recommend(offers: Sequence[Offer], requested: int) -> tuple[Option, ...]:
            options = own(offers, requested)
            ships = options[place]
            return tuple(option.changed(recommended=option is ships) for option in options)

        patch.setattr(members, "recommend", recommend)

    return patched


@pytest.fixture(scope="session")
def trained(small_network, small_plan):
    """The factory of a model that was not trained, with squares of 32 px and changes of its preprocessing."""

    def make(name="test_resnet", temperature=0.5, flips=False, **preprocessing):
        plan = small_plan(name, test_time_flips=flips)
        plan = plan.changed(preprocessing=plan.preprocessing.changed(**{"crop_fraction": 0.875, **preprocessing}))
        return TrainedModel(
            network=small_network(name), plan=plan, class_names=("a", "b", "ü"), temperature=temperature
        )

    return make


@pytest.fixture
def few_images(monkeypatch):
    """Exported models are compared on 30 images instead of 200."""
    from finetune.export import images

    monkeypatch.setattr(images, "LEAST_IMAGES", 30)
    monkeypatch.setattr(images, "DERIVED_SHAPES", 24)


@pytest.fixture(scope="session")
def averaged(trained):
    """The factory of an ensemble of two networks that resize in different ways."""

    def make():
        members = (
            trained("test_resnet", flips=True),
            trained("test_efficientnet", temperature=1.5, image_size=64, interpolation="bilinear"),
        )
        return Ensemble(members=members, plan=members[0].plan, class_names=members[0].class_names, temperature=0.7)

    return make


@pytest.fixture(scope="session")
def write_run():
    """The function that writes a model into a run folder, with the paths of its test images."""

    def write(model, folder, images=()):
        members = model.members if isinstance(model, Ensemble) else (model,)
        names = [f"members/{number}" for number in range(1, len(members) + 1)]
        places = [folder / name for name in names] if len(members) > 1 else [folder]
        for member, place in zip(members, places, strict=True):
            place.mkdir(parents=True, exist_ok=True)
            member.plan.save(place / "plan.json")
            write_network(member, place)
        for place in {folder, *places}:
            _metrics_of(model).save(place / "metrics.json")
        if len(members) > 1:
            Averaged(members=names, temperature=model.temperature).save(folder / "ensemble.json")
        with (folder / "splits.csv").open("w", encoding="utf-8", newline="") as file:
            rows = [["path", "label", "split", "held_out_by"], *([str(path), "a", "test", ""] for path in images)]
            csv.writer(file).writerows(rows)
        return folder

    return write


def _metrics_of(model):
    """Metrics of a run whose images are all right."""
    names = list(model.class_names)
    right = score(np.eye(len(names)), np.arange(len(names)), names)
    seconds = Seconds(evidence=1.0, search=0.0, train=1.0, total=2.0)
    return RunMetrics(validation=right, validation_source="held-out images", test=right, seconds=seconds, work=Work())


@pytest.fixture
def server():
    """A hub that answers on this machine until the test ends."""
    from tests.publish.hub import Hub

    with Hub() as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def finished_run(weights, tmp_path_factory):
    """The folder of a finished run with a test split, from weights in a file."""
    root = tmp_path_factory.mktemp("published")
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 5)):
        for name, colour in (("a", 60), ("b|<img>", 180)):
            folder = root / "secret" / "imgs" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                noise = generator.integers(-50, 50, (32, 40, 3))
                Image.fromarray((colour + noise).astype(np.uint8)).save(folder / f"{number}.png")
    recipe = Recipe(
        data=str(root / "secret" / "imgs"),
        model="test_efficientnet",
        weights=str(weights),
        strategy="linear_probe",
        image_size=32,
    )
    run(recipe, root / "run")
    return RunFolder(root / "run")


@pytest.fixture(scope="module")
def never_worse():
    """Let no training count as worse than its linear probe after its few steps, unless a test says so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "STANDARD_ERRORS", (float("inf"), float("inf")))
        yield
