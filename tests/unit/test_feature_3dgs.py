"""Feature 3DGS: features composite like colours and leave the geometry alone; the decoder is a matrix; edits are edits."""

from __future__ import annotations

import copy

import pytest
import torch

from nsw import scenes
from nsw.cameras import project
from nsw.errors import InputError
from nsw.methods import feature_3dgs as f3
from nsw.methods import feature_3dgs_edit as edit
from nsw.methods import feature_3dgs_inspect as look
from nsw.methods import feature_3dgs_prompts as prompts
from nsw.methods import gaussian_splatting as gs
from nsw.methods.density_control import DensityControl
from nsw.models import io
from nsw.models.feature_gaussians import FeatureGaussians
from nsw.models.gaussians import NAMES, Gaussians
from nsw.models.teacher import CLASSES, Prompt, ToyTeacher, ToyTeacherSettings
from nsw.renderers.splats import render_view

M, SIZE = 16, 24


@pytest.fixture(scope="module")
def scene():
    return scenes.load("toybox", size=SIZE)


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return ToyTeacher(ToyTeacherSettings(n_channels=M, side=SIZE, widths=(8, 8, 8, 8))).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def maps(scene, teacher):
    return f3.teacher_maps(teacher, scene.pixels("train"))


def a_model(scene, n_features: int = 4, n: int = 120, filled: bool = False) -> FeatureGaussians:
    splats = Gaussians.from_points(gs.starting_points(scene, n), sh_degree=1, scale=0.5)
    model = FeatureGaussians.around(splats, n_features, M)
    if filled:
        generator = torch.Generator().manual_seed(1)
        model.features.data = torch.randn(n, n_features, generator=generator)
    return model


@pytest.mark.parametrize("n_channels", [1, 5, 37])
def test_any_vector_composites_with_the_weights_of_colour(scene, n_channels):
    """Three channels at a time, carried as colours of degree 0, give the same picture."""
    model, camera = a_model(scene), scene.views("test")[0]
    values = torch.rand(len(model), n_channels, generator=torch.Generator().manual_seed(0))
    behind = torch.rand(n_channels, generator=torch.Generator().manual_seed(1))
    seen = f3.composited(model, camera, values, behind).detach()
    for i in range(0, n_channels, 3):
        part, back = (torch.nn.functional.pad(x[..., i : i + 3], (0, max(0, i + 3 - n_channels))) for x in (values, behind))
        plain = Gaussians.from_values(model.means, model.activated_scales, model.quats, model.activated_opacities, part)
        rgb = render_view(plain, camera, background=back).rgb.detach()[..., : n_channels - i]
        assert torch.allclose(seen[..., i : i + 3], rgb, atol=1e-5)


def test_features_leave_the_geometry_alone_unless_joint(scene, teacher, maps):
    grads = {}
    for name, weight, joint in (("plain", 0.0, False), ("detached", 1.0, False), ("joint", 1.0, True)):
        model = a_model(scene, filled=True)
        camera, target, colour = gs.training_view(scene, 0)
        loss = (render_view(model, camera, background=colour, depth=False).rgb - target).abs().mean()
        if weight:
            loss = loss + f3.loss_feature(f3.feature_map(model, camera, maps.shape[2:], joint=joint), maps[:1])
        loss.backward()
        grads[name] = {key: model.params[key].grad for key in NAMES}
    assert all(torch.equal(grads["plain"][key], grads["detached"][key]) for key in NAMES)
    assert not torch.equal(grads["plain"]["means"], grads["joint"]["means"])
    assert not torch.equal(grads["plain"]["opacities"], grads["joint"]["opacities"])


def test_only_a_joint_loss_pulls_on_the_geometry(scene, maps):
    pulls = look.pulls_on(a_model(scene), scene.views("train")[0], maps[:1], 4)
    assert pulls["detached"]["means"] == pulls["detached"]["opacities"] == 0 < pulls["detached"]["features"]
    assert pulls["joint"]["means"] > 0 and pulls["joint"]["features"] == pytest.approx(pulls["detached"]["features"])


def test_the_decoder_is_a_matrix_for_each_pixel(scene):
    model, camera = a_model(scene, filled=True), scene.views("test")[0]
    low = f3.composited(model, camera, model.features)
    by_hand = torch.einsum("mf,chwf->cmhw", model.decoder.weight, low) + model.decoder.bias[:, None, None]
    assert torch.allclose(f3.feature_map(model, camera), by_hand, atol=1e-5)
    nowhere = copy.deepcopy(model)
    nowhere.opacities.data.fill_(-20)
    assert torch.allclose(f3.feature_map(nowhere, camera)[0, :, 0, 0], model.decoder.bias, atol=1e-5)


def test_without_speed_up_the_background_of_the_photographs_stands_behind(scene, maps):
    model, camera = a_model(scene, M), scene.views("test")[0]
    model.opacities.data.fill_(-20)
    behind = f3.behind_the_splats(maps, scene)
    empty = scene.alphas("train")[:, ::2, ::2] + scene.alphas("train")[:, 1::2, 1::2] == 0
    assert torch.allclose(behind, maps.permute(0, 2, 3, 1)[empty].mean(0), atol=0.05)
    assert torch.allclose(f3.feature_map(model, camera, behind=behind)[0, :, 3, 3], behind, atol=1e-5)


def test_training_keeps_the_picture_of_plain_splats_and_learns_features(scene, teacher, maps):
    """Same seed, same steps: the splats are those of 3DGS to the last bit, and the feature loss falls."""
    n_steps, control = 40, DensityControl(start=5, stop=35, every=10, grow_gradient=1e-4, max_splats=160)
    plain = gs.Training(Gaussians.from_points(gs.starting_points(scene, 120), sh_degree=1), scene.scale, n_steps, control=control)
    gs.fit(plain, scene, range(n_steps))
    model = FeatureGaussians.around(Gaussians.from_points(gs.starting_points(scene, 120), sh_degree=1), 4, M)

    def error():
        return f3.loss_feature(f3.feature_map(model, scene.views("train"), maps.shape[2:]), maps).item()

    before = error()
    training = f3.FeatureTraining(model, scene.scale, n_steps, control=control)
    f3.fit(training, scene, maps, range(n_steps))
    assert len(model) > 120 and model.features.shape == (len(model), 4)
    assert all(torch.equal(model.params[key], plain.gaussians.params[key]) for key in NAMES)
    assert error() < 0.8 * before


def test_a_resumed_training_ends_where_an_uninterrupted_one_does(scene, teacher, maps):
    control = DensityControl(start=2, stop=18, every=5, grow_gradient=1e-4, max_splats=150)

    def new():
        return f3.FeatureTraining(a_model(scene), scene.scale, 20, control=control)

    whole = f3.fit(new(), scene, maps, range(20))
    half = f3.fit(new(), scene, maps, range(10))
    other = new()
    other.load_state_dict(copy.deepcopy(half.state_dict()))
    f3.fit(other, scene, maps, range(10, 20))
    for name, value in whole.gaussians.state_dict().items():
        assert torch.equal(value, other.gaussians.state_dict()[name]), name


def test_models_survive_the_disk(scene, tmp_path):
    model = a_model(scene, filled=True)
    back = io.load(io.save(model, tmp_path))
    assert back.settings == model.settings
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), back.state_dict().values(), strict=True))


def test_lifting_by_the_mean_gives_every_splat_what_all_views_agree_on(scene):
    """When every view says the same vector everywhere, every splat that is seen carries it."""
    model = a_model(scene)
    vector = torch.randn(M, generator=torch.Generator().manual_seed(0))
    views = scene.views("train")[:6]
    lifted = f3.lifted_by_mean(model, views, vector[None, :, None, None].expand(6, M, 12, 12))
    seen = (render_view(model, views).extras["meta"]["radii"] > 0).all(-1).any(0) & (lifted.features.abs().sum(1) > 0)
    assert seen.float().mean() > 0.8
    assert torch.allclose(lifted.features[seen], vector.expand(int(seen.sum()), M), atol=1e-3)


def words_for(model, teacher, names=("ball", "ring")):
    """Give the first half of the splats the vector of one word and the rest that of another."""
    half = len(model) // 2
    first = torch.arange(len(model)) < half
    model.features.data = torch.where(first[:, None], teacher.embed(names[0]), teacher.embed(names[1])) * 3.0
    return first


def test_words_select_the_splats_that_carry_them(scene, teacher):
    model = a_model(scene, M)
    first = words_for(model, teacher)
    before = model.features.detach().clone()
    features = edit.splat_features(model)
    assert torch.equal(edit.selected(features, teacher, "ball", CLASSES), first)
    assert torch.equal(edit.selected(features, teacher, "ring", CLASSES, threshold=0.4), ~first)
    assert torch.equal(edit.selected(features, teacher, "ball", threshold=0.9), first)
    assert torch.equal(model.features, before)  # the official code normalises in place


def test_words_compete_with_words_of_their_kind(teacher):
    assert edit.rivals(teacher, "ball") == [word for word in CLASSES if word != "ball"]
    assert {"nothing", "board", "giraffe"} <= set(edit.rivals(teacher, "duck")) and "figure" not in edit.rivals(teacher, "duck")
    shares = [edit.answer(torch.randn(5, M), teacher, word, CLASSES) for word in CLASSES]
    assert all(bool(((share > 0) & (share < 1)).all()) for share in shares)


def test_deleting_and_extracting_share_the_splats_between_them(scene, teacher):
    model, camera = a_model(scene, M), scene.views("test")[0]
    first = words_for(model, teacher)
    gone, left = edit.deleted(model, first), edit.extracted(model, first)
    assert bool((gone.activated_opacities[first] < 1e-6).all()) and torch.equal(gone.opacities[~first], model.opacities[~first])
    assert bool((left.activated_opacities[~first] < 1e-6).all()) and torch.equal(left.opacities[first], model.opacities[first])
    everything, nothing = (edit.deleted(model, chosen) for chosen in (torch.ones_like(first), torch.zeros_like(first)))
    assert render_view(everything, camera).alpha.max().item() < 1e-4
    assert torch.equal(render_view(nothing, camera).rgb, render_view(model, camera).rgb)


def test_neighbours_outvote_a_splat_that_nobody_taught(scene, teacher):
    """Two heaps of splats, one of balls and one of rings; a few in each say something else, or are too faint to count."""
    generator = torch.Generator().manual_seed(0)
    places = 0.1 * torch.randn(60, 3, generator=generator) + torch.tensor([2.0, 0, 0]) * (torch.arange(60) < 30)[:, None]
    shape = torch.full((60, 3), 0.05), torch.tensor([[1.0, 0, 0, 0]]).expand(60, 4), torch.full((60,), 0.9)
    model = FeatureGaussians.around(Gaussians.from_values(places, *shape, torch.zeros(60, 3)), M, M)
    first = words_for(model, teacher)
    vectors = edit.splat_features(model)
    vectors[[3, 17, 40]] = -vectors[[3, 17, 40]]
    assert not torch.equal(edit.selected(vectors, teacher, "ball", CLASSES), first)
    assert torch.equal(edit.selected(edit.agreed(model, vectors, 12), teacher, "ball", CLASSES), first)
    assert torch.allclose(edit.agreed(model, vectors, 1), vectors, atol=1e-5)
    loud = torch.arange(60) % 5 == 0  # all others are wrong, and transparent
    model.opacities.data = torch.where(loud, 2.0, -12.0)
    vectors = torch.where(loud[:, None], edit.splat_features(model), -edit.splat_features(model))
    assert torch.equal(edit.selected(edit.agreed(model, vectors, 30), teacher, "ball", CLASSES), first)


def test_deleting_what_a_word_names_changes_its_pixels(scene, teacher):
    """All splats are balls: deleting balls changes all that is seen, and other words change nothing."""
    model, views = a_model(scene, M, n=300), scene.views("test")[:3]
    words_for(model, teacher, ("ball", "ball"))
    everything = render_view(model, views).alpha > 0.3
    draw = lambda splats: render_view(splats, views).rgb.detach()  # noqa: E731
    iou = look.deletion_iou(model, edit.splat_features(model), teacher, draw, everything.long() * CLASSES.index("ball"))
    assert 0.25 * 0.6 < iou <= 0.25


def test_recolouring_paints_the_chosen_and_nothing_else(scene, teacher):
    model = a_model(scene, M)
    first = words_for(model, teacher)
    painted = edit.recoloured(model, first)
    assert torch.allclose(painted.base_rgb[first], model.base_rgb[first].flip(-1), atol=1e-5)
    assert torch.equal(painted.base_rgb[~first], model.base_rgb[~first])
    assert all(torch.equal(painted.params[key], model.params[key]) for key in NAMES if key != "sh0")


def test_a_prompt_is_carried_to_the_place_in_another_view(scene):
    """A ball of splats at a known place: its centre in one view becomes its front in the other."""
    point, (one, two) = torch.tensor([[0.1, 0.2, 0.0]]), (scene.views("test")[0], scene.views("test")[1])
    shape = torch.full((1, 3), 0.06), torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([0.99])
    model = FeatureGaussians.around(Gaussians.from_values(point, *shape, torch.zeros(1, 3)), 4, M)

    def pixel(camera):
        return project(camera, point)[0][0, 0] / SIZE

    moved = prompts.carried(Prompt(points=(tuple(pixel(one).tolist()),)), model, one, two)
    assert torch.allclose(torch.tensor(moved.points[0]), pixel(two), atol=1.0 / SIZE)
    halfway = (two.origins + point) / 2
    screen = Gaussians.from_values(torch.cat([point, halfway]), *(x.expand(2, *x.shape[1:]) for x in shape), torch.zeros(2, 3))
    prompt = Prompt(points=(tuple(pixel(one).tolist()),))
    assert prompts.carried(prompt, FeatureGaussians.around(screen, 4, M), one, two) is None  # something stands before it


def test_a_box_is_carried_as_what_it_holds(scene):
    """A ball of splats: the box around its mask in one view becomes the box around the ball in the other."""
    point, (one, two) = torch.tensor([[0.1, 0.2, 0.0]]), (scene.views("test")[0], scene.views("test")[1])
    shape = torch.full((1, 3), 0.15), torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([0.99])
    model = FeatureGaussians.around(Gaussians.from_values(point, *shape, torch.zeros(1, 3)), 4, M)
    seen = [render_view(model, camera).alpha[0].detach() for camera in (one, two)]
    box = prompts.carried_box((seen[0] > 0.5).float(), model, one, two, trimmed=0.0).box
    rows, columns = (seen[1] > 0.5).any(1).nonzero()[:, 0], (seen[1] > 0.5).any(0).nonzero()[:, 0]
    wanted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert torch.allclose(torch.tensor(box), torch.stack(wanted) / SIZE, atol=2.5 / SIZE)  # another half of the ball is seen
    assert prompts.carried_box(torch.zeros(4, 4), model, one, two) is None


def test_two_corners_are_a_box_and_one_twice_is_a_point():
    for row, column, to_row, to_column in ((3, 5, 3, 5), (0, 0, 7, 18), (1, 2, 4, 2)):
        asked = prompts.between((to_row, to_column), (row, column), (9, 19))
        assert prompts.corners(asked, (9, 19)) == (row, column, to_row, to_column)
    drawn = prompts.marked(torch.ones(8, 16, 3), prompts.between((1, 2), (4, 9), (8, 16)))
    assert bool((drawn[1, 2:10] == 0).all()) and bool((drawn[1:5, [2, 9]] == 0).all()) and bool((drawn[2:4, 3:9] == 1).all())


def test_what_is_typed_is_asked_for_and_unknown_words_are_named(scene, teacher):
    model = a_model(scene, M, filled=True)
    features = edit.splat_features(model)
    duck, ring = (edit.relevancy(features, teacher, word) for word in (" Duck ", "ring"))
    assert torch.equal(duck, edit.answer(features, teacher, "duck", edit.rivals(teacher, "duck")))
    assert torch.equal(edit.relevancy(features, teacher, "duck, ring"), torch.maximum(duck, ring))
    strong = edit.relevancy(features, teacher, "duck", least=float(duck.median()))
    assert bool(((strong == duck) | ((strong == 0) & (duck < duck.median()))).all())
    for typed in ("", " , ", "duck, spaceship"):
        with pytest.raises(InputError, match="giraffe"):  # it says which words there are
            edit.relevancy(features, teacher, typed)
    heated = prompts.heated(model, torch.ones(len(model)))
    assert torch.allclose(heated.base_rgb, 0.3 * model.base_rgb.clamp(0, 1) + 0.7 * torch.tensor([0.84, 0.37, 0.0]), atol=1e-4)


def test_what_answers_is_tinted_in_the_picture(teacher):
    picture, features = torch.full((6, 8, 3), 0.5), torch.ones(M, 6, 8)
    word = teacher.words[2]
    assert torch.equal(prompts.queried(picture, features, teacher, word, 2.0), prompts.tinted(picture, torch.zeros(6, 8)))
    answers = edit.relevancy(features.permute(1, 2, 0), teacher, word)
    assert torch.equal(prompts.queried(picture, features, teacher, word), prompts.tinted(picture, answers))


def test_agreement_is_a_cosine():
    maps = torch.randn(2, 5, 6, 6, generator=torch.Generator().manual_seed(0))
    assert f3.agreement(3 * maps, maps) == pytest.approx(1, abs=1e-5) and f3.agreement(-maps, maps) == pytest.approx(-1, abs=1e-5)


def test_scores_of_labels():
    true = torch.tensor([[0, 1, 1, 2], [2, 2, 3, 3]])
    assert look.mean_iou(true, true, 4) == 1 and look.pixel_accuracy(true, true) == 1
    wrong = torch.tensor([[0, 1, 2, 2], [2, 2, 3, 0]])
    assert look.mean_iou(wrong, true, 4) == pytest.approx((1 / 2 + 3 / 4 + 1 / 2) / 3)
    assert look.pixel_accuracy(wrong, true) == pytest.approx(5 / 7)


def test_true_labels_never_flip_between_views_and_noise_does():
    scene = scenes.load("toybox", size=40)
    frames = scene.frames("test")[:6]
    true = look.true_classes(scene, frames)
    assert look.flips(true, scene, frames) == 0
    noise = torch.randint(1, 5, true.shape, generator=torch.Generator().manual_seed(0))
    assert look.flips(noise, scene, frames) == pytest.approx(0.75, abs=0.05)


def test_rows_of_a_table_compare_with_their_last(scene, teacher):
    frames = scene.frames("test")[:2]
    truth = look.true_classes(scene, frames)
    maps = f3.teacher_maps(teacher, scene.pixels(frames))
    minus, same = look.rows_of({"minus": -maps, "same": maps}, teacher, truth, scene, frames)
    assert (minus["variant"], same["variant"]) == ("minus", "same")
    assert minus["cosine"] == pytest.approx(-1, abs=1e-5) and same["cosine"] == pytest.approx(1, abs=1e-5)
    named = look.labelled(maps, teacher, tuple(truth.shape[1:]))
    assert same["mIoU"] == look.mean_iou(named, truth)


def test_doubt_is_the_length_that_a_mean_lost(scene):
    model = a_model(scene, M)
    model.features.data = torch.nn.functional.normalize(torch.ones_like(model.features), dim=1)
    camera = scene.views("test")[0]
    sure = look.doubt(model, camera)
    model.features.data *= 0.25
    unsure, solid = look.doubt(model, camera), render_view(model, camera).alpha[0].detach()
    assert float(sure.abs().max()) < 1e-5 and torch.allclose(unsure, 0.75 * solid, atol=1e-4)


def test_a_question_points_into_its_answer():
    scene = scenes.load("toybox", size=40)
    asked = look.questions(scene, scene.frames("test")[:3])
    assert len(asked) > 10 and all(a.name != "board" for a in asked)
    for a in asked:
        (x, y), (x0, y0, x1, y1) = a.point.points[0], a.box.box
        assert a.mask[int(y * 40), int(x * 40)] and x0 <= x <= x1 and y0 <= y <= y1
        assert look.mask_iou(a.mask.float(), a.mask) == 1
    assert look.prompted_iou(asked, lambda a, prompt: 1.0 - a.mask.float()) == {"point": 0.0, "box": 0.0}


def test_edit_iou_counts_changed_pixels():
    before, after = torch.zeros(1, 4, 4, 3), torch.zeros(1, 4, 4, 3)
    after[0, :2, :, 1] = 0.5
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 1:3] = True
    assert look.edit_iou(before, after, mask) == pytest.approx(4 / 12)


def test_colours_of_features_are_shared_by_maps_and_ignore_length():
    maps = torch.randn(3, M, 6, 6, generator=torch.Generator().manual_seed(0))
    colours = look.FeatureColours(maps)
    assert torch.allclose(colours(maps[1]), colours(5 * maps[1]), atol=1e-4)
    assert colours(maps[1]).shape == (6, 6, 3) and not torch.allclose(colours(maps[0]), colours(maps[1]), atol=0.1)
