"""SAGS: midpoints and curvature against closed forms, the graph against loops, growth by its rules, and Lite from its file."""

from __future__ import annotations

import itertools

import pytest
import torch

from nsw import scenes
from nsw.cameras import orbit, project
from nsw.methods import gaussian_splatting as gs
from nsw.methods import sags, sags_growth, sags_inspect
from nsw.models import io
from nsw.models.anchored_splats import AnchoredSettings, AnchoredSplats
from nsw.models.gaussians import Gaussians
from nsw.models.midpoints import curvature, low_curvature, point_pairs, snapped, with_midpoints
from nsw.models.neighbour_graph import graph_of, link_weights, message, strongest_difference
from nsw.models.splat_decoder import DecoderSettings

SMALL = DecoderSettings(n_features=6, width=8, width_offset=8, n_levels=3, n_channels=2, log2_entries=8, n_min=4, n_max=16)


def cloud(n: int = 60, seed: int = 0) -> torch.Tensor:
    return 2 * torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)) - 1


def cube(n: int) -> torch.Tensor:
    """Return the points of an n x n x n lattice that lie on the surface of its cube."""
    lattice = torch.cartesian_prod(*[torch.arange(n)] * 3)
    return lattice[((lattice == 0) | (lattice == n - 1)).any(dim=1)].float()


def a_model(midpoints=None, heard: float = 0.5, n: int = 60, seed: int = 0) -> AnchoredSplats:
    torch.manual_seed(seed)
    model = AnchoredSplats.at_points(cloud(n), AnchoredSettings(SMALL, k=6, heard=heard, midpoints=midpoints))
    torch.nn.init.normal_(model.features)
    torch.nn.init.normal_(model.decoder.table)
    torch.nn.init.normal_(model.decoder.offset[-1].weight)
    return model


def brute_pairs(points: torch.Tensor, flat: torch.Tensor, k_flat: int, k_other: int) -> set[tuple[int, int]]:
    pairs = set()
    for i, p in enumerate(points):
        order = (points - p).norm(dim=1).argsort(stable=True).tolist()
        for j in order[: k_flat if flat[i] else k_other]:
            if j != i:
                pairs.add((min(i, j), max(i, j)))
    return pairs


@pytest.mark.parametrize(("n", "k"), [(5, 5), (4, 9)])
def test_midpoints_of_a_grid_plane_are_those_counted_by_hand(n, k):
    """A jitter far below the spacing makes the neighbours unique; inside, five nearest are the point and its four sides."""
    plane = torch.cat([torch.cartesian_prod(torch.arange(n), torch.arange(n)).float(), torch.zeros(n * n, 1)], dim=1)
    plane[:, :2] += 1e-3 * cloud(n * n)[:, :2]
    none = torch.zeros(n * n, dtype=torch.bool)
    pairs = point_pairs(plane, none, k_other=k)
    assert {tuple(pair) for pair in pairs.tolist()} == brute_pairs(plane, none, k, k)
    if k == 5:
        sides = {(i, j) for i, j in itertools.combinations(range(n * n), 2) if float((plane[i] - plane[j]).norm()) < 1.1}
        assert len(sides) == 2 * n * (n - 1) and sides <= {tuple(pair) for pair in pairs.tolist()}
    anchors = with_midpoints(plane, pairs)
    assert torch.equal(anchors[: n * n], plane) and len(anchors) == n * n + len(pairs)
    assert torch.all(anchors[:, 2] == 0)
    assert torch.allclose(anchors[n * n], (plane[pairs[0, 0]] + plane[pairs[0, 1]]) / 2)


def test_midpoints_of_a_cube_match_a_brute_force_count():
    points = cube(6) + 1e-3 * cloud(len(cube(6)))
    flat = low_curvature(curvature(points), -0.3)
    assert 0 < int(flat.sum()) < len(points)
    found = {tuple(pair) for pair in point_pairs(points, flat, 10, 3).tolist()}
    assert found == brute_pairs(points, flat, 10, 3)


def test_low_curvature_is_on_flat_faces_and_not_at_edges():
    points = cube(5)
    edge = ((points == 0) | (points == 4)).sum(dim=1) >= 2
    kappa = curvature(points, k=9)
    middle = ((points >= 1) & (points <= 3)).sum(dim=1) == 2
    assert float(kappa[edge].min()) > 0.02 and float(kappa.max()) <= 1 / 3 + 1e-6
    chosen = low_curvature(kappa)
    assert int(chosen.sum()) > 0 and not bool((chosen & edge).any()) and bool(middle[chosen].all())
    plane = torch.cat([torch.rand(50, 2), torch.zeros(50, 1)], dim=1)
    assert float(curvature(plane).max()) == 0.0


def test_curvature_takes_singular_values_as_svd_gives_them():
    points = cloud(40).double()
    order = torch.cdist(points, points).argsort(dim=1)[:, :10]
    values = torch.linalg.svdvals(points[order] - points[order].mean(dim=1, keepdim=True))
    assert torch.allclose(curvature(points), values[:, 2] / values.sum(dim=1), atol=1e-6)


def test_snapping_is_idempotent_and_moves_by_half_a_cell_at_most():
    points = cloud(200)
    keys = snapped(points, 0.2)
    assert torch.equal(snapped(keys, 0.2), keys) and len(keys) < 200
    assert float((points[:, None] - keys).abs().amax(dim=2).amin(dim=1).max()) <= 0.1 + 1e-6
    assert len(snapped(points)) > 100


def test_messages_are_those_of_the_formulas():
    points = cloud(30).double()
    f = torch.randn(30, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    graph = graph_of(points, 5)
    near = torch.cdist(points, points).argsort(dim=1)[:, :5].tolist()
    a = torch.stack([torch.stack([f[t] - f[s] for s in range(30) if t in near[s]]).amax(dim=0) for t in range(30)])
    assert torch.allclose(strongest_difference(f, graph), a) and float(a.min()) >= 0
    b = torch.zeros_like(f)
    for i in range(30):
        inverse = {j: 1 / float((points[i] - points[j]).norm()) for j in near[i] if j != i}
        for j, weight in inverse.items():
            b[i] += weight / sum(inverse.values()) * a[j] / 5
    assert torch.allclose(message(a, graph), b)
    weights = link_weights(graph)
    assert torch.allclose(torch.zeros(30, dtype=torch.float64).index_add(0, graph.source, weights), torch.ones(30).double())


def test_gradients_of_the_messages_are_right():
    graph = graph_of(cloud(12).double(), 4)
    f = torch.randn(12, 3, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(lambda f: message(strongest_difference(f, graph), graph), f)


def test_a_restricted_graph_is_the_graph_of_what_is_left_where_nobody_lost_a_neighbour():
    points = cloud(80)
    graph, keep = graph_of(points, 4), points[:, 0] < 0.3
    part = graph.restricted(keep)
    whole = part.degree == 4
    assert part.n == int(keep.sum()) and 0 < int(whole.sum()) < part.n and int(part.degree.min()) >= 1
    f = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
    a = torch.rand(80, 3, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(message(a, graph)[keep][whole], message(a[keep], part)[whole], atol=1e-6)
    assert torch.all(strongest_difference(f[keep], part) <= strongest_difference(f, graph)[keep] + 1e-6)


def test_whole_scene_features_do_not_flicker_and_partial_ones_do():
    model, cameras = a_model(), orbit(2, 2.0, 10.0, fov_x_degrees=40, width=32, height=32, azimuth_degrees=0.0)
    moved = orbit(2, 2.0, 10.0, fov_x_degrees=25, width=32, height=32)
    displaced = {}
    for whole in (True, False):
        places = []
        for camera in (cameras[0], moved[0]):
            seen, anchors = model.seen_from(camera, whole)
            places.append({int(a): p for a, p in zip(anchors, seen.means, strict=True)})
        both = places[0].keys() & places[1].keys()
        displaced[whole] = max(float((places[0][a] - places[1][a]).detach().norm()) for a in both)
    assert displaced[True] < 1e-6 < 1e-3 < displaced[False]


def test_the_displacement_does_not_depend_on_the_camera_and_is_reported():
    model = a_model()
    seen, anchors = model.seen_from(orbit(1, 3.0, width=32, height=32))
    moved = seen.means.detach() - model.places[anchors]
    assert torch.allclose(moved, model.displacements()[anchors], atol=1e-6) and float(moved.norm(dim=1).mean()) > 0.01


def test_splats_look_alike_from_everywhere_before_training():
    model = AnchoredSplats.at_points(cloud(), AnchoredSettings(SMALL, k=6), seed=0)
    torch.nn.init.normal_(model.features)
    cameras = orbit(4, 5.0, 10.0, fov_x_degrees=60, width=32, height=32)
    first, other = (model.seen_from(cameras[i]) for i in (0, 1))
    assert torch.equal(first[1], other[1]) and float(first[0].sh0.detach().std()) > 0.01
    for name in ("sh0", "activated_opacities", "activated_scales", "quats"):
        assert torch.equal(getattr(first[0], name), getattr(other[0], name)), name


def test_lite_stores_key_points_and_its_reader_makes_the_rest(tmp_path):
    model = a_model(midpoints=(5, 3))
    full = AnchoredSplats.at_points(model.places, AnchoredSettings(SMALL, k=6))
    assert len(model) == 60 and len(model.places) == len(full) > 120 and len(model.displacements()) == len(full)
    files = [io.save(m, tmp_path / name) / "model.safetensors" for m, name in ((model, "lite"), (full, "full"))]
    sizes = [file.stat().st_size for file in files]
    assert sizes[1] - sizes[0] == pytest.approx((len(full) - 60) * (3 + 6 + 6) * 4, abs=200)
    again, camera = io.load(tmp_path / "lite"), orbit(1, 3.0, width=32, height=32)
    assert torch.equal(again.pairs, model.pairs) and torch.equal(again.places, model.places)
    assert torch.equal(again.render_view(camera).rgb, model.render_view(camera).rgb)


def test_a_midpoint_is_decoded_from_the_mean_of_its_ends():
    model = a_model(midpoints=(5, 3))
    camera = orbit(1, 4.0, width=32, height=32)
    seen, anchors = model.seen_from(camera)
    at = int((anchors >= 60).nonzero()[0, 0])
    ends = model.pairs[anchors[at] - 60]
    (h, largest), scales = model.hear(), model.scales[ends].mean(dim=0)[None]
    place = model.positions[ends].mean(dim=0)[None]
    encoded = model.decoder.encode(model.decoder.located(place), h[ends].mean(dim=0)[None], largest)
    assert torch.allclose(model.encode()[anchors[at]], encoded[0], atol=1e-6)
    alone = model.decoder.decode(encoded, scales, place, camera.origins[0])
    for name in ("means", "quats", "activated_scales", "activated_opacities", "sh0"):
        assert torch.allclose(getattr(alone, name)[0], getattr(seen, name)[at], atol=1e-5), name


def test_new_anchors_take_free_cells_once():
    wanted = torch.tensor([[0.1, 0, 0], [0.2, 0, 0], [1.1, 0, 0], [5.0, 5, 5]])
    places, cell = sags_growth.free_cells(wanted, torch.tensor([[0.9, 0.1, 0.0]]), 1.0)
    assert places.tolist() == [[0, 0, 0], [5, 5, 5]] and cell.tolist() == [0, 0, -1, 1]


def test_sprouts_take_the_largest_features_and_the_size_of_their_cell():
    model = a_model()
    growth = sags_growth.Growth(voxel=0.05, every=10, coarse=(4,))
    rows = sags_growth.new_rows(60)
    rows["count"] += 20
    rows["grad2d"][:30] = 1.0
    found = sags_growth.sprouts(model, rows, growth, torch.Generator().manual_seed(0))
    draws = torch.rand(60, generator=torch.Generator().manual_seed(0)) > 0.5
    draws[30:] = False
    splats = (model.positions + model.displacements())[draws]
    cells = (splats / 0.2).round()
    occupied = (cells[:, None] == (model.positions / 0.2).round()).all(dim=2).any(dim=1)
    wanted = torch.unique(cells[~occupied], dim=0) * 0.2
    assert torch.allclose(found["positions"], wanted) and len(wanted) > 3
    assert torch.allclose(found["scales"].exp(), torch.full((len(wanted), 6), 0.2))
    same = (cells == (found["positions"][0] / 0.2).round()).all(dim=1)
    assert torch.equal(found["features"][0], model.features.detach()[draws][same].amax(dim=0))


def train(training: sags.Sags, steps) -> list:
    view, changes = orbit(1, 4.0, 20.0, width=32, height=32), []
    for step in steps:
        render = training.gaussians.render_view(view, depth=False)
        (render.rgb - 0.2).abs().mean().backward()
        changes.append(training.step(step, render.extras["meta"]))
    return changes


def a_training() -> sags.Sags:
    growth = sags_growth.Growth(
        voxel=0.05, gradient=1e-9, count_from=0, start=3, stop=20, every=4, min_opacity=0.02, max_anchors=80
    )
    return sags.Sags(a_model(), 24, growth, seed=3, largest=0.5)


def test_anchors_stand_still_grow_on_time_and_never_beyond_the_limit():
    training = a_training()
    before = training.gaussians.positions.detach().clone()
    changes = train(training, range(24))
    assert [step for step, change in enumerate(changes) if change] == [4, 8, 12, 16]
    model, old = training.gaussians, {tuple(p) for p in before.tolist()}
    assert 60 < len(model) <= 80 and sum(c.added for c in changes if c) > 5
    kept = [tuple(p) in old for p in model.positions.tolist()]
    assert sum(kept) == 60 - sum(c.removed for c in changes if c) + 0 and len(model.places) == len(model) == model.graph.n
    for name in ("features", "scales"):
        optimizer = training.optimizers[name]
        assert optimizer.param_groups[0]["params"] == [model.params[name]]
        assert len(optimizer.state[model.params[name]]["exp_avg"]) == len(model)


def test_no_splat_spreads_beyond_its_neighbours_or_the_common_limit():
    points = cloud()
    reach = torch.cdist(points, points).sort(dim=1).values[:, 5]  # of six neighbours, the point itself among them
    free, bound = (sags.Sags(a_model(), 24, largest=largest) for largest in (0.0, 1.1))
    assert torch.allclose(bound.gaussians.graph.reach, reach) and bound.largest == pytest.approx(1.1 * float(reach.median()))
    for training in (free, bound):
        training.gaussians.scales.data[:, 3:] = 0.0
        train(training, range(3))
    assert free.gaussians.scales[:, 3:].min().item() > -1
    limit = reach.clamp(max=bound.largest)[:, None].expand(-1, 3)
    assert torch.allclose(bound.gaussians.scales[:, 3:].exp(), limit, rtol=0.2)
    assert bool((bound.gaussians.scales[:, 3:].exp() <= limit * (1 + 1e-5)).all())


def test_an_interrupted_run_ends_where_an_uninterrupted_one_ends():
    whole, first = a_training(), a_training()
    train(whole, range(20))
    train(first, range(11))
    state = first.state_dict()
    second = sags.Sags(a_model(n=5), 24, first.growth, seed=3)
    second.load_state_dict(state)
    train(second, range(11, 20))
    assert len(second.gaussians) == len(whole.gaussians)
    mine, other = whole.gaussians.state_dict(), second.gaussians.state_dict()
    assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_models_trained_side_by_side_end_as_if_alone():
    scene = scenes.load("room", size=24)
    before = torch.get_num_threads()
    try:
        ends = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            trainings = {f"{heard}": sags.Sags(a_model(heard=heard), 4) for heard in (0.0, 0.5)}
            trainings["3DGS"] = gs.Training(Gaussians.from_points(cloud(60), None, sh_degree=1), scene.scale, 4)
            ends.append(dict(sags.all_fitted(trainings, scene)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for name, alone in ends[0].items():
        beside = ends[1][name].state_dict()
        assert all(torch.equal(value, beside[key]) for key, value in alone.state_dict().items()), name


def test_only_what_is_often_in_view_and_never_opaque_is_doomed():
    rows = sags_growth.new_rows(4) | {"in_view": torch.tensor([100.0, 100, 10, 100]), "opacity": torch.tensor([0.1, 60, 0, 0.6])}
    assert sags_growth.doomed(rows, sags_growth.Growth(every=100)).tolist() == [True, False, False, False]


def test_mass_in_front_is_the_share_of_light_that_floaters_take():
    """A half transparent ball before a wall: in its middle half of the light, beside it nothing."""
    camera = orbit(1, 4.0, 0.0, fov_x_degrees=40, width=33, height=33)
    splats = Gaussians.from_values(
        [[2.0, 0, 0], [0, 0, 0]], [[0.15] * 3, [3.0] * 3], [[1.0, 0, 0, 0]] * 2, [0.5, 0.99], torch.ones(2, 3)
    )
    mass = sags_inspect.mass_in_front(splats, camera, torch.full((33, 33), 4.0))
    assert float(mass[16, 16]) == pytest.approx(0.5, abs=0.02) and float(mass[0, 0]) < 1e-3
    assert float(sags_inspect.mass_in_front(splats, camera, torch.full((33, 33), 1.9)).max()) == 0.0


def test_turning_a_camera_changes_no_colour_unless_neighbours_are_lost():
    model, camera = a_model(), orbit(1, 2.5, 10.0, fov_x_degrees=40, width=32, height=32)
    assert torch.allclose(sags_inspect.turned(camera, 20.0).origins, camera.origins, atol=1e-6)
    model.scales.data -= 2.0  # small splats: some stand outside of the picture
    assert (
        sags_inspect.flicker(model, camera, 8.0, whole=True) < 1e-3 < 0.01 < sags_inspect.flicker(model, camera, 8.0, whole=False)
    )


def test_a_share_of_midpoints_is_a_share(tmp_path):
    model = a_model(midpoints=(5, 3))
    half = sags_inspect.with_share(model, 0.5)
    assert len(half.pairs) == round(0.5 * len(model.pairs)) and len(half.places) == 60 + len(half.pairs)
    assert len(sags_inspect.with_share(model, 0.0).places) == 60 and len(model.places) == 60 + len(model.pairs)
    again, n_bytes = sags_inspect.written(model, tmp_path / "lite")
    assert n_bytes == (tmp_path / "lite" / "model.safetensors").stat().st_size and torch.equal(again.places, model.places)


def test_curves_and_rows_are_of_the_models_they_name():
    model, camera = a_model(midpoints=(5, 3)), orbit(1, 2.5, 10.0, fov_x_degrees=40, width=32, height=32)
    kB = sags_inspect.kB_with_midpoints(model, 9000, [0.0, 0.5])
    assert kB["midpoints made"][1] == [9.0, 9.0] and kB["midpoints stored"][1][0] == 9.0
    features = model.settings.decoder.n_features
    assert kB["midpoints stored"][1][1] == pytest.approx(9 + 0.5 * len(model.pairs) * 4 * (3 + features + 6) / 1000)
    row = sags_inspect.file_row("lite", model, 9000)
    assert (row["stored"], row["drawn"]) == (60, len(model.places))
    (bins, share), *_ = sags_inspect.drift_shares({"one": torch.tensor([0.02, 0.5])}, extent=1.0).values()
    assert float(share.sum()) == 1 and int((share > 0).sum()) == 2 and float(bins[0]) == pytest.approx(1e-4)
    angles, changes = sags_inspect.flickers(a_model(), camera, [0.0, 8.0])["whole scene"]
    assert angles == [0.0, 8.0] and max(changes) < 1e-3


def test_depth_is_shown_between_the_nearest_and_the_farthest_truth():
    camera = orbit(1, 4.0, 0.0, fov_x_degrees=40, width=32, height=32)
    wall = Gaussians.from_values([[0.0, 0, 0]], [[0.01, 3, 3]], [[1.0, 0, 0, 0]], [0.99], torch.ones(1, 3))
    truth = torch.linspace(2, 6, 32 * 32).reshape(32, 32)
    assert float(sags_inspect.depth_map(wall, camera, truth)[16, 16]) == pytest.approx(0.5, abs=0.05)
    assert sags_inspect.depth_map(a_model(), camera, truth).shape == (32, 32)


def test_messages_shown_are_those_of_the_model():
    model = a_model()
    near, weights, heard = sags_inspect.heard_from(model, 7, 6)
    assert int(near[0]) == 7 and float(weights[0]) == 0 and float(weights.sum()) == pytest.approx(1)
    assert torch.allclose(heard, message(strongest_difference(model.features, model.graph), model.graph)[7])


@pytest.mark.parametrize("size", [-3.0, -1.5])
def test_what_is_not_asked_for_would_not_have_been_drawn(size, monkeypatch):
    """From inside of the cloud splats stand all around; many are left out, and no picture changes."""
    model = a_model((4, 2), n=120)
    model.scales.data[:, 3:] = size
    cameras, left_out = orbit(4, 0.4, fov_x_degrees=50, width=32, height=24), 0
    for camera in (cameras[i] for i in range(4)):
        asked = model.render_view(camera, depth=False).rgb
        left_out += int((~model.visible(camera)).sum())
        with monkeypatch.context() as everything:
            everything.setattr(AnchoredSplats, "visible", lambda self, *_: torch.ones(len(self.places), dtype=torch.bool))
            assert torch.allclose(asked, model.render_view(camera, depth=False).rgb, atol=2e-6)
    assert left_out > 4 * len(model.places) // 3


def test_a_large_splat_is_asked_for_though_its_anchor_stands_far_outside():
    """Else no training picture shows it, and the first picture that its anchor enters does."""
    model, camera = (
        AnchoredSplats.at_points(cloud(), AnchoredSettings(SMALL, k=6)),
        orbit(1, 1.5, fov_x_degrees=50, width=32, height=24),
    )
    pixels, z = project(camera, model.places)
    outside = (z[0] > 0.2) & ((pixels[0, :, 0] < -16) | (pixels[0, :, 0] > 48))
    model.scales.data[:, 3:] = 0.0
    assert outside.any() and model.visible(camera)[outside].all()
    model.scales.data[:, 3:] = -6.0
    assert not model.visible(camera)[outside].any()


def test_displacements_alone_take_the_factor_on_their_rate():
    rates = []
    for factor in (1.0, 2.0):
        training = sags.Sags(a_model(), 20, offset_rate=factor)
        camera = orbit(1, 2.5, 10.0, fov_x_degrees=40, width=16, height=16)
        render = sags.draw(training.gaussians, camera)
        render.rgb.mean().backward()
        training.step(0, render.extras["meta"])
        rates.append({name: optimizer.param_groups[0]["lr"] for name, optimizer in training.optimizers.items()})
    once, twice = rates
    assert {name: twice[name] / once[name] for name in once} == {name: 2.0 if name == "offset" else 1.0 for name in once}


def test_a_click_wires_the_nearest_anchor_to_its_neighbours():
    """A lattice before a camera, and one anchor behind its middle: the one in front is asked, and wired to those beside it."""
    lattice = torch.cartesian_prod(torch.arange(-3.0, 4), torch.arange(-3.0, 4))
    anchors = torch.cat([torch.nn.functional.pad(0.5 * lattice, (0, 1)), torch.tensor([[0.0, 0.0, -1.0]])])
    camera = orbit(1, 4.0, 90.0, width=64, height=64)[0]
    listening = sags_inspect.Listening(anchors, camera, 2.0)
    pixel = listening.pixels[24].long().tolist()  # the middle of the lattice
    assert listening.under(pixel[1], pixel[0]) == 24
    drawn = listening(pixel[1], pixel[0], 5)
    changed = (drawn - listening(pixel[1], pixel[0], 9)).abs().amax(-1) > 0.05
    assert drawn.shape == (64, 64, 3) and bool(changed.any())
    away = (torch.stack(torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij"), -1) - torch.tensor(pixel[::-1])).amax(-1)
    assert not bool((changed & (away > 16)).any())
