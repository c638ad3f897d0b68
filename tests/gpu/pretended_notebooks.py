"""Run notebooks at preset smoke with few steps, as if there were a GPU."""

from __future__ import annotations

import argparse
import ast
import inspect
import os
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nbformat

from nsw.runs.kernel import Execution
from nsw.runs.notebooks import all_notebooks
from tests.bench.bench_gpu_presets import settings_table

ROOT = Path(__file__).parents[2]
FEW = {
    "00": dict(n_steps=40),
    "01": dict(n_steps=40),
    "02": dict(coarse_steps=40, fine_steps=30, seconds=1),
    "03": dict(n_steps=75, grid_steps=60, orbit_frames=3),
    "04": dict(n_steps=40, network_steps=40),
    "05": dict(steps=40, quick_steps=16, seconds=1, test_views=1),
    "06": dict(steps=40, quick_steps=12, seconds=1, rays=20_000, test_views=1, race_views=1, ranks=(1, 2)),
    "07": dict(steps=40, quick_steps=20, test_views=2),
    "08": dict(steps=20, quick_steps=10, host_steps=10),
    "09": dict(steps=30, quick_steps=12, teacher_steps=40),
    "10": dict(ablation_steps=8, race_steps=20, test_views=1),
    "11": dict(teacher_steps=100, steps=60, poses=12, epoch=12, test_views=1),
    "20": dict(n_steps=240, start=60, every=30, look_every=20, orbit_frames=3),
    "21": dict(n_steps=75, baseline_steps=75, orbit_frames=3),
    "22": dict(n_steps=120, press=(60, 90), field_from=90, refine_every=20, orbit_frames=3),
    "23": dict(n_steps=60, every=20, orbit_frames=3),
    "24": dict(steps=(30, 60), every=5, orbit_frames=3),
    "25": dict(n_steps=60, n_trials=1, orbit_frames=3),
    "26": dict(n_coarse=60, n_fine=50, orbit_frames=3),
    "27": dict(n_steps=75, orbit_frames=3),
    "28": dict(train_steps=60, n_steps=36, orbit_frames=3),
}
# What the gpu preset does otherwise than smoke, beside being larger; `--preset gpu` keeps these, at smoke's sizes.
OTHERWISE = {
    "04": dict(sh_degree=2, dilate=2),
    "06": dict(octaves=(2, 2), l1=(8e-5, 4e-5), threshold=1e-6, opaque=1e-4),
    "08": dict(repeats=10),
    "20": dict(faster=1, reset_every=80),
    "21": dict(baseline_reset=40, max_splats=0),
    "22": dict(press=(0, 120), field_from=0, codes=(6, 6), max_splats=0),
    "23": dict(shared=True, largest=0, colour_rate=1.0, offset_rate=1),
    "24": dict(widths=(10, 20, 30, 40), views=(8, 6, 4, 2), steps=(10, 10, 10, 60), reset_every=30),
    "26": dict(guide=(0.5, 0.005, 0.0, True), max_splats=0),
    "27": dict(max_splats=0),
}
FIRST = """
import torch
from tests.gpu.pretended_notebooks import move_everything, stop_and_resume
assert torch.zeros(1, device="cuda").is_cuda and type(torch.zeros(1, device="cuda")) is not torch.Tensor
move_everything()
stop_and_resume()
"""
LAST = """
from tests.gpu.pretended_notebooks import TROUBLE
assert not TROUBLE, TROUBLE
"""
TROUBLE: list[str] = []  # what controls raised when moved


def noting(what: str, draw: Callable, **values) -> None:
    """Draw, and note what was raised."""
    try:
        draw(**values)
    except Exception as error:
        TROUBLE.append(
            f"{what} {values}: {type(error).__name__}: {error}\n{''.join(traceback.format_tb(error.__traceback__)[-4:])}"
        )


def settings_of(spec) -> list:
    """Return where a control of `nsw.widgets.slider_panel.control` stands first, and then where it is moved to."""
    if isinstance(spec, tuple) and isinstance(spec[0], str):
        return [spec[0], *spec[1]]
    if isinstance(spec, tuple):
        return [spec[2], *spec[:2]]
    return spec if isinstance(spec, list) else [spec, not spec]


def shown(draw: Callable, **values) -> None:
    """Draw as a slider's panel does: a chart as it is, a picture as an array."""
    out = draw(**values)
    if not hasattr(out, "to_plotly_json"):
        from nsw.widgets.pictures import to_array

        to_array(out)


def move_everything() -> None:
    """Let every slider be moved to both ends once it is shown, and every viewer be turned."""
    from nsw.widgets import inline_viewer, slider_panel
    from nsw.widgets.pictures import to_array

    own_sliders, own_viewer = slider_panel.sliders, inline_viewer.viewer

    def sliders(draw, alt, caption=None, pick=None, **ranges):
        own_sliders(draw, alt, caption, pick, **ranges)
        sides = {} if pick is None else dict(zip(("row", "column"), to_array(pick).shape[:2], strict=True))
        ranges = {name: (0, n - 1, n // 2) for name, n in sides.items()} | ranges
        first = {name: settings_of(spec)[0] for name, spec in ranges.items()}
        coarse = "coarse" in inspect.signature(draw).parameters and "coarse" not in ranges
        for name, spec in ranges.items():
            for value in settings_of(spec)[1:]:
                for shade in [{"coarse": True}, {"coarse": False}] if coarse else [{}]:
                    noting(alt, partial(shown, draw), **first | {name: value} | shade)

    def viewer(*args, **options):
        view = own_viewer(*args, **options)
        view.key("ArrowLeft")
        noting(f"viewer {options.get('alt')}", view.picture, coarse=True)
        return view

    slider_panel.sliders, inline_viewer.viewer = sliders, viewer


def stop_and_resume() -> None:
    """Let every loop that saves something go to its checkpoint and back half way, as one does that was stopped."""
    from nsw.runs import checkpoints, steps

    own = steps.steps

    def halved(run, n, *, name="train", save=None, **options):
        for step in own(run, n, name=name, save=save, **options):
            yield step
            if save and step == n // 2:
                path = checkpoints.checkpoint_path(run.folder, name)
                steps._save(run, n, name, save, step + 1, 1.0)
                stored = checkpoints.load_checkpoint(path)
                checkpoints.restore_objects(save, stored["objects"], path)
                checkpoints.restore_random_states(stored["random"], run.generator)

    steps.steps = halved


def shortened(path: Path, preset: str) -> nbformat.NotebookNode:
    """Return the notebook at smoke's sizes with few steps, its claims written down and not asserted."""
    notebook, number, column = nbformat.read(path, 4), path.stem[:2], 0 if preset == "smoke" else 2
    few = FEW[number] | (OTHERWISE.get(number, {}) if column else {})
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = cell.source.replace('preset: str = "laptop"', f'preset: str = "{preset}"')
        cell.source = cell.source.replace("run.claims.check()", "")
        if "run.settings(" in cell.source:
            tree = ast.parse(cell.source)
            for row in (row for row in settings_table(tree) if isinstance(row.value, ast.Tuple)):
                own = few.get(row.arg)
                row.value.elts[column] = row.value.elts[0] if own is None else ast.parse(repr(own)).body[0].value
            cell.source = ast.unparse(tree)
    first, last = nbformat.v4.new_code_cell(FIRST), nbformat.v4.new_code_cell(LAST)
    notebook.cells = [first, *notebook.cells, last]
    return notebook


def run_one(path: Path, folder: Path, limit: float, preset: str = "smoke") -> str:
    """Execute a notebook on the pretended card; return the end of its traceback, empty where it ran through."""
    starter = folder / "starter"
    starter.mkdir(exist_ok=True)
    (starter / "sitecustomize.py").write_text("from tests.gpu.pretend import begin\n\nbegin()\n")
    environment = {"NSW_RUNS": str(folder / "runs"), "PYTHONPATH": os.pathsep.join([str(starter), str(ROOT)])}
    notebook = shortened(path, preset)
    outcome = Execution(notebook, path.parent, environment, limit).run()
    errors = [o for c in notebook.cells if c.cell_type == "code" for o in c.get("outputs", []) if o.output_type == "error"]
    print(f"{path.stem}: {outcome.status} {outcome.seconds:.0f} s {outcome.reason}", flush=True)
    nbformat.write(notebook, folder / path.name)
    if outcome.status == "ok":
        return ""
    return "\n".join(errors[0].traceback) if errors else outcome.reason


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="*", help="numbers of notebooks; all without")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for each")
    parser.add_argument("--preset", choices=["smoke", "gpu"], default="smoke", help="whose branches are taken; sizes are smoke's")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folder = arguments.out or Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True, parents=True)
    failed = 0
    for path in all_notebooks():
        if not arguments.only or path.stem[:2] in arguments.only:
            trace = run_one(path, folder, arguments.limit, arguments.preset)
            failed += bool(trace)
            print(trace[-6000:])
    return failed
