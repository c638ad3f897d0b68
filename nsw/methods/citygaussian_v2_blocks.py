r"""CityGaussianV2, in parts: cut the ground at quantiles, choose each block's pictures, train a block on its own, put all together.

A block starts from the whole coarse model and sees only its own pictures. It trains the discs on its ground; all others are drawn
with them, frozen. The official code trains them too, throws them away at the end, and keeps what lies inside the box by then:
then two blocks mend the same fault beside a border, each with discs that the other does not have, and a disc that crosses the
border in one block and not in the other is lost or doubled. Here the blocks' own discs are kept, wherever they went.
Blocks know nothing of each other, so that each may run in a process, or on a machine, of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nsw.cameras import Cameras
from nsw.errors import InputError
from nsw.losses import loss_ssim
from nsw.methods import citygaussian_v2 as city
from nsw.methods.citygaussian_v2_press import scores_of, weakest
from nsw.methods.density_control import DensityControl, Refined, prune
from nsw.methods.gaussian_splatting_2d import PRUNE_OPACITY
from nsw.metrics import clock
from nsw.models.gaussians import RESIZING, GaussiansSettings, Seen
from nsw.models.parts import joined, part_of
from nsw.models.state import load_state, save_state
from nsw.models.surfels import Surfels
from nsw.renderers.surfels import render_view
from nsw.scenes.scene import Scene

SHOWN = ("means", "quats", "activated_scales", "activated_opacities", "sh0", "sh")  # of splats, in a picture
LOCATION, SSIM, BOTH = 1, 2, 3  # why a picture belongs to a block: bits, so that both together are their sum


def quantile_boxes(ground: Float[Tensor, "N 2"], columns: int, rows: int) -> Float[Tensor, "B 2 2"]:
    """Cut the plane into columns x rows boxes (minimum, maximum) that hold equally many points each.

    Columns are cut at quantiles of x, and each column at quantiles of its own y. Outer borders lie at infinity: what training
    moves across the outermost point stays in a box.

    >>> quantile_boxes(torch.tensor([[0.0, 0], [1, 0], [2, 0], [3, 0]]), 2, 1)[:, :, 0].tolist()
    [[-inf, 1.5], [1.5, inf]]
    """
    boxes = []
    for x0, x1 in _intervals(ground[:, 0], columns):
        column = ground[(ground[:, 0] >= x0) & (ground[:, 0] < x1), 1]
        boxes += [[[x0, y0], [x1, y1]] for y0, y1 in _intervals(column, rows)]
    return torch.tensor(boxes)


def _intervals(values: Float[Tensor, "n"], n: int) -> list[tuple[float, float]]:
    """Return n half-open intervals that together are the line and hold equally many of the values."""
    inner = np.quantile(values.detach().cpu().numpy(), np.linspace(0, 1, n + 1)[1:-1])  # torch's takes 16 million values at most
    borders = [-math.inf, *inner.tolist(), math.inf]
    return list(zip(borders[:-1], borders[1:], strict=True))


def inside(points: Float[Tensor, "N d"], boxes: Float[Tensor, "B 2 2"]) -> Bool[Tensor, "B N"]:
    """Return which points stand on the ground of which box; a border belongs to the box above it."""
    ground, boxes = points[None, :, :2], boxes.to(points)
    return ((ground >= boxes[:, None, 0]) & (ground < boxes[:, None, 1])).all(-1)


@torch.no_grad()
def reasons(surfels: Surfels, cameras: Cameras, boxes: Float[Tensor, "B 2 2"], threshold: float = 0.05) -> Int[Tensor, "B C"]:
    r"""Return why each camera's picture is needed by each block: 0 it is not, else `LOCATION`, `SSIM` or `BOTH`.

    $$c \in \text{box}_m \quad\text{or}\quad 1 - \mathrm{SSIM}(I_c^{-m}, I_c) > \epsilon$$  (Liu et al. 2025)

    with $I_c^{-m}$ drawn without the discs of the block. This costs blocks x cameras pictures.
    """
    lie_in = inside(surfels.means, boxes)
    why = LOCATION * inside(cameras.origins, boxes).int().cpu()
    for block, mine in enumerate(lie_in):
        others = part_of(surfels, ~mine)
        for view in range(len(cameras)):
            with_all, without = (render_view(s, cameras[view], depth=False).rgb for s in (surfels, others))
            why[block, view] += SSIM * int(loss_ssim(without, with_all) > threshold)
    return why


@dataclass(frozen=True)
class Block:
    """All that one block needs to be trained, anywhere: it is sent to another process as it stands.

    Attributes:
        coarse: the whole coarse model, on the CPU.
        scene: the block's own pictures as the training split.
        box: its ground, minimum and maximum.
        inverse: aligned inverse depth of the scene's frames, or None.
        n_steps, recipe, control, seed: of the training.
        scale: extent of the whole scene.
        device: "cpu", or the accelerator that the worker finds under that name.
    """

    coarse: Surfels
    scene: Scene
    box: Float[Tensor, "2 2"]
    inverse: Float[Tensor, "F H W"] | None
    n_steps: int
    recipe: city.Recipe
    control: DensityControl | None
    scale: float
    seed: int = 0
    device: str = "cpu"


def own_scene(scene: Scene, frames: Int[Tensor, "n"]) -> Scene:
    """Return a scene of some frames alone, all of them for training; the truth stays behind."""
    every = torch.arange(len(frames))
    names = [scene.names[int(i)] for i in frames] if scene.names else ()
    bare = dict(masks=None, points=None, depth=None, normals=None, albedo=None, ids=None, extra_splits={})
    splits = {"train": every, "test": every}
    return replace(scene, images=scene.images[frames], cameras=scene.cameras[frames], splits=splits, names=names, **bare)


def blocks_of(
    coarse: Surfels, scene: Scene, boxes: Float[Tensor, "B 2 2"], why: Int[Tensor, "B C"], inverse: Float[Tensor, "F H W"] | None,
    plan: Callable[[float], dict], least_views: int = 1,
) -> list[Block]:  # fmt: skip
    """Return the work of every block.

    Args:
        why: of the training cameras, `reasons`.
        inverse: of all frames of the scene.
        plan: the other fields of `Block`, from the share of all pictures that the block sees: when the number of steps follows
            it, every picture is shown as often as in a training on all of them.
        least_views: a block with fewer pictures is not trained: it keeps the coarse discs.
    """
    model, train = part_of(coarse).cpu(), scene.splits["train"]
    blocks = []
    for box, chosen in zip(boxes, why > 0, strict=True):
        enough = int(chosen.sum()) >= least_views
        frames, fields = (train[chosen], plan(float(chosen.float().mean()))) if enough else (train[:1], plan(1.0) | {"n_steps": 0})
        guesses = None if inverse is None else inverse[frames].cpu()
        blocks.append(Block(model, own_scene(scene, frames), box, guesses, scale=scene.scale, **fields))
    return blocks


def fine_plan(n_steps: int, every: int, growth: float = 2e-4, seed: int = 0, device: torch.device | str = "cpu", **changes) -> dict:
    """Return the fields of `Block` that say how it is fine-tuned: growth during the first half, every `every` steps, no resets.

    Args:
        growth: threshold of the gradient.
        changes: to the recipe of fine-tuning.
    """
    trims = dict(trim_from=n_steps // 4, trim_every=max(n_steps // 4, 1))
    recipe = city.Recipe.fine(n_steps, **(trims | changes))
    control = DensityControl(prune_opacity=PRUNE_OPACITY, grow_gradient=growth, start=0, stop=n_steps // 2 + 1, every=max(every, 1))
    return dict(n_steps=n_steps, recipe=recipe, control=replace(control, reset_every=0), seed=seed, device=str(device))


class BlockTraining(city.Training):
    """A block's own discs being trained among frozen ones, which take part in pictures and hold neither gradients nor moments.

    Args:
        own: the discs that are trained, cloned, split and trimmed.
        context: those that stand beside them; none of their numbers changes.
        Others as in `citygaussian_v2.Training`.
    """

    def __init__(self, own: Surfels, context: Surfels, *args, **options):
        super().__init__(own, *args, **options)
        self.context = context.requires_grad_(False)

    @property
    def shown(self) -> Seen:
        """Own discs, then the context, as a renderer takes them."""
        with RESIZING:
            both = {name: torch.cat([getattr(part, name) for part in (self.gaussians, self.context)]) for name in SHOWN}
        return Seen(**both, settings=self.gaussians.settings)

    @property
    def n_trained(self) -> int:
        """Own discs: the way back through the rasterizer is walked for them alone."""
        return len(self.gaussians)

    def step(self, step: int, meta: Mapping) -> Refined | None:
        """Take one step of the own discs, of which alone density control hears."""
        n, pulls = len(self.gaussians), meta["gradient_2dgs"]
        own = torch.zeros_like(pulls[..., :n, :])
        own.grad = pulls.grad[..., :n, :]
        rest = {name: meta[name] for name in ("width", "height", "n_cameras")}
        return super().step(step, rest | {"radii": meta["radii"][..., :n, :], "gradient_2dgs": own})

    def trim(self, share: float) -> None:
        """Remove this share of the own discs, the least important ones in pictures of all."""
        n, every = self.n_trained, joined(self.gaussians, self.context)
        scores = scores_of(every, self.cameras, self.recipe.best_views, first=n)[:n]
        prune(self.gaussians.params, self.optimizers, self.rows, weakest(scores, share))


def tune_block(block: Block, path: Path | str) -> Path:
    """Train one block and write its own discs to a file, with what it took; the file appears whole or not at all."""
    began, device = clock(), torch.device(block.device)
    mine = inside(block.coarse.means.detach(), block.box[None])[0]
    own, context = (part_of(block.coarse, those).to(device) for those in (mine, ~mine))
    rest = dict(scale=block.scale, rates=city.fine_rates(block.n_steps), control=block.control, seed=block.seed)
    training = BlockTraining(own, context, block.scene, block.n_steps, block.recipe, **rest)
    most = held_mb(training, block)
    for step in range(block.n_steps):
        city.fit(training, block.scene, [step], block.inverse, block.seed)
        most = max(most, held_mb(training, block))
    about = {"seconds": clock() - began, "held_mb": most, "own": len(own), "context": len(context)}
    about |= {"views": len(block.scene), "steps": block.n_steps}
    save_state(Path(path), {"surfels": own.cpu().state_dict(), "degree": own.settings.sh_degree, "about": about}, "block")
    return Path(path)


def held_mb(training: BlockTraining, block: Block) -> float:
    """Return the MB (2^20 bytes) that a block holds: discs, gradients and moments of its own, its statistics, the discs around
    them, the coarse model that both came from, its pictures and their estimated depth."""
    params = list(training.gaussians.params.values())
    moments = [v for one in training.optimizers.values() for state in one.state.values() for v in state.values()]
    tensors = [*params, *params, *moments, *training.context.parameters(), *training.rows.values()]
    tensors += [*block.coarse.parameters(), block.scene.images, *([] if block.inverse is None else [block.inverse])]
    return sum(tensor.nbytes for tensor in tensors) / 2**20


def load_block(path: Path | str) -> tuple[Surfels, dict]:
    """Return the discs of a trained block and what it took: seconds, MB held at most, own discs and frozen ones, pictures, steps.

    Raises:
        InputError: when the file is missing, damaged, or holds no block.
    """
    stored = load_state(Path(path), "block")
    try:
        mine = part_of(Surfels(GaussiansSettings(int(stored["degree"]))))
        mine.load_state_dict(stored["surfels"])
        return mine, dict(stored["about"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} holds no trained block ({error}): remove it and train the block again.") from error


def merged(parts: Sequence[Surfels]) -> Surfels:
    """Return the discs of all blocks as one model; each disc of the coarse model, or what became of it, is there once."""
    return joined(*parts)
