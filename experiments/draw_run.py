"""Draw the picture of a run's output that the README shows.

python -m experiments.draw_run [--data demo:digits] [--picture docs/images/run.svg]
"""

import argparse
import tempfile
from contextlib import chdir
from pathlib import Path

from rich.console import Console

from experiments.paths import IMAGES
from finetune import Recipe, run
from finetune.runs.report import Report


def main() -> None:
    """Run, then draw the output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="demo:digits", help="images to train on")
    parser.add_argument("--picture", type=Path, default=IMAGES / "run.svg", help="file of the picture")
    arguments = parser.parse_args()
    data, picture = arguments.data, arguments.picture.absolute()
    data = str(Path(data).absolute()) if Path(data).exists() else data
    console = Console(record=True, width=100, highlight=False)
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        run(Recipe(data=data), Path("runs", "digits"), Report(console))
    shown = console.export_text(clear=False)
    console.save_svg(str(picture), title=f"finetune train --data {arguments.data}")
    print(shown)


if __name__ == "__main__":
    main()
