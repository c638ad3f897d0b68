"""Feature 3DGS (Zhou, Chang, Jiang, Fan, Zhu, Xu, Chari, You, Wang, Kadambi, CVPR 2024): splats that carry the features of a
2D model.

Every splat holds a vector besides its colour. It is composited with the weights of the colour and trained until the map
that a camera sees is what a frozen 2D teacher says about that picture. What is asked of the splats afterwards stands in
`feature_3dgs_edit.py`, how it is scored in `feature_3dgs_inspect.py`.

Two things differ from the official code. Maps are resized with pixel centres on pixel centres, which matters at 24 x 24.
And a scene cut out of its background has nothing behind the splats that a feature could stand on: there the vector `behind`
is composited last, like a background colour.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from nsw.cameras import Cameras
from nsw.losses import loss_l1
from nsw.methods import gaussian_splatting as gs
from nsw.methods.budgets import shortness
from nsw.methods.density_control import Refined
from nsw.models.feature_gaussians import FeatureGaussians
from nsw.models.gaussians import RESIZING, Gaussians
from nsw.models.teacher import FeatureTeacher, resized
from nsw.renderers.splats import rasterizer
from nsw.scenes.scene import Scene

Maps = Float[Tensor, "n M h w"]


@torch.no_grad()
def teacher_maps(teacher: FeatureTeacher, pictures: Float[Tensor, "n H W 3"]) -> Maps:
    """Return what the teacher says about each picture alone."""
    return torch.stack([teacher.encode(picture).float() for picture in pictures])


@torch.no_grad()
def behind_the_splats(maps: Maps, scene: Scene) -> Float[Tensor, "M"] | None:
    """Return what the teacher says, in the mean, where the training pictures are transparent; None for pictures that are full."""
    if not scene.has_alpha:
        return None
    alphas = resized(scene.alphas("train")[:, None], *maps.shape[2:])[:, 0].to(maps)
    return maps.permute(0, 2, 3, 1)[alphas < 0.01].mean(0)


def composited(
    gaussians: Gaussians,
    cameras: Cameras,
    values: Float[Tensor, "N D"],
    behind: Float[Tensor, "D"] | None = None,
    joint: bool = False,
) -> Float[Tensor, "C H W D"]:
    r"""Composite any vector a splat, with exactly the weights of its colour.

    $$F(p) = \sum_i f_i\,\alpha_i \prod_{j<i} (1 - \alpha_j)$$  (Zhou et al. 2024, eq. 3)

    Args:
        values: f_i, any number of channels.
        behind: what stands behind the splats; None is zero.
        joint: let gradients flow into place, shape and opacity too. The paper's code does not.
    """
    with RESIZING:
        raw = (gaussians.means, gaussians.quats, gaussians.activated_scales, gaussians.activated_opacities)
    raw = raw if joint else tuple(value.detach() for value in raw)
    cameras = cameras.to(values.device)
    backgrounds = None if behind is None else behind.to(values).expand(len(cameras), -1).contiguous()
    views = (cameras.cam_from_world, cameras.Ks, cameras.width, cameras.height)
    return rasterizer("auto", values.device)(*raw, values, *views, packed=False, backgrounds=backgrounds)[0]


def feature_map(
    model: FeatureGaussians, cameras: Cameras, size: tuple[int, int] | None = None,
    behind: Float[Tensor, "M"] | None = None, joint: bool = False,
) -> Float[Tensor, "C M h w"]:  # fmt: skip
    r"""Return the teacher's features as the splats remember them: composite F channels, resize, then lift to M.

    $$\hat F = W\,\mathrm{resize}(F) + b$$  (Zhou et al. 2024, section 3.3; no W and b where F = M)

    Args:
        size: height and width of the teacher's map; None is the camera's.
        behind: used where F = M; the decoder's bias stands behind the splats otherwise.
    """
    lifted = model.features.shape[1] == model.settings.n_channels
    maps = composited(model, cameras, model.features, behind if lifted else None, joint)
    maps = resized(maps.permute(0, 3, 1, 2), *(size or (cameras.height, cameras.width)))
    return model.decoded(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def loss_feature(predicted: Float[Tensor, "n M h w"], target: Float[Tensor, "n M h w"]) -> Float[Tensor, ""]:
    r"""Return $\|F_t - \hat F\|_1$, the mean absolute difference (Zhou et al. 2024, eq. 5)."""
    return loss_l1(predicted, target.to(predicted))


@torch.no_grad()
def agreement(predicted: Float[Tensor, "n M H W"], target: Float[Tensor, "n M h w"]) -> float:
    """Return the mean cosine of two sets of maps, in [-1, 1], at the size of the second."""
    return float(cosine_similarity(resized(predicted, *target.shape[2:]), target.to(predicted), dim=1).mean())


@torch.no_grad()
def lifted_by_mean(model: FeatureGaussians, cameras: Cameras, maps: Maps, behind: Tensor | None = None) -> FeatureGaussians:
    r"""Return a copy whose features are weighted means of the teacher's maps over all views: no training at all.

    $$f_i = \frac{\sum_p w_{ip}\,F_t(p)}{\sum_p w_{ip}}, \qquad w_{ip} = \alpha_i T_i \text{ at pixel } p$$

    Both sums are gradients of composited pictures with respect to what the splats carry.
    """
    n_channels = maps.shape[1]
    copy = FeatureGaussians.around(model, n_channels, n_channels)
    total = torch.zeros(len(copy), n_channels + 1, device=model.means.device)
    for i in range(len(cameras)):
        target = resized(maps[i : i + 1].to(total), cameras.height, cameras.width).permute(0, 2, 3, 1)
        with torch.enable_grad():
            carried = torch.zeros_like(total, requires_grad=True)
            seen = composited(model, cameras[i], carried)
            (seen * torch.cat([target, torch.ones_like(target[..., :1])], -1)).sum().backward()
        total += carried.grad
    copy.features.copy_(total[:, :-1] / total[:, -1:].clamp_min(1e-6))
    return copy


@dataclass(frozen=True)
class FeatureRates:
    """Adam's step sizes of what this method adds; the defaults are the paper's for 30,000 steps."""

    features: float = 1e-3
    decoder: float = 1e-4
    decay: float = 1.0

    @classmethod
    def for_budget(cls, n_steps: int) -> FeatureRates:
        """Return rates for a run of n_steps: the paper's at 30,000, larger and decaying for a short one.

        Found on the validation views of toybox.
        """
        short = shortness(n_steps)
        return cls(1e-3 * 15**short, 1e-4 * 150**short, 0.1**short)


class FeatureTraining(gs.Training):
    """Splats with features being trained: as `gaussian_splatting.Training`, and one Adam for features and decoder each."""

    def __init__(self, gaussians: FeatureGaussians, *args, feature_rates: FeatureRates | None = None, **options):
        super().__init__(gaussians, *args, **options)
        self.feature_rates = feature_rates or FeatureRates.for_budget(self.n_steps)
        weights = list(gaussians.decoder.parameters())
        self.decoder_optimizer = torch.optim.Adam(weights, lr=0.0, eps=1e-15) if weights else None

    def step(self, step: int, meta: dict) -> Refined | None:
        """Take one step of features and decoder, then the one of the splats, which may clone and prune both."""
        rates = self.feature_rates
        share = rates.decay ** (step / max(self.n_steps, 1))
        for optimizer, rate in ((self.optimizers["features"], rates.features), (self.decoder_optimizer, rates.decoder)):
            if optimizer is not None:
                optimizer.param_groups[0]["lr"] = rate * share
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        return super().step(step, meta)

    def state_dict(self) -> dict:
        decoder = {} if self.decoder_optimizer is None else {"decoder": self.decoder_optimizer.state_dict()}
        return super().state_dict() | decoder

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        if self.decoder_optimizer is not None:
            self.decoder_optimizer.load_state_dict(state["decoder"])


def fit(
    training: FeatureTraining, scene: Scene, maps: Maps, steps: Iterable[int], seed: int = 0,
    behind: Tensor | None = None, weight: float = 1.0, joint: bool = False,
) -> FeatureTraining:  # fmt: skip
    r"""Train as the notebook's loop does, without watching.

    $$L = 0.8\,L_1 + 0.2\,(1 - \mathrm{SSIM}) + \gamma\,\|F_t - \hat F\|_1$$  (Zhou et al. 2024, eq. 4)

    Args:
        maps: the teacher's, one a training frame.
        weight: gamma.
        joint: see `composited`.
    """
    cameras = scene.views("train").to(training.gaussians.means.device)

    def pull(step: int) -> Float[Tensor, ""]:
        shown = gs.frames_at(step, len(maps), seed)
        seen = feature_map(training.gaussians, cameras[shown], maps.shape[2:], behind, joint)
        return weight * loss_feature(seen, maps[shown])

    return gs.fit(training, scene, steps, seed, penalty=pull)
