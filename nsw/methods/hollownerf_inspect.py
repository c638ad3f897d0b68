"""Looking at HollowNeRF: slices of the saliency while it empties, its histogram, hidden vertices, the multiplier on a toy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsw.cameras import project
from nsw.kernels.grid_lookup import grid_lookup
from nsw.methods import hollownerf as hollow
from nsw.methods import hollownerf_pack as packing
from nsw.methods import instant_ngp as ngp
from nsw.methods import instant_ngp_inspect as look
from nsw.models.dense_grid import lattice
from nsw.models.hash_grid import HashGrid
from nsw.models.hollow_grid import HollowGrid, soft_gate
from nsw.renderers.heat_colours import coloured
from nsw.scenes.scene import Scene


class Film:
    """Saliencies kept while training goes on; part of a loop's checkpoint, so that a resumed run shows all of it."""

    def __init__(self) -> None:
        self.frames: list[Float[Tensor, "T T T"]] = []

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Float[Tensor, "T T T"]:
        return self.frames[index]

    def slices(self, frame: int, level: float, across: float) -> dict[str, np.ndarray]:
        """Return `slices` of one of the saliencies."""
        return slices(self.frames[frame], level, across)

    def take(self, model: HollowGrid) -> None:
        """Keep the saliency as it is now."""
        self.frames.append(saliencies(model))

    def state_dict(self) -> dict[str, Tensor]:
        return {str(k): frame for k, frame in enumerate(self.frames)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.frames = [state[str(k)] for k in range(len(state))]


def saliencies(model: HollowGrid) -> Float[Tensor, "T T T"]:
    """Return the saliency at the grid's vertices, in (0, 1)."""
    return model.logits.detach()[..., 0].sigmoid().cpu()


def slices(grid: Tensor, level: float = 0.45, across: float = 0.5) -> dict[str, np.ndarray]:
    """Return two cuts through a grid of values in [0, 1], as coloured pictures uint8: from above, and from the side, z upwards.

    Args:
        level, across: where the horizontal and the vertical cut lie, as shares of the box.
    """
    n = len(grid)
    at = lambda share: min(int(share * n), n - 1)  # noqa: E731
    cuts = {"from above": grid[:, :, at(level)], "from the side": grid[:, at(across), :]}
    return {name: coloured(cut.T.flip(0), 0.0, 1.0) for name, cut in cuts.items()}


@torch.no_grad()
def hidden(scene: Scene, aabb: Float[Tensor, "2 3"], n_vertices: int, split: str = "train") -> Bool[Tensor, "T T T"]:
    """Return the vertices that no camera sees: inside of things, or beneath what stands on them."""
    cameras, depth = scene.views(split), scene.depth[scene.frames(split)].float()
    points = lattice(aabb.cpu(), (n_vertices,) * 3).reshape(-1, 3)
    pixels, z = project(cameras, points)
    column, row = pixels.floor().long().unbind(-1)
    inside = (z > 0) & (column >= 0) & (column < cameras.width) & (row >= 0) & (row < cameras.height)
    column, row = column.clamp(0, cameras.width - 1), row.clamp(0, cameras.height - 1)
    surface = torch.stack([d[i, j] for d, i, j in zip(depth, row, column, strict=True)])
    seen = inside & ((surface == 0) | (z <= surface))
    return (inside.any(0) & ~seen.any(0)).view((n_vertices,) * 3)


def known_vertices(
    scene: Scene, aabb: Float[Tensor, "2 3"], n_vertices: int
) -> tuple[Bool[Tensor, "T T T"], Bool[Tensor, "T T T"], Bool[Tensor, "T T T"]] | tuple[None, None, None]:
    """Return the vertices beside visible surfaces, those far from them, and of these the hidden ones; None without true depth."""
    if not scene.knows("depth"):
        return None, None, None
    beside, far = hollow.shell(scene, aabb, n_vertices)
    return beside, far, hidden(scene, aabb, n_vertices) & far


def agreement(saliency: Tensor, shell: Bool[Tensor, "T T T"], threshold: float = 0.05) -> tuple[float, float]:
    """Return precision and recall of a saliency against the true shell, both in [0, 1].

    Precision is the share of vertices with a saliency of `threshold` or more that stand beside a visible surface; recall the
    share of those beside one that have it. Precision is 1 where no vertex is salient.

    >>> agreement(torch.tensor([0.9, 0.9, 0.0, 0.0]), torch.tensor([True, False, True, True]))
    (0.5, 0.3333333333333333)
    """
    salient = saliency >= threshold
    hits = float((salient & shell).sum())
    return hits / max(int(salient.sum()), 1) if bool(salient.any()) else 1.0, hits / max(int(shell.sum()), 1)


def agreement_curve(saliency: Tensor, shell: Bool[Tensor, "T T T"], n: int = 40) -> tuple[list[float], list[float]]:
    """Return recall and precision at n thresholds, evenly spaced in the logit from a saliency of 0.0001 to one of 0.88.

    >>> [len(values) for values in agreement_curve(torch.rand(3, 3, 3), torch.rand(3, 3, 3) > 0.5, 5)]
    [5, 5]
    """
    thresholds = torch.linspace(-9.0, 2.0, n).sigmoid().tolist()
    precision, recall = zip(*(agreement(saliency, shell, at) for at in thresholds), strict=True)
    return list(recall), list(precision)


def histogram(saliency: Tensor, n_bins: int = 10) -> dict[str, float]:
    """Return the share of vertices in each bin of saliency, by the bin's lower end."""
    counts = torch.histc(saliency.float(), n_bins, 0.0, 1.0) / saliency.numel()
    return {f"{k / n_bins:g}": float(count) for k, count in enumerate(counts)}


def collisions(
    fields: dict[str, HashGrid], pixels: ngp.Pixels, near: float, level: int, surface: Bool[Tensor, "n n n"] | None
) -> list[dict[str, object]]:
    """Return a row for each field: who pulls at the entries of one level, and how much of it comes from surfaces if known."""
    rows = []
    for name, field in fields.items():
        pull = look.pull_on(field, pixels, level, near)
        rows.append({"field": name, "vertices pulled": int((pull.mass > 0).sum())} | look.pull_columns(field, pull, surface))
    return rows


def edge_curves() -> dict[str, tuple[Tensor, Tensor]]:
    """Return the saliency along four vertices with logits -9, -9, 21, 21, interpolated first and squashed first."""
    x, box, logits = torch.linspace(0, 3, 200), torch.tensor([[0.0, 0, 0], [3, 1, 1]]), torch.tensor([-9.0, -9.0, 21.0, 21.0])
    points = torch.stack([x, 0 * x, 0 * x], dim=1)
    line = lambda values: grid_lookup(values[:, None, None, None], points, box)[:, 0]  # noqa: E731
    return {"interpolate, then squash": (x, line(logits).sigmoid()), "squash, then interpolate": (x, line(logits.sigmoid()))}


def gate_curves() -> dict[str, tuple[Tensor, Tensor]]:
    """Return the gate for features of any length, at three steepnesses."""
    p = torch.linspace(0, 1, 200)
    return {f"steepness {a:g}": (p, soft_gate(p[:, None], a)) for a in (3.0, 10.0, 30.0)}


def thermostat(rho: float = 0.5, limit: float = 0.3, n_steps: int = 200, lr: float = 0.1) -> tuple[list[float], list[float]]:
    r"""Return m and gamma over the steps of a problem whose answer is known.

    $$\min_m\ \tfrac12 (m - 0.8)^2 \quad \text{s.t.} \quad m \le C$$  The optimum is m = C, at the price gamma = 0.8 - C.
    """
    m, gamma = torch.tensor(0.8, requires_grad=True), torch.tensor(0.0)
    means, prices = [], []
    for _ in range(n_steps):
        loss = 0.5 * (m - 0.8).square() + hollow.loss_constraint(m, limit, gamma, rho)
        (slope,) = torch.autograd.grad(loss, m)
        m = (m - lr * slope).detach().requires_grad_()
        gamma = hollow.dual_step(gamma, m, limit, lr * rho)
        means.append(float(m.detach()))
        prices.append(float(gamma))
    return means, prices


def thermostat_curves(rho: float, limit: float) -> dict[str, tuple[range, list[float]]]:
    """Return `thermostat` as curves over its steps, with the limit and the price that the answer asks for."""
    m, gamma = thermostat(rho, limit)
    curves = {"mean m": m, "multiplier": gamma, "limit C": [limit] * len(m), "right price": [0.8 - limit] * len(m)}
    return {name: (range(len(m)), values) for name, values in curves.items()}


@torch.no_grad()
def oracle(model: HollowGrid, beside: Bool[Tensor, "T T T"]) -> HollowGrid:
    """Set an untrained grid's saliency to the true shell, and keep it there: what no pruning can know."""
    model.logits.copy_(torch.where(beside, 6.0, -10.0)[..., None])
    model.logits.requires_grad_(False)
    return model


def empty_density(model: HollowGrid, n: int = 16) -> float:
    """Return the largest density that a field has where its saliency is nothing, as if all of the box were pruned."""
    field = look.up_to_level(model, len(model.levels))
    with torch.no_grad():
        field.logits.fill_(-60.0)
        return float(field.density(lattice(field.aabb, (n,) * 3, centres=True).reshape(-1, 3)).amax())


def summary(name: str, field: HashGrid, score: Callable[[HashGrid], float]) -> dict[str, object]:
    """Return a row of the table of ablations; hollow fields are emptied first."""
    row: dict[str, object] = {"quick run": name, "mean saliency": "-", "density of nothing": "-"}
    if isinstance(field, HollowGrid):
        packing.hollow_out(field)
        row["mean saliency"] = f"{float(saliencies(field).mean()):.2f}"
        row["density of nothing"] = f"{empty_density(field):.2g}"
    cells = f"{float(field.occupancy.binaries.float().mean()):.0%}"
    return row | {"PSNR (dB)": score(field), "cells on": cells, "numbers to store": packing.n_stored(field)}
