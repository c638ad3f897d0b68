"""Sliders, viewer, comparison, training panel and inspector: stills, latest-wins, and what a front end gets."""

import asyncio
import base64
import io
import math
import re
import time

import pytest
import torch
from PIL import Image

from nsw import InputError, widgets
from nsw.cameras import orbit
from nsw.models.field import FieldOutput
from nsw.renderers import render_view
from nsw.renderers.render import Render
from nsw.scenes import Scene
from nsw.widgets import frontend, inline_viewer, inspector, slider_panel, training
from nsw.widgets.orbit_control import OrbitControl


@pytest.fixture
def shown(monkeypatch):
    out = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, **_: out.append(bundle))
    return out


@pytest.fixture
def front_end(monkeypatch):
    """Pretend that JupyterLab is attached."""
    monkeypatch.setattr(frontend, "live", lambda: True)
    for module in (slider_panel, inline_viewer, inspector):
        monkeypatch.setattr(module, "live", lambda: True)
    monkeypatch.setattr("nsw.widgets.comparison.live", lambda: True)


class Ball:
    """A ball of radius 0.7 whose colour is its position."""

    aabb = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])

    def query(self, points, directions):
        return FieldOutput(self.density(points), (points + 1) / 2)

    def density(self, points):
        return (points.norm(dim=-1) < 0.7) * 8.0


@pytest.fixture(scope="module")
def scene():
    cameras = orbit(4, 4.0, 30.0, width=24, height=16)
    out = render_view(Ball(), cameras, n_samples=24)
    images = (out.rgb.clamp(0, 1) * 255).byte()
    return Scene(
        "ball", images, cameras, {"train": torch.arange(3), "test": torch.tensor([3])}, Ball.aabb, 2.0, 6.0, depth=out.depth
    )


def grey(cameras):
    shape = (len(cameras), cameras.height, cameras.width)
    return Render(torch.full((*shape, 3), 0.5), torch.ones(shape), torch.ones(shape))


def test_controls_from_ranges():
    assert type(slider_panel.control("n", (1, 9, 3))).__name__ == "IntSlider"
    assert type(slider_panel.control("x", (0.0, 1, 0.5))).__name__ == "FloatSlider"
    assert slider_panel.control("opacity_cut", (0.0, 1.0, 0.5, 0.25)).description == "opacity cut"
    formats = [
        slider_panel.control("x", (low, high, low)).readout_format for low, high in ((0.0, 0.3), (-60.0, 60.0), (1e-3, 1e-2))
    ]
    assert formats == [".3f", ".0f", ".4f"]
    assert slider_panel.control("kind", ["a", "b"]).value == "a"
    assert slider_panel.control("on", True).value is True
    typed = slider_panel.control("words", ("a", ["a", "b"]))
    typed.value = "what nobody proposed"
    assert typed.value == "what nobody proposed" and typed.continuous_update is False
    for bad in [(3, 1, 2), (0, 1, 5), (0, 1), "abc", [], (0, 1, "x")]:
        with pytest.raises(InputError, match="Slider n"):
            slider_panel.control("n", bad)


def test_sliders_leave_a_still_without_a_front_end(shown):
    widgets.sliders(lambda level, n: torch.full((n, n), level), alt="a square", level=(0.0, 1.0, 1.0), n=(2, 9, 4))
    assert len(shown) == 1 and "application/vnd.jupyter.widget-view+json" not in shown[0]
    assert shown[0]["image/png"] and "level = 1, n = 4" in shown[0]["text/html"]


def first_value(view) -> int:
    """Return the value of the first pixel that a live picture shows."""
    png = re.search(r"data:image/png;base64,([^\"]+)", view.value).group(1)
    return Image.open(io.BytesIO(base64.b64decode(png))).getpixel((0, 0))[0]


def test_sliders_redraw_coarse_then_full_and_show_errors(shown, front_end):
    calls = []

    def draw(n, coarse=False):
        calls.append((n, coarse))
        if n == 5:
            raise ValueError("n must not be <5>")
        return torch.full((n, n), n / 255)

    async def use():
        widgets.sliders(draw, alt="a square", n=(2, 9, 4))
        assert "application/vnd.jupyter.widget-view+json" in shown[0] and "image/png" in shown[0]
        panel = next(w for w in _widgets() if "nsw-sliders" in getattr(w, "_dom_classes", ()))
        slider, view, error = panel.children
        for n in (6, 7, 8):
            slider.value = n
        await until(lambda: len(calls) == 3)
        assert calls[1:] == [(8, True), (8, False)] and first_value(view) == 8
        slider.value = 5
        await until(lambda: error.value)
        assert "n must not be &lt;5&gt;" in error.value and 'role="alert"' in error.value
        slider.value, width = 3, view.css_width
        await until(lambda: calls[-1] == (3, False))
        assert error.value == "" and first_value(view) == 3
        assert f'width="{width}"' in view.value  # the place on the page does not jump with the number of pixels

    asyncio.run(use())


def _widgets():
    from ipywidgets.widgets import widget

    return list(widget._instances.values())


async def until(condition, seconds=10.0):
    """Let the event loop run until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        await asyncio.sleep(0.005)


def test_only_the_newest_value_is_drawn_and_nothing_queues():
    drawn = []

    async def use():
        latest = frontend.Latest(lambda *call: drawn.append(call), coarse=True, settle=0.01, rest=0.05)
        for value in range(50):
            latest.submit(value)
        await until(lambda: len(drawn) == 2)
        assert drawn == [(49, True), (49, False)] and latest.dropped == 49
        latest.submit(50)
        await until(lambda: len(drawn) == 3)
        latest.submit(51)  # before the full picture of 50, which is then not drawn at all
        await until(lambda: len(drawn) == 5)
        assert drawn[2:] == [(50, True), (51, True), (51, False)]

    asyncio.run(use())


def test_a_chart_under_a_slider_is_redrawn(shown, front_end):
    async def use():
        widgets.sliders(lambda n: widgets.figure([dict(type="scatter", x=[0, 1], y=[0, n])]), alt="a line", n=(1, 9, 3))
        panel = [w for w in _widgets() if "nsw-sliders" in getattr(w, "_dom_classes", ())][-1]
        before = panel.children[1].value
        panel.children[0].value = 8
        await until(lambda: panel.children[1].value != before)
        assert 'aria-label="a line"' in before

    asyncio.run(use())
    assert "image/svg+xml" in shown[0]


def test_viewer_still_and_moves(shown, scene):
    sizes = []

    def render(cameras):
        sizes.append(cameras.width)
        return grey(cameras)

    view = widgets.viewer(render, scene, alt="a ball", size=48)
    assert shown[0]["image/png"] and sizes == [48]
    assert len(view.camera) == 1 and (view.camera.width, view.camera.height) == (48, 32)
    assert torch.allclose(view.camera.cam_from_world, scene.views("test").cam_from_world, atol=1e-5)
    view.seconds = 1.0  # pretend that the full picture is slow
    assert view.picture(coarse=True).shape == (16, 24, 3)
    assert view.picture(coarse=True).shape == (32, 48, 3)  # the coarse one was quick: only the compiler was slow
    assert view.key("ArrowLeft") and view.key("+") and not view.key("q")
    assert not torch.allclose(view.camera.cam_from_world, scene.views("test").cam_from_world, atol=1e-2)
    assert view.key("Home")
    assert torch.allclose(view.camera.cam_from_world, scene.views("test").cam_from_world, atol=1e-5)
    with pytest.raises(InputError, match="between 16 and 2048"):
        widgets.viewer(render, scene, alt="x", size=4)


def test_a_clicked_pixel_moves_the_sliders_and_the_sliders_the_mark(shown, front_end):
    asked = []

    def draw(row, column, stop):
        asked.append((row, column, stop))
        return torch.zeros(4, 4, 3)

    async def use():
        widgets.sliders(draw, alt="a pixel", pick=torch.zeros(10, 20, 3), stop=(0, 5, 5))
        view = next(w for w in _widgets() if type(w).__name__ == "PixelPicker")
        row, column = (next(w for w in _widgets() if getattr(w, "description", "") == name) for name in ("row", "column"))
        assert asked[0] == (5, 10, 5) and view.picked == [5, 10]
        view.picked = [2, 17]
        assert (row.value, column.value) == (2, 17)
        column.value = 3
        assert view.picked == [2, 3]
        await until(lambda: asked[-1] == (2, 3, 5))

    asyncio.run(use())


def test_a_dragged_box_moves_four_sliders_and_is_drawn_once(shown, front_end):
    asked = []

    def draw(row, column, to_row, to_column):
        asked.append((row, column, to_row, to_column))
        return torch.zeros(4, 4, 3)

    async def use():
        corners = dict(row=(0, 9, 1), column=(0, 19, 2), to_row=(0, 9, 1), to_column=(0, 19, 2))
        widgets.sliders(draw, alt="a box", pick=torch.zeros(10, 20, 3), **corners)
        view = next(w for w in _widgets() if getattr(w, "picked", None) == [1, 2, 1, 2])
        view.picked = [3, 4, 8, 9]
        assert view.picked == [3, 4, 8, 9]  # no slider sent it back half changed
        await until(lambda: asked[-1] == (3, 4, 8, 9))
        assert len(asked) == 2
        next(w for w in _widgets() if getattr(w, "description", "") == "to row").value = 5
        assert view.picked == [3, 4, 5, 9]

    asyncio.run(use())


def test_viewer_frame_follows_events(shown, scene, front_end):
    changes = []

    async def use():
        view = widgets.viewer(lambda c: render_view(Ball(), c, n_samples=8), scene, alt="a ball", size=32)
        view.on_change.append(changes.append)
        frame = next(w for w in _widgets() if type(w).__name__ == "ViewerFrame")
        assert frame.get_frame() is not None and not changes  # the first picture is not drawn twice
        start = view.camera.origins
        frame.handle_event({"type": "pointer_down", "x": 10, "y": 10, "buttons": (1,), "modifiers": ()})
        frame.handle_event({"type": "pointer_move", "x": 60, "y": 10, "buttons": (1,), "modifiers": ()})
        after_drag = view.camera.origins
        assert (after_drag - start).norm() > 0.1 and (after_drag.norm() - start.norm()).abs() < 1e-3
        frame.handle_event({"type": "pointer_up", "x": 60, "y": 10})
        frame.handle_event({"type": "pointer_move", "x": 90, "y": 10, "buttons": (), "modifiers": ()})
        assert torch.equal(view.camera.origins, after_drag)  # no button, no movement
        frame.handle_event({"type": "wheel", "dy": -200.0})
        assert view.camera.origins.norm() < after_drag.norm() - 0.1
        before_pan = view.camera
        frame.handle_event({"type": "pointer_down", "x": 0, "y": 0, "buttons": (2,), "modifiers": ()})
        frame.handle_event({"type": "pointer_move", "x": 20, "y": 0, "buttons": (2,), "modifiers": ()})
        assert torch.allclose(view.camera.cam_from_world[:, :3, :3], before_pan.cam_from_world[:, :3, :3], atol=1e-5)
        frame.handle_event({"type": "key_down", "key": "Home"})
        assert frame.get_frame().shape == (21, 32, 3) and len(changes) == 1
        view.render = lambda cameras: 1 / 0
        assert frame.get_frame() is None and "division by zero" in frame.error.value
        await until(lambda: not frame._moving)

    asyncio.run(use())


def test_orbit_keeps_distance_stops_at_poles_and_stays_rigid():
    control = OrbitControl(orbit(1, 4.0, 30.0), torch.zeros(3))
    for _ in range(300):
        control.orbit(0.21, 0.3)
    eye = control.camera.origins[0]
    assert abs(control.distance - 4.0) < 1e-3 and math.degrees(math.asin(float(eye[2]) / 4)) == pytest.approx(88, abs=0.5)
    R = control.camera.cam_from_world[0, :3, :3]
    assert torch.allclose(R @ R.T, torch.eye(3), atol=1e-5)
    assert torch.allclose(R[2] @ (-eye / 4), torch.tensor(1.0), atol=1e-4)  # still looks at the target


def test_compare_needs_one_size_and_leaves_both_pictures(shown, front_end):
    widgets.compare(torch.zeros(6, 8), torch.ones(6, 8), ("before", "after"), alt="black and white")
    assert "application/vnd.jupyter.widget-view+json" in shown[0]
    assert "before" in shown[0]["text/html"] and shown[0]["text/html"].count("<img") == 2
    with pytest.raises(InputError, match="one size"):
        widgets.compare(torch.zeros(6, 8), torch.ones(8, 6), alt="x")


def test_training_panel_pauses_stops_and_draws(monkeypatch):
    monkeypatch.setattr("IPython.display.display", lambda *a, **k: None)
    panel = widgets.training_panel(None, 10, "without_a_long_idea")
    assert panel.bar.description == "without a long idea" and panel.bar.style.description_width == "initial"
    panel.update(0, {})
    assert panel.text.value.count("&middot;") == 1  # a loop without numbers shows steps and time
    for step in range(1, 6):
        panel.update(step, {"loss": 1 / step}, torch.rand(4, 4, 3) if step == 5 else None)
    panel._shown = 0
    panel.update(6, {"loss": 0.1})
    assert panel.bar.value == 6 and "loss 0.1" in panel.text.value and "left" in panel.text.value
    assert "<img" in panel.picture.value and "while it trains" in panel.picture.value
    panel.pause_button.click()
    assert panel.paused and panel.pause_button.description == "Continue"
    panel.stop_button.click()
    assert panel.stopped and not panel.paused
    panel.close()
    assert panel.stop_button.description == "Stopped"
    assert 'aria-label="loss went from 1 to 0.1"' in training.sparkline(panel._curve, "loss")


def test_ray_samples_add_up(shown, scene):
    from nsw.cameras import pixel_rays
    from nsw.renderers.volume import render_rays

    rays = pixel_rays(scene.views("test"), *(torch.tensor([v]) for v in (0, 8, 12)))
    out = render_rays(Ball(), rays, n_samples=200)
    samples = inspector.samples_of(out)
    assert samples.transmittance[0] == 1 and (samples.transmittance[:-1] >= samples.transmittance[1:] - 1e-9).all()
    inside = samples.density > 0
    assert abs((samples.t[inside].max() - samples.t[inside].min()) - 1.4) < 0.03  # through the centre of the ball
    assert abs(samples.depth - float(out.depth[0] / out.alpha[0])) < 1e-2
    widgets.ray_inspector(Ball(), scene, alt="one ray", n_samples=48)
    assert "true depth" in shown[0]["text/html"] and "<svg" in shown[0]["text/html"] and "<img" in shown[0]["text/html"]
    with pytest.raises(InputError, match="weights"):
        inspector.samples_of({"t": torch.zeros(3)})
    with pytest.raises(InputError, match="belongs to a field"):
        widgets.ray_inspector(lambda rays: out, scene, alt="x", n_samples=3)


def test_stretches_without_samples_are_grey_and_nothing_stands_in_them(shown, scene):
    def answer(*starts: float) -> dict:
        at = torch.tensor(starts)
        full = torch.ones(len(starts))
        return dict(t_starts=at, t_ends=at + 1, densities=full, weights=full / 4, rgbs=torch.rand(len(starts), 3))

    samples = inspector.samples_of(answer(1.0, 2.0, 5.0), (0.0, 6.2))
    assert samples.skipped.tolist() == [[0.0, 1.0], [3.0, 5.0]]
    t, density, transmittance, weights = inspector.with_skipped(samples)
    assert t.tolist() == [0.0, 1.0, 1.5, 2.5, 3.0, 5.0, 5.5] and density.tolist() == [0, 0, 1, 1, 0, 0, 1] == (4 * weights).tolist()
    assert transmittance.tolist() == [1.0, 1.0, 1.0, 0.75, 0.5, 0.5, 0.5]
    assert inspector.samples_of(answer(), (1.0, 4.0)).skipped.tolist() == [[1.0, 4.0]]
    assert "skipped" in [trace.name for trace in inspector.ray_figure(samples, None, "a ray").data]
    widgets.ray_inspector(Ball(), scene, alt="one ray", n_samples=48)
    assert "skipped" not in shown[0]["text/html"]  # samples in equal parts of the ray leave out nothing


def test_ray_inspector_follows_clicks_and_sliders(shown, scene, front_end):
    async def use():
        widgets.ray_inspector(Ball(), scene, alt="one ray", row=8, column=12, n_samples=32)
        box = next(w for w in _widgets() if "nsw-inspector" in getattr(w, "_dom_classes", ()))
        left, plot = box.children[0].children
        view, rows, columns = left.children
        assert "row 8, column 12" in plot.value
        view.picked = [0, 0]  # a click on the background
        await until(lambda: "row 0, column 0" in plot.value)
        assert (rows.value, columns.value) == (0, 0)
        columns.value = 5
        await until(lambda: "row 0, column 5" in plot.value)
        assert view.picked == [0, 5]

    asyncio.run(use())


# ---- films and weights -----------------------------------------------------------------------------------------------------


def test_a_film_stands_still_until_it_is_played_and_leaves_a_few_frames(shown, front_end, monkeypatch):
    monkeypatch.setattr("nsw.widgets.film_player.live", lambda: True)
    strips = {name: [torch.full((6, 8), i / 255) for i in range(start, start + 9)] for name, start in (("one", 10), ("two", 50))}

    async def use():
        widgets.film(strips, alt="two grey films", fps=4.0)
        box = [w for w in _widgets() if "nsw-film" in getattr(w, "_dom_classes", ())][-1]
        views = [column.children[0] for column in box.children[0].children]
        play, slider = box.children[1].children
        assert play.max == slider.max == 8 and play.interval == 250 and not play.playing
        assert [first_value(view) for view in views] == [10, 50]
        slider.value = 7
        await until(lambda: [first_value(view) for view in views] == [17, 57])

    asyncio.run(use())
    still = Image.open(io.BytesIO(base64.b64decode(shown[0]["image/png"])))
    assert still.width <= 760 and {10, 12, 14, 16, 50, 52, 54, 56} <= {value for _, (value, *_) in still.getcolors(1 << 16)}


def test_many_films_are_small_enough_to_be_seen_together(shown, front_end, monkeypatch):
    monkeypatch.setattr("nsw.widgets.film_player.live", lambda: True)

    async def use():
        for n, width in ((2, 320), (6, 192)):
            widgets.film({str(i): [torch.zeros(64, 64)] * 2 for i in range(n)}, alt="some black films")
            box = [w for w in _widgets() if "nsw-film" in getattr(w, "_dom_classes", ())][-1]
            assert {column.children[0].css_width for column in box.children[0].children} == {width}

    asyncio.run(use())


def test_films_end_with_the_shortest_and_an_empty_one_is_refused(shown):
    grey = {value: torch.full((6, 8), value / 255) for value in (10, 50, 99)}
    widgets.film({"long": [grey[10], grey[99]], "short": [grey[50]]}, alt="two grey films, one of them longer")
    still = Image.open(io.BytesIO(base64.b64decode(shown[0]["image/png"])))
    assert {10, 50} == {10, 50, 99} & {value for _, (value, *_) in still.getcolors(1 << 16)}
    with pytest.raises(InputError, match="at least one frame"):
        widgets.film({"a": [torch.zeros(2, 2)], "b": []}, alt="nothing to see")


def test_weights_keep_what_was_added_to_each_list(shown, front_end, monkeypatch):
    monkeypatch.setattr("nsw.widgets.weight_bank.live", lambda: True)
    asked = []

    def draw(row, column, changes):
        asked.append((row, column, changes))
        return widgets.figure([dict(type="scatter", x=[0, 1], y=[0, sum(map(sum, changes))])])

    async def use():
        widgets.weight_sliders(draw, ("density", "red"), 3, alt="a chart of weights", pick=torch.zeros(6, 8, 3), reach=5.0)
        box = [w for w in _widgets() if "nsw-weights" in getattr(w, "_dom_classes", ())][-1]
        _, row, _, head, bank, view, error = box.children
        (which, back), sliders = head.children, [column.children[0] for column in bank.children]
        before = view.value
        sliders[1].value = 2.0
        sliders[1].value = 2.5  # only the newest is drawn
        await until(lambda: len(asked) == 2)
        assert asked[1] == (3, 4, [[0, 2.5, 0], [0, 0, 0]]) and view.value != before and sliders[0].min == -5
        which.value = "red"
        assert [slider.value for slider in sliders] == [0, 0, 0]
        sliders[0].value = -1.0
        await until(lambda: len(asked) == 3)
        assert asked[2][2] == [[0, 2.5, 0], [-1, 0, 0]]
        which.value = "density"
        assert [slider.value for slider in sliders] == [0, 2.5, 0]
        row.value = 1
        await until(lambda: len(asked) == 4)
        assert asked[3] == (1, 4, [[0, 2.5, 0], [-1, 0, 0]])
        back.click()
        await until(lambda: len(asked) == 5)
        assert asked[4][2] == [[0, 0, 0], [0, 0, 0]] and sliders[1].value == 0 and not error.value

    asyncio.run(use())
    assert asked[0] == (3, 4, [[0, 0, 0], [0, 0, 0]]) and "image/svg+xml" in shown[0]
    with pytest.raises(InputError, match="reach"):
        widgets.weight_sliders(draw, ("density",), 3, alt="a chart of weights", pick=torch.zeros(6, 8, 3), reach=0.0)
