"""Time the compiled rasterizer, plain torch, and any other engine in the same run: `python tests/bench/bench_rasterization.py`.

Other engines are given as files, `--peer ceiling.py --peer prototype.py`. Their page is `results/rasterization.md`; a run without
them leaves it alone and has a page of its own, `results/rasterization-alone.md`, which cites the ratios of theirs with their date.

Scenes: N anisotropic splats uniform in a ball of radius 1, sizes near their spacing, seen from distance 3 with 45 degrees; and the
points of a photographed garden, if `--garden` (or NSW_GARDEN) names gsplat's file with them.
Numbers are medians in milliseconds, forward alone and forward with backward. Absolute times belong to one machine; quote ratios.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import math
import os
import platform
import statistics
import time
from pathlib import Path

import numba
import numpy as np
import torch
from peers import GARDEN, RASTERIZATION, times_opensplat
from report import FOLDER

from nsw.kernels import rasterization, rasterization_reference

SIZES = ((128, 128), (256, 256), (512, 384))
NOTE = (
    "{} times, forward / forward with backward; ratios below 1: the kernels are faster. Engines take turns within each size. "
    "Plain torch is timed once."
)
WHY_LEAST = "Least times, because a machine that does something else for a moment then disturbs no engine more than another."
COUNTS = (1_000, 10_000, 50_000, 140_000)


def ball_scene(n: int, width: int, height: int, seed: int = 0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=-1)
    means = direction * torch.rand(n, 1, generator=g) ** (1 / 3)
    scales = 0.55 * (4 / 3 * math.pi / n) ** (1 / 3) * torch.exp(0.5 * torch.randn(n, 3, generator=g))
    quats, opacities, colors = (
        torch.randn(n, 4, generator=g),
        0.1 + 0.85 * torch.rand(n, generator=g),
        torch.rand(n, 3, generator=g),
    )
    focal = 0.5 * width / math.tan(math.radians(22.5)) * min(1.0, height / width)
    Ks, viewmats = torch.tensor([[[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]]), torch.eye(4)[None].clone()
    viewmats[0, 2, 3] = 3.0
    return [means, quats, scales, opacities, colors, viewmats, Ks]


def garden_scene(path: str, width: int, height: int) -> list[torch.Tensor]:
    """The points of gsplat's `assets/test_garden.npz` as round splats, as large as the distance to their three neighbours."""
    from scipy.spatial import cKDTree

    data = np.load(path)
    means = data["means3d"]
    near, _ = cKDTree(means).query(means, k=4)
    sizes = np.sqrt((near[:, 1:] ** 2).mean(axis=1)).astype(np.float32)
    scales = torch.from_numpy(np.minimum(sizes, np.quantile(sizes, 0.999)))[:, None].repeat(1, 3)
    quats, opacities = torch.tensor([1.0, 0, 0, 0]).repeat(len(means), 1), torch.full((len(means),), 0.5)
    Ks, viewmats = torch.from_numpy(data["Ks"])[:1].clone(), torch.from_numpy(data["viewmats"])[:1].clone()
    Ks[0, 0] *= width / float(data["width"])
    Ks[0, 1] *= height / float(data["height"])
    return [torch.from_numpy(means), quats, scales, opacities, torch.from_numpy(data["colors"]).float() / 255, viewmats, Ks]


def load_peer(path: str):
    """A peer is a Python file with `draw(means, quats, scales, opacities, colors, viewmat, K, width, height) -> picture`."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.draw


def ours(means, quats, scales, opacities, colors, viewmat, K, width, height):
    return rasterization(means, quats, scales, opacities, colors, viewmat[None], K[None], width, height, packed=False)[0]


def plain_torch(means, quats, scales, opacities, colors, viewmat, K, width, height):
    return rasterization_reference(means, quats, scales, opacities, colors, viewmat[None], K[None], width, height, packed=False)[0]


def passes(draw, scene, width: int, height: int):
    """Two functions that draw a scene: forward alone, and forward with backward."""
    leaves = [tensor.requires_grad_() for tensor in scene[:5]]

    def forward():
        with torch.no_grad():
            draw(*scene, width, height)

    def both():
        for leaf in leaves:
            leaf.grad = None
        picture = draw(*scene, width, height)
        picture.backward(torch.ones_like(picture))

    return forward, both


def interleaved_ms(engines: dict, scene: list, width: int, height: int, blocks: int, seconds: float, pick) -> dict:
    """Times {name: (forward, with backward)}, picked by `pick` from all that were taken.

    The engines take turns, `blocks` times, so that all meet the same disturbances.
    """
    scene = [*scene[:5], *(tensor[0] for tensor in scene[5:])]
    runs = {(name, i): run for name, draw in engines.items() for i, run in enumerate(passes(draw, scene, width, height))}
    once = {}
    for key, run in runs.items():
        run()
        once[key] = median_ms(run, 1)
    times = {key: [] for key in runs}
    for _ in range(blocks):
        for key, run in runs.items():
            run()  # what the engine before left in the caches is not this one's fault
            repeats = max(2, min(30, int(1e3 * seconds / blocks / len(runs) / once[key])))
            times[key] += [median_ms(run, 1) for _ in range(repeats)]
    return {name: [pick(times[name, i]) for i in (0, 1)] for name in engines}


def median_ms(function, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def machine() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    load = f", load average at start {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{load}, "
        f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}, numba {numba.__version__}"
    )


def named(row: dict) -> str:
    """What a row was drawn from, and how large."""
    scene = f"{row['scene']} of {row['n']}" if "scene" in row else row["n"]
    return f"{scene}, {row['width']}x{row['height']}"


def table(rows: list[dict], peers: list[str]) -> list[str]:
    titles = ["splats, picture", "kernels, ms", "plain torch, ms", *(f"{name}, ms | kernels / {name}" for name in peers)]
    titles += ["OpenSplat / kernels (target)"] if "prototype" in peers else []
    titles.append("`peers.py`: prototype, C++, OpenSplat with backward, ms")
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(" | ".join(titles).split("|")) + "|"]
    for row in rows:
        mine, cells = row["ms"]["kernels"], []
        torch_ms = row["ms"].get("plain torch")
        cells.append(f"{torch_ms[0]:.0f} / {torch_ms[1]:.0f} ({torch_ms[1] / mine[1]:.0f}x)" if torch_ms else "-")
        for name in peers:
            other = row["ms"][name]
            cells += [f"{other[0]:.1f} / {other[1]:.1f}", f"{mine[0] / other[0]:.2f} / {mine[1] / other[1]:.2f}"]
        load = (row.get("scene", row["n"]), row["width"], row["height"])
        if "prototype" in peers:
            times = times_opensplat(*load, row["ms"]["prototype"][1], mine[1])
            cells.append(f"{times:.1f} ({RASTERIZATION[load]['target']})")
        cells.append(" / ".join(str(RASTERIZATION[load][name][1]) for name in ("prototype", "ceiling", "OpenSplat")))
        lines.append(f"| {named(row)} | {mine[0]:.1f} / {mine[1]:.1f} | {' | '.join(cells)} |")
    return lines


def cited(record: dict) -> list[str]:
    """What a run beside other engines found, from its record: ratios of that run, to be read beside those of `table`, not mixed."""
    names = [name for name in record["rows"][0]["ms"] if name not in ("kernels", "plain torch")]
    titles = ["splats, picture", *(f"kernels / {name}" for name in names)]
    lines = [f"Beside other engines, measured {record['date']} ({record['machine']}); forward / forward with backward:", ""]
    lines += ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for row in record["rows"]:
        pairs = [zip(row["ms"]["kernels"], row["ms"][name], strict=True) for name in names]
        cells = [" / ".join(f"{mine / other:.2f}" for mine, other in pair) for pair in pairs]
        lines.append(f"| {named(row)} | {' | '.join(cells)} |")
    return lines


def behind(rows: list[dict], name: str, allowed: float) -> str:
    """Which rows take more than `allowed` times the peer's time, in words."""
    slow = {"forward": [], "with backward": []}
    for row in rows:
        for kind, mine, other in zip(slow, row["ms"]["kernels"], row["ms"][name], strict=True):
            if mine > allowed * other:
                slow[kind].append(f"{named(row)} ({mine / other:.2f})")
    told = [f"{kind}: {', '.join(found) if found else 'none'}" for kind, found in slow.items()]
    return f"Rows slower than 0.9 times the speed of {name}: {'; '.join(told)}."


def save(folder: Path, record: dict, peers: list[str], least: bool) -> None:
    """Write the page and the record of a run; one without peers leaves the page alone that has theirs, and cites it."""
    folder.mkdir(exist_ok=True)
    beside, rows = folder / "rasterization.json", record["rows"]
    text = f"# Rasterization, measured {record['date']}\n\n{record['machine']}. {NOTE.format('Least' if least else 'Median')}\n\n"
    text += "\n".join(table(rows, peers)) + "\n"
    if least:
        text += f"\n{WHY_LEAST}\n"
    text += "".join(f"\n{behind(rows, name, 1 / 0.9)}\n" for name in peers)
    if not peers and beside.exists():
        lines = cited(json.loads(beside.read_text(encoding="utf-8")))
        print(*lines, sep="\n")
        text += "\n" + "\n".join(lines) + "\n"
    name = "rasterization" if peers else "rasterization-alone"
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(text, encoding="utf-8")


def loads(garden: str | None):
    """Name, number of splats, picture and scene of every row."""
    for n in COUNTS:
        for width, height in SIZES:
            yield {"n": n, "width": width, "height": height}, ball_scene(n, width, height)
    if not garden or not Path(garden).exists():
        print(f"no rows of the garden: {garden} is missing" if garden else "no rows of the garden: no --garden, no NSW_GARDEN")
        return
    for width, height in SIZES:
        scene = garden_scene(garden, width, height)
        yield {"scene": GARDEN, "n": len(scene[0]), "width": width, "height": height}, scene


def main() -> None:
    options = parse()
    pick = min if options.least else statistics.median
    if options.threads:
        torch.set_num_threads(options.threads)
    peers = {Path(path).stem: load_peer(path) for path in options.peer}
    if not peers:
        print("no --peer given: ratios to other engines are cited from results/rasterization.json, with their date")
    header, date, rows = machine(), datetime.date.today().isoformat(), []
    print(f"{date}: {header}", *table([], list(peers)), sep="\n", flush=True)
    for row, scene in loads(options.garden):
        width, height = row["width"], row["height"]
        ms = interleaved_ms({"kernels": ours, **peers}, scene, width, height, options.blocks, options.seconds, pick)
        if row["n"] <= options.reference_up_to:
            scene[5:] = [tensor[0] for tensor in scene[5:]]
            ms["plain torch"] = [median_ms(run, 1) for run in passes(plain_torch, scene, width, height)]
        rows.append(row | {"ms": ms})
        print(table(rows, list(peers))[-1], flush=True)
    save(FOLDER, {"date": date, "machine": header, "blocks": options.blocks, "rows": rows}, list(peers), options.least)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--blocks", type=int, default=5, help="how often the engines take turns")
    parser.add_argument("--seconds", type=float, default=4.0, help="about how long a size is measured")
    parser.add_argument("--reference-up-to", type=int, default=1_000, help="largest N that plain torch is timed at, once")
    parser.add_argument("--peer", action="append", default=[], help="a Python file with another engine, see load_peer; repeatable")
    parser.add_argument("--threads", type=int, help="for the kernels; set OMP_NUM_THREADS and NUMBA_NUM_THREADS for the peers")
    parser.add_argument(
        "--least", action="store_true", help="the least times, not medians: for a machine that has other work to do"
    )
    parser.add_argument(
        "--garden", default=os.environ.get("NSW_GARDEN"), help="assets/test_garden.npz of gsplat's repository, for three rows more"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
