"""Trained models of earlier runs: find them, load them, look at them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsw.errors import InputError
from nsw.models.state import read_json
from nsw.runs.folders import runs_dir


@dataclass(frozen=True)
class Kept:
    """A model that a run kept: its folder `<run>/models/<name>`, and its card, empty when an older nsw wrote it."""

    folder: Path
    card: dict[str, Any]

    @property
    def run(self) -> Path:
        return self.folder.parents[1]

    @property
    def slug(self) -> str:
        return self.run.parent.name

    @property
    def label(self) -> str:
        """What a person chooses by: "dvgo laptop-seed0: fine"."""
        return f"{self.slug} {self.run.name}: {self.folder.name}"

    @property
    def changed(self) -> float:
        return (self.folder / "model.safetensors").stat().st_mtime


def kept_models(root: Path | None = None) -> list[Kept]:
    """Return every model that runs below `root` have kept, newest first.

    Raises:
        InputError: when a card is damaged.
    """
    found = [path.parent for path in (root or runs_dir()).glob("*/*/models/*/model.safetensors")]
    return sorted((Kept(folder, _card(folder)) for folder in found), key=lambda kept: -kept.changed)


def _card(folder: Path) -> dict[str, Any]:
    path = folder / "card.json"
    card = read_json(path, "card of the model") if path.is_file() else {}
    if not isinstance(card, dict):
        raise InputError(f"{path} holds a {type(card).__name__}: it was not written by nsw; remove it.")
    return card


def find_run(name: str | Path) -> Path:
    """Return the folder of a run: a path, or the newest run of a slug that has kept a model.

    Raises:
        InputError: naming what exists.
    """
    folder = Path(name).expanduser()
    if str(name) and folder.is_dir():
        return folder.absolute()
    root = runs_dir()
    found = [path.parents[2] for path in (root / Path(name).name).glob("*/models/*/model.safetensors")] if str(name) else []
    if found:
        return max(found, key=lambda run: run.stat().st_mtime)
    known = sorted({path.parents[3].name for path in root.glob("*/*/models/*/model.safetensors")})
    raise InputError(
        f'There is no run "{name}" with a kept model in {root}: there is {", ".join(known) or "none yet; nsw run makes one"}.'
    )


def kept_folder(run: Path | str) -> Path:
    """Return the folder of the model that a run trained and kept last, or `run` itself when it is a model.

    What `nsw convert` made of that model stands beside it, and is taken by its own folder only.

    Raises:
        InputError: when there is no run, or it has kept no model.
    """
    run = Path(run)
    if not run.is_dir():
        raise InputError(f"There is no run in {run}: give the folder that the notebook printed.")
    own = [run] if (run / "model.safetensors").is_file() else []
    kept = own or [path.parent for path in run.glob("models/*/model.safetensors")]
    if not kept:
        raise InputError(f"The run in {run} has kept no model: run its notebook to the end first.")
    return max(kept, key=lambda place: ("converted_from" not in _card(place), (place / "model.safetensors").stat().st_mtime))


def load_scene(folder: Path) -> Any:
    """Return the scene that a model in `folder` belongs to; None when none was kept with it."""
    from nsw import scenes

    if not (folder / "scene.json").is_file():
        return None
    about = read_json(folder / "scene.json", "record of the scene")
    try:
        return scenes.load(about["scene"], size=about["width"])
    except InputError:
        return scenes.load(about["source"] or about["scene"], size=about["width"])


def load_kept(run: Path) -> tuple[Any, Any]:
    """Return (model, scene) of the model that a run kept last; the scene is None when none was kept with it.

    Raises:
        InputError: when there is no model, or it or its scene cannot be read.
    """
    from nsw.models.io import load

    folder = kept_folder(run)
    return load(folder), load_scene(folder)


def splat_file(name: str | Path) -> Path | None:
    """Return the path when `name` is a file, or is called like a file of Gaussians; None for what may be a run."""
    from nsw.formats import SUFFIXES

    path = Path(name).expanduser()
    return path if str(name) and not path.is_dir() and (path.is_file() or path.suffix.lower() in SUFFIXES) else None


def view_run(name: str, *, port: int = 0, host: str = "127.0.0.1", up: str | None = None) -> int:
    """Serve a run's model, or a file of Gaussians, in the 3D viewer until Ctrl-C."""
    from nsw import formats

    if not 0 <= port < 65536:
        raise InputError(f"--port is {port}: expected 0 (any free port) to 65535.")
    path = splat_file(name)
    if path is None:
        (model, scene), stands = load_kept(find_run(name)), "+z"
    else:
        model, scene, stands = formats.load(path), None, formats.up_of(path)
        print(f"{path}: {len(model):,} splats, harmonics of degree {model.settings.sh_degree}", flush=True)
    from nsw.widgets import serve

    serve(model, scene, port=port, host=host, up=up or stands)
    return 0
