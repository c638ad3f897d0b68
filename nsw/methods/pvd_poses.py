"""Where a distiller looks from: random cameras around what was trained, as many as one likes, since the teacher labels them all."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nsw.cameras import Cameras, intrinsics, look_at
from nsw.errors import InputError
from nsw.models.gaussians import Gaussians
from nsw.scenes.scene import Scene


def box_of(model: nn.Module, scene: Scene | None = None) -> Float[Tensor, "2 3"]:
    """Return the box [2, 3] of a field; of Gaussians the scene's, or else the one that holds 99 % of those that can be seen.

    Raises:
        InputError: for a model that is neither.
    """
    if all(getattr(model, name, None) is not None for name in ("aabb", "query", "density")):
        return model.aabb.detach()
    if not isinstance(model, Gaussians):
        raise InputError(f"A {type(model).__name__} is neither a field with a box nor Gaussians: it cannot be converted.")
    if scene is not None:
        return scene.aabb.to(model.means.device).float()
    seen = model.means.detach()[model.activated_opacities > 0.1]
    if len(seen) < 8:
        raise InputError(f"Only {len(seen)} of the Gaussians are more than 10 % opaque: there is nothing to convert.")
    low, high = seen.quantile(0.005, dim=0), seen.quantile(0.995, dim=0)
    margin = 0.1 * (high - low).amax()
    return torch.stack([low - margin, high + margin])


def pose_elevations(n: int, low: float, high: float, generator: torch.Generator) -> Float[Tensor, "n"]:
    r"""Return n random elevations in degrees, more of them low, as the official code has them.

    For each whole degree a of [0, 80), $\lfloor (90 - a) / 15 \rfloor + 1$ shares of cameras stand between a - 5 and a; here
    the interval is stretched to [low, high].

    >>> e = pose_elevations(1000, 0.0, 80.0, torch.Generator().manual_seed(0))
    >>> bool((e < 40).float().mean() > 0.55), bool((e >= 0).all() and (e <= 80).all())
    (True, True)
    """
    a = torch.arange(80.0)
    drawn = torch.multinomial(((90 - a) / 15).floor() + 1, n, replacement=True, generator=generator)
    place = (drawn - 5 * torch.rand(n, generator=generator)).clamp(0, 79) / 79
    return low + place * (high - low)


def cameras_seeing(
    n: int, width: int, generator: torch.Generator, aabb: Float[Tensor, "2 3"], scene: Scene | None = None
) -> Cameras:
    """Return n random cameras on the CPU that see the box.

    Around an object: any azimuth, elevations and distances of the training cameras, looking at the box's middle. Where the
    training cameras stand inside of the box or on one side of it: their places mixed in pairs, their directions turned by up to
    9 degrees. Without a scene: around the box, from 0 to 80 degrees above.

    Args:
        generator: on the CPU.
    """
    middle = aabb.mean(0).cpu()
    reach = float((aabb[1] - aabb[0]).norm()) / 2
    if scene is None:
        radius = 2.6 * reach * (0.95 + 0.1 * torch.rand(n, generator=generator))
        elevations = pose_elevations(n, 0.0, 80.0, generator)
        return _around(width, width, middle, radius, elevations, intrinsics(50.0, width, width, n), generator)
    seen = scene.views("train")
    views = seen.resized(width, max(1, round(width * seen.height / seen.width)))
    offset = views.origins - middle
    distance = offset.norm(dim=1)
    inside = ((views.origins > aabb[0].cpu()) & (views.origins < aabb[1].cpu())).all(1).float().mean() > 0.5
    one_sided = (offset[:, :2] / offset[:, :2].norm(dim=1, keepdim=True).clamp_min(1e-9)).mean(0).norm() > 0.6
    picked = torch.randint(len(views), (n,), generator=generator)
    if inside or one_sided:
        return _between(views, picked, generator)
    radius = distance.amin() + torch.rand(n, generator=generator) * (distance.amax() - distance.amin())
    elevation = torch.rad2deg(torch.asin((offset[:, 2] / distance).clamp(-1, 1)))
    elevations = pose_elevations(n, float(elevation.amin()), float(elevation.amax()), generator)
    return _around(width, views.height, middle, radius, elevations, views.Ks[picked], generator)


def _around(width: int, height: int, middle: Tensor, radius: Tensor, elevations: Tensor, Ks: Tensor, generator) -> Cameras:
    azimuth, elevation = 2 * math.pi * torch.rand(len(radius), generator=generator), torch.deg2rad(elevations)
    flat = elevation.cos()
    eyes = middle + radius[:, None] * torch.stack([flat * azimuth.cos(), flat * azimuth.sin(), elevation.sin()], dim=-1)
    return Cameras(look_at(eyes, middle.tolist()), Ks, width, height)


def _between(views: Cameras, picked: Tensor, generator: torch.Generator) -> Cameras:
    """Return cameras with the directions of the picked views, turned a little, somewhere between their place and another's."""
    n = len(picked)
    other = torch.randint(len(views), (n,), generator=generator)
    share = 0.5 * torch.rand(n, 1, generator=generator)
    eyes = (1 - share) * views.origins[picked] + share * views.origins[other]
    pose = views.cam_from_world[picked].clone()
    pose[:, :3, 3] = -(pose[:, :3, :3] @ eyes[..., None])[..., 0]
    return Cameras(turned(pose, generator), views.Ks[picked], views.width, views.height)


def turned(cam_from_world: Float[Tensor, "n 4 4"], generator: torch.Generator) -> Float[Tensor, "n 4 4"]:
    """Return the same places with directions turned by up to 9 degrees about each axis of the camera.

    Args:
        generator: on the CPU, as the poses.
    """
    by = torch.eye(4).repeat(len(cam_from_world), 1, 1)
    by[:, :3, :3] = _rotations((2 * torch.rand(len(cam_from_world), 3, generator=generator) - 1) * math.pi / 20)
    return by @ cam_from_world


def _rotations(angles: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3 3"]:
    """Return rotations by rotation vectors."""
    x, y, z = angles.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.linalg.matrix_exp(torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).view(-1, 3, 3))
