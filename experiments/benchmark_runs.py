"""Run contenders of the benchmarks, each in a process of its own, and keep their results."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

from experiments.anytime import Results
from experiments.rows import Row, append_row, read_rows
from finetune.decide.class_weights import UNEQUAL


def copy_part(data: Path, folder: Path, limit: int) -> None:
    """Copy an image set with at most `limit` training images, the same share of each class, drawn with seed 0."""
    classes = {each.name: sorted(each.iterdir()) for each in sorted((data / "train").iterdir())}
    share = min(1.0, limit / sum(map(len, classes.values())))
    shutil.copytree(data / "test", folder / "test")
    for name, files in classes.items():
        (folder / "train" / name).mkdir(parents=True)
        for file in random.Random(0).sample(files, max(1, int(share * len(files)))):
            shutil.copy(file, folder / "train" / name)


def unequal_counts(folder: Path) -> list[int] | None:
    """Return the number of test images of each class where classes are so unequal that models are compared by balanced
    accuracy, else None."""
    training, test = (
        [len(list(each.iterdir())) for each in sorted((folder / part).iterdir())] for part in ("train", "test")
    )
    return test if max(training) >= UNEQUAL * min(training) else None


class BenchmarkRuns:
    """The results so far, in a file with one line for each result."""

    def __init__(self, file: Path, data: Path, limit: int | None = None) -> None:
        """Read the results that are there.

        Args:
            file: file of the results; its folder also holds the cache, and is made if there is none.
            data: folder of the image sets.
            limit: largest number of training images of a set; None: all are used.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file
        self._cache = file.parent / "cache"
        self._data = data
        self._limit = limit
        self.results: Results = {(row["contender"], row["set"], row["seed"]): row for row in read_rows(self._file)}

    def run(self, contender: str, name: str, seed: int) -> None:
        """Run a contender on a set, unless its result is known."""
        if (contender, name, seed) in self.results:
            return
        if contender != "again":
            self._clear_cache()
        row = {"contender": contender, "set": name, "seed": seed} | self._call(contender, name, seed)
        counts = unequal_counts(self._images_of(name))
        if counts is not None:
            row["test_counts"] = counts
        append_row(self._file, row)
        self.results[contender, name, seed] = row
        print({key: value for key, value in row.items() if key != "correct"}, flush=True)

    def measure_machine(self, name: str) -> None:
        """Measure the speed of the machine in an untimed run, so that no contender's time includes it."""
        if not (self._cache / "measurements").exists():
            self._call("linear_probe", name, 0)

    def _call(self, contender: str, name: str, seed: int) -> Row:
        command = [sys.executable, "-m", "experiments.contenders", "partial" if contender == "again" else contender]
        command += ["--data", str(self._images_of(name)), "--seed", str(seed)]
        environment = os.environ | {"FINETUNE_CACHE": str(self._cache.resolve()), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        result: Row = json.loads(done.stdout.splitlines()[-1])
        return result

    def _images_of(self, name: str) -> Path:
        """Return the folder of a set, or of a copy of it with fewer training images."""
        if self._limit is None:
            return self._data / name
        folder = self._file.parent / "sets" / name
        if not folder.exists():
            copy_part(self._data / name, folder, self._limit)
        return folder

    def _clear_cache(self) -> None:
        for kind in ("pixels", "features", "activations"):
            shutil.rmtree(self._cache / kind, ignore_errors=True)
