"""The 3D page: cameras, port handling, what is put into the scene, and the live picture; without a browser."""

import socket
import threading
import types
import urllib.request

import numpy as np
import pytest
import torch

from nsw import InputError
from nsw.cameras import orbit
from nsw.models.gaussians import Gaussians
from nsw.renderers.detail import DetailTree
from nsw.scenes import Points, Scene
from nsw.widgets import viser_server

GENERATOR = torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def scene():
    cameras = orbit(5, 4.0, 30.0, width=32, height=24)
    images = (torch.rand(5, 24, 32, 3, generator=GENERATOR) * 255).byte()
    aabb = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
    points = Points(torch.rand(9, 3, generator=GENERATOR), torch.rand(9, 3, generator=GENERATOR))
    return Scene("five", images, cameras, {"train": torch.arange(4), "test": torch.tensor([4])}, aabb, 2.0, 6.0, points=points)


@pytest.fixture(scope="module")
def gaussians():
    return Gaussians.from_points(torch.rand(20, 3, generator=GENERATOR) - 0.5, torch.rand(20, 3, generator=GENERATOR), sh_degree=0)


def test_browser_camera_is_the_scene_camera(scene):
    cameras = scene.views("test")
    pose = cameras.world_from_cam[0].numpy()
    fov = 2 * np.arctan(cameras.height / (2 * float(cameras.Ks[0, 1, 1])))
    wxyz = viser_server.quaternions(pose[None, :3, :3])[0]
    back = viser_server.client_camera(wxyz, pose[:3, 3], float(fov), cameras.width / cameras.height, cameras.width)
    assert torch.allclose(back.cam_from_world, cameras.cam_from_world, atol=1e-5)
    assert torch.allclose(back.Ks, cameras.Ks, atol=1e-3) and (back.width, back.height) == (32, 24)


def test_a_taken_port_is_named():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"127.0.0.1:{port}.*choose another --port"):
            viser_server.free_port("127.0.0.1", port)
    with pytest.raises(InputError, match="choose another"):
        viser_server.free_port("127.0.0.1", 99_999)
    assert viser_server.free_port("127.0.0.1", 0) > 0


def test_server_shows_views_points_and_splats_and_stops(scene, gaussians, monkeypatch, capsys):
    monkeypatch.setattr("IPython.display.display", lambda *a, **k: None)
    view = viser_server.viser_view(gaussians, scene)
    try:
        assert view.server.get_host() == "127.0.0.1" and view.url.startswith("http://localhost:")
        assert b"<html" in urllib.request.urlopen(f"http://127.0.0.1:{view.port}", timeout=10).read(2000).lower()
        names = set(view.server.scene._handle_from_node_name)
        assert {f"/training views/{i}" for i in range(4)} | {"/sparse points"} <= names
        assert "/splats" not in names and view.live.is_set()
        view.mode.value = viser_server.ELLIPSOIDS
        view._show()
        assert "/splats" in view.server.scene._handle_from_node_name and not view.live.is_set()
        view.cut.value, view.mode.value = 0.95, viser_server.POINTS  # above every opacity: nothing is left to show
        view._show()
        assert not {"/splats", "/centres"} & set(view.server.scene._handle_from_node_name)
        assert capsys.readouterr().out == ""  # viser's banner stays out of the notebook
    finally:
        view.stop()
    with socket.socket() as again:
        again.settimeout(1)
        assert again.connect_ex(("127.0.0.1", view.port)) != 0


def test_knobs_have_the_model_made_anew_for_every_browser(scene, gaussians, monkeypatch):
    monkeypatch.setattr("IPython.display.display", lambda *a, **k: None)
    made = []
    remade = lambda share, side: made.append((share, side)) or Gaussians.from_points(gaussians.means + share, gaussians.base_rgb)  # noqa: E731
    view = viser_server.viser_view(gaussians, scene, remade=remade, share=(0.0, 1.0, 0.5), side=["left", "right"])
    try:
        assert made == [(0.5, "left")] and view.model is not gaussians
        watching = types.SimpleNamespace(model=None, moved=threading.Event(), end=lambda: None)
        view.views[0] = watching
        view.knobs["share"].value, view.knobs["side"].value = 0.25, "right"
        view._turn(remade)
        assert made[-1] == (0.25, "right") and watching.model is view.model and watching.moved.is_set()
    finally:
        view.views.clear()
        view.stop()


def test_a_word_that_is_refused_leaves_the_model_and_is_answered(scene, gaussians, monkeypatch):
    monkeypatch.setattr("IPython.display.display", lambda *a, **k: None)
    other = Gaussians.from_points(torch.zeros(3, 3))

    def answered(word, least):
        if word == "tiger":
            raise InputError("It knows: duck.")
        return other if least == 0 else gaussians

    view = viser_server.viser_view(gaussians, scene, remade=answered, word=("duck", ["duck"]), least=(0.0, 1.0, 0.0))
    try:
        assert view.model is other and view.told.content == ""
        view.knobs["word"].value = "tiger"
        view._turn(answered)
        assert view.model is other and view.told.content == "It knows: duck."
        view.knobs["word"].value, view.knobs["least"].value = "duck", 0.5
        view._turn(answered)
        assert view.model is gaussians and view.told.content == ""
    finally:
        view.stop()


def test_live_view_draws_coarse_then_full_and_clears(gaussians):
    drawn, sent = [], threading.Semaphore(0)

    def set_background_image(image, **options):
        drawn.append((None if image is None else image.shape[1], options.get("depth") is not None))
        sent.release()

    camera = types.SimpleNamespace(wxyz=np.array([1.0, 0, 0, 0]), position=np.array([0.0, 0, -3]), fov=0.8, aspect=1.25)
    client = types.SimpleNamespace(camera=camera, scene=types.SimpleNamespace(set_background_image=set_background_image))
    shown = threading.Event()
    live = viser_server._LiveView(client, gaussians, 1.0, shown)
    live.start()
    try:
        live.moved.set()
        assert sent.acquire(timeout=20) and drawn == [(None, False)]
        shown.set()
        live.moved.set()
        assert sent.acquire(timeout=60) and sent.acquire(timeout=60)
        assert drawn[1:] == [(160, False), (512, True)]
        live.moving = DetailTree(gaussians)
        live.moved.set()
        assert sent.acquire(timeout=60) and sent.acquire(timeout=60)
        assert drawn[3:] == [(384, False), (512, True)]  # a cut through levels of detail affords more pixels
    finally:
        live.end()
        live.join(20)
    assert not live.is_alive()


@pytest.mark.parametrize("up", viser_server.UPS)
def test_a_file_is_framed_with_its_up_direction(gaussians, up):
    look_at, position, upward = viser_server.framing(gaussians, up)
    assert abs(upward).sum() == 1 and upward["xyz".index(up[1])] == (1 if up[0] == "+" else -1)
    away = np.linalg.norm(gaussians.means.detach().numpy() - look_at, axis=1).max()
    assert np.linalg.norm(position - look_at) > away and (position - look_at) @ upward > 0


def test_a_model_without_a_scene_can_be_stood_up_and_darkened(gaussians):
    view = viser_server.ViserView(gaussians, None, 0, "127.0.0.1", up="-y")
    try:
        assert np.allclose(view.server.initial_camera.up, [0, -1, 0])
        drawn = types.SimpleNamespace(background=1.0, moved=threading.Event())
        view.views[0] = drawn
        view._shade(0.0)
        assert drawn.background == 0.0 and drawn.moved.is_set() and view.background == 0.0
        view._stand("+z")
    finally:
        view.views.clear()
        view.stop()
    with pytest.raises(InputError, match='"z": expected .z'):
        viser_server.serve(gaussians, None, up="z")


def test_many_splats_are_served_with_levels_of_detail(gaussians, monkeypatch, capsys):
    made = []

    class Ended(Exception):
        pass

    def opened(model, scene, port, host, up, moving):
        made.append((up, moving))
        raise Ended

    monkeypatch.setattr(viser_server, "ViserView", opened)
    for least in (10, 1000):
        monkeypatch.setattr(viser_server, "_MANY", least)
        with pytest.raises(Ended):
            viser_server.serve(gaussians, None, up="-y")
    assert [up for up, _ in made] == ["-y", "-y"]
    assert isinstance(made[0][1], DetailTree) and made[1][1] is None
    assert capsys.readouterr().out == "Building levels of detail over 20 splats ...\n"
