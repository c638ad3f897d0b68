"""One short training of each host with one more term in its loss, and its scores: what the table of the notebook is made of."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from nsw import metrics
from nsw.cameras import Cameras
from nsw.losses import ExtraLoss, loss_mse
from nsw.methods import dvgo, dvgo_stages
from nsw.methods import instant_ngp as ngp
from nsw.models.dense_grid import DenseGrid, DenseGridSettings
from nsw.scenes.scene import Scene


def new_dense(scene: Scene, stage: dvgo_stages.Stage, device: torch.device | str = "cpu") -> DenseGrid:
    """Return an untrained grid over a scene's box: one stage, no free space known."""
    sizes = dict(alpha_init=stage.alpha_init, n_features=stage.n_features, mlp_width=stage.mlp_width)
    return DenseGrid(DenseGridSettings(scene.box, n_voxels=stage.n_voxels, **sizes)).to(device)


def dense(
    scene: Scene,
    stage: dvgo_stages.Stage,
    extra_loss: ExtraLoss | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    grouped: Callable[[Scene, dvgo_stages.RayBank], dvgo_stages.RayBank] | None = None,
    watch: Callable[[int, DenseGrid], object] | None = None,
) -> DenseGrid:
    """Return a dense grid (DVGO's) trained in one stage.

    Args:
        grouped: how rays are drawn instead of one by one, `s3im_controls.in_squares` or `by_object`; masked pixels are in it.
        watch: called with the number of steps that are done and the grid, after each.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        whole = replace(scene, masks=None) if grouped else scene
        model, bank = new_dense(scene, stage, device), dvgo_stages.ray_bank(whole, device=device)
        if grouped:
            bank = grouped(scene, bank)
        told = None if watch is None else lambda step, spent, out: watch(step + 1, model)
        generator = torch.Generator(device).manual_seed(seed)
        dvgo_stages.fit(model, bank, stage, generator, scene.near, watch=told, extra_loss=extra_loss)
    return model


def refit(
    scene: Scene,
    stage: dvgo_stages.Stage,
    extra_loss: ExtraLoss | None,
    view: Cameras,
    photograph: Float[Tensor, "H W 3"],
    seed: int = 0,
    every: int = 5,
) -> tuple[Float[Tensor, "H W 3"], list[int], list[float]]:
    """Return what a short training shows of a view, and after every few steps how many they were and its PSNR in dB.

    Args:
        view: one camera, on whose device the grid is trained.
    """
    steps, pictures = [], []

    def watch(step: int, grid: DenseGrid) -> None:
        if step % every == 0 or step == stage.n_steps:
            steps.append(step)
            with torch.no_grad():
                pictures.append(dvgo.render_view(grid, view, scene.near).rgb[0].cpu())

    dense(scene, stage, extra_loss, seed, view.cam_from_world.device, watch=watch)
    return pictures[-1], steps, [metrics.psnr(picture[None], photograph[None]) for picture in pictures]


def fitted(
    new_model: Callable[..., torch.nn.Module],
    fit: Callable[..., object],
    scene: Scene,
    plan: object,
    extra_loss: ExtraLoss | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    **sizes: int,
) -> torch.nn.Module:
    """Return another host, trained with one more term.

    Args:
        new_model, fit: those of `nsw.methods.instant_ngp_fit` or `nsw.methods.tensorf_fit`, whose `Plan` belongs to them.
        sizes: for `new_model`.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        model = new_model(scene, **sizes).to(device)
        pixels = ngp.training_pixels(scene, model.aabb.cpu(), device=device)
        fit(model, pixels, plan, torch.Generator(device).manual_seed(seed), scene.near, extra_loss=extra_loss)
    return model


def score(model: torch.nn.Module, scene: Scene) -> metrics.ViewScores:
    """Return PSNR, SSIM and depth error of a trained host on the test views."""
    render_view = dvgo.render_view if isinstance(model, DenseGrid) else ngp.render_view
    return metrics.evaluate(lambda camera: render_view(model, camera.to(model.aabb.device), scene.near).to("cpu"), scene)


def squared(rgb: Tensor, truth: Tensor, generator: torch.Generator) -> Tensor:
    """Return the mean squared error, in the form of an extra term."""
    return loss_mse(rgb, truth)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % interval by Student's t, which is infinite for one value.

    >>> interval([1.0, 2.0, 3.0])[0], round(interval([1.0, 2.0, 3.0])[1], 2)
    (2.0, 2.48)
    """
    from scipy.special import stdtrit  # the quantile itself: scipy.stats takes most of a second to load

    n = len(values)
    return statistics.fmean(values), float(stdtrit(n - 1, 0.975)) * statistics.stdev(values) / n**0.5 if n > 1 else math.inf


def differences(scores: Mapping[str, Mapping[str, Sequence[metrics.ViewScores]]]) -> list[dict[str, str]]:
    """Return a row for each condition: the first term's mean scores, and what each other term changes of them.

    PSNR, SSIM and, where the scene's depth is known, the depth error. Changes are paired: each seed against its own first term,
    with the 95 % interval of their mean where there are several seeds.

    Args:
        scores: condition -> term -> scores, one a seed.
    """
    rows = []
    for condition, by_term in scores.items():
        (name, base), *rest = by_term.items()
        wanted = {"psnr": ".2f", "ssim": ".3f"} | ({"depth_error": ".2f"} if base[0].depth_error is not None else {})
        row = {"": condition, "seeds": len(base)}
        row[name] = ", ".join(f"{statistics.fmean(getattr(one, key) for one in base):{form}}" for key, form in wanted.items())
        for term, new in rest:
            changes = []
            for key, form in wanted.items():
                mean, half = interval([getattr(a, key) - getattr(b, key) for a, b in zip(new, base, strict=True)])
                changes.append(f"{mean:+{form}}" + (f" \u00b1 {half:{form}}" if math.isfinite(half) else ""))
            row[term] = ", ".join(changes)
        rows.append(row)
    return rows


def gains(scores: Mapping[str, Mapping[str, Sequence[metrics.ViewScores]]]) -> dict[str, dict[str, float]]:
    """Return by how many dB of PSNR each other term is above the first, in the mean over seeds: {condition: {term: dB}}."""
    means = {
        condition: {term: statistics.fmean(one.psnr for one in every) for term, every in by_term.items()}
        for condition, by_term in scores.items()
    }
    return {
        condition: {term: psnr - next(iter(row.values())) for term, psnr in list(row.items())[1:]}
        for condition, row in means.items()
    }


def score_rows(scores: Mapping[str, metrics.ViewScores], head: str) -> list[dict[str, object]]:
    """Return a row for each training: its name under `head`, PSNR, SSIM and, where known, depth error."""
    rows = [{head: name, "PSNR (dB)": one.psnr, "SSIM": one.ssim, "depth error": one.depth_error} for name, one in scores.items()]
    return [{key: value for key, value in row.items() if value is not None} for row in rows]
