import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import pytest

from finetune.runs.plots import plot_schedule

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def drawn(tmp_path):
    """Draw a plan's rates; return the picture's texts and its lines, each as its points (x, y)."""

    def draw(plan):
        with mpl.rc_context({"svg.fonttype": "none"}):
            plot_schedule(plan, tmp_path / "schedule.svg")
        root = ElementTree.parse(tmp_path / "schedule.svg").getroot()
        texts = [element.text for element in root.iter(f"{SVG}text")]
        curves = [element.get("d").split() for element in root.iter(f"{SVG}path") if element.get("clip-path")]
        lines = [list(zip(map(float, d[1::3]), map(float, d[2::3]), strict=True)) for d in curves]
        return texts, lines

    return draw


def test_every_trained_stage_and_the_head_have_a_line_with_their_name(small_plan, drawn):
    plan = small_plan("test_efficientnet", trained=2, steps=40)
    texts, lines = drawn(plan)
    trained = [stage.name for stage in plan.stages if stage.learning_rate > 0]
    assert len(trained) == 2
    assert {*trained, "head"} <= set(texts)
    assert len(lines) == 3


def test_a_line_rises_to_its_peak_at_the_end_of_the_warm_up_and_falls(small_plan, drawn):
    heights = [-y for _, y in drawn(small_plan(steps=40, warmup_steps=10))[1][-1]]
    assert heights.index(max(heights)) in {9, 10, 11}
    assert heights[-1] < heights[10]


def test_the_refit_is_drawn_behind_the_training_it_goes_on_from(small_plan, drawn):
    texts, lines = drawn(small_plan(steps=40, refit=True, refit_steps=10))
    assert "refit" in texts
    first, refit = lines[2], lines[5]
    assert min(x for x, _ in refit) > max(x for x, _ in first)


def test_a_plan_without_steps_has_a_picture_too(small_plan, drawn):
    assert drawn(small_plan(strategy="linear_probe"))[1] == []
