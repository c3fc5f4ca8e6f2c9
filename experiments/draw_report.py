"""Take the picture of a report that its guide shows, in the system's Chromium.

python -m experiments.draw_report [--run RUN] [--picture docs/images/report.png]
"""

import argparse
import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image

from experiments.paths import IMAGES
from finetune import Recipe, run

WIDTH, HEIGHT = 1180, 900
"""Size of the window, in pixels."""

MARGIN = 24
"""Space above the part of the page that is shown, in pixels."""

COLOURS = 64
"""Number of colours of the picture, which keep its file small."""


def main() -> None:
    """Run the demo unless a run is given, open its report, and take a picture of what the model gets wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a finished run; by default the demo is trained")
    parser.add_argument("--picture", type=Path, default=IMAGES / "report.png", help="file of the picture")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = arguments.run or Path(folder) / "runs" / "digits"
        if arguments.run is None:
            run(Recipe(data="demo:digits"), place)
        taken = _photograph(place / "report.html")
    taken.quantize(COLOURS).save(arguments.picture, optimize=True)
    print(f"{arguments.picture}: {arguments.picture.stat().st_size / 1e3:.0f} kB")


def _photograph(report: Path) -> Image.Image:
    """Return a picture of the report from the confusion matrix on."""
    from playwright.sync_api import sync_playwright  # the extra `browser`, which no other program needs

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(report.resolve().as_uri())
        top = page.get_by_text("Which class is taken for which").first.bounding_box()
        bottom = page.get_by_text("The most confused classes").first.bounding_box()
        assert top is not None
        assert bottom is not None
        whole = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
        browser.close()
    return whole.crop((0, round(top["y"]) - MARGIN, whole.width, round(bottom["y"]) - MARGIN))


if __name__ == "__main__":
    main()
