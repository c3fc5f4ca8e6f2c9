"""Measure the rate of a prediction compared with the bare forward pass, and its memory with many rows.

    python -m experiments.measure_predict [--images FOLDER] [--image-size 128] [--rounds 3] [--workers 0]
        [--sizes 10000 100000 1000000]

Rate: the bare loop decodes JPEG files, resizes them and sends them through EfficientNet-Lite0, with the batches,
threads and worker processes of the prediction, and does nothing else. The prediction also lists and checks the files,
and writes their labels as CSV. Both take turns on the same files, and the times of each turn are compared, so that the
ratio depends little on what else runs on the machine.

Memory: a table of paths names 64 small files again and again, and `finetune predict` labels it with a tiny network at
32 px, so that a million rows take minutes. Each size runs in a process of its own, whose peak resident memory is
reported.

The run folders are those of linear probes on a few images of demo:digits; labels do not matter here.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from operator import itemgetter
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import finetune
from finetune.data import files_below, read_image
from finetune.data.augmentation import plain_view
from finetune.data.batches import normaliser
from finetune.decide.preprocessing import Preprocessing
from finetune.device import best_device
from finetune.network.cpu import FoldedNorms, ThreadTeam
from finetune.predict.labelling import label_files
from finetune.predict.model import TrainedModel
from finetune.predict.tables import write_table
from finetune.runs.folder import RunFolder
from finetune.runs.report import Report

SMALL = 64
"""Number of different files in the tables of paths."""

GENERATED = 512
"""Number of JPEG files, 213 x 160 px, that are made if no folder of images is given."""

MEMORY_SIZE = 32
"""Side of the square input while memory is measured, in pixels."""

TINY = "test_efficientnet"
"""Network with which memory is measured, with random weights."""


class Files(Dataset[Tensor]):
    """Image files, decoded and resized, and nothing else."""

    def __init__(self, paths: list[str], preprocessing: Preprocessing) -> None:
        """Hold the paths."""
        self.paths = paths
        self._preprocessing = preprocessing

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """Return the pixels (3, size, size) of a file."""
        image = read_image(self.paths[index], self._preprocessing.shorter_side)
        return plain_view(np.array(image), self._preprocessing)


def make_images(folder: Path, count: int, size: tuple[int, int]) -> list[str]:
    """Write `count` different JPEG files of a size (width, height), and return their paths."""
    folder.mkdir()
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (size[1] // 8, size[0] // 8, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize(size).save(folder / f"{number:04d}.jpg", quality=90)
    return files_below(folder)


def make_run(folder: Path, model: str, weights: Path | None, image_size: int, workers: int) -> Path:
    """Train a linear probe, and return its run folder, whose plan predicts at this size with these workers."""
    recipe = finetune.Recipe(
        data="demo:digits",
        model=model,
        weights=None if weights is None else str(weights),
        strategy="linear_probe",
        image_size=MEMORY_SIZE,
        limit=40,
    )
    finetune.run(recipe, folder, Report(Console(quiet=True)))
    plan = RunFolder(folder).read_plan()
    threads = torch.get_num_threads()
    forward = plan.forward.changed(batch_size=16, parallel_parts=threads, num_threads=1, loader_workers=workers)
    preprocessing = plan.preprocessing.changed(image_size=image_size)
    plan.changed(preprocessing=preprocessing, forward=forward).save(folder / "plan.json")
    return folder


def forward_barely(model: TrainedModel, paths: list[str]) -> int:
    """Send image files through a network, and return their number."""
    settings, preprocessing, network = model.plan.forward, model.plan.preprocessing, model.network
    normalise = normaliser(preprocessing, best_device(), settings.layout)
    files = Files(paths, preprocessing)
    starts = range(0, len(paths), settings.batch_size)
    blank = torch.zeros(1, 3, preprocessing.image_size, preprocessing.image_size, dtype=torch.uint8)
    folded = FoldedNorms(lambda: network(normalise(blank)))

    def read(start: int) -> Callable[[], Tensor]:
        return lambda: torch.stack([files[i] for i in range(start, min(start + settings.batch_size, len(paths)))])

    def send(make: Callable[[], Tensor]) -> NDArray[np.float32]:
        with torch.no_grad(), folded:
            logits: NDArray[np.float32] = network(normalise(make())).cpu().numpy()
        return logits

    batches: Iterator[Callable[[], Tensor]] = map(read, starts)
    if settings.loader_workers:
        loader = DataLoader(files, settings.batch_size, num_workers=settings.loader_workers)
        batches = (partial(itemgetter(0), [batch]) for batch in loader)
    with ThreadTeam(settings.parallel_parts, settings.num_threads, apart=True) as team:
        return sum(len(logits) for logits in team.map(send, batches))


def measure_rate(run: Path, paths: list[str], rounds: int, folder: Path) -> None:
    """Print the rates of the bare loop and of the prediction, and their ratios."""
    model = RunFolder(run).read_model()
    assert isinstance(model, TrainedModel)
    listed = folder / "rates.csv"
    write_list(listed, paths, len(paths))
    output = folder / "labels.csv"

    def predict() -> int:
        output.unlink(missing_ok=True)
        return write_table([listed], lambda: lambda chunks: label_files(model, chunks), output, "task", lambda _: None)[
            0
        ]

    spent: dict[str, list[tuple[float, float]]] = {"bare": [], "predict": []}
    forward_barely(model, paths[:64])
    for number in range(rounds):
        ways: list[tuple[str, Callable[[], int]]] = [
            ("bare", partial(forward_barely, model, paths)),
            ("predict", predict),
        ]
        for name, work in ways if number % 2 == 0 else reversed(ways):
            begun = time.perf_counter(), processor_seconds()
            assert work() == len(paths)
            spent[name].append((time.perf_counter() - begun[0], processor_seconds() - begun[1]))
    pairs = np.array([spent["bare"], spent["predict"]])  # (2, rounds, 2): loop, round, kind of time
    ratios = pairs[0] / pairs[1]
    rates = len(paths) / np.median(pairs[:, :, 0], axis=1)
    settings = model.plan.forward
    print(
        f"{len(paths)} files at {model.plan.preprocessing.image_size} px, batches of {settings.batch_size}, "
        f"{settings.parallel_parts} threads, {settings.loader_workers} workers: bare {rates[0]:.0f} images/s, predict "
        f"{rates[1]:.0f} images/s"
    )
    for kind, own in zip(("wall", "processor"), ratios.T, strict=True):
        each = ", ".join(f"{ratio:.3f}" for ratio in own)
        print(f"ratio by {kind} time: median {np.median(own):.3f} of {each}", flush=True)


def processor_seconds() -> float:
    """Return the processor time of this process and of its worker processes that have ended, in seconds."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def write_list(table: Path, paths: list[str], count: int) -> None:
    """Write a table of `count` paths, which repeats the given ones."""
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path"])
        cycle = (path for _ in repeat(None) for path in paths)
        writer.writerows([next(cycle)] for _ in range(count))


def measure_memory(run: Path, paths: list[str], sizes: list[int], folder: Path) -> None:
    """Print the peak memory of `finetune predict` for each number of rows, and its growth."""
    print("| rows | peak memory, MB | rows a second |")
    print("|---|---|---|")
    peaks = []
    for count in sizes:
        write_list(folder / "list.csv", paths, count)
        output = folder / f"{count}.parquet"
        code = "import resource, sys\nfrom finetune.cli import main\ntry: main()\nexcept SystemExit as ended: pass\n"
        code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        arguments = ["predict", str(run), str(folder / "list.csv"), "--output", str(output)]
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.PIPE, text=True
        ).stdout.splitlines()
        seconds = time.perf_counter() - begun
        assert done[0] == f"{count} images labelled: {output}", done
        peaks.append(int(done[-1]) * (1024 if sys.platform != "darwin" else 1) / 1e6)
        print(f"| {count:,} | {peaks[-1]:.0f} | {count / seconds:.0f} |", flush=True)
    if len(sizes) > 1:
        slope = np.polyfit(np.array(sizes, dtype=float), np.array(peaks), 1)[0]
        print(f"growth: {slope * 1e6:.0f} MB for a million rows")


def main() -> None:
    """Measure the rate, then the memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of images; by default they are made")
    parser.add_argument("--image-size", type=int, default=128, help="side of the square input, in pixels")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of both loops; 0: no rates")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images ahead")
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000], help="numbers of rows")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if arguments.rounds:
            run = make_run(folder / "run", "tf_efficientnet_lite0", None, arguments.image_size, arguments.workers)
            given = arguments.images
            paths = files_below(given) if given else make_images(folder / "large", GENERATED, (213, 160))
            measure_rate(run, paths, arguments.rounds, folder)
        if arguments.sizes:
            weights = folder / "weights.pt"
            torch.save(timm.create_model(TINY).state_dict(), weights)
            run = make_run(folder / "tiny", TINY, weights, MEMORY_SIZE, arguments.workers)
            measure_memory(run, make_images(folder / "small", SMALL, (40, 32)), arguments.sizes, folder)


if __name__ == "__main__":
    main()
