"""Adaptive density control of 3D Gaussian Splatting: clone, split, prune, and the opacity reset.

Kerbl et al., SIGGRAPH 2023, section 5. The number of splats is unknown beforehand, so training starts with few and
adds where the picture pulls hardest on them. Every function here edits a dictionary of raw parameters, one Adam per
parameter and a dictionary of per-splat statistics together, so that rows stay in step. The default values and the
order of the edits are gsplat's (release 1.5.3, `DefaultStrategy`), except that the opacity reset happens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from nsw.kernels.projection_reference import rotation_from_quaternion
from nsw.models.gaussians import RESIZING

Params = MutableMapping[str, nn.Parameter]
Optimizers = Mapping[str, torch.optim.Optimizer]
Rows = MutableMapping[str, Tensor]

START, CLONE, SPLIT = 0, 1, 2  # values of rows["origin"]: how a splat came to be


@dataclass(frozen=True)
class DensityControl:
    """When and where splats are added and removed; the defaults are the paper's for 30,000 steps.

    Attributes:
        grow_gradient: mean screen gradient, in half picture widths, above which a splat is cloned or split.
        grow_scale: largest standard deviation, in scene extents, up to which it is cloned rather than split.
        prune_opacity: splats fainter than this are removed.
        prune_scale: splats larger than this, in scene extents, are removed once a reset was due.
        start, stop, every: refine at steps start < step < stop that `every` divides.
        reset_every: pull all opacities down to 2 x prune_opacity this often; 0 never does.
        absgrad: add up absolute gradients per pixel (AbsGS); use a threshold about four times higher.
        revised_opacity: give split children 1 - sqrt(1 - o), so that the two together are as opaque as the parent.
        max_splats: never grow beyond this; the strongest gradients go first. 0 is no limit.
    """

    grow_gradient: float = 2e-4
    grow_scale: float = 0.01
    prune_opacity: float = 0.005
    prune_scale: float = 0.1
    start: int = 500
    stop: int = 15_000
    every: int = 100
    reset_every: int = 3_000
    absgrad: bool = False
    revised_opacity: bool = False
    max_splats: int = 0

    def for_budget(self, n_steps: int, **changes) -> DensityControl:
        """Return the schedule shortened in proportion to n_steps of 30,000, with `changes` applied.

        The distance of opacity resets stays: splats that one has made faint need a number of steps to come back, not a share
        of the run. Every 400 of 4,000 steps, resets take 8 dB from the bundled room; every 1,000 they cost nothing by
        themselves, but the pruning of large splats that the first one switches on takes 6 dB from the room, whose walls are
        large splats, and 0.3 dB from the town (64 pixels, 4,000 splats). Runs of up to 6,000 steps hence have neither.

        >>> control = DensityControl().for_budget(3000)
        >>> control.start, control.stop, control.every, control.reset_every
        (50, 1500, 50, 3000)
        """
        share = n_steps / 30_000
        start, stop = round(self.start * share), round(self.stop * share)
        every = max(min(50, self.every), round(self.every * share))
        return replace(replace(self, start=start, stop=stop, every=every), **changes)

    def due(self, step: int) -> bool:
        """Say whether `refine` belongs after this step."""
        return self.start < step < self.stop and step % self.every == 0

    def reset_due(self, step: int) -> bool:
        """Say whether `reset_opacity` belongs after this step."""
        return self.reset_every > 0 and 0 < step < self.stop and step % self.reset_every == 0


@dataclass(frozen=True)
class Refined:
    """What one refinement did: numbers of splats cloned, split and pruned, and how many there are now."""

    cloned: int
    split: int
    pruned: int
    n: int


def new_rows(n: int, device: torch.device | str = "cpu") -> Rows:
    """Return fresh statistics of n splats: summed gradients, views counted, and how and when each was born."""
    rows = {name: torch.zeros(n, device=device) for name in ("grad2d", "count")}
    return rows | {name: torch.zeros(n, dtype=torch.int32, device=device) for name in ("origin", "born")}


@torch.no_grad()
def accumulate(rows: Rows, meta: Mapping, absgrad: bool = False) -> None:
    r"""Add this view's screen gradients, in half picture widths, to `grad2d`, and 1 to `count`, where a splat is visible.

    $$g \mathrel{+}= C\,\|(\tfrac W2\,\partial L/\partial m_x,\ \tfrac H2\,\partial L/\partial m_y)\|$$  (C cameras a step)

    Call it after `backward`; `meta` is the rasterizer's dictionary.
    """
    from nsw.kernels.screen_pulls import add_pulls

    means2d = meta["means2d"]
    gradient = means2d.absgrad if absgrad else means2d.grad
    scales = [meta[side] / 2 * meta["n_cameras"] for side in ("width", "height")]
    add_pulls(rows["grad2d"], rows["count"], gradient, meta["radii"], *scales)


@torch.no_grad()
def choose_growth(
    params: Params, rows: Rows, control: DensityControl, scene_scale: float
) -> tuple[Bool[Tensor, "N"], Bool[Tensor, "N"]]:
    r"""Return which splats to clone and which to split.

    $$g_k / n_k > \tau: \text{clone where } \max_a s_{ka} \le 0.01\,E, \text{else split}$$  (Kerbl et al. 2023, section 5.2)

    Both have a mean screen gradient above the threshold; small ones cover too little and are cloned, large ones cover
    too much and are split.
    """
    gradient = rows["grad2d"] / rows["count"].clamp_min(1)
    pulled = gradient > control.grow_gradient
    if control.max_splats:
        room = max(control.max_splats - len(gradient), 0)
        if int(pulled.sum()) > room:
            strongest = torch.argsort(gradient, descending=True, stable=True)[:room]
            pulled = torch.zeros_like(pulled).index_fill_(0, strongest, True) & pulled
    small = params["scales"].exp().amax(dim=-1) <= control.grow_scale * scene_scale
    return pulled & small, pulled & ~small


@torch.no_grad()
def regroup(params: Params, optimizers: Optimizers, rows: Rows, source: Int[Tensor, "M"], fresh: Bool[Tensor, "M"]) -> None:
    """Make row i of everything a copy of the old row source[i]; Adam's moments are zero where fresh[i].

    Parameters are replaced in `params`, and each optimiser is pointed at the new one: leaving the moments of the old
    size behind is the classic silent bug.
    """
    olds = dict(params)
    with RESIZING:
        for name, old in olds.items():
            params[name] = nn.Parameter(old.detach()[source].contiguous(), requires_grad=old.requires_grad)
    for name, old in olds.items():
        if name not in optimizers:
            continue
        new = params[name]
        optimizer = optimizers[name]
        state = optimizer.state.pop(old, {})
        for key, value in state.items():
            if key != "step":
                state[key] = value[source].clone()
                state[key][fresh] = 0
        optimizer.param_groups[0]["params"] = [new]
        if state:
            optimizer.state[new] = state
    for key, value in rows.items():
        rows[key] = value[source]


def clone(params: Params, optimizers: Optimizers, rows: Rows, chosen: Bool[Tensor, "N"]) -> None:
    """Append an exact copy of every chosen splat; the next gradients pull the two apart."""
    everything = torch.arange(len(chosen), device=chosen.device)
    source = torch.cat([everything, everything[chosen]])
    regroup(params, optimizers, rows, source, fresh=torch.arange(len(source), device=chosen.device) >= len(chosen))


@torch.no_grad()
def split(
    params: Params,
    optimizers: Optimizers,
    rows: Rows,
    chosen: Bool[Tensor, "N"],
    generator: torch.Generator | None = None,
    revised_opacity: bool = False,
) -> None:
    r"""Replace every chosen splat by two smaller children, placed at random inside it.

    $$\mu' = \mu + R\,\mathrm{diag}(s)\,\xi, \quad \xi \sim \mathcal N(0, I), \quad s' = s / 1.6$$  (Kerbl et al. 2023, section 5.2)

    The children come last: all first ones, then all second ones.
    """
    parents = chosen.nonzero()[:, 0]
    n = len(parents)
    scales = params["scales"].detach()[parents].exp()
    xi = torch.randn(2, n, 3, generator=generator, device=scales.device)
    offsets = torch.einsum("nij,nj,bnj->bni", rotation_from_quaternion(params["quats"].detach()[parents]), scales, xi)
    source = torch.cat([(~chosen).nonzero()[:, 0], parents, parents])
    fresh = torch.arange(len(source), device=chosen.device) >= len(source) - 2 * n
    regroup(params, optimizers, rows, source, fresh)
    params["means"].data[fresh] += offsets.reshape(-1, 3)
    params["scales"].data[fresh] -= torch.log(scales.new_tensor(1.6))
    if revised_opacity:
        o = params["opacities"].data[fresh].sigmoid()
        params["opacities"].data[fresh] = torch.logit(1 - torch.sqrt(1 - o))


def prune(params: Params, optimizers: Optimizers, rows: Rows, doomed: Bool[Tensor, "N"]) -> None:
    """Remove the splats marked in `doomed`."""
    source = (~doomed).nonzero()[:, 0]
    regroup(params, optimizers, rows, source, fresh=torch.zeros_like(source, dtype=torch.bool))


@torch.no_grad()
def reset_opacity(params: Params, optimizers: Optimizers, ceiling: float = 0.01) -> None:
    """Pull every opacity down to at most `ceiling` and forget its moments: what the pictures need grows back."""
    opacities = params["opacities"]
    opacities.data.clamp_(max=torch.logit(torch.tensor(ceiling)).item())
    for key, value in optimizers["opacities"].state.get(opacities, {}).items():
        if key != "step":
            value.zero_()


@torch.no_grad()
def refine(
    params: Params,
    optimizers: Optimizers,
    rows: Rows,
    step: int,
    control: DensityControl,
    scene_scale: float,
    generator: torch.Generator | None = None,
    choose: Callable | None = None,
) -> Refined:
    """Clone, split and prune once, then start the statistics anew. Fresh clones are not split.

    Args:
        choose: another rule for what grows, with the arguments and returns of `choose_growth`.
    """
    to_clone, to_split = (choose or choose_growth)(params, rows, control, scene_scale)
    n_clones, n_splits = int(to_clone.sum()), int(to_split.sum())
    clone(params, optimizers, rows, to_clone)
    rows["origin"][len(to_clone) :], rows["born"][len(to_clone) :] = CLONE, step
    split(params, optimizers, rows, torch.cat([to_split, to_split.new_zeros(n_clones)]), generator, control.revised_opacity)
    children = slice(len(rows["origin"]) - 2 * n_splits, None)
    rows["origin"][children], rows["born"][children] = SPLIT, step
    doomed = params["opacities"].sigmoid() < control.prune_opacity
    if control.reset_every and step > control.reset_every:
        doomed |= params["scales"].exp().amax(dim=-1) > control.prune_scale * scene_scale
    if bool(doomed.all()):  # a model without splats cannot recover
        doomed = torch.zeros_like(doomed)
    prune(params, optimizers, rows, doomed)
    rows["grad2d"].zero_()
    rows["count"].zero_()
    return Refined(n_clones, n_splits, int(doomed.sum()), len(params["means"]))
