"""Looking at TensoRF: components one by one, fewer of them, its mask, and what rank a known volume needs, upright and rotated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsw.models.vm_grid import VMGrid
from nsw.scenes.scene import Scene

MODES = (
    "top view times height",
    "front view times depth",
    "side view times width",
)  # planes (0, 1), (0, 2), (1, 2) and their lines


def unit_range(values: Tensor) -> Tensor:
    """Return values in [0, 1] with zero in the middle: negative ones are dark, positive ones bright."""
    return 0.5 + 0.5 * values / values.abs().amax().clamp_min(1e-12)


def upright(plane: Float[Tensor, "a b"]) -> Float[Tensor, "b a"]:
    """Return a plane as a picture: its first axis to the right, its second upwards."""
    return plane.T.flip(0)


def ranked(model: VMGrid, mode: int, rank: int) -> int:
    """Return which density component of a mode has the most energy but for `rank` others."""
    return int(model.energies()[0][mode].argsort(descending=True)[rank])


def component(model: VMGrid, mode: int, rank: int = 0) -> tuple[Float[Tensor, "a b"], Float[Tensor, "c"]]:
    """Return plane and line of the density component of a mode that has the most energy, but for `rank` others."""
    r = ranked(model, mode, rank)
    return model.factors.density[mode].detach()[..., r], model.factors.density[mode + 3].detach()[..., r]


def gallery(model: VMGrid, n: int = 3) -> dict[str, Tensor]:
    """Return the strongest planes of each mode as pictures: zero is grey."""
    return {f"{MODES[m]}, {k + 1}": upright(unit_range(component(model, m, k)[0])) for k in range(n) for m in range(3)}


@dataclass(frozen=True)
class SeenMask:
    """The alpha mask at one moment of a training: `aabb` [2, 3], the box that it fills, and `cells` [n, n, n], which are on."""

    aabb: Float[Tensor, "2 3"]
    cells: Bool[Tensor, "n n n"]


def seen_mask(model: VMGrid) -> SeenMask:
    """Return a copy of the mask and the box that training marches through now."""
    return SeenMask(model.aabb.cpu().clone(), model.occupancy.binaries[0].cpu().clone())


def mask_picture(mask: SeenMask, frame: Float[Tensor, "2 3"], axes: tuple[int, int] = (0, 1), width: int = 180) -> Tensor:
    """Return a mask seen along the third axis, [H, W, 3]: the more cells are on, the darker; the box orange, grey outside of it.

    Args:
        frame: corners of what the picture shows, those of the first box.
        axes: the axis to the right and the axis upwards.
    """
    share = mask.cells.float().mean(next(axis for axis in range(3) if axis not in axes))
    size = frame[1] - frame[0]
    index, rim = [], []
    for axis, n, upwards in ((axes[0], width, False), (axes[1], round(width * float(size[axes[1]] / size[axes[0]])), True)):
        at = frame[0, axis] + (torch.arange(n) + 0.5) / n * size[axis]
        low, high = mask.aabb[:, axis]
        place = ((at - low) / (high - low) * share.shape[len(index)]).floor().long()
        place = place.flip(0) if upwards else place
        index.append(place)
        near = torch.minimum((at - low).abs(), (at - high).abs()) <= 1.5 * size[axis] / n
        rim.append(near.flip(0) if upwards else near)
    across, up = index
    inside = (across >= 0) & (across < share.shape[0]) & ((up >= 0) & (up < share.shape[1]))[:, None]
    dark = share[across.clamp(0, share.shape[0] - 1)][:, up.clamp(0, share.shape[1] - 1)].T[..., None]
    picture = 1 - dark.sqrt() * (1 - torch.tensor([0.0, 0.27, 0.42]))
    picture[~inside] = 0.85
    picture[(rim[0] | rim[1][:, None]) & inside] = torch.tensor([0.84, 0.37, 0.0])
    return picture


def mask_film(masks: Sequence[SeenMask]) -> dict[str, list[Tensor]]:
    """Return the pictures of all masks from above and from the front, in the frame of the first one's box."""
    views = {"from above": (0, 1), "from the front": (0, 2)}
    return {name: [mask_picture(mask, masks[0].aabb, axes) for mask in masks] for name, axes in views.items()}


def turned_scene(scene: Scene, degrees: float) -> Scene:
    """Return the scene turned about the upright line through the middle of its box, which stays; its cameras turn along.

    The pictures remain what they are. What would have to be turned besides, points and normals, is left out.
    """
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn, middle = torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]), scene.aabb.mean(0)
    back = torch.eye(4)
    back[:3, :3], back[:3, 3] = turn.T, middle - turn.T @ middle
    cameras = replace(scene.cameras, cam_from_world=scene.cameras.cam_from_world @ back)
    return replace(scene, cameras=cameras, points=None, normals=None)


def blocks(n: int, degrees: float = 0.0) -> Float[Tensor, "n n n"]:
    """Return a volume of a few blocks, 1 inside and 0 outside with edges a voxel wide, rotated about the axis (1, 1, 1).

    They fill 0.341 of the cube's 8 cubic units, however they are turned:

    >>> [round(float(blocks(64, degrees).sum()) * (2 / 63) ** 3, 2) for degrees in (0.0, 45.0)]
    [0.34, 0.34]
    """
    axis = torch.linspace(-1, 1, n)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    k, angle = torch.full((3,), 1 / math.sqrt(3.0)), math.radians(degrees)
    along = (points @ k)[..., None] * k  # Rodrigues' rotation
    points = along + (points - along) * math.cos(angle) + torch.linalg.cross(k.expand_as(points), points) * math.sin(angle)
    volume = torch.zeros(n, n, n)
    for centre, half in (
        ((0.0, 0.0, -0.3), (0.5, 0.35, 0.15)),
        ((-0.25, 0.0, 0.1), (0.2, 0.25, 0.3)),
        ((0.3, 0.1, 0.0), (0.1, 0.15, 0.2)),
    ):
        outside = ((points - torch.tensor(centre)).abs() - torch.tensor(half)).amax(-1)
        volume = torch.maximum(volume, torch.sigmoid(-outside * 2 * n))
    return volume


def unfolded(volume: Float[Tensor, "X Y Z"]) -> Float[Tensor, "XY Z"]:
    """Return the volume as the matrix of which the mode Z|XY keeps a few ranks: rows are places of the plane."""
    return volume.flatten(0, 1)


def svd_errors(volume: Float[Tensor, "X Y Z"], ranks: Sequence[int]) -> list[float]:
    r"""Return the least error that one plane-and-line mode can have at each rank, relative to the volume's norm.

    $$\lVert V - \textstyle\sum_r M_r v_r^\top\rVert / \lVert V\rVert \ge \sqrt{\textstyle\sum_{i>r} s_i^2 / \sum_i s_i^2}$$
    (Eckart and Young 1936; s are the singular values)

    >>> svd_errors(torch.ones(4, 4, 4), [1])[0] < 1e-3
    True
    """
    energy = torch.linalg.svdvals(unfolded(volume).double()).square()
    return [float((energy[r:].sum() / energy.sum()).sqrt()) for r in ranks]


@dataclass(frozen=True)
class Fit:
    """A volume learned by gradient descent: relative `error` and the `approximation` [X, Y, Z]."""

    error: float
    approximation: Float[Tensor, "X Y Z"]


def rank_curves(
    shapes: Mapping[str, Float[Tensor, "X Y Z"]], ranks: Sequence[int]
) -> tuple[dict[str, list[float]], dict[str, tuple[Sequence[int], list[float]]]]:
    """Return the least error of each shape at each rank, and the curves of both: the least, and what gradient descent finds."""
    least = {name: svd_errors(shape, ranks) for name, shape in shapes.items()}
    found = {name: [fit_volume(shape, rank).error for rank in ranks] for name, shape in shapes.items()}
    return least, {
        f"{name}, {way}": (ranks, errors[name]) for name in shapes for way, errors in (("least", least), ("found", found))
    }


def fit_volume(
    volume: Float[Tensor, "X Y Z"], rank: int, modes: int = 1, n_steps: int = 300, lr: float = 0.1, seed: int = 0
) -> Fit:
    """Learn planes and lines of a known volume with Adam, from TensoRF's start of 0.1 times normal noise.

    Args:
        modes: 1 for planes across the last axis alone, which a singular value decomposition solves; 3 for VM.
    """
    with torch.enable_grad():
        generator = torch.Generator().manual_seed(seed)
        equations = ("xyr,zr->xyz", "xzr,yr->xyz", "yzr,xr->xyz")[:modes]
        sizes = dict(zip("xyz", volume.shape, strict=True))
        shapes = [[sizes[a] for a in part[:-1]] + [rank] for e in equations for part in e.split("->")[0].split(",")]
        factors = [(0.1 * torch.randn(shape, generator=generator)).requires_grad_() for shape in shapes]
        optimizer = torch.optim.Adam(factors, lr=lr)
        for step in range(n_steps):
            optimizer.param_groups[0]["lr"] = lr * 0.02 ** (step / n_steps)
            found = sum(torch.einsum(e, factors[2 * m], factors[2 * m + 1]) for m, e in enumerate(equations))
            optimizer.zero_grad()
            (found - volume).square().mean().backward()
            optimizer.step()
    found = sum(torch.einsum(e, factors[2 * m], factors[2 * m + 1]) for m, e in enumerate(equations)).detach()
    return Fit(float((found - volume).norm() / volume.norm()), found)
