"""nerfacc's calls on the CPU: signatures and errors of the installed nerfacc, values and gradients of float64 references."""

from __future__ import annotations

import inspect

import nerfacc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nsw.kernels as kernels
from nsw.kernels.accumulation import accumulate_reference
from nsw.kernels.boxes import ray_aabb_intersect_reference
from nsw.kernels.packed_reference import scan_reference
from nsw.kernels.traversal_reference import samples_reference

CALLS = [name for name in nerfacc.__all__ if name not in ("__version__", "RayIntervals", "RaySamples")]
SCANS = ["inclusive_sum", "exclusive_sum", "inclusive_prod", "exclusive_prod"]
QUICK = settings(max_examples=40, deadline=None, derandomize=True)
BOX = torch.tensor([[-1.0, -0.5, -0.75, 1.0, 1.0, 0.75]])


def _random(*shape, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def _indices(counts: list[int]) -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.long))


# ------------------------------------------------------------------ signatures and errors


def _arguments(function) -> list[tuple]:
    found = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default) for p in found]


@pytest.mark.parametrize("name", CALLS)
def test_every_call_has_nerfaccs_arguments_and_defaults(name):
    ours, theirs = getattr(kernels, name), getattr(nerfacc, name)
    if not inspect.isclass(theirs):
        assert _arguments(ours) == _arguments(theirs)
        return
    public = [m for m in vars(theirs) if (not m.startswith("_") or m in ("__init__", "_update")) and callable(getattr(theirs, m))]
    assert len(public) >= 3
    for method in public:
        assert _arguments(getattr(ours, method)) == _arguments(getattr(theirs, method)), method


def test_containers_and_the_schedule_of_proposals_are_nerfaccs():
    from nerfacc.estimators.prop_net import get_proposal_requires_grad_fn

    for name in ("RayIntervals", "RaySamples"):
        assert _arguments(getattr(kernels, name)) == _arguments(getattr(nerfacc, name))
    assert _arguments(kernels.get_proposal_requires_grad_fn) == _arguments(get_proposal_requires_grad_fn)
    ours, theirs = kernels.get_proposal_requires_grad_fn(5.0, 50), get_proposal_requires_grad_fn(5.0, 50)
    assert [ours(step) for step in range(200)] == [theirs(step) for step in range(200)]


def test_state_and_buffers_are_nerfaccs():
    ours, theirs = (m.OccGridEstimator([-1, -1, -1, 1, 1, 1], [4, 5, 6], 3) for m in (kernels, nerfacc))
    for name, buffer in theirs.named_buffers():
        if name != "_dummy":
            assert torch.equal(getattr(ours, name), buffer) and getattr(ours, name).dtype == buffer.dtype
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert ours.device == theirs.device


BAD = [
    lambda m: m.inclusive_sum(torch.ones(2, 2), torch.tensor([[0, 2]])),
    lambda m: m.exclusive_sum(torch.ones(2), torch.tensor([0, 2])),
    lambda m: m.pack_info(torch.zeros(2, 2, dtype=torch.long)),
    lambda m: m.accumulate_along_rays(torch.ones(3), None, torch.zeros(3, dtype=torch.long)),
    lambda m: m.accumulate_along_rays(torch.ones(3, 2), None, torch.zeros(3, dtype=torch.long), 2),
    lambda m: m.accumulate_along_rays(torch.ones(3), torch.ones(3)),
    lambda m: m.rendering(torch.ones(2, 3), torch.ones(2, 3)),
    lambda m: m.rendering(torch.ones(2, 3), torch.ones(2, 3), rgb_sigma_fn=lambda *_: (torch.ones(2, 3, 4), torch.ones(2, 3))),
    lambda m: m.rendering(torch.ones(2, 3), torch.ones(2, 3), rgb_alpha_fn=lambda *_: (torch.ones(2, 3, 3), torch.ones(2))),
    lambda m: m.ray_aabb_intersect(torch.ones(2, 2), torch.ones(2, 2), torch.ones(1, 6)),
    lambda m: m.traverse_grids(torch.ones(2, 3), torch.ones(2, 3), torch.ones(1, 2, 2, 2).bool(), BOX, over_allocate=True),
    lambda m: m.OccGridEstimator([0, 0, 0, 1, 1, 1], contraction_type="sphere"),
    lambda m: m.OccGridEstimator([0, 0, 0, 1, 1, 1], [4, 4]),
    lambda m: m.OccGridEstimator([0, 0, 0, 1, 1], 4),
    lambda m: m.OccGridEstimator([0, 0, 0, 1, 1, 1], 4).eval().update_every_n_steps(0, None),
    lambda m: m.OccGridEstimator([0, 0, 0, 1, 1, 1], 4).mark_invisible_cells(torch.eye(3), torch.eye(4)[None], 4, 4),
    lambda m: m.PropNetEstimator().sampling([], [4], 4, 2, 0.1, 1.0),
    lambda m: m.PropNetEstimator().update_every_n_steps(torch.ones(1, 2), requires_grad=True),
]


@pytest.mark.parametrize("call", BAD)
def test_bad_input_raises_what_nerfacc_raises(call):
    with pytest.raises(Exception) as theirs:  # noqa: B017, PT011
        call(nerfacc)
    assert theirs.type in (AssertionError, ValueError, RuntimeError)
    with pytest.raises(theirs.type):
        call(kernels)


def test_indices_beyond_the_tensor_are_refused_before_a_kernel_reads_there():
    for info in ([[0, 4]], [[-1, 2]], [[2, 2]]):
        with pytest.raises(ValueError, match="outside"):
            kernels.inclusive_sum(torch.ones(3), torch.tensor(info))
    for rays in ([0, 5], [-1, 0]):
        with pytest.raises(IndexError, match="outside"):
            kernels.render_weight_from_alpha(torch.ones(2), ray_indices=torch.tensor(rays), n_rays=2)


# ------------------------------------------------------------------ scans and weights

rays_of = st.lists(st.sampled_from([0, 0, 1, 2, 7, 8, 9, 33, 100]), min_size=0, max_size=12)


@QUICK
@given(counts=rays_of, name=st.sampled_from(SCANS), seed=st.integers(0, 99))
def test_scans_and_their_gradients_match_float64(counts, name, seed):
    values, up = 2 * _random(sum(counts), seed=seed), _random(sum(counts), seed=seed + 1)
    values[_random(len(values), seed=seed + 2) < 0.05] = 0.0  # a factor of zero has a gradient, too
    info = kernels.pack_info(_indices(counts), len(counts))
    exact = values.double().requires_grad_()
    fast = values.clone().requires_grad_()
    wanted = scan_reference(exact, info, "prod" in name, "exclusive" in name)
    found = getattr(kernels, name)(fast, info)
    assert found.dtype == torch.float32
    _close(found, wanted, 1e-6)
    for a, b in zip(torch.autograd.grad(found, fast, up), torch.autograd.grad(wanted, exact, up.double()), strict=True):
        _close(a, b, 1e-5)


def _close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    assert found.shape == wanted.shape and torch.isfinite(found).all()
    if wanted.numel():
        assert (found.double() - wanted).abs().max() <= tolerance * wanted.abs().max().clamp_min(1.0)


def test_a_chunk_may_lie_anywhere_and_what_no_chunk_holds_stays_zero():
    values, info = torch.arange(1.0, 8.0), torch.tensor([[4, 2], [0, 3]])
    assert kernels.inclusive_sum(values, info).tolist() == [1.0, 3.0, 6.0, 0.0, 5.0, 11.0, 0.0]
    assert kernels.exclusive_prod(values, info).tolist() == [1.0, 1.0, 2.0, 0.0, 1.0, 5.0, 0.0]
    exact = scan_reference(values.double(), info, product=True, exclusive=True)
    assert torch.equal(kernels.exclusive_prod(values, info).double(), exact)


@pytest.mark.parametrize("name", SCANS)
def test_compiled_scans_can_be_differentiated_twice(name):
    info, values = kernels.pack_info(_indices([3, 0, 5])), _random(8) + 0.5
    second = []
    for dtype in (torch.float32, torch.float64):
        x = values.to(dtype).requires_grad_()
        (g,) = torch.autograd.grad(getattr(kernels, name)(x, info).square().sum(), x, create_graph=True)
        second.append(torch.autograd.grad(g.square().sum(), x)[0])
    _close(second[0], second[1], 1e-5)


def _weights(which: str, values: torch.Tensor, counts: list[int] | None, prefix: torch.Tensor | None = None) -> tuple:
    where = {} if counts is None else dict(ray_indices=_indices(counts), n_rays=len(counts))
    if which == "alpha":
        return kernels.render_weight_from_alpha(values, **where, prefix_trans=prefix)
    return kernels.render_weight_from_density(
        torch.zeros_like(values), torch.ones_like(values), values, **where, prefix_trans=prefix
    )


@QUICK
@given(counts=rays_of, which=st.sampled_from(["alpha", "density"]), seed=st.integers(0, 99), prefixed=st.booleans())
def test_packed_weights_and_their_gradients_match_float64(counts, which, seed, prefixed):
    n = sum(counts)
    values = _random(n, seed=seed) ** 4 * (1 if which == "alpha" else 30)
    values[_random(n, seed=seed + 1) < 0.05] = 1.0 if which == "alpha" else 0.0
    prefix = _random(n, seed=seed + 2) if prefixed else None
    results = []
    for dtype in (torch.float32, torch.float64):
        x = values.to(dtype).requires_grad_()
        outputs = _weights(which, x, counts, None if prefix is None else prefix.to(dtype))
        loss = sum((o * _random(n, seed=seed + 3 + i).to(dtype)).sum() for i, o in enumerate(outputs))
        results.append([*outputs, *torch.autograd.grad(loss, x)])
    for found, wanted in zip(*results, strict=True):
        assert found.dtype == torch.float32
        _close(found, wanted, 2e-6)


@pytest.mark.parametrize("which", ["alpha", "density"])
@pytest.mark.parametrize("output", [0, 1])
def test_one_output_alone_has_the_right_gradient_batched(which, output):
    results = []
    for dtype in (torch.float32, torch.float64):
        x = (_random(3, 4, 21) * (1 if which == "alpha" else 4)).to(dtype).requires_grad_()
        found = _weights(which, x, None)[output]
        first = torch.autograd.grad(found.square().sum(), x, create_graph=True)[0]
        results.append([found, first, torch.autograd.grad(first.square().sum(), x)[0]])
    for found, wanted in zip(*results, strict=True):
        _close(found, wanted, 1e-5)


def test_float64_weights_pass_gradcheck():
    counts = [3, 0, 4]
    x = (_random(7).double() * 0.9).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: _weights("alpha", v, counts), x)
    assert torch.autograd.gradcheck(lambda v: _weights("density", v, counts), x)
    assert torch.autograd.gradgradcheck(lambda v: _weights("density", v, counts)[0], x)


def test_thin_samples_keep_their_digits_and_thick_ones_stay_finite():
    thin = torch.full((5,), 1e-9)
    alphas = kernels.render_weight_from_density(torch.zeros(5), torch.ones(5), thin, ray_indices=torch.zeros(5).long(), n_rays=1)[2]
    assert torch.allclose(alphas, thin, rtol=1e-6, atol=0)
    wall = torch.tensor([0.0, 1e38, 3e38, 5.0], requires_grad=True)
    where = dict(ray_indices=torch.zeros(4).long(), n_rays=1)
    found = kernels.render_weight_from_density(torch.zeros(4), torch.full((4,), 10.0), wall, **where)
    assert found[0].tolist() == [0.0, 1.0, 0.0, 0.0] and found[1][0] == 1.0
    sum(o.sum() for o in found).backward()
    assert torch.isfinite(wall.grad).all()


@QUICK
@given(counts=rays_of, width=st.sampled_from([None, 1, 2, 3, 5]), batched=st.booleans(), seed=st.integers(0, 99))
def test_sums_along_rays_and_their_gradients_match_float64(counts, width, batched, seed):
    rays = None if batched else _indices(counts)
    shape = (len(counts), 9) if batched else (sum(counts),)
    results = []
    for dtype, accumulate in ((torch.float32, kernels.accumulate_along_rays), (torch.float64, accumulate_reference)):
        w = _random(*shape, seed=seed).to(dtype).requires_grad_()
        v = None if width is None else _random(*shape, width, seed=seed + 1).to(dtype).requires_grad_()
        out = accumulate(w, v, rays, len(counts))
        inputs = [w] if v is None else [w, v]
        results.append([out, *torch.autograd.grad(out, inputs, _random(*out.shape, seed=seed + 2).to(dtype))])
    for found, wanted in zip(*results, strict=True):
        _close(found, wanted, 1e-6)


def test_indices_in_any_order_are_summed_all_the_same():
    rays = torch.tensor([2, 0, 2, 1])
    assert kernels.accumulate_along_rays(torch.tensor([1.0, 2, 3, 4]), None, rays, 4)[:, 0].tolist() == [2.0, 4.0, 4.0, 0.0]


def test_packed_rendering_in_float32_is_the_batched_one_in_float64_with_gradients():
    edges = _random(20, 34).sort(-1).values
    results = []
    for dtype, packed in ((torch.float32, True), (torch.float32, False), (torch.float64, False)):
        t0, t1 = edges[:, :-1].to(dtype), edges[:, 1:].to(dtype)
        sigma, rgb = (
            (30 * _random(20, 33, seed=1)).to(dtype).requires_grad_(),
            _random(20, 33, 3, seed=2).to(dtype).requires_grad_(),
        )
        where = (torch.arange(20).repeat_interleave(33), 20) if packed else ()
        args = (t0.reshape(-1), t1.reshape(-1)) if packed else (t0, t1)
        values = (rgb.view(-1, 3), sigma.view(-1)) if packed else (rgb, sigma)
        out = kernels.rendering(*args, *where, rgb_sigma_fn=lambda *_, v=values: v, render_bkgd=torch.ones(3, dtype=dtype))
        (out[0].square().sum() + (out[1] * out[2]).sum()).backward()
        results.append([*out[:3], sigma.grad, rgb.grad])
    for found in results[:2]:
        for a, b in zip(found, results[2], strict=True):
            _close(a, b, 5e-6)


def test_rendering_no_sample_at_all_gives_the_background():
    none, rays = torch.zeros(0), torch.zeros(0, dtype=torch.long)
    colours, opacity, depth, _ = kernels.rendering(none, none, rays, 3, rgb_sigma_fn=lambda *_: 1 / 0, render_bkgd=torch.ones(3))
    assert colours.tolist() == [[1.0] * 3] * 3 and not opacity.any() and not depth.any()


# ------------------------------------------------------------------ boxes and grids


@QUICK
@given(seed=st.integers(0, 999))
def test_boxes_are_met_where_the_reference_says(seed):
    origins, directions = 4 * _random(40, 3, seed=seed) - 2, _random(40, 3, seed=seed + 1) - 0.5
    directions[:, 1:][_random(40, 2, seed=seed + 2) < 0.1] = 0.0
    boxes = torch.cat([BOX, torch.tensor([[0.0, 0.1, -0.5, 0.5, 0.4, 1.5]])])
    found = kernels.ray_aabb_intersect(origins, directions, boxes, 0.1, 3.0, -1.0)
    wanted = ray_aabb_intersect_reference(origins.double(), directions.double(), boxes.double(), 0.1, 3.0, -1.0)
    assert torch.equal(found[2], wanted[2])
    _close(found[0], wanted[0], 1e-6)
    _close(found[1], wanted[1], 1e-6)


def _scene(seed: int, n: int = 12, levels: int = 2, share: float = 0.4):
    boxes = torch.cat([BOX * 2**level for level in range(levels)])
    cells = _random(levels, 4, 6, 5, seed=seed) < share
    origins = 5 * _random(n, 3, seed=seed + 1) - 2.5
    directions = torch.nn.functional.normalize(_random(n, 3, seed=seed + 2) - 0.5 - 0.2 * origins, dim=-1)
    return origins, directions, cells, boxes


@QUICK
@given(
    seed=st.integers(0, 999),
    step=st.sampled_from([0.31, 0.05, 0.0]),
    cone=st.sampled_from([0.0, 0.0, 0.03]),
    levels=st.sampled_from([1, 2, 3]),
    limit=st.sampled_from([0, 0, 1, 7]),
    near=st.sampled_from([0.0, 0.7]),
    far=st.sampled_from([float("inf"), 2.9]),
)
def test_rays_get_the_samples_of_the_reference(seed, step, cone, levels, limit, near, far):
    origins, directions, cells, boxes = _scene(seed, levels=levels)
    planes = dict(near_planes=torch.full((12,), near), far_planes=torch.full((12,), far))
    options = dict(step_size=step, cone_angle=cone, traverse_steps_limit=limit or None)
    intervals, samples, left_at = kernels.traverse_grids(origins.double(), directions.double(), cells, boxes, **planes, **options)
    starts, ends = intervals.vals[intervals.is_left], intervals.vals[intervals.is_right]
    rays = [
        samples_reference(o, d, cells, boxes, float32(near), float32(far), step, cone, limit)
        for o, d in zip(origins, directions, strict=True)
    ]
    assert samples.packed_info[:, 1].tolist() == [len(found) for found, _ in rays]
    wanted = torch.tensor([sample for found, _ in rays for sample in found], dtype=torch.float64).reshape(-1, 3)
    assert torch.allclose(starts, wanted[:, 0], rtol=0, atol=1e-9) and torch.allclose(ends, wanted[:, 1], rtol=0, atol=1e-9)
    assert torch.allclose(samples.vals, (starts + ends) / 2) and samples.is_valid.all()
    assert torch.allclose(left_at, torch.tensor([t for _, t in rays], dtype=torch.float64), rtol=0, atol=1e-9)
    assert len(intervals.vals) == 2 * len(wanted) - int(wanted[:, 2].sum())
    assert torch.equal(kernels.pack_info(intervals.ray_indices, 12), intervals.packed_info)


def float32(value: float) -> float:
    return float(torch.tensor(value))  # as the tensors of planes hold it


def test_over_allocated_memory_holds_the_same_samples():
    origins, directions, cells, boxes = _scene(3)
    mask = torch.arange(12) % 3 > 0
    options = dict(step_size=0.05, traverse_steps_limit=9, rays_mask=mask)
    tight = kernels.traverse_grids(origins, directions, cells, boxes, **options)
    loose = kernels.traverse_grids(origins, directions, cells, boxes, over_allocate=True, **options)
    assert loose[0].vals.shape == (8 * 18,) and loose[1].vals.shape == (8 * 9,)
    assert torch.equal(loose[1].vals[loose[1].is_valid], tight[1].vals) and len(tight[1].vals) > 20
    assert torch.equal(loose[1].ray_indices[loose[1].is_valid], tight[1].ray_indices)
    for side in ("is_left", "is_right"):
        assert torch.equal(loose[0].vals[getattr(loose[0], side)], tight[0].vals[getattr(tight[0], side)])
    assert torch.equal(loose[1].packed_info, tight[1].packed_info) and torch.equal(loose[2], tight[2])
    assert not tight[1].packed_info[~mask, 1].any()


def test_walking_on_from_where_rays_were_left_finds_the_rest():
    origins, directions, cells, boxes = _scene(5)
    everything = kernels.traverse_grids(origins, directions, cells, boxes, step_size=0.05)[1]
    near, found = torch.zeros(12), []
    for _ in range(40):
        part, near = kernels.traverse_grids(origins, directions, cells, boxes, near, step_size=0.05, traverse_steps_limit=4)[1:]
        found.append(part)
    middles = torch.cat([part.vals for part in found])
    order = torch.cat([part.ray_indices for part in found]).argsort(stable=True)
    assert torch.allclose(middles[order], everything.vals, atol=1e-5)


def test_crossings_computed_before_give_the_same_walk():
    origins, directions, cells, boxes = _scene(7, levels=3)
    t_mins, t_maxs, hits = kernels.ray_aabb_intersect(origins, directions, boxes)
    t_sorted, t_indices = torch.sort(torch.cat([t_mins, t_maxs], dim=-1), dim=-1)
    plain = kernels.traverse_grids(origins, directions, cells, boxes, step_size=0.05)
    given_ = kernels.traverse_grids(
        origins, directions, cells, boxes, step_size=0.05, t_sorted=t_sorted, t_indices=t_indices, hits=hits
    )
    assert torch.allclose(plain[1].vals, given_[1].vals, atol=1e-5) and len(plain[1].vals) > 50


@QUICK
@given(seed=st.integers(0, 999), axis=st.integers(0, 2), sign=st.sampled_from([-1.0, 1.0]), step=st.sampled_from([0.1, 0.0]))
def test_rays_along_axes_through_corners_and_without_direction_end(seed, axis, sign, step):
    cells = _random(2, 4, 4, 4, seed=seed) < 0.5
    boxes = torch.tensor([[-1.0, -1, -1, 1, 1, 1], [-2.0, -2, -2, 2, 2, 2]])
    origins = torch.tensor([-3.0, -2.0, -1.0, -0.5, 0.0, 1.0, 3.0])[
        torch.randint(7, (30, 3), generator=torch.Generator().manual_seed(seed))
    ]
    directions = torch.zeros(30, 3)
    directions[:10, axis] = sign
    directions[10:20] = sign * torch.ones(3) / 3**0.5
    intervals, samples, left_at = kernels.traverse_grids(origins, directions, cells, boxes, step_size=step)
    assert torch.isfinite(samples.vals).all() and torch.isfinite(left_at).all()
    assert not (samples.ray_indices >= 20).any()
    assert (intervals.vals[intervals.is_right] > intervals.vals[intervals.is_left]).all()


def test_no_rays_no_cells_and_broken_rays_give_no_samples():
    origins, directions, cells, boxes = _scene(1)
    none = kernels.traverse_grids(origins[:0], directions[:0], cells, boxes)
    assert none[0].vals.shape == none[1].vals.shape == none[2].shape == (0,) and none[1].packed_info.shape == (0, 2)
    assert len(kernels.traverse_grids(origins, directions, torch.zeros_like(cells), boxes)[1].vals) == 0
    broken = torch.full_like(origins, float("nan"))
    assert len(kernels.traverse_grids(broken, directions, cells, boxes)[1].vals) == 0


def test_sampling_of_nested_grids_is_the_walk_and_repeats_bit_for_bit():
    grid = kernels.OccGridEstimator(BOX[0], [4, 6, 5], 2)
    origins, directions, grid.binaries, _ = _scene(2, n=700)
    options = dict(render_step_size=0.04, cone_angle=0.01, near_plane=0.2)
    threads, found = torch.get_num_threads(), []
    for n in (1, 3):
        torch.set_num_threads(n)
        found.append(grid.sampling(origins, directions, **options))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)) and len(found[0][0]) > 1000
    walked = kernels.traverse_grids(
        origins, directions, grid.binaries, grid.aabbs, torch.full((700,), 0.2), step_size=0.04, cone_angle=0.01
    )
    assert torch.equal(found[0][0], walked[1].ray_indices) and torch.equal(found[0][1], walked[0].vals[walked[0].is_left])


def test_jitter_moves_a_ray_by_less_than_a_step():
    grid = kernels.OccGridEstimator(BOX[0], 4)
    grid.binaries.fill_(True)
    origins, directions = torch.tensor([[0.0, 0, -3]]).repeat(50, 1), torch.tensor([[0.0, 0, 1]]).repeat(50, 1)
    torch.manual_seed(0)
    rays, starts, _ = grid.sampling(origins, directions, render_step_size=0.1, stratified=True)
    first = torch.stack([starts[rays == r][0] for r in range(50)])
    assert 0.02 < first.std() < 0.04 and (first.max() - first.min()) < 0.1


def test_cells_no_camera_sees_are_marked_as_nerfacc_marks_them():
    poses = torch.eye(4).repeat(3, 1, 1)
    poses[:, :3, 3] = torch.tensor([[0.0, 0, -2], [0.3, 0.1, -1.5], [0.0, 0.2, -0.5]])
    K = torch.tensor([[[30.0, 0, 16], [0, 30, 12], [0, 0, 1]]])
    marked = []
    for module in (kernels, nerfacc):
        grid = module.OccGridEstimator([-1, -1, -1, 1, 1, 1], [9, 8, 7], 2)
        grid.mark_invisible_cells(K, poses, 32, 24, near_plane=0.3, chunk=100)
        marked.append(grid.occs)
    assert 20 < (marked[0] < 0).sum() < len(marked[0]) - 20
    assert (marked[0] == marked[1]).float().mean() > 0.995  # a cell on a picture's edge may round to either side


def test_cells_marked_invisible_are_never_asked_and_stay_empty():
    torch.manual_seed(0)
    grid, asked = kernels.OccGridEstimator([-1, -1, -1, 1, 1, 1], 8), []
    grid.occs[: 8**3 // 2] = -1.0
    for step in (0, 16, 400):
        grid.update_every_n_steps(step, lambda x: asked.append(x) or torch.ones(len(x), 1))
    assert (torch.cat(asked)[:, 0] >= 0).all() and not grid.binaries[0, :4].any() and grid.binaries[0, 4:].all()


# ------------------------------------------------------------------ resampling and proposals


@QUICK
@given(
    counts=st.lists(st.sampled_from([2, 3, 9, 20]), min_size=1, max_size=8), n=st.sampled_from([1, 2, 16]), seed=st.integers(0, 99)
)
def test_packed_resampling_is_the_batched_one_ray_by_ray(counts, n, seed):
    edges, cdfs = [], []
    for i, m in enumerate(counts):
        edges.append(_random(m, seed=seed + i).cumsum(0))
        steps = _random(m, seed=seed + 50 + i)
        cdfs.append(torch.cumsum(steps * (steps > 0.3), 0))
    info = kernels.pack_info(_indices(counts), len(counts))
    packed = kernels.RayIntervals(torch.cat(edges), packed_info=info)
    even = kernels.importance_sampling(packed, torch.cat(cdfs), n)
    wanted = torch.arange(len(counts)) % 3 * n
    uneven, samples = kernels.importance_sampling(packed, torch.cat(cdfs), wanted)
    assert even[0].vals.shape == (len(counts), n + 1) and even[1].vals.shape == (len(counts), n)
    assert torch.isfinite(even[1].vals).all() and (even[0].vals.diff(dim=-1) >= -1e-6).all()
    assert samples.packed_info[:, 1].tolist() == wanted.tolist() and int(uneven.is_left.sum()) == len(samples.vals)
    for r in range(len(counts)):
        alone = kernels.importance_sampling(kernels.RayIntervals(edges[r][None]), cdfs[r][None], n)
        assert torch.equal(alone[0].vals[0], even[0].vals[r]) and torch.equal(alone[1].vals[0], even[1].vals[r])
        if wanted[r] == n:
            assert torch.equal(samples.vals[samples.ray_indices == r], even[1].vals[r])
            assert torch.equal(uneven.vals[uneven.ray_indices == r], even[0].vals[r])


@QUICK
@given(counts=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=9), seed=st.integers(0, 99))
def test_searching_finds_the_neighbours_packed_and_batched(counts, seed):
    keys = [_random(m, seed=seed + i).sort().values for i, (m, _) in enumerate(counts)]
    queries = [1.4 * _random(q, seed=seed + 70 + i) - 0.2 for i, (_, q) in enumerate(counts)]
    sequence, values = (
        kernels.RayIntervals(torch.cat(x), packed_info=kernels.pack_info(_indices([len(y) for y in x]), len(x)))
        for x in (keys, queries)
    )
    left, right = kernels.searchsorted(sequence, values)
    base = 0
    at = 0
    for key, query in zip(keys, queries, strict=True):
        place = torch.searchsorted(key, query, right=True).clamp(max=len(key) - 1)
        assert torch.equal(right[at : at + len(query)], base + place)
        assert torch.equal(left[at : at + len(query)], base + (place - 1).clamp_min(0))
        if len(query):
            alone = kernels.searchsorted(kernels.RaySamples(key[None]), kernels.RaySamples(query[None]))
            assert torch.equal(alone[1][0], place)
        base, at = base + len(key), at + len(query)


def _proposals(requires_grad: bool = True, sampling_type: str = "lindisp"):
    density = torch.nn.Parameter(torch.tensor([0.5, 2.0]))
    estimator = kernels.PropNetEstimator(torch.optim.SGD([density], lr=1.0))
    fns = [lambda a, b, i=i: density[i] * ((a + b) / 2).sin().square() for i in range(2)]
    t_starts, t_ends = estimator.sampling(
        fns, [16, 12], 8, n_rays=5, near_plane=0.5, far_plane=6.0, sampling_type=sampling_type, requires_grad=requires_grad
    )
    return density, estimator, t_starts, t_ends


@pytest.mark.parametrize("sampling_type", ["lindisp", "uniform"])
def test_proposals_give_ascending_samples_between_the_planes(sampling_type):
    _, estimator, t_starts, t_ends = _proposals(False, sampling_type)
    assert t_starts.shape == t_ends.shape == (5, 8) and not estimator.prop_cache
    assert torch.equal(t_starts[:, 1:], t_ends[:, :-1]) and (t_ends >= t_starts).all()
    assert t_starts.min() >= 0.5 - 1e-5 and t_ends.max() <= 6.0 + 1e-5


def test_the_loss_of_proposals_is_that_of_nerfaccs_other_formula_and_its_gradient_is_right():
    from nerfacc.estimators.prop_net import _lossfun_outer

    _, estimator, t_starts, t_ends = _proposals()
    cache = list(estimator.prop_cache)
    trans = torch.exp(-0.4 * t_starts)
    loss = estimator.compute_loss(trans, loss_scaler=2.0)
    weights = torch.diff(1 - torch.cat([trans, torch.zeros(5, 1)], -1))
    wanted = 0.0
    for intervals, cdfs in cache[:-1]:
        wanted = wanted + _lossfun_outer(cache[-1][0].vals, weights, intervals.vals, cdfs.diff()).mean()
    assert loss.item() > 1e-3 and torch.allclose(loss, 2.0 * wanted, rtol=1e-3)
    assert estimator.prop_cache == [] and estimator.compute_loss(trans).item() == 0.0


def test_updating_trains_the_proposals_and_only_when_asked():
    density, estimator, t_starts, _ = _proposals()
    before = density.detach().clone()
    assert estimator.update_every_n_steps(torch.exp(-0.4 * t_starts), requires_grad=False) == 0.0
    assert torch.equal(density, before)
    assert estimator.update_every_n_steps(torch.exp(-0.4 * t_starts), requires_grad=True) > 0
    assert not torch.equal(density, before) and torch.isfinite(density).all()
