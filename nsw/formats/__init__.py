"""Files of Gaussians: one format a module, told apart by what stands in them.

| format | what is kept of a splat | axes of the file |
|---|---|---|
| `.ply` | every raw value in float32; read also as SuperSplat's compressed chunks | any; "-y" is up unless the header names z |
| `.splat` | 32 bytes: centre and scales in float32, colour, opacity and rotation in 8 bits | as `.ply`, "-y" up |
| `.spz` | 20 bytes and up, gzip: centre in 24, rotation in 32, everything else in 8 bits | right, up, back |
| `.glb` | glTF 2.0 with KHR_gaussian_splatting, float32 | left, up, front |

In memory a scene has the axes of its `.ply`. What is read from the other three is turned to "-y" up, as the tools of those
formats do it; what is written to them is turned so that it stands upright there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from nsw.errors import InputError
from nsw.models.gaussians import Gaussians

SUFFIXES = (".ply", ".splat", ".spz", ".glb")
Up = Literal["+z", "-y"]


def _kind(path: Path) -> str:
    """Return the suffix that fits what stands in the file; `.splat` has no mark of its own and goes by its name."""
    from nsw.formats.checks import first_bytes

    begin = first_bytes(path, 4)
    for mark, kind in ((b"ply", ".ply"), (b"glTF", ".glb"), (b"\x1f\x8b", ".spz"), (b"NGSP", ".spz")):
        if begin.startswith(mark):
            return kind
    return path.suffix.lower()


def load(path: Path | str) -> Gaussians:
    """Return the Gaussians of a file in any of the formats above.

    Raises:
        InputError: when the file is missing, damaged, of another kind or empty.
    """
    from nsw.formats import glb, ply, splat, spz

    path = Path(path)
    loaders = {".ply": ply.load_ply, ".splat": splat.load_splat, ".spz": spz.load_spz, ".glb": glb.load_glb}
    kind = _kind(path)
    if kind not in loaders:
        raise InputError(f"{path} holds no Gaussians that can be read: expected {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}.")
    return loaders[kind](path)


def up_of(path: Path | str) -> Up:
    """Return which way is up in what `load` returns: "-y", or "+z" where the header of a `.ply` says so.

    Raises:
        InputError: when the file cannot be read.
    """
    from nsw.formats import ply

    path = Path(path)
    return ply.up_of(path) if _kind(path) == ".ply" else "-y"


def save(gaussians: Gaussians, path: Path | str, up: Up = "+z", suffix: str | None = None) -> Path:
    """Write Gaussians in the format that the suffix names, whole or not at all.

    Args:
        up: the direction that is up in the Gaussians' world: "+z" for what was trained here.
        suffix: names the format whatever the file is called; None takes the file's own.

    Raises:
        InputError: for another suffix, nothing to write, values that are not finite, and when the file cannot be written.
    """
    from nsw.formats import glb, ply, splat, spz

    path = Path(path)
    savers = {".ply": ply.save_ply, ".splat": splat.save_splat, ".spz": spz.save_spz, ".glb": glb.save_glb}
    suffix = suffix or path.suffix.lower()
    if suffix not in savers:
        raise InputError(f"Cannot write Gaussians as {path.name}: expected a name that ends in {', '.join(SUFFIXES)}.")
    return savers[suffix](gaussians, path, up)
