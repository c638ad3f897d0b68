"""Feature fields (Kobayashi, Matsumoto, Sitzmann, NeurIPS 2022): a radiance field that carries the features of a 2D model.

What Feature 3DGS compares itself with: every point in space answers with a feature, which is composited with the weights of its
colour and trained until a ray sees what the teacher says about its pixel. The field is the hash grid of `instant_ngp.py`, so that
it is the fast one of its kind.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.cameras import Cameras, Rays, camera_rays
from nsw.losses import loss_l1, loss_mse
from nsw.methods import instant_ngp as ngp
from nsw.methods.instant_ngp_fit import Plan
from nsw.metrics import until_spent
from nsw.models.feature_grid import FeatureGrid, FeatureGridSettings
from nsw.models.teacher import resized
from nsw.renderers.volume import sum_on_rays
from nsw.scenes.scene import Scene


def new_field(scene: Scene, n_point: int, n_channels: int, seed: int = 0, steps_across: int = 128, **sizes: int) -> FeatureGrid:
    """Return an untrained field over the smallest cube around a scene.

    Args:
        n_point, n_channels: channels of a point's feature and of the teacher's.
        steps_across: samples along an edge of the cube; `sizes` are fields of `FeatureGridSettings`.
    """
    cube = ngp.cube_around(scene.aabb)
    length = float(cube[1, 0] - cube[0, 0]) / steps_across
    box = tuple(cube.flatten().tolist())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FeatureGrid(FeatureGridSettings(box, step=length, n_point=n_point, n_channels=n_channels, **sizes))


def seen(
    model: FeatureGrid,
    rays: Rays,
    near: float = 0.0,
    background: float | Tensor | None = None,
    jitter: torch.Generator | None = None,
) -> tuple[ngp.HashRender, Float[Tensor, "R F"]]:
    r"""Return what rays see, and their features before they are lifted.

    $$F(r) = \sum_i w_i\,f(x_i)$$  (Kobayashi et al. 2022, eq. 3)

    The weights enter it detached, as in the paper: density shall not follow a teacher that wavers.
    """
    out = ngp.render(model, rays, near, background, jitter)
    features, _ = sum_on_rays(out.weights.detach(), out.left.detach(), model.feature(out.geometry), out.t, out.ray_indices, 0.0)
    return out, features


@torch.no_grad()
def picture(
    model: FeatureGrid, cameras: Cameras, near: float = 0.0, size: tuple[int, int] | None = None, chunk: int = 16384
) -> tuple[Float[Tensor, "C H W 3"], Float[Tensor, "C M h w"]]:
    """Return pictures and the teacher's features as the field remembers them, resized to `size` before they are lifted."""
    rays = camera_rays(cameras.to(model.aabb.device))
    parts = []
    for i in range(0, len(rays), chunk):
        out, features = seen(model, rays[i : i + chunk], near)
        parts.append((out.rgb, features))  # and not its samples: there are too many of all pictures together
    shape = (len(cameras), cameras.height, cameras.width, -1)
    rgb, features = (torch.cat(rows).view(shape) for rows in zip(*parts, strict=True))
    maps = resized(features.permute(0, 3, 1, 2), *(size or shape[1:3]))
    return rgb, model.decoder(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Lessons:
    """Pixels to train on, with what the teacher says about each of them [P, M], in half precision."""

    pixels: ngp.Pixels
    features: Float[Tensor, "P M"]


def lessons_of(scene: Scene, maps: Float[Tensor, "n M h w"], model: FeatureGrid) -> Lessons:
    """Return the usable training pixels whose rays meet the field's box, with the teacher's maps resized to the pictures."""
    device, views = model.aabb.device, scene.views("train")
    hits = ngp.worth_asking(scene, scene.frames("train"), camera_rays(views).to(device), model.aabb)
    rows = [resized(one[None], views.height, views.width)[0].permute(1, 2, 0).reshape(-1, maps.shape[1]).half() for one in maps]
    return Lessons(ngp.training_pixels(scene, model.aabb, device=device), torch.cat(rows).to(device)[hits])


def fit_for(
    model: FeatureGrid, lessons: Lessons, seconds: float, near: float, generator: torch.Generator, plan: Plan | None = None,
    weight: float = 1.0, percents: Iterable[object] = (),
) -> int:  # fmt: skip
    r"""Train for so many seconds, colour and feature together, and return the number of steps.

    $$L = \|C - \hat C\|_2^2 + \lambda\,\|F_t - \hat F\|_1$$

    Args:
        plan: of sampling and rates; None takes small batches, which suit some hundred steps.
        weight: lambda. Features move table and networks, densities only through them.
        percents: see `metrics.until_spent`.
    """
    plan = plan or Plan(n_samples=4096)
    optimizer = ngp.make_optimizer(model, plan.lr, plan.lr_network, plan.eps)
    heads = [*model.feature_net.parameters(), *model.decoder.parameters()]
    optimizer.add_param_group(dict(params=heads, lr=plan.lr_network, skip_zero=False, start=plan.lr_network))
    n_rays, step = max(plan.n_samples // 32, 64), 0
    with torch.no_grad():  # kernels are compiled before the clock starts
        seen(copy.deepcopy(model), lessons.pixels.rays[:64], near)
    for spent in until_spent(seconds, percents):
        ngp.update_occupancy(model, step, plan.update_every, plan.decay)
        ngp.set_rate(optimizer, spent / seconds, plan.warmup, plan.last_rate)
        index = torch.randint(len(lessons.features), (n_rays,), generator=generator, device=generator.device)
        batch, wanted = lessons.pixels.at(index), lessons.features[index].float()
        behind = ngp.random_backgrounds(batch, generator)
        out, features = seen(model, batch.rays, near, behind, generator)
        (loss_mse(out.rgb, batch.over(behind)) + weight * loss_l1(model.decoder(features), wanted)).backward()
        optimizer.step()
        n_rays, step = ngp.next_batch(n_rays, out.n_marched, plan.n_samples), step + 1
    return step


def trained_for(
    scene: Scene, maps: Float[Tensor, "n M h w"], n_features: int, sizes: tuple[int, int, int, float], seconds: float,
    seed: int = 0, percents: Iterable[object] = (),
) -> tuple[FeatureGrid, int]:  # fmt: skip
    """Return a new field that was trained for so many seconds where the maps are, and its number of batches of rays.

    Args:
        sizes: levels of the hash grid, log2 of its entries, cells of the finest level along a side, weight of features.
        percents: see `metrics.until_spent`.
    """
    n_levels, log2_entries, n_max, weight = sizes
    model = new_field(scene, n_features, maps.shape[1], seed, n_levels=n_levels, log2_entries=log2_entries, n_max=n_max)
    lessons, generator = lessons_of(scene, maps, model.to(maps.device)), torch.Generator(maps.device).manual_seed(seed)
    return model, fit_for(model, lessons, seconds, scene.near, generator, weight=weight, percents=percents)
