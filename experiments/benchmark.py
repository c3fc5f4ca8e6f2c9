"""Compare the accuracy that this toolkit, fastai and a user's script reach within a time; write it with its plot.

    pip install -e '.[benchmark]'
    python -m experiments.benchmark --data DIR [--sets flowers12 ...] [--seeds 0] [--runs FOLDER]
    AUTOGLUON_PYTHON=PATH python -m experiments.benchmark --data DIR --toolkits AutoGluon

DIR holds image sets, each with train and test; of each, at most `TRAINING_IMAGES` are used for training. Every
contender runs in a process of its own (experiments.contenders), one after another. The speed of the machine is measured
beforehand; no other cache is kept between contenders. Results that are in FOLDER/benchmark.jsonl are not measured
again, so an interrupted benchmark continues; with --write, the page is written from those that are there. Run nothing
else on the cores that it uses.
"""

import argparse
import shutil
from pathlib import Path

from experiments.anytime import FAMILIES, SETS, TRAINING_IMAGES
from experiments.benchmark_page import write_page
from experiments.benchmark_runs import BenchmarkRuns
from experiments.paths import RESULTS


def main() -> None:
    """Run the contenders whose results are missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the image sets")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--toolkits", nargs="+", default=[each.name for each in FAMILIES if each.name != "AutoGluon"])
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"), help="folder of the results so far")
    parser.add_argument("--write", action="store_true", help="write the page from the results so far, and run nothing")
    arguments = parser.parse_args()
    runs = BenchmarkRuns(arguments.runs / "benchmark.jsonl", arguments.data, TRAINING_IMAGES)
    if not arguments.write:
        chosen = [each for each in FAMILIES if each.name in arguments.toolkits]
        runs.measure_machine(arguments.sets[0])
        for seed in arguments.seeds:
            for name in arguments.sets:
                for contender in (each for family in chosen for each in family.contenders):
                    runs.run(contender, name, seed)
    write_page(runs.results, arguments.sets, arguments.seeds)
    shutil.copy(arguments.runs / "benchmark.jsonl", RESULTS / "benchmark.jsonl")


if __name__ == "__main__":
    main()
