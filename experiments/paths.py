"""Name the folders that the measuring programs read from and write to."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""Root of the repository."""

RESULTS = ROOT / "experiments" / "results"
"""Folder of the measured rows."""

PAGES = ROOT / "docs" / "explanation"
"""Folder of the pages that programs write."""

IMAGES = ROOT / "docs" / "images"
"""Folder of the pictures that programs draw."""
