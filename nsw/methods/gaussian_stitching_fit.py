"""Two phases of stitching over one union of splats, and the simple ways that they are held against."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nsw.cameras import Cameras
from nsw.methods import gaussian_stitching as stitch
from nsw.models.gaussians import Gaussians
from nsw.models.neighbours import nearest
from nsw.models.parts import joined, part_of
from nsw.renderers.splats import render_view


@dataclass(frozen=True)
class Stitch:
    """Settings of the two phases; weights as in the paper where it gives them.

    Attributes:
        feature, color, grad, tune: weights of the terms.
        tune_from: share of the steps after which the palette joins (inferred).
        lr: Adam's step for the constant harmonic; a twentieth for the others, as in 3DGS.
        beta, tau, k: of the boundary, see `find_boundary`.
        gamma: of the shaken places.
    """

    feature: float = 1.0
    color: float = 1.0
    grad: float = 2.0
    tune: float = 2.0
    tune_from: float = 0.5
    lr: float = 0.03
    beta: float = 0.06
    tau: float = 0.4
    k: int = 8
    gamma: float = 10.0


class Stitching:
    """A target being recoloured to fit its source; only `sh0` and `shN` of the target change.

    Args:
        source, target: parts in place; both are copied.
        cameras: views in which the target is compared with what it was; its gradients there are computed once.
        settings: see `Stitch`.
    """

    def __init__(self, source: Gaussians, target: Gaussians, cameras: Cameras, settings: Stitch | None = None):
        self.settings = s = settings or Stitch()
        self.source, self.target = (part_of(part).requires_grad_(False) for part in (source, target))
        self.cameras = cameras.to(target.means.device)
        self.boundary = stitch.find_boundary(source, target, s.beta, s.tau, s.k)
        self.drivers = stitch.find_drivers(target, self.boundary, s.gamma, s.k)
        with torch.no_grad():
            alone = [render_view(self.target, self.cameras[i], depth=False) for i in range(len(cameras))]
        self.gradients = [stitch.sobel(render.rgb) for render in alone]
        self.seen = [render.alpha > 0.95 for render in alone]
        self.palette = source_palette(self.source, self.cameras)
        trained = (self.target.sh0.requires_grad_(True), self.target.shN.requires_grad_(True))
        self.optimizer = torch.optim.Adam(
            [{"params": [p], "lr": r} for p, r in zip(trained, (s.lr, s.lr / 20), strict=True)], eps=1e-15
        )

    def losses(self, step: int, n_steps: int) -> dict[str, Tensor]:
        """Return the weighted terms for the view of a step; the palette's term is there from `tune_from` on."""
        s, view = self.settings, step % len(self.cameras)
        camera, harmonics = self.cameras[view], self.target.sh
        directions = torch.nn.functional.normalize(self.target.means - camera.origins, dim=-1)
        given = self.boundary, self.drivers, self.target.activated_opacities
        terms = {"feature": s.feature * stitch.loss_feature(harmonics, self.boundary)}
        terms["color"] = s.color * stitch.loss_color(harmonics, directions, *given)
        render = render_view(self.target, camera, depth=False)
        terms["grad"] = s.grad * stitch.loss_grad(render.rgb, self.gradients[view], self.seen[view])
        if step >= s.tune_from * n_steps:
            terms["tune"] = s.tune * stitch.loss_tune(render.rgb, self.seen[view], self.palette)
        return terms

    def step(self) -> None:
        """Take Adam's step after `backward`."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def fit(self, n_steps: int) -> Stitching:
        """Take all steps, as the notebook's loop does it, without watching."""
        for step in range(n_steps):
            sum(self.losses(step, n_steps).values()).backward()
            self.step()
        return self

    def result(self) -> Gaussians:
        """Return both parts as they are now, one model to draw or to write."""
        return joined(self.source, self.target)

    def state_dict(self) -> dict:
        return {"target": self.target.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.target.load_state_dict(state["target"])
        self.optimizer.load_state_dict(state["optimizer"])


@torch.no_grad()
def source_palette(source: Gaussians, cameras: Cameras) -> stitch.Palette:
    """Return the palette of the source's opaque pixels, a batch from each view."""
    palette = None
    for i in range(len(cameras)):
        render = render_view(source, cameras[i], depth=False)
        pixels = render.rgb[render.alpha > 0.95].clamp(0, 1).cpu()
        if len(pixels):
            palette = (palette or stitch.Palette.start(pixels)).see(pixels)
    return palette or stitch.Palette.start(torch.full((3, 3), 0.5))


@torch.no_grad()
def transferred(source: Gaussians, target: Gaussians) -> Gaussians:
    """Return the target with the source's mean and spread of each colour channel, weighted by opacity (Reinhard et al. 2001)."""

    def moments(part: Gaussians) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
        w = (part.activated_opacities / part.activated_opacities.sum())[:, None]
        mean = (w * part.sh0[:, 0]).sum(dim=0)
        return mean, (w * (part.sh0[:, 0] - mean).square()).sum(dim=0).sqrt()

    (to, wide), (at, narrow) = moments(source), moments(target)
    changed = part_of(target)
    changed.sh0.copy_((changed.sh0 - at) * (wide / narrow.clamp_min(1e-6)) + to)
    return changed


@torch.no_grad()
def poisson(source: Gaussians, target: Gaussians, boundary: stitch.Boundary, k: int = 8) -> Gaussians:
    r"""Return the target whose constant harmonics keep their differences to k neighbours while the boundary is given.

    $$\min_c \textstyle\sum_{(i,j)} \|(c_i - c_j) - (c^0_i - c^0_j)\|^2 \quad \text{with } c_b = \tilde h_b$$

    Poisson editing (Perez et al. 2003) on the graph of neighbours.
    """
    from scipy.sparse import coo_matrix, diags
    from scipy.sparse.linalg import spsolve

    n = len(target)
    _, ids = nearest(target.means, target.means, k + 1)
    i, j = np.repeat(np.arange(n), ids.shape[1] - 1), ids[:, 1:].flatten().cpu().numpy()
    adjacency = coo_matrix((np.ones(len(i)), (i, j)), shape=(n, n)).tocsr()
    adjacency = adjacency.maximum(adjacency.T)
    laplacian = (diags(np.asarray(adjacency.sum(axis=1)).ravel()) - adjacency).tocsr()
    old = target.sh0[:, 0].double().cpu().numpy()
    new, fixed = old.copy(), np.zeros(n, bool)
    fixed[boundary.rows.cpu().numpy()] = True
    new[fixed] = boundary.wanted[:, 0].double().cpu().numpy()
    right = (laplacian @ old)[~fixed] - laplacian[~fixed][:, fixed] @ new[fixed]
    # a component of the graph without a boundary splat floats freely: a whisper of the old colours holds it
    system = laplacian[~fixed][:, ~fixed] + 1e-6 * diags(np.ones(int((~fixed).sum())))
    new[~fixed] = spsolve(system.tocsc(), right + 1e-6 * old[~fixed])
    changed = part_of(target)
    changed.sh0.copy_(torch.from_numpy(new).to(changed.sh0)[:, None])
    return changed
