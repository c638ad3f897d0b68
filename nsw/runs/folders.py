"""Where runs, notebooks and recorded measurements live."""

from __future__ import annotations

import os
from pathlib import Path

import nsw
from nsw.errors import InputError


def repo_dir() -> Path | None:
    """Return the checkout this package runs from (an editable install), or None."""
    folder = Path(nsw.__file__).resolve().parent.parent
    return folder if (folder / "pyproject.toml").is_file() and (folder / "notebooks").is_dir() else None


def runs_dir() -> Path:
    """Return `$NSW_RUNS`, else `runs/` in the checkout, else `runs/` in the working directory."""
    given = os.environ.get("NSW_RUNS")
    return Path(given).expanduser().absolute() if given else (repo_dir() or Path.cwd()) / "runs"


def notebooks_dir() -> Path:
    """Return `notebooks/` of the checkout, else of the working directory."""
    return (repo_dir() or Path.cwd()) / "notebooks"


def run_dir(slug: str, preset: str, seed: int) -> Path:
    """Return the default folder of a run."""
    return runs_dir() / slug / f"{preset}-seed{seed}"


def make_folder(folder: Path) -> Path:
    """Create a folder that can be written to.

    Raises:
        InputError: when that fails.
    """
    from nsw.models.state import cannot_write

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"Cannot write to {folder}: there is a file of that name; choose another folder.") from None
    except OSError as error:
        raise cannot_write(folder, error) from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"Cannot write to {folder}: it is read-only; choose another folder with NSW_RUNS or out=.")
    return folder
