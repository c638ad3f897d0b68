"""SAGS: structure-aware 3D Gaussian splatting (Ververas, Potamias, Song, Deng, Zafeiriou, ECCV 2024).

Splats that are free drift away from the points they began at. Here anchors stay where structure from motion put them, midpoints
fill what it left empty, and features that have heard their neighbours say what each splat is. The model is
`nsw.models.anchored_splats`; here stand what is trained and how fast, in `sags_growth.py` how anchors come and go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nsw.kernels.threads import Going, n_threads, side_by_side
from nsw.methods import density_control as density
from nsw.methods import gaussian_splatting as gs
from nsw.methods.budgets import shortness
from nsw.methods.gaussian_splatting import generator_at
from nsw.methods.sags_growth import Growth, Regrown, accumulate, doomed, new_rows, sprouts
from nsw.models.anchored_splats import AnchoredSplats
from nsw.models.midpoints import curvature, low_curvature, point_pairs, snapped, with_midpoints
from nsw.renderers.splats import render_view
from nsw.scenes.scene import Points, Scene

RATES = {  # Adam's step sizes at the first and at the last step of 30,000 (official code)
    "features": (7.5e-3, 7.5e-3),
    "scales": (7e-3, 7e-3),
    "table": (5e-3, 1e-3),
    "gain": (5e-3, 1e-3),
    "bias": (5e-3, 1e-3),
    "opacity": (2e-3, 2e-5),
    "colour": (8e-3, 5e-5),
    "shape": (4e-3, 4e-5),
    "offset": (5e-3, 1e-3),
}
SHORT_RATES = {  # the same for 1,000 steps: anchors must learn faster, and colours, shared by all, must not swing. Measured
    "features": (1e-1, 1e-2),
    "scales": (5e-2, 5e-3),
    "table": (1e-2, 1e-3),
    "colour": (4e-3, 4e-4),
    "shape": (4e-3, 4e-4),
    "offset": (1e-3, 1e-4),
}


def rate_at(name: str, step: int, n_steps: int) -> float:
    r"""Return the rate of a parameter at a step: log-linear from its first to its last value, $r = r_0^{1-t} r_1^t$.

    Between 1,000 and 30,000 steps both values lie, log-linearly too, between those of `SHORT_RATES` and of `RATES`.

    >>> rate_at("table", 0, 30_000), round(rate_at("table", 1000, 1000), 6)
    (0.005, 0.001)
    """
    short = shortness(n_steps)
    ends = [a ** (1 - short) * b**short for a, b in zip(RATES[name], SHORT_RATES.get(name, RATES[name]), strict=True)]
    return ends[0] * (ends[1] / ends[0]) ** (step / max(n_steps, 1))


def densified(
    points: Points | Float[Tensor, "N 3"], k_flat: int = 10, k_other: int = 5, voxel: float = 0.0
) -> Float[Tensor, "A 3"]:
    """Return the anchors of a full model: the snapped points, and midpoints with the nearest, more of them where it is flat."""
    keys = snapped(getattr(points, "xyz", points), voxel)
    return with_midpoints(keys, point_pairs(keys, low_curvature(curvature(keys)), k_flat, k_other))


@torch.no_grad()
def limit_sizes(model: AnchoredSplats, usual: float) -> None:
    r"""Let no splat spread beyond its anchor's neighbours, $e^l \leftarrow \min(e^l, r_i, u)$; not in the official code.

    Without a limit, some splats grow as wide as the scene in short runs and paint plain walls from far behind: pictures stay
    as good, depth does not.

    Args:
        usual: a limit for all, because the neighbours of wrong points are far.
    """
    model.scales[:, 3:] = torch.minimum(model.scales[:, 3:], model.graph.reach.clamp(max=usual).log()[:, None])


class Sags:
    """Anchored splats being trained: the model, Adam, and the statistics of growth.

    Args:
        gaussians: the model.
        n_steps: length of the run.
        growth: None leaves the anchors alone, as SAGS-Lite does.
        seed: of which candidates are kept.
        largest: common limit of `limit_sizes`, times the median of the distances to the farthest neighbour at the start; 0
            limits nothing, as in the official code.
        offset_rate: factor on the rate of displacements: short runs want more of it, in longer ones splats stray too far.
    """

    control = None  # of clones and splits: there are none

    def __init__(
        self, gaussians: AnchoredSplats, n_steps: int, growth: Growth | None = None, seed: int = 0, largest: float = 0.0,
        offset_rate: float = 1.0,
    ):  # fmt: skip
        self.gaussians, self.n_steps, self.growth, self.seed = gaussians, n_steps, growth, seed
        self.factors = {"offset": offset_rate}
        self.largest = largest * float(gaussians.graph.reach.median())
        self.optimizers = self._optimizers()
        self.rows = new_rows(len(gaussians), gaussians.means.device)

    def _optimizers(self) -> dict[str, torch.optim.Adam]:
        model = self.gaussians
        groups = {name: [p] for name, p in model.params.items() if p.requires_grad}
        groups |= {name: [p] for name, p in model.decoder._parameters.items()}
        groups |= {name: list(network.parameters()) for name, network in model.decoder.named_children()}
        return {name: torch.optim.Adam(group, lr=0.0, eps=1e-15, fused=True) for name, group in groups.items()}

    def step(self, step: int, meta: dict) -> Regrown | None:
        """Take one Adam step after `backward`, then let anchors come and go when it is due.

        Returns:
            What changed, or None when it was not due.
        """
        for name, optimizer in self.optimizers.items():
            optimizer.param_groups[0]["lr"] = self.factors.get(name, 1.0) * rate_at(name, step, self.n_steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.largest:
            limit_sizes(self.gaussians, self.largest)
        if self.growth is None or not self.growth.count_from < step < self.growth.stop:
            return None
        accumulate(self.rows, meta)
        return self._regrow(step) if self.growth.due(step) else None

    @torch.no_grad()
    def _regrow(self, step: int) -> Regrown:
        model, growth = self.gaussians, self.growth
        fresh = sprouts(model, self.rows, growth, generator_at(self.seed, step, 4))
        bad, n = doomed(self.rows, growth), len(model)
        if bool(bad.all()):  # a model without anchors cannot recover
            bad = torch.zeros_like(bad)
        room = growth.max_anchors - int((~bad).sum()) if growth.max_anchors else len(fresh["positions"])
        added = min(len(fresh["positions"]), max(room, 0))
        for name, bar in (("count", 0.5), ("in_view", 1.0)):
            judged = self.rows[name] > bar * growth.success * growth.every
            for row in (name, {"count": "grad2d", "in_view": "opacity"}[name]):
                self.rows[row][judged] = 0
        source = torch.cat([(~bad).nonzero()[:, 0], torch.zeros(added, dtype=torch.long, device=bad.device)])
        is_new = torch.arange(len(source), device=bad.device) >= len(source) - added
        density.regroup(model.params, self.optimizers, self.rows, source, is_new)
        for name, values in fresh.items():
            model.params[name][is_new] = values[:added]
        for row in self.rows.values():
            row[is_new] = 0
        model.link()
        return Regrown(added, n - int((~bad).sum()), len(model))

    def state_dict(self) -> dict:
        optimizers = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        state = {"gaussians": self.gaussians.state_dict(), "optimizers": optimizers, "rows": dict(self.rows)}
        return state | {"largest": self.largest}

    def load_state_dict(self, state: dict) -> None:
        """Restore anchors, networks, moments and statistics; the number of anchors is taken from what is loaded."""
        self.gaussians.load_state_dict(state["gaussians"])
        self.optimizers = self._optimizers()
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        device = self.gaussians.means.device
        self.rows = {name: value.to(device).clone() for name, value in state["rows"].items()}
        self.largest = float(state["largest"])


def draw(model: AnchoredSplats, cameras, sh_degree: int = 0, **options):
    """Draw anchored splats where a renderer of Gaussians is asked for, by `gaussian_splatting.fit` for one."""
    return model.render_view(cameras, **options)


def all_fitted(trainings: Mapping[str, Sags | gs.Training], scene: Scene, seed: int = 0) -> Iterator[tuple[str, nn.Module]]:
    """Train models that do not depend on each other, on a CPU several at once, a core each; yield name and model in order."""

    def fitted(training: Sags | gs.Training, going: Going) -> nn.Module:
        how = draw if isinstance(training, Sags) else render_view
        return gs.fit(training, scene, going(range(training.n_steps)), seed, draw=how).gaussians

    on_cpu = all(training.gaussians.means.device.type == "cpu" for training in trainings.values())
    return side_by_side({name: partial(fitted, training) for name, training in trainings.items()}, n_threads() if on_cpu else 1)
