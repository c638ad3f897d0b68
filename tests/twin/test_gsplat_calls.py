"""gsplat's single calls: values and gradients against the float64 references, shapes, rules, and gsplat's own signatures."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nsw import kernels
from nsw.errors import InputError
from nsw.kernels import (
    SelectiveAdam,
    accumulate,
    compute_relocation,
    fully_fused_projection,
    isect_offset_encode,
    isect_tiles,
    proj,
    quat_scale_to_covar_preci,
    rasterization,
    rasterize_to_indices_in_range,
    rasterize_to_pixels,
    spherical_harmonics,
    world_to_cam,
)
from nsw.kernels.engines import forced
from nsw.kernels.visible_adam import adam, adam_reference

CALLS = (
    "rasterization",
    "spherical_harmonics",
    "fully_fused_projection",
    "world_to_cam",
    "proj",
    "quat_scale_to_covar_preci",
    "isect_tiles",
    "isect_offset_encode",
    "rasterize_to_pixels",
    "rasterize_to_indices_in_range",
    "accumulate",
    "SelectiveAdam",
    "rasterization_2dgs",
    "fully_fused_projection_2dgs",
    "rasterize_to_pixels_2dgs",
    "rasterize_to_indices_in_range_2dgs",
    "accumulate_2dgs",
)
WIDTH, HEIGHT = 45, 37


def splats(n=60, seed=0, cameras=2, batch=(), dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    viewmats = torch.eye(4).repeat(*batch, cameras, 1, 1)
    viewmats[..., :3, 3] = torch.tensor([0.1, -0.05, 2.5]) + 0.3 * torch.rand(*batch, cameras, 3, generator=g)
    Ks = torch.tensor([[40.0, 0, 20], [0, 42, 21], [0, 0, 1]]).repeat(*batch, cameras, 1, 1)
    made = {
        "means": torch.rand(*batch, n, 3, generator=g) * 2 - 1, "quats": torch.randn(*batch, n, 4, generator=g),
        "scales": 0.02 + 0.2 * torch.rand(*batch, n, 3, generator=g), "opacities": torch.rand(*batch, n, generator=g),
        "viewmats": viewmats, "Ks": Ks,
    }  # fmt: skip
    return {name: value.to(dtype) for name, value in made.items()}


def projected(s, **options):
    return fully_fused_projection(
        s["means"], None, s["quats"], s["scales"], s["viewmats"], s["Ks"], WIDTH, HEIGHT, opacities=s["opacities"], **options
    )


def rows(n=70, seed=1, images=(2,), channels=5, dtype=torch.float32):
    """Projected splats and their lists: what `rasterize_to_pixels` takes."""
    g = torch.Generator().manual_seed(seed)
    factor = torch.randn(*images, n, 2, 2, generator=g)
    conics = factor @ factor.transpose(-1, -2) * 0.05 + 0.02 * torch.eye(2)
    made = {
        "means2d": torch.rand(*images, n, 2, generator=g) * torch.tensor([WIDTH + 8.0, HEIGHT + 8.0]) - 4,
        "conics": torch.stack([conics[..., 0, 0], conics[..., 0, 1], conics[..., 1, 1]], dim=-1),
        "colors": torch.rand(*images, n, channels, generator=g), "opacities": torch.rand(*images, n, generator=g),
    }  # fmt: skip
    radii = torch.randint(1, 12, (*images, n, 2), generator=g, dtype=torch.int32)
    _, isect_ids, flatten_ids = isect_tiles(made["means2d"], radii, torch.rand(*images, n, generator=g), 16, 3, 3)
    offsets = isect_offset_encode(isect_ids, math.prod(images), 3, 3).view(images + (3, 3))
    return {name: value.to(dtype) for name, value in made.items()}, (WIDTH, HEIGHT, 16, offsets, flatten_ids)


def close(a, b, tolerance):
    assert torch.isfinite(a).all()
    assert (a.double() - b.double()).abs().max() <= tolerance * max(1.0, float(b.abs().max()))


# --- signatures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
def test_same_arguments_and_defaults_as_gsplat(name):
    gsplat = pytest.importorskip("gsplat")
    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (kernels, gsplat))
    assert list(ours)[: len(theirs)] == list(theirs)
    for key, parameter in theirs.items():
        default = ours[key].default
        if key == "rolling_shutter":  # an enumeration of gsplat's: GLOBAL, which is what None stands for here
            assert parameter.default.name == "GLOBAL" and default is None
        else:
            assert default == parameter.default and ours[key].kind == parameter.kind, key
    for key in list(ours)[len(theirs) :]:  # what goes beyond gsplat is said by name and changes nothing by default
        assert ours[key].kind == inspect.Parameter.KEYWORD_ONLY


def test_same_arguments_of_calls_that_gsplat_keeps_inside():
    wrapper, relocation = pytest.importorskip("gsplat.cuda._wrapper"), pytest.importorskip("gsplat.relocation")
    for name, module in (("adam", wrapper), ("compute_relocation", relocation)):
        assert list(inspect.signature(getattr(kernels, name)).parameters) == list(
            inspect.signature(getattr(module, name)).parameters
        )


# --- projection -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("lens", ["pinhole", "ortho", "fisheye"])
def test_projection_is_the_one_of_rasterization(packed, lens):
    s = splats(dtype=torch.float32)
    if lens == "ortho":
        s["Ks"][..., :2, :2] *= 0.4
    out = projected(s, packed=packed, camera_model=lens, calc_compensations=True)
    _, _, meta = rasterization(**s, colors=torch.ones(60, 1), width=WIDTH, height=HEIGHT, packed=packed, camera_model=lens,
                               rasterize_mode="antialiased")  # fmt: skip
    names = ("batch_ids", "camera_ids", "gaussian_ids") * packed + ("radii", "means2d", "depths", "conics")
    for name, value in zip(names, out[:-1], strict=True):
        assert torch.equal(value, meta[name]), name
    opacities = s["opacities"].expand(2, -1)[out[1], out[2]] if packed else s["opacities"]
    assert torch.allclose(opacities * out[-1], meta["opacities"])


def test_projection_in_batches_and_without_compensation():
    s = splats(batch=(3,), dtype=torch.float32)
    radii, means2d, depths, conics, compensations = projected(s)
    assert radii.shape == (3, 2, 60, 2) and means2d.shape == (3, 2, 60, 2) and conics.shape == (3, 2, 60, 3)
    assert compensations is None and radii.dtype == torch.int32
    alone = projected({name: value[1] for name, value in s.items()})
    assert torch.equal(radii[1], alone[0]) and torch.equal(depths[1], alone[2])


def test_without_opacities_the_box_is_3_33_deviations():
    s = splats(n=1)
    s["means"], s["scales"] = torch.zeros(1, 3).double(), torch.full((1, 3), 0.2).double()
    radii, _, _, conics, _ = fully_fused_projection(
        s["means"], None, s["quats"], s["scales"], s["viewmats"], s["Ks"], WIDTH, HEIGHT
    )
    a, b, c = conics[0, 0]
    assert radii[0, 0].tolist() == [math.ceil(3.33 * math.sqrt(v / (a * c - b * b))) for v in (c, a)]


def test_covariances_may_replace_quats_and_scales():
    s = splats()
    covars, _ = quat_scale_to_covar_preci(s["quats"], s["scales"], triu=True, compute_preci=False)
    ours = fully_fused_projection(s["means"], covars, None, None, s["viewmats"], s["Ks"], WIDTH, HEIGHT, opacities=s["opacities"])
    for a, b in zip(ours[:-1], projected(s)[:-1], strict=True):
        assert torch.allclose(a, b)


def test_sparse_gradients_are_the_dense_ones():
    s = splats(n=40)
    results = []
    for sparse in (True, False):
        leaves = {name: s[name].clone().requires_grad_() for name in ("means", "quats", "scales", "viewmats")}
        out = projected(s | leaves, packed=True, sparse_grad=sparse, calc_compensations=True)
        sum((x * x).sum() for x in out[4:]).backward()
        results.append({name: leaf.grad for name, leaf in leaves.items()})
    assert results[0]["means"].is_sparse and results[0]["quats"].is_sparse and not results[0]["viewmats"].is_sparse
    for name, dense in results[1].items():
        assert torch.allclose(results[0][name].to_dense(), dense), name
    for options in ({"packed": False}, {"packed": True, "batch": (1,)}):
        batch = options.pop("batch", ())
        with pytest.raises(InputError, match="sparse_grad"):
            projected(splats(batch=batch), sparse_grad=True, **options)


@pytest.mark.parametrize("degree", [None, 1])
def test_sparse_gradients_of_rasterization(degree):
    s, results = splats(n=40, dtype=torch.float32), []
    s["means"][:10, 2] -= 9  # behind the cameras: in no sparse gradient
    s["colors"] = torch.rand((40, 3) if degree is None else (40, 4, 3), generator=torch.Generator().manual_seed(0))
    for sparse in (True, False):
        leaves = {name: s[name].clone().requires_grad_() for name in ("means", "quats", "scales", "opacities", "colors")}
        renders, _, _ = rasterization(**(s | leaves), width=WIDTH, height=HEIGHT, sh_degree=degree, packed=True, sparse_grad=sparse)
        renders.square().sum().backward()
        results.append({name: leaf.grad for name, leaf in leaves.items()})
    assert results[0]["quats"].is_sparse and results[0]["scales"].is_sparse and not results[0]["colors"].is_sparse
    assert results[0]["quats"].coalesce().indices().min() >= 10
    for name, dense in results[1].items():
        assert torch.allclose(results[0][name].to_dense(), dense, rtol=1e-3, atol=1e-3 * float(dense.abs().max())), name
    for wrong in ({"packed": False}, {"packed": True, "batched": True}):
        made = splats(batch=(1,)) if wrong.pop("batched", False) else splats()
        with pytest.raises(InputError, match="sparse_grad"):
            rasterization(**made, colors=torch.ones(made["means"].shape).double(), width=8, height=8, sparse_grad=True, **wrong)


def test_three_steps_make_the_fused_one():
    s = splats()
    covars, precis = quat_scale_to_covar_preci(s["quats"], s["scales"])
    assert torch.allclose(covars @ precis, torch.eye(3).double().expand(60, 3, 3), atol=1e-9)
    means_cam, covars_cam = world_to_cam(s["means"], covars, s["viewmats"])
    means2d, covars2d = proj(means_cam, covars_cam, s["Ks"], WIDTH, HEIGHT)
    radii, fused, depths, conics, compensations = projected(s, calc_compensations=True)
    seen = (radii > 0).all(-1)
    wide = covars2d + 0.3 * torch.eye(2).double()
    a, b, c = conics[seen].unbind(-1)
    inverse = torch.stack([torch.stack([a, b], -1), torch.stack([b, c], -1)], -1)
    assert torch.allclose(fused[seen], means2d[seen]) and torch.allclose(depths[seen], means_cam[..., 2][seen])
    assert torch.allclose(inverse @ wide[seen], torch.eye(2).double().expand(len(inverse), 2, 2))
    ratio = torch.linalg.det(covars2d) / torch.linalg.det(wide)
    assert torch.allclose(compensations[seen] ** 2, ratio[seen], atol=1e-9)


def test_gradients_of_the_small_calls():
    s = splats(n=3, cameras=1)
    pair = (s["quats"].requires_grad_(), s["scales"].requires_grad_())
    for triu in (False, True):
        assert torch.autograd.gradcheck(lambda q, x, triu=triu: quat_scale_to_covar_preci(q, x, triu=triu), pair)
    covars = quat_scale_to_covar_preci(*(t.detach() for t in pair))[0].requires_grad_()
    inputs = (s["means"].requires_grad_(), covars, s["viewmats"].requires_grad_())
    assert torch.autograd.gradcheck(world_to_cam, inputs)
    cam = [t.detach().requires_grad_() for t in world_to_cam(*inputs)]
    for lens in ("pinhole", "ortho", "fisheye"):
        assert torch.autograd.gradcheck(lambda m, v, lens=lens: proj(m, v, s["Ks"], WIDTH, HEIGHT, lens), cam)
    directions, coefficients = torch.randn(4, 3).double().requires_grad_(), torch.randn(4, 25, 3).double().requires_grad_()
    masks = torch.tensor([True, True, False, True])
    assert torch.autograd.gradcheck(lambda d, h: spherical_harmonics(4, d, h, masks), (directions, coefficients))


def test_code_that_catches_an_assertion_of_gsplats_catches_it_here_too():
    s = splats()
    for wrong in (
        lambda: projected(s | {"means": s["means"][:5]}),
        lambda: spherical_harmonics(2, torch.ones(1, 3), torch.ones(1, 4, 3)),
        lambda: rasterization(**s, colors=torch.ones(60, 1), width=9, height=9, render_mode="N"),
    ):
        for kind in (AssertionError, ValueError, InputError):
            with pytest.raises(kind):
                wrong()


def test_wrong_shapes_are_said():
    s = splats()
    with pytest.raises(InputError, match="quats"):
        projected(s | {"quats": s["quats"][:5]})
    with pytest.raises(InputError, match="opacities"):
        projected(s | {"opacities": s["opacities"][:5]})
    with pytest.raises(InputError, match="camera_model"):
        projected(s, camera_model="ftheta")
    with pytest.raises(InputError, match="image_ids is required"):
        isect_tiles(torch.zeros(1, 2), torch.ones(1, 2).int(), torch.ones(1), 16, 1, 1, packed=True)
    values, (w, h, size, offsets, ids) = rows()
    with pytest.raises(InputError, match="do not cover"):
        rasterize_to_pixels(**values, image_width=w + 16, image_height=h, tile_size=size, isect_offsets=offsets, flatten_ids=ids)
    with pytest.raises(InputError, match="color channels"):
        rasterize_to_pixels(*(v[..., :0] if n == "colors" else v for n, v in values.items()), w, h, size, offsets, ids)


# --- lists ------------------------------------------------------------------------------------------------------------------


def test_lists_sorted_unsorted_packed_and_segmented_agree():
    s = splats(dtype=torch.float32)
    radii, means2d, depths, _, _ = projected(s)
    _, camera_ids, gaussian_ids, *packed = projected(s, packed=True)
    counts, isect_ids, flatten_ids = isect_tiles(means2d, radii, depths, 16, 3, 3)
    assert counts.shape == (2, 60) and counts.sum() == len(isect_ids) and (isect_ids[1:] >= isect_ids[:-1]).all()
    _, loose, loose_ids = isect_tiles(means2d, radii, depths, 16, 3, 3, sort=False)
    assert (loose_ids[1:] >= loose_ids[:-1]).all() and torch.equal(loose.sort(stable=True)[0], isect_ids)
    few = isect_tiles(packed[1], packed[0], packed[2], 16, 3, 3, packed=True, n_images=2, image_ids=camera_ids,
                      gaussian_ids=gaussian_ids, segmented=True)  # fmt: skip
    assert torch.equal(few[1], isect_ids)
    assert torch.equal(camera_ids[few[2].long()] * 60 + gaussian_ids[few[2].long()], flatten_ids.long())
    offsets = isect_offset_encode(isect_ids, 2, 3, 3)
    tiles, image_of = (isect_ids >> 32) & 15, isect_ids >> 36
    for image in range(2):
        for tile in range(9):
            before = (image_of < image) | ((image_of == image) & (tiles < tile))
            assert offsets[image, tile // 3, tile % 3] == before.sum()
    depth_of = depths.flatten()[flatten_ids.long()]
    same = (isect_ids[1:] >> 32) == (isect_ids[:-1] >> 32)
    assert (depth_of[1:] >= depth_of[:-1])[same].all()


def test_given_lists_make_the_picture_of_rasterization():
    s, colors = splats(dtype=torch.float32), torch.rand(60, 3)
    expected, alpha, meta = rasterization(**s, colors=colors, width=WIDTH, height=HEIGHT, packed=False)
    lists = (WIDTH, HEIGHT, 16, meta["isect_offsets"], meta["flatten_ids"])
    renders, alphas = rasterize_to_pixels(meta["means2d"], meta["conics"], colors.expand(2, -1, -1), meta["opacities"], *lists)
    assert torch.allclose(renders, expected, atol=1e-6) and torch.allclose(alphas, alpha, atol=1e-6)
    _, _, few = rasterization(**s, colors=colors, width=WIDTH, height=HEIGHT, packed=True)
    lists = (WIDTH, HEIGHT, 16, few["isect_offsets"], few["flatten_ids"])
    packed = rasterize_to_pixels(few["means2d"], few["conics"], colors[few["gaussian_ids"]], few["opacities"], *lists, packed=True)
    assert torch.allclose(packed[0], expected, atol=1e-6) and torch.allclose(packed[1], alpha, atol=1e-6)


def composite(values, lists, dtype, masks=None, **options):
    leaves = {name: value.to(dtype).clone().requires_grad_() for name, value in values.items()}
    g = torch.Generator().manual_seed(3)
    behind = torch.rand(2, values["colors"].shape[-1], generator=g).to(dtype).requires_grad_()
    renders, alphas = rasterize_to_pixels(*leaves.values(), *lists, backgrounds=behind, masks=masks, absgrad=True, **options)
    weights = [torch.randn(x.shape, generator=g) for x in (renders, alphas)]
    (renders * weights[0].to(dtype)).sum().add((alphas * weights[1].to(dtype)).sum()).backward()
    grads = {name: leaf.grad for name, leaf in leaves.items()} | {"behind": behind.grad, "absgrad": leaves["means2d"].absgrad}
    return renders.detach(), alphas.detach(), grads


@pytest.mark.parametrize("channels", [1, 3, 9])
def test_compiled_lists_match_reference(channels):
    values, lists = rows(channels=channels)
    ours, truth = (composite(values, lists, dtype) for dtype in (torch.float32, torch.float64))
    close(ours[0], truth[0], 2e-5)
    close(ours[1], truth[1], 2e-5)
    for name, grad in truth[2].items():
        close(ours[2][name], grad, 1e-4)


def test_the_caller_decides_what_is_in_a_list():
    values, (w, h, size, offsets, ids) = rows()
    order = torch.cat([part.flip(0) for part in torch.tensor_split(ids, offsets.flatten()[1:].long())])  # back to front
    ours, truth = (composite(values, (w, h, size, offsets, order), dtype) for dtype in (torch.float32, torch.float64))
    close(ours[0], truth[0], 2e-5)
    assert (ours[0] - composite(values, (w, h, size, offsets, ids), torch.float32)[0]).abs().max() > 0.1
    masks = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.4
    ours, truth = (composite(values, (w, h, size, offsets, ids), d, masks=masks) for d in (torch.float32, torch.float64))
    close(ours[0], truth[0], 2e-5)
    for name, grad in truth[2].items():
        close(ours[2][name], grad, 1e-4)
    shut = ~masks.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :h, :w]
    assert (ours[1][..., 0][shut] == 0).all() and (ours[1][..., 0][~shut] > 0).any()


def test_larger_grids_and_other_tiles_run_in_plain_torch():
    values, (w, h, _, _, _) = rows()
    pictures = []
    for size, across, down in ((16, 3, 3), (8, 6, 5), (16, 4, 5)):
        radii = torch.full((2, 70, 2), 1000, dtype=torch.int32)
        _, isect_ids, ids = isect_tiles(values["means2d"], radii, torch.arange(140.0).view(2, 70), size, across, down)
        offsets = isect_offset_encode(isect_ids, 2, across, down)
        pictures.append(rasterize_to_pixels(*values.values(), w, h, size, offsets, ids)[0])
    assert torch.allclose(pictures[0], pictures[1], atol=1e-5) and torch.allclose(pictures[0], pictures[2], atol=1e-5)


def test_compositing_gradcheck():
    values, _ = rows(n=4, images=(1,), channels=2, dtype=torch.float64)
    values["means2d"] = values["means2d"] % 4 + 2
    ids, offsets = torch.arange(4, dtype=torch.int32), torch.zeros(1, 1, 1, dtype=torch.int32)
    inputs = tuple(value.requires_grad_() for value in values.values())
    assert torch.autograd.gradcheck(lambda *x: rasterize_to_pixels(*x, 8, 6, 16, offsets, ids), inputs)


def test_indices_and_accumulate_make_the_same_picture():
    values, lists = rows(dtype=torch.float64)
    renders, alphas = rasterize_to_pixels(*values.values(), *lists)
    geometry = (values["means2d"], values["conics"], values["opacities"])
    light = torch.ones(2, HEIGHT, WIDTH).double()
    ids = rasterize_to_indices_in_range(0, 10**10, light, *geometry, *lists)
    assert all(x.dtype == torch.int64 for x in ids) and ids[0].max() < 70 and (ids[2].diff() >= 0).all()
    again, opaque = accumulate(*geometry, values["colors"], *ids, WIDTH, HEIGHT)
    assert torch.allclose(again, renders) and torch.allclose(opaque, alphas)


def test_indices_come_in_ranges():
    g = torch.Generator().manual_seed(0)
    n = 40
    means2d, conics = torch.rand(1, n, 2, generator=g) * 8, torch.tensor([0.05, 0.0, 0.05]).expand(1, n, 3)
    opacities, colors = torch.full((1, n), 0.3), torch.rand(1, n, 3, generator=g)
    counts, isect_ids, ids = isect_tiles(means2d, torch.full((1, n, 2), 9).int(), torch.rand(1, n, generator=g), 4, 2, 2)
    lists = (8, 8, 4, isect_offset_encode(isect_ids, 1, 2, 2), ids)
    expected, _ = rasterize_to_pixels(means2d, conics, colors, opacities, *lists)
    picture, alpha = torch.zeros(1, 8, 8, 3), torch.zeros(1, 8, 8, 1)
    for step in range(3):  # 16 entries a batch
        light = 1 - alpha[..., 0]
        found = rasterize_to_indices_in_range(step, step + 1, light, means2d, conics, opacities, *lists)
        colour, more = accumulate(means2d, conics, opacities, colors, *found, 8, 8)
        picture, alpha = picture + colour * light[..., None], alpha + more * light[..., None]
    assert torch.allclose(picture, expected, atol=1e-5)


# --- MCMC and Adam ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("o", "n", "new", "shrink"), [(0.5, 2, 0.292893, 0.952152), (0.95, 2, 0.776393, 0.843281),
                         (0.95, 4, 0.527129, 0.772804), (0.1, 2, 0.051317, 0.992346), (0.99, 10, 0.369043, 0.667350),
                         (0.99, 50, 0.087989, 0.642245)])  # fmt: skip
def test_relocation_golden_values(o, n, new, shrink):
    binoms = torch.tensor([[float(math.comb(i, k)) for k in range(51)] for i in range(51)])
    opacities, scales = compute_relocation(torch.tensor([o]), torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([n]), binoms)
    assert opacities.item() == pytest.approx(new, abs=1e-5)
    assert torch.allclose(scales, shrink * torch.tensor([[1.0, 2.0, 3.0]]), atol=2e-5)


def test_relocation_clamps_ratios_in_place_and_stays_finite():
    binoms = torch.tensor([[float(math.comb(i, k)) for k in range(51)] for i in range(51)])
    ratios = torch.tensor([0, 900, 1, 51])
    opacities, scales = compute_relocation(torch.tensor([0.3, 0.0, 1.0, 1.0]), torch.ones(4, 3), ratios, binoms)
    assert ratios.tolist() == [1, 51, 1, 51]
    assert opacities[0].item() == pytest.approx(0.3) and torch.isfinite(opacities).all() and torch.isfinite(scales).all()
    assert torch.equal(scales[1], torch.ones(3))


def test_adam_moves_visible_rows_only():
    g = torch.Generator().manual_seed(0)
    tensors = [torch.randn(9000, 3, generator=g) for _ in range(2)] + [torch.rand(9000, 3, generator=g) for _ in range(2)]
    ours, truth = [t.clone() for t in tensors], [t.double() for t in tensors]
    seen = torch.rand(9000, generator=g) > 0.5
    adam(*ours, seen, 0.01, 0.9, 0.999, 1e-8)
    adam_reference(*truth, seen, 0.01, 0.9, 0.999, 1e-8)
    for a, b, before in zip(ours, truth, tensors, strict=True):
        assert torch.allclose(a.double(), b, rtol=1e-5, atol=1e-6) and torch.equal(a[~seen], before[~seen])


def test_selective_adam_takes_groups_of_one():
    x = torch.nn.Parameter(torch.ones(4, 2))
    optimizer = SelectiveAdam([{"params": [x], "lr": 0.1}], eps=1e-15, betas=(0.9, 0.999))
    (x**2).sum().backward()
    optimizer.step(torch.tensor([True, False, True, False]))
    assert torch.allclose(x[0], torch.tensor([1 - 0.1 * 0.1 / math.sqrt(0.001)] * 2), atol=1e-5) and torch.equal(
        x[1], torch.ones(2)
    )
    y = torch.nn.Parameter(torch.ones(4))
    y.grad = torch.ones(4)
    with pytest.raises(InputError, match="one tensor a group"):
        SelectiveAdam([x, y], eps=1e-8, betas=(0.9, 0.999)).step(torch.ones(4, dtype=torch.bool))


# --- hostile input ----------------------------------------------------------------------------------------------------------

FINITE = st.floats(-(2.0**60), 2.0**60, width=32)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(row=st.lists(FINITE, min_size=9, max_size=9), reference=st.booleans())
def test_no_finite_row_makes_a_nan(row, reference):
    values, lists = rows(n=6, images=(1,), channels=3)
    numbers = torch.tensor(row)
    values["means2d"][0, 0], values["conics"][0, 0], values["opacities"][0, 0] = numbers[:2], numbers[2:5], numbers[5]
    values["colors"][0, 0] = numbers[6:].clamp(-1e6, 1e6)
    ids, offsets = torch.arange(6, dtype=torch.int32), torch.zeros(1, 3, 3, dtype=torch.int32)
    leaves = [value.to(torch.float64 if reference else torch.float32).clone().requires_grad_() for value in values.values()]
    with forced("reference" if reference else "auto"):
        renders, alphas = rasterize_to_pixels(*leaves, *lists[:3], offsets, ids)
    (renders.sum() + alphas.sum()).backward()
    assert torch.isfinite(renders).all() and torch.isfinite(alphas).all()
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)


@pytest.mark.parametrize("n", [0, 1])
def test_empty_scene_and_one_pixel(n):
    values, _ = rows(n=n, images=(1,), channels=3)
    leaves = [value.clone().requires_grad_() for value in values.values()]
    offsets = torch.zeros(1, 1, 1, dtype=torch.int32)
    renders, alphas = rasterize_to_pixels(*leaves, 1, 1, 16, offsets, torch.arange(n, dtype=torch.int32))
    renders.sum().backward()
    assert renders.shape == (1, 1, 1, 3) and leaves[0].grad.shape == (1, n, 2)
    s = splats(n=n, dtype=torch.float32)
    assert projected(s)[0].shape == (2, n, 2) and projected(s, packed=True)[0].shape[0] <= 2 * n
