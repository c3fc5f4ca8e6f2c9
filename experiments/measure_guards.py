"""Measure what it costs to guard a default run: the share of its processor time.

    python -m experiments.measure_guards --data DIR/SET

One run is made with an empty cache. The processor time within each guard is added up: the digests of the data, the
comparison of copies within the run, and the count of the models that have scored the test images. Each share compares
two times of one run, so it does not depend on how busy the machine is.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console

import finetune
from finetune.runs import copies, run_data, saving
from finetune.runs.report import Report

GUARDS: tuple[tuple[str, Any, str], ...] = (
    ("digests of the data", run_data, "identify"),
    ("comparison of copies", copies, "_look"),
    ("count of the models that have scored the test images", saving, "_reads"),
)
"""Each guard in words, and the module and the name of the function that is timed."""


def timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """Return a function whose processor time in seconds is appended to `spent`."""

    @wraps(function)
    def called(*arguments: Any, **values: Any) -> Any:  # noqa: ANN401  (those of any function)
        begun = time.process_time()
        try:
            return function(*arguments, **values)
        finally:
            spent.append(time.process_time() - begun)

    return called


@contextmanager
def guards_timed() -> Iterator[dict[str, list[float]]]:
    """Yield the processor times of each guard, in seconds, which grow inside the context."""
    spent: dict[str, list[float]] = {about: [] for about, _, _ in GUARDS}
    with ExitStack() as stack:
        for about, module, name in GUARDS:
            stack.enter_context(patch.object(module, name, timed(getattr(module, name), spent[about])))
        yield spent


def main() -> None:
    """Make a run, and print a row for each guard."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="images to train on")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, guards_timed() as spent:
        os.environ["FINETUNE_CACHE"] = str(Path(place, "cache"))
        begun = time.process_time()
        finetune.run(finetune.load_recipe(data=arguments.data), Path(place, "run"), Report(Console()))
        total = time.process_time() - begun
    print(f"| guard | processor time | share of {total:.0f} s |")
    print("|---|---|---|")
    for about, times in spent.items():
        print(f"| {about} | {sum(times):.2f} s | {sum(times) / total:.2%} |")


if __name__ == "__main__":
    main()
