"""The instruments of the distillation notebook: matrix, charts, fog, races, edits."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from nsw.cameras import camera_rays, orbit
from nsw.methods import instant_ngp as ngp
from nsw.methods import instant_ngp_fit as fitting
from nsw.methods import pvd
from nsw.methods import pvd_inspect as look
from nsw.methods import pvd_matrix as crossing
from nsw.methods import pvd_students as students
from nsw.models.dense_grid import DenseGrid, DenseGridSettings
from nsw.renderers import render_view
from nsw.widgets import clip_figure, fog_figure, staged
from nsw.widgets.svg_still import svg

PLAN = pvd.Plan(n_steps=4, n_samples=256, n_cells=12, n_poses=4, size=16)
HASH = dict(n_levels=3, n_features=2, log2_entries=9, n_min=4, n_max=16, width=8)
TRUNK = dict(depth=2, width=8, skip=0, levels=2)
KINDS = {"hash": partial(students.hash_grid, **HASH), "mlp": partial(students.mlp, **TRUNK)}


@pytest.fixture(scope="module")
def model(scene):
    torch.manual_seed(0)
    grid = fitting.new_model(scene, 24, n_cells=12, **HASH)
    grid.table.data.normal_(generator=torch.Generator().manual_seed(1))
    return grid


def ball() -> DenseGrid:
    grid = DenseGrid(DenseGridSettings(n_voxels=24**3, sh_degree=0))
    with torch.no_grad():
        grid.raw_density[..., 0] = torch.where(grid.vertices().norm(dim=-1) < 0.6, 40.0, -10.0)
    return grid


def test_every_teacher_meets_every_student(scene, model):
    rows = crossing.matrix(model, KINDS, scene, PLAN, lambda field: float(field.aabb[0, 0]))
    assert list(rows) == list(KINDS) == list(rows["mlp"])
    assert all(cell.seconds > 0 and math.isfinite(cell.psnr) for row in rows.values() for cell in row.values())
    assert not torch.equal(rows["hash"]["hash"].model.table, model.table)  # a copy would say nothing about distilling

    def draw(field):
        return render_view(field, scene.views("test")[0]).rgb[0].detach()

    shown = crossing.pair(rows, model, draw, "mlp", "hash")
    assert all(picture.shape == (24, 24, 3) for picture in shown.values())
    assert torch.equal(shown["teacher, mlp"], draw(rows["hash"]["mlp"].model))
    assert torch.equal(crossing.pair(rows, model, draw, "hash", "mlp")["teacher, hash"], draw(model))


def test_the_matrix_is_kept(scene, model, tmp_path):
    rows = crossing.matrix(model, KINDS, scene, replace(PLAN, n_steps=2), lambda field: float(field.aabb[0, 0]))
    told = json.loads(crossing.save_matrix(tmp_path / "matrix.json", rows, model, 30.0).read_text())["conversions"]
    assert [(e["teacher"], e["student"]) for e in told] == [(t, s) for t in KINDS for s in KINDS]
    assert told[0]["teacher_psnr"] == 30.0 and told[2]["teacher_psnr"] == told[1]["psnr"] and told[3]["student_model"] == "TrunkMLP"
    assert all(e["seconds"] > 0 and e["student_parameters"] > 0 for e in told)


def test_two_fields_along_one_ray():
    teacher = pvd.teach(ball(), None, PLAN, torch.Generator().manual_seed(0))
    camera = orbit(1, 4.0, 0.0, width=9, height=9)
    curves = look.along_ray({"ball": teacher.model}, teacher, camera, 4, 4)
    t, s = curves["ball"]
    solid = s > 0
    assert float(t[solid].min()) == pytest.approx(3.4, abs=0.1) and float(t[solid].max()) == pytest.approx(4.6, abs=0.1)
    assert "clip, floor" in svg(clip_figure(curves, PLAN.clip), "one ray")
    assert svg(clip_figure(look.along_ray({"ball": teacher.model}, teacher, camera, 0, 0), PLAN.clip), "a ray that meets nothing")


def test_stages_end_where_their_shares_of_the_steps_do():
    ends = pvd.Plan(n_steps=200, stage1=0.1, stage2=0.3).ends
    assert list(ends.values()) == pytest.approx([20.0, 80.0, 200])
    assert staged({"a": ([0, 199], [1.0, 2.0])}, ends, "step", "gap", log_y=True).data[0].name == "1: features"


def test_a_floor_is_fog_only_outside_of_the_shared_cells():
    teacher = pvd.teach(ball(), None, PLAN, torch.Generator().manual_seed(0))
    camera = orbit(1, 4.0, 0.0, width=9, height=9)
    assert "in the whole box" in fog_figure({"ball": teacher.model}, teacher, camera, 4, 4, PLAN.clip).layout.title.text
    clear, fog = look.floored(teacher.model, teacher, camera, -3.0).values()
    plain = render_view(teacher.model, camera).rgb[0]
    assert float((clear - plain).abs()[4, 4].max()) < 0.02
    corner = (1, 4)  # beside the ball, inside of the box
    assert float(clear[corner].min()) > 0.99 and float(fog[corner].max()) < 0.95


def test_a_floor_absorbs_what_its_depth_and_the_way_through_the_box_say():
    teacher = pvd.teach(ball(), None, PLAN, torch.Generator().manual_seed(0))
    camera = orbit(1, 4.0, 0.0, width=9, height=9)
    length, absorbed = look.fog(teacher, camera_rays(camera), math.log(0.1 * teacher.step))
    torch.testing.assert_close(absorbed, 1 - torch.exp(-0.1 * length), atol=1e-4, rtol=1e-4)
    assert float(length.view(9, 9)[4, 4]) == pytest.approx(2.0, abs=2 * teacher.step)
    shared = look.fog(teacher, camera_rays(camera), math.log(0.1 * teacher.step), everywhere=False)[1]
    assert bool((shared <= absorbed + 1e-6).all()) and float(shared.view(9, 9)[0, 4]) == 0.0


def test_a_corner_is_cut_from_a_copy():
    grid = ball()
    cut = look.without_corner(grid, 0.5, 0.5)

    def ask(model, x, z):
        return float(model.density(torch.tensor([[x, 0.0, z]])).detach())

    assert ask(cut, 0.3, 0.3) < 1e-3 < ask(grid, 0.3, 0.3) and ask(cut, -0.3, 0.3) == pytest.approx(ask(grid, -0.3, 0.3))


def test_a_short_training_compares_all_levels_at_the_same_points(scene, model):
    teacher = pvd.teach(model, scene, PLAN, torch.Generator().manual_seed(0))
    plan = replace(PLAN, n_steps=9, stage1=0.4, stage2=0.3)
    found = look.short_training(KINDS["mlp"], teacher, plan, every=4)
    assert set(found) == {"feature", "density", "colour", "picture"}
    assert all(steps == [0, 4, 8, 9] and all(math.isfinite(v) for v in values) for steps, values in found.values())
    assert found == look.short_training(KINDS["mlp"], teacher, plan, every=4)
    anew = look.short_training(KINDS["mlp"], teacher, replace(plan, inherit=False), every=4)
    assert anew["feature"][1][0] != found["feature"][1][0]
    splat_like = look.short_training(partial(students.dense, n_voxels=8**3), teacher, plan)
    assert "feature" not in splat_like


def test_fog_does_not_depend_on_how_rays_are_parted(monkeypatch):
    teacher = pvd.teach(ball(), None, PLAN, torch.Generator().manual_seed(0))
    camera = orbit(1, 4.0, 0.0, width=9, height=9)
    whole = look.with_floor(teacher.model, teacher, camera, -3.0, True)
    assert look.with_floor(teacher.model, teacher, camera, -3.0, True, largest=6).shape == (6, 6, 3)
    monkeypatch.setattr(look, "parts_of", partial(look.parts_of, most=300))
    torch.testing.assert_close(look.with_floor(teacher.model, teacher, camera, -3.0, True), whole, atol=1e-5, rtol=1e-5)


def test_contestants_are_the_same_network_and_can_race(scene, model):
    pixels = ngp.training_pixels(scene, model.aabb)
    found = look.contestants(model, scene, pixels, PLAN, 3, 0.01, **TRUNK)
    assert set(found) == {"distilled", "no heads", "pictures only", "photographs"}
    assert len({sum(p.numel() for p in field.parameters()) for field, _ in found.values()}) == 1
    field, step = found["photographs"]
    before = field.trunk[0].weight.detach().clone()
    for progress in (0.0, 0.5, 1.0):
        step(progress)
    assert not torch.equal(before, field.trunk[0].weight)


def test_a_learner_runs_by_the_clock():
    seen = []
    learner = pvd.Learner(torch.nn.Identity(), 10, lambda k: seen.append(k) or {})
    for progress in (0.0, 0.55, 0.999, 1.0):
        look.racer(learner)(progress)
    assert seen == [0, 5, 9, 9]


def test_a_student_of_a_cut_grid_is_drawn_once_the_sliders_rest():
    camera = orbit(1, 4.0, 0.0, width=9, height=9)
    cut = partial(look.cut_and_taught, ball(), KINDS["hash"], lambda field: render_view(field, camera).rgb[0], 0.5, 0.5, PLAN, 0)
    moving, resting = cut(coarse=True), cut(coarse=False)
    assert torch.equal(moving["the dense grid, cut"], resting["the dense grid, cut"])
    assert bool((moving["its student, at rest"] == 1).all()) and bool((resting["its student"] < 1).any())


def test_an_edit_leaves_the_original_alone():
    grid = ball()

    def carve(copied):
        copied.raw_density.data[copied.vertices()[..., 0] > 0] = -100.0
        return copied

    carved = look.edited(grid, carve)
    assert (
        float(grid.raw_density.min()) > -11
        and look.right_half_is_empty(_hashed(carved))
        and not look.right_half_is_empty(_hashed(grid))
    )


def _hashed(grid):
    plan = replace(PLAN, n_steps=100, n_samples=1024)
    torch.manual_seed(0)
    return pvd.convert(grid, partial(students.hash_grid, lr=0.2, **HASH), None, plan, torch.Generator().manual_seed(0))


def test_cameras_are_drawn_beside_the_scene_s_own(scene):
    both = look.with_cameras(scene, orbit(5, 4.0, width=24, height=24), "random")
    assert list(both.splits) == ["train", "random"] and len(both.views("random")) == 5
    assert torch.equal(both.views("train").origins, scene.views("train").origins)
