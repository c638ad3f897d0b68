"""Train the small depth network from nothing: `python -m nsw.models.train_toy_depth FOLDER` (extra `synth` for its pictures).

It path-traces arrangements of `nsw.scenes.make.scattered` and small cities of `nsw.scenes.make.town` with other seeds than the
bundled one into FOLDER, trains on them, and writes the weights, in half precision, and a manifest with its errors on scenes that it
never saw to `data/toy_depth`. A stopped call continues when it is repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nsw.models import io
from nsw.models.depth_prior import DepthPrior, align_inverse_depth
from nsw.models.toy_depth import ToyDepth
from nsw.models.train_teacher import augmented
from nsw.models.training import fit, write_manifest

View = tuple[Float[Tensor, "4 H W"], Float[Tensor, "H W"]]  # straight alpha, and camera z, 0 where nothing was hit
UNSEEN = ("town", "toybox", "shelf", "tea", "room")


@dataclass(frozen=True)
class TrainingSettings:
    """How it was trained: on toys of seeds 0 to n_toys - 1, but for the last `n_held`, and towns of seeds 1 to n_towns."""

    n_toys: int = 40
    n_held: int = 5
    n_towns: int = 4
    views_of_a_town: int = 30
    n_steps: int = 1500
    batch: int = 16
    size: int = 64
    lr: float = 2e-3
    seed: int = 0


def make_pictures(folder: Path, settings: TrainingSettings, size: int = 80, spp: int = 12) -> tuple[list[Path], list[Path]]:
    """Path-trace what is not there yet; return the files of the toys and of the towns."""
    from nsw.scenes.make import scattered, town

    towns = [folder / f"town_{seed:04d}.npz" for seed in range(1, settings.n_towns + 1)]
    for seed, file in enumerate(towns, 1):
        if not file.is_file():
            scattered.trace(town.describe(size, settings.views_of_a_town, seed), file, spp, seed)
    return scattered.make_pictures(folder, range(settings.n_toys), size, spp=spp), towns


def read_views(files: Sequence[Path]) -> list[View]:
    """Return every view of the files that `scattered.trace` wrote."""
    views = []
    for file in files:
        with np.load(file) as stored:
            rgba = torch.from_numpy(stored["rgba"]).permute(0, 3, 1, 2).float() / 255
            views += list(zip(rgba, torch.from_numpy(stored["depth"]), strict=True))
    return views


def normalised(maps: Float[Tensor, "n P"], valid: Tensor) -> Float[Tensor, "n P"]:
    """Return maps less their median, over the mean distance from it; both over valid places, and 0 elsewhere."""
    middle = maps.masked_fill(~valid, torch.nan).nanmedian(1, keepdim=True).values
    away = torch.where(valid, maps - middle, 0.0)
    return away / (away.abs().sum(1, keepdim=True) / valid.sum(1, keepdim=True)).clamp_min(1e-4)


def losses(guess: Float[Tensor, "n s s"], depth: Float[Tensor, "n s s"]) -> dict[str, Tensor]:
    """Return the loss terms of MiDaS (Ranftl et al., TPAMI 2022, section 5): the distance of the normalised maps, and that of their
    differences between neighbours 1, 2 and 4 pixels apart; where nothing was hit there is no loss."""
    valid = depth > 0
    true = torch.where(valid, 1 / depth.clamp_min(1e-3), 0.0)
    flat = valid.flatten(1)
    away = (normalised(guess.flatten(1), flat) - normalised(true.flatten(1), flat)).view_as(guess)
    edges = []
    for reach in (1, 2, 4):
        for dim in (1, 2):
            n = guess.shape[dim] - reach
            both = valid.narrow(dim, 0, n) & valid.narrow(dim, reach, n)
            step = away.narrow(dim, reach, n) - away.narrow(dim, 0, n)
            edges.append((step.abs() * both).sum() / both.sum().clamp_min(1))
    return {"depth": away.abs().sum() / valid.sum(), "edges": 0.5 * sum(edges) / len(edges)}


def train(views: Sequence[View], groups: Sequence[int], settings: TrainingSettings, checkpoint: Path) -> ToyDepth:
    """Train the network; `groups` are the sizes of the kinds of scenes in `views`, each drawn from equally often."""
    torch.manual_seed(settings.seed)
    model = ToyDepth()
    starts = np.cumsum([0, *groups[:-1]])

    def terms(step: int) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        batch = []
        for i in range(settings.batch):
            kind = i % len(groups)
            chosen = int(starts[kind]) + int(torch.randint(groups[kind], (), generator=g))
            batch.append(augmented(*views[chosen], settings.size, g))
        pictures, depth = (torch.stack(things) for things in zip(*batch, strict=True))
        return losses(model(pictures), depth)

    fit(model, terms, settings.n_steps, settings.lr, checkpoint)
    return model


def errors(prior: DepthPrior, views: Sequence[View]) -> dict[str, float]:
    """Return the mean absolute error of inverse depth over views, in units of a constant's (the true median): 1 is no better.

    "prior" is aligned by medians with all true values of the view; "plane" is the least-squares plane through those.
    """
    sums = {"prior": 0.0, "plane": 0.0}
    for rgba, depth in views:
        valid = depth > 0
        y, x = valid.nonzero().unbind(1)
        true, pixels = 1 / depth[valid], torch.stack([x, y], -1) + 0.5
        aligned = align_inverse_depth(prior.predict((rgba[:3] * rgba[3:] + 1 - rgba[3:]).permute(1, 2, 0)).float(), pixels, true)
        design = torch.cat([pixels / len(depth), torch.ones(len(pixels), 1)], 1)
        plane = design @ torch.linalg.lstsq(design, true[:, None]).solution[:, 0]
        constant = (true - true.median()).abs().mean()
        sums["prior"] += float((aligned[valid] - true).abs().mean() / constant) / len(views)
        sums["plane"] += float((plane - true).abs().mean() / constant) / len(views)
    return {name: round(value, 3) for name, value in sums.items()}


def bundled_views(name: str) -> list[View]:
    """Return the test views of a bundled scene."""
    from nsw import scenes

    scene = scenes.load(name)
    frames = scene.frames("test")
    rgba = torch.cat([scene.pixels(frames, 1.0), scene.alphas(frames)[..., None]], -1).permute(0, 3, 1, 2)
    return list(zip(rgba, scene.depth[frames].float(), strict=True))


def main() -> None:
    import argparse

    from nsw.scenes.bundled import data_dir

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for the pictures and the checkpoint")
    folder, settings = parser.parse_args().folder, TrainingSettings()
    toys, towns = make_pictures(folder, settings)
    kinds = [read_views(toys[: -settings.n_held]), read_views(towns)]
    model = train(kinds[0] + kinds[1], [len(kind) for kind in kinds], settings, folder / "checkpoint.safetensors")
    out = io.save(model.half(), data_dir() / "toy_depth")
    kept = io.load(out)
    unseen = {"held arrangements of toys": read_views(toys[-settings.n_held :]), **{name: bundled_views(name) for name in UNSEEN}}
    facts = {
        "command": "python -m nsw.models.train_toy_depth FOLDER",
        "trained_on": "path-traced scenes of nsw.scenes.make.scattered (toys in random places) and nsw.scenes.make.town with seeds "
        "other than the bundled one's; no view of a bundled scene",
        "settings": settings.__dict__,
        "error_of_inverse_depth": "mean absolute error after alignment by medians, over a constant's; plane: a fitted plane",
        "errors_on_unseen_scenes": {name: errors(kept, views) for name, views in unseen.items()},
    }
    write_manifest(out, facts)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", facts["errors_on_unseen_scenes"])


if __name__ == "__main__":
    main()
