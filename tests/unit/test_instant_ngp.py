"""Instant-NGP: batches, backgrounds, occupancy against the truth, rendering, training and the instruments of its notebook."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import pytest
import torch

from nsw import widgets
from nsw.cameras import Rays, camera_rays, orbit
from nsw.errors import InputError
from nsw.kernels.hash_encoding import hash_levels, hash_rows
from nsw.methods import instant_ngp as ngp
from nsw.methods import instant_ngp_cells as cells_look
from nsw.methods import instant_ngp_fit as fitting
from nsw.methods import instant_ngp_inspect as look
from nsw.methods import occupied_cells
from nsw.methods.instant_ngp_pull import pull_of, sharing
from nsw.models.hash_grid import HashGrid, HashGridSettings
from nsw.renderers import parts, volume
from nsw.renderers.volume import render_rays
from nsw.widgets.svg_still import svg

SIZES = dict(n_levels=6, n_features=2, log2_entries=11, n_min=8, n_max=64, width=16, n_cells=24)
PLAN = fitting.Plan(n_steps=100, n_samples=4096)


@pytest.fixture(scope="module")
def trained(scene):
    pixels = ngp.training_pixels(scene, ngp.cube_around(scene.aabb))
    return pixels, look.retrained(scene, pixels, PLAN, steps_across=64, **SIZES)


def _grid(**changes) -> HashGrid:
    torch.manual_seed(0)
    settings = dict(n_levels=3, n_features=2, log2_entries=9, n_min=4, n_max=16, width=8, n_cells=8, step=0.05)
    model = HashGrid(HashGridSettings(**(settings | changes)))
    model.table.data.normal_(generator=torch.Generator().manual_seed(1))
    return model


def _rays(n: int = 50) -> Rays:
    generator = torch.Generator().manual_seed(3)
    origins = 3 * torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1)
    aims = torch.rand(n, 3, generator=generator) - 0.5
    return Rays(origins, torch.nn.functional.normalize(aims - origins, dim=-1), torch.ones(n))


def test_render_is_the_general_renderer_made_fast():
    model, rays = _grid(), _rays()
    ours = ngp.render(model, rays, background=0.3, threshold=0.0)
    theirs = render_rays(model, rays, background=0.3, occupancy=model.occupancy, step=model.sample_length)
    torch.testing.assert_close(ours.rgb, theirs.rgb, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(1 - ours.left, theirs.alpha, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(ours.depth, theirs.depth, atol=2e-3, rtol=1e-3)
    thinned = ngp.render(model, rays, background=0.3)
    assert len(thinned.t) <= thinned.n_marched == ours.n_marched
    torch.testing.assert_close(thinned.rgb, ours.rgb, atol=5e-3, rtol=0)


def test_nothing_is_asked_in_free_cells():
    model, rays = _grid(), _rays()
    everything = ngp.render(model, rays).n_marched
    model.occupancy.binaries[0, :4] = False
    half = ngp.render(model, rays)
    assert 0 < half.n_marched < everything
    model.occupancy.binaries.fill_(False)
    empty = ngp.render(model, rays, background=0.7)
    assert empty.n_marched == 0 and torch.equal(empty.rgb, torch.full((50, 3), 0.7)) and float(empty.depth.abs().max()) == 0


def test_a_batch_of_empty_air_still_trains():
    model, rays = _grid(), _rays()
    model.occupancy.binaries.fill_(False)
    optimizer = ngp.make_optimizer(model)
    before = model.table.detach().clone()
    ngp.render(model, rays).rgb.sum().backward()
    optimizer.step()
    assert torch.equal(model.table.detach(), before)


def test_batches_keep_the_number_of_samples():
    assert ngp.next_batch(1024, 32768, 32768) == 1024
    assert ngp.next_batch(1024, 10, 32768) == 2048 and ngp.next_batch(1024, 10**7, 32768) == 512
    assert ngp.next_batch(64, 10**7, 32768) == 64 and ngp.next_batch(1 << 16, 1, 32768) == 1 << 16


def test_pixels_over_a_background_are_the_scene_s_own(scene):
    pixels = ngp.training_pixels(scene, torch.tensor([[-99.0] * 3, [99.0] * 3]))
    assert len(pixels) == scene.pixels("train").numel() // 3
    torch.testing.assert_close(pixels.over(0.25), scene.pixels("train", 0.25).reshape(-1, 3))
    some = pixels.draw(100, torch.Generator().manual_seed(0))
    again = pixels.draw(100, torch.Generator().manual_seed(0))
    assert torch.equal(some.rgb, again.rgb) and len(some.rays) == 100
    fewer = ngp.training_pixels(scene, scene.aabb)
    assert len(fewer) < len(pixels)


def test_occupancy_finds_what_is_there_and_forgets_what_is_not(monkeypatch):
    model = _grid(n_cells=16)
    ball = lambda points: 40.0 * (points.norm(dim=-1) < 0.6)  # noqa: E731
    monkeypatch.setattr(model, "density", ball)
    torch.manual_seed(0)
    for step in range(1, 8):
        ngp.update_occupancy(model, step)  # not due
    assert bool(model.occupancy.binaries.all())
    for step in range(0, 128, 16):
        ngp.update_occupancy(model, step)
    centres = (torch.stack(torch.meshgrid(*[torch.arange(16)] * 3, indexing="ij"), -1) + 0.5) / 8 - 1
    inside = centres.norm(dim=-1) < 0.5
    assert ngp.recall(model.occupancy.binaries[0], inside) == 1.0
    assert not bool(model.occupancy.binaries[0][centres.norm(dim=-1) > 0.8].any())
    monkeypatch.setattr(model, "density", lambda points: 40.0 * (points.norm(dim=-1) < 0.3))
    for step in range(0, 128, 8):
        ngp.update_occupancy(model, step, every=8, decay=0.5)
    left = model.occupancy.binaries[0]
    assert bool(left[centres.norm(dim=-1) < 0.2].all()) and not bool(left[centres.norm(dim=-1) > 0.5].any())


def test_true_cells_are_where_depth_says(scene):
    truth = ngp.true_cells(scene, scene.aabb, 16)
    assert 0.01 < float(truth.float().mean()) < 0.5
    inner = ngp.true_cells(scene, scene.aabb, 16, margin=0.2)
    assert 0 < int(inner.sum()) < int(truth.sum()) and not bool((inner & ~truth).any())
    with pytest.raises(InputError, match="depth"):
        ngp.true_cells(dataclasses.replace(scene, depth=None), scene.aabb, 16)


def test_learning_rate_rises_then_falls():
    optimizer = ngp.make_optimizer(_grid(), lr=0.1)
    rates = []
    for progress in (0.0, 0.02, 0.5, 1.0):
        ngp.set_rate(optimizer, progress)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.001) and rates[1] > rates[2] > rates[3] == pytest.approx(0.01)
    assert optimizer.param_groups[0]["eps"] == 1e-15 and optimizer.param_groups[1]["skip_zero"] is False


def test_training_learns_skips_and_keeps_every_true_cell(scene, trained):
    pixels, model = trained
    assert fitting.score_hash(model, scene)() > 18.0
    truth = ngp.true_cells(scene, model.aabb, model.settings.n_cells, margin=0.2)
    assert ngp.recall(model.occupancy.binaries[0], truth) >= 0.97
    views = scene.views("test")[:1]
    assert look.samples_a_ray(model, views, scene.near) < 0.5 * look.samples_a_ray(model, views, scene.near, skip=False)


def test_training_repeats_bit_by_bit(scene, trained):
    pixels, _ = trained
    short = dataclasses.replace(PLAN, n_steps=6, n_samples=1024)
    first, second = (look.retrained(scene, pixels, short, steps_across=32, **SIZES) for _ in range(2))
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_one_level_has_as_many_parameters(trained):
    _, model = trained
    one = fitting.single_level(model)
    assert 0.9 < one.table.numel() / model.table.numel() < 1.2 and one.levels.hashed == (False,)
    points = torch.rand(5, 3)
    assert one.density(points).shape == (5,)


def test_vertices_that_share_a_row_do():
    levels = hash_levels(2, 4, 24, 6)
    together = sharing(levels, 1, levels.first_rows[1] + 5)
    assert len(together) > 100 and set(hash_rows(together, levels, 1).tolist()) == {levels.first_rows[1] + 5}


@pytest.mark.parametrize(
    ("level", "bits"), [(0, 6), (1, 6), (1, 3)], ids=["stored", "hashed", "fewer rows than vertices along an axis"]
)
def test_sharing_finds_what_a_walk_over_all_vertices_finds(level, bits):
    levels = hash_levels(2, 2, 12, bits)
    vertices = torch.cartesian_prod(*[torch.arange(levels.n_vertices[level])] * 3)
    rows = hash_rows(vertices, levels, level)
    for row in range(levels.first_rows[level], levels.first_rows[level + 1]):
        assert torch.equal(sharing(levels, level, row), vertices[rows == row])


def test_pulled_vertices_have_the_mass_that_all_vertices_would_get():
    """One sum a vertex of the whole level, corner by corner, against the pulled vertices alone."""
    levels, generator = hash_levels(2, 4, 24, 6), torch.Generator().manual_seed(0)
    points, length = torch.rand(50, 3, generator=generator), torch.rand(50, generator=generator)
    length[:9] = 0.0
    n, position = levels.n_vertices[1], points * levels.scales[1] + 0.5
    vertices, mass = torch.cartesian_prod(*[torch.arange(n)] * 3), torch.zeros(n**3)
    for corner in torch.cartesian_prod(*[torch.arange(2)] * 3):
        weight = torch.where(corner.bool(), position % 1, 1 - position % 1).prod(-1)
        i, j, k = (position.long() + corner).unbind(-1)
        mass.index_add_(0, (i * n + j) * n + k, weight * length)
    pull = pull_of(levels, 1, points, length)
    assert torch.equal(pull.vertices, vertices[mass > 0]) and torch.allclose(pull.mass, mass[mass > 0], rtol=1e-6)
    assert torch.equal(pull.rows, hash_rows(pull.vertices, levels, 1))
    totals = torch.zeros(levels.n_rows).index_add(0, hash_rows(vertices, levels, 1), mass)
    count = torch.zeros(levels.n_rows).index_add(0, hash_rows(vertices, levels, 1), (mass > 0).float())
    assert [pull.shared_row(r) for r in range(3)] == torch.where(count > 1, totals, 0.0).argsort(descending=True)[:3].tolist()


def test_pictures_and_counts_do_not_depend_on_how_rays_are_parted(scene, trained, monkeypatch):
    _, model = trained
    views = scene.views("test")[:2]
    n_rays = 2 * views.height * views.width
    marched = ngp.render(model, camera_rays(views), scene.near).n_marched
    assert look.samples_a_ray(model, views, scene.near) == marched / n_rays
    assert look.samples_a_ray(model, views, scene.near, chunk=100) == marched / n_rays
    whole = ngp.render_view(model, views, scene.near)
    for most in (500, 1):
        split = partial(volume.parts_of, most=most)
        assert len(split(model, camera_rays(views), model.sampler(), model.sample_length, scene.near)) > 1
        monkeypatch.setattr(ngp, "parts_of", split)
        parted = ngp.render_view(model, views[:1] if most == 1 else views, scene.near, chunk=300 if most == 1 else 1 << 14)
        for name in ("rgb", "alpha", "depth"):
            torch.testing.assert_close(getattr(parted, name), getattr(whole, name)[: len(parted.rgb)], atol=1e-5, rtol=1e-5)


def test_pixels_of_a_few_views_at_a_time_are_those_of_all(scene, trained, monkeypatch):
    pixels, model = trained
    rays = camera_rays(scene.views("train"))
    hits = ngp.meets(rays, model.aabb)
    assert torch.equal(pixels.rays.directions, rays.directions[hits]) and torch.equal(pixels.rays.origins, rays.origins[hits])
    assert torch.equal(pixels.rgb, scene.pixels("train", 0.0).reshape(-1, 3)[hits])
    few = partial(parts.rays_of_some, most=1)
    truth = ngp.true_cells(scene, model.aabb, 12)
    monkeypatch.setattr(occupied_cells, "rays_of_some", few)
    assert len(list(few(scene.views("train")))) == len(scene.frames("train")) and torch.equal(
        ngp.true_cells(scene, model.aabb, 12), truth
    )


def test_the_first_batch_is_bounded():
    box = torch.tensor([[0.0, 0, 0], [3, 4, 12]])  # its diagonal is 13 long
    assert ngp.first_batch(128, box, 0.1) == 128
    assert ngp.first_batch(1 << 20, box, 0.1, most=130 * 200) == 192 and ngp.first_batch(4096, box, 0.1, most=10) == 64


def test_pull_is_the_gradient_of_the_table(scene, trained):
    """On a dense level every vertex has its own row: where the table gets a gradient, the vertex has mass, and nowhere else."""
    pixels, model = trained
    pull = look.pull_on(model, pixels, 0, scene.near, n_rays=256)
    assert not model.levels.hashed[0] and pull.colliding == 0.0 and pull.strongest == 1.0
    fine = look.pull_on(model, pixels, 5, scene.near, n_rays=256)
    assert model.levels.hashed[5] and 0.0 < fine.colliding <= 1.0 and 0.3 < fine.strongest < 1.0
    row = fine.shared_row()
    mine = fine.mass[fine.rows == row]
    gradient, vertices = look.surface_share(model, fine, ngp.true_cells(scene, model.aabb, 24))
    assert 0 < vertices < gradient <= 1
    assert int((mine > 0).sum()) > 1 and float(model.table.grad.abs().sum()) == 0.0


def test_levels_can_be_switched_off(scene, trained):
    _, model = trained
    view = scene.views("test")[:1]
    pictures = [ngp.render_view(look.up_to_level(model, n), view, scene.near).rgb for n in (1, 6)]
    assert torch.equal(pictures[1], ngp.render_view(model, view, scene.near).rgb) and not torch.equal(*pictures)


def test_the_microscope_is_a_chart_with_shares_that_add_up(scene, trained):
    pixels, model = trained
    pulls = [look.pull_on(model, pixels, level, scene.near) for level in range(6)]
    chart = widgets.microscope(model, pulls[5], n_context=50)
    spec = json.loads(chart.to_json())
    assert [trace["type"] for trace in spec["data"]] == ["scatter3d"] * 2
    assert sum(chart.data[1].marker.color) == pytest.approx(1.0, abs=1e-4)
    surface = ngp.true_cells(scene, model.aabb, 24)
    table = look.table_of_levels(model, pulls, surface)
    assert len(table) == 6 and table[0]["in collision"] == "0%"
    less = look.table_of_levels(model, pulls, None)
    assert [row | more for row, more in zip(table, less, strict=True)] == table
    assert set(table[0]) - set(less[0]) == {"gradient at surfaces", "vertices at surfaces"}


def test_a_larger_table_under_the_microscope_has_fewer_collisions_and_one_that_is_stored_has_none(scene, trained):
    pixels, model = trained
    pull, s = look.pull_on(model, pixels, 5, scene.near, n_rays=256), model.settings
    tables = {bits: pull.hashed_into(hash_levels(s.n_levels, s.n_min, s.n_max, bits)) for bits in (6, s.log2_entries, 14, 19)}
    assert torch.equal(tables[s.log2_entries].rows, pull.rows)
    colliding = [table.colliding for table in tables.values()]
    assert colliding == sorted(colliding, reverse=True) and colliding[0] == 1.0 and colliding[-1] == 0.0
    for bits in tables:
        chart = widgets.microscope(model, pull, rank=2, bits=bits)
        assert f"2^{bits} entries" in chart.layout.title.text and sum(chart.data[1].marker.color) == pytest.approx(1.0, abs=1e-4)
    assert len(chart.data[1].x) == 1  # the level is stored


def test_cells_seen_from_two_sides():
    cells = torch.zeros(4, 4, 4, dtype=torch.bool)
    cells[0, 1, 3] = True
    nothing = torch.zeros_like(cells)
    for above, row in ((True, 2), (False, 0)):
        extra, missed, right = (cells_look.overlay(*pair, above) for pair in ((cells, nothing), (nothing, cells), (cells, None)))
        assert torch.equal(extra[3, 3], torch.ones(3))  # white air
        torch.testing.assert_close(missed[row, 0], torch.full((3,), 0.6))  # black, 40 % of it
        assert extra[row, 0, 0] > 0.9 > extra[row, 0, 2] and right[row, 0, 0] < right[row, 0, 2]  # orange and blue
    cells[0, 1, 2] = True
    truth = cells.clone()
    hidden = cells_look.overlay(cells, truth, True)[2, 0]
    truth[0, 1, 2] = False
    assert hidden[2] > cells_look.overlay(cells, truth, True)[2, 0, 2] > extra[0, 0, 2]  # what lies below shows through


def test_snapshots_of_the_cells_outlive_a_restart_and_are_drawn(trained):
    _, model = trained
    film, again = cells_look.Snapshots(), cells_look.Snapshots()
    film.take(0, _grid(n_cells=24))
    film.take(100, model)
    again.load_state_dict(film.state_dict())
    assert len(again) == 2 and all(torch.equal(again.grids[step], grid) for step, grid in film.grids.items())
    assert bool(film.grids[0].all()) and torch.equal(film.grids[100], model.occupancy.binaries[0])
    marched = ([0, 50, 99], [40.0, 20.0, 10.0])
    for truth, recalled in ((None, False), (film.grids[100], True)):
        chart = widgets.cells_figure(again, 1, truth, marched)
        assert "Step 100" in chart.layout.title.text and "10.0 samples" in chart.layout.title.text
        assert ("recall 1.000" in chart.layout.title.text) == recalled and "<image" in svg(chart, "two pictures and a curve")


def test_orbit_pictures_have_all_maps(scene, trained):
    _, model = trained
    cameras = orbit(2, radius=3.0, width=10, height=8)
    shot = ngp.render_view(model, cameras, scene.near)
    assert shot.rgb.shape == (2, 8, 10, 3) and shot.alpha.shape == shot.depth.shape == (2, 8, 10)


def test_entries_of_a_race_take_steps_and_are_scored(trained, scene):
    pixels, model = trained
    some, generator = scene.frames("test")[:1], torch.Generator()
    network, entry = fitting.network_entry(scene, generator, some)
    grid, other = fitting.hash_entry(scene, pixels, PLAN, generator, some, steps_across=32, **SIZES)
    table, weights = grid.table.clone(), [p.clone() for p in network.parameters()]
    for step, score in (entry, other):
        step(0.0)
        assert 0 < score() < 40
    assert torch.any(table != grid.table) and any(torch.any(a != b) for a, b in zip(weights, network.parameters(), strict=True))
    (row,) = ngp.run_rows({"everything": model}, lambda field: 20.0)
    assert set(row) == {"quick run", "PSNR (dB)", "MB", "cells on"}
    truth = ngp.known_cells(scene, model.aabb, 24)
    assert ngp.run_rows({"everything": model}, lambda field: 20.0, truth)[0]["recall"] > 0.5
    assert ngp.known_cells(dataclasses.replace(scene, depth=None), model.aabb, 24) is None
