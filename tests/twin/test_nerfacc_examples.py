"""The step loops of nerfacc's two documented examples, on the CPU: an occupancy-grid NeRF and a proposal-network NeRF.

Own code for the same logic: small torch networks learn a coloured ball from its pictures. nerfacc itself is imported too, and does
what it can do on a CPU tensor with what the kernels sampled.
"""

from __future__ import annotations

import nerfacc
import pytest
import torch
from torch import nn

import nsw.kernels as kernels
from nsw.cameras import camera_rays, orbit

BOX = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0])
STEP = 0.08


def truth(origins: torch.Tensor, directions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return colour over white and distance of a solid ball of radius 0.6 whose colour follows its normal."""
    b = (origins * directions).sum(-1)
    root = b.square() - origins.square().sum(-1) + 0.36
    t = -b - root.clamp_min(0).sqrt()
    normal = (origins + t[:, None] * directions) / 0.6
    colour = torch.where((root > 0)[:, None], 0.5 + 0.4 * normal, torch.ones(3))
    return colour, torch.where(root > 0, t, torch.zeros(()))


def encode(x: torch.Tensor, octaves: int = 3) -> torch.Tensor:
    angles = (x[..., None] * 2.0 ** torch.arange(octaves)).flatten(-2) * torch.pi / 2
    return torch.cat([x, angles.sin(), angles.cos()], dim=-1)


class Field(nn.Module):
    """A radiance field of one hidden layer."""

    def __init__(self, width: int = 48, outputs: int = 4):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(21, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))

    def density(self, points: torch.Tensor) -> torch.Tensor:
        inside = (points.abs() < 1).all(-1)
        return nn.functional.softplus(self.net(encode(points))[..., 0] * 4 - 1) * inside * 4

    def forward(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.net(encode(points))[..., 1:].sigmoid(), self.density(points)


@pytest.fixture(scope="module")
def pictures() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rays = camera_rays(orbit(6, radius=3.0, elevation_degrees=25.0, width=24, height=24, fov_x_degrees=45.0))
    return rays.origins, rays.directions, truth(rays.origins, rays.directions)[0]


def psnr(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return -10 * (found - wanted).square().mean().log10().item()


def test_a_field_with_an_occupancy_grid_learns_the_ball(pictures):
    torch.manual_seed(0)
    origins, directions, colours = pictures
    field, grid = Field(), kernels.OccGridEstimator(BOX, 16)
    optimizer = torch.optim.Adam(field.parameters(), lr=5e-3, fused=True)

    def render(o: torch.Tensor, d: torch.Tensor, training: bool):
        def positions(t_starts, t_ends, ray_indices):
            return o[ray_indices] + (t_starts + t_ends)[:, None] / 2 * d[ray_indices]

        def sigma_fn(t_starts, t_ends, ray_indices):
            return field.density(positions(t_starts, t_ends, ray_indices))

        def rgb_sigma_fn(t_starts, t_ends, ray_indices):
            return field(positions(t_starts, t_ends, ray_indices))

        where = grid.sampling(o, d, sigma_fn=sigma_fn, render_step_size=STEP, stratified=training, alpha_thre=1e-3)
        ray_indices, t_starts, t_ends = where
        shown = kernels.rendering(
            t_starts, t_ends, ray_indices, n_rays=len(o), rgb_sigma_fn=rgb_sigma_fn, render_bkgd=torch.ones(3)
        )
        return shown, where

    counts = []
    for step in range(200):
        grid.update_every_n_steps(step, lambda x: field.density(x) * STEP, occ_thre=1e-2, warmup_steps=64)
        some = torch.randint(len(origins), (256,))
        (found, *_), where = render(origins[some], directions[some], True)
        counts.append(len(where[0]))
        if counts[-1] == 0:
            continue
        loss = nn.functional.smooth_l1_loss(found, colours[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    grid.eval()
    with torch.no_grad():
        (found, opacity, depth, extras), (ray_indices, t_starts, t_ends) = render(origins, directions, False)
    assert psnr(found, colours) > 20
    assert sum(counts[-10:]) < 0.5 * sum(counts[:10])  # the grid has learnt where nothing is
    hit = (truth(origins, directions)[1] > 0) & (opacity[:, 0] > 0.9)
    assert hit.sum() > 300 and (depth[hit, 0] - truth(origins, directions)[1][hit]).abs().median() < 0.25
    theirs = nerfacc.accumulate_along_rays(extras["weights"], extras["rgbs"], ray_indices, len(origins))
    assert torch.allclose(theirs + (1 - opacity), found, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # not due at step 0, as in nerfacc
def test_a_field_with_proposal_networks_learns_the_ball(pictures):
    torch.manual_seed(0)
    origins, directions, colours = pictures
    field, proposal = Field(), Field(width=16, outputs=1)
    optimizer = torch.optim.Adam(field.parameters(), lr=5e-3, fused=True)
    of_proposal = torch.optim.Adam(proposal.parameters(), lr=2e-2, fused=True)
    estimator = kernels.PropNetEstimator(of_proposal, torch.optim.lr_scheduler.ConstantLR(of_proposal, factor=1.0))
    due = kernels.get_proposal_requires_grad_fn(target=3.0, num_steps=50)

    def render(o: torch.Tensor, d: torch.Tensor, training: bool, requires_grad: bool):
        def positions(t_starts, t_ends):
            return o[:, None] + (t_starts + t_ends)[..., None] / 2 * d[:, None]

        t_starts, t_ends = estimator.sampling(
            [lambda a, b: proposal.density(positions(a, b))],
            [24],
            12,
            n_rays=len(o),
            near_plane=1.5,
            far_plane=4.5,
            sampling_type="uniform",
            stratified=training,
            requires_grad=requires_grad,
        )
        return kernels.rendering(
            t_starts, t_ends, rgb_sigma_fn=lambda a, b, r: field(positions(a, b)), render_bkgd=torch.ones(3)
        ), (t_starts, t_ends)

    losses = []
    for step in range(220):
        some = torch.randint(len(origins), (256,))
        requires_grad = due(step)
        (found, _, _, extras), _ = render(origins[some], directions[some], True, requires_grad)
        missed = estimator.update_every_n_steps(extras["trans"], requires_grad)
        losses += [missed] if requires_grad else []
        loss = nn.functional.smooth_l1_loss(found, colours[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    estimator.eval()
    with torch.no_grad():
        (found, opacity, *_), (t_starts, t_ends) = render(origins, directions, False, False)
        uniform = torch.linspace(1.5, 4.5, 13).expand(len(origins), -1)
        midpoints = origins[:, None] + (uniform[:, 1:] + uniform[:, :-1])[..., None] / 2 * directions[:, None]
        even = kernels.rendering(
            uniform[:, :-1], uniform[:, 1:], rgb_sigma_fn=lambda *_: field(midpoints), render_bkgd=torch.ones(3)
        )
    assert 30 < len(losses) < 150 and all(torch.isfinite(torch.tensor(losses)))
    assert psnr(found, colours) > 20 and psnr(found, colours) > psnr(even[0], colours)
    surface = truth(origins, directions)[1]
    hit = (surface > 0) & (opacity[:, 0] > 0.9)
    near = ((t_starts + t_ends) / 2 - surface[:, None]).abs()[hit] < 0.25
    assert near.float().mean() > 0.3  # twelve even samples would have 0.17 there
    theirs = nerfacc.render_weight_from_density(
        t_starts, t_ends, proposal.density(origins[:, None] + t_starts[..., None] * directions[:, None])
    )
    ours = kernels.render_weight_from_density(
        t_starts, t_ends, proposal.density(origins[:, None] + t_starts[..., None] * directions[:, None])
    )
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
