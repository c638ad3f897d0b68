"""Finite numbers, up to the ends of float32, make no NaN: in what a kernel returns, and in gradients of finite pulls on it."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nsw import kernels as k
from nsw.kernels.cp_lookup import cp_lookup
from nsw.kernels.grid_lookup import grid_lookup
from nsw.kernels.masked_adam import MaskedAdam
from nsw.kernels.row_rmsprop import RowRMSProp
from nsw.kernels.screen_pulls import add_pulls
from nsw.kernels.ssim import ssim_l1
from nsw.kernels.vm_lookup import vm_lookup

LARGEST = torch.finfo(torch.float32).max
number = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, LARGEST, -LARGEST, 1e-45, 1e19])
# which tensor, from which of its numbers on, every how many of them, and what to write there
change = st.tuples(st.integers(0, 99), st.integers(0, 999), st.sampled_from([1, 2, 3, 5, 10_000]), number)
changes = st.lists(change, min_size=1, max_size=6)
pulls = st.lists(change, max_size=3)


def full_range(n: int):
    """Run a test on n examples, the same every time; on NSW_EXAMPLES new ones if that is set."""

    def decorate(test):
        more = int(os.environ.get("NSW_EXAMPLES", 0))  # a long search, other examples every time
        how = settings(max_examples=more or n, deadline=None, derandomize=not more)
        return how(given(changes=changes, pulls=pulls)(test))

    return decorate


def write(tensors: list[torch.Tensor], changes) -> None:
    for which, first, every, value in changes:
        flat = tensors[which % len(tensors)].view(-1)
        if len(flat):
            flat[first % len(flat) :: every] = value


def check(function, given: list[torch.Tensor], changes, pulls, fixed: tuple[int, ...] = (), spoiled: int | None = None) -> None:
    """Spoil inputs (the first few) and pulls, go there and back, and look for NaN; `fixed` inputs ask for no gradient."""
    given = [tensor.clone() for tensor in given]
    write(given[:spoiled], changes)
    leaves = [t.requires_grad_() for i, t in enumerate(given) if i not in fixed and t.is_floating_point()]
    outputs = [out for out in function(*given) if out is not None and out.is_floating_point()]
    learns = [out for out in outputs if out.requires_grad]
    upstream = [torch.ones_like(out) for out in learns]
    write(upstream, pulls) if upstream else None
    if learns:
        torch.autograd.backward(learns, upstream)
    for place, found in enumerate([*outputs, *(leaf.grad for leaf in leaves)]):
        assert found is None or not torch.isnan(found).any(), (place, len(outputs))


def rand(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


def splats(n: int = 20, channels: tuple[int, ...] = (3,)) -> list[torch.Tensor]:
    means = 2 * rand(n, 3) - 1 + torch.tensor([0.0, 0.0, 2.5])
    camera = torch.tensor([[[20.0, 0.0, 8.0], [0.0, 20.0, 4.0], [0.0, 0.0, 1.0]]])
    return [means, rand(n, 4) - 0.5, 0.02 + 0.2 * rand(n, 3), 0.1 + 0.8 * rand(n), rand(n, *channels), torch.eye(4)[None], camera]


CALLS = {
    "colours": {"absgrad": True, "packed": False},
    "depth": {"render_mode": "RGB+ED"},
    "antialiased": {"rasterize_mode": "antialiased", "render_mode": "D"},
    "fisheye": {"camera_model": "fisheye", "render_mode": "RGB+D"},
    "ortho": {"camera_model": "ortho"},
}


@pytest.mark.parametrize("name", CALLS)
@full_range(60)
def test_pictures_of_splats(name, changes, pulls):
    def draw(*given):
        return k.rasterization(*given[:7], 17, 9, backgrounds=given[7], **CALLS[name])[:2]

    behind = None if CALLS[name].get("render_mode") == "D" else rand(1, 3)
    check(draw, [*splats(), rand(1, 3) if behind is None else behind], changes, pulls, fixed=(6,))


@pytest.mark.parametrize("degree", range(5))
@full_range(40)
def test_pictures_of_splats_with_harmonics(degree, changes, pulls):
    given = splats(channels=((degree + 1) ** 2, 3))
    check(lambda *given: k.rasterization(*given, 17, 9, sh_degree=degree)[:2], given, changes, pulls, (6,), 5)


SURFELS = ({}, {"distloss": True, "render_mode": "RGB+ED"}, {"distloss": True, "render_mode": "RGB+D", "ray_depth": True})


@pytest.mark.parametrize("options", SURFELS, ids=["colours", "depth", "rays"])
@full_range(60)
def test_pictures_of_surfels(options, changes, pulls):
    def draw(*given):
        out = k.rasterization_2dgs(*given, 17, 9, **options)
        return out[:6]

    check(draw, splats(), changes, pulls, (6,), 5)  # a camera has to have an inverse


@pytest.mark.parametrize("model", ["pinhole", "ortho", "fisheye"])
@full_range(60)
def test_projection(model, changes, pulls):
    def project(means, quats, scales, opacities, _, viewmats, Ks):
        options = {"opacities": opacities, "calc_compensations": True, "camera_model": model}
        return k.fully_fused_projection(means, None, quats, scales, viewmats, Ks, 17, 9, **options)

    check(project, splats(), changes, pulls, fixed=(3, 6))


@full_range(60)
def test_harmonics_and_covariances(changes, pulls):
    for degree in range(5):
        check(
            lambda d, c, degree=degree: (k.spherical_harmonics(degree, d, c),), [rand(9, 3) - 0.5, rand(9, 25, 3)], changes, pulls
        )
    check(lambda q, s: k.quat_scale_to_covar_preci(q, s), [rand(9, 4) - 0.5, rand(9, 3)], changes, pulls)
    check(lambda q, s: k.quat_scale_to_covar_preci(q, s, triu=True), [rand(9, 4) - 0.5, rand(9, 3)], changes, pulls)


@full_range(60)
def test_pixels_of_given_lists(changes, pulls):
    offsets, ids = torch.tensor([[[0, 12]]], dtype=torch.int32), torch.arange(24, dtype=torch.int32) % 12

    def draw(means2d, conics, colors, opacities, backgrounds):
        return k.rasterize_to_pixels(means2d, conics, colors, opacities, 20, 9, 16, offsets, ids, backgrounds=backgrounds)

    conics = torch.tensor([0.1, 0.02, 0.2]).expand(1, 12, 3).clone()
    check(draw, [20 * rand(1, 12, 2), conics, rand(1, 12, 3), rand(1, 12), rand(1, 3)], changes, pulls)


@full_range(80)
def test_lookups(changes, pulls):
    box, points = torch.tensor([[-1.0, -2.0, 0.5], [2.0, 1.0, 1.5]]), 3 * rand(9, 3) - 1
    levels = k.hash_levels(3, 4, 32, 8)
    check(lambda g, x: (grid_lookup(g, x, box),), [rand(3, 4, 5, 2), points], changes, pulls)
    check(lambda t, x: (k.hash_encode(t, x, levels),), [rand(levels.n_rows, 2), points], changes, pulls)
    planes, lines = [rand(*n, 4) for n in ((3, 4), (3, 5), (4, 5))], [rand(n, 4) for n in (5, 4, 3)]
    for summed in (False, True):
        check(lambda x, *f, s=summed: (vm_lookup(f[:3], f[3:], x, box, s),), [points, *planes, *lines], changes, pulls)
        check(lambda x, *f, s=summed: (cp_lookup(f, x, box, s),), [points, *lines], changes, pulls)


@full_range(80)
def test_losses(changes, pulls):
    check(ssim_l1, [rand(1, 13, 12, 3), rand(1, 13, 12, 3)], changes, pulls, fixed=(1,))


@full_range(80)
def test_scans_and_sums_along_rays(changes, pulls):
    info, rays = torch.tensor([[0, 5], [5, 0], [5, 7]]), torch.tensor([0] * 5 + [2] * 7)
    for scan in (k.inclusive_sum, k.exclusive_sum, k.inclusive_prod, k.exclusive_prod):
        check(lambda x, scan=scan: (scan(x, info),), [rand(12)], changes, pulls)
        check(lambda x, scan=scan: (scan(x),), [rand(3, 4)], changes, pulls)
    for width in (1, 3, 4):
        check(lambda w, v: (k.accumulate_along_rays(w, v, rays, 3),), [rand(12), rand(12, width)], changes, pulls)
        check(lambda w, v: (k.accumulate_along_rays(w, v),), [rand(3, 4), rand(3, 4, width)], changes, pulls)
    check(lambda w: (k.accumulate_along_rays(w, None, rays, 3),), [rand(12)], changes, pulls)


@full_range(80)
def test_weights_along_rays(changes, pulls):
    rays, t = torch.tensor([0] * 5 + [2] * 7), torch.linspace(0, 1, 13)
    packed = {"ray_indices": rays, "n_rays": 3}
    check(lambda a, b, s: k.render_weight_from_density(a, b, s, **packed), [t[:-1], t[1:], 5 * rand(12)], changes, pulls)
    check(lambda a: k.render_weight_from_alpha(a, **packed), [rand(12)], changes, pulls)
    batched = [x.view(3, 4) for x in (t[:-1], t[1:], 5 * rand(12))]
    check(k.render_weight_from_density, batched, changes, pulls)
    check(k.render_weight_from_alpha, [rand(3, 4)], changes, pulls)

    def render(a, b, s, c, behind):
        return k.rendering(a, b, rays, 3, rgb_sigma_fn=lambda *_: (c, s), render_bkgd=behind)[:3]

    check(render, [t[:-1], t[1:], 5 * rand(12), rand(12, 3), rand(3)], changes, pulls)


@full_range(60)
def test_rays_through_boxes_and_grids(changes, pulls):
    origins, directions, boxes = 2 * rand(9, 3) - 1, rand(9, 3) - 0.5, torch.tensor([[-0.5, -0.5, -0.5, 0.5, 0.5, 0.5]])
    check(lambda o, d, b: k.ray_aabb_intersect(o, d, b)[:2], [origins, directions, boxes], changes, pulls, fixed=(0, 1, 2))

    def sample(edges, cdfs):
        intervals, samples = k.importance_sampling(k.RayIntervals(edges), cdfs, 4)
        return intervals.vals, samples.vals

    def in_order(edges, cdfs):
        return sample(edges.sort().values, cdfs.sort().values)

    check(in_order, [torch.linspace(0, 1, 6).repeat(3, 1), torch.linspace(0, 1, 6).repeat(3, 1)], changes, pulls, fixed=(0, 1))


@full_range(60)
def test_voxel_march(changes, pulls):
    values = rand(28, 32) - 0.3
    values[0] = 0
    links = torch.arange(27, dtype=torch.int32).view(3, 3, 3) + 1
    box, n = torch.tensor([[-1.0, -1, -1], [1, 1, 1]]), 5
    directions = torch.nn.functional.normalize(rand(n, 3) - 0.5, dim=-1)

    def march(rows, origins):
        near, far, offset = torch.zeros(n), torch.full((n,), 2.0), torch.full((n,), 0.5)
        settings = (box, 0.1, 0.3, 2)
        return k.march_voxels(torch.cat([values[:1], rows]), links, origins, directions, near, far, offset, *settings)

    def roughness(rows):
        return (k.total_variation(torch.cat([values[:1], rows]), links, torch.arange(28).int() - 1, 1, 27, torch.ones(32)),)

    check(march, [values[1:], rand(n, 3) - 0.5], changes, pulls, fixed=(1,))
    check(roughness, [values[1:]], changes, pulls)


@full_range(60)
def test_steps_of_optimisers(changes, pulls):
    for make in (
        lambda p: k.SelectiveAdam([p], 1e-8, (0.9, 0.999)), lambda p: MaskedAdam([p], lr=0.5),
        lambda p: RowRMSProp(p, 0.5, 0.5), lambda p: RowRMSProp(p, 0.5, 0.5, momentum=0.9),
    ):  # fmt: skip
        values = rand(7, 3).requires_grad_()
        optimizer = make(values)
        for change in (changes, pulls, changes):
            values.grad = rand(7, 3)
            write([values.grad, values.data], change)
            optimizer.step(torch.ones(7, dtype=torch.bool)) if isinstance(optimizer, k.SelectiveAdam) else optimizer.step()
            assert not torch.isnan(values).any()


@full_range(60)
def test_relocation_and_pulls(changes, pulls):
    table, ratios = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 2.0, 1.0]]), torch.tensor([1, 2, 3, 9], dtype=torch.int32)
    check(lambda o, s: k.compute_relocation(o, s, ratios, table), [rand(4), rand(4, 3)], changes, pulls, fixed=(0, 1))
    gradient, total = rand(1, 5, 2), torch.zeros(5)
    write([gradient], changes)
    add_pulls(total, torch.zeros(5), gradient, torch.ones(1, 5, 2, dtype=torch.int32), 20.0, 30.0)
    assert not torch.isnan(total).any()
