"""One short training of each host with one more term in its loss, and its scores: what the table of the notebook is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from nsw import metrics
from nsw.losses import ExtraLoss, loss_mse
from nsw.methods import dvgo, dvgo_stages
from nsw.methods import instant_ngp as ngp
from nsw.methods.s3im_controls import PatchBank
from nsw.models.dense_grid import DenseGrid, DenseGridSettings
from nsw.scenes.scene import Scene


def new_dense(scene: Scene, stage: dvgo_stages.Stage, device: torch.device | str = "cpu") -> DenseGrid:
    """Return an untrained grid over a scene's box: one stage, no free space known."""
    box = tuple(scene.aabb.flatten().tolist())
    sizes = dict(alpha_init=stage.alpha_init, n_features=stage.n_features, mlp_width=stage.mlp_width)
    return DenseGrid(DenseGridSettings(box, n_voxels=stage.n_voxels, **sizes)).to(device)


def dense(
    scene: Scene,
    stage: dvgo_stages.Stage,
    extra_loss: ExtraLoss | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    patches: bool = False,
) -> DenseGrid:
    """Return a dense grid (DVGO's) trained in one stage.

    Args:
        patches: draw rays as squares of neighbours instead of one by one, in which masked pixels have to be.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        whole = replace(scene, masks=None) if patches else scene
        model, bank = new_dense(scene, stage, device), dvgo_stages.ray_bank(whole, device=device)
        if patches:
            bank = PatchBank(bank.rays, bank.colours, *scene.images.shape[1:3])
        dvgo_stages.fit(model, bank, stage, torch.Generator(device).manual_seed(seed), scene.near, extra_loss=extra_loss)
    return model


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


def squared(rgb: torch.Tensor, truth: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return the mean squared error, in the form of an extra term."""
    return loss_mse(rgb, truth)


def differences(scores: Mapping[str, Mapping[str, metrics.ViewScores]]) -> list[dict[str, str]]:
    """Return a row for each condition: the first term's scores, and what each other term changes of them.

    PSNR, SSIM and, where the scene's depth is known, the depth error.

    Args:
        scores: condition -> term -> scores.
    """
    rows = []
    for condition, by_term in scores.items():
        (name, base), *rest = by_term.items()
        row = {"": condition, name: f"{base.psnr:.2f} dB, {base.ssim:.3f}"}
        row |= {term: f"{new.psnr - base.psnr:+.2f} dB, {new.ssim - base.ssim:+.3f}" for term, new in rest}
        if base.depth_error is not None:
            row[name] += f", {base.depth_error:.2f}"
            for term, new in rest:
                row[term] += f", {new.depth_error - base.depth_error:+.2f}"
        rows.append(row)
    return rows
