"""Draw with splats: balls where splats are, threads between places, edges of boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.models.gaussians import Gaussians
from nsw.renderers.splat_probe import recoloured


@torch.no_grad()
def dots(gaussians: Gaussians, size: float, rgb: Float[Tensor, "N 3"] | None = None) -> Gaussians:
    """Return an opaque ball of one size at every splat that is alive, whatever its shape: where the splats are."""
    marks = recoloured(gaussians, gaussians.base_rgb if rgb is None else rgb)
    marks.scales.fill_(torch.log(torch.tensor(size)))
    marks.opacities.copy_(torch.where(gaussians.activated_opacities > 0.005, 4.0, -8.0))
    return marks


@torch.no_grad()
def threads(
    start: Float[Tensor, "D 3"], end: Float[Tensor, "D 3"], rgb: Sequence[float] | Float[Tensor, "D 3"], thickness: float
) -> Gaussians:
    """Return a thin splat along the way of every jump, all in one colour or each in its own; four standard deviations long."""
    vector = end - start
    length = vector.norm(dim=1, keepdim=True).clamp_min(1e-6)
    d = vector / length
    # The half-way rotation from the x axis to d; opposite directions share one line, so the half with d_x >= 0 will do.
    d = torch.where(d[:, :1] < 0, -d, d)
    quats = torch.stack([1 + d[:, 0], torch.zeros_like(d[:, 0]), -d[:, 2], d[:, 1]], dim=1)
    scales = torch.cat([length / 4, torch.full_like(d[:, :2], thickness)], dim=1)
    colours = torch.as_tensor(rgb, device=d.device).expand(len(d), 3)
    return Gaussians.from_values((start + end) / 2, scales, quats, torch.full_like(d[:, 0], 0.9), colours).to(start.device)


def edges(boxes: Float[Tensor, "B 2 3"]) -> tuple[Float[Tensor, "E 3"], Float[Tensor, "E 3"]]:
    """Return start and end of the twelve edges of every box (minimum, maximum); `threads` draws them."""
    corner = torch.cartesian_prod(*[torch.arange(2)] * 3).to(boxes.device)  # of each of 8 corners: 0 or 1 along x, y, z
    a, b = torch.combinations(torch.arange(8, device=boxes.device)).unbind(-1)
    neighbours = (corner[a] != corner[b]).sum(dim=1) == 1
    places = boxes.gather(1, corner[None].expand(len(boxes), -1, -1))
    return places[:, a[neighbours]].reshape(-1, 3), places[:, b[neighbours]].reshape(-1, 3)
