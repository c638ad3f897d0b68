"""Looking into NeRDF: one ray's series beside its teacher, how many terms a surface needs, what happens from view to view."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsw.cameras import Cameras, Rays, camera_rays, look_at
from nsw.losses import loss_mse
from nsw.methods import instant_ngp as ngp
from nsw.methods import nerdf
from nsw.models.field import Field
from nsw.models.hash_grid import HashGrid
from nsw.models.ray_basis import gaussian_basis
from nsw.models.ray_distribution import RayDistribution
from nsw.renderers import whole_rays
from nsw.renderers.render import Render
from nsw.renderers.volume import RayRender, composite, ray_bounds, render_at
from nsw.renderers.whole_rays import SeriesRender


def with_terms(student: RayDistribution, n: int, n_samples: int | None = None) -> RayDistribution:
    """Return a copy of which only the first n terms of each series speak.

    Args:
        n_samples: positions at which its series are added up, if not as before.
    """
    copied = copy.deepcopy(student)
    copied.settings = replace(student.settings, n_samples=n_samples or student.settings.n_samples)
    k = student.settings.n_terms
    with torch.no_grad():
        silent = torch.arange(4 * k, device=student.aabb.device) % k >= n
        copied.network.head.weight[silent], copied.network.head.bias[silent] = 0.0, 0.0
    return copied


@torch.no_grad()
def teacher_ray(teacher: Field, rays: Rays, near: float, n_samples: int = 256) -> RayRender:
    """Render rays of a teacher with samples evenly spread from where they enter its box to where they leave it."""
    first, last, _ = ray_bounds(teacher, rays, near)
    tau = whole_rays.positions(n_samples, first.device)
    return render_at(teacher, rays, first[:, None] + tau * (last - first)[:, None], first, last)


def with_changes(student: RayDistribution, changes: Float[Tensor, "4 K"]) -> RayDistribution:
    """Return a copy whose series have these numbers added to their weights, on every ray."""
    copied = copy.deepcopy(student)
    with torch.no_grad():
        copied.network.head.bias += changes.reshape(-1).to(student.aabb.device)
    return copied


def terms_fit(
    ray: RayRender, n_terms: int, basis: Callable[[Float[Tensor, "S"], int], Float[Tensor, "S K"]]
) -> tuple[Float[Tensor, "S"], Float[Tensor, "K S"], Float[Tensor, "K 3"]]:
    """Return one ray's visible density, its best series of 1 to K terms, and the pixels that those give.

    Density that less than a hundredth of the light reaches is left out. Colours stay the ray's own, over white; what a series
    has below zero is cut off before its pixel is added up.

    Args:
        ray: a single ray with S > K samples evenly spread.
        basis: functions orthogonal on an even grid, as those of `nsw.models.ray_basis` with waves are.
    """
    reached = 1 - ray.weights[0].cumsum(-1) + ray.weights[0] > 0.01
    seen = torch.where(reached, ray.densities[0], 0.0)
    columns = basis(whole_rays.positions(len(seen), seen.device), n_terms)
    share = (columns.T @ seen) / columns.square().sum(0)
    sums = (columns * share).T.cumsum(0)
    edges = torch.cat([ray.t_starts, ray.t_ends[:, -1:]], dim=-1)
    return seen, sums, composite(sums.clamp_min(0), ray.rgbs.expand(n_terms, -1, -1), edges, 1.0)[0]


def kinds_of_pixels(depth: Float[Tensor, "n H W"], step: float = 0.3) -> dict[str, Bool[Tensor, "n H W"]]:
    """Return masks of up to three kinds: "air" (depth 0), "outlines", where depth jumps to a neighbour, and "surfaces".

    A kind that no pixel is of is left out.

    Args:
        step: the smallest jump, world units; from something to air is always one.
    """
    around = torch.nn.functional.pad(depth[:, None], (1, 1, 1, 1), mode="replicate")
    high = torch.nn.functional.max_pool2d(around, 3, 1)[:, 0]
    low = -torch.nn.functional.max_pool2d(-around, 3, 1)[:, 0]
    air, jump = depth == 0, high - low > step
    kinds = {"air": air, "outlines": jump & ~air, "surfaces": ~jump & ~air}
    return {name: mask for name, mask in kinds.items() if bool(mask.any())}


def slab_fit(
    terms: int,
    place: float,
    thickness: float,
    margin: float,
    basis: Callable[[Float[Tensor, "S"], int], Float[Tensor, "S K"]],
    n: int = 400,
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Return positions in [0, 1], a slab of height one there, and the sum of a basis that is nearest to it; see
    `ray_series.slab_chart`."""
    tau = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    slab = ((tau >= place) & (tau < place + thickness)).double()
    columns = basis(margin + (1 - 2 * margin) * tau, terms).double()
    return tau, slab, columns @ torch.linalg.lstsq(columns, slab[:, None], driver="gelsd").solution[:, 0]


def loss_paper(out: SeriesRender, lesson: nerdf.Lesson, background: float | Tensor, weight: float = 0.5) -> Float[Tensor, ""]:
    """Return the loss with the constraint on densities themselves, as the paper has it."""
    others = sum(nerdf.loss_terms(out, lesson, background, 0.0).values())
    return others + weight * nerdf.loss_profile(out.densities, lesson.densities, lesson.alpha)


def loss_released(out: SeriesRender, lesson: nerdf.Lesson, background: float | Tensor, weight: float = 0.5) -> Float[Tensor, ""]:
    """Return the loss of the released code, whose constraint reads the weights as those of Gaussian bumps, whatever the basis.

    The function that is held to the teacher's shape is then another one than the one that is rendered.
    """
    bumps = gaussian_basis(out.tau, out.coefficients.shape[-1])
    others = sum(nerdf.loss_terms(out, lesson, background, 0.0).values())
    return others + weight * nerdf.loss_profile((out.coefficients[:, 0] @ bumps.T).relu(), lesson.densities, lesson.alpha)


def loss_drawn(generator: torch.Generator) -> Callable[[SeriesRender, nerdf.Lesson, float | Tensor, float], Float[Tensor, ""]]:
    """Return the loss before backgrounds that are drawn, one a ray, where `nerdf.loss_opacity` has their mean in closed form.

    The rays that it is given stand before some background, which is taken away again.

    Args:
        generator: of the backgrounds, on the rays' device.
    """

    def loss(out: SeriesRender, lesson: nerdf.Lesson, background: float | Tensor, weight: float = 0.5) -> Float[Tensor, ""]:
        behind = torch.rand(out.rgb.shape, generator=generator, device=out.rgb.device)
        shown = out.rgb + (1 - out.alpha)[:, None] * (behind - background)
        return loss_mse(shown, lesson.over(behind)) + weight * nerdf.loss_visible(out, lesson)

    return loss


@torch.no_grad()
def depth_flicker(
    render: Callable[[Rays], Float[Tensor, "R"]],
    points_world: Float[Tensor, "P 3"],
    eyes: Float[Tensor, "E 3"],
    chunk: int = 1 << 12,
) -> Float[Tensor, "P"]:
    """Return by how much the depth of each point changes with the eye that looks at it: the standard deviation over eyes.

    A field has one surface for all eyes. A network that is asked ray by ray may place it elsewhere for each of them.

    Args:
        render: from rays to the distances at which they end.
        points_world: points that all eyes see.
        chunk: rays rendered together.
    """
    towards = points_world[None] - eyes[:, None]
    distance = towards.norm(dim=-1)
    rays = Rays(
        eyes[:, None].expand_as(towards).reshape(-1, 3),
        (towards / distance[..., None]).reshape(-1, 3),
        torch.ones_like(distance).reshape(-1),
    )
    found = torch.cat([render(rays[i : i + chunk]) for i in range(0, len(rays), chunk)])
    return (found.view(distance.shape) - distance).std(dim=0)


def flickers(
    student: RayDistribution, teacher: HashGrid, points_world: Float[Tensor, "P 3"], eyes: Float[Tensor, "E 3"], near: float
) -> dict[str, float]:
    """Return the median `depth_flicker` of "teacher" and "NeRDF", the student, in world units."""
    ends = {
        "teacher": lambda rays: ngp.render(teacher, rays, near).depth,
        "NeRDF": lambda rays: whole_rays.render_rays(student, rays, near=near).depth,
    }
    return {name: float(depth_flicker(render, points_world, eyes).median()) for name, render in ends.items()}


def depth_tour(student: RayDistribution, teacher: HashGrid, cameras: Cameras, near: float) -> dict[str, Float[Tensor, "n H W"]]:
    """Return films of the depth that "teacher" and "NeRDF", the student, see from cameras in turn; see `shaded`."""
    shots = {"teacher": ngp.render_view(teacher, cameras, near), "NeRDF": whole_rays.render_view(student, cameras, near=near)}
    return shaded({name: known_depth(shot) for name, shot in shots.items()})


def side_by_side(strips: Mapping[str, Float[Tensor, "n H W"]]) -> Float[Tensor, "n H W2 3"]:
    """Return grey films as one in colour, next to each other, on the CPU."""
    return torch.cat(list(strips.values()), dim=2)[..., None].expand(-1, -1, -1, 3).cpu()


def sway(cameras: Cameras, n: int, amount: float = 0.7) -> Cameras:
    """Return n cameras on a closed curve inside the box of the given ones' centres, all looking where those look on average."""
    centres, axes = cameras.origins, cameras.world_from_cam[:, :3, 2]
    angle = torch.arange(n, device=centres.device) * (2 * torch.pi / n)
    middle, low, high = centres.mean(0), centres.amin(0), centres.amax(0)
    circle = torch.stack([angle.cos(), angle.sin(), (2 * angle).sin() * 0.3], dim=-1)
    eyes = middle + amount / 2 * (high - low) * circle
    reach = centres.norm(dim=-1).mean()
    target = (centres + reach * axes).mean(0)
    return replace(cameras, cam_from_world=look_at(eyes, target.tolist()), Ks=cameras.Ks[:1].expand(n, -1, -1))


def questions_a_pixel(student: RayDistribution, cameras: Cameras, near: float) -> float:
    """Return how often a pixel of these pictures asks the network, by counting the rows that go through its last layer."""
    rows: list[int] = []
    handle = student.network.head.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    whole_rays.render_view(student, cameras, near=near)
    handle.remove()
    return sum(rows) / (len(cameras) * cameras.width * cameras.height)


def seen_points(camera: Cameras, depth: Float[Tensor, "H W"], about: int = 8192) -> Float[Tensor, "P 3"]:
    """Return the surface points that the pixels of a camera see, where their depth is known, not 0.

    Args:
        about: with twice as many pixels or more, only every k-th point, so that there are about so many.
    """
    rays = camera_rays(camera)
    depth = depth.to(rays.origins.device).reshape(-1)
    known = (depth > 0).nonzero()[:, 0]
    known = known[:: max(1, len(known) // about)]
    return rays[known].at_depth(depth[known])


def known_depth(shot: Render) -> Float[Tensor, "n H W"]:
    """Return the depth of pictures where they are opaque, and 0 elsewhere."""
    return torch.where(shot.alpha > 0.5, shot.depth, 0.0)


def shaded(depths: Mapping[str, Float[Tensor, "H W"]]) -> dict[str, Float[Tensor, "H W"]]:
    """Return maps of depth as grey, from 0, the nearest of the first map, to 0.85, its farthest; 1 where the depth is not known."""
    first = next(iter(depths.values()))
    seen = first[first > 0] if bool((first > 0).any()) else first.new_ones(1)
    low, high = seen.min(), seen.max()
    scaled = {name: (0.85 * (depth - low) / (high - low).clamp_min(1e-6)).clamp(0, 0.85) for name, depth in depths.items()}
    return {name: torch.where(depths[name] > 0, grey, 1.0) for name, grey in scaled.items()}
