"""`nsw view FILE` in a real browser: the splats are drawn, turn under the mouse, and stand up when told to."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from lab_server import free_port, until
from PIL import Image

from nsw import formats
from nsw.models.gaussians import Gaussians


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A file of coloured splats, a red pole along -y over a green and blue floor, and `nsw view` running on it."""
    folder = tmp_path_factory.mktemp("view")
    generator = torch.Generator().manual_seed(0)
    floor = torch.rand(160_000, 3, generator=generator) * torch.tensor([2.0, 0.02, 2]) - torch.tensor([1.0, 0, 1])
    pole = torch.rand(2_000, 3, generator=generator) * torch.tensor([0.1, -1.0, 0.1])
    rgb = torch.cat(
        [torch.stack([floor[:, 0] * 0, floor[:, 0] > 0, floor[:, 0] <= 0], 1).float(), torch.tensor([[1.0, 0, 0]]).expand(2_000, 3)]
    )
    n = len(rgb)
    turns = torch.tensor([1.0, 0, 0, 0]).expand(n, 4)
    splats = Gaussians.from_values(torch.cat([floor, pole]), torch.full((n, 3), 0.02), turns, torch.full((n,), 0.9), 0.9 * rgb)
    path = formats.save(splats, folder / "pole.spz", up="-y")
    port = free_port()
    log = (folder / "log").open("w+")
    command = [sys.executable, "-m", "nsw.cli", "view", str(path), "--port", str(port)]
    process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "NSW_RUNS": str(folder)})
    try:
        until(
            lambda: "Ctrl-C stops" in (folder / "log").read_text() or process.poll() is not None,
            120,
            lambda: (folder / "log").read_text(),
        )
        told = (folder / "log").read_text()
        assert process.poll() is None and "162,000 splats" in told and "Building levels of detail" in told, told
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)
        log.close()


def picture(page) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)


def red_rows(pixels: np.ndarray) -> np.ndarray:
    """Return the rows in which the pole is seen."""
    red = (pixels[..., 0] > 120) & (pixels[..., 1] < 90) & (pixels[..., 2] < 90)
    return np.flatnonzero(red[:, 60:900].sum(axis=1) > 2)


def test_a_file_is_seen_turned_and_stood_up(address, watched):
    watch = watched(1280, 800)
    page = watch.page
    page.goto(address)
    page.wait_for_selector("canvas")

    def drawn():
        pixels = picture(page)[:, 60:900]
        blue, green = ((pixels[..., c] > 120) & (pixels[..., 0] < 100) for c in (2, 1))
        return int(min(blue.sum(), green.sum())) > 5_000 and len(red_rows(picture(page))) > 40

    until(drawn, 60, "the floor and the pole in the picture")
    before = picture(page)
    folder = os.environ.get("NSW_SCREENSHOTS")
    if folder:
        page.screenshot(path=os.path.join(folder, "file.png"))
    green = (before[..., 1] > 120) & (before[..., 0] < 100)
    assert red_rows(before).mean() < np.flatnonzero(green[:, 60:900].any(axis=1)).mean()  # the pole stands on the floor
    page.mouse.move(450, 420)
    page.mouse.down()
    for step in range(12):
        page.mouse.move(450 + 15 * step, 420)
        page.wait_for_timeout(40)
    if folder:
        page.screenshot(path=os.path.join(folder, "moving.png"))
    page.mouse.up()
    page.wait_for_timeout(1500)
    assert np.abs(picture(page) - before)[:, 60:900].mean() > 5
    page.get_by_text("dark background").first.click()
    until(lambda: picture(page)[5, 100].max() < 40, 20, "a dark background")
    if folder:
        page.screenshot(path=os.path.join(folder, "dark.png"))
    assert watch.outside == []
