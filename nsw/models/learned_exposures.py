"""What took each training picture, as few learned numbers per view: a lens and its focus, or a path of the camera."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from nsw.scenes.exposures import Exposure, moments, on_disc, path


class LearnedExposures(nn.Module):
    """An `Exposure` for each of V views, learned: two numbers a view for a lens, or twelve for a path of `moments` + 1 places.

    It stands where Deblurring 3DGS has its network, with the physics of the camera in place of a free function of the splat.

    Args:
        centres: [V, 3] camera centres, by which a view is recognised.
        moments: as of a `BlurMLP`; 0 is a lens.
        focus, aperture: where the lenses start, world units.
    """

    def __init__(
        self,
        centres: Float[Tensor, "V 3"],
        moments: int = 0,
        lens: bool = True,
        focus: float = 4.0,
        aperture: float = 0.1,
        seed: int = 0,
    ):
        super().__init__()
        self.moments, self.lens, n = moments, lens, len(centres)
        self.register_buffer("centres", centres.clone())
        if lens:
            self.log_aperture = nn.Parameter(torch.full((n,), math.log(aperture)))
            self.inverse_focus = nn.Parameter(torch.full((n,), 1 / focus))
        else:
            generator = torch.Generator().manual_seed(seed)  # a path of length 0 could not choose a direction
            self.shift = nn.Parameter(1e-2 * torch.randn(n, 2, 3, generator=generator))
            self.turn = nn.Parameter(torch.zeros(n, 2, 3))

    def view(self, centre: Float[Tensor, "3"]) -> Int[Tensor, ""]:
        """Return which view a camera centre belongs to."""
        return (self.centres - centre).square().sum(1).argmin()

    def spread(self, centre: Float[Tensor, "3"], z: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        r"""Return the variance that the lens adds along an axis at camera z, world units squared.

        A disc of diameter $2A|1 - z / z_f|$ has the variance $\tfrac14 A^2 (1 - z / z_f)^2$.
        """
        view = self.view(centre)
        return 0.25 * (2 * self.log_aperture[view]).exp() * (1 - z * self.inverse_focus[view]).square()

    def displaced(self, centre: Float[Tensor, "3"], means_cam: Float[Tensor, "N 3"]) -> Float[Tensor, "K N 3"]:
        """Return where points stand before the camera at the K = moments + 1 moments of its path, for small turns."""
        view, k = self.view(centre), self.moments + 1
        if self.lens:
            hole = F.pad(self.log_aperture[view].exp() * on_disc(k, device=means_cam.device), (0, 1))
            return means_cam - hole[:, None] * (1 - means_cam[None, :, 2:] * self.inverse_focus[view])
        t = moments(k, device=means_cam.device)
        shift, turn = path(self.shift[view], t), path(self.turn[view], t)
        return means_cam - shift[:, None] - torch.linalg.cross(turn[:, None].expand(-1, len(means_cam), -1), means_cam[None])

    def exposure(self, view: int) -> Exposure:
        """Return what was learned of a view."""
        if self.lens:
            return Exposure(self.log_aperture[view].exp().item(), (1 / self.inverse_focus[view]).item())
        return Exposure(shift=tuple(map(tuple, self.shift[view].tolist())), turn=tuple(map(tuple, self.turn[view].tolist())))
