"""On a CUDA GPU: what the wrappers cost over raw gsplat and nerfacc, and steps a second beside a loop of gsplat's own calls.

The reference loop does what gsplat's simple trainer does in a step (one picture, `rasterization`, L1 and SSIM, its
`DefaultStrategy`, one Adam for each parameter), with all pictures on the GPU beforehand. Both loops use the same SSIM.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from nsw.cameras import camera_rays, orbit
from nsw.losses import loss_l1, loss_ssim
from nsw.methods import gaussian_splatting as gs
from nsw.methods.density_control import DensityControl
from nsw.models.gaussians import Gaussians
from nsw.models.hash_grid import HashGrid, HashGridSettings
from nsw.renderers.splats import render_view
from nsw.renderers.volume import render_rays
from nsw.scenes.scene import Scene

BOX = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)
GPU = torch.device("cuda")


def in_turns(calls: dict[str, Callable[[], object]], rounds: int = 40) -> dict[str, float]:
    """Return the median milliseconds of each call, GPU work included, the calls taking turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for k in range(rounds + 5):
        for name, call in calls.items():
            torch.cuda.synchronize()
            began = time.perf_counter()
            call()
            torch.cuda.synchronize()
            if k >= 5:
                times[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(some) for name, some in times.items()}


def splats(n: int) -> Gaussians:
    """Return n splats in the box, about as large as gaps between them."""
    generator = torch.Generator().manual_seed(0)
    return Gaussians.random(torch.tensor(BOX).reshape(2, 3), n, generator, sh_degree=3).to(GPU)


def splat_overhead(n: int, size: int) -> dict[str, float]:
    """One picture forward and backward: gsplat's call alone, and through `render_view`."""
    import gsplat

    model, camera = splats(n), orbit(1, 3.0, width=size, height=size).to(GPU)

    def backward(rgb) -> None:
        rgb.square().mean().backward()
        model.zero_grad(set_to_none=True)

    def raw() -> None:
        p = model.params
        rgb, _, meta = gsplat.rasterization(
            p["means"], p["quats"], p["scales"].exp(), p["opacities"].sigmoid(), torch.cat([p["sh0"], p["shN"]], 1),
            camera.cam_from_world, camera.Ks, size, size, sh_degree=3, packed=False, backgrounds=torch.ones(1, 3, device=GPU),
        )  # fmt: skip
        meta["means2d"].retain_grad()
        backward(rgb)

    return in_turns({"raw": raw, "nsw": lambda: backward(render_view(model, camera, depth=False).rgb)})


def volume_overhead(n_rays: int) -> dict[str, float]:
    """A batch of rays forward and backward through one field: nerfacc's sampling and rendering, and `render_rays`."""
    import nerfacc

    torch.manual_seed(0)
    field = HashGrid(HashGridSettings(BOX, n_levels=8, n_features=2, log2_entries=17, n_max=512)).to(GPU)
    grid = nerfacc.OccGridEstimator(torch.tensor(BOX), 64).to(GPU)
    grid.update_every_n_steps(0, lambda points: (points.norm(dim=-1) < 0.8).float())
    rays = camera_rays(orbit(1, 3.0, width=256, height=256)).to(GPU)[:: 65_536 // n_rays]
    step = 2 * 3**0.5 / 512

    def at(t_starts, t_ends, ray_indices) -> tuple[torch.Tensor, torch.Tensor]:
        d = rays.directions[ray_indices]
        return rays.origins[ray_indices] + 0.5 * (t_starts + t_ends)[:, None] * d, d

    def colour(*sample) -> tuple[torch.Tensor, torch.Tensor]:
        density, rgb, _ = field.query(*at(*sample))
        return rgb, density

    def raw() -> None:
        density = lambda *sample: field.density(at(*sample)[0])  # noqa: E731
        index, t0, t1 = grid.sampling(rays.origins, rays.directions, sigma_fn=density, render_step_size=step)
        rgb, alpha, _, _ = nerfacc.rendering(t0, t1, index, len(rays), colour, render_bkgd=torch.ones(3, device=GPU))
        (rgb.square().mean() + alpha.mean()).backward()
        field.zero_grad(set_to_none=True)

    def ours() -> None:
        out = render_rays(field, rays, occupancy=grid, step=step, early_stop=1e-4)
        (out.rgb.square().mean() + out.alpha.mean()).backward()
        field.zero_grad(set_to_none=True)

    return in_turns({"raw": raw, "nsw": ours})


def white_scene(n_views: int, size: int) -> Scene:
    """Return pictures of a hundred thousand small splats, to be learned again."""
    cameras = orbit(n_views, 3.0, width=size, height=size)
    with torch.no_grad():
        shots = [render_view(splats(20_000), cameras[i : i + 1].to(GPU)).rgb.cpu() for i in range(n_views)]
    images = (torch.cat(shots) * 255).byte()
    split = {"train": torch.arange(n_views - 2), "test": torch.arange(n_views - 2, n_views)}
    return Scene("balls", images, cameras, split, torch.tensor(BOX).reshape(2, 3), 1.0, 5.0)


def reference_steps(scene: Scene, n_start: int, n_steps: int) -> tuple[float, int]:
    """Return steps a second and final splats of a loop of gsplat's calls."""
    import gsplat

    params = torch.nn.ParameterDict({name: torch.nn.Parameter(p.detach().clone()) for name, p in splats(n_start).params.items()})
    rates = gs.LearningRates().at(0, n_steps, scene.scale)
    adams = {name: torch.optim.Adam([{"params": params[name], "lr": rates[name], "name": name}], eps=1e-15) for name in params}
    fall = torch.optim.lr_scheduler.ExponentialLR(adams["means"], gamma=0.01 ** (1.0 / n_steps))
    strategy = gsplat.DefaultStrategy(refine_start_iter=200, refine_stop_iter=n_steps // 2, refine_every=100, reset_every=10**6)
    state = strategy.initialize_state(scene_scale=scene.scale)
    frames = scene.splits["train"]
    pictures, cameras = scene.pixels("train").to(GPU), scene.cameras[frames].to(GPU)
    began = 0.0
    for step in range(n_steps):
        if step == 20:
            torch.cuda.synchronize()
            began = time.perf_counter()
        k = int(gs.frames_at(step, len(frames)))
        rgb, _, meta = gsplat.rasterization(
            params["means"], params["quats"], params["scales"].exp(), params["opacities"].sigmoid(),
            torch.cat([params["sh0"], params["shN"]], 1), cameras.cam_from_world[k : k + 1], cameras.Ks[k : k + 1],
            cameras.width, cameras.height, sh_degree=gs.sh_degree_at(step, n_steps), packed=False,
            backgrounds=torch.ones(1, 3, device=GPU),
        )  # fmt: skip
        strategy.step_pre_backward(params, adams, state, step, meta)
        loss = 0.8 * loss_l1(rgb, pictures[k : k + 1]) + 0.2 * loss_ssim(rgb, pictures[k : k + 1])
        loss.backward()
        for adam in adams.values():
            adam.step()
            adam.zero_grad(set_to_none=True)
        fall.step()
        strategy.step_post_backward(params, adams, state, step, meta, packed=False)
    torch.cuda.synchronize()
    return (n_steps - 20) / (time.perf_counter() - began), len(params["means"])


def our_steps(scene: Scene, n_start: int, n_steps: int) -> tuple[float, int]:
    """Return steps a second and final splats of `gaussian_splatting.fit` with the same schedule."""
    control = DensityControl(start=200, stop=n_steps // 2, every=100, reset_every=0)
    training = gs.Training(splats(n_start), scene.scale, n_steps, rates=gs.LearningRates(), control=control)
    gs.fit(training, scene, range(20))
    torch.cuda.synchronize()
    began = time.perf_counter()
    gs.fit(training, scene, range(20, n_steps))
    torch.cuda.synchronize()
    return (n_steps - 20) / (time.perf_counter() - began), len(training.gaussians)


def page(n_steps: int) -> str:
    """Return the measurements as Markdown."""
    import gsplat
    import nerfacc

    card, today = torch.cuda.get_device_name(), datetime.date.today().isoformat()
    versions = f"torch {torch.__version__}, gsplat {gsplat.__version__}, nerfacc {nerfacc.__version__}"
    lines = [f"# On a GPU, {today}", "", f"{card}; {versions}. Medians of 40, in turns in one run, forward with backward.", ""]
    lines += ["| what | library alone, ms | through nsw, ms | nsw / library |", "|---|---|---|---|"]
    sizes = ((50_000, 512), (200_000, 800), (1_000_000, 1600))
    rows = {f"splats: {n}, {size}x{size}": splat_overhead(n, size) for n, size in sizes}
    rows |= {f"volume: hash grid, {n} rays": volume_overhead(n) for n in (4096, 32_768)}
    for name, ms in rows.items():
        lines.append(f"| {name} | {ms['raw']:.2f} | {ms['nsw']:.2f} | {ms['nsw'] / ms['raw']:.3f} |")
    lines += ["", f"Training on {n_steps} steps at equal settings, 800x800, with density control until half of them:", ""]
    lines += ["| from | loop | steps a second | splats at the end |", "|---|---|---|---|"]
    scene = white_scene(30, 800)
    for n in (20_000, 200_000):
        for name, loop in (("gsplat's calls", reference_steps), ("nsw", our_steps)):
            rate, n_end = loop(scene, n, n_steps)
            lines.append(f"| {n} | {name} | {rate:.1f} | {n_end} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("Skipped: torch finds no CUDA GPU here.")
        return 0
    text = page(n_steps=arguments.steps)
    print(text)
    arguments.out.mkdir(exist_ok=True)
    (arguments.out / f"gpu-{datetime.date.today().isoformat()}.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
