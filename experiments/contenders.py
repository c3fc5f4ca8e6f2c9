"""What `benchmark.py` compares, each in a process of its own: one image set, one seed, one line of JSON at the end.

    python -m experiments.contenders fastai --data DIR/flowers12 --seed 0 --image-size 128

Every contender has the same network (EfficientNet-Lite0), the same pretrained weights, the same image size and the same
training and test images. Its clock starts after its libraries are imported.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

NETWORK = "tf_efficientnet_lite0"

EPOCHS = 5
"""Of the tutorials' fine-tuning."""

CPU = torch.device("cpu")

BATCH = 32

RATE = 1e-3
"""Peak learning rate of the tutorial's fine-tuning: AdamW's default."""

MEAN = STD = (0.5, 0.5, 0.5)
"""What the network's weights were trained with."""

Result = dict[str, Any]


def ours(
    strategy: str,
    data: Path,
    seed: int,
    image_size: int,
    cached: bool = True,
    limit: int | None = None,
    steps: int = 0,
    stages: int = 0,
) -> Result:
    """Return what this toolkit makes of the images.

    Args:
        strategy: what to train.
        data: folder with train and test.
        seed: of everything.
        image_size: side of the square.
        cached: whether activations at the frozen boundary are kept.
        limit: training images to use.
        steps: optimizer steps; 0: as many as are planned.
        stages: last stages that `partial` trains; 0: as many as are planned.
    """
    import finetune
    from finetune.data import labels_of, load_images, paths_of
    from finetune.measure import measure_evidence
    from finetune.training import train

    marks: dict[str, float] = {}

    def note(task: str, _done: int, _total: int) -> None:
        if task.startswith("training ("):
            marks.setdefault("training", time.perf_counter())

    beside_bare = strategy in {"partial", "full"}
    before = bare_training(image_size) if beside_bare else 0.0
    start = time.perf_counter()
    fixed: dict[str, Any] = {"steps": steps} if steps else {}
    if stages:
        fixed["training__trainable_stages"] = stages
    if beside_bare:
        fixed["training__progressive_resizing"] = 0.0  # so that an image is as much work as one of the bare network's
    recipe = finetune.load_recipe(data=str(data), strategy=strategy, seed=seed, image_size=image_size, **fixed)
    splits = load_images(recipe.data, limit=limit)
    evidence = measure_evidence(recipe, splits)
    choice = finetune.choose_strategy(evidence, recipe)
    plan = finetune.make_plan(recipe, evidence, choice)
    if not cached:
        plan = plan.changed(cached_views=0)
    decided = time.perf_counter()
    model = train(plan, splits, note)
    trained = time.perf_counter()
    assert splits.test is not None
    predicted = model.probabilities(splits.test).argmax(axis=1)
    end = time.perf_counter()
    durations = np.diff([float(row["seconds"]) for row in model.history if row["phase"] == model.history[0]["phase"]])
    return {
        "seconds": end - start,
        "until_decided": decided - start,
        "until_training": marks.get("training", trained) - start,
        "until_trained": trained - start,
        "train_images": len(splits.train),
        "training_images_per_second": plan.batch_size / float(np.median(durations)) if len(durations) else None,
        "bare_training": (before + bare_training(image_size)) / 2 if beside_bare else None,
        "correct": by_path(paths_of(splits.test), predicted == labels_of(splits.test)),
        "strategy": plan.strategy,
        "work": (evidence.work + model.work).model_dump(),
    }


def script(mode: str, data: Path, seed: int, image_size: int, train_layers: bool) -> Result:
    """Return what a competent user's script gives: torchvision's folders and loaders, a timm network, scikit-learn.

    Args:
        mode: `tutorial` is float32 in PyTorch's default layout, `tuned` is bfloat16, if the processor has it, in
            channels-last.
        data: folder with train and test.
        seed: of order, augmentation and head.
        image_size: side of the square.
        train_layers: fine-tune all layers for `EPOCHS`; else a logistic regression on frozen features.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    from finetune.measure.machine import precisions

    start = time.perf_counter()
    torch.manual_seed(seed)
    usual = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    plain = transforms.Compose(
        [
            transforms.Resize(int(image_size / 0.875), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(image_size),
            *usual,
        ]
    )
    varied = transforms.Compose(
        [transforms.RandomResizedCrop(image_size, (0.5, 1.0)), transforms.RandomHorizontalFlip(), *usual]
    )
    train_set = ImageFolder(str(data / "train"), varied if train_layers else plain)
    test_set = ImageFolder(str(data / "test"), plain)
    workers = os.cpu_count() or 1
    loader = DataLoader(train_set, BATCH, shuffle=train_layers, num_workers=workers, drop_last=train_layers)
    test_loader = DataLoader(test_set, BATCH, num_workers=workers)
    network = pretrained(len(train_set.classes))
    layout = torch.channels_last if mode == "tuned" else torch.contiguous_format
    network.to(memory_format=layout)

    def computing() -> AbstractContextManager[Any]:
        is_half = mode == "tuned" and "bfloat16" in precisions(CPU)
        return torch.autocast("cpu", torch.bfloat16) if is_half else nullcontext()

    def look(batches: "DataLoader[Any]", compute: Callable[[Tensor], Tensor]) -> tuple[Any, Any]:
        network.eval()
        found, labels = [], []
        with torch.inference_mode(), computing():
            for images, target in batches:
                found.append(compute(images.to(memory_format=layout)).float().numpy())
                labels.append(target.numpy())
        return np.concatenate(found), np.concatenate(labels)

    if train_layers:
        optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * len(loader))
        for _ in range(EPOCHS):
            network.train()
            for images, target in loader:
                with computing():
                    loss = nn.functional.cross_entropy(network(images.to(memory_format=layout)), target)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        scores, labels = look(test_loader, network)
        predicted = scores.argmax(axis=1)
    else:

        def pooled(images: Tensor) -> Tensor:
            features: Tensor = network.forward_head(network.forward_features(images), pre_logits=True)
            return features

        features, targets = look(loader, pooled)
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(features, targets)
        features, labels = look(test_loader, pooled)
        predicted = probe.predict(features)
    paths = [path for path, _ in test_set.samples]
    return {"seconds": time.perf_counter() - start, "correct": by_path(paths, predicted == labels)}


def fastai(data: Path, seed: int, image_size: int) -> Result:
    """Return what fastai's `fine_tune` gives, as its documentation has it."""
    from fastai.vision.all import (
        Callback,
        CancelValidException,
        ImageDataLoaders,
        Normalize,
        Resize,
        accuracy,
        aug_transforms,
        get_image_files,
        set_seed,
        vision_learner,
    )

    class WithoutValidation(Callback):  # type: ignore[misc]
        """Spare the time of looking at held-out images after each epoch."""

        def before_validate(self) -> None:
            raise CancelValidException

    start = time.perf_counter()
    set_seed(seed, reproducible=True)
    loaders = ImageDataLoaders.from_folder(
        data,
        train="train",
        valid="test",  # predicted at the end; nothing is looked at before
        item_tfms=Resize(int(image_size / 0.875)),
        batch_tfms=[*aug_transforms(size=image_size), Normalize.from_stats(MEAN, STD, cuda=False)],
        bs=BATCH,
        num_workers=os.cpu_count(),
    )
    learner = vision_learner(loaders, NETWORK, pretrained=False, normalize=False, metrics=accuracy)
    body = learner.model[0].model
    state = {name: value for name, value in pretrained(1000).state_dict().items() if not name.startswith("classifier")}
    body.load_state_dict(state, strict=True)
    files = sorted(get_image_files(data / "test"))
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(EPOCHS, cbs=WithoutValidation())
        scores, _ = learner.get_preds(dl=loaders.test_dl(files))
    names = list(loaders.vocab)
    right = [names[int(best)] == file.parent.name for best, file in zip(scores.argmax(dim=1), files, strict=True)]
    return {"seconds": time.perf_counter() - start, "correct": by_path(map(str, files), right)}


def bare(data: Path, image_size: int) -> Result:
    """Return the images a second of decoding alone, and of the network alone on ready tensors: the limits.

    "Unaided" is without this toolkit's quick gradients of convolutions, which the limit has.

    The network's rates are the best of float32 and bfloat16 (if the processor has it), both layouts, several batch
    sizes, and one batch on all cores or one on each core; and those of the tutorials' way.
    """
    from PIL import Image

    from finetune.measure.machine import precisions
    from finetune.network.cpu.convolutions import quick_gradients

    files = [str(file) for file in sorted((data / "train").rglob("*.*"))]
    cores = os.cpu_count() or 1

    def decode(file: str) -> NDArray[np.uint8]:
        with Image.open(file) as image:
            rgb = image.convert("RGB")
        side = int(image_size / 0.875)
        scale = side / min(rgb.size)
        rgb = rgb.resize((round(rgb.width * scale), round(rgb.height * scale)), Image.Resampling.BICUBIC)
        left, top = (rgb.width - image_size) // 2, (rgb.height - image_size) // 2
        return np.asarray(rgb.crop((left, top, left + image_size, top + image_size)))

    def decode_all(threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(decode, files))

    def quick() -> AbstractContextManager[Any]:
        return quick_gradients(CPU)

    network = pretrained(12)
    decoding = max(rate(partial(decode_all, threads), len(files)) for threads in (1, cores))
    forward, training, unaided, larger = [], [], [], []
    for precision in precisions(CPU):
        for layout in (torch.channels_last, torch.contiguous_format):
            for streams in (1, cores):
                for batch in (16, 32):
                    way = (precision, layout, streams, batch)
                    forward.append(network_rate(network, image_size, way, nullcontext, False))
                way = (precision, layout, streams, BATCH // streams)
                unaided.append(network_rate(network, image_size, way, nullcontext, True))
                training.append(network_rate(network, image_size, way, quick, True))
                way = (precision, layout, streams, 2 * BATCH // streams)
                larger.append(network_rate(network, image_size, way, quick, True))
    tutorial = ("float32", torch.contiguous_format, 1, BATCH)
    return {
        "decoding": decoding,
        "forward": max(forward),
        "training": max(*training, *unaided),
        "unaided_training": max(unaided),
        "larger_training": max(larger),
        "tutorial_forward": network_rate(network, image_size, tutorial, nullcontext, False),
        "tutorial_training": network_rate(network, image_size, tutorial, nullcontext, True),
    }


def bare_training(image_size: int) -> float:
    """Return the images a second of the bare forward and backward pass, in the fastest arithmetic of the
    processor, now: what a machine that others share, too, can do changes within minutes."""
    from finetune.measure.machine import precisions
    from finetune.network.cpu.convolutions import quick_gradients

    cores = os.cpu_count() or 1
    return max(
        network_rate(
            pretrained(12),
            image_size,
            (precision, torch.channels_last, cores, BATCH // cores),
            lambda: quick_gradients(CPU),
            True,
        )
        for precision in precisions(CPU)
    )


def network_rate(
    network: nn.Module,
    image_size: int,
    way: tuple[str, torch.memory_format, int, int],
    gradients: Callable[[], AbstractContextManager[Any]],
    trains: bool,
) -> float:
    """Return the images a second of a forward pass, or of one with its backward pass, batch norms frozen."""
    precision, layout, streams, batch = way
    network.to(memory_format=layout).eval()
    images = torch.randn(batch, 3, image_size, image_size).contiguous(memory_format=layout)
    labels = torch.zeros(batch, dtype=torch.long)
    parameters = list(network.parameters())

    def work() -> None:
        with gradients(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            if not trains:
                with torch.inference_mode():
                    network(images)
                return
            loss = nn.functional.cross_entropy(network(images).float(), labels)
        torch.autograd.grad(loss, parameters)

    if streams == 1:
        return rate(work, batch)
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(streams, initializer=torch.set_num_threads, initargs=(max(1, threads // streams),)) as pool:
        return rate(lambda: list(pool.map(lambda _: work(), range(streams))), streams * batch)


def show_help(repetitions: int = 5) -> Result:
    """Return the median seconds that the command takes to show its help, the interpreter's start included."""
    command = [sys.executable, str(Path(__file__).with_name("finetune.py")), "--help"]
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds)}


def rate(work: Callable[[], object], count: int, repetitions: int = 5) -> float:
    """Return how many of `count` a second `work` does: the median after one that is not timed."""
    work()
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return count / statistics.median(seconds)


def pretrained(num_classes: int) -> Any:  # noqa: ANN401  (timm's networks have no type)
    """Return the network with its pretrained weights and a new head."""
    from finetune.network.weights import create_embedded

    network: Any = create_embedded()[0]
    if num_classes != 1000:
        network.reset_classifier(num_classes)
    return network


def by_path(paths: Iterable[str], right: Iterable[Any]) -> str:
    """Return 1 or 0 for each image, in the order of the paths, so that contenders can be compared image by image."""
    return "".join(str(int(is_right)) for _, is_right in sorted(zip(paths, right, strict=True)))


CONTENDERS: dict[str, Callable[[Path, int, int], Result]] = {
    "linear_probe": lambda data, seed, size: ours("linear_probe", data, seed, size),
    "auto": lambda data, seed, size: ours("auto", data, seed, size),
    "partial": lambda data, seed, size: ours("partial", data, seed, size),
    "partial, not cached": lambda data, seed, size: ours("partial", data, seed, size, cached=False),
    "partial, 2 stages": lambda data, seed, size: ours("partial", data, seed, size, stages=2),
    "partial, 2 stages, not cached": lambda data, seed, size: ours("partial", data, seed, size, cached=False, stages=2),
    "linear_probe, 60": lambda data, seed, size: ours("linear_probe", data, seed, size, limit=60),
    "linear_probe, 400": lambda data, seed, size: ours("linear_probe", data, seed, size, limit=400),
    "full, short": lambda data, seed, size: ours("full", data, seed, size, steps=40),
    "fastai": fastai,
    "script, probe": lambda data, seed, size: script("tutorial", data, seed, size, train_layers=False),
    "script, probe, tuned": lambda data, seed, size: script("tuned", data, seed, size, train_layers=False),
    "script": lambda data, seed, size: script("tutorial", data, seed, size, train_layers=True),
    "script, tuned": lambda data, seed, size: script("tuned", data, seed, size, train_layers=True),
    "bare": lambda data, _, size: bare(data, size),
    "help": lambda _data, _seed, _size: show_help(),
}


def main() -> None:
    """Run one contender."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contender", choices=sorted(CONTENDERS))
    parser.add_argument("--data", type=Path, required=True, help="folder with train and test, a folder for each class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", type=int, default=128)
    arguments = parser.parse_args()
    result = CONTENDERS[arguments.contender](arguments.data, arguments.seed, arguments.image_size)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
