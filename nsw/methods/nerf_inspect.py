"""Looking into a trained radiance field: what is wrong with it, view dependence at a point, its density as points."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from nsw.cameras import Cameras, Rays, camera_rays, pixel_rays
from nsw.errors import InputError
from nsw.methods.nerf import loss_terms
from nsw.models.field import Field
from nsw.renderers.render import Render
from nsw.renderers.volume import RayRender, render_rays
from nsw.scenes.scene import Points, Scene


def direction_sphere(
    field: Field, point_world: Float[Tensor, "3"], up: Float[Tensor, "3"], size: int = 64
) -> Float[Tensor, "s s 3"]:
    """Return a small ball painted with the colour that one point shows to each viewer, seen from along `up`.

    Where the ball's normal is n, it has the field's colour for a viewer in direction n, that is for rays of direction -n.
    A ball of one colour means a matt point; a spot that fades means a highlight. White around the ball.
    """
    up = torch.nn.functional.normalize(up, dim=-1)
    side = torch.nn.functional.normalize(torch.linalg.cross(up, up.roll(1)), dim=-1)
    v, u = torch.meshgrid(*[torch.linspace(1, -1, size, device=up.device)] * 2, indexing="ij")
    height = (1 - u.square() - v.square()).clamp_min(0).sqrt()
    normals = u[..., None] * side + v[..., None] * torch.linalg.cross(up, side) + height[..., None] * up
    with torch.no_grad():
        rgb = field.query(point_world.expand(size * size, 3), -normals.reshape(-1, 3)).rgb
    return torch.where((u.square() + v.square() <= 1)[..., None], rgb.view(size, size, 3), 1.0)


@torch.no_grad()
def density_points(field: Field, threshold: float, cells: int = 64) -> Points:
    """Return the centres of grid cells whose density is above `threshold`, coloured as seen from above.

    Args:
        threshold: in 1 / world unit.
        cells: grid cells along each side of the field's box.
    """
    low, high = field.aabb
    axes = [low[i] + (torch.arange(cells, device=low.device) + 0.5) / cells * (high - low)[i] for i in range(3)]
    centres = torch.cartesian_prod(*axes)
    dense = centres[torch.cat([field.density(some) for some in centres.split(65536)]) > threshold]
    down = dense.new_tensor([0.0, 0.0, -1.0]).expand_as(dense)
    return Points(dense, field.query(dense, down).rgb)


def as_seen(scene: Scene, render: Callable[[Cameras], Render], split: str = "test", most: int = 8) -> Scene:
    """Return a scene that has surfaces: itself where it knows the true ones, else with those that a model sees, and say so.

    A pixel shows a surface where it is at least half as opaque as the most opaque one of its picture. The surface lies at the
    model's depth and faces the camera, and each picture is one instance.

    Args:
        render: from n cameras to their pictures.
        most: pictures of the split that are looked at, evenly spread over it.
    """
    if scene.depth is not None and scene.normals is not None and scene.ids is not None:
        return scene
    print(f"{scene.name} comes without true surfaces: those that the model sees stand in for them.")
    frames = scene.frames(split)
    views = torch.linspace(0, len(frames) - 1, min(most, len(frames))).round().long()
    frames = frames[views]
    with torch.no_grad():
        shot = render(scene.views(frames)).to("cpu")
    solid = (shot.alpha > 0) & (shot.alpha >= shot.alpha.amax(dim=(1, 2), keepdim=True) / 2)
    size = scene.images.shape[:3]
    depth, normals, ids = torch.zeros(size), torch.zeros(*size, 3), torch.full(size, -1)
    depth[frames] = shot.depth * solid
    normals[frames] = -camera_rays(scene.views(frames)).directions.view(*solid.shape, 3) * solid[..., None]
    ids[frames] = torch.where(solid, torch.arange(len(frames))[:, None, None], -1)
    return replace(scene, depth=depth, normals=normals, ids=ids, id_names=tuple(f"{split} view {i}" for i in views.tolist()))


def shown_parts(scene: Scene, wanted: Sequence[str], split: str = "test") -> tuple[str, ...]:
    """Return the wanted instances where the scene has them all, else as many of those that fill most pixels of the split.

    Args:
        scene: with ids.
    """
    if set(wanted) <= set(scene.id_names):
        return tuple(wanted)
    ids = scene.ids[scene.frames(split)].long()
    counts = torch.bincount(ids[ids >= 0], minlength=len(scene.id_names))
    return tuple(scene.id_names[i] for i in counts.argsort(descending=True, stable=True)[: len(wanted)].tolist() if counts[i] > 0)


def where_shown(scene: Scene, instance: str, split: str = "test") -> Bool[Tensor, "n H W"]:
    """Return the pixels of a split that show an instance; all of them where the scene has none of that name."""
    frames = scene.frames(split)
    if scene.ids is None or instance not in scene.id_names:
        return torch.ones(len(frames), *scene.images.shape[1:3], dtype=torch.bool)
    return scene.ids[frames] == list(scene.id_names).index(instance)


def surface_point(scene: Scene, instance: str, split: str = "test") -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
    """Return a true surface point of an instance, and its normal, in world coordinates.

    It is the pixel nearest to the middle of the instance in the view that shows most of it.

    Args:
        scene: with depth, normals and ids.
        instance: one of `scene.id_names`.
    """
    if scene.ids is None or scene.depth is None or scene.normals is None or instance not in scene.id_names:
        known = ", ".join(scene.id_names) or "none"
        raise InputError(f'Scene {scene.name} knows no surface of "{instance}": it has instances {known}; take one of them.')
    frames = scene.frames(split)
    shown = where_shown(scene, instance, split)
    best = int(shown.sum(dim=(1, 2)).argmax())
    places = shown[best].nonzero()
    if not len(places):
        raise InputError(f'Scene {scene.name}: no {split} view shows "{instance}"; take another one.')
    row, column = places[(places - places.float().mean(0)).norm(dim=-1).argmin()]
    frame = frames[best]
    ray = pixel_rays(scene.cameras, frame[None], row[None], column[None])
    t = scene.depth[frame, row, column].float() / ray.z_per_t[0]
    return ray.origins[0] + t * ray.directions[0], scene.normals[frame, row, column].float()


def gradient_share(model: nn.Module, rays: Rays, colours: Float[Tensor, "R 3"]) -> float:
    """Return the share of a model's parameters that one batch of rays moves, in [0, 1]; 0 means that it can never learn.

    Args:
        model: `NerfMLP` or `CoarseFine`; its gradients are left as they were.
    """
    out = render_rays(model, rays, **model.render_defaults)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(sum(loss_terms(out, colours).values()), parameters, allow_unused=True)
    moved = sum(int((g != 0).sum()) for g in gradients if g is not None)
    return moved / sum(p.numel() for p in parameters)


def diagnose(out: RayRender, colours: Float[Tensor, "R 3"], true_depth: Float[Tensor, "R"] | None = None) -> list[str]:
    """Say in words what is wrong with a rendered batch of rays; an empty list when nothing looks wrong.

    Args:
        out: rays rendered by `nsw.renderers.volume.render_rays`, [R, S] samples, over pixels of several pictures.
        colours: their true colours.
        true_depth: their true distance t in world units where known, 0 elsewhere.
    """
    out = replace(out, rgb=out.rgb.detach(), alpha=out.alpha.detach(), weights=out.weights.detach(), coarse=None)
    return list(_symptoms(out, colours, true_depth))


def _symptoms(out: RayRender, colours: Tensor, true_depth: Tensor | None) -> Iterator[str]:
    if not bool(torch.isfinite(out.rgb).all()):
        yield "Some colours are not finite: lower the learning rate, and look for a division by a length of zero."
        return
    near, far = out.t_starts[:, 0], out.t_ends[:, -1]
    hit = far > near
    if not bool(hit.any()):
        yield "No ray meets the scene's box: check the poses, the box, and near and far."
        return
    place = (out.t[hit] - near[hit, None]) / (far - near)[hit, None]
    weights, varied = out.weights[hit], float(colours.std(dim=0).mean()) > 0.05
    total = weights.sum().clamp_min(1e-9)
    if float(out.alpha.max()) < 0.01:
        yield "Density is zero everywhere: the picture is the background. Start with softplus or a positive bias, or crop."
        return
    if float(weights[place > 0.95].sum() / total) > 0.5:
        yield "There is a wall at far: most weight lies in the last 5 % of the rays. Far is too near, or the background is not set."
    if float(weights[place < 0.05].sum() / total) > 0.5:
        yield "There is a wall at near: most weight lies in the first 5 % of the rays. Near is too far, or floaters hide the scene."
    if varied and float(out.rgb.std(dim=0).mean()) < 0.1 * float(colours.std(dim=0).mean()):
        yield "All rays have the same colour: the network has not left its start, or its input does not reach it."
    solid = out.alpha[hit] > 0.5
    mean = (weights * place).sum(-1) / weights.sum(-1).clamp_min(1e-9)
    spread = ((weights * (place - mean[:, None]).square()).sum(-1) / weights.sum(-1).clamp_min(1e-9)).sqrt()
    if bool(solid.any()) and float(spread[solid].median()) > 0.2:
        yield "The scene is fog: along half of the solid rays the weight is spread over more than a fifth of the ray. Train longer."
    if true_depth is not None:
        known = true_depth > 0
        outside = known & ((true_depth < near) | (true_depth > far))
        if bool(outside.any()):
            share = 100 * float(outside.sum() / known.sum())
            yield f"{share:.0f} % of the true surface lies outside of [near, far]: widen them or the box."
