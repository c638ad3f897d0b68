"""Train the small depth network from nothing: `python -m nsw.models.train_toy_depth FOLDER` (extra `synth` for its pictures).

It path-traces arrangements of `nsw.scenes.make.scattered`, and small cities of `nsw.scenes.make.town` with other seeds than the
bundled one, seen from places and in directions drawn at random, into FOLDER, trains on them, and writes the weights, in half
precision, and a manifest with its errors on scenes that it never saw, to `data/toy_depth`. A stopped call continues when repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from nsw.models import io
from nsw.models.depth_prior import DepthPrior, align_inverse_depth
from nsw.models.toy_depth import MIDDLE, ToyDepth, ToyDepthSettings
from nsw.models.train_teacher import augmented
from nsw.models.training import fit, write_manifest
from nsw.scenes.make.describe import Description

View = tuple[Float[Tensor, "4 H W"], Float[Tensor, "H W"]]  # straight alpha, and camera z, 0 where nothing was hit
UNSEEN = ("town", "toybox", "shelf", "tea", "room")


@dataclass(frozen=True)
class TrainingSettings:
    """How it was trained: on toys of seeds 0 to n_toys - 1, but for the last `n_held`, and towns of seeds 1 to n_towns."""

    n_toys: int = 40
    n_held: int = 5
    n_towns: int = 20
    n_held_towns: int = 2
    views_of_a_town: int = 28
    n_steps: int = 2000
    batch: int = 6
    size: int = 96
    lr: float = 2e-3
    seed: int = 0


def make_pictures(
    folder: Path, settings: TrainingSettings, size: int = 128, spp: int = 6
) -> tuple[list[Path], list[Path], list[Path]]:
    """Path-trace what is not there yet; return the files of the toys, of the towns, and of those held back for validation.

    Towns of the next `n_held_towns` seeds are held back: pictures as clean and as large as the bundled scene's, along its flight.
    """
    from nsw.scenes.make import scattered, town

    seeds = range(1, settings.n_towns + settings.n_held_towns + 1)
    towns = [folder / f"town_{seed:04d}.npz" for seed in seeds]
    for seed, file in zip(seeds, towns, strict=True):
        if file.is_file():
            continue
        if seed > settings.n_towns:
            scattered.trace(town.describe(160, 10, seed), file, 16, seed, denoise=True)
        else:
            scattered.trace(flown_over(town.describe(size, seed=seed), settings.views_of_a_town, seed), file, spp, seed)
    toys = scattered.make_pictures(folder, range(settings.n_toys), size, spp=spp)
    return toys, towns[: settings.n_towns], towns[settings.n_towns :]


def flown_over(city: Description, n: int, seed: int) -> Description:
    """Return a city seen from n random places, 2.7 to 3.7 above the ground and 0.1 to 1.6 beside what they look at."""
    from nsw.scenes.make.describe import looking, split_views

    rng = np.random.default_rng([seed, 31])
    ground = np.concatenate([rng.uniform(-1.8, 1.8, (n, 2)), rng.uniform(0.1, 0.4, (n, 1))], 1)
    lean, turn, up = rng.uniform(0.1, 1.6, n), rng.uniform(0, 2 * np.pi, n), rng.uniform(2.7, 3.7, n)
    eyes = np.stack([ground[:, 0] + lean * np.cos(turn), ground[:, 1] + lean * np.sin(turn), up], -1)
    cameras = looking(eyes, ground, float(rng.uniform(48, 60)), city.cameras.width, city.cameras.height)
    return replace(city, cameras=cameras, views=split_views(train=n))


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


def losses(guess: Float[Tensor, "n h w"], depth: Float[Tensor, "n h w"]) -> dict[str, Tensor]:
    """Return the Huber distance of the guess to the true inverse depth, normalised and moved to the median `MIDDLE`, and the mean
    distance of their differences between neighbours 1, 2 and 4 pixels apart; where nothing was hit there is no loss.

    Other than in MiDaS (Ranftl et al., TPAMI 2022, section 5), the guess is not normalised: pictures of few cameras can do without,
    and 40 steps on two of them left 0.40 of that paper's loss instead of 0.54.
    """
    valid = depth > 0
    true = torch.where(valid, 1 / depth.clamp_min(1e-3), 0.0)
    away = guess - MIDDLE - normalised(true.flatten(1), valid.flatten(1)).view_as(guess)
    edges = []
    for reach in (1, 2, 4):
        for dim in (1, 2):
            n = guess.shape[dim] - reach
            both = valid.narrow(dim, 0, n) & valid.narrow(dim, reach, n)
            step = away.narrow(dim, reach, n) - away.narrow(dim, 0, n)
            edges.append((step.abs() * both).sum() / both.sum().clamp_min(1))
    near = smooth_l1_loss(away, torch.zeros_like(away), reduction="none")
    return {"depth": (near * valid).sum() / valid.sum(), "edges": 0.5 * sum(edges) / len(edges)}


def train(toys: Sequence[View], towns: Sequence[View], settings: TrainingSettings, checkpoint: Path) -> ToyDepth:
    """Train the network on pictures of toys, a third of every batch, cut square, and of towns, which keep their shape."""
    torch.manual_seed(settings.seed)
    model = ToyDepth(ToyDepthSettings(side=settings.size))
    n_toys = settings.batch // 3

    def terms(step: int) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        total: dict[str, Tensor] = {}
        for views, n, how in ((toys, n_toys, {}), (towns, settings.batch - n_toys, dict(square=False, least=0.8))):
            chosen = torch.randint(len(views), (n,), generator=g).tolist()
            changed = zip(*(augmented(*views[i], settings.size, g, **how) for i in chosen), strict=True)
            pictures, depth = (torch.stack(maps) for maps in changed)
            for name, value in losses(model(pictures), depth).items():
                total[name] = total.get(name, 0) + value * n / settings.batch
        return total

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
    toys, towns, held_towns = make_pictures(folder, settings)
    model = train(read_views(toys[: -settings.n_held]), read_views(towns), settings, folder / "checkpoint.safetensors")
    out = io.save(model.half(), data_dir() / "toy_depth")
    kept = io.load(out)
    held = {"held arrangements of toys": toys[-settings.n_held :], "held towns": held_towns}
    unseen = {name: read_views(files) for name, files in held.items()} | {name: bundled_views(name) for name in UNSEEN}
    facts = {
        "command": "python -m nsw.models.train_toy_depth FOLDER",
        "trained_on": "path-traced scenes of nsw.scenes.make.scattered (toys in random places) and nsw.scenes.make.town with seeds "
        "other than the bundled one's; no view of a bundled scene",
        "settings": settings.__dict__,
        "error_of_inverse_depth": "mean absolute error after alignment by medians, over that of a constant, which is 1 therefore; "
        "plane: a fitted plane; what was held decided on loss, batch and steps, the other scenes on nothing",
        "errors_on_unseen_scenes": {name: errors(kept, views) for name, views in unseen.items()},
    }
    write_manifest(out, facts)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", facts["errors_on_unseen_scenes"])


if __name__ == "__main__":
    main()
