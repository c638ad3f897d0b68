"""The compiled rasterizer against the float64 reference: values, gradients and rules, on ordinary and on hostile inputs."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nsw.kernels import memory, rasterization, rasterization_reference
from nsw.kernels.harmonics import sh_basis
from nsw.kernels.threads import n_threads

LEAVES = ("means", "quats", "scales", "opacities", "colors", "viewmats")


def ball(n=150, width=45, height=37, seed=0, cameras=1, tail=(3,)):
    """Float32 splats in a ball seen from slightly different places; off-centre principal point, tiles cut off."""
    g = torch.Generator().manual_seed(seed)
    viewmats = torch.eye(4).repeat(cameras, 1, 1)
    viewmats[:, :3, 3] = torch.tensor([0.1, -0.05, 2.5]) + 0.3 * torch.rand(cameras, 3, generator=g)
    return {
        "means": torch.rand(n, 3, generator=g) * 2 - 1, "quats": torch.randn(n, 4, generator=g),
        "scales": 0.02 + 0.2 * torch.rand(n, 3, generator=g), "opacities": torch.rand(n, generator=g),
        "colors": torch.rand(n, *tail, generator=g), "viewmats": viewmats,
        "Ks": torch.tensor([[40.0, 0, 20], [0, 42, 21], [0, 0, 1]]).repeat(cameras, 1, 1),
        "width": width, "height": height,
    }  # fmt: skip


def behind_camera(s):
    s["means"][::2, 2] -= 8


def near_plane(s):
    s["means"][:40] = torch.tensor([0.0, 0.0, -2.49]) - s["viewmats"][0, :3, 3] * torch.tensor([1.0, 1.0, 0.0])
    s["means"][:40, 2] = 0.0101 + torch.linspace(0, 0.05, 40) - s["viewmats"][0, 2, 3]
    s["scales"][:40] = 0.001


def huge(s):
    s["scales"][:10] *= 40


def needles(s):
    s["scales"][:, 0], s["scales"][:, 1:] = 0.8, 0.002


def zero_opacity(s):
    s["opacities"][::3] = 0.0


def thousands_in_one_pixel(s):
    s["means"][:140] = torch.tensor([0.1, 0.1, 0.0]) + 0.004 * s["means"][:140]
    s["scales"][:140], s["opacities"][:140] = 0.01, 0.05


def opaque(s):
    s["opacities"] = 0.97 + 0.03 * s["opacities"]


def clamp_region(s):
    s["means"][:60, 0] = 2.5 + s["means"][:60, 0]
    s["scales"][:60] = 0.8


def one_pixel(s):
    s["width"] = s["height"] = 1


def all_culled(s):
    s["means"][:, 2] -= 50


def nothing(s):
    for name in ("means", "quats", "scales", "opacities", "colors"):
        s[name] = s[name][:0]


HOSTILE = (
    behind_camera,
    near_plane,
    huge,
    needles,
    zero_opacity,
    thousands_in_one_pixel,
    opaque,
    clamp_region,
    one_pixel,
    all_culled,
    nothing,
)


def run(function, scene, dtype, loss_on_alpha=True, **options):
    """Draw, pull back a fixed random gradient, and return everything to be compared, in double precision."""
    s = {name: value.to(dtype) if torch.is_tensor(value) else value for name, value in scene.items()}
    for name in LEAVES:
        s[name] = s[name].clone().requires_grad_()
    renders, alphas, meta = function(**s, **options)
    meta["means2d"].retain_grad()
    g = torch.Generator().manual_seed(9)
    weights = [torch.randn(x.shape, generator=g, dtype=torch.float64).to(dtype) for x in (renders, alphas)]
    (renders * weights[0]).sum().add((alphas * weights[1]).sum()).backward()
    out = {"renders": renders, "alphas": alphas, "means2d": meta["means2d"].grad} | {
        name: s[name].grad if s[name].grad is not None else torch.zeros_like(s[name]) for name in LEAVES
    }
    if options.get("absgrad"):
        out["absgrad"] = meta["means2d"].absgrad
    return {name: value.detach().double() for name, value in out.items()}, meta


def agree(ours, truth, tolerance=2e-4, picture_tolerance=2e-5, outliers=0.0):
    """Pictures to an absolute, gradients to a relative tolerance; `outliers` pixels may sit on the 1/255 or the 1e-4 threshold."""
    for name, value in truth.items():
        assert torch.isfinite(ours[name]).all(), name
        assert ours[name].shape == value.shape, name
        if value.numel() == 0:
            continue
        error = (ours[name] - value).abs()
        if name in ("renders", "alphas"):
            assert (error > picture_tolerance * max(1.0, float(value.abs().max()))).double().mean() <= outliers, (
                name,
                float(error.max()),
            )
            assert error.max() < 5e-3 * max(1.0, float(value.abs().max())), name
        else:
            assert error.max() <= tolerance * max(1e-3, float(value.abs().max())), (
                name,
                float(error.max()),
                float(value.abs().max()),
            )


OPTIONS = {
    "plain": {"packed": False},
    "packed depth": {"packed": True, "render_mode": "RGB+D"},
    "antialiased absgrad": {"packed": False, "rasterize_mode": "antialiased", "render_mode": "RGB+ED", "absgrad": True},
    "depth only": {"packed": True, "render_mode": "ED"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_fast_matches_reference(options):
    scene = ball(cameras=2)
    background = torch.tensor([[0.2, 0.9, 0.4], [0.0, 0.1, 1.0]])
    ours, meta = run(rasterization, scene, torch.float32, backgrounds=background, **options)
    truth, expected = run(rasterization_reference, scene, torch.float64, backgrounds=background.double(), **options)
    agree(ours, truth)
    assert torch.equal(meta["radii"], expected["radii"])
    for key in ("tiles_per_gauss", "flatten_ids", "isect_offsets"):
        assert torch.equal(meta[key], expected[key]), key


@pytest.mark.parametrize("spoil", HOSTILE, ids=lambda f: f.__name__)
def test_fast_matches_reference_on_hostile_scenes(spoil):
    scene = ball()
    spoil(scene)
    ours, _ = run(rasterization, scene, torch.float32, packed=False, rasterize_mode="antialiased", absgrad=True)
    truth, _ = run(rasterization_reference, scene, torch.float64, packed=False, rasterize_mode="antialiased", absgrad=True)
    agree(ours, truth, tolerance=5e-3, outliers=0.005)


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
def test_harmonics_match_reference(degree):
    scene = ball(cameras=2, tail=(25, 3))
    scene["colors"] = scene["colors"] * 2 - 1
    ours, _ = run(rasterization, scene, torch.float32, sh_degree=degree, packed=degree % 2 == 0)
    truth, _ = run(rasterization_reference, scene, torch.float64, sh_degree=degree, packed=degree % 2 == 0)
    agree(ours, truth)
    assert not ours["colors"][:, (degree + 1) ** 2 :].any()


def test_harmonics_basis_is_orthonormal():
    g = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(200_000, 3, generator=g, dtype=torch.float64), dim=-1)
    basis = sh_basis(4, directions)
    gram = 4 * torch.pi * basis.T @ basis / len(directions)
    assert (gram - torch.eye(25)).abs().max() < 0.05


@pytest.mark.parametrize(("channels", "chunk"), [(1, 32), (5, 32), (9, 4)])
def test_any_number_of_channels(channels, chunk):
    scene = ball(n=40, tail=(channels,))
    options = {"packed": False, "channel_chunk": chunk, "absgrad": chunk == 32}
    ours, _ = run(rasterization, scene, torch.float32, **options)
    truth, _ = run(rasterization_reference, scene, torch.float64, **options)
    agree(ours, truth)


def test_batches_are_scenes_of_their_own():
    scenes = [ball(n=60, seed=seed, cameras=2) for seed in (0, 1)]
    stacked = {k: torch.stack([s[k] for s in scenes]) if torch.is_tensor(v) else v for k, v in scenes[0].items()}
    for packed in (False, True):
        renders, alphas, meta = rasterization(**stacked, packed=packed)
        assert renders.shape == (2, 2, 37, 45, 3) and meta["isect_offsets"].shape == (2, 2, 3, 3) and meta["n_batches"] == 2
        for b, scene in enumerate(scenes):
            alone, alpha, _ = rasterization(**scene, packed=packed)
            assert torch.equal(renders[b], alone) and torch.equal(alphas[b], alpha)


def test_background_gradient_and_unused_outputs():
    scene = ball(n=30)
    background = torch.rand(1, 3, requires_grad=True)
    renders, alphas, _ = rasterization(**scene, backgrounds=background)
    renders.sum().backward()
    assert torch.allclose(background.grad, (1 - alphas).sum().expand(1, 3), rtol=1e-4)
    scene["means"].requires_grad_()
    rasterization(**scene)[1].sum().backward()  # alpha alone
    assert scene["means"].grad.abs().sum() > 0


def test_repeats_are_bit_equal_also_with_one_thread():
    scene = ball(n=5000, width=70, height=50)
    first, _ = run(rasterization, scene, torch.float32, packed=False)
    again, _ = run(rasterization, scene, torch.float32, packed=False)
    threads = n_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        other, _ = run(rasterization, scene, torch.float32, packed=False)
    finally:
        torch.set_num_threads(threads)
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
        if name != "viewmats":  # torch's own matrix inverse and sums may differ with its threads
            assert torch.equal(value, other[name]), name


def test_a_viewer_may_draw_while_another_thread_trains():
    scene = ball(n=3000, width=64, height=64)
    expected = rasterization(**scene)[0]
    wrong = []

    def draw():
        for _ in range(10):
            if not torch.equal(rasterization(**scene)[0], expected):
                wrong.append(1)

    threads = [threading.Thread(target=draw) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


FINITE = st.floats(-(2.0**99), 2.0**99, width=32)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    numbers=st.lists(FINITE, min_size=14, max_size=14),
    small=st.lists(st.floats(-3, 3, width=32), min_size=14, max_size=14),
    mix=st.integers(0, 2**14 - 1),
)
def test_no_finite_input_makes_a_nan(numbers, small, mix):
    values = [n if mix >> i & 1 else s for i, (n, s) in enumerate(zip(numbers, small, strict=True))]
    row = torch.tensor(values, dtype=torch.float32)
    scene = ball(n=3)
    scene["means"][0], scene["quats"][0], scene["scales"][0] = row[:3], row[3:7], row[7:10].abs()
    scene["opacities"][0], scene["colors"][0] = row[10].abs().clamp(max=1.0), row[11:14].clamp(-1e6, 1e6)
    for mode in ("classic", "antialiased"):
        ours, _ = run(rasterization, scene, torch.float32, packed=False, rasterize_mode=mode)
        for name, value in ours.items():
            assert torch.isfinite(value).all(), (mode, name)


def test_default_strategy_of_gsplat_runs_unchanged():
    from gsplat import DefaultStrategy

    scene = ball(n=120)
    target = rasterization(**ball(n=120, seed=5))[0]
    raw = {"means": scene["means"], "scales": scene["scales"].log(), "quats": scene["quats"],
           "opacities": torch.logit(scene["opacities"].clamp(0.05, 0.95)), "rgb": scene["colors"]}  # fmt: skip
    params = torch.nn.ParameterDict({name: torch.nn.Parameter(value) for name, value in raw.items()})
    optimizers = {name: torch.optim.Adam([{"params": params[name], "lr": 5e-3, "name": name}]) for name in params}
    strategy = DefaultStrategy(refine_start_iter=5, refine_every=10, grow_grad2d=1e-4, absgrad=True)
    strategy.check_sanity(params, optimizers)
    state, losses, counts = strategy.initialize_state(scene_scale=1.0), [], []
    torch.manual_seed(0)
    for step in range(50):
        renders, _, info = rasterization(
            params["means"], params["quats"], params["scales"].exp(), params["opacities"].sigmoid(), params["rgb"],
            scene["viewmats"], scene["Ks"], 45, 37, packed=False, absgrad=True,
        )  # fmt: skip
        strategy.step_pre_backward(params, optimizers, state, step, info)
        loss = (renders - target).abs().mean()
        loss.backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        strategy.step_post_backward(params, optimizers, state, step, info, packed=False)
        losses.append(loss.item())
        counts.append(len(params["means"]))
    assert losses[-1] < 0.8 * losses[0]
    assert counts[-1] != 120


def test_memory_of_arrays_is_used_again_only_after_their_end():
    first = memory.empty((4000, 8))
    first.fill(1.0)
    view, address = first[100:200, 2], first.ctypes.data
    del first
    other = memory.empty((4000, 8))
    other.fill(2.0)
    assert (view == 1.0).all()  # a view keeps the memory
    assert other.ctypes.data != address
    tensor = torch.from_numpy(other)
    del view, other
    assert memory.empty((4000, 8)).ctypes.data == address
    assert (tensor == 2.0).all()
    assert not memory.zeros((4000, 8)).any()
