"""Time a file of a million splats from the command to the browser: `python tests/bench/bench_view_file.py`.

The street of `bench_detail.py` with harmonics of degree 3, written as .ply and as .spz. `nsw view FILE` opens each, Chromium shows
its page, and the mouse turns it for some seconds; every picture that arrives at the page is counted. The browser draws without a
GPU on the same cores, as it does on a machine without one: a file of few splats says how much of the time is the browser's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_detail import street
from bench_rasterization import machine
from report import write

from nsw import formats

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "browser"))
from install import find_browser
from lab_server import FLAGS, free_port, until

FILES = ((1_000_000, ".ply"), (1_000_000, ".spz"), (20_000, ".spz"))
SECONDS, PICTURE = 10.0, 400  # a message of fewer bytes is no picture


def opened(path: Path, playwright) -> list[str]:
    """Return a row of the table: seconds until the page is served, until its first picture, and pictures a second while turning."""
    port, log = free_port(), path.with_suffix(".log")
    with log.open("w") as file:
        began = time.perf_counter()
        command = [sys.executable, "-m", "nsw.cli", "view", str(path), "--port", str(port)]
        process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            until(lambda: "Ctrl-C stops" in log.read_text() or process.poll() is not None, 300, log.read_text)
            assert process.poll() is None, log.read_text()
            served = time.perf_counter() - began
            browser = playwright.chromium.launch(executable_path=find_browser(), args=FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            arrived: list[float] = []

            def received(data: bytes | str) -> None:
                if len(data) > PICTURE:
                    arrived.append(time.perf_counter())

            page.on("websocket", lambda socket: socket.on("framereceived", received))
            asked = time.perf_counter()
            page.goto(f"http://127.0.0.1:{port}")
            page.wait_for_selector("canvas")
            until(lambda: page.evaluate("1") and bool(arrived), 60, "the first picture")
            first = arrived[0] - asked
            page.wait_for_timeout(3000)
            page.mouse.move(640, 420)
            page.mouse.down()
            before, start, step = len(arrived), time.perf_counter(), 0
            while time.perf_counter() - start < SECONDS:
                step += 1
                page.mouse.move(640 + 4 * step % 500, 420)
                page.wait_for_timeout(16)
            rate = (len(arrived) - before) / (time.perf_counter() - start)
            page.mouse.up()
            moved = time.perf_counter()
            page.wait_for_timeout(2000)
            rest = (arrived[-1] - moved) if arrived[-1] > moved else float("nan")
            folder = os.environ.get("NSW_SCREENSHOTS")
            if folder:
                page.screenshot(path=os.path.join(folder, f"million{path.suffix}.png"))
            browser.close()
        finally:
            process.terminate()
            process.wait(20)
    size = path.stat().st_size / 1e6
    return [path.suffix, f"{size:.0f}", f"{served:.1f}", f"{first:.1f}", f"{rate:.0f}", f"{rest:.1f}"]


def main() -> None:
    from playwright.sync_api import sync_playwright

    heads = [
        "splats",
        "file",
        "MB",
        "s until served",
        "s until the first picture",
        "pictures/s while turned",
        "s until the full picture after",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        for n, suffix in FILES:
            path = formats.save(street(n, 3), Path(folder) / f"street{n}{suffix}")
            lines.append("| " + " | ".join([f"{n:,}", *opened(path, playwright)]) + " |")
            print(lines[-1], flush=True)
    write("view_file", "`nsw view` on a file of splats of degree 3, to the browser", machine(), lines)


if __name__ == "__main__":
    main()
