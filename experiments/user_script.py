"""Run the script that an experienced user would write with torchvision's folders and loaders, timm and scikit-learn."""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

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

EPOCHS = 5
"""Number of epochs of fine-tuning, as in tutorials."""

RATE = 1e-3
"""Peak learning rate of fine-tuning: the default of AdamW."""

Mode = Literal["tutorial", "tuned"]
"""Settings of the computation. `tutorial`: float32 in PyTorch's default layout; `tuned`: bfloat16, if the processor has
it, in channels-last layout."""


def run_script(mode: Mode, data: Path, seed: int, image_size: int, train_layers: bool) -> Row:
    """Return the test images that the script classifies correctly, and its time in seconds.

    Args:
        mode: settings of the computation.
        data: folder with train and test.
        seed: seed of order, augmentation and head.
        image_size: side of the square images, in pixels.
        train_layers: whether to fine-tune all layers for `EPOCHS`; otherwise a logistic regression is fitted to the
            frozen features.
    """
    start = time.perf_counter()
    torch.manual_seed(seed)
    varied, plain = _transforms(image_size)
    train_set = ImageFolder(str(data / "train"), varied if train_layers else plain)
    test_set = ImageFolder(str(data / "test"), plain)
    workers = os.cpu_count() or 1
    loader = DataLoader(train_set, BATCH, shuffle=train_layers, num_workers=workers, drop_last=train_layers)
    test_loader = DataLoader(test_set, BATCH, num_workers=workers)
    network = pretrained(len(train_set.classes))
    network.to(memory_format=_layout(mode))
    if train_layers:
        _fine_tune(network, loader, mode)
        scores, labels = _outputs(network, network, test_loader, mode)
        predicted = scores.argmax(axis=1)
    else:

        def pooled(images: Tensor) -> Tensor:
            features: Tensor = network.forward_head(network.forward_features(images), pre_logits=True)
            return features

        features, targets = _outputs(network, pooled, loader, mode)
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(features, targets)
        features, labels = _outputs(network, pooled, test_loader, mode)
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


def _layout(mode: Mode) -> torch.memory_format:
    return torch.channels_last if mode == "tuned" else torch.contiguous_format


def _computing(mode: Mode) -> AbstractContextManager[Any]:
    is_half = mode == "tuned" and "bfloat16" in precisions(CPU)
    return torch.autocast("cpu", torch.bfloat16) if is_half else nullcontext()


def _fine_tune(network: nn.Module, loader: "DataLoader[Any]", mode: Mode) -> None:
    """Train all layers with AdamW and a one-cycle schedule."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * len(loader))
    for _ in range(EPOCHS):
        network.train()
        for images, target in loader:
            with _computing(mode):
                loss = nn.functional.cross_entropy(network(images.to(memory_format=_layout(mode))), target)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def _outputs(
    network: nn.Module, compute: Callable[[Tensor], Tensor], batches: "DataLoader[Any]", mode: Mode
) -> tuple[Any, Any]:
    """Return the outputs (n_images, width) of a function of the network, and the labels (n_images,)."""
    network.eval()
    found, labels = [], []
    with torch.inference_mode(), _computing(mode):
        for images, target in batches:
            found.append(compute(images.to(memory_format=_layout(mode))).float().numpy())
            labels.append(target.numpy())
    return np.concatenate(found), np.concatenate(labels)
