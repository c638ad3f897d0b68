"""A stitching that is done anew in a moment, for sliders: geometry stands still, so a picture is a matrix times colours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nsw.cameras import Cameras
from nsw.kernels.rasterize_reference import splat_alphas
from nsw.methods import gaussian_stitching as stitch
from nsw.methods.gaussian_stitching_fit import Stitch, source_palette
from nsw.methods.gaussian_stitching_inspect import jump, shares
from nsw.models.gaussians import Gaussians
from nsw.models.parts import joined
from nsw.models.sh import rgb_from_sh0
from nsw.renderers.splats import render_view


@torch.no_grad()
def blend_weights(gaussians: Gaussians, camera: Cameras) -> Float[Tensor, "p N"]:
    r"""Return the share of every splat in each of the p = H W pixels of one camera, row by row.

    $$w_{pi} = \alpha_i(p) \prod_{j<i} (1-\alpha_j(p))$$

    A row sums to the pixel's alpha. With colours c the picture is $w\,c + (1 - \sum_i w_{pi})\,b$, linear in c.
    The matrix is dense: take few splats.
    """
    meta = render_view(gaussians, camera, depth=False).extras["meta"]
    rows, columns = (torch.arange(n, device=gaussians.means.device) + 0.5 for n in (camera.height, camera.width))
    pixels = torch.cartesian_prod(rows, columns).flip(-1)
    alphas = splat_alphas(pixels, meta["means2d"][0], meta["conics"][0], meta["opacities"][0])
    order = meta["depths"][0].argsort(stable=True)
    front = (alphas * (meta["radii"][0] > 0).all(-1))[:, order]
    left = torch.cumprod(1 - front, dim=1)
    reached = torch.cat([torch.ones_like(left[:, :1]), left[:, :-1]], dim=1)
    return torch.empty_like(front).index_copy_(1, order, front * reached)


class Mixer:
    """Both phases of stitching on two small parts, fast enough to follow a slider.

    As `Stitching`, with one colour a splat from all sides, and pictures that are products with cached weights.

    Args:
        source, target: parts in place, a thousand splats or so together; their constant harmonics are used.
        cameras: C views of few pixels; all are trained on and measured, the first one is shown.
        settings: all but the two weights that are mixed, see `Stitch`.
        n_steps: steps of Adam for each mix.
    """

    def __init__(self, source: Gaussians, target: Gaussians, cameras: Cameras, settings: Stitch | None = None, n_steps: int = 100):
        self.settings = s = settings or Stitch()
        self.n_steps = n_steps
        self.cameras = cameras = cameras.to(target.means.device)
        self.size = cameras.height, cameras.width
        self.start = target.sh0.detach().clone()
        self.boundary = stitch.find_boundary(source, target, s.beta, s.tau, s.k)
        self.boundary = stitch.Boundary(self.boundary.rows, self.boundary.wanted[:, :1].detach())
        self.drivers = stitch.find_drivers(target, self.boundary, s.gamma, s.k)
        self.opacities = target.activated_opacities.detach()
        self.palette = source_palette(source, cameras)
        whole = [blend_weights(target, cameras[i]) for i in range(len(cameras))]
        self.seen = [self._image(w.sum(dim=1, keepdim=True))[..., 0] > 0.95 for w in whole]
        at = [(w.sum(dim=1) > 0).nonzero()[:, 0] for w in whole]  # most pixels show nothing: their rows are left out
        self.weights = [(rows, w[rows], 1 - w[rows].sum(dim=1, keepdim=True)) for rows, w in zip(at, whole, strict=True)]
        self.gradients = [stitch.sobel(self._alone(view, self.start)) for view in range(len(cameras))]
        self.masks = [shares(source, target, cameras[i]) for i in range(len(cameras))]
        unions = [blend_weights(joined(source, target), cameras[i]) for i in range(len(cameras))]
        self.behind = [u[:, : len(source)] @ source.base_rgb.detach() + (1 - u.sum(dim=1, keepdim=True)) for u in unions]
        self.unions = [u[:, len(source) :] for u in unions]
        self.seam_before = self._seam(self.start)

    def _image(self, pixels: Float[Tensor, "p c"]) -> Float[Tensor, "1 H W c"]:
        return pixels.reshape(1, *self.size, -1)

    def _alone(self, view: int, sh0: Float[Tensor, "N 1 3"]) -> Float[Tensor, "1 H W 3"]:
        """Return the target alone on white."""
        rows, weights, left = self.weights[view]
        white = weights.new_ones(self.size[0] * self.size[1], 3)
        return self._image(white.index_copy(0, rows, weights @ rgb_from_sh0(sh0[:, 0]) + left))

    def mix(self, grad: float, tune: float) -> Float[Tensor, "N 1 3"]:
        """Return the target's constant harmonics after `n_steps` with these weights of gradients and palette."""
        s, sh0 = self.settings, self.start.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([sh0], lr=s.lr, eps=1e-15)
        ahead = sh0.new_tensor([0.0, 0.0, 1.0]).expand(len(sh0), 3)  # one colour from all sides: any direction will do
        for step in range(self.n_steps):
            view = step % len(self.cameras)
            loss = s.feature * stitch.loss_feature(sh0, self.boundary)
            loss = loss + s.color * stitch.loss_color(sh0, ahead, self.boundary, self.drivers, self.opacities)
            image = self._alone(view, sh0)
            loss = loss + grad * stitch.loss_grad(image, self.gradients[view], self.seen[view])
            if step >= s.tune_from * self.n_steps:
                loss = loss + tune * stitch.loss_tune(image, self.seen[view], self.palette)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return sh0.detach()

    @torch.no_grad()
    def picture(self, sh0: Float[Tensor, "N 1 3"], view: int = 0) -> Float[Tensor, "H W 3"]:
        """Return both parts in one of the views, the target in these colours."""
        return self._image(self.behind[view] + self.unions[view] @ rgb_from_sh0(sh0[:, 0]))[0].clamp(0, 1)

    def _seam(self, sh0: Float[Tensor, "N 1 3"]) -> float:
        return sum(jump(self.picture(sh0, view), *masks) for view, masks in enumerate(self.masks)) / len(self.masks)

    @torch.no_grad()
    def gauges(self, sh0: Float[Tensor, "N 1 3"]) -> dict[str, float]:
        """Return the seam as a share of the pasted one, and the correlation of gradients with those before, over all views."""
        strengths = []
        for view, before in enumerate(self.gradients):
            inside = -F.max_pool2d(-self.seen[view].float()[:, None], 3, 1, 1)[:, 0] > 0.5  # no outline: it always correlates
            strengths.append(torch.stack([g[inside].norm(dim=-1) for g in (stitch.sobel(self._alone(view, sh0)), before)]))
        kept = torch.corrcoef(torch.cat(strengths, dim=1))[0, 1]
        return {"seam left": self._seam(sh0) / max(self.seam_before, 1e-9), "texture kept": float(kept)}

    def mixed(self, grad: float, tune: float) -> tuple[Float[Tensor, "H W 3"], dict[str, float]]:
        """Return the picture of a mix and its gauges."""
        sh0 = self.mix(grad, tune)
        return self.picture(sh0).cpu(), self.gauges(sh0)
