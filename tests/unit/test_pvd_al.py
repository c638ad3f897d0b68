"""Active learning: the hardest rays, samples that matter, pools that turn over, poses that carry their own errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nsw.cameras import Rays, orbit
from nsw.kernels.packed_rays import packed_weights
from nsw.methods import pvd
from nsw.methods import pvd_al as al
from nsw.methods import pvd_al_fit as lessons
from nsw.methods import pvd_al_inspect as look
from nsw.methods import pvd_al_trials as trials
from nsw.methods import pvd_students as students
from nsw.methods.pvd_poses import turned
from nsw.models.dense_grid import DenseGrid, DenseGridSettings
from nsw.widgets import active_learning

PLAN = pvd.Plan(n_steps=30, n_samples=512, n_cells=12, n_poses=20, size=16, steps_across=24)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def teacher():
    grid = DenseGrid(DenseGridSettings(n_voxels=24**3, sh_degree=0))
    with torch.no_grad():
        grid.raw_density[..., 0] = torch.where(grid.vertices().norm(dim=-1) < 0.6, 40.0, -10.0)
    return pvd.teach(grid, None, PLAN, seeded())


def learner(teacher, levels: al.Levels, n_rays: int = 60, **watch) -> al.ActiveLearner:
    torch.manual_seed(1)
    student = students.new_mlp(teacher, PLAN, depth=2, width=16, skip=0, levels=3, n_head=8, head_width=8)
    students.share_cells(student, teacher)
    return al.ActiveLearner(student, students.network_optimizer(student, 0.01), teacher, PLAN, levels, n_rays, **watch)


def test_important_samples_are_the_heaviest_of_each_opaque_ray():
    generator = seeded()
    index = torch.sort(torch.randint(40, (600,), generator=generator)).values
    weights, _ = packed_weights(0.3 * torch.rand(600, generator=generator), index, 40)
    count = torch.bincount(index, minlength=40)
    kept = al.important(weights, index, count, 0.3, 0.5)
    for ray in range(40):
        mine = weights[index == ray]
        chosen = kept[index == ray]
        if float(mine.sum()) < 0.5:
            assert not bool(chosen.any())
            continue
        n = -(-3 * len(mine) // 10)
        assert int(chosen.sum()) == n and set(mine[chosen].tolist()) == set(mine.topk(n).values.tolist())
    assert 0 < int(kept.sum()) < 600
    assert al.important(weights[:0], index[:0], torch.zeros(3, dtype=torch.long)).shape == (0,)
    more = al.important(weights, index, 2 * count, 0.3, 0.5)  # as many dark samples again, dropped before
    assert bool(more[kept].all()) and int(more.sum()) > 1.5 * int(kept.sum())


def test_all_samples_and_any_ray_keep_everything():
    index = torch.tensor([0, 0, 2, 2, 2])
    weights = torch.tensor([0.1, 0.2, 0.0, 0.5, 0.1])
    assert bool(al.important(weights, index, torch.tensor([2, 0, 3]), kept=1.0, opacity=0.0).all())


def test_a_pool_gives_back_what_was_put():
    pool = al.RayPool(8, torch.device("cpu"))
    rays = Rays(torch.rand(5, 3), torch.rand(5, 3), torch.rand(5))
    assert not pool.full and pool.free(3).tolist() == [0, 1, 2]
    pool.put(pool.free(5), rays, 4)
    assert pool.free(9).tolist() == [5, 6, 7]
    pool.put(pool.free(3), rays[:3], 5)
    assert pool.full and pool.born.tolist() == [4] * 5 + [5] * 3
    slots, drawn = pool.draw(8, seeded())
    assert sorted(slots.tolist()) == list(range(8)) and torch.equal(
        drawn.origins, torch.cat([rays.origins, rays.origins[:3]])[slots]
    )
    assert torch.equal(drawn.z_per_t, torch.cat([rays.z_per_t, rays.z_per_t[:3]])[slots])


def test_hard_poses_come_back_turned_a_little():
    cameras, errors = orbit(20, 4.0), torch.arange(20.0)
    renewed, places = al.renew_poses(cameras, errors, 0.1, seeded())
    assert len(places) == 2 and not set(places.tolist()) & {18, 19}
    changed = (renewed.cam_from_world != cameras.cam_from_world).flatten(1).any(1).nonzero()[:, 0]
    assert set(changed.tolist()) == set(places.tolist())
    for place in places.tolist():
        distance = (renewed.origins[place] - cameras.origins[18:]).norm(dim=1)
        assert float(distance.min()) < 1e-4  # stands where one of the hardest stands


def test_turning_keeps_the_place_and_stays_within_its_angle():
    poses = orbit(50, 4.0).cam_from_world
    after = turned(poses, seeded())
    rotation = after[:, :3, :3] @ poses[:, :3, :3].transpose(1, 2)
    angle = torch.rad2deg(torch.arccos(((rotation.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1)))
    assert float(angle.mean()) > 1.0 and float(angle.max()) < 9.0 * 3**0.5 + 0.01
    origin = lambda pose: -(pose[:, :3, :3].transpose(1, 2) @ pose[:, :3, 3:])[..., 0]  # noqa: E731
    torch.testing.assert_close(origin(after), origin(poses), atol=1e-5, rtol=0)


def test_without_levels_it_is_the_plain_last_stage(teacher):
    mine = learner(teacher, al.Levels())
    samples, truth, _ = pvd.draw(teacher, 60, PLAN, seeded(3))
    ours, errors, omega = al.losses(mine.student, teacher, samples, truth, PLAN, al.Levels(), seeded(4))
    plain = pvd.losses(mine.student, teacher, samples, truth, 3, PLAN, seeded(4))
    for name, term in plain.items():
        torch.testing.assert_close(ours[name], term)
    assert bool(omega.all()) and errors.shape == (60,) and not errors.requires_grad


def test_the_point_level_asks_fewer_samples(teacher):
    mine = learner(teacher, al.Levels(point=True))
    for k in range(30):
        mine.step(k)
    share = float(mine.last["omega"].sum() / mine.last["marched"].sum())
    assert 0.0 < share <= 0.6


def test_the_pool_fills_turns_over_and_holds_hard_rays(teacher):
    mine = learner(teacher, al.Levels(ray=True, capacity=1))
    sizes, born = [], None
    for k in range(30):
        mine.step(k)
        sizes.append(int(mine.last["from_pool"].sum()))
        born = mine.pool.born.clone() if k == 15 else born
    assert sizes[0] == 0 and sizes[-1] == 6 and all(len(mine.last["errors"]) == 60 for _ in sizes)
    assert mine.pool.full and not torch.equal(born, mine.pool.born)
    pool, fresh = look.remeasured(mine, 200)
    assert pool > 1.3 * fresh


def test_errors_of_a_view_are_measured_a_few_rays_at_a_time(teacher, monkeypatch):
    """Other parts draw other numbers, so errors are alike and not equal; the picture has all of its pixels."""
    mine, view = learner(teacher, al.Levels()), orbit(1, 4.0, 10.0, width=16, height=16)
    whole, _ = look.error_picture(mine, view)
    monkeypatch.setattr(look, "parts_of", lambda *rays, near=0.0: [slice(0, 100), slice(100, None)])
    errors, picture = look.error_picture(mine, view)
    assert errors.shape == (16, 16) and picture.shape == (16, 16, 3)
    torch.testing.assert_close(errors.mean(), whole.mean(), atol=0.0, rtol=0.2)
    assert bool(((errors > 0.01) == (whole > 0.01)).float().mean() > 0.8)


def test_errors_are_booked_on_their_own_pose(teacher, monkeypatch):
    mine = learner(teacher, al.Levels(pose=True, epoch=1000))
    monkeypatch.setattr(pvd, "random_rays", lambda cameras, n, generator: (_rays(teacher, n), torch.arange(n) % 20))
    for k in range(3):
        mine.terms(k)
        if k == 0:
            by_hand = torch.zeros(20).index_add(0, torch.arange(60) % 20, mine.last["errors"])
            torch.testing.assert_close(mine.errors, by_hand)
    assert mine.counts.tolist() == [9.0] * 20
    mine.levels = replace(mine.levels, epoch=1)
    mine.terms(1)
    assert mine.counts.tolist() == [3.0] * 20  # an epoch's errors are its own: early ones are large, whatever the pose


def test_the_released_pairing_reads_errors_in_another_order():
    cameras, hits = orbit(20, 4.0), 0
    for seed in range(40):
        wrong, places = al.renew_poses(cameras, torch.arange(20.0), 0.1, seeded(seed), paired=False)
        gaps = (wrong.origins[places][:, None] - cameras.origins[18:]).norm(dim=2)
        hits += int((gaps.amin(1) < 1e-4).sum())
    assert 1 <= hits <= 18  # of 80; a tenth is chance


def test_the_released_pairing_hits_as_often_as_chance():
    errors, orders = torch.rand(312, generator=seeded()), [torch.randperm(312, generator=seeded(i)) for i in range(200)]
    hits = [trials.hits_of_released_pairing(errors, order) for order in orders]
    assert abs(sum(hits) / 200 - 31 / 312) < 0.02 and trials.hits_of_released_pairing(errors, torch.arange(312)) == 1.0


def test_mining_helps_a_calm_row_and_hurts_where_the_teacher_has_floaters():
    calm = lambda x: 0.5 + 0.3 * torch.cos(6 * x)  # noqa: E731
    assert trials.mining_gain(lambda x: (calm(x), calm(x))) > 0.5
    assert trials.mining_gain(lambda x: (calm(x), torch.where((20 * x) % 1 < 0.05, 1.0, calm(x)))) < -3


def test_the_diary_is_written_after_each_epoch_and_training_does_not_notice(teacher, scene):
    levels, pixels = (
        al.Levels(pose=True, ray=True, capacity=1, epoch=7),
        lessons.some_pixels(scene, scene.frames("test")[:2], 50, "cpu"),
    )
    mine, unwatched = learner(teacher, levels), learner(teacher, levels)
    watched = learner(teacher, levels, watch=lessons.watch_of(teacher, PLAN, *pixels))
    for asked in (mine, watched):
        lessons.trained(asked)
    for k in range(30):
        unwatched.step(k)
    for other in (mine, watched):
        assert all(torch.equal(a, b) for a, b in zip(other.student.parameters(), unwatched.student.parameters(), strict=True))
    diary = watched.diary
    assert diary.steps.tolist() == [0, 7, 14, 21, 28, 30] and unwatched.diary.steps.tolist() == [0, 7, 14, 21, 28, -1]
    assert bool(diary.rays[0].isnan().all()) and bool(diary.rays[2].isfinite().all())
    assert bool(diary.errors[0].isnan().all()) and diary.errors[2].isnan().sum() >= 2  # those of two turned poses
    assert diary.scores.shape == (6, 2) and bool((diary.scores[:, 0] >= diary.scores[:, 1]).all())


def test_pixels_are_watched_as_they_are_rendered(teacher, scene):
    rays, truth = lessons.some_pixels(scene, scene.frames("test")[:2], 50, "cpu")
    again, _ = lessons.some_pixels(scene, scene.frames("test")[:2], 50, "cpu")
    assert torch.equal(rays.directions, again.directions) and truth.shape == (50, 3)
    mean, worst = lessons.watch_of(teacher, PLAN, rays, torch.zeros(50, 3))(teacher.model)
    assert 0 <= float(worst) <= float(mean)
    same = lessons.watch_of(teacher, PLAN, rays[:1], truth[:1])(teacher.model)
    assert float(same[0]) == float(same[1])


def test_marks_stand_where_the_pools_rays_meet_the_ball(teacher):
    mine = lessons.trained(learner(teacher, al.Levels(ray=True, capacity=1)))
    shown = look.pool_through_time(mine, orbit(1, 4.0, 10.0, width=32, height=32))
    at = lambda epoch: active_learning.marked(*shown(epoch))  # noqa: E731
    assert "empty" in at(0).layout.title.text and "of 60 rays meet" in at(len(mine.diary.steps) - 1).layout.title.text
    points, opaque = look._hits(mine, mine.pool.draw(60, seeded())[1])
    assert float((points[opaque].norm(dim=1) - 0.6).abs().max()) < 0.15


def test_weights_of_a_ray_stand_beside_each_other_and_say_how_many_are_kept(teacher):
    t, step, found = look.weights_of_ray(learner(teacher, al.Levels()), orbit(1, 4.0, 0.0, width=9, height=9), 4, 4, 0.3)
    weights, kept = found["teacher"]
    assert list(found) == ["teacher", "student"] and len(t) == len(weights) and int(kept.sum()) == -(-3 * len(t) // 10)
    chart = active_learning.weight_stems(t, step, found)
    assert f"of {len(t)} samples" in chart.layout.title.text and [trace.name for trace in chart.data][1] == "teacher, kept"
    assert max(y for y in chart.data[1].y if y is not None) == pytest.approx(float(weights.max()))
    nothing = {"teacher": (weights[:0], kept[:0])}
    assert "0 of 0" in active_learning.weight_stems(t[:0], step, nothing).layout.title.text


def test_pose_charts_are_on_one_scale(teacher):
    students = {
        "blind": lessons.trained(learner(teacher, al.Levels())),
        "active": lessons.trained(learner(teacher, al.Levels(pose=True))),
    }
    charts = [active_learning.pose_sky(hard=0.25, **look.poses_at(students, name, 1)) for name in students]
    assert charts[0].data[3].name == charts[1].data[3].name and "5 of 20" in charts[0].layout.title.text


def test_turned_poses_stay_for_one_epoch_and_are_never_turned_again(teacher):
    mine = learner(teacher, al.Levels(pose=True, epoch=2))
    before, seen = mine.cameras.cam_from_world, []
    for k in range(20):
        mine.errors[:] += 1e3 * (mine.teacher.cameras.cam_from_world != before).flatten(1).any(1)  # guests are the worst, always
        mine.step(k)
        seen.append((mine.teacher.cameras.cam_from_world != before).flatten(1).any(1).nonzero()[:, 0].tolist())
        for place in seen[-1]:
            gap = (mine.teacher.cameras.origins[place] - mine.cameras.origins).norm(dim=1)
            rotation = mine.teacher.cameras.cam_from_world[place, :3, :3] @ before[gap.argmin(), :3, :3].T
            assert (
                float(gap.min()) < 1e-4 and float(rotation.trace()) > 1 + 2 * torch.deg2rad(torch.tensor(9.0 * 3**0.5)).cos() - 1e-4
            )
    assert [len(places) for places in seen] == [0, 0] + [2] * 18 and len({tuple(places) for places in seen}) > 4


def test_point_terms_weigh_what_is_left_by_all_samples(teacher):
    mine = learner(teacher, al.Levels(point=True))
    samples, truth, _ = pvd.draw(teacher, 60, replace(PLAN, threshold=0.0), seeded(3))
    terms, _, omega = al.losses(mine.student, teacher, samples, truth, PLAN, mine.levels, seeded(4))
    ours = pvd.read(mine.student, samples.points, samples.rays, samples.ray_indices)
    wanted = PLAN.colour * ((ours.rgb - truth.rgb)[omega].square().sum() / (3 * len(omega))).sqrt()
    assert 0 < int(omega.sum()) < len(omega)
    torch.testing.assert_close(terms["colour"], wanted, rtol=1e-4, atol=1e-6)


def _rays(teacher, n):
    from nsw.cameras import camera_rays

    return camera_rays(teacher.cameras)[torch.arange(n) * 7]


def test_every_variant_asks_as_many_rays_and_repeats(teacher):
    for levels in lessons.VARIANTS.values():
        first, second = learner(teacher, levels), learner(teacher, levels)
        for k in range(8):
            first.step(k)
            second.step(k)
        assert len(first.last["errors"]) == 60
        assert all(torch.equal(a, b) for a, b in zip(first.student.parameters(), second.student.parameters(), strict=True))


def test_a_run_goes_on_as_if_it_had_not_stopped(teacher, tmp_path):
    from nsw.models.state import load_state, save_state

    levels = al.Levels(pose=True, ray=True, point=True, capacity=1, epoch=5)
    whole, first, second = (learner(teacher, levels) for _ in range(3))
    for k in range(24):
        whole.step(k)
    for k in range(13):
        first.step(k)
    save_state(tmp_path / "state.safetensors", first.state_dict(), "checkpoint")
    second.load_state_dict(load_state(tmp_path / "state.safetensors", "checkpoint"))
    for k in range(13, 24):
        second.step(k)
    assert all(torch.equal(a, b) for a, b in zip(whole.student.parameters(), second.student.parameters(), strict=True))
    assert torch.equal(whole.pool.rays, second.pool.rays) and torch.equal(whole.errors, second.errors)
    for mine, theirs in zip(whole.diary.state_dict().values(), second.diary.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)


def test_the_hardest_are_a_share_of_the_rays_and_never_none():
    errors = torch.rand(40, generator=torch.Generator().manual_seed(0))
    picks = al.hardest(errors, 0.25)
    assert len(picks) == 10 and errors[picks].tolist() == errors.sort(descending=True).values[:10].tolist()
    assert al.hardest(errors, 0.001).tolist() == [int(errors.argmax())]


def test_scores_of_what_is_hardest():
    truth = torch.zeros(1, 10, 10, 3)
    found = truth.clone()
    found[0, 0] = 0.1
    mask = torch.zeros(1, 10, 10, dtype=torch.bool)
    mask[0, :, 0] = True
    scores = look.scores(found, truth, {"small object": mask})
    assert scores["worst pixels"] == pytest.approx(20.0, abs=0.01) and scores["mean"] == pytest.approx(30.0, abs=0.01)
    assert scores["small object"] == pytest.approx(30.0, abs=0.01)
    twice = look.scores(torch.cat([found, truth]), torch.cat([truth, truth]), {})
    assert twice["worst poses"] == pytest.approx(30.0, abs=0.01)


def test_detail_is_the_chequered_block_or_else_the_strongest_edges(scene):
    frames = scene.frames("test")[:2]
    name, mask = look.detail(scene, frames)
    assert name == "small object" and torch.equal(mask, scene.ids[frames] == scene.id_names.index("chequered block"))
    name, edges = look.detail(replace(scene, ids=None), frames)
    assert name == "strongest edges" and edges.shape == mask.shape and int(edges.sum()) == round(0.1 * edges.numel())
    photographs = torch.full((1, 10, 10, 4), 255, dtype=torch.uint8)
    photographs[:, :, 5:, :3] = 0  # one step, which its two columns share
    _, edges = look.detail(replace(scene, images=photographs, ids=None), [0], share=0.2)
    assert torch.equal(edges[0], torch.arange(10).expand(10, 10).clamp(4, 5) == torch.arange(10))


def test_students_of_a_lesson_begin_alike_whoever_they_are(scene):
    plan = replace(PLAN, n_steps=6)
    model = DenseGrid(DenseGridSettings(scene.box, n_voxels=16**3, sh_degree=0))
    with torch.no_grad():
        model.raw_density[4:12, 4:12, 4:12] = 40.0
    given = lessons.lesson(model, scene, plan, 3)
    sizes = dict(depth=2, width=16, skip=0, levels=3, n_head=8, head_width=8)
    kinds = ({}, sizes), (dict(new=students.new_vm), dict(n_voxels=12**3, n_density=2, n_colour=2))
    for kind, sizes in kinds:
        first, second = (
            lessons.start(given, plan, al.Levels(ray=ray, epoch=3, capacity=1), 40, 0.01, **kind, **sizes) for ray in (False, True)
        )
        assert all(torch.equal(a, b) for a, b in zip(first.student.parameters(), second.student.parameters(), strict=True))
        terms = first.step(0)
        assert ("factors" in terms) == bool(kind) and all(bool(term.isfinite()) for term in terms.values())
        lessons.trained(second)
        changed = [not torch.equal(a, b) for a, b in zip(first.student.parameters(), second.student.parameters(), strict=True)]
        assert any(changed) and int((second.pool.born >= 0).sum()) == 6 * 4


def test_students_trained_at_once_are_those_trained_one_after_the_other_on_a_core(teacher, monkeypatch):
    torch.set_deterministic_debug_mode("warn")  # as every run does
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    n_cores = torch.get_num_threads()
    levels = {"plain": al.Levels(epoch=8), "all": al.Levels(pose=True, ray=True, point=True, epoch=8)}
    torch.set_num_threads(1)
    alone = [lessons.trained(learner(teacher, level)) for level in levels.values()]
    torch.set_num_threads(max(2, n_cores))
    together = dict(lessons.all_trained({name: learner(teacher, level) for name, level in levels.items()}))
    assert list(together) == list(levels)
    for one, other in zip(alone, together.values(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.student.parameters(), other.student.parameters(), strict=True))
        assert torch.equal(one.pool.rays, other.pool.rays)
    assert torch.get_num_threads() == max(2, n_cores)
    torch.set_num_threads(n_cores)
    torch.set_deterministic_debug_mode("default")
