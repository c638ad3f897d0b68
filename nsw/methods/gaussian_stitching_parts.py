"""Two looks of one vase: a part of the first and a part of the second are stitched, and the first whole is the truth.

The vase is a surface of revolution with a marble pattern, itself made of many small splats, so that its pictures cost milliseconds.
The second look has another hue, brightness and contrast, and veins from another seed. An object of another scene, lifted from its
pictures, is a second case: nobody knows how that should look.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nsw.cameras import orbit
from nsw.errors import InputError
from nsw.methods.gaussian_splatting import starting_points
from nsw.models.gaussians import Gaussians
from nsw.models.parts import part_of
from nsw.renderers.splats import render_view
from nsw.scenes.scene import Scene

HALF = 0.7  # of the vase's height, world units


@dataclass(frozen=True)
class Look:
    """How the marble is coloured.

    Attributes:
        seed: of the veins.
        turn: of the hue, degrees.
        contrast, brightness: factor around grey, and what is added.
    """

    seed: int = 1
    turn: float = 0.0
    contrast: float = 1.0
    brightness: float = 0.0


ORIGINAL, OTHER = Look(), Look(seed=2, turn=70.0, contrast=0.8, brightness=-0.08)


def radius(z: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    """Return the vase's radius at a height."""
    return 0.32 + 0.12 * torch.sin(2.6 * z - 0.9) + 0.03 * torch.cos(9.0 * z)


def marble(points: Float[Tensor, "N 3"], look: Look) -> Float[Tensor, "N 3"]:
    """Return sRGB in [0, 1] of a solid marble: veins along a plane wave that smaller waves disturb."""
    generator = torch.Generator().manual_seed(look.seed)
    waves = torch.randn(6, 3, generator=generator) * 6.0
    phases = 2 * math.pi * torch.rand(6, generator=generator)
    stir = torch.sin(points @ waves.T + phases).mean(dim=1, keepdim=True)
    vein = (0.5 + 0.5 * torch.sin(7.0 * (points.sum(dim=1, keepdim=True) + 1.2 * stir))) ** 2
    rgb = torch.lerp(torch.tensor([0.86, 0.74, 0.52]), torch.tensor([0.42, 0.22, 0.12]), vein)
    angle = math.radians(look.turn)
    grey = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    hue = grey + math.cos(angle) * (torch.eye(3) - grey) + math.sin(angle) * cross  # a rotation about the grey axis
    return (0.5 + look.contrast * (rgb @ hue.T - 0.5) + look.brightness).clamp(0.02, 0.98)


def vase(look: Look, n: int = 16_000) -> Gaussians:
    """Return the vase as n flat splats, in the same places for every look."""
    generator = torch.Generator().manual_seed(0)
    z = HALF * (2 * torch.rand(4 * n, generator=generator) - 1)
    r = radius(z)
    z = z[torch.rand(len(z), generator=generator) < r / r.max()][:n]  # even over the surface, but for its slope
    turn, r = 2 * math.pi * torch.rand(len(z), generator=generator), radius(z)
    points = torch.stack([r * turn.cos(), r * turn.sin(), z], dim=1)
    size = 1.1 * math.sqrt(2 * HALF * 2 * math.pi * float(r.mean()) / len(z))
    half = turn / 2
    quats = torch.stack([half.cos(), half.new_zeros(len(z)), half.new_zeros(len(z)), half.sin()], dim=1)
    scales = torch.tensor([0.2, 1.0, 1.0]) * size
    return Gaussians.from_values(points, scales.expand(len(z), 3), quats, torch.full((len(z),), 0.95), marble(points, look))


def halves(n: int, low: Look = ORIGINAL, high: Look = OTHER) -> tuple[Gaussians, Gaussians]:
    """Return the lower half of a vase of n splats in one look and the upper half in another; nothing of it is trained."""
    below = vase(low, n).means[:, 2] < 0
    return part_of(vase(low, n), below), part_of(vase(high, n), ~below)


@torch.no_grad()
def vase_scene(look: Look, size: int, n_train: int, n_test: int = 4) -> Scene:
    """Return pictures of the vase with alpha and depth, from an upper and a lower ring of cameras; test views stand between."""
    rings = [
        orbit(n, 2.6, height, (0.0, 0.0, 0.0), 42.0, size, size)
        for n, height in ((n_train - n_train // 2, 24.0), (n_train // 2, -12.0))
    ]
    cameras = [*(ring[i] for ring in rings for i in range(len(ring)))]
    between = orbit(2 * n_test, 2.6, 8.0, (0.0, 0.0, 0.0), 42.0, size, size)
    cameras += [between[2 * i + 1] for i in range(n_test)]
    model = vase(look)
    renders = [render_view(model, camera, background=0.0) for camera in cameras]
    alpha = torch.cat([render.alpha for render in renders])[..., None]
    rgb = torch.cat([render.rgb for render in renders]) / alpha.clamp_min(1e-4)
    images = (torch.cat([rgb.clamp(0, 1), alpha], dim=-1) * 255).round().byte()
    depth = torch.cat([torch.where(render.alpha > 0.5, render.depth, 0.0) for render in renders])
    whole = type(between)(torch.cat([c.cam_from_world for c in cameras]), torch.cat([c.Ks for c in cameras]), size, size)
    splits = {"train": torch.arange(n_train), "test": torch.arange(n_train, n_train + n_test)}
    box = torch.tensor([[-0.55, -0.55, -HALF - 0.05], [0.55, 0.55, HALF + 0.05]])
    return Scene(f"vase-{look.seed}", images, whole, splits, box, 1.0, 4.5, depth=depth)


@torch.no_grad()
def lifted(scene: Scene, name: str, n: int, sh_degree: int = 0, seed: int = 0) -> Gaussians:
    """Return one object of a scene as n opaque splats, none of them trained: its pixels of the training views at their depth.

    Pixels at the object's outline are left out, their colour is mixed with what stands behind.

    Args:
        scene: with depth and ids.
        name: one of `scene.id_names`.
        n: splats; fewer where fewer pixels show the object.

    Raises:
        InputError: when the scene has no depth or no object of that name.
    """
    if scene.depth is None or scene.ids is None or name not in scene.id_names:
        raise InputError(f'Scene {scene.name} has no object "{name}" with depth; its objects: {", ".join(scene.id_names or ())}.')
    frames = scene.splits["train"]
    shows = (scene.ids[frames] == list(scene.id_names).index(name)).float()
    inside = -F.max_pool2d(-shows[:, None], 3, 1, 1)[:, 0] > 0.5
    alone = replace(scene, points=None, depth=scene.depth.index_put((frames,), torch.where(inside, scene.depth[frames], 0.0)))
    return Gaussians.from_points(starting_points(alone, n, seed), sh_degree=sh_degree, opacity=0.95, scale=1.2)
