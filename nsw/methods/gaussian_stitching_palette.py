"""Watch the palette of a stitching: how its bins open, move and expire batch by batch, and which bin each pixel falls into."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nsw.cameras import Cameras
from nsw.methods.gaussian_stitching import Palette
from nsw.models.gaussians import Gaussians
from nsw.renderers.splats import render_view


@dataclass(frozen=True)
class Sorted:
    """A palette after some batches, and a view of all parts in its colours.

    Attributes:
        shown: name -> [H, W, 3]: the source, then the same with each pixel in the colour of its bin, then each target so.
        colours: of the bins [P, 3], in [0, 1]; shares: of the votes [P]; idle: batches without votes [P].
        opened: how many of the last bins the last batch opened.
        expired: bins that have gone so far.
    """

    shown: dict[str, Float[Tensor, "H W 3"]]
    colours: Float[Tensor, "P 3"]
    shares: Float[Tensor, "P"]
    idle: Int[Tensor, "P"]
    opened: int
    expired: int


def binned(image: Float[Tensor, "H W 3"], seen: Bool[Tensor, "H W"], palette: Palette) -> Float[Tensor, "H W 3"]:
    """Return the picture with the pixels that are seen in the colour of their bin, and white elsewhere."""
    near = torch.cdist(image[seen], palette.centres.to(image)).argmin(dim=1)
    return torch.ones_like(image).masked_scatter(seen[..., None], palette.centres.to(image)[near])


class PaletteWatch:
    """The palette of a source, batch by batch, and targets held against it.

    Args:
        source: a batch of its opaque pixels is taken from each camera, as `source_palette` does it.
        targets: name -> a part, for example before and after stitching.
        cameras: views, in the order of the batches.
    """

    def __init__(self, source: Gaussians, targets: dict[str, Gaussians], cameras: Cameras):
        self.targets, self.cameras = targets, cameras
        self.views = [self._solid(source, i) for i in range(len(cameras))]

    @torch.no_grad()
    def _solid(self, part: Gaussians, view: int) -> tuple[Float[Tensor, "H W 3"], Bool[Tensor, "H W"]]:
        render = render_view(part, self.cameras[view].to(part.means.device), depth=False)
        return render.rgb[0].clamp(0, 1).cpu(), (render.alpha[0] > 0.95).cpu()

    def after(self, batch: int, reach: float = 0.1, patience: int = 20) -> Sorted:
        """Return what the palette is after the batches 0 to `batch`, of which the last one's view is shown.

        Args:
            reach: distance in RGB from which a pixel opens a bin; patience: batches after which a bin without votes expires.
        """
        palette, expired = None, 0
        for image, seen in self.views[: batch + 1]:
            if bool(seen.any()):
                palette = palette or Palette.start(image[seen], reach)
                palette.patience, n = patience, len(palette.centres)
                expired += n + palette.see(image[seen]).opened - len(palette.centres)
        palette = palette or Palette.start(torch.full((3, 3), 0.5), reach)
        image, seen = self.views[batch]
        pictures = {"source": image, "its bins": binned(image, seen, palette)}
        pictures |= {name: binned(*self._solid(part, batch), palette) for name, part in self.targets.items()}
        return Sorted(pictures, palette.centres, palette.weights, palette.idle, palette.opened, expired)
