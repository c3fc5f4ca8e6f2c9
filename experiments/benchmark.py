"""Compare this toolkit with fastai, a user's script and the bare network; write the benchmarks page and its plot.

    pip install -e '.[benchmark]'
    python -m experiments.benchmark --data DIR [--sets flowers12 ...] [--seeds 0 1 2] [--runs FOLDER]

DIR holds image sets, each with train and test. Every contender runs in a process of its own (experiments.contenders),
one after another. The speed of the machine is measured beforehand; no other cache is kept between contenders. Results
that are already in FOLDER are not measured again, so an interrupted benchmark continues. To write the page from the
saved results, unpack experiments/results/benchmarks.jsonl.gz to FOLDER/benchmark.jsonl. Run nothing else on the
machine.
"""

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from experiments.benchmark_page import COMPARED, LIMIT_SET, SCRIPTS, Results, write_page
from experiments.paths import RESULTS
from experiments.rows import Row, append_row, read_rows

SETS = ("flowers12", "ucmerced21", "clothing10", "brainmri3", "fashion10")
"""Image sets of the comparison with fastai."""

LIMITED = (
    "help", "bare", "linear_probe", "linear_probe, 60", "linear_probe, 400", "full, short", "partial, not cached",
    "partial", "again", "partial, 2 stages, not cached", "partial, 2 stages",
)  # fmt: skip
"""Contenders that run on `LIMIT_SET` with every seed; `again` is `partial` with the caches of the previous run."""


class BenchmarkRuns:
    """The results so far, in a file with one line for each result."""

    def __init__(self, folder: Path, data: Path) -> None:
        """Read the results that are in a folder.

        Args:
            folder: folder of the results and of the cache; it is made if there is none.
            data: folder of the image sets.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "benchmark.jsonl"
        self._cache = folder / "cache"
        self._data = data
        self.results: Results = {(row["contender"], row["set"], row["seed"]): row for row in read_rows(self._file)}

    def run(self, contender: str, name: str, seed: int) -> None:
        """Run a contender on a set, unless its result is known."""
        if (contender, name, seed) in self.results:
            return
        if contender != "again":
            self._clear_cache()
        row = {"contender": contender, "set": name, "seed": seed} | self._call(contender, name, seed)
        append_row(self._file, row)
        self.results[contender, name, seed] = row
        print({key: value for key, value in row.items() if key != "correct"}, flush=True)

    def measure_machine(self, name: str) -> None:
        """Measure the speed of the machine in an untimed run, so that no contender's time includes it."""
        if not (self._cache / "measurements").exists():
            self._call("linear_probe", name, 0)

    def copy_to(self, path: Path) -> None:
        """Write the results to a compressed file; equal results give equal bytes."""
        path.write_bytes(gzip.compress(self._file.read_bytes(), mtime=0))

    def _call(self, contender: str, name: str, seed: int) -> Row:
        command = [sys.executable, "-m", "experiments.contenders", "partial" if contender == "again" else contender]
        command += ["--data", str(self._data / name), "--seed", str(seed)]
        environment = os.environ | {"FINETUNE_CACHE": str(self._cache.resolve()), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        result: Row = json.loads(done.stdout.splitlines()[-1])
        return result

    def _clear_cache(self) -> None:
        for kind in ("pixels", "features", "activations"):
            shutil.rmtree(self._cache / kind, ignore_errors=True)


def main() -> None:
    """Run the contenders whose results are missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the image sets")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"), help="folder of the results so far")
    arguments = parser.parse_args()
    runs = BenchmarkRuns(arguments.runs, arguments.data)
    runs.measure_machine(arguments.sets[0])
    for seed in arguments.seeds:
        for name in arguments.sets:
            for contender in COMPARED:
                runs.run(contender, name, seed)
    for seed in arguments.seeds:
        for contender in LIMITED:
            runs.run(contender, LIMIT_SET, seed)
    for contender in SCRIPTS:
        runs.run(contender, arguments.sets[0], arguments.seeds[0])
    words = f" --sets {' '.join(arguments.sets)}" if arguments.sets != list(SETS) else ""
    command = f"python -m experiments.benchmark --data DIR{words} --seeds {' '.join(map(str, arguments.seeds))}"
    write_page(runs.results, arguments.sets, arguments.seeds, command)
    runs.copy_to(RESULTS / "benchmarks.jsonl.gz")


if __name__ == "__main__":
    main()
