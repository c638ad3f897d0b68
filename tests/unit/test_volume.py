"""The volume renderer against what can be worked out by hand."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from nsw.cameras import Rays, camera_rays, orbit
from nsw.errors import InputError
from nsw.kernels.occupancy import OccGridEstimator
from nsw.models.field import FieldOutput
from nsw.renderers import parts, volume
from nsw.renderers import render_view as render_any
from nsw.renderers.volume import composite, edges_around, importance_samples, ray_bounds, render_rays, render_view, stratified


class Slab:
    """Density between two heights z, coloured by position."""

    aabb = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])

    def __init__(self, low: float = 0.0, high: float = 0.5, density: float = 1e4, colour=(0.2, 0.4, 0.8)):
        self.low, self.high, self.value, self.colour = low, high, density, torch.tensor(colour)

    def density(self, points_world):
        return self.value * ((points_world[:, 2] > self.low) & (points_world[:, 2] < self.high)).to(points_world)

    def query(self, points_world, directions):
        return FieldOutput(self.density(points_world), self.colour.to(points_world).expand(len(points_world), 3))


class Blobs:
    """Three soft blobs whose colour depends on position and direction."""

    aabb = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
    centres = torch.tensor([[0.3, 0.2, 0.1], [-0.4, 0.1, -0.2], [0.0, -0.5, 0.3]])

    def density(self, points_world):
        d2 = (points_world[:, None] - self.centres.to(points_world)).square().sum(-1)
        return 8.0 * torch.exp(-d2 / 0.05).sum(-1)

    def query(self, points_world, directions):
        return FieldOutput(self.density(points_world), torch.sigmoid(3 * points_world + directions))


def _downward(n: int = 5, dtype=torch.float32) -> Rays:
    origins = torch.rand(n, 3, generator=torch.Generator().manual_seed(0), dtype=dtype) - 0.5
    origins[:, 2] = 3.0
    return Rays(origins, torch.tensor([[0.0, 0.0, -1.0]], dtype=dtype).expand(n, 3), torch.ones(n, dtype=dtype))


def test_an_opaque_slab_renders_its_colour_and_the_distance_of_its_face():
    out = render_rays(Slab(), _downward(), n_samples=400)
    assert torch.allclose(out.rgb, torch.tensor([0.2, 0.4, 0.8]).expand(5, 3), atol=1e-6)
    assert torch.allclose(out.alpha, torch.ones(5), atol=1e-6)
    assert torch.allclose(out.depth, torch.full((5,), 2.5 + 0.5 / 200), atol=1e-4)  # the first sample below z = 0.5


def test_a_thin_slab_lets_through_exp_of_minus_its_optical_depth():
    out = render_rays(Slab(0.0, 0.5, density=3.0), _downward(dtype=torch.float64), n_samples=64, background=0.0)
    assert torch.allclose(1 - out.alpha, torch.full((5,), -1.5, dtype=torch.float64).exp(), atol=1e-12)


def test_weights_and_what_is_left_sum_to_one():
    generator = torch.Generator().manual_seed(1)
    densities = torch.rand(64, 40, generator=generator, dtype=torch.float64) * 20
    edges = torch.rand(64, 41, generator=generator, dtype=torch.float64).sort(dim=-1).values
    _, alpha, weights = composite(densities, torch.zeros(64, 40, 3, dtype=torch.float64), edges)
    left = torch.exp(-(densities * edges.diff(dim=-1)).sum(-1))
    assert (weights >= 0).all() and (weights.sum(-1) <= 1 + 1e-12).all()
    assert torch.allclose(alpha + left, torch.ones(64, dtype=torch.float64), atol=1e-13)


def test_compositing_has_the_right_gradient():
    generator = torch.Generator().manual_seed(2)
    densities = (torch.rand(3, 6, generator=generator, dtype=torch.float64) * 4).requires_grad_()
    rgbs = torch.rand(3, 6, 3, generator=generator, dtype=torch.float64).requires_grad_()
    edges = torch.rand(3, 7, generator=generator, dtype=torch.float64).sort(dim=-1).values
    background = torch.rand(3, 3, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda d, c: composite(d, c, edges, background), (densities, rgbs))


def test_an_infinite_density_gives_finite_numbers():
    rgb, alpha, weights = composite(
        torch.tensor([[0.0, float("inf"), 5.0]]), torch.ones(1, 3, 3) * 0.3, torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    )
    assert weights.tolist() == [[0.0, 1.0, 0.0]] and torch.allclose(rgb, torch.tensor(0.3))


@pytest.mark.parametrize("background", [0.0, 1.0, torch.tensor([0.1, 0.5, 0.9])])
def test_a_ray_that_misses_the_box_shows_the_background(background):
    rays = Rays(torch.tensor([[5.0, 0.0, 3.0]]), torch.tensor([[0.0, 0.0, -1.0]]), torch.ones(1))
    out = render_rays(Slab(), rays, n_samples=8, background=background)
    assert torch.allclose(out.rgb[0], torch.as_tensor(background).expand(3)) and out.alpha.item() == 0 and out.depth.item() == 0


def test_bounds_are_the_box_cut_by_near_and_far():
    near, far, hit = ray_bounds(Slab(), _downward(2))
    assert torch.allclose(near, torch.tensor(2.0)) and torch.allclose(far, torch.tensor(4.0)) and hit.all()
    near, far, hit = ray_bounds(Slab(), _downward(2), near=2.5, far=torch.tensor([3.0, 1.0]))
    assert near.tolist() == [2.5, 0.0] and far.tolist() == [3.0, 0.0] and hit.tolist() == [True, False]
    inside = Rays(torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 0.0]]), torch.ones(1))
    assert [x.item() for x in ray_bounds(Slab(), inside)] == [0.0, 1.0, True]


def test_a_field_without_a_box_needs_near_and_far():
    field = Blobs()
    field.aabb = None
    with pytest.raises(InputError, match="near and far"):
        render_rays(field, _downward())
    assert render_rays(field, _downward(), near=2.0, far=4.0).rgb.shape == (5, 3)


def test_stratified_samples_stay_in_their_bins_and_fill_them():
    near, far = torch.full((20000,), 2.0), torch.full((20000,), 6.0)
    t = stratified(near, far, 8, torch.Generator().manual_seed(0))
    place = (t - 2.0) / 0.5 - torch.arange(8)
    assert (place >= -1e-5).all() and (place <= 1 + 1e-5).all()
    assert kstest(place[:, 3].numpy(), "uniform").pvalue > 1e-3


def test_edges_around_samples_cover_the_ray_once():
    t = torch.tensor([[1.0, 1.5, 3.0]])
    edges = edges_around(t, torch.tensor([0.5]), torch.tensor([4.0]))
    assert edges.tolist() == [[0.5, 1.25, 2.25, 4.0]]


def test_importance_samples_follow_the_histogram():
    edges = torch.tensor([[0.0, 1.0, 1.5, 4.0, 4.5]])
    weights = torch.tensor([[1.0, 3.0, 0.0, 2.0]])
    t = importance_samples(edges.expand(4000, -1), weights.expand(4000, -1), 16, torch.Generator().manual_seed(0))

    def cdf(x):
        return np.interp(x, edges[0].numpy(), [0, 1 / 6, 4 / 6, 4 / 6, 1.0])

    assert (t.diff(dim=-1) >= 0).all()
    assert kstest(t[:, 3].numpy(), cdf).pvalue < 1e-3  # the test can tell: one part of sixteen is another distribution
    picked = torch.randint(16, (4000, 1), generator=torch.Generator().manual_seed(1))
    assert kstest(t.gather(1, picked)[:, 0].numpy(), cdf).pvalue > 1e-3


def test_importance_samples_of_an_empty_ray_are_uniform_and_finite():
    t = importance_samples(torch.tensor([[2.0, 3.0, 4.0], [0.0, 0.0, 0.0]]), torch.zeros(2, 2), 4)
    assert torch.allclose(t[0], torch.tensor([2.25, 2.75, 3.25, 3.75])) and t[1].tolist() == [0.0] * 4


def test_no_gradient_flows_through_the_places_of_fine_samples():
    class Learned(Blobs):
        scale = torch.nn.Parameter(torch.tensor(1.0))

        def query(self, points_world, directions):
            density, rgb, _ = super().query(points_world, directions)
            return FieldOutput(self.scale * density, rgb)

    out = render_rays(Learned(), _downward(), n_samples=8, n_fine=8)
    assert not out.t.requires_grad and out.rgb.requires_grad and out.coarse.rgb.requires_grad
    assert out.t.shape == (5, 16) and out.coarse.t.shape == (5, 8)


def test_fine_samples_come_closer_to_a_thin_wall_than_as_many_uniform_ones():
    wall, rays = Slab(0.1, 0.25, density=6.0), camera_rays(orbit(1, radius=3.0, elevation_degrees=40.0, width=24, height=24))
    exact = render_rays(wall, rays, n_samples=4000).rgb
    uniform = (render_rays(wall, rays, n_samples=32).rgb - exact).abs().mean()
    fine = (render_rays(wall, rays, n_samples=16, n_fine=16).rgb - exact).abs().mean()
    assert fine < 0.85 * uniform


def test_skipping_colours_of_light_samples_changes_little():
    rays = camera_rays(orbit(1, radius=3.0, width=16, height=16))
    with torch.no_grad():
        full = render_rays(Blobs(), rays, n_samples=64)
        lean = render_rays(Blobs(), rays, n_samples=64, colour_threshold=1e-4)
    assert (full.rgb - lean.rgb).abs().max() < 64e-4
    assert (lean.rgbs == 0).all(-1).float().mean() > 0.3


@pytest.fixture(scope="module")
def full_grid() -> OccGridEstimator:
    grid = OccGridEstimator([-1, -1, -1, 1, 1, 1], 4)
    grid.binaries.fill_(True)
    return grid


def test_packed_samples_give_what_batched_ones_give_with_gradients(full_grid):
    class Learned(Blobs):
        def __init__(self):
            self.scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)

        def query(self, points_world, directions):
            density, rgb, _ = super().query(points_world, directions)
            return FieldOutput(self.scale * density, rgb * self.scale.sigmoid())

    rays, step = _downward(7, torch.float64), 2.0 / 32
    results = []
    for options in (dict(n_samples=32), dict(occupancy=full_grid.double(), step=step)):
        field = Learned()
        out = render_rays(field, rays, background=0.3, **options)
        (out.rgb.square().sum() + out.depth.sum() + out.alpha.sum()).backward()
        results.append([out.rgb, out.alpha, out.depth, field.scale.grad])
    for batched, packed in zip(*results, strict=True):
        assert torch.allclose(batched, packed, rtol=0, atol=1e-12)


def test_an_occupancy_grid_skips_empty_cells_without_changing_the_picture():
    grid = OccGridEstimator([-1, -1, -1, 1, 1, 1], 32)
    torch.manual_seed(0)
    for _ in range(3):
        grid._update(0, lambda x: Blobs().density(x), occ_thre=1e-3)
    assert 0.02 < grid.binaries.float().mean() < 0.8
    rays = camera_rays(orbit(1, radius=3.0, width=24, height=24))
    full, lean = (render_rays(Blobs(), rays, occupancy=g, step=0.02) for g in (_everything(grid), grid))
    assert (full.rgb - lean.rgb).abs().max() < 0.01
    assert len(lean.t) < 0.6 * len(full.t)


def _everything(grid: OccGridEstimator) -> OccGridEstimator:
    full = OccGridEstimator(grid.aabbs[0], 32)
    full.binaries.fill_(True)
    return full


def test_early_stop_drops_what_is_behind_a_wall(full_grid):
    full_grid.float()
    options = dict(occupancy=full_grid, step=0.02)
    full, stopped = render_rays(Slab(), _downward(), **options), render_rays(Slab(), _downward(), early_stop=1e-4, **options)
    assert torch.allclose(full.rgb, stopped.rgb, atol=1e-4) and len(stopped.t) < 0.5 * len(full.t)


def test_an_empty_grid_shows_the_background():
    out = render_rays(Slab(), _downward(), occupancy=OccGridEstimator([-1, -1, -1, 1, 1, 1], 4), step=0.1, background=0.5)
    assert torch.allclose(out.rgb, torch.tensor(0.5)) and len(out.t) == 0


def test_jitter_repeats_with_its_generator(full_grid):
    full_grid.float()
    for options in (dict(n_samples=8), dict(n_samples=4, n_fine=4), dict(occupancy=full_grid, step=0.1)):
        a, b, c = (render_rays(Blobs(), _downward(), jitter=torch.Generator().manual_seed(s), **options).t for s in (3, 3, 4))
        assert torch.equal(a, b) and not (a.shape == c.shape and torch.equal(a, c))


def test_a_view_has_camera_depth_and_does_not_depend_on_chunks():
    cameras = orbit(2, radius=3.0, elevation_degrees=90.0, width=16, height=12, fov_x_degrees=30.0)
    a = render_view(Slab(), cameras, n_samples=400)
    b = render_any(Slab(), cameras, n_samples=400, chunk=50)
    assert torch.equal(a.rgb, b.rgb) and a.rgb.shape == (2, 12, 16, 3)
    # a plane that the camera looks at straight on has one depth, whatever the ray's slope
    assert torch.allclose(a.depth[a.alpha > 0.5], torch.tensor(2.5), atol=0.01)


def test_many_large_views_are_drawn_a_few_at_a_time(monkeypatch):
    cameras, seen = orbit(3, radius=3.0, width=6, height=4, fov_x_degrees=30.0), []
    whole = render_view(Slab(), cameras, n_samples=20)
    monkeypatch.setattr(parts, "few_cameras", partial(parts.few_cameras, most=30))
    monkeypatch.setattr(volume, "camera_rays", lambda some: seen.append(len(some)) or camera_rays(some))
    parted = render_view(Slab(), cameras, n_samples=20)
    assert seen == [1, 1, 1]
    assert all(torch.equal(getattr(parted, name), getattr(whole, name)) for name in ("rgb", "alpha", "depth"))


def test_a_view_takes_the_options_a_model_brings():
    class Opinionated(Blobs):
        render_defaults = {"n_samples": 5, "n_fine": 3}
        asked = 0

        def query(self, points_world, directions):
            self.asked += len(points_world)
            return super().query(points_world, directions)

    field, cameras = Opinionated(), orbit(1, radius=3.0, width=4, height=4, fov_x_degrees=20.0)
    render_view(field, cameras)
    assert field.asked == 16 * (5 + 8)
    render_view(field, cameras, n_samples=2, n_fine=0)
    assert field.asked == 16 * (5 + 8) + 16 * 2


def test_cameras_follow_a_model_to_its_device():
    class Drawn(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1, device="meta"))

        def render_view(self, cameras, background):
            return cameras.Ks.device.type, background

    assert render_any(Drawn(), orbit(1, width=4, height=4), background=0.5) == ("meta", 0.5)
