"""The notebook side in a real browser: JupyterLab, the form, sliders, the viewer, and the 3D page of a run."""

from __future__ import annotations

import io

import nbformat
import numpy as np
import pytest
from lab_server import Watched, assert_outputs_are_sound, until
from PIL import Image

# What a page may log without anything being wrong: each entry is one exact known line.
HARMLESS: tuple[str, ...] = ()

CELLS = (
    'preset: str = "laptop"  # smoke, laptop or gpu\nlevel: int = 3  # 0 to 9',
    "from nsw import widgets\nwidgets.form()",
    """import torch
from nsw.cameras import orbit
from nsw.models.field import FieldOutput
from nsw.renderers import render_view, volume
from nsw.scenes import Scene

class Ball:
    aabb = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
    def query(self, points, directions):
        return FieldOutput((points.norm(dim=-1) < 0.7) * 8.0, (points + 1) / 2)

cameras = orbit(8, 4.0, 30.0, width=64, height=64)
out = render_view(Ball(), cameras, n_samples=48)
splits = {"train": torch.arange(6), "test": torch.tensor([6, 7])}
scene = Scene("ball", (out.rgb.clamp(0, 1) * 255).byte(), cameras, splits, Ball.aabb, 2.0, 6.0, depth=out.depth)""",
    'widgets.sliders(lambda grey, coarse=False: torch.full((16, 16), grey), alt="A grey square.", grey=(0.0, 1.0, 0.5))',
    'view = widgets.viewer(lambda c: render_view(Ball(), c, n_samples=24), scene, alt="A ball.", size=96)',
    'widgets.compare(scene.pixels([0])[0], scene.pixels([1])[0], ("first", "second"), alt="Two views.")',
    'widgets.ray_inspector(Ball(), scene, alt="One ray.", n_samples=48)',
    """import nsw
from nsw.models.gaussians import Gaussians
toys = nsw.scenes.load("toybox", size=32)
for n in (30, 3000):
    cloud = Gaussians.random(toys.aabb, n, torch.Generator().manual_seed(n))
    nsw.start("demo", preset="smoke", seed=n).keep("cloud", model=cloud, scene=toys)
widgets.compare_runs(alt="Two runs.")""",
    'widgets.film({"up": [torch.full((16, 16), i / 8) for i in range(9)]}, alt="A square that grows lighter.")',
    """widgets.weight_sliders(lambda row, column, changes: widgets.figure([dict(type="scatter", x=[0, 1], y=[0, 1])],
    title=f"row {row}, sum {sum(map(sum, changes)):.1f}"), ("first", "second"), 24, alt="A line.", pick=torch.zeros(16, 16))""",
    'widgets.lines({"a": ([0, 1, 2], [0, 1, 4])}, x="t", y="v", alt="A curve.")',
    'widgets.show(scene.pixels([0])[0], alt="The ball.")',
    "widgets.source(volume.composite)",
    "widgets.method_map()",
    "widgets.edit(volume.composite)",
    """from nsw.runs.claims import make_claim
widgets.claim_table([make_claim("sharper", preset=preset, ours=27.0 + level, baseline=25.0, at_least=1.5)])""",
)


def write_notebook(path, cells):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


def pixels(locator) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB")).astype(int)


def until_changed(locator, before: np.ndarray, seconds: float = 20.0) -> np.ndarray:
    """Return the pixels of an element once they differ visibly from `before`."""

    def changed():
        now = pixels(locator)
        return now if now.shape != before.shape or np.abs(now - before).max() > 40 else None

    return until(changed, seconds, "the picture to change")


def drag(page, locator, across: float, down: float = 0.0) -> None:
    """Drag with the mouse from the middle of an element."""
    locator.scroll_into_view_if_needed()
    box = locator.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(1, 9):
        page.mouse.move(x + across * step / 8, y + down * step / 8)
    page.mouse.up()


def set_form(page, preset: str) -> None:
    page.wait_for_selector(".nsw-form", timeout=60_000)
    page.locator(".nsw-form select").first.select_option(preset)
    page.locator(".nsw-form .nsw-apply").click()


def assert_clean(watched) -> None:
    assert [line for line in watched.errors if line not in HARMLESS] == []
    assert watched.outside == []


@pytest.fixture(scope="module")
def fixture_page(lab, browser):
    """A page on which every cell of the fixture notebook has run, through the form."""
    write_notebook(lab.folder / "widgets.ipynb", CELLS)
    context = browser.new_context(viewport={"width": 1300, "height": 1000})
    watched = Watched(context.new_page())
    lab.open(watched.page, "widgets.ipynb")
    watched.page.locator(".jp-Notebook .jp-CodeCell").first.click()
    lab.menu(watched.page, "Run Selected Cell")
    lab.menu(watched.page, "Run Selected Cell")
    set_form(watched.page, "smoke")
    watched.page.wait_for_selector("text=Claims, measured in this run", timeout=90_000)
    yield watched
    assert_clean(watched)
    context.close()


def test_form_sets_variables_and_runs_the_cells_below(fixture_page):
    page = fixture_page.page
    assert "preset = 'smoke', level = 3" in page.locator(".nsw-form").text_content()
    table = page.locator(".jp-OutputArea-output:has-text('Claims, measured')").last
    assert "holds" in table.text_content() and "30 dB" in table.text_content()
    assert page.locator(".nsw-form").count() == 1  # the form's own cell was not run again


def test_form_changes_the_result(fixture_page):
    page = fixture_page.page
    page.locator(".nsw-form input[type=number]").fill("9")
    page.locator(".nsw-form input[type=number]").press("Enter")
    page.locator(".nsw-form .nsw-apply").click()
    page.wait_for_selector("text=36 dB", timeout=60_000)


def test_a_dragged_slider_changes_the_picture(fixture_page):
    page = fixture_page.page
    picture = page.locator(".nsw-sliders .widget-html:has(img[alt='A grey square.'])").first
    picture.scroll_into_view_if_needed()
    before = pixels(picture)
    drag(page, page.locator(".nsw-sliders .noUi-handle").first, 150)
    after = until_changed(picture, before)
    assert after[:, :300].mean() > before[:, :300].mean() + 40  # lighter, as the slider says
    handle = page.locator(".nsw-sliders .noUi-handle").first
    handle.focus()
    handle.press("ArrowLeft")
    until_changed_by(picture, after, 2)


def until_changed_by(locator, before: np.ndarray, least: float) -> None:
    until(lambda: np.abs(pixels(locator) - before).max() >= least, 20, "a small change of the picture")


def ball_share(frame) -> float:
    """Return which part of the frame is not white background."""
    return float((pixels(frame).sum(-1) < 740).mean())


def test_viewer_follows_mouse_wheel_and_keys(fixture_page):
    page = fixture_page.page
    frame = page.locator(".nsw-viewer .renderview-view").first
    frame.scroll_into_view_if_needed()
    until(lambda: 0.05 < ball_share(frame) < 0.5, 30, "the first picture")
    first, share = pixels(frame), ball_share(frame)
    drag(page, frame, 120)
    until_changed(frame, first)
    page.mouse.wheel(0, -400)
    until(lambda: ball_share(frame) > share + 0.05, 20, "a picture from closer by")
    page.keyboard.press("Home")
    until(lambda: ball_share(frame) < share + 0.01, 20, "the first view again")
    page.keyboard.press("+")
    until(lambda: ball_share(frame) > share + 0.01, 20, "a step closer")
    before = pixels(frame)
    page.locator(".nsw-viewer button[title='turn left']").first.click()
    until_changed(frame, before)
    until(lambda: " ms a picture" in page.locator(".nsw-viewer").first.text_content(), 20, "the readout at rest")


def test_comparison_bar_moves_by_mouse_and_keys(fixture_page):
    page = fixture_page.page
    bar = page.locator("[role=slider][aria-label='Two views.']").first
    drag(page, bar, -80)
    moved = int(bar.get_attribute("aria-valuenow"))
    assert moved < 45
    bar.press("ArrowRight")
    assert int(bar.get_attribute("aria-valuenow")) == moved + 2


def test_two_kept_models_are_chosen_for_the_comparison_bar(fixture_page):
    page = fixture_page.page
    box = page.locator(".nsw-compare-runs").first
    box.scroll_into_view_if_needed()
    right = box.locator("img").first
    assert "the photograph" in box.locator("select").first.evaluate("e => e.selectedOptions[0].textContent").replace("\xa0", " ")
    before = right.get_attribute("src")  # the bar is built anew for other runs, so its data is read, not its place on the page
    box.locator("select").nth(1).select_option(index=1)
    until(lambda: right.get_attribute("src") != before, 20, "the picture of the other run")
    until(lambda: right.evaluate("e => e.complete && e.naturalWidth > 0"), 20, "the picture to be drawn")
    until(lambda: "demo smoke-seed30: cloud" in box.locator("table").text_content(), 20, "the facts of the other run")
    assert "Gaussians" in box.locator("table").text_content() and "toybox 32x32" in box.locator("table").text_content()


def test_ray_inspector_follows_a_click(fixture_page):
    page = fixture_page.page
    box = page.locator(".nsw-inspector").first
    box.scroll_into_view_if_needed()
    assert "row 32, column 32" in box.inner_html()
    picture = box.locator("[role=application] img")
    size = picture.bounding_box()
    picture.click(position={"x": size["width"] * 16.5 / 64, "y": size["height"] * 32.5 / 64})
    page.wait_for_selector(".nsw-inspector svg[aria-label='One ray.'] >> text=row 32, column 16", timeout=20_000)
    page.keyboard.press("ArrowDown")
    page.wait_for_selector(".nsw-inspector svg >> text=row 33, column 16", timeout=20_000)


def test_a_film_is_played_and_dragged(fixture_page):
    page = fixture_page.page
    box = page.locator(".nsw-film").first
    box.scroll_into_view_if_needed()
    picture = box.locator(".widget-html:has(img)").first
    before = pixels(picture)
    drag(page, box.locator(".noUi-handle").first, 150)
    after = until_changed(picture, before)
    box.locator(".widget-play button").first.click()
    until_changed(picture, after)
    box.locator(".widget-play button").first.click()  # a film that went on would move the page under the next test


def test_upright_sliders_change_weights_of_the_list_that_is_chosen(fixture_page):
    page = fixture_page.page
    box = page.locator(".nsw-weights").first
    box.scroll_into_view_if_needed()
    handles = box.locator(".slider-vertical .noUi-handle, .noUi-vertical .noUi-handle")
    assert handles.count() == 24
    handles.nth(3).focus()
    handles.nth(3).press("ArrowUp")
    page.wait_for_selector(".nsw-weights svg >> text=row 8, sum 0.2", timeout=20_000)
    box.locator("select").first.select_option("second")
    handles.nth(0).focus()
    handles.nth(0).press("ArrowUp")
    page.wait_for_selector(".nsw-weights svg >> text=row 8, sum 0.4", timeout=20_000)
    box.locator("button:has-text('all to zero')").click()
    page.wait_for_selector(".nsw-weights svg >> text=row 8, sum 0.0", timeout=20_000)


def test_pictures_charts_and_cards_are_there(fixture_page):
    page = fixture_page.page
    assert page.locator("img[alt='The ball.']").count() == 1
    assert page.locator(".js-plotly-plot").count() == 1
    card = page.locator(".jp-OutputArea-output:has-text('Composite the samples')").first
    assert card.locator("mjx-container").count() >= 1  # the equation is typeset
    assert_outputs_are_sound(page)
    assert page.locator("a:text-is('3D Gaussians')").get_attribute("title") == "open 03_gaussian_splatting.ipynb"
    edited = page.locator(".jp-CodeCell:has-text('%%nsw_edit nsw.renderers.volume:composite')")
    assert edited.count() >= 1
