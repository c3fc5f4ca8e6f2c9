"""Run the script that an experienced user would write with torchvision's folders and loaders, timm and scikit-learn."""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from experiments.benchmark_network import BATCH, CPU, MEAN, STD, by_path, pretrained
from experiments.rows import Row
from finetune.measure.machine import precisions

RATE = 1e-3
"""Peak learning rate of fine-tuning: the default of AdamW."""


def run_script(epochs: int, data: Path, seed: int, image_size: int) -> Row:
    """Return the test images that the script classifies correctly, and its time in seconds.

    It computes in bfloat16, if the processor has it, and in channels-last layout.

    Args:
        epochs: number of epochs for which all layers are trained; 0: a logistic regression is fitted to the frozen
            features instead.
        data: folder with train and test.
        seed: seed of order, augmentation and head.
        image_size: side of the square images, in pixels.
    """
    start = time.perf_counter()
    torch.manual_seed(seed)
    varied, plain = _transforms(image_size)
    train_set = ImageFolder(str(data / "train"), varied if epochs else plain)
    test_set = ImageFolder(str(data / "test"), plain)
    workers = len(os.sched_getaffinity(0))
    loader = DataLoader(train_set, BATCH, shuffle=epochs > 0, num_workers=workers, drop_last=epochs > 0)
    test_loader = DataLoader(test_set, BATCH, num_workers=workers)
    network = pretrained(len(train_set.classes))
    network.to(memory_format=torch.channels_last)
    if epochs:
        _fine_tune(network, loader, epochs)
        scores, labels = _outputs(network, network, test_loader)
        predicted = scores.argmax(axis=1)
    else:

        def pooled(images: Tensor) -> Tensor:
            features: Tensor = network.forward_head(network.forward_features(images), pre_logits=True)
            return features

        features, targets = _outputs(network, pooled, loader)
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(features, targets)
        features, labels = _outputs(network, pooled, test_loader)
        predicted = probe.predict(features)
    paths = [path for path, _ in test_set.samples]
    return {"seconds": time.perf_counter() - start, "correct": by_path(paths, predicted == labels)}


def _transforms(image_size: int) -> tuple[Any, Any]:
    """Return the transforms of training images, with augmentation, and of test images."""
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
    return varied, plain


def _computing() -> AbstractContextManager[Any]:
    is_half = "bfloat16" in precisions(CPU)
    return torch.autocast("cpu", torch.bfloat16) if is_half else nullcontext()


def _fine_tune(network: nn.Module, loader: "DataLoader[Any]", epochs: int) -> None:
    """Train all layers with AdamW and a one-cycle schedule."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=epochs * len(loader))
    for _ in range(epochs):
        network.train()
        for images, target in loader:
            with _computing():
                loss = nn.functional.cross_entropy(network(images.to(memory_format=torch.channels_last)), target)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def _outputs(network: nn.Module, compute: Callable[[Tensor], Tensor], batches: "DataLoader[Any]") -> tuple[Any, Any]:
    """Return the outputs (n_images, width) of a function of the network, and the labels (n_images,)."""
    network.eval()
    found, labels = [], []
    with torch.inference_mode(), _computing():
        for images, target in batches:
            found.append(compute(images.to(memory_format=torch.channels_last)).float().numpy())
            labels.append(target.numpy())
    return np.concatenate(found), np.concatenate(labels)
