"""Run every notebook's `gpu` preset on a CUDA GPU with few steps: does it run through, how fast, with how much memory?

The sizes are those of the preset (pictures, splats, voxels, networks, rays); the numbers of steps are cut to `FEW`, so that all
notebooks together take minutes and not days. Claims are shown and not judged: nothing is learned in so few steps. Bundled
scenes are enlarged to the size that a preset asks for, where no larger rendering is here, so that memory and time are those of
large pictures. A cell that fails does not end a notebook: the cells behind it run too, as far as they can, and each failure is
listed. A step's time and the preset's own number of steps give the hours that its visible loops would take. No notebook may hold
more of the card than its share, so that one's hunger is not another's failure.

`--whole` runs notebooks as they stand, with all steps, the pictures that are here, and their claims; `--scene` gives them a folder
of photographs, on which they show their claims and assert none. `--image` draws and trains on smaller pictures, where only the way
through the cells is asked for.

`python -m tests.bench gpu_presets [--only 05 20] [--whole 00 28] [--scene FOLDER] [--image 160] [--jobs 4] [--limit 300]`
"""

from __future__ import annotations

import argparse
import ast
import datetime
import json
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# isort: split
import nbformat
import torch

from nsw.runs.kernel import Execution
from nsw.runs.notebooks import all_notebooks

RESULTS = Path(__file__).parent / "results"
FILM = dict(orbit_frames=8, look_every=100)
FEW = {
    "00": dict(n_steps=500),
    "01": dict(image_size=200, n_steps=200),
    "02": dict(coarse_steps=300, fine_steps=200, seconds=5),
    "03": dict(n_steps=500, grid_steps=100, **FILM),
    "04": dict(image_size=400, n_steps=200, network_steps=600),
    "05": dict(image_size=400, steps=80, quick_steps=20, seconds=3, test_views=1),
    "06": dict(image_size=400, steps=80, quick_steps=20, seconds=3, rays=100_000, test_views=1),
    "07": dict(image_size=400, steps=80, quick_steps=20, test_views=1),
    "08": dict(steps=100, quick_steps=30, host_steps=30),
    "09": dict(steps=80, quick_steps=20, teacher_steps=80),
    "10": dict(image_size=400, teacher_steps=600, steps=30, matrix_steps=20, ablation_steps=20, race_steps=60, test_views=1),
    "11": dict(image_size=400, teacher_steps=600, steps=48, poses=12, epoch=12, seeds=2, test_views=1),
    "20": dict(n_steps=500, start=100, every=50, **FILM),
    "21": dict(n_steps=200, baseline_steps=200, baseline_reset=0, refine_every=50, **FILM),
    "22": dict(n_steps=250, press=(0, 250), **FILM),
    "23": dict(n_steps=150, every=50, **FILM),
    "24": dict(steps=(10, 10, 10, 60), every=20, orbit_frames=8, look_every=20),
    "25": dict(n_steps=150, n_trials=2, **FILM),
    "26": dict(n_coarse=150, n_fine=100, grid=(2, 1), refine_every=50, orbit_frames=8),
    "27": dict(n_steps=200, refine_every=50, orbit_frames=8),
    "28": dict(train_steps=1500, n_steps=100, orbit_frames=8, look_every=50),
}  # in place of a preset's own entry
ORDER = "21 26 24 22 27 28 23 05 06 07 10 11 02 04 01 09 08 03 20 25 00"  # the longest do not come last

SHARE = """
import torch
torch.cuda.set_per_process_memory_fraction({share})
"""
ENLARGED = """
import nsw, nsw.export, nsw.scenes
from nsw.scenes.frames import with_digest as _with_digest
_load = nsw.scenes.load
def _enlarged(name, size=None):
    scene = _load(name, size)
    return scene if size is None or scene.cameras.width == size else _with_digest(scene.resized(size))
nsw.scenes.load = _enlarged
"""
WITHOUT_FFMPEG = """
import nsw.export
nsw.export.save_mp4 = lambda frames, *args, **options: [frame for frame in frames] and None
"""
AFTER = """
import json, pathlib, torch
pathlib.Path({path!r}).write_text(json.dumps(dict(
    gpu_mb=torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0, rates=run_rates,
    claims=[dict(c.as_dict(), asked=c.asked) for c in run.claims])))
"""
TIMED = """
from nsw.metrics import clock as _clock
run_rates, _steps = {}, run.steps
def _timed(n, name="train", **options):
    began, seen = _clock(), 0
    for step in _steps(n, name=name, **options):
        if seen == min(10, n // 2):
            began = _clock()
        seen += 1
        yield step
    run_rates[name] = n, (seen - min(10, n // 2)) / max(_clock() - began, 1e-9)
run.steps = _timed
"""


def settings_table(tree: ast.Module) -> list[ast.keyword]:
    """Return the rows of `run.settings(...)`, each with its tuple of smoke, laptop and gpu."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return next(call.keywords for call in calls if ast.unparse(call.func) == "run.settings")


def shortened(path: Path, few: dict | None, out: Path, film: bool, share: float, scene: str) -> tuple[nbformat.NotebookNode, dict]:
    """Return the notebook at its gpu preset with the given settings, and what the preset had in their place; None keeps all.

    Args:
        scene: the folder that stands in place of the notebook's scene; "" keeps it.
    """
    notebook, own = nbformat.read(path, 4), {}
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            if "parameters" in cell.metadata.get("tags", []):
                cell.source = cell.source.replace('preset: str = "laptop"', 'preset: str = "gpu"')
                if scene:
                    cell.source = re.sub(r'scene_name: str = "\w+"', f"scene_name: str = {scene!r}", cell.source)
            if few is not None:
                cell.source = cell.source.replace("run.claims.check()", "")
            cell.metadata.tags = [*cell.metadata.get("tags", []), "raises-exception"]  # and the next cell runs all the same
        cells.append(cell)
        if cell.cell_type == "code" and "run = nsw.start(" in cell.source:
            head, tree = cell, ast.parse(cell.source)
            for row in settings_table(tree):
                if row.arg in (few or {}):
                    own[row.arg] = ast.unparse(row.value.elts[2])
                    row.value.elts[2] = ast.parse(repr(few[row.arg])).body[0].value
            start, *rest = tree.body
            head.source = "\n".join([ast.unparse(start), TIMED, *(ast.unparse(line) for line in rest)])
    if set(own) != set(few or {}):
        raise SystemExit(f"{path.name}: no setting named {', '.join(set(few) - set(own))}; mend FEW.")
    prepare = [SHARE.format(share=share), "" if few is None else ENLARGED, "" if film else WITHOUT_FFMPEG]
    first = nbformat.v4.new_code_cell("".join(prepare))
    last = nbformat.v4.new_code_cell(AFTER.format(path=str(out)))
    notebook.cells = [first, *cells, last]
    return notebook, own


def ffmpeg_is_here() -> bool:
    try:
        import imageio_ffmpeg

        return bool(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        return False


def seconds_of(cell: nbformat.NotebookNode) -> float:
    """Return how long a cell ran; 0 if it never ended."""
    when = cell.metadata.get("execution", {})
    ends = (when.get(key) for key in ("iopub.status.busy", "iopub.status.idle"))
    began, ended = (None if text is None else datetime.datetime.fromisoformat(text.replace("Z", "+00:00")) for text in ends)
    return (ended - began).total_seconds() if began and ended else 0.0


def failures(cells: list[nbformat.NotebookNode]) -> list[dict]:
    """Return what each cell that failed raised: its number among the code cells, one line, the end of its traceback."""
    found = []
    for number, cell in enumerate(cells, 1):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                line = f"{output.ename}: {' '.join(output.evalue.split())}"[:300]
                found.append(dict(cell=number, line=line, trace="\n".join(output.traceback[-6:])[-3000:]))
    return found


def run_one(path: Path, few: dict | None, folder: Path, limits: tuple[float, float], *how) -> dict:
    """Execute one notebook; return how it went, what it measured, its longest cells and what failed."""
    out = folder / f"{path.stem}.json"
    deadline, each = limits
    left = min(each, deadline - time.monotonic())
    if left < 20:
        return dict(name=path.stem, status="not reached", reason="", seconds=0.0, failed=[], slow=[])
    notebook, own = shortened(path, few, out, *how)
    environment = {"NSW_RUNS": str(folder / "runs")}
    outcome = Execution(notebook, path.parent, environment, left).run()
    nbformat.write(notebook, folder / path.name)
    found = json.loads(out.read_text()) if out.is_file() else {}
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"][1:-1]
    failed = failures(cells)
    slow = sorted(((seconds_of(cell), i) for i, cell in enumerate(cells, 1)), reverse=True)[:5]
    print(f"{path.stem}: {outcome.status} {outcome.seconds:.0f} s {outcome.reason}; {found.get('gpu_mb', 0):.0f} MB", flush=True)
    print("   slow:", ", ".join(f"cell {i} {t:.0f} s" for t, i in slow), flush=True)
    for one in failed:
        print(f"   cell {one['cell']}: {one['line']}", flush=True)
    (folder / f"{path.stem}.txt").write_text("\n\n".join(f"cell {one['cell']}\n{one['trace']}" for one in failed))
    went = dict(status=outcome.status, reason=outcome.reason, seconds=outcome.seconds, failed=failed, slow=slow)
    name = path.stem + (", whole" if few is None else "")
    return dict(name=name, few=few or {}, own=own, **went, **found)


def hours(row: dict) -> float:
    """Return how long the loops that `run.steps` counted would take with the preset's own numbers of steps."""
    total = 0.0
    for n, rate in row.get("rates", {}).values():
        owns = [row["own"][key] for key, value in row["few"].items() if value == n and "image" not in key]
        total += int(owns[0]) / rate / 3600 if owns and owns[0].isdigit() else 0.0
    return total


def page(rows: list[dict], jobs: int, share: float) -> str:
    """Return the measurements as Markdown."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    lines = [f"# The gpu presets with few steps, {datetime.date.today().isoformat()}", ""]
    lines += [f"{card}, {os.cpu_count()} CPU cores; torch {torch.__version__}; {jobs} notebooks at a time on one card,"]
    lines += [f"each with at most {share:.2f} of its memory.", ""]
    heads = "notebook, went, seconds, GPU memory in MB, steps a second of the first loops, here, in the preset, hours of its loops"
    lines += [f"| {heads.replace(', ', ' | ')} |", "|---|---|---|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: row["name"]):
        rates = ", ".join(f"{name} {rate:.3g}" for name, (_, rate) in list(row.get("rates", {}).items())[:3])
        few = {k: v for k, v in row.get("few", {}).items() if "steps" in k or k in ("n_coarse", "n_fine", "image_size")}
        own = {k: row["own"][k] for k in few}
        here, there = (", ".join(f"{k} {v}" for k, v in x.items()) for x in (few, own))
        ended = "failed" if row["failed"] else "through"
        went = ended if row["status"] == "ok" else f"{row['status']}: {row['reason'][:160]}"
        went += "".join(f"; cell {one['cell']} {one['line'][:120]}" for one in row["failed"][:3])
        figures = f"{row['seconds']:.0f} | {row.get('gpu_mb', 0):.0f} | {rates} | {here} | {there} | {hours(row):.2f}"
        lines.append(f"| {row['name']} | {went} | {figures} |")
    lines += ["", "| notebook | claim | ours | baseline | gain | asked for |", "|---|---|---|---|---|---|"]
    for row in rows:
        for claim in row.get("claims", []) if not row.get("few") else []:  # few steps learn nothing that could be judged
            values = " | ".join("" if claim[name] is None else f"{claim[name]:.4g}" for name in ("ours", "baseline", "gain"))
            lines.append(f"| {row['name'][:2]} | {claim['title']} | {values} | {claim['asked']}: {claim['verdict']} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=ORDER.split(), help="numbers of notebooks")
    parser.add_argument("--whole", nargs="*", default=[], help="numbers of notebooks to run as they stand, before the others")
    parser.add_argument("--scene", default="", help="a folder of photographs in place of each notebook's scene")
    parser.add_argument("--image", type=int, default=0, help="size of all pictures; 0: that of FEW or the preset")
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds for all")
    parser.add_argument("--each", type=float, default=600.0, help="seconds for one notebook")
    parser.add_argument("--share", type=float, default=0.0, help="of the card's memory that a notebook may take; 0: one of JOBS")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("Skipped: torch finds no CUDA GPU here.")
        return 0
    film, limits = ffmpeg_is_here(), (time.monotonic() + arguments.limit, arguments.each)
    share = arguments.share or 0.96 / arguments.jobs
    folder = arguments.out / "gpu-presets"
    folder.mkdir(parents=True, exist_ok=True)
    paths = {path.stem[:2]: path for path in all_notebooks()}
    smaller = {"image_size": arguments.image} if arguments.image else {}
    work = [(paths[n], None) for n in arguments.whole] + [(paths[n], FEW[n] | smaller) for n in arguments.only]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        rows = list(pool.map(lambda one: run_one(*one, folder, limits, film, share, arguments.scene), work))
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    text = page(rows, arguments.jobs, share)
    print(text)
    (arguments.out / f"gpu-presets-{datetime.date.today().isoformat()}.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
