"""Feature fields: what a ray sees of features, what they leave alone, and that a few seconds of training teach something."""

from __future__ import annotations

import pytest
import torch

from nsw import scenes
from nsw.cameras import camera_rays
from nsw.methods import feature_fields as fields
from nsw.methods import instant_ngp as ngp
from nsw.methods.instant_ngp_fit import Plan

SMALL = dict(n_levels=4, log2_entries=10, n_max=32, width=16, n_cells=16)


@pytest.fixture(scope="module")
def toys():
    return scenes.load("toybox", size=24)


def new(toys, **sizes):
    model = fields.new_field(toys, 4, 6, steps_across=32, **{**SMALL, **sizes})
    with torch.no_grad():  # something to see: a fresh table says hardly anything
        model.table.copy_(torch.rand(model.table.shape, generator=torch.Generator().manual_seed(0)) - 0.5)
    return model


def test_a_ray_sees_the_weighted_sum_of_its_points_features(toys):
    model, rays = new(toys), camera_rays(toys.views("test")[0])[200:260]
    with torch.no_grad():
        out, features = fields.seen(model, rays)
        points = rays.origins[out.ray_indices] + out.t[:, None] * rays.directions[out.ray_indices]
        each = model.feature_net(model.geometry(points)[1]).double()
    rows = [(out.weights[out.ray_indices == i, None].double() * each[out.ray_indices == i]).sum(0) for i in range(len(rays))]
    torch.testing.assert_close(features.double(), torch.stack(rows), rtol=1e-4, atol=1e-5)
    assert features.abs().max() > 1e-3


def test_colour_is_that_of_the_field_without_features(toys):
    model, rays = new(toys), camera_rays(toys.views("test")[0])[200:260]
    with torch.no_grad():
        torch.testing.assert_close(fields.seen(model, rays)[0].rgb, ngp.render(model, rays).rgb)


def test_features_do_not_pull_on_what_only_density_and_colour_use(toys):
    """The last layer's first row makes the density: with detached weights a feature's loss must not reach it."""
    model, rays = new(toys), camera_rays(toys.views("train")[0])[200:300]
    _, features = fields.seen(model, rays)
    model.decoder(features).square().mean().backward()
    assert bool((model.density_net[-1].weight.grad[0] == 0).all()) and model.density_net[-1].weight.grad[1:].abs().max() > 0
    assert all(p.grad is None for p in model.colour_net.parameters())
    assert model.feature_net[0].weight.grad.abs().max() > 0 and model.decoder.bias.grad.abs().max() > 0


def test_lessons_name_each_pixel_with_its_own_feature(toys):
    model, (height, width) = new(toys), toys.images.shape[1:3]
    n = len(toys.splits["train"])
    maps = torch.arange(n * height * width).float().view(n, 1, height, width) / 65536
    lessons = fields.lessons_of(toys, maps, model)
    hits = ngp.meets(camera_rays(toys.views("train")), model.aabb)
    torch.testing.assert_close(lessons.features[:, 0].float(), maps.flatten()[hits], rtol=1e-3, atol=1e-3)
    assert len(lessons.pixels) == len(lessons.features) == int(hits.sum())


def test_a_picture_has_the_size_asked_for_and_training_learns_a_constant_map(toys):
    model = new(toys)
    maps = torch.tensor([1.0, -1.0, 0.5, 0.0, 0.2, -0.3])[None, :, None, None].expand(len(toys.splits["train"]), -1, 6, 8)
    generator = torch.Generator().manual_seed(0)
    lessons = fields.lessons_of(toys, maps, model)
    view = toys.views("test")[:1]
    before = fields.picture(model, view, toys.near, (6, 8))[1]
    told = iter(range(100))
    n_steps = fields.fit_for(model, lessons, 1.0, toys.near, generator, Plan(n_samples=1024), weight=1.0, percents=told)
    rgb, after = fields.picture(model, view, toys.near, (6, 8))
    assert not list(told), "the bar ends"
    assert n_steps > 1 and tuple(rgb.shape) == (1, *toys.images.shape[1:3], 3) and tuple(after.shape) == (1, 6, 6, 8)
    assert (after - maps[:1]).abs().mean() < 0.5 * (before - maps[:1]).abs().mean()
