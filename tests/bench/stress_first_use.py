"""Look for a process that dies while kernels compile: `python tests/bench/stress_first_use.py --seconds 250`. Nothing is measured.

Each process starts with an empty cache folder (every other one with a folder that cannot be made), and two of them run at a time.
In each, two threads use different operations for the first time at once, as a viewer and a training do, with small work and with
work that is shared among threads, so that several threads also meet the same kernel before it is compiled; afterwards the process
ends at once. What a process that dies had to say, every thread's place included, is printed, and the script then ends with 1.

What it found: two threads that loaded modules at once took each other's cache folder (mended, in `compiling.kernel`). No process
died. With `--megabytes 20`, the memory that a process may add to what it has once torch is loaded, some do: LLVM aborts where the
system refuses it memory, and that is the only way in which a first use was seen to end with SIGABRT.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETUP = """
import gc, os, sys, threading
import torch
from nsw import kernels as k
from nsw.kernels.grid_lookup import grid_lookup
from nsw.kernels.ssim import ssim_l1
torch.set_num_threads(2)
n, view = 2600, torch.eye(4)[None]
view[0, 2, 3] = 2.5
splats = [torch.rand(n, 3) * 2 - 1, torch.randn(n, 4), 0.02 + 0.05 * torch.rand(n, 3), torch.rand(n), torch.rand(n, 3)]
camera = (view, torch.tensor([[[40.0, 0, 20], [0, 42, 21], [0, 0, 1]]]), 45, 37)
rays, t = torch.arange(400).repeat_interleave(100), torch.linspace(0, 1, 40001)
"""
OPERATIONS = {
    "draw": "k.rasterization(*splats, *camera)",
    "draw harmonics": "k.rasterization(*splats[:4], torch.rand(n, 4, 3), *camera, sh_degree=1)",
    "step": "k.rasterization(*[s.clone().requires_grad_() for s in splats], *camera)[0].sum().backward()",
    "surfels": "k.rasterization_2dgs(*splats, *camera)",
    "loss": "ssim_l1(torch.rand(1, 80, 80, 3, requires_grad=True), torch.rand(1, 80, 80, 3))[0].backward()",
    "lookup": "grid_lookup(torch.rand(8, 8, 8, 4, requires_grad=True), torch.rand(9000, 3), torch.eye(3)[:2] * 0 + "
              "torch.tensor([[0.0], [1.0]])).sum().backward()",
    "encode": "k.hash_encode(torch.rand(k.hash_levels(2, 4, 8, 8).n_rows, 2), torch.rand(5000, 3), k.hash_levels(2, 4, 8, 8))",
    "pack": "k.pack_info(rays, 400)",
    "scan": "k.exclusive_sum(t[1:], k.pack_info(rays, 400))",
    "weights": "k.render_weight_from_density(t[:-1], t[1:], torch.rand(40000, requires_grad=True), ray_indices=rays, n_rays=400)"
               "[0].sum().backward()",
    "boxes": "k.ray_aabb_intersect(torch.rand(9000, 3), torch.randn(9000, 3), torch.tensor([[0.0, 0, 0, 1, 1, 1]]))",
    "search": "k.searchsorted(k.RayIntervals(torch.rand(900, 9).sort().values), k.RayIntervals(torch.rand(900, 9).sort().values))",
}  # fmt: skip
THREADS = """
limit = int(os.environ.get("STRESS_MEGABYTES", 0))
if limit:
    import numba, resource
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (limit << 20),) * 2)
failures, start = [], threading.Barrier(2)
def work(calls):
    try:
        start.wait()
        for call in calls:
            exec(call)
            gc.collect()
    except BaseException as error:
        failures.append(repr(error))
threads = [threading.Thread(target=work, args=(calls,)) for calls in {calls}]
for thread in threads: thread.start()
for thread in threads: thread.join()
sys.exit("\\n".join(failures) or None)
"""


def begin(cache: Path, chosen: list[list[str]]) -> subprocess.Popen:
    """Start a process whose threads use the chosen operations for the first time, in order."""
    code = SETUP + THREADS.format(calls=[[OPERATIONS[name] for name in names] for names in chosen])
    environment = {**os.environ, "NSW_CACHE": str(cache), "PYTHONFAULTHANDLER": "1"}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60, help="how long new processes are started")
    parser.add_argument("--each", type=int, default=2, help="operations a thread uses")
    parser.add_argument("--seed", type=int, default=0, help="for the choice of operations")
    parser.add_argument("--megabytes", type=int, default=0, help="on Linux: the memory a process may add once torch is loaded")
    options = parser.parse_args()
    os.environ["STRESS_MEGABYTES"] = str(options.megabytes)
    random.seed(options.seed)
    end, count, running, died = time.monotonic() + options.seconds, 0, [], 0
    with tempfile.TemporaryDirectory() as folder:
        blocked = Path(folder) / "file"
        blocked.touch()
        while running or time.monotonic() < end:
            while len(running) < 2 and time.monotonic() < end:
                names = random.sample(list(OPERATIONS), 2 * options.each)
                if count % 3 == 2:  # both threads begin with the same kernels
                    names[options.each] = names[0]
                chosen = [names[: options.each], names[options.each :]]
                running.append((chosen, begin(blocked / "x" if count % 2 else Path(folder) / str(count), chosen)))
                count += 1
            chosen, process = running.pop(0)
            said = process.communicate()[1]
            if process.returncode:
                died += 1
                print(f"{chosen} ended with {process.returncode} and said:\n{said}", flush=True)
    print(f"{count} processes, {died} of them died or failed")
    sys.exit(died > 0)


if __name__ == "__main__":
    main()
