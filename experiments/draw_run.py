"""Draw the picture of a run's output that the README shows.

python -m experiments.draw_run [--data demo:digits] [--picture docs/images/run.svg]
"""

import argparse
import tempfile
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
    console = Console(record=True, width=100, highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "runs" / "digits"
        run(Recipe(data=arguments.data), output, Report(console))
        shown = console.export_text(clear=False)
        console.save_svg(str(arguments.picture), title=f"finetune train --data {arguments.data}")
        picture = arguments.picture.read_text("utf-8")
        arguments.picture.write_text(picture.replace(str(output), "runs/digits"), "utf-8")
    print(shown)


if __name__ == "__main__":
    main()
