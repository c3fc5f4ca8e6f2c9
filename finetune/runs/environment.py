"""Describe the environment of a run: platform, device and versions of packages."""

import platform
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from finetune import __version__

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "datasets",
    "scikit-learn",
    "numpy",
    "optuna",
    "pillow",
)
"""Packages whose versions influence the numbers of a run, in addition to finetune's own."""


def describe_environment() -> dict[str, Any]:
    """Return everything that the numbers of a run depend on in addition to the plan, as plain values."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "threads": torch.get_num_threads(),
        "packages": {"finetune": __version__, **{name: _version(name) for name in PACKAGES}},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
