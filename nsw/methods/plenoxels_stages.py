"""What growing does to a grid of voxels: before it, right after it, and what training makes of the finer one."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from nsw.methods import plenoxels
from nsw.methods.dvgo_stages import RayBank
from nsw.methods.plenoxels_fit import Recipe, finetune, maintain
from nsw.methods.plenoxels_inspect import density_slice, enlarged, labelled, middle, test_shot
from nsw.models.plenoxel_grid import PlenoxelGrid
from nsw.scenes.scene import Scene


def stages(
    before: PlenoxelGrid, end: PlenoxelGrid, bank: RayBank, recipe: Recipe, near: float, n_steps: int = 50
) -> dict[str, PlenoxelGrid]:
    """Return grids by name: before the growth, pruned and grown, a few steps later, and at the end of the training.

    Args:
        before: what `maintain` has put aside. end: the trained grid.
        n_steps: of the third, at the rates of that moment.
    """
    grown = copy.deepcopy(before)
    maintain(grown, None, 1.0, recipe, bank.rays, near)
    later = finetune(grown, bank, recipe, near, n_steps, recipe.grow_at[-1])
    return {"before": before, "pruned, grown": grown, f"{n_steps} steps later": later, "at the end": end}


def growth_picture(
    grids: Mapping[str, PlenoxelGrid], scene: Scene, stage: int, height: float, size: int = 330
) -> Float[Tensor, "h w 3"]:
    """Return the first grid beside that of a stage: the middle of the first test view over a slice, voxels kept and PSNR.

    Args:
        height: of the slice; 0 is the bottom of the box, 1 its top.
    """
    names, tiles, view = list(grids), [], scene.views("test")[0]
    wide = max(size // 2, view.width)  # finer than a coarse photograph, so that voxels are to be seen
    view = view.resized(wide, round(wide * view.height / view.width)).to(grids[names[0]].aabb.device)
    for name in (names[0], names[stage]):
        grid = grids[name]
        shot = plenoxels.render_view(grid, view, scene.near).rgb[0].cpu().clamp(0, 1)
        parts = [middle(shot, size), shot.new_ones(6, size, 3), enlarged(density_slice(grid, height).cpu(), size)]
        words = f"{name}: {int(grid.kept.sum()):,} voxels, {test_shot(grid, scene)[1]:.2f} dB"
        tiles.append(labelled(torch.cat([pad(part, (0, 0, 0, size - part.shape[1]), value=1.0) for part in parts]), words))
    tall = max(len(tile) for tile in tiles)
    return torch.cat([pad(tile, (0, 0, 0, 10, 0, tall - len(tile)), value=1.0) for tile in tiles], dim=1)
