"""Instant-NGP (Mueller et al., SIGGRAPH 2022): what the paper adds to volume rendering, besides its encoding.

The encoding is `nsw.kernels.hash_encoding`, the field with its two networks `nsw.models.hash_grid`; training as one function
is in `nsw.methods.instant_ngp_fit`. Written from the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nsw.cameras import Cameras, Rays, rows_at
from nsw.kernels.masked_adam import MaskedAdam
from nsw.kernels.occupancy import ray_aabb_intersect
from nsw.kernels.packed_rays import packed_weights
from nsw.methods.occupied_cells import known_cells as known_cells
from nsw.methods.occupied_cells import recall as recall
from nsw.methods.occupied_cells import run_rows as run_rows
from nsw.methods.occupied_cells import true_cells as true_cells
from nsw.models.hash_grid import HashGrid
from nsw.renderers.parts import all_rays, assemble
from nsw.renderers.render import Render
from nsw.renderers.volume import march_cells, parts_of, sum_on_rays
from nsw.scenes.scene import Scene

EPSILON = 1e-15  # of Adam: an entry's gradient is tiny, and the usual 1e-8 would decide how far it moves
WARMUP = 256  # steps in which all cells of the occupancy grid are asked


@dataclass(frozen=True)
class HashRender:
    """R rendered rays and the K samples that were visible.

    Attributes:
        rgb: [R, 3] colour over the background.
        left: [R] transmittance behind the last sample, in [0, 1].
        depth: [R] expected distance t, 0 where nothing was hit.
        weights: [K]; t: [K]; ray_indices: [K], ascending.
        n_marched: samples in occupied cells, whose density was asked.
        geometry: [K, G], what the density network says of them besides.
    """

    rgb: Float[Tensor, "R 3"]
    left: Float[Tensor, "R"]
    depth: Float[Tensor, "R"]
    weights: Float[Tensor, "K"]
    t: Float[Tensor, "K"]
    ray_indices: Int[Tensor, "K"]
    n_marched: int
    geometry: Float[Tensor, "K G"]


def render(
    model: HashGrid,
    rays: Rays,
    near: float = 0.0,
    background: float | Float[Tensor, "R 3"] | None = None,
    jitter: torch.Generator | None = None,
    threshold: float = 1e-4,
) -> HashRender:
    """March rays through occupied cells and composite what is visible.

    A first pass without gradients asks densities. Samples that weigh up to `threshold` in their pixel, most of them behind a
    surface, are dropped before the second pass, which asks colours too.

    Args:
        background: grey level, colour [3] or [R, 3]; the rays' own by default.
        jitter: moves each ray's samples by a random part of a step; without it they are the same every time.
    """
    background = rays.background if background is None else background
    step = model.sample_length
    ray_indices, t, points = march_cells(model, rays, model.occupancy, step, near, jitter)
    n_marched, known = len(t), None
    if threshold > 0:
        with torch.no_grad():
            known = model.encode(points)
            weights, _ = packed_weights(model.density(points, known) * step, ray_indices, len(rays))
            kept = (weights > threshold).nonzero()[:, 0]
        t, ray_indices, points, known = (x.index_select(0, kept) for x in (t, ray_indices, points, known))
    density, geometry = model.geometry(points, known)
    weights, left = packed_weights(density * step, ray_indices, len(rays))
    rgbs = model.colour(geometry, rays.directions, ray_indices)
    rgb, distance = sum_on_rays(weights, left, rgbs, t, ray_indices, background)
    return HashRender(rgb, left, distance, weights, t, ray_indices, n_marched, geometry)


def render_view(
    model: HashGrid, cameras: Cameras, near: float = 0.0, background: float | Tensor | None = None, chunk: int = 16384
) -> Render:
    """Render whole pictures without gradients."""

    def of_rays(rays: Rays) -> RayColours:
        parts = parts_of(model, rays, model.occupancy, model.sample_length, near)
        parts = [render(model, rays[part], near, background) for part in parts]
        return RayColours(*(torch.cat([getattr(part, name) for part in parts]) for name in RayColours._fields))

    return assemble(of_rays, cameras, chunk)


class RayColours(NamedTuple):
    """Of R rays rgb [R, 3], left [R] and depth [R] as in a `HashRender`, without the samples they came from."""

    rgb: Float[Tensor, "R 3"]
    left: Float[Tensor, "R"]
    depth: Float[Tensor, "R"]


@dataclass(frozen=True)
class Pixels:
    """All rays one may train on, with colour times opacity [P, 3] and opacity [P] of their pixels."""

    rays: Rays
    rgb: Float[Tensor, "P 3"]
    alpha: Float[Tensor, "P"]

    def __len__(self) -> int:
        return len(self.alpha)

    def draw(self, n_rays: int, generator: torch.Generator) -> Pixels:
        """Return random pixels of all pictures; they depend on the generator's state alone."""
        return self.at(torch.randint(len(self), (n_rays,), generator=generator, device=self.alpha.device))

    def at(self, index: Tensor) -> Pixels:
        """Return the pixels at an index or a mask."""
        return Pixels(self.rays[index], rows_at(self.rgb, index), rows_at(self.alpha, index))

    def over(self, background: float | Float[Tensor, "P 3"]) -> Float[Tensor, "P 3"]:
        """Return the colours in front of a background."""
        return self.rgb + (1 - self.alpha)[:, None] * background


def meets(rays: Rays, aabb: Float[Tensor, "2 3"]) -> Bool[Tensor, "R"]:
    """Return which rays meet a box."""
    return ray_aabb_intersect(rays.origins, rays.directions, aabb.reshape(1, 6))[2][:, 0]


def worth_asking(
    scene: Scene, frames: Int[Tensor, "n"], rays: Rays, aabb: Float[Tensor, "2 3"] | None = None
) -> Bool[Tensor, "R"]:  # fmt: skip
    """Return which of all the rays of some pictures meet a box and belong to a pixel that may be trained on."""
    hits = torch.ones_like(rays.z_per_t, dtype=torch.bool) if aabb is None else meets(rays, aabb.to(rays.origins.device))
    return hits & scene.usable(frames).reshape(-1).to(hits.device)


def training_pixels(scene: Scene, aabb: Float[Tensor, "2 3"], split: str = "train", device: torch.device | str = "cpu") -> Pixels:
    """Return the usable pixels of a split whose rays meet the box: the others show the background whatever a field says."""
    frames, found = scene.frames(split), []
    n = max((1 << 21) // (scene.cameras.width * scene.cameras.height), 1)
    for some in frames.split(n):  # a few at a time: the rays of all of them take several times what is kept
        rgb, alpha = scene.pixels(some, 0.0).reshape(-1, 3).to(device), scene.alphas(some).reshape(-1).to(device)
        part = Pixels(all_rays(scene.views(some), device), rgb, alpha)
        part = part.at(worth_asking(scene, some, part.rays, aabb))
        found.append((part.rays.origins, part.rays.directions, part.rays.z_per_t, part.rgb, part.alpha))
    origins, directions, z, rgb, alpha = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Pixels(Rays(origins, directions, z, scene.cameras.to(device).background), rgb, alpha)


def random_backgrounds(pixels: Pixels, generator: torch.Generator) -> Float[Tensor, "P 3"]:
    """Return a colour for each ray. Where a pixel is transparent, only empty air fits whatever comes behind it.

    Before a plain backdrop it is the backdrop's: opaque photographs show it wherever nothing else stands.
    """
    if isinstance(pixels.rays.background, Tensor):
        return pixels.rays.background.expand_as(pixels.rgb)
    return torch.rand(pixels.rgb.shape, generator=generator, device=pixels.rgb.device)


def first_batch(n_rays: int, aabb: Float[Tensor, "2 3"], step: float, most: int = 1 << 19) -> int:
    """Return how many rays to begin with: `n_rays`, or fewer where they could have more than `most` samples of this length.

    A new field has all of its cells on. With a thousand samples across, the first batch would want more memory than any later one.
    """
    across = float((aabb[1] - aabb[0]).norm()) / step
    return min(n_rays, max(int(most / across) // 64, 1) * 64)


def next_batch(n_rays: int, n_samples: int, target: int, largest: int = 1 << 16) -> int:
    r"""Return how many rays to draw next, such that a batch has about `target` samples whatever is empty.

    $$R \leftarrow R \cdot N_{\rm target} / N_{\rm marched}$$  Changes by at most a factor of 2 a step, in multiples of 64.

    >>> next_batch(1024, 60_000, 40_000)
    640
    """
    wanted = n_rays * min(2.0, max(0.5, target / max(n_samples, 1)))
    return int(min(max(wanted // 64, 1) * 64, largest))


def update_occupancy(model: HashGrid, step: int, every: int = 16, decay: float = 0.95, threshold: float = 0.01) -> None:
    r"""Refresh the occupancy grid when the step is due: a random point in each candidate cell.

    $$o \leftarrow \max(0.95\,o,\ \sigma(x)\,\Delta), \qquad \text{occupied: } o > \min(0.01, \bar o)$$

    Candidates are all cells for the first 256 steps, then a quarter of them and the occupied ones. With the paper's decay a
    cell that was full takes some 90 updates to be called empty: a run of a few hundred steps needs a faster one.
    """
    if step % every == 0:
        model.occupancy._update(step, lambda points: model.density(points) * model.sample_length, threshold, decay, WARMUP)


def make_optimizer(model: HashGrid, lr: float = 1e-2, lr_network: float = 1e-2, eps: float = EPSILON) -> MaskedAdam:
    """Return Adam for table and networks; entries that no sample touched keep value and moments.

    Args:
        lr: of the table. Short runs need several times the paper's 1e-2; networks die of that, and keep their own.
    """
    networks = [*model.density_net.parameters(), *model.colour_net.parameters()]
    groups = [dict(params=[model.table], lr=lr), dict(params=networks, lr=lr_network, skip_zero=False)]
    optimizer = MaskedAdam(groups, eps=eps)
    model.gradients_in_place = True  # this optimiser empties the gradients that the encoding adds to
    for group in optimizer.param_groups:
        group["start"] = group["lr"]
    return optimizer


def set_rate(optimizer: MaskedAdam, progress: float, warmup: float = 0.02, factor: float = 0.1) -> None:
    """Set learning rates for a share `progress` of the budget: a linear rise over `warmup`, then a fall by `factor`."""
    rise = min(1.0, 0.01 + progress / warmup) if warmup > 0 else 1.0
    for group in optimizer.param_groups:
        group["lr"] = group["start"] * rise * factor**progress


def cube_around(aabb: Float[Tensor, "2 3"]) -> Float[Tensor, "2 3"]:
    """Return the smallest cube with the box's centre that holds it.

    >>> cube_around(torch.tensor([[0.0, 0, 0], [4, 2, 1]])).tolist()
    [[0.0, -1.0, -1.5], [4.0, 3.0, 2.5]]
    """
    middle, half = aabb.mean(0), (aabb[1] - aabb[0]).amax() / 2
    return torch.stack([middle - half, middle + half])
