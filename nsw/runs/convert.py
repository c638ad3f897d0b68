"""`nsw convert`: a trained run, or a file of splats, as a model of another architecture."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nsw.errors import InputError

WORDS = ("hash", "vm", "dense", "mlp", "gaussians")
N_VIEWS = 4


def student_of(word: str) -> Callable:
    """Return the function that makes a student of the architecture a person asks for.

    Raises:
        InputError: naming the words there are.
    """
    if word not in WORDS:
        raise InputError(f'Cannot convert to "{word}": expected {", ".join(WORDS[:-1])} or {WORDS[-1]}.')
    from nsw.methods import pvd_splats, pvd_students

    students = (pvd_students.hash_grid, pvd_students.vm, pvd_students.dense, pvd_students.mlp, pvd_splats.gaussians)
    return dict(zip(WORDS, students, strict=True))[word]


def convert_run(name: str, to: str, out: Path | None = None, steps: int = 1500, seed: int = 0) -> Path:
    """Distil a run's model, or a file of splats, into another architecture: a folder that appears whole or not at all.

    A file of splats comes without a scene: cameras stand on an orbit around it, and no photograph scores the result.

    Args:
        name: folder or slug of a run, or a .ply, .splat, .spz or .glb.
        out: the folder; by default it stands beside the run's own model, where `widgets.compare_runs` finds it, or beside the file.

    Raises:
        InputError: for a word, run, model, file, number or folder that does not serve.
    """
    import torch

    import nsw
    from nsw.methods.pvd import Plan, convert
    from nsw.runs.kept import find_run, kept_folder, splat_file
    from nsw.runs.model_card import measure
    from nsw.runs.settings import check_seed

    student = student_of(to)
    if steps < 10:
        raise InputError(f"--steps is {steps}: a student needs at least 10, and some hundred to look like its teacher.")
    folder = splat_file(name) or kept_folder(find_run(name))
    out = folder.absolute().with_name(f"{folder.stem}-as-{to}") if out is None else Path(out).expanduser().absolute()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} exists already: give --out a folder that is new or empty.")
    device = nsw.device("auto")
    model, scene = _teacher(folder, device)
    generator = torch.Generator(device).manual_seed(check_seed(seed))
    torch.manual_seed(seed)
    plan = Plan(n_steps=steps) if scene is None else Plan(n_steps=steps, size=min(scene.cameras.width, 256))
    print(f"{folder}: a {type(model).__name__} becomes {to}, {steps} steps on {device}")
    began = time.monotonic()
    learned = convert(model, student, scene, plan, generator, watch=_watched)
    with _new_folder(out) as part:
        card = _write(part, learned, folder, scene, {"name": out.name, "seconds": time.monotonic() - began})
    if "psnr" in card:
        before = measure(model, scene, "smoke")
        print(f"PSNR on {card['views']} test views: {before['psnr']:.2f} dB before, {card['psnr']:.2f} dB after")
    else:
        print(f"PSNR against what was converted, from {N_VIEWS} new cameras: {likeness(learned, model, plan.size, seed):.2f} dB")
    return out


def _teacher(source: Path, device: Any) -> tuple[Any, Any]:
    """Return (model, scene or None) of a run's model, or of a file of splats, turned so that +z is up."""
    from nsw import formats
    from nsw.formats.checks import z_up
    from nsw.models.io import load
    from nsw.runs.kept import load_scene

    if source.is_dir():
        return load(source, device).eval(), load_scene(source)
    return z_up(formats.load(source), formats.up_of(source)).to(device).eval(), None


def likeness(learned: Any, model: Any, size: int, seed: int) -> float:
    """Return the PSNR in dB of a student against its teacher, over black, from cameras that were not trained on."""
    import torch

    from nsw.methods.pvd_poses import box_of, cameras_seeing
    from nsw.metrics import psnr
    from nsw.runs.model_card import draw_timed

    aabb = box_of(model)
    cameras = cameras_seeing(N_VIEWS, size, torch.Generator().manual_seed(seed + 1), aabb).to(aabb.device)
    return psnr(*(draw_timed(one, cameras, 0.0)[0].clamp(0, 1) for one in (learned, model)))


def _watched(n: int) -> Iterator[int]:
    """Yield the steps, with a bar and the time left in a terminal, and lines elsewhere."""
    from nsw.runs.progress import Bar, Eta, Lines

    eta = Eta(n)
    report = Bar(eta, "convert") if sys.stderr.isatty() else Lines(eta, "convert")
    try:
        for k in range(n):
            yield k
            eta.step()
            report.update(k + 1, {})
    finally:
        report.close()


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` to write into; it becomes `out` at the end, or is removed when anything fails."""
    from nsw.models.state import cannot_write

    part = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
        yield part
        part.chmod(0o755)
        if out.is_dir():
            out.rmdir()  # empty, as was seen before; Windows replaces no folder at all
        os.replace(part, out)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def _write(part: Path, model: Any, source: Path, scene: Any, about: dict[str, Any]) -> dict[str, Any]:
    """Write the model, its card and the record of the scene that its teacher was kept with; return the card."""
    from nsw.models.io import save
    from nsw.models.state import write_bytes
    from nsw.runs import model_card, provenance

    save(model, part)
    if (source / "scene.json").is_file():
        write_bytes(part / "scene.json", (source / "scene.json").read_bytes())
    told = {"name": about["name"], "converted_from": source.name, "date": time.strftime("%Y-%m-%d")}
    return model_card.write(part, model, scene, about["seconds"], {**told, "hardware": provenance.hardware()})
