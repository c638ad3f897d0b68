"""Progressive Volume Distillation: what is compared and where, its stages and inheritance, poses, students of every kind."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from nsw.cameras import Rays, camera_rays, orbit
from nsw.errors import InputError
from nsw.methods import pvd
from nsw.methods import pvd_splats as splats
from nsw.methods import pvd_students as students
from nsw.methods.pvd_poses import box_of, cameras_seeing, pose_elevations
from nsw.methods.pvd_teacher import cells_of_pictures, is_on, pictures_of, shared_cells, teach
from nsw.models import io
from nsw.models.dense_grid import DenseGrid, DenseGridSettings
from nsw.models.factors import CPSizes, VMSizes
from nsw.models.field import FieldOutput
from nsw.models.gaussians import Gaussians
from nsw.models.hash_grid import HashGrid, HashGridSettings
from nsw.models.headed_vm_grid import HeadedVMGrid, HeadedVMGridSettings
from nsw.models.hollow_grid import HollowGrid, HollowGridSettings
from nsw.models.mlp import CoarseFine, CoarseFineSettings, NerfMLP, NerfSettings
from nsw.models.plenoxel_grid import PlenoxelGrid, PlenoxelGridSettings
from nsw.models.trunk_mlp import TrunkMLP, TrunkMLPSettings
from nsw.models.vm_grid import VMGrid, VMGridSettings
from nsw.renderers import render_view

PLAN = pvd.Plan(n_steps=20, n_samples=512, steps_across=24, n_cells=12, n_poses=6, size=16)
HASH = dict(n_levels=3, n_features=2, log2_entries=9, n_min=4, n_max=16, width=8)
TRUNK = dict(depth=3, width=16, skip=2, levels=4)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ball(colour=(0.8, 0.3, 0.1), radius: float = 0.6) -> DenseGrid:
    """Return a dense grid that holds a solid ball."""
    model = DenseGrid(DenseGridSettings(n_voxels=24**3, sh_degree=0))
    solid = model.vertices().norm(dim=-1) < radius
    with torch.no_grad():
        model.raw_density[..., 0] = torch.where(solid, 40.0, -10.0)
        model.features.copy_(torch.tensor(colour).logit().expand_as(model.features))
    return model


def hashed(**changes) -> HashGrid:
    torch.manual_seed(0)
    model = HashGrid(HashGridSettings(**(HASH | dict(n_cells=12, step=2 / 24) | changes)))
    model.table.data.normal_(generator=seeded(1))
    return model


def small_mlp(**changes) -> TrunkMLP:
    torch.manual_seed(1)
    return TrunkMLP(TrunkMLPSettings(**(TRUNK | dict(n_head=6, head_width=8, n_cells=12, step=2 / 24) | changes)))


STUDENTS = {
    "hash": partial(students.hash_grid, lr=0.2, lr_network=0.02, **HASH),
    "mlp": partial(students.mlp, lr=1e-2, **TRUNK),
    "vm": partial(students.vm, lr=0.2, lr_network=0.02, n_voxels=20**3, n_density=4, n_colour=4, n_features=6, mlp_width=16),
    "dense": partial(students.dense, lr=1.0, n_voxels=20**3, sh_degree=1),
    "gaussians": partial(splats.gaussians, n_splats=200, n_pictures=16),
}


def small_vm() -> VMGrid:
    torch.manual_seed(2)
    return VMGrid(VMGridSettings(n_voxels=12**3, factors=VMSizes(2, 3), n_features=4, mlp_width=8, shift=0.0))


def small_hollow() -> HollowGrid:
    torch.manual_seed(0)
    grid = HollowGrid(HollowGridSettings(**HASH, n_cells=12, step=2 / 24, n_saliency=5, shift=-2.0))
    grid.table.data.normal_(generator=seeded(1))
    grid.logits.data.normal_(generator=seeded(2))
    return grid


def small_headed_vm() -> HeadedVMGrid:
    torch.manual_seed(2)
    settings = dict(n_voxels=12**3, factors=VMSizes(2, 3), n_features=5, mlp_width=8, shift=0.0, n_cells=12)
    return HeadedVMGrid(HeadedVMGridSettings(**settings))


FIELDS = {"dense": ball(), "hash": hashed(), "mlp": small_mlp(), "vm": small_vm(), "hollow": small_hollow()}
FIELDS["vm with a head"] = small_headed_vm()
FIELDS["dense with a head"] = DenseGrid(DenseGridSettings(n_voxels=12**3, n_features=6, mlp_width=8, alpha_init=0.3))


class Waves(torch.nn.Module):
    """An architecture that the package does not know: sines of the position, read by two heads; it answers as `Field` asks."""

    def __init__(self, n_features: int, n_waves: int = 24):
        super().__init__()
        self.register_buffer("aabb", torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
        self.waves, self.body = torch.nn.Linear(3, n_waves), torch.nn.Linear(n_waves, 1 + n_features)
        self.head = torch.nn.Linear(n_features + 3, 3)

    def _body(self, points):
        raw, feature = self.body((3 * self.waves(points)).sin()).split([1, self.body.out_features - 1], dim=1)
        return raw[:, 0].exp(), feature

    def query(self, points_world, directions):
        density, feature = self._body(points_world)
        return FieldOutput(density, self.head(torch.cat([feature, directions], dim=1)).sigmoid(), feature)

    def density(self, points_world):
        return self._body(points_world)[0]


class TwoPartWaves(Waves):
    """The same with its answer in two parts."""

    geometry = Waves._body

    def colour(self, feature, directions, ray_indices):
        return self.head(torch.cat([feature, directions[ray_indices]], dim=1)).sigmoid()


@pytest.mark.parametrize("kind", [Waves, TwoPartWaves])
def test_an_unknown_architecture_teaches_and_learns_by_the_protocol(kind):
    """It takes part in every stage, the first one too, with a `query` and a `density` alone."""
    torch.manual_seed(0)
    grid, teacher, student = hashed(), kind(15), kind(15)
    assert pvd.n_features(teacher) == 15 and pvd.comparable(student, grid) and not pvd.comparable(kind(4), grid)
    learned = pvd.convert(teacher, STUDENTS["hash"], plan=replace(PLAN, n_steps=3, stage1=0.4, stage2=0.4), generator=seeded())
    assert pvd.comparable(learned, teacher)
    plan, taught = replace(PLAN, n_steps=60, stage1=0.3, stage2=0.3), teach(grid, None, PLAN, seeded())
    learner = students.learner(student, students.network_optimizer(student, 1e-2), taught, plan, seeded(1))
    terms = [learner.step(k) for k in range(60)]
    assert [list(terms[k]) for k in (0, 20, 59)] == [["feature"], ["density", "colour"], ["density", "colour", "picture"]]
    assert float(terms[17]["feature"].detach()) < 0.9 * float(terms[0]["feature"].detach())
    assert float(terms[59]["colour"].detach()) < 0.9 * float(terms[18]["colour"].detach())


def test_both_ways_to_answer_say_the_same():
    torch.manual_seed(0)
    whole, parts = Waves(5), TwoPartWaves(5)
    parts.load_state_dict(whole.state_dict())
    found = [pvd.draw(teach(field, None, PLAN, seeded()), 64, PLAN, seeded(2))[1] for field in (whole, parts)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
def test_reading_is_the_field_s_own_answer(field):
    points = 1.6 * torch.rand(40, 3, generator=seeded()) - 0.8
    directions = torch.nn.functional.normalize(torch.randn(5, 3, generator=seeded(1)), dim=-1)
    index = torch.arange(40) // 8
    found = pvd.read(field, points, Rays(torch.zeros(5, 3), directions, torch.ones(5)), index)
    asked = field.query(points, directions[index])
    torch.testing.assert_close(found.log_density.exp(), asked.density, rtol=1e-4, atol=1e-6)
    seen = field.density(points) > 1e-3  # the logarithm of next to nothing says little
    torch.testing.assert_close(found.log_density[seen], asked.log_density[seen], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.rgb, asked.rgb, rtol=1e-4, atol=1e-5)
    assert (found.feature is None) == (asked.feature is None) == (pvd.n_features(field) == 0)
    if asked.feature is not None:
        assert found.feature.shape == (40, pvd.n_features(field))
        torch.testing.assert_close(found.feature, asked.feature, rtol=1e-4, atol=1e-5)


def test_a_trunk_answers_like_its_heads():
    model = small_mlp()
    points = torch.rand(30, 3, generator=seeded()) * 2.4 - 1.2
    hidden = model.density_net(model.encode(points))
    inside = (points.abs() <= 1).all(-1)
    torch.testing.assert_close(model.density(points), (hidden[:, 0] - 1).exp() * inside, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.geometry(points)[1], hidden[:, 1:])
    seen = torch.autograd.gradcheck(lambda x: model.double().encode(x), points[:3].double().requires_grad_())
    assert seen and 0 < int(inside.sum()) < 30


def test_the_clip_lets_gradients_through():
    s = torch.tensor([-20.0, 0.5, 20.0], dtype=torch.float64, requires_grad=True)
    clipped = pvd.clip_through(s, -7.7, 1.3)
    assert clipped.tolist() == pytest.approx([-7.7, 0.5, 1.3])
    clipped.sum().backward()
    assert s.grad.tolist() == [1.0, 1.0, 1.0]


def test_the_loss_does_not_depend_on_the_size_of_the_batch():
    a, b = torch.rand(50, 3, generator=seeded(), dtype=torch.float64), torch.rand(50, 3, generator=seeded(1), dtype=torch.float64)
    assert float(pvd.loss_rms(a, b)) == pytest.approx(float((a - b).norm()) / math.sqrt(150), rel=1e-6)
    torch.testing.assert_close(pvd.loss_rms(torch.cat([a, a]), torch.cat([b, b])), pvd.loss_rms(a, b))
    assert torch.autograd.gradcheck(lambda x: pvd.loss_rms(x, b), a.requires_grad_())


def test_stages_switch_where_the_plan_says():
    plan = pvd.Plan(n_steps=200, stage1=0.1, stage2=0.25)
    stages = [pvd.stage_of(k, plan) for k in range(200)]
    assert [stages.count(n) for n in (1, 2, 3)] == [20, 50, 130] and stages == sorted(stages)
    assert [pvd.stage_of(k, plan, feature=False) for k in (0, 69, 70)] == [2, 2, 3]


def test_a_teacher_is_never_trained_and_a_copy_has_nothing_to_learn():
    teacher_model = hashed()
    teacher = teach(teacher_model, None, PLAN, seeded())
    samples, truth, _ = pvd.draw(teacher, 64, PLAN, seeded(2))
    for stage, names in ((1, ["feature"]), (2, ["density", "colour"]), (3, ["density", "colour", "picture"])):
        terms = pvd.losses(hashed(), teacher, samples, truth, stage, PLAN, seeded(3))
        assert list(terms) == names and all(float(term.detach()) < 2e-5 for term in terms.values())
        terms = pvd.losses(small_mlp(n_geometry=15), teacher, samples, truth, stage, PLAN, seeded(3))
        sum(terms.values()).backward()
        assert all(float(term.detach()) > 1e-4 for term in terms.values())
    assert all(p.grad is None for p in teacher_model.parameters())


@pytest.mark.parametrize("name", ["hash", "mlp", "vm", "vm with a head", "dense"])
def test_a_teacher_is_asked_once_and_what_it_said_is_what_it_says(name, monkeypatch):
    model = FIELDS[name]
    teacher = teach(model, None, PLAN, seeded())
    asked = []
    part = "sigma" if name == "dense" else "geometry"
    own = getattr(type(model), part)
    monkeypatch.setattr(type(model), part, lambda self, x, *rest: asked.append(len(x)) or own(self, x, *rest))
    samples, truth, n_marched = pvd.draw(teacher, 64, PLAN, seeded(2))
    assert asked == [n_marched]
    again = pvd.read(model, samples.points, samples.rays, samples.ray_indices)
    for found, expected in zip(truth, again, strict=True):
        assert (found is None) == (expected is None)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_terms_are_weighted_as_the_plan_says():
    teacher = teach(hashed(), None, PLAN, seeded())
    samples, truth, _ = pvd.draw(teacher, 64, PLAN, seeded(2))
    student = small_mlp(n_geometry=15)
    for stage in (1, 2, 3):
        one, other = (
            pvd.losses(student, teacher, samples, truth, stage, plan, seeded(3))
            for plan in (PLAN, replace(PLAN, feature=2 * PLAN.feature, density=3 * PLAN.density, colour=4 * PLAN.colour))
        )
        for name, factor in {"feature": 2, "density": 3, "colour": 4, "picture": 1}.items():
            assert name not in one or float(other[name].detach()) == pytest.approx(factor * float(one[name].detach()), rel=1e-4)


def test_a_factored_student_keeps_its_density_small_in_the_last_stage_only():
    plan = replace(PLAN, stage1=0.0, stage2=0.5)
    for name, has in (("vm", True), ("dense", False)):
        learner = STUDENTS[name](teach(ball(), None, plan, seeded()), plan, seeded())
        assert "factors" not in learner.step(0) and ("factors" in (last := learner.step(plan.n_steps - 1))) == has
        if has:
            size = sum(f.abs().mean() for f in learner.model.factors.density)
            assert float(last["factors"].detach()) == pytest.approx(1e-4 * float(size.detach()), rel=0.2)
    assert "factors" not in STUDENTS["vm"](teach(ball(), None, plan, seeded()), replace(plan, factors=0.0), seeded()).step(19)


def test_samples_lie_in_shared_cells_and_where_light_reaches():
    model = ball()
    teacher = teach(model, None, PLAN, seeded())
    samples, truth, n_marched = pvd.draw(teacher, 200, PLAN, seeded(2))
    assert bool(is_on(teacher.cells, samples.points).all()) and 0 < len(samples.t) < n_marched
    every = pvd.draw(teacher, 200, replace(PLAN, threshold=0.0), seeded(2))[0]
    assert len(every.t) == n_marched and bool((samples.ray_indices.diff() >= 0).all())
    torch.testing.assert_close(truth.log_density.exp(), model.density(samples.points), rtol=1e-4, atol=1e-6)
    behind = torch.full((200, 3), 0.2)
    full = pvd.composite(pvd.read(model, every.points, every.rays, every.ray_indices), every, teacher.step, behind)
    torch.testing.assert_close(pvd.composite(truth, samples, teacher.step, behind), full, atol=3e-3, rtol=0)


def test_cells_hold_what_is_there_and_keep_out_what_the_field_calls_free():
    cells = shared_cells(ball(), 12, 2 / 24, seeded())
    centres = (torch.cartesian_prod(*(torch.arange(12),) * 3) + 0.5) / 6 - 1
    assert bool(is_on(cells, centres[centres.norm(dim=-1) < 0.5]).all())
    assert not bool(is_on(cells, centres[centres.norm(dim=-1) > 0.9]).any())
    assert not bool(is_on(cells, torch.tensor([[1.5, 0, 0]])).any())
    model = hashed()
    model.occupancy.binaries[0, :6] = False
    half = shared_cells(model, 12, 2 / 24, seeded()).binaries[0]
    assert not bool(half[:6].any()) and bool(half[6:].any())


def test_heads_are_inherited_where_they_fit():
    model = hashed()
    teacher = teach(model, None, PLAN, seeded())
    student = small_mlp()
    copied = pvd.inherit(student, teacher, PLAN, seeded())
    assert copied and all(name.startswith(("density_net", "colour_net")) for name in copied)
    assert torch.equal(student.colour_net[0].weight, model.colour_net[0].weight)
    points = pvd.draw(teacher, 1024, PLAN, seeded())[0].points
    for reduce in (torch.std, torch.mean):
        ours, theirs = reduce(student.encode(points), dim=0), reduce(model.encode(points), dim=0)
        torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0.05)
    assert pvd.inherit(small_mlp(n_head=7, head_width=9, n_geometry=14), teacher, PLAN, seeded()) == []
    twin = hashed()
    twin.table.data.zero_()
    assert "table" in pvd.inherit(twin, teacher, PLAN, seeded()) and torch.equal(twin.table, model.table)


def test_a_factored_grid_takes_over_a_colour_head_and_hands_it_on():
    model = hashed()
    grid = students.vm(teach(model, None, PLAN, seeded()), PLAN, seeded(), n_voxels=8**3, n_density=2, n_colour=3).model
    assert pvd.comparable(grid, model) and grid.settings.n_geometry == model.settings.n_geometry
    other = students.mlp(teach(grid, None, PLAN, seeded()), PLAN, seeded(), **TRUNK).model
    for student in (grid, other):
        for ours, theirs in zip(student.colour_net.parameters(), model.colour_net.parameters(), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_field_becomes_anything(name, tmp_path):
    """A ball looks like a ball afterwards, and the new model is saved and loaded like any other."""
    model = ball()
    torch.manual_seed(0)
    plan = replace(PLAN, n_steps=150, n_samples=1024, size=24, n_poses=16)
    learned = pvd.convert(model, STUDENTS[name], None, plan, seeded())
    view = orbit(2, 4.0, 20.0, width=24, height=24)
    with torch.no_grad():
        truth, found = render_view(model, view), render_view(io.load(io.save(learned, tmp_path / name)), view)
        assert torch.equal(found.rgb, render_view(learned, view).rgb)
    assert float((found.rgb - truth.rgb).square().mean()) < 0.35 * float((truth.rgb - 1).square().mean())
    middle = (slice(None), 12, 12)
    assert float((found.depth[middle] - truth.depth[middle]).abs().max()) < 0.4 and float(found.alpha[middle].min()) > 0.8


@pytest.mark.parametrize("name", STUDENTS)
def test_splats_become_anything(name):
    shell = torch.nn.functional.normalize(torch.randn(600, 3, generator=seeded()), dim=-1) * 0.6
    model = Gaussians.from_values(
        shell,
        torch.full((600, 3), 0.08),
        torch.tensor([1.0, 0, 0, 0]).expand(600, 4),
        torch.full((600,), 0.95),
        torch.tensor([0.8, 0.3, 0.1]).expand(600, 3),
    )
    torch.manual_seed(0)
    plan = replace(PLAN, n_steps=150, n_samples=1024, size=24, n_poses=16)
    learned = pvd.convert(model, STUDENTS[name], None, plan, seeded())
    view = orbit(2, 4.0, 20.0, width=24, height=24)
    with torch.no_grad():
        truth, found = render_view(model, view), render_view(learned, view)
    assert float((found.rgb - truth.rgb).square().mean()) < 0.35 * float((truth.rgb - 1).square().mean())


NERF = dict(depth=2, width=16, skip=0, levels_position=2, levels_direction=1, density_bias=2.0, n_samples=8)
OTHERS = {
    "NerfMLP": lambda: NerfMLP(NerfSettings(**NERF)),
    "CoarseFine": lambda: CoarseFine(CoarseFineSettings(**NERF, n_fine=8)),
    "PlenoxelGrid": lambda: PlenoxelGrid(PlenoxelGridSettings(n_voxels=12**3, density_init=2.0)),
    "DenseGrid with a network": lambda: DenseGrid(DenseGridSettings(n_voxels=12**3, alpha_init=0.1, n_features=4, mlp_width=8)),
    "VMGrid": small_vm,
    "HollowGrid": small_hollow,
    "CP": lambda: VMGrid(VMGridSettings(n_voxels=12**3, factors=CPSizes(2, 3), n_features=4, mlp_width=8, shift=0.0)),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("student", ["hash", "gaussians"])
def test_every_field_of_the_workbench_teaches(name, student):
    torch.manual_seed(0)
    model = OTHERS[name]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    learned = pvd.convert(model, STUDENTS[student], None, replace(PLAN, n_steps=4), seeded())
    assert isinstance(learned, HashGrid | Gaussians) and not learned.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_conversion_repeats_bit_by_bit():
    pair = []
    for _ in range(2):
        torch.manual_seed(5)
        pair.append(pvd.convert(ball(), STUDENTS["mlp"], None, PLAN, seeded(4)).state_dict())
    assert all(torch.equal(pair[0][name], pair[1][name]) for name in pair[0])


def test_what_cannot_teach_is_named():
    with pytest.raises(InputError, match="neither a field"):
        pvd.convert(torch.nn.Linear(2, 2), STUDENTS["hash"])
    with pytest.raises(InputError, match="shows nothing"):
        empty = ball(radius=0.0)
        pvd.convert(empty, STUDENTS["hash"], None, PLAN, seeded())
    with pytest.raises(InputError, match="10 % opaque"):
        faint = Gaussians.from_points(torch.rand(20, 3, generator=seeded()), opacity=0.01)
        pvd.convert(faint, STUDENTS["hash"], None, PLAN, seeded())


def test_cameras_seeing_a_box_imitate_the_training_cameras(scene):
    cameras = cameras_seeing(50, 24, seeded(), scene.aabb, scene)
    middle = scene.aabb.mean(0)
    there, here = ((c.origins - middle).norm(dim=1) for c in (scene.views("train"), cameras))
    assert there.min() - 1e-4 <= here.min() and here.max() <= there.max() + 1e-4
    z = torch.nn.functional.normalize(middle - cameras.origins, dim=-1)
    torch.testing.assert_close(cameras.cam_from_world[:, 2, :3], z, atol=1e-4, rtol=0)
    assert torch.allclose(cameras.Ks, scene.cameras.Ks[:1])
    inside = scene.aabb.mean(0) + torch.stack([torch.full((3,), -9.0), torch.full((3,), 9.0)])
    between = cameras_seeing(20, 24, seeded(), inside, scene)  # a box that holds the cameras: a room
    rotation = between.cam_from_world[:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), torch.eye(3).expand(20, 3, 3), atol=1e-5, rtol=0)
    low, high = scene.views("train").origins.amin(0), scene.views("train").origins.amax(0)
    assert bool(((between.origins >= low - 1e-4) & (between.origins <= high + 1e-4)).all())


def test_elevations_stay_between_their_bounds():
    drawn = pose_elevations(2000, 10.0, 50.0, seeded())
    assert float(drawn.min()) >= 10.0 and float(drawn.max()) <= 50.0 and float(drawn.median()) < 27.0


def test_pictures_of_a_model_are_its_own():
    model = ball()
    cameras = orbit(3, 4.0, 20.0, width=16, height=12)
    scene = pictures_of(model, cameras, model.aabb, 0.0)
    assert scene.images.shape == (3, 12, 16, 4) and scene.has_alpha
    direct = render_view(model, cameras, background=0.25)
    torch.testing.assert_close(scene.pixels("train", 0.25), direct.rgb, atol=0.01, rtol=0)
    rays = camera_rays(cameras)
    points = rays.origins + (scene.depth.reshape(-1) / rays.z_per_t)[:, None] * rays.directions
    seen = points[scene.depth.reshape(-1) > 0]
    assert float((seen.norm(dim=-1) - 0.6).abs().max()) < 0.2
    assert bool(is_on(cells_of_pictures(scene, model.aabb, 12), seen).all())


def test_the_box_of_splats_holds_what_is_seen():
    points = torch.rand(2000, 3, generator=seeded())
    model = Gaussians.from_points(torch.cat([points, torch.tensor([[50.0, 0, 0]])]), opacity=0.9)
    box = box_of(model)
    assert -0.3 < float(box[0].min()) < 0.02 and 0.98 < float(box[1].max()) < 1.3
