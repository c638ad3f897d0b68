"""What a camera did while it took a picture: how wide its lens was open, what it was focused on, how it shook."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.errors import InputError

Pair = tuple[tuple[float, float, float], tuple[float, float, float]]
STILL: Pair = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))


@dataclass(frozen=True)
class Exposure:
    """How one picture was exposed; the default is a pinhole that stands still.

    Attributes:
        aperture: radius of the thin lens in world units; 0 is a pinhole.
        focus: camera z of the plane in focus, world units.
        shift: of the camera in its own axes, world units: (a, b) of the path a t + b (t^2 - 1/3) for t in [-1, 1].
        turn: the same for its rotation vector, radians.
    """

    aperture: float = 0.0
    focus: float = 1.0
    shift: Pair = STILL
    turn: Pair = STILL

    @property
    def moves(self) -> bool:
        return (self.shift, self.turn) != (STILL, STILL)


def moments(n: int, **like) -> Float[Tensor, "n"]:
    """Return the middles of n equal parts of an exposure, which lasts from -1 to 1; `like` gives type and device.

    >>> moments(2).tolist()
    [-0.5, 0.5]
    """
    return (torch.arange(n, **like) + 0.5) * 2 / n - 1


def on_disc(n: int, **like) -> Float[Tensor, "n 2"]:
    """Return n points spread evenly over the unit disc, a lens of radius 1: turned by the golden angle from one to the next."""
    i = torch.arange(n, **like) + 0.5
    radius, angle = (i / n).sqrt(), i * math.pi * (3 - 5**0.5)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


def path(pair: Pair | Float[Tensor, "2 3"], t: Float[Tensor, "n"]) -> Float[Tensor, "n 3"]:
    """Return a t + b (t^2 - 1/3), whose mean over [-1, 1] is zero: the stored pose is the middle of the shake.

    >>> path(((1.0, 0, 0), (0, 3.0, 0)), torch.tensor([-1.0, 1.0])).round().tolist()
    [[-1.0, 2.0, 0.0], [1.0, 2.0, 0.0]]
    """
    a, b = torch.as_tensor(pair, dtype=t.dtype, device=t.device)
    return a * t[:, None] + b * (t[:, None] ** 2 - 1 / 3)


def poses(exposure: Exposure, world_from_cam: Float[Tensor, "4 4"], n: int) -> Float[Tensor, "n 4 4"]:
    """Return n poses at the middles of n equal parts of the exposure; a camera that stands still has one."""
    if not exposure.moves:
        return world_from_cam[None]
    t = moments(n, dtype=torch.float64)
    motion = torch.zeros(n, 4, 4, dtype=torch.float64)
    x, y, z = path(exposure.turn, t).unbind(-1)
    motion[:, :3, :3] = torch.stack([0 * x, -z, y, z, 0 * x, -x, -y, x, 0 * x], dim=-1).reshape(n, 3, 3)
    motion = torch.linalg.matrix_exp(motion)
    motion[:, :3, 3] = path(exposure.shift, t)
    return (world_from_cam.double() @ motion).to(world_from_cam.dtype)


def circle_of_confusion(exposure: Exposure, depth: Float[Tensor, "*n"], focal: float) -> Float[Tensor, "*n"]:
    r"""Return the diameter in pixels of the disc that a point at camera z `depth` becomes.

    $$c(z) = 2 A f \left|\frac1z - \frac1{z_f}\right|$$  (thin lens of radius A, f in pixels, focused on z_f)

    >>> circle_of_confusion(Exposure(aperture=0.1, focus=2.0), torch.tensor([2.0, 4.0]), 100.0)
    tensor([0., 5.])
    """
    return 2 * exposure.aperture * focal * (1 / depth - 1 / exposure.focus).abs()


def facts(exposure: Exposure) -> dict:
    """Return what transforms.json stores of an exposure; nothing for a pinhole that stands still."""
    lens = {"aperture": exposure.aperture, "focus": exposure.focus} if exposure.aperture else {}
    return lens | ({"shift": exposure.shift, "turn": exposure.turn} if exposure.moves else {})


def exposures(scene) -> list[Exposure]:
    """Return the true exposure of every frame of a bundled scene that was made blurred.

    Raises:
        InputError: the scene was read from somewhere that does not say.
    """
    from nsw.scenes.read_transforms import read_json

    path = (scene.source or "") and scene.source / "transforms.json"
    if not path or not path.is_file():
        raise InputError(f"Scene {scene.name} does not say how its pictures were exposed: only scenes made blurred do.")
    entries = {str(frame["file_path"]): frame for frame in read_json(path)["frames"]}
    found = (entries.get(f"images/{name}.png", {}) for name in scene.names)
    pair = lambda value: tuple(tuple(map(float, row)) for row in value)  # noqa: E731
    kinds = {"aperture": float, "focus": float, "shift": pair, "turn": pair}
    return [Exposure(**{key: read(entry[key]) for key, read in kinds.items() if key in entry}) for entry in found]
