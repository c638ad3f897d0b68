"""Seconds until the first picture and the first step of splats: `python tests/bench/bench_first_use.py`.

Each row is a fresh process: with an empty cache folder, with the one that it left, and with one that cannot be written.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_rasterization import machine
from peers import COMPILING
from report import write

CODE = """
import time
began = time.perf_counter()
import torch
loaded = time.perf_counter()
import numba
compiler = time.perf_counter()
from nsw.kernels import engine_fast, rasterization
imported = time.perf_counter()
import nsw.scenes
from nsw.methods import gaussian_splatting as gs
from nsw.methods.density_control import DensityControl
from nsw.models.gaussians import Gaussians
from nsw.renderers.splats import render_view
scene = nsw.scenes.load("toybox", size=24)
splats = Gaussians.from_points(gs.starting_points(scene, 100), sh_degree=3)
training = gs.Training(splats, scene.scale, 10, control=DensityControl())
ready = time.perf_counter()
with torch.no_grad():
    render_view(splats, scene.views("test")[0])
drawn = time.perf_counter()
gs.fit(training, scene, range(10))
stepped = time.perf_counter()
print("TIMES", compiler - loaded, imported - compiler, drawn - ready, stepped - drawn)
"""


def first_use(cache: Path) -> tuple[list[float], str]:
    """Return seconds to import numba and the kernels, to the first picture, to ten steps after it; and what was said meanwhile."""
    environment = {**os.environ, "NSW_CACHE": str(cache)}
    command = [sys.executable, "-X", "faulthandler", "-c", CODE]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:  # a signal has a negative number; what every thread was doing stands in what was said
        sys.exit(f"a process with the cache folder {cache} ended with {done.returncode} and said:\n{done.stderr}")
    times = re.search(r"TIMES (.*)", done.stdout)[1].split()
    said = " ".join(line for line in done.stderr.splitlines() if "compil" in line)
    return [float(t) for t in times], re.sub(r"\(.*?\)|\S+: UserWarning: ", "", said)


def main() -> None:
    lines = [f"At most {COMPILING['cold']:.0f} s of compiling, at most {COMPILING['import']} s to import.", ""]
    lines += ["| cache folder | numba, s | kernels, s | first picture, s | ten steps, s | said |", "|---" * 6 + "|"]
    print("\n".join(lines))
    spent = {}
    with tempfile.TemporaryDirectory() as folder:
        blocked = Path(folder) / "file"
        blocked.write_text("")
        for name, cache in (("empty", Path(folder) / "new"), ("warm", Path(folder) / "new"), ("cannot be made", blocked / "x")):
            times, said = first_use(cache)
            spent[name] = sum(times)
            lines.append(f"| {name} | {' | '.join(f'{t:.2f}' for t in times)} | {said or '-'} |")
            print(lines[-1], flush=True)
    lines += ["", f"Compiling in all, the first process less the second: {spent['empty'] - spent['warm']:.1f} s."]
    print(lines[-1])
    write("first-use", "First use of splats", machine(), lines)


if __name__ == "__main__":
    main()
