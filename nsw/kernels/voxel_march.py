"""Plenoxels' renderer in one pass: march rays through a sparse voxel grid, look up density and harmonics, composite, and back.

float32 on the CPU runs in the compiled kernels of `voxel_march_forward` and `voxel_march_backward`, on a GPU in those of
`voxel_march_triton` where Triton runs; everything else runs the definition, `voxel_march_reference`. The CPU's kernels skip cells
without a positive corner; there the definition gives nothing too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.autograd.function import once_differentiable

from nsw.errors import InputError
from nsw.kernels import voxel_march_backward as backward_kernels
from nsw.kernels import voxel_march_forward as forward_kernels
from nsw.kernels.threads import n_threads, run_shares
from nsw.kernels.triton_launch import serves
from nsw.kernels.voxel_march_reference import CHANNELS_STEP, march_voxels_reference, n_channels

FAR_AWAY = 9  # cells beyond which distances are not told apart
MAX_DEGREE = 2
_SAMPLE_EVERY = 7  # samples counted to balance the slabs


@dataclass(frozen=True)
class RowGradient:
    """Where kernels add the gradient of a table of rows, and which rows they touched since it was last emptied.

    Attributes:
        values: [K, C], zeros to begin with.
        touched: [K], 1 where something was added.
    """

    values: Float[Tensor, "K C"]
    touched: UInt8[Tensor, "K"]

    @staticmethod
    def like(values: Tensor) -> RowGradient:
        """Return an empty gradient for a table."""
        return RowGradient(torch.zeros_like(values), torch.zeros(len(values), dtype=torch.uint8, device=values.device))


def marks_rows(values: Tensor) -> bool:
    """Return whether kernels serve this table, which add its gradient to a `RowGradient`; elsewhere autograd adds it."""
    return values.dtype == torch.float32 and (values.device.type == "cpu" or (values.is_contiguous() and serves(values)))


def march_voxels(
    values: Float[Tensor, "K C"],
    links: Int[Tensor, "X Y Z"],
    origins: Float[Tensor, "R 3"],
    directions: Float[Tensor, "R 3"],
    near: Float[Tensor, "R"],
    far: Float[Tensor, "R"],
    offset: Float[Tensor, "R"],
    aabb: Float[Tensor, "2 3"],
    step: float,
    delta: float,
    sh_degree: int,
    stop: float = 1e-7,
    nearest: bool = False,
    skip: UInt8[Tensor, "x y z"] | None = None,
    into: RowGradient | None = None,
) -> tuple[Float[Tensor, "R 3"], Float[Tensor, "R"], Float[Tensor, "R"]]:
    r"""Return colour without background, transmittance behind the last sample, and expected distance of R rays.

    $$\hat C = \sum_i T_i \big(1 - e^{-\sigma_i\delta}\big)\, c_i, \qquad T_i = e^{-\sum_{j<i} \sigma_j\delta}$$
    (Plenoxels, eq. 1), at t = near + (i + offset) step < far, sigma the trilinear raw density where that is above 1e-8. Colour and
    transmittance are differentiable once, in `values` alone.

    Args:
        values, links: rows and the vertices' places among them; see `voxel_march_reference`. Row 0 has to be zero.
        directions: unit vectors.
        step: distance between samples in world units. delta: the same in 1 / unit of density.
        stop: a ray ends behind the first sample that leaves less transmittance.
        nearest: take the nearest vertex instead of interpolating.
        skip: `empty_cells` of this grid; without it, and on a GPU, every sample is looked up.
        into: add the gradient there and hand none to autograd.
    """
    used = 1 + 3 * (sh_degree + 1) ** 2
    if marks_rows(values) and values.is_cuda and links.dtype == torch.int32 and sh_degree <= MAX_DEGREE and values.shape[1] >= used:
        from nsw.kernels.voxel_march_triton import march

        return march(values, links, origins, directions, near, far, offset, aabb, step, delta, sh_degree, stop, nearest, into)
    if values.device.type != "cpu" or values.dtype != torch.float32 or sh_degree > MAX_DEGREE:
        return march_voxels_reference(
            values, links, origins, directions, near, far, offset, aabb, step, delta, sh_degree, stop, nearest
        )
    if values.shape[1] % CHANNELS_STEP or values.shape[1] < n_channels(sh_degree):  # kernels read and write whole cache lines
        raise InputError(f"Rows of degree {sh_degree} need {n_channels(sh_degree)} channels, these have {values.shape[1]}.")
    rays = _rays_in_voxels(links, origins, directions, near, far, offset, aabb)
    settings = (float(step), float(delta), float(stop), sh_degree, nearest)
    skip = torch.zeros(1, 1, 1, dtype=torch.uint8) if skip is None else skip
    wants = torch.is_grad_enabled() and values.requires_grad
    return _March.apply(values, links, skip, rays, directions.detach().contiguous().numpy(), settings, into, wants)


def max_weights(
    values, links, origins, directions, near, far, offset, aabb, step, delta, stop=1e-7, skip=None, best=None
) -> Tensor:
    """Return for each vertex [X, Y, Z] the largest weight T (1 - exp(-sigma delta)) of a sample in its 8 cells.

    Args:
        best: raise this result of earlier rays instead of starting from zeros.
    """
    best = torch.zeros(links.shape) if best is None else best
    rays = _rays_in_voxels(links, origins, directions, near, far, offset, aabb)
    skip = torch.zeros(1, 1, 1, dtype=torch.uint8) if skip is None else skip
    march = _forward(values, links, skip, rays, directions.contiguous().numpy(), (step, delta, stop, -1, False), True)
    _, counts, records = march
    slabs = _slabs(rays, counts, records, links.shape[0])
    run_shares(backward_kernels.largest_weights, len(slabs) - 1, rays, counts, records, slabs, best.numpy())
    return best


def empty_cells(values: Float[Tensor, "K C"], links: Int[Tensor, "X Y Z"]) -> UInt8[Tensor, "x y z"]:
    """Return for each cell how many cells away the nearest one with a positive corner is: 0 for such a cell itself.

    A cell n > 0 has none within n - 1 cells on every side: a ray may leap there. Holds until a density turns positive.
    """
    table, shape = values.detach().reshape(-1).numpy(), links.shape
    positive = np.empty(shape, np.bool_)
    cells = tuple(n - 1 for n in shape)
    skip, other = np.empty(cells, np.uint8), np.empty(cells, np.uint8)
    workers = n_threads()
    run_shares(forward_kernels.mark_positive, workers, table, links.numpy(), values.shape[1], positive)
    run_shares(forward_kernels.find_empty_cells, workers, positive, skip, FAR_AWAY)
    for axis in range(3):
        run_shares(forward_kernels.spread_distance, workers, skip, other, axis, FAR_AWAY)
        skip, other = other, skip
    return torch.from_numpy(skip)


class _March(torch.autograd.Function):
    """Autograd around the kernels: forward keeps the samples, backward turns them into rows' gradients."""

    @staticmethod
    def forward(ctx, values, links, skip, rays, directions, settings, into, wants):
        out, counts, records = _forward(values, links, skip, rays, directions, settings, wants)
        rgb, left = torch.from_numpy(out[:, :3].copy()), torch.from_numpy(out[:, 3].copy())
        depth = torch.from_numpy(out[:, 4] / np.maximum(1 - out[:, 3], np.float32(1e-10)))
        ctx.mark_non_differentiable(depth)
        if wants:
            ctx.kept = (links.numpy(), rays, directions, counts, records, out[:, 3].copy(), settings, into, values.shape)
        return rgb, left, depth

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_rgb, grad_left, _):
        links, rays, directions, counts, records, left, settings, into, shape = ctx.kept
        _, delta, _, degree, nearest = settings
        target = RowGradient(torch.zeros(shape), torch.zeros(shape[0], dtype=torch.uint8)) if into is None else into
        grads = np.empty((len(records), 4), np.float32)
        pixels = (left, grad_rgb.contiguous().numpy(), grad_left.contiguous().numpy())
        run_shares(backward_kernels.rays_backward, n_threads(), counts, records, *pixels, np.float32(delta), grads)
        slabs = _slabs(rays, counts, records, links.shape[0])
        sums = (target.values.view(-1).numpy(), target.touched.numpy())
        samples = (rays, directions, counts, records, grads, slabs)
        run_shares(backward_kernels.scatter, len(slabs) - 1, links, *samples, shape[1], degree, nearest, *sums)
        return (target.values if into is None else None,) + (None,) * 7


def _rays_in_voxels(links, origins, directions, near, far, offset, aabb) -> np.ndarray:
    """Return [R, 9]: origin and direction in voxels, near, far and offset."""
    scale = (torch.tensor(links.shape) - 1).double() / (aabb[1] - aabb[0]).double()
    place = ((origins.double() - aabb[0].double()) * scale).float()
    return torch.cat([place, (directions.double() * scale).float(), torch.stack([near, far, offset], 1)], 1).detach().numpy()


def _forward(values, links, skip, rays, directions, settings, keep: bool):
    """Run the march; return out [R, 5], where each ray's samples begin and end, and the samples' records."""
    step, delta, stop, degree, nearest = settings
    n_rays, chunk = len(rays), forward_kernels.CHUNK
    most = np.maximum(np.ceil((rays[:, 7] - rays[:, 6]) / step), 0).astype(np.int64) + 1 if keep else np.zeros(n_rays, np.int64)
    starts = np.concatenate([[0], np.cumsum(most)])[0:-1:chunk] if n_rays else np.zeros(0, np.int64)
    # Room for every sample that could be; a ray uses little of it, and unused pages cost nothing.
    records = np.empty((int(most.sum()), forward_kernels.RECORD), np.float32)
    out, counts = np.empty((n_rays, 5), np.float32), np.empty((n_rays, 2), np.int64)
    out[:, :3] = directions
    cells = np.array(links.shape) - 1
    box = (np.array(skip.shape) / cells).astype(np.float32)
    steps = np.array([step, delta, stop], np.float32)
    grid = (values.detach().reshape(-1).numpy(), links.numpy(), skip.numpy())
    run_shares(
        forward_kernels.march_forward, n_threads() if n_rays > chunk else 1, *grid, rays, box, steps, values.shape[1], degree,
        nearest, keep, starts, out, counts, records,
    )  # fmt: skip
    return out, counts, records


def _slabs(rays: np.ndarray, counts: np.ndarray, records: np.ndarray, n_x: int) -> np.ndarray:
    """Return borders along x that share the samples about evenly."""
    n = n_threads()
    if n == 1 or n_x < 2 * n:
        return np.array([0, n_x])
    histogram = np.ones(n_x, np.int64)
    run_shares(backward_kernels.count_along_x, 1, rays, counts, records, n_x, _SAMPLE_EVERY, histogram)
    total = np.cumsum(histogram)
    inner = np.searchsorted(total, total[-1] * np.arange(1, n) / n) + 1
    return np.concatenate([[0], np.maximum.accumulate(np.minimum(inner, n_x)), [n_x]])
