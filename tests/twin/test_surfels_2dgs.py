"""Surfels: closed forms, the compiled compositor against the float64 reference in values and gradients, hostile scenes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nsw.errors import InputError
from nsw.kernels import (
    accumulate_2dgs,
    fully_fused_projection_2dgs,
    rasterization_2dgs,
    rasterize_to_indices_in_range_2dgs,
    rasterize_to_pixels_2dgs,
)
from nsw.kernels.engines import forced
from nsw.kernels.projection_reference import rotation_from_quaternion
from nsw.kernels.surfels_reference import RayRules, composite_ray, meet_disks

LEAVES = ("means", "quats", "scales", "opacities", "colors", "viewmats")
WIDTH, HEIGHT = 45, 37
NAMES = ("renders", "alphas", "normals", "from_depth", "distortion", "median")


def disks(n=120, seed=0, cameras=1, tail=(3,)):
    """Float32 surfels in a ball; off-centre principal point, a picture that is no multiple of a tile."""
    g = torch.Generator().manual_seed(seed)
    viewmats = torch.eye(4).repeat(cameras, 1, 1)
    viewmats[:, :3, 3] = torch.tensor([0.1, -0.05, 2.5]) + 0.3 * torch.rand(cameras, 3, generator=g)
    return {
        "means": torch.rand(n, 3, generator=g) * 2 - 1, "quats": torch.randn(n, 4, generator=g),
        "scales": 0.02 + 0.2 * torch.rand(n, 3, generator=g), "opacities": torch.rand(n, generator=g),
        "colors": torch.rand(n, *tail, generator=g), "viewmats": viewmats,
        "Ks": torch.tensor([[40.0, 0, 20], [0, 42, 21], [0, 0, 1]]).repeat(cameras, 1, 1),
        "width": WIDTH, "height": HEIGHT,
    }  # fmt: skip


def run(scene, dtype, reference=False, **options):
    """Draw, pull back a fixed random gradient of every differentiable output, return all in double precision."""
    s = {name: value.to(dtype) if torch.is_tensor(value) else value for name, value in scene.items()}
    for name in LEAVES:
        s[name] = s[name].clone().requires_grad_()
    if options.get("backgrounds") is not None:
        options["backgrounds"] = options["backgrounds"].to(dtype)
    with forced("reference" if reference else "auto"):
        *outputs, meta = rasterization_2dgs(**s, **options)
        meta["means2d"].retain_grad()
        g, loss = torch.Generator().manual_seed(9), 0.0
        for name, x in zip(NAMES, outputs, strict=True):
            if x is not None and name != "from_depth":
                loss = loss + (x * torch.randn(x.shape, generator=g, dtype=torch.float64).to(dtype)).sum()
        loss.backward()
    result = {name: x for name, x in zip(NAMES, outputs, strict=True) if x is not None}
    grads = {name: s[name].grad for name in LEAVES} | {"gradient_2dgs": meta["gradient_2dgs"].grad, "means2d": meta["means2d"].grad}
    if options.get("absgrad"):
        grads["absgrad"] = meta["means2d"].absgrad
    grads = {name: torch.zeros(1) if value is None else value for name, value in grads.items()}
    return {n: x.detach().double() for n, x in result.items()}, {n: x.detach().double() for n, x in grads.items()}, meta


def agree(ours, truth, tolerance=3e-4, outliers=0.0):
    """Maps to an absolute, gradients to a relative tolerance; `outliers` pixels may sit on a threshold of the rules."""
    for name, value in truth[0].items():
        assert torch.isfinite(ours[0][name]).all() and ours[0][name].shape == value.shape, name
        if value.numel():
            error, size = (ours[0][name] - value).abs(), max(1.0, float(value.abs().max()))
            far = 1e-3 if name == "from_depth" else 5e-5
            assert (error > far * size).double().mean() <= outliers, (name, float(error.max()))
    for name, value in truth[1].items():
        assert torch.isfinite(ours[1][name]).all(), name
        if value.numel() > 1:
            error = (ours[1][name] - value).abs().max()
            assert error <= tolerance * max(1e-3, float(value.abs().max())), (name, float(error), float(value.abs().max()))


# --- closed forms -----------------------------------------------------------------------------------------------------------


def test_a_ray_meets_the_plane_where_geometry_says():
    """(u, v) and depth from the transform against the crossing of the ray with the disk's plane in space."""
    s = {k: v.double() if torch.is_tensor(v) else v for k, v in disks(20).items()}
    _, means2d, depths, transforms, normals = fully_fused_projection_2dgs(
        s["means"], s["quats"], s["scales"], s["viewmats"], s["Ks"], WIDTH, HEIGHT
    )
    R = s["viewmats"][0, :3, :3] @ rotation_from_quaternion(s["quats"])
    centre = s["means"] + s["viewmats"][0, :3, 3]
    pixels = torch.tensor([[10.5, 12.5], [22.5, 20.5]]).double()
    rays = torch.cat([(pixels - s["Ks"][0, :2, 2]) / s["Ks"][0, [0, 1], [0, 1]], torch.ones(2, 1).double()], dim=1)
    z = (R[:, :, 2] * centre).sum(-1) / (rays @ R[:, :, 2].T)
    offset = rays[:, None] * z[..., None] - centre
    uv = torch.einsum("pni,nik->pnk", offset, R[:, :, :2]) / s["scales"][:, :2]
    alphas, depth = meet_disks(pixels, means2d[0] + 1e6, transforms[0], torch.full((20,), 0.9).double(), RayRules())
    expected = 0.9 * torch.exp(-0.5 * (uv**2).sum(-1))
    assert torch.allclose(alphas, torch.where(expected >= 1 / 255, expected, 0.0), atol=1e-9)
    assert torch.allclose(depth, z, rtol=1e-6) and torch.allclose(depths[0], centre[:, 2])
    assert ((normals[0] * centre).sum(-1) < 0).all() and torch.allclose(normals[0].norm(dim=-1), torch.ones(20).double())


def test_the_box_is_that_of_the_projected_circle():
    s = {k: v.double() if torch.is_tensor(v) else v for k, v in disks(30).items()}
    radii, means2d, _, transforms, _ = fully_fused_projection_2dgs(
        s["means"], s["quats"], s["scales"], s["viewmats"], s["Ks"], WIDTH, HEIGHT
    )
    angle = torch.linspace(0, 2 * math.pi, 4001).double()
    circle = torch.stack([angle.cos(), angle.sin(), torch.ones_like(angle)])
    points = transforms[0] @ circle
    points = points[:, :2] / points[:, 2:]
    low, high = points.amin(-1), points.amax(-1)
    seen = (radii[0] > 0).all(-1)
    assert torch.allclose(means2d[0][seen], (0.5 * (low + high))[seen], atol=1e-4)
    assert ((radii[0] - torch.ceil(3.33 * 0.5 * (high - low)))[seen].abs() <= 1).all()


def test_one_pass_distortion_is_the_sum_over_pairs():
    g = torch.Generator().manual_seed(0)
    alphas, depth = torch.rand(4, 9, generator=g).double() * 0.6, (1 + torch.rand(9, generator=g)).double().sort()[0].expand(4, 9)
    weights = alphas * torch.cumprod(torch.cat([torch.ones(4, 1).double(), 1 - alphas[:, :-1]], 1), 1)
    pairs = weights[:, :, None] * weights[:, None, :]
    for rules in (RayRules(distortion=True), RayRules(True, 0.01, True, (0.5, 8.0))):
        *_, distortion, median = composite_ray(alphas, torch.zeros(9, 1).double(), depth, rules)
        m = 8 / 7.5 * (1 - 0.5 / depth)
        each = (depth[:, :, None] - depth[:, None]).abs() if not rules.ray_depth else 0.5 * (m[:, :, None] - m[:, None]) ** 2
        assert torch.allclose(distortion, (pairs * each).sum((1, 2)))
        left = torch.cumprod(torch.cat([torch.ones(4, 1).double(), 1 - alphas[:, :-1]], 1), 1)
        assert torch.equal(median, torch.stack([d[t > 0.5][-1] for d, t in zip(depth, left, strict=True)]))


def test_ray_depth_of_a_slanted_disk_is_that_of_its_plane():
    tilt = 0.6
    quat = torch.tensor([[math.cos(tilt / 2), 0.0, math.sin(tilt / 2), 0.0]])
    K = torch.tensor([[[40.0, 0, 16], [0, 40, 16], [0, 0, 1]]])
    splat = (torch.tensor([[0.0, 0, 3]]), quat, torch.full((1, 3), 0.5), torch.tensor([0.99]), torch.ones(1, 1), torch.eye(4)[None])
    options = {"render_mode": "RGB+ED"}
    exact, alpha, normals, from_depth, *_ = rasterization_2dgs(*splat, K, 32, 32, **options, ray_depth=True)
    flat = rasterization_2dgs(*splat, K, 32, 32, **options)[0]
    x = (torch.arange(32) + 0.5 - 16) / 40
    plane = 3 * math.cos(tilt) / (math.cos(tilt) + x * math.sin(tilt))
    inside = alpha[0, 16, :, 0] > 0.3
    assert torch.allclose(exact[0, 16, inside, 1], plane[inside], atol=1e-4)
    assert torch.allclose(flat[0, 16, inside, 1], torch.tensor(3.0)) and (plane[inside] - 3).abs().max() > 0.2
    core = torch.nn.functional.normalize(normals[0, 16, 16], dim=0)
    assert torch.allclose(core, from_depth[16, 16], atol=1e-3)  # the surface's normal is the disk's
    assert torch.allclose(core.abs(), torch.tensor([math.sin(tilt), 0, math.cos(tilt)]), atol=1e-5)


@pytest.mark.parametrize("low_pass", [0.5**0.5, 0.5, 0.3])
def test_a_point_is_drawn_as_a_blob_of_the_low_pass(low_pass):
    K = torch.tensor([[[40.0, 0, 16.5], [0, 40, 16.5], [0, 0, 1]]])
    splat = (torch.tensor([[0.0, 0, 3]]), torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 1e-4), torch.tensor([0.9]))
    alpha = rasterization_2dgs(*splat, torch.ones(1, 1), torch.eye(4)[None], K, 33, 33, low_pass=low_pass)[1][0, 16, :, 0]
    expected = 0.9 * torch.exp(-0.5 * (torch.arange(33) - 16.0) ** 2 / low_pass**2)
    assert torch.allclose(alpha, torch.where(expected >= 1 / 255, expected, 0.0), atol=1e-5)


def test_a_blob_larger_than_the_lists_reckon_with_is_refused():
    for low_pass in (0.0, 1.0):
        with pytest.raises(InputError, match="low_pass"):
            rasterization_2dgs(**disks(3), low_pass=low_pass)


# --- compiled against reference ---------------------------------------------------------------------------------------------

OPTIONS = {
    "plain": {},
    "packed": {"packed": True},
    "distortion": {"render_mode": "RGB+ED", "distloss": True, "absgrad": True},
    "median": {"render_mode": "RGB+D", "depth_mode": "median", "packed": True},
    "depth": {"render_mode": "ED"},
    "ray depth": {"render_mode": "RGB+D", "distloss": True, "ray_depth": True, "distortion_range": (0.5, 10.0)},
    "low pass": {"render_mode": "RGB+ED", "distloss": True, "ray_depth": True, "low_pass": 0.4},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_compiled_matches_reference(options):
    scene, behind = disks(cameras=2), torch.tensor([[0.2, 0.9, 0.4], [0.0, 0.1, 1.0]])
    if not options.get("render_mode", "RGB").startswith("RGB"):
        behind = None
    ours, truth = (run(scene, dtype, backgrounds=behind, **options) for dtype in (torch.float32, torch.float64))
    agree(ours, truth)
    assert torch.equal(ours[2]["radii"], truth[2]["radii"]) and torch.equal(ours[2]["flatten_ids"], truth[2]["flatten_ids"])
    assert ours[0].keys() == truth[0].keys() and ("from_depth" in ours[0]) == (options.get("render_mode") in ("RGB+D", "RGB+ED"))


def assert_frozen(ours, whole, n, tolerance):
    """Pictures and the first n gradients are those of a drawing in which all are trained; the others are 0."""
    assert all(torch.equal(value, whole[0][name]) for name, value in ours[0].items())
    for name, value in whole[1].items():
        dim = value.ndim - 1 - (name not in ("opacities",))  # the surfels' own
        if name == "viewmats" or value.numel() < 2:
            continue
        found, wanted = ours[1][name].movedim(dim, 0), value.movedim(dim, 0)
        assert not found[n:].any(), name
        assert n == 0 or (found[:n] - wanted[:n]).abs().max() <= tolerance * wanted.abs().max(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [name for name, options in OPTIONS.items() if not options.get("packed")])
def test_frozen_surfels_take_part_in_pictures_and_leave_the_gradients_of_the_others_as_they_are(name, dtype):
    """To the last digits of the type: what is left out is only what nobody asked for."""
    options = {key: value for key, value in OPTIONS[name].items() if dtype == torch.float32 or key != "absgrad"}
    scene = disks(cameras=2)
    whole = run(scene, dtype, **options)
    for n in (0, 1, 40, 119, 120):
        assert_frozen(run(scene, dtype, n_trained=n, **options), whole, n, 20 * torch.finfo(dtype).eps)


def test_a_count_of_trained_surfels_that_cannot_be_is_refused():
    for wrong in (dict(n_trained=121), dict(n_trained=-1), dict(n_trained=5, packed=True)):
        with pytest.raises(InputError, match="n_trained"):
            rasterization_2dgs(**disks(), **wrong)


def test_harmonics_batches_and_many_channels():
    scene = disks(60, cameras=2, tail=(16, 3))
    agree(run(scene, torch.float32, sh_degree=3), run(scene, torch.float64, sh_degree=3))
    scene = disks(40, tail=(9,))
    agree(run(scene, torch.float32), run(scene, torch.float64))
    scenes = [disks(40, seed=seed, cameras=2) for seed in (0, 1)]
    stacked = {k: torch.stack([s[k] for s in scenes]) if torch.is_tensor(v) else v for k, v in scenes[0].items()}
    for packed in (False, True):
        renders, alphas, normals, *_ = rasterization_2dgs(**stacked, packed=packed)
        assert renders.shape == (2, 2, HEIGHT, WIDTH, 3) and normals.shape == renders.shape
        for b, scene in enumerate(scenes):
            assert torch.equal(renders[b], rasterization_2dgs(**scene, packed=packed)[0])


def behind_camera(s):
    s["means"][::2, 2] -= 8


def near_plane(s):
    s["means"][:40, 2] = 0.0101 + torch.linspace(0, 0.05, 40) - s["viewmats"][0, 2, 3]
    s["scales"][:40] = 0.001


def through_the_camera(s):
    s["means"][:15, 2] = 0.05 - s["viewmats"][0, 2, 3]
    s["scales"][:15], s["opacities"][:15] = 0.6, 0.2


def huge(s):
    s["scales"][:10] *= 40


def needles(s):
    s["scales"][:, 0], s["scales"][:, 1:] = 0.8, 0.002


def edge_on(s):
    s["quats"][:] = torch.tensor([math.sqrt(0.5), math.sqrt(0.5) + 1e-4, 0.0, 0.0])


def points(s):
    s["scales"][:60] = 1e-7


def zero_opacity(s):
    s["opacities"][::3] = 0.0


def thousands_in_one_pixel(s):
    s["means"][:110] = torch.tensor([0.1, 0.1, 0.0]) + 0.004 * s["means"][:110]
    s["scales"][:110], s["opacities"][:110] = 0.01, 0.05


def opaque(s):
    s["opacities"] = 0.97 + 0.03 * s["opacities"]


def one_pixel(s):
    s["width"] = s["height"] = 1


def all_culled(s):
    s["means"][:, 2] -= 50


def nothing(s):
    for name in ("means", "quats", "scales", "opacities", "colors"):
        s[name] = s[name][:0]


HOSTILE = (behind_camera, near_plane, through_the_camera, huge, needles, edge_on, points, zero_opacity, thousands_in_one_pixel,
           opaque, one_pixel, all_culled, nothing)  # fmt: skip


@pytest.mark.parametrize("spoil", HOSTILE, ids=lambda f: f.__name__)
def test_compiled_matches_reference_on_hostile_scenes(spoil):
    scene = disks()
    spoil(scene)
    for ray_depth in (False, True):
        options = {"render_mode": "RGB+D", "distloss": True, "ray_depth": ray_depth}
        ours, truth = (run(scene, dtype, **options) for dtype in (torch.float32, torch.float64))
        for result in (ours[0], truth[0]):
            del result["from_depth"]  # where a depth map is 0, its normals are rounding
        agree(ours, truth, tolerance=2e-2, outliers=0.01)


def test_gradcheck():
    s = {k: v.double() if torch.is_tensor(v) else v for k, v in disks(3, seed=2).items()}
    s["opacities"] = 0.3 + 0.4 * s["opacities"]
    s["scales"], s["means"] = 0.5 + s["scales"], 0.2 * s["means"]
    s["width"], s["height"], s["Ks"] = 5, 4, torch.tensor([[[5.0, 0, 2.7], [0, 5, 1.9], [0, 0, 1]]]).double()
    leaves = tuple(s[name].requires_grad_() for name in LEAVES)

    def maps(*x, **options):
        out = rasterization_2dgs(**(s | dict(zip(LEAVES, x, strict=True))), render_mode="RGB+D", distloss=True, **options)
        return out[0], out[1], out[2], out[4], out[5]

    for options in ({}, {"ray_depth": True}):
        assert torch.autograd.gradcheck(lambda *x, options=options: maps(*x, **options), leaves, fast_mode=True)


def test_repeats_are_bit_equal_also_with_one_thread():
    scene, results, threads = disks(5000), [], torch.get_num_threads()
    try:
        for n in (threads, threads, 1 if threads > 1 else 2):
            torch.set_num_threads(n)
            results.append(run(scene, torch.float32, render_mode="RGB+ED", distloss=True))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for name in ("renders", "alphas", "distortion", "median"):
            assert torch.equal(results[0][0][name], other[0][name]), name
        assert torch.equal(results[0][1]["colors"], other[1]["colors"])


# --- the single calls -------------------------------------------------------------------------------------------------------


def projected(dtype, packed=False, cameras=2):
    s = {k: v.to(dtype) if torch.is_tensor(v) else v for k, v in disks(80, cameras=cameras).items()}
    out = fully_fused_projection_2dgs(s["means"], s["quats"], s["scales"], s["viewmats"], s["Ks"], WIDTH, HEIGHT, packed=packed)
    *maps, meta = rasterization_2dgs(**s, packed=packed, render_mode="RGB+D", distloss=True)
    return s, out, maps, (WIDTH, HEIGHT, 16, meta["isect_offsets"], meta["flatten_ids"])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_given_lists_make_the_same_maps(packed, dtype):
    s, out, maps, lists = projected(dtype, packed)
    means2d, depths, transforms, normals = out[-4:]
    colors, opacities = s["colors"].expand(2, -1, -1), s["opacities"].expand(2, -1)
    if packed:
        colors, opacities = s["colors"][out[2]], s["opacities"][out[2]]
    channels = torch.cat([colors, depths[..., None]], dim=-1)
    densify = torch.zeros_like(means2d)
    got = rasterize_to_pixels_2dgs(means2d, transforms, channels, opacities, normals, densify, *lists, packed=packed, distloss=True)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for name, a, b in zip(("renders", "alphas", "distortion", "median"), (got[0], got[1], got[3], got[4]),
                          (maps[0], maps[1], maps[4], maps[5]), strict=True):  # fmt: skip
        assert a.shape == b.shape and torch.allclose(a, b, atol=tolerance), name
    assert torch.allclose(got[2], maps[2], atol=tolerance)  # the cameras are not turned: world axes are camera axes


def test_gradients_through_given_lists_and_masks():
    masks, results = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.4, []
    for dtype in (torch.float32, torch.float64):
        s, (_, means2d, depths, transforms, normals), _, lists = projected(dtype)
        colors, opacities = torch.cat([s["colors"].expand(2, -1, -1), depths[..., None]], -1), s["opacities"].expand(2, -1)
        splats = [t.detach().clone().requires_grad_() for t in (means2d, transforms, colors, opacities, normals)]
        densify = torch.zeros_like(means2d, requires_grad=True)
        behind = torch.ones(2, 4, dtype=dtype, requires_grad=True)
        out = rasterize_to_pixels_2dgs(*splats, densify, *lists, behind, masks, absgrad=True, distloss=True)
        g = torch.Generator().manual_seed(1)
        sum((x * torch.randn(x.shape, generator=g).to(dtype)).sum() for x in out).backward()
        results.append([*(x.detach() for x in out), *(t.grad for t in splats), densify.grad, behind.grad, splats[0].absgrad])
    for ours, truth in zip(*results, strict=True):
        assert (ours.double() - truth).abs().max() <= 3e-4 * max(1.0, float(truth.abs().max()))
    shut = ~masks.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :HEIGHT, :WIDTH]
    assert (results[0][1][..., 0][shut] == 0).all() and (results[0][0][shut] == 1).all()


def test_pair_by_pair_makes_the_same_picture():
    s, (_, means2d, _, transforms, normals), maps, lists = projected(torch.float64)
    opacities, colors = s["opacities"].expand(2, -1), s["colors"].expand(2, -1, -1)
    light = torch.ones(2, HEIGHT, WIDTH).double()
    ids = rasterize_to_indices_in_range_2dgs(0, 10**10, light, means2d, transforms, opacities, *lists)
    picture, alphas, blended = accumulate_2dgs(means2d, transforms, opacities, colors, normals, *ids, WIDTH, HEIGHT)
    assert torch.allclose(picture, maps[0][..., :3]) and torch.allclose(alphas, maps[1]) and torch.allclose(blended, maps[2])


def test_packed_projection_sparse_gradients_and_errors():
    s, rows, _, _ = projected(torch.float64, packed=True)
    full = projected(torch.float64)[1]
    for a, b in zip(rows[3:], full, strict=True):
        assert torch.equal(a, b[rows[1], rows[2]])
    grads = []
    for sparse in (True, False):
        leaves = [s[name].clone().requires_grad_() for name in ("means", "quats", "scales")]
        out = fully_fused_projection_2dgs(*leaves, s["viewmats"], s["Ks"], WIDTH, HEIGHT, packed=True, sparse_grad=sparse)
        sum((x**2).sum() for x in out[4:]).backward()
        grads.append([leaf.grad for leaf in leaves])
    for a, b in zip(*grads, strict=True):
        assert a.is_sparse and torch.allclose(a.to_dense(), b)
    scene = disks(3)
    for wrong in (
        {"distloss": True},
        {"render_mode": "depth"},
        {"sh_degree": 2},
        {"backgrounds": torch.ones(3)},
        {"sparse_grad": True},
    ):
        with pytest.raises(InputError):
            rasterization_2dgs(**scene, **wrong)


FINITE = st.floats(-(2.0**60), 2.0**60, width=32)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    numbers=st.lists(FINITE, min_size=14, max_size=14),
    small=st.lists(st.floats(-3, 3, width=32), min_size=14, max_size=14),
    mix=st.integers(0, 2**14 - 1),
    ray_depth=st.booleans(),
)
def test_no_finite_input_makes_a_nan(numbers, small, mix, ray_depth):
    values = [n if mix >> i & 1 else s for i, (n, s) in enumerate(zip(numbers, small, strict=True))]
    row, scene = torch.tensor(values, dtype=torch.float32), disks(3)
    scene["means"][0], scene["quats"][0], scene["scales"][0] = row[:3], row[3:7], row[7:10].abs()
    scene["opacities"][0], scene["colors"][0] = row[10].abs().clamp(max=1.0), row[11:14].clamp(-1e6, 1e6)
    maps, grads, _ = run(scene, torch.float32, render_mode="RGB+D", distloss=True, ray_depth=ray_depth)
    del maps["from_depth"]
    for name, value in (maps | grads).items():
        assert torch.isfinite(value).all(), name


def test_a_surface_is_learnt():
    """A few steps of Adam on depth and colour pull tilted disks into a plane that faces the camera."""
    torch.manual_seed(0)
    n, view = 60, torch.eye(4)[None]
    K = torch.tensor([[[30.0, 0, 16], [0, 30, 16], [0, 0, 1]]])
    means = torch.cat([(torch.rand(n, 2) - 0.5) * 2.4, 3 + 0.3 * torch.randn(n, 1)], 1).requires_grad_()
    quats = torch.tensor([1.0, 0, 0, 0]).add(0.4 * torch.randn(n, 4)).requires_grad_()
    scales, rgb = torch.full((n, 3), 0.25), torch.rand(n, 3)
    optimizer, errors, angles = torch.optim.Adam([means, quats], lr=0.01), [], []
    for _ in range(60):
        out = rasterization_2dgs(
            means, quats, scales, torch.full((n,), 0.9), rgb, view, K, 32, 32, render_mode="RGB+ED", ray_depth=True
        )
        depth, inside = out[0][0, ..., 3], out[1][0, ..., 0] > 0.8
        error = (depth - 3).abs()[inside].mean()
        facing = (1 + out[2][0, ..., 2])[inside].mean()
        optimizer.zero_grad()
        (error + facing).backward()
        optimizer.step()
        errors.append(error.item())
        angles.append(facing.item())
    assert errors[-1] < 0.3 * errors[0] and angles[-1] < 0.6 * angles[0]
