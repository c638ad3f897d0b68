"""The assembly bench in a real browser: a part is cut, moved on its gizmo and stitched, and the picture shows each of it."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
from lab_server import until
from PIL import Image

from nsw.methods import gaussian_stitching_fit as fitting
from nsw.methods import gaussian_stitching_parts as parts
from nsw.widgets.assembly_bench import Assembly

SCENE = slice(0, 560)  # columns left of the panel


@pytest.fixture
def bench():
    """Two whole vases, one in brown marble and one in green; "stitch" takes sixty steps on six cameras."""
    source, target = (parts.vase(look, 1_500) for look in (parts.ORIGINAL, parts.OTHER))
    cameras = parts.vase_scene(parts.ORIGINAL, 32, 6, 2).cameras
    running = Assembly(source, target, lambda s, t: fitting.Stitching(s, t, cameras, fitting.Stitch(tau=0.5)).fit(60).target)
    yield running
    running.stop()


def picture(page) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)[:, SCENE]


def green(pixels: np.ndarray) -> int:
    """Return how many pixels are of the green marble."""
    return int(((pixels[..., 1] > pixels[..., 0] + 15) & (pixels[..., 1] > pixels[..., 2] + 25)).sum())


def arrow(pixels: np.ndarray) -> tuple[int, int]:
    """Return a place on the head of the gizmo's red arrow."""
    y, x = np.nonzero((pixels[..., 0] > 230) & (pixels[..., 1] < 80) & (pixels[..., 2] > 60) & (pixels[..., 2] < 160))
    return int(np.median(x)), int(np.median(y))


def drag(page, start: tuple[float, float], by: tuple[float, float]) -> None:
    page.mouse.move(*start)
    page.mouse.down()
    for share in np.linspace(0.1, 1, 10):
        page.mouse.move(start[0] + share * by[0], start[1] + share * by[1])
        page.wait_for_timeout(40)
    page.mouse.up()


def keep(page, part: int, axis: int, end: int, share: float) -> None:
    """Drag one end of a range of the panel to a share of its way; part 0 is the source, 1 the target."""
    thumbs = page.locator(".multi-slider").nth(3 * part + axis).locator(".multi-slider-thumb")
    boxes = [thumbs.nth(i).bounding_box() for i in (0, 1)]
    left, right = (box["x"] + box["width"] / 2 for box in boxes)
    start = (left, right)[end], boxes[end]["y"] + boxes[end]["height"] / 2
    drag(page, start, (left + share * (right - left) - start[0], 0))


def test_parts_are_cut_moved_and_stitched(bench, watched):
    watch = watched(900, 600)
    page = watch.page
    shot = lambda name: page.screenshot(path=os.path.join(folder, name)) if folder else None  # noqa: E731
    folder = os.environ.get("NSW_SCREENSHOTS")
    page.goto(bench.url.replace("localhost", "127.0.0.1"))
    until(lambda: (picture(page).min(-1) < 200).sum() > 8_000, 40, "both vases in the picture")
    assert "1500 of 1500 splats touch the source." in page.content()  # they stand in each other
    whole = picture(page)
    shot("bench_whole.png")
    keep(page, 0, 2, 1, 0.5)  # the lower half of the source
    keep(page, 1, 2, 0, 0.5)  # the upper half of the target
    shares = lambda: [len(part) / 1_500 for part in (bench.source(), bench.target())]  # noqa: E731
    until(lambda: all(0.2 < share < 0.8 for share in shares()), 20, lambda: f"two halves, the shares are {shares()}")
    until(lambda: np.abs(picture(page) - whole).mean() > 1, 20, "a picture of two halves")
    assert bench.source().means[:, 2].max() < 0.1 and bench.target().means[:, 2].min() > -0.1
    page.wait_for_timeout(1_000)
    cut = picture(page)
    shot("bench_cut.png")
    assert green(cut) > 1_500
    drag(page, arrow(cut), (24, 16))
    until(lambda: abs(bench.gizmo.position[0]) > 0.01, 20, lambda: f"a moved target, it is at {bench.gizmo.position}")
    until(lambda: np.abs(picture(page) - cut).mean() > 0.3, 20, "a picture with the part elsewhere")
    page.wait_for_timeout(1_000)
    moved = picture(page)
    shot("bench_moved.png")
    assert bench.recoloured is None and np.allclose(bench.gizmo.position[1:], 0, atol=1e-4)
    page.get_by_text("stitch", exact=True).click()
    until(lambda: "Stitched." in page.content(), 60, lambda: bench.told.content)
    until(lambda: green(picture(page)) < 0.5 * green(moved), 20, lambda: f"less green than {green(moved)}, {green(picture(page))}")
    shot("bench_stitched.png")
    assert len(bench.union()) == len(bench.source()) + len(bench.recoloured)
    known = "computeBoundingSphere"  # viser 1.1 says this of the empty geometry behind any splats, in a page of nothing else too
    assert [error for error in watch.errors if known not in error] == [] and watch.outside == []
