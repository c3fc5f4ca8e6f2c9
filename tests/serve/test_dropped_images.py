"""The page in a real browser: images are dropped on it, labels appear, and nothing is printed to its console."""

from dataclasses import replace

import pytest

from finetune.serve.networks import ServedNetworks
from tests.browser import FOUND, NONE_FOUND
from tests.export.pictures import write_pictures
from tests.serve.running import running

EVIL = '<img src=x onerror="alert(1)">'

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra 'browser'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FOUND is None, reason=NONE_FOUND),
]


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_images_that_are_chosen_get_their_labels(trained, tmp_path, width, scheme):
    pictures = sorted(write_pictures(tmp_path / "images", 3).rglob("*.*"))
    (tmp_path / "notes.txt").write_text("no image")
    model = replace(trained(), class_names=(EVIL, f"{EVIL}2", "a_class_with_a_name_that_is_longer_than_a_line_of_text"))
    with running(ServedNetworks(model)) as url, playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=FOUND, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        printed = []
        page.on("console", lambda message: printed.append(message.text))
        page.on("pageerror", lambda error: printed.append(str(error)))
        page.on("dialog", lambda dialog: printed.append(dialog.message))
        page.goto(url)
        page.keyboard.press("Tab")
        playwright.expect(page.locator("#files")).to_be_focused()
        page.set_input_files("#files", [*map(str, pictures), str(tmp_path / "notes.txt")])
        playwright.expect(page.locator("#results .bar")).to_have_count(9, timeout=30_000)
        playwright.expect(page.locator("#results .error")).to_have_count(1, timeout=30_000)
        titles = page.locator("#results h2").all_inner_texts()
        assert titles[0] == "Not labelled"
        assert {*titles[1:]} <= {*model.class_names}
        assert page.locator("#results .error").inner_text().startswith("not an image of a known format")
        filled = page.locator("#results .bar i").first.bounding_box()["width"]
        assert 0.2 < filled / page.locator("#results .bar").first.bounding_box()["width"] < 0.6
        assert page.locator("html").evaluate("whole => whole.scrollWidth") <= width
        # The status of the file that is not an image is what the browser itself prints.
        assert [text for text in printed if "415" not in text] == []
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        browser.close()
