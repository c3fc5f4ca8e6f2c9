"""The report in a real browser: nothing is printed to its console, nothing overflows, and the keyboard suffices."""

import pytest
from test_page import NASTY, make_noisy_folder

import finetune
from finetune.runs.page.writing import REPORT
from finetune.training import evaluation
from tests.browser import FOUND, NONE_FOUND

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra 'browser'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FOUND is None, reason=NONE_FOUND),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory, weights):
    """The report of a cross-validated run of four classes, one of which has a name like an element of a page."""
    data = make_noisy_folder(tmp_path_factory.mktemp("data") / "noise", (NASTY, "b", "c", "d"))
    recipe = finetune.Recipe(
        data=str(data), model="test_efficientnet", weights=str(weights), image_size=32, steps=4, batch_size=8,
        strategy="full",
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "STANDARD_ERRORS", (float("inf"), float("inf")))
        finetune.run(recipe, folder)
    return folder / REPORT


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=FOUND, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, report):
    """A function that opens the report in a window, and returns the page and what it printed to the console."""
    contexts = []

    def visit(width=1280, scheme="light"):
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme))
        page, messages = contexts[-1].new_page(), []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("dialog", lambda dialog: messages.append(dialog.message))
        page.on("request", lambda request: messages.append(request.url) if request.url.startswith("http") else None)
        page.goto(report.as_uri())
        return page, messages

    yield visit
    for context in contexts:
        context.close()


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_window_and_prints_nothing_to_the_console(visit, width, scheme):
    page, messages = visit(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert messages == []
    # Each visible text lies within the window, or in a part of the page that scrolls.
    outside = page.evaluate(
        """() => [...document.querySelectorAll("h1, h2, h3, p, li, dt, dd, figcaption, svg text")]
        .filter((each) => each.checkVisibility() && !each.closest(".scroll") && each.textContent.trim())
        .filter((each) => { const box = each.getBoundingClientRect(); return box.left < 0 || box.right > innerWidth })
        .map((each) => each.textContent)"""
    )
    assert outside == []


def test_the_schemes_differ_and_text_has_contrast(visit):
    def luminance(colour):
        parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    papers = []
    for scheme in ("light", "dark"):
        page, _ = visit(scheme=scheme)
        read = "(selector) => getComputedStyle(document.querySelector(selector))"
        paper = luminance(page.evaluate(f"({read})('body').backgroundColor"))
        papers.append(paper)
        for selector in ("body", ".soft", "nav a", ".facts small"):
            text = luminance(page.evaluate(f"({read})('{selector}').color"))
            # WCAG 2.2: a contrast of 4.5 for text.
            assert (max(text, paper) + 0.05) / (min(text, paper) + 0.05) >= 4.5, (scheme, selector)
    assert papers[0] > 0.9
    assert papers[1] < 0.05


def test_a_class_named_like_an_element_is_text(visit):
    page, messages = visit()
    assert page.locator("img[src='x']").count() == 0
    assert page.get_by_text(NASTY, exact=True).first.is_visible()
    assert messages == []


def test_the_keyboard_switches_the_split_sorts_a_table_and_orders_the_matrix(visit):
    page, messages = visit()
    page.locator("#show-test").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#panel-validation").is_visible()
    assert not page.locator("#panel-test").is_visible()
    table = page.locator("#panel-validation table.sortable")
    table.locator("thead button").first.focus()
    page.keyboard.press("Enter")
    assert table.locator("thead th").first.get_attribute("aria-sort") == "descending"
    assert table.locator("tbody th").all_text_contents() == ["d", "c", "b", NASTY]
    page.keyboard.press("Enter")
    assert table.locator("tbody th").all_text_contents() == [NASTY, "b", "c", "d"]
    matrix = page.locator("#matrix-validation")
    before = matrix.locator("tbody td").all_text_contents()
    page.locator("input[name='order-validation'][value='by name']").focus()
    page.keyboard.press("Space")
    names = [NASTY, "b", "c", "d"]
    assert matrix.locator("tbody th").all_text_contents() == names
    assert matrix.locator("thead th span").all_text_contents()[1:] == names
    assert sorted(matrix.locator("tbody td").all_text_contents()) == sorted(before)
    assert messages == []
