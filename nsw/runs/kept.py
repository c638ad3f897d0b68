"""Trained models of earlier runs: find them, load them, look at them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nsw.errors import InputError
from nsw.runs.folders import runs_dir


def find_run(name: str | Path) -> Path:
    """Return the folder of a run: a path, or the newest run of a slug that has kept a model.

    Raises:
        InputError: naming what exists.
    """
    folder = Path(name).expanduser()
    if str(name) and folder.is_dir():
        return folder.absolute()
    root = runs_dir()
    found = [path.parents[2] for path in root.glob(f"{Path(name).name}/*/models/*/model.safetensors")] if str(name) else []
    if found:
        return max(found, key=lambda run: run.stat().st_mtime)
    known = sorted({path.parents[3].name for path in root.glob("*/*/models/*/model.safetensors")})
    raise InputError(
        f'There is no run "{name}" with a kept model in {root}: there is {", ".join(known) or "none yet; nsw run makes one"}.'
    )


def load_kept(run: Path) -> tuple[Any, Any]:
    """Return (model, scene) of the model that a run kept last; the scene is None when none was kept with it.

    Raises:
        InputError: when there is no model, or it or its scene cannot be read.
    """
    from nsw import scenes
    from nsw.models.io import load
    from nsw.models.state import read_json

    own = [run] if (run / "model.safetensors").is_file() else []
    kept = own or [path.parent for path in run.glob("models/*/model.safetensors")]
    if not kept:
        raise InputError(f"The run in {run} has kept no model: run its notebook to the end first.")
    folder = max(kept, key=lambda place: (place / "model.safetensors").stat().st_mtime)
    model = load(folder)
    if not (folder / "scene.json").is_file():
        return model, None
    about = read_json(folder / "scene.json", "record of the scene")
    try:
        scene = scenes.load(about["scene"], size=about["width"])
    except InputError:
        scene = scenes.load(about["source"] or about["scene"], size=about["width"])
    return model, scene


def view_run(name: str, *, port: int = 0, host: str = "127.0.0.1") -> int:
    """Serve a run's model in the 3D viewer until Ctrl-C."""
    if not 0 <= port < 65536:
        raise InputError(f"--port is {port}: expected 0 (any free port) to 65535.")
    model, scene = load_kept(find_run(name))
    from nsw.widgets import serve

    serve(model, scene, port=port, host=host)
    return 0
