"""The plain torch rasterizer against a loop over pixels, against finite differences and against gsplat's own torch code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nsw import InputError
from nsw.kernels import rasterization_reference, spherical_harmonics
from nsw.kernels.projection_reference import covariance

D = torch.float64


def make_scene(n=40, width=20, height=14, seed=0, cameras=1, dtype=D, channels=3):
    """Splats in a ball in front of cameras that look at it from different sides, with an off-centre principal point."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=g, dtype=D)

    means = rand(n, 3) * 2 - 1
    quats = rand(n, 4) * 2 - 1
    scales = 0.05 + 0.3 * rand(n, 3)
    opacities = rand(n)
    colors = rand(n, channels)
    viewmats = torch.eye(4, dtype=D).repeat(cameras, 1, 1)
    for c in range(cameras):
        angle = 0.4 * c
        viewmats[c, 0, 0] = viewmats[c, 2, 2] = math.cos(angle)
        viewmats[c, 0, 2], viewmats[c, 2, 0] = math.sin(angle), -math.sin(angle)
        viewmats[c, :3, 3] = torch.tensor([0.1, -0.05, 2.5], dtype=D)
    Ks = torch.tensor([[18.0, 0, 0.45 * width], [0, 19.0, 0.6 * height], [0, 0, 1]], dtype=D).repeat(cameras, 1, 1)
    scene = {
        "means": means,
        "quats": quats,
        "scales": scales,
        "opacities": opacities,
        "colors": colors,
        "viewmats": viewmats,
        "Ks": Ks,
    }
    return {name: value.to(dtype) for name, value in scene.items()} | {"width": width, "height": height}


def naive_picture(scene, background):
    """One pixel, one splat at a time, in Python floats: straight from the formulas of the method card."""
    means, quats, scales, opacities, colors = (
        scene[k].double().numpy() for k in ("means", "quats", "scales", "opacities", "colors")
    )
    view, K = scene["viewmats"][0].double().numpy(), scene["Ks"][0].double().numpy()
    width, height = scene["width"], scene["height"]
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    splats = []
    for mean, (w, x, y, z), s, o, c in zip(means, (q / np.linalg.norm(q) for q in quats), scales, opacities, colors, strict=True):
        R = np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                      [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                      [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]])  # fmt: skip
        p = view[:3, :3] @ mean + view[:3, 3]
        if p[2] < 0.01 or o < 1 / 255:
            continue
        u = np.clip(p[0] / p[2], -(cx / fx + 0.15 * width / fx), (width - cx) / fx + 0.15 * width / fx)
        v = np.clip(p[1] / p[2], -(cy / fy + 0.15 * height / fy), (height - cy) / fy + 0.15 * height / fy)
        J = np.array([[fx / p[2], 0, -fx * u / p[2]], [0, fy / p[2], -fy * v / p[2]]])
        M = J @ view[:3, :3] @ R @ np.diag(s)
        Q = np.linalg.inv(M @ M.T + 0.3 * np.eye(2))
        splats.append((p[2], np.array([fx * p[0] / p[2] + cx, fy * p[1] / p[2] + cy]), Q, o, c))
    splats.sort(key=lambda splat: splat[0])
    picture, alphas = np.zeros((height, width, 3)), np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            T, color = 1.0, np.zeros(3)
            for _, m, Q, o, c in splats:
                delta = m - np.array([j + 0.5, i + 0.5])
                sigma = 0.5 * delta @ Q @ delta
                alpha = min(0.999, o * math.exp(-sigma))
                if sigma < 0 or alpha < 1 / 255:
                    continue
                if T * (1 - alpha) <= 1e-4:
                    break
                color += c * alpha * T
                T *= 1 - alpha
            picture[i, j], alphas[i, j] = color + T * background, 1 - T
    return picture, alphas


@pytest.mark.parametrize(("n", "seed"), [(40, 0), (150, 1)])
def test_reference_matches_a_loop_over_pixels(n, seed):
    scene = make_scene(n, seed=seed)
    if seed == 1:
        scene["opacities"] = 0.9 + 0.1 * scene["opacities"]  # opaque enough for the stop rule to act
    background = np.array([0.2, 0.5, 0.9])
    renders, alphas, _ = rasterization_reference(**scene, backgrounds=torch.tensor(background)[None])
    picture, alpha = naive_picture(scene, background)
    assert np.abs(renders[0].numpy() - picture).max() < 1e-5
    assert np.abs(alphas[0, ..., 0].numpy() - alpha).max() < 1e-5
    assert alpha.max() > 0.5


def test_projection_matches_gsplat_torch():
    from gsplat.cuda._torch_impl import _fully_fused_projection

    for model in ("pinhole", "ortho", "fisheye"):
        scene = make_scene(60, cameras=2)
        scene["opacities"] = torch.ones(60, dtype=D)
        _, _, meta = rasterization_reference(**scene, packed=False, camera_model=model, rasterize_mode="antialiased")
        covars = covariance(scene["quats"], scene["scales"])
        radii, means2d, depths, conics, comp = _fully_fused_projection(
            scene["means"], covars, scene["viewmats"], scene["Ks"], 20, 14, calc_compensations=True, camera_model=model
        )
        seen = (meta["radii"] > 0).all(-1)
        assert seen.sum() > 20
        for ours, theirs in (
            (meta["means2d"], means2d),
            (meta["depths"], depths),
            (meta["conics"], conics),
            (meta["opacities"], comp),
        ):
            assert torch.allclose(ours[seen], theirs[seen], rtol=1e-9, atol=1e-9), model
        # theirs always takes 3.33 sigma, ours what the dimmed opacity reaches
        assert (meta["radii"][seen] <= radii[seen]).all()


def test_spherical_harmonics_match_gsplat_torch():
    from gsplat.cuda._torch_impl import _spherical_harmonics

    g = torch.Generator().manual_seed(0)
    directions, coefficients = torch.randn(50, 3, generator=g, dtype=D), torch.randn(50, 25, 3, generator=g, dtype=D)
    for degree in range(5):
        ours, theirs = (f(degree, directions, coefficients) for f in (spherical_harmonics, _spherical_harmonics))
        assert torch.allclose(ours, theirs, atol=1e-7), degree


@pytest.mark.parametrize("mode", ["classic", "antialiased"])
def test_reference_gradients_match_finite_differences(mode):
    scene = make_scene(5, width=6, height=5, seed=3)
    names = ["means", "quats", "scales", "opacities", "colors", "viewmats"]
    leaves = [scene[name].clone().requires_grad_() for name in names]
    background = torch.tensor([[0.3, 0.6, 0.1]], dtype=D, requires_grad=True)

    def draw(*values):
        renders, alphas, _ = rasterization_reference(
            **(scene | dict(zip(names, values[:-1], strict=True))),
            backgrounds=values[-1], rasterize_mode=mode, render_mode="RGB+ED", packed=mode == "classic",
        )  # fmt: skip
        return renders, alphas

    assert torch.autograd.gradcheck(draw, (*leaves, background), eps=1e-6, atol=1e-5, rtol=1e-4, fast_mode=True)


def test_harmonics_gradients_reach_means_and_cameras():
    scene = make_scene(4, width=5, height=4, seed=2)
    g = torch.Generator().manual_seed(1)
    coefficients = torch.randn(4, 16, 3, generator=g, dtype=D, requires_grad=True)
    means, viewmats = scene["means"].requires_grad_(), scene["viewmats"].requires_grad_()

    def draw(means, coefficients, viewmats):
        changed = scene | {"means": means, "colors": coefficients, "viewmats": viewmats}
        return rasterization_reference(**changed, sh_degree=3)[0]

    assert torch.autograd.gradcheck(draw, (means, coefficients, viewmats), eps=1e-6, atol=1e-5, rtol=1e-4, fast_mode=True)


def test_absgrad_is_the_sum_over_pixels_of_absolute_gradients():
    scene = make_scene(6, width=8, height=6, seed=5)
    weights = torch.randn(1, 6, 8, 3, dtype=D, generator=torch.Generator().manual_seed(0))
    scene["means"] = scene["means"].requires_grad_()
    renders, _, meta = rasterization_reference(**scene, packed=False, absgrad=True)
    meta["means2d"].retain_grad()
    (renders * weights).sum().backward()
    total, absolute = meta["means2d"].grad.clone(), meta["means2d"].absgrad
    assert absolute.shape == total.shape == (1, 6, 2)
    expected = torch.zeros_like(total)
    for pixel in np.ndindex(6, 8):
        renders, _, meta = rasterization_reference(**scene, packed=False)
        (grad,) = torch.autograd.grad((renders * weights)[0][pixel].sum(), meta["means2d"])
        expected += grad.abs()
    assert torch.allclose(absolute, expected, atol=1e-12)
    assert (absolute > total.abs() + 1e-6).any()


def test_meta_has_every_key_and_packed_agrees():
    scene = make_scene(50, width=40, height=33, cameras=3)
    scene["means"][::7, 2] -= 9.0  # behind all cameras
    full = rasterization_reference(**scene, packed=False, render_mode="RGB+D")
    packed = rasterization_reference(**scene, packed=True, render_mode="RGB+D")
    assert torch.allclose(full[0], packed[0], atol=1e-12) and full[0].shape == (3, 33, 40, 4)
    meta, pairs = full[2], packed[2]
    assert meta["batch_ids"] is meta["camera_ids"] is meta["gaussian_ids"] is None
    nnz = int((meta["radii"] > 0).all(-1).sum())
    assert pairs["gaussian_ids"].shape == (nnz,) and pairs["means2d"].shape == (nnz, 2) and nnz < 150
    at = (pairs["camera_ids"], pairs["gaussian_ids"])
    for key in ("radii", "means2d", "depths", "conics", "opacities"):
        assert torch.equal(meta[key][at], pairs[key]), key
    assert (
        meta["radii"].dtype == torch.int32 and meta["isect_ids"].dtype == torch.int64 and meta["flatten_ids"].dtype == torch.int32
    )
    assert meta["isect_offsets"].shape == (3, 3, 3) and meta["tiles_per_gauss"].sum() == len(meta["flatten_ids"])
    assert (meta["isect_ids"].diff() >= 0).all()
    assert {
        "width": 40,
        "height": 33,
        "tile_size": 16,
        "tile_width": 3,
        "tile_height": 3,
        "n_batches": 1,
        "n_cameras": 3,
    }.items() <= dict(meta.items()).items()


def test_refusals_are_sentences():
    scene = make_scene(5)
    with pytest.raises(InputError, match="opacities must be"):
        rasterization_reference(**(scene | {"opacities": scene["opacities"][:3]}))
    with pytest.raises(InputError, match="sh_degree=2 needs 9"):
        rasterization_reference(**(scene | {"colors": torch.zeros(5, 4, 3, dtype=D)}), sh_degree=2)
    with pytest.raises(InputError, match="render_mode"):
        rasterization_reference(**scene, render_mode="depth")
    with pytest.raises(NotImplementedError, match="with_ut"):
        rasterization_reference(**scene, with_ut=True)
