"""Notebook 03 as a learner uses it: the form, a run at smoke size, slider and viewer, and the 3D page of the trained run."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from lab_server import ROOT, Watched, assert_outputs_are_sound, until
from PIL import Image

NOTEBOOK = "03_gaussian_splatting.ipynb"
PICTURE = ".widget-html:has(img, svg)"  # what stays in place while the picture in it is replaced
SECONDS = 900  # a run at smoke size takes about a minute on two free cores; a busy machine needs patience


def pixels(locator) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB")).astype(int)


def drag_and_see_change(page, handle, picture) -> None:
    """Drag `handle` sideways and wait until `picture` shows something else."""
    picture.scroll_into_view_if_needed()
    before = until(lambda: settled(picture), 60, "the picture to come to rest")
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(1, 9):
        page.mouse.move(x + 12 * step, y)
    page.mouse.up()
    picture.scroll_into_view_if_needed()
    until(lambda: seen_to_change(picture, before), 60, "the picture to change")


def seen_to_change(picture, before: np.ndarray) -> bool:
    """Return whether an element looks visibly different from before."""
    now = pixels(picture)
    return now.shape != before.shape or (np.abs(now - before).max(-1) > 24).mean() > 0.002


def settled(picture) -> np.ndarray | None:
    """Return the pixels of an element once two looks at it agree."""
    first, second = pixels(picture), pixels(picture)
    return second if first.shape == second.shape and np.array_equal(first, second) else None


def reached_the_claims(page) -> bool:
    """Return whether the claim table is there; fail at once with the text of a cell that raised."""
    errors = page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']")
    assert errors.count() == 0, errors.first.text_content()[-2000:]
    return page.locator(".jp-OutputArea-output:has-text('Claims, measured in this run')").count() > 0


def progress(page) -> str:
    """Return which cell is running, for the message of a test that waited in vain."""
    running = page.locator(".jp-CodeCell:has(.jp-InputPrompt:text-is('[*]:'))")
    return repr(running.first.locator(".jp-InputArea-editor").text_content()[:200]) if running.count() else "its end"


@pytest.fixture(scope="module")
def trained(lab, browser):
    """The page on which notebook 03 has run at smoke size through the form."""
    for source in (ROOT / "notebooks").glob("*.ipynb"):
        shutil.copy(source, lab.folder / source.name)
    context = browser.new_context(viewport={"width": 1300, "height": 1000})
    watched = Watched(context.new_page())
    page = watched.page
    lab.open(page, NOTEBOOK)
    page.locator(".jp-CodeCell:has-text('widgets.form(')").first.click()
    lab.menu(page, "Run All Above Selected Cell")
    page.locator(".jp-CodeCell:has-text('widgets.form(')").first.click()
    lab.menu(page, "Run Selected Cell")
    page.wait_for_selector(".nsw-form", timeout=120_000)
    page.locator(".nsw-form select").first.select_option("smoke")
    page.locator(".nsw-form .nsw-apply").click()
    until(lambda: reached_the_claims(page), SECONDS, lambda: f"the claim table; running: {progress(page)}")
    yield watched
    context.close()


def test_notebook_03_runs_through_the_form(trained):
    page = trained.page
    table = page.locator(".jp-OutputArea-output:has-text('Claims, measured in this run')").last.text_content()
    assert "holds" in table and "not reproduced" not in table
    page.wait_for_selector("text=| Idle", timeout=SECONDS * 1000)
    for cell in page.locator(".jp-Notebook .jp-CodeCell").all():
        cell.scroll_into_view_if_needed()  # outputs far down are rendered when they come into view
    assert_outputs_are_sound(page)
    assert "preset smoke" in page.locator(".jp-Notebook").text_content()


def test_slider_and_viewer_of_notebook_03_change_their_pictures(trained):
    page = trained.page
    panel = page.locator(".nsw-sliders").first
    drag_and_see_change(page, panel.locator(".noUi-handle").first, panel.locator(PICTURE).first)
    frame = page.locator(".nsw-viewer .renderview-view").first
    drag_and_see_change(page, frame, frame)
    assert trained.errors == []
    assert trained.outside == []


def test_a_click_on_a_pixel_shows_its_splats(trained):
    page = trained.page
    panel = page.locator(".nsw-sliders:has([role=application])").first
    strip, picture = panel.locator(PICTURE).last, panel.locator("[role=application] img")
    picture.scroll_into_view_if_needed()
    before = until(lambda: settled(strip), 60, "the strip to come to rest")
    size = picture.bounding_box()
    picture.click(position={"x": size["width"] * 0.33, "y": size["height"] * 0.62})
    until(lambda: seen_to_change(strip, before), 60, "the strip of another pixel")
    assert trained.errors == []


def test_a_slider_trains_anew_with_another_growth_threshold(trained):
    page = trained.page
    panel = page.locator(".nsw-sliders:has-text('grow gradient')").first
    drag_and_see_change(page, panel.locator(".noUi-handle").first, panel.locator(PICTURE).first)
    assert panel.locator("[role=alert]:visible").all_text_contents() in ([], [""])
    assert trained.errors == []


def test_3d_page_of_the_trained_run(trained, lab, watched):
    command = [sys.executable, "-m", "nsw.cli", "view", "gaussian_splatting"]
    server = subprocess.Popen(
        command, env={**os.environ, "NSW_RUNS": str(lab.runs), "PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, text=True
    )
    try:
        url = server.stdout.readline().split()[0]
        viewer = watched(900, 700)
        viewer.page.goto(url)
        canvas = viewer.page.locator("canvas").first
        canvas.wait_for(timeout=60_000)

        def model_is_drawn() -> bool:
            height, width = pixels(canvas).shape[:2]
            middle = pixels(canvas)[height // 3 : -height // 4, width // 4 : -width // 4]
            return len(np.unique(middle // 16 @ [256, 16, 1])) > 60  # a blank page, and one with axes only, has few colours

        until(model_is_drawn, 120, "the model on the 3D page")
        assert viewer.errors == [] and viewer.outside == []
    finally:
        server.terminate()
        server.wait(30)
