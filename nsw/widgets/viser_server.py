"""The full 3D viewer in the browser: cameras, training views, points, splats and the live model, on one local page."""

from __future__ import annotations

import contextlib
import html
import math
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from nsw.cameras import Cameras
from nsw.errors import InputError
from nsw.widgets.frontend import emit
from nsw.widgets.pictures import to_array

_REST = 0.3  # seconds without camera movement before the full picture
_COARSE, _FULL = 160, 512  # widths of the live picture, pixels
_COARSE_DETAIL = 384  # while moving, of a model that comes with levels of detail
_MANY = 150_000  # splats from which `serve` builds levels of detail
UPS = ("+z", "-z", "+y", "-y", "+x", "-x")
_MOST_FRUSTUMS = 64
LIVE, ELLIPSOIDS, POINTS = "live model", "ellipsoids", "points"


def free_port(host: str, port: int) -> int:
    """Return `port` when it is free, or any free one for 0.

    Raises:
        InputError: when the port is taken or the address cannot be used.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as trial:
        try:
            trial.bind((host, port))
        except (OSError, OverflowError) as error:
            raise InputError(f"Cannot open {host}:{port} ({error}): choose another --port, or 0 for any free one.") from None
        return trial.getsockname()[1]


def quaternions(rotations: np.ndarray) -> np.ndarray:
    """Return unit quaternions [n, 4] (w, x, y, z) of rotation matrices [n, 3, 3]."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_matrix(rotations).as_quat()[:, [3, 0, 1, 2]]


def client_camera(wxyz: Any, position: Any, fov: float, aspect: float, width: int) -> Cameras:
    """Return the camera of a browser: OpenCV axes, vertical field of view in radians, `width` pixels wide."""
    from scipy.spatial.transform import Rotation

    height = max(8, round(width / max(aspect, 1e-3)))
    rotation = torch.tensor(Rotation.from_quat(np.asarray(wxyz)[[1, 2, 3, 0]]).as_matrix(), dtype=torch.float32)
    cam_from_world = torch.eye(4)
    cam_from_world[:3, :3] = rotation.T
    cam_from_world[:3, 3] = -(rotation.T @ torch.tensor(np.asarray(position), dtype=torch.float32))
    focal = 0.5 * height / math.tan(fov / 2)
    K = torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
    return Cameras(cam_from_world[None], K[None], width, height)


def framing(gaussians: Any, up: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where to look, from where, and the direction that is up, to see all but the outermost splats.

    Args:
        gaussians: a model of splats.
        up: a signed axis, as "+z".
    """
    step = max(1, len(gaussians) // 50_000)
    with torch.no_grad():
        centres, opaque = gaussians.means[::step].cpu().numpy(), gaussians.activated_opacities[::step].cpu().numpy() > 0.1
    centres = centres[opaque] if opaque.any() else centres
    middle = np.median(centres, axis=0)
    distance = 2.2 * max(1e-3, float(np.quantile(np.linalg.norm(centres - middle, axis=1), 0.8)))
    axis = "xyz".index(up[1])
    upward, aside, ahead = np.zeros((3, 3))
    upward[axis] = 1.0 if up[0] == "+" else -1.0
    aside[(axis + 1) % 3], ahead[(axis + 2) % 3] = 1.0, -1.0
    direction = 0.8 * aside + 0.5 * ahead + 0.45 * upward
    return middle, middle + distance * direction / np.linalg.norm(direction), upward


class _LiveView(threading.Thread):
    """Draws the model for one browser: the newest camera only, coarse while it moves and full at rest."""

    def __init__(self, client: Any, model: Any, background: float, shown: threading.Event, moving: Any = None):
        super().__init__(daemon=True, name="nsw-live-view")
        self.client, self.model, self.background, self.shown = client, model, background, shown
        self.moving = moving  # what is drawn instead of the model while the camera moves, or None
        self.moved, self.over = threading.Event(), threading.Event()

    def run(self) -> None:
        full = True
        while not self.over.is_set():
            moved = self.moved.wait(None if full else _REST)
            if self.over.is_set():
                return
            self.moved.clear()
            if not self.shown.is_set():
                self.client.scene.set_background_image(None)
                full = True
                continue
            full = not moved
            self._draw(_FULL if full else _COARSE if self.moving is None else _COARSE_DETAIL, full)

    def _draw(self, width: int, full: bool) -> None:
        from nsw.renderers import render_view

        camera = self.client.camera
        cameras = client_camera(camera.wxyz, camera.position, camera.fov, camera.aspect, width)
        with torch.no_grad():
            out = render_view(self.model if full or self.moving is None else self.moving, cameras, background=self.background)
        depth = None
        if full:
            # Where nothing was hit the picture is behind everything, so that cameras and points stay visible.
            depth = torch.where(out.alpha[0] > 0.5, out.depth[0], torch.full_like(out.depth[0], 160.0)).cpu().numpy()
        self.client.scene.set_background_image(to_array(out), format="jpeg", jpeg_quality=90 if full else 60, depth=depth)

    def end(self) -> None:
        self.over.set()
        self.moved.set()


@contextlib.contextmanager
def quiet_console():
    """Keep viser's banner out of the notebook: it prints one, through rich, even when it is not verbose."""
    import rich

    console = rich.get_console()
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before


class ViserView:
    """A running server: its `url`, and `stop()`."""

    def __init__(self, model: Any, scene: Any, port: int, host: str, up: str = "+z", moving: Any = None):
        import viser

        self.model, self.scene, self.host, self.up, self.moving = model, scene, host, up, moving
        self.background = getattr(scene, "behind", 1.0)
        self.port = free_port(host, port)
        with quiet_console():
            self.server = viser.ViserServer(host=host, port=self.port, label="Neural Scene Workbench", verbose=False)
        self.port = self.server.get_port()
        self.url = f"http://{'localhost' if host in ('127.0.0.1', '0.0.0.0') else host}:{self.port}"
        self.splats = hasattr(model, "covariances")
        self.live = threading.Event()
        self.views: dict[int, _LiveView] = {}
        self.knobs: dict[str, Any] = {}
        self.server.scene.set_up_direction(up)
        if scene is not None:
            self._add_scene()
        elif self.splats:
            camera = self.server.initial_camera
            camera.look_at, camera.position, camera.up = framing(model, up)
        self._add_gui()
        self.server.on_client_connect(self._connected)
        self.server.on_client_disconnect(self._left)

    def _add_scene(self) -> None:
        """Add training cameras with their pictures, and sparse points."""
        frames = self.scene.splits["train"]
        frames = frames[torch.linspace(0, len(frames) - 1, min(len(frames), _MOST_FRUSTUMS)).round().long()]
        cameras = self.scene.views(frames)
        pictures = self.scene.pixels(frames)
        poses = cameras.world_from_cam.cpu().numpy()
        turns = quaternions(poses[:, :3, :3])
        step = max(1, cameras.width // 64)
        size = 0.025 * float(np.linalg.norm(poses[:, :3, 3] - poses[:, :3, 3].mean(0), axis=-1).max() or 1.0)
        for i in range(len(cameras)):
            fov = 2 * math.atan(cameras.height / (2 * float(cameras.Ks[i, 1, 1])))
            frustum = self.server.scene.add_camera_frustum(
                f"/training views/{i}",
                fov=fov,
                aspect=cameras.width / cameras.height,
                scale=size,
                thickness=0.03 * size,
                color=(0, 114, 178),
                image=to_array(pictures[i])[::step, ::step],
                wxyz=turns[i],
                position=poses[i, :3, 3],
            )
            frustum.on_click(self._go_to(turns[i], poses[i, :3, 3]))
        if self.scene.points is not None:
            self.server.scene.add_point_cloud(
                "/sparse points",
                points=self.scene.points.xyz.cpu().numpy(),
                colors=to_array(self.scene.points.rgb[None])[0],
                point_size=0.004 * float((self.scene.aabb[1] - self.scene.aabb[0]).norm()),
                visible=False,
            )
        first = self.scene.views("test")[0]
        pose = first.world_from_cam[0].cpu().numpy()
        distance = max(0.1, float((self.scene.aabb.mean(0).cpu().numpy() - pose[:3, 3]) @ pose[:3, 2]))
        camera = self.server.initial_camera
        camera.look_at, camera.up = pose[:3, 3] + distance * pose[:3, 2], np.array([0.0, 0.0, 1.0])
        camera.position = camera.look_at - 0.75 * distance * pose[:3, 2]  # a little inside, past the frames of the cameras

    def _go_to(self, wxyz: np.ndarray, position: np.ndarray):
        def go(event: Any) -> None:
            with event.client.atomic():
                event.client.camera.position = position
                event.client.camera.wxyz = wxyz

        return go

    def _add_gui(self) -> None:
        gui = self.server.gui
        modes = (LIVE, ELLIPSOIDS, POINTS) if self.splats else (LIVE, "nothing")
        self.mode = gui.add_dropdown("show", options=modes, initial_value=LIVE)
        self.mode.on_update(lambda _: self._show())
        if self.splats:
            hint = "splats below this opacity are hidden"
            self.cut = gui.add_slider("opacity cut-off", min=0.0, max=0.95, step=0.01, initial_value=0.0, hint=hint)
            self.cut.on_update(lambda _: self._show())
        if self.scene is not None:
            shown = gui.add_checkbox("training views", initial_value=True)
            shown.on_update(lambda _: self._toggle(shown.value))
        elif self.splats:
            dark = gui.add_checkbox("dark background", initial_value=False)
            dark.on_update(lambda _: self._shade(0.0 if dark.value else 1.0))
            ups = gui.add_dropdown("up", options=UPS, initial_value=self.up, hint="a file does not say which way is up")
            ups.on_update(lambda _: self._stand(ups.value))
        stand = " Click a training view to stand there." if self.scene is not None else ""
        gui.add_markdown(f"Drag turns, right-drag moves, the wheel zooms.{stand}")
        self._show()

    def add_knobs(self, remade: Callable[..., Any], knobs: Mapping[str, Any]) -> None:
        """Draw what `remade(**values)` returns from now on, in every browser, with a slider or a list for each value.

        Args:
            knobs: name -> (minimum, maximum, value) for a slider, a list for a choice, its first entry chosen, or (text,
                [examples]) for a box to type into. What `remade` refuses with an `InputError` is said below them.
        """
        for name, spec in knobs.items():
            if isinstance(spec, list):
                self.knobs[name] = self.server.gui.add_dropdown(name, options=spec, initial_value=spec[0])
            elif isinstance(spec[0], str):
                self.knobs[name] = self.server.gui.add_text(name, spec[0], hint=f"for example: {', '.join(spec[1])}")
            else:
                low, high, value = spec
                step = (high - low) / 100
                self.knobs[name] = self.server.gui.add_slider(name, min=low, max=high, step=step, initial_value=value)

        self.told = self.server.gui.add_markdown("")
        for knob in self.knobs.values():
            knob.on_update(lambda _: self._turn(remade))
        self._turn(remade)

    def _turn(self, remade: Callable[..., Any]) -> None:
        """Have the model made anew for what the knobs say."""
        try:
            self.model = remade(**{name: knob.value for name, knob in self.knobs.items()})
            self.told.content = ""
        except InputError as error:  # the model of before stays
            self.told.content = str(error)
        for view in list(self.views.values()):
            view.model = self.model
        self._show()

    def _shade(self, background: float) -> None:
        """Draw over another grey from now on."""
        self.background = background
        for view in list(self.views.values()):
            view.background = background
            view.moved.set()

    def _stand(self, up: str) -> None:
        """Turn every browser so that the direction `up` is up, in front of the whole model."""
        self.server.scene.set_up_direction(up)
        look_at, position, upward = framing(self.model, up)
        for client in self.server.get_clients().values():
            with client.atomic():
                client.camera.up_direction, client.camera.position, client.camera.look_at = upward, position, look_at

    def _toggle(self, visible: bool) -> None:
        self.server.scene.add_frame("/training views", show_axes=False, visible=visible)

    def _show(self) -> None:
        """Show the chosen mode in every browser."""
        for name in ("/splats", "/centres"):
            self.server.scene.remove_by_name(name)
        if self.splats and self.mode.value != LIVE:
            self._add_splats()
        (self.live.set if self.mode.value == LIVE else self.live.clear)()
        for view in list(self.views.values()):
            view.moved.set()

    def _add_splats(self) -> None:
        with torch.no_grad():
            opacities = self.model.activated_opacities
            keep = opacities >= self.cut.value
            centres = self.model.means[keep].cpu().numpy()
            rgb = self.model.base_rgb[keep].clamp(0, 1).cpu().numpy()
            covariances, opacities = self.model.covariances[keep].cpu().numpy(), opacities[keep, None].cpu().numpy()
        if not len(centres):
            return
        if self.mode.value == POINTS:
            size = 0.003 * float(np.linalg.norm(np.ptp(centres, axis=0))) or 0.01
            self.server.scene.add_point_cloud("/centres", points=centres, colors=(rgb * 255).astype(np.uint8), point_size=size)
        else:
            self.server.scene.add_gaussian_splats(
                "/splats", centers=centres, covariances=covariances, rgbs=rgb, opacities=opacities
            )

    def _connected(self, client: Any) -> None:
        view = self.views[client.client_id] = _LiveView(client, self.model, self.background, self.live, self.moving)
        client.camera.on_update(lambda _: view.moved.set())
        view.start()
        view.moved.set()

    def _left(self, client: Any) -> None:
        view = self.views.pop(client.client_id, None)
        if view is not None:
            view.end()

    def stop(self) -> None:
        """Close the page and free the port."""
        for view in list(self.views.values()):
            view.end()
        self.views.clear()
        self.server.stop()


def viser_view(
    model: Any, scene: Any = None, port: int = 0, host: str = "127.0.0.1", remade: Callable[..., Any] | None = None, **knobs: Any
) -> ViserView:
    """Open the full 3D viewer of a model and show its link; `.url` and `.stop()` are on what it returns.

    Args:
        model: a field or Gaussians.
        scene: its scene, for the training views and points; None shows the model alone.
        port: 0 takes any free one.
        host: "127.0.0.1" keeps the page on this machine; "0.0.0.0" opens it to the network.
        remade: called with the value of every knob by name; returns the model to draw instead.
        knobs: see `ViserView.add_knobs`.

    Raises:
        InputError: when the port is taken.
    """
    view = ViserView(model, scene, port, host)
    if remade is not None:
        view.add_knobs(remade, knobs)
    link = f'<a href="{html.escape(view.url)}" target="_blank" rel="noopener">{html.escape(view.url)}</a>'
    emit(
        {
            "text/html": f"<p>3D viewer of this model: {link} (on this machine, until its <code>.stop()</code>)</p>",
            "text/plain": view.url,
        }
    )
    return view


def serve(model: Any, scene: Any = None, port: int = 0, host: str = "127.0.0.1", up: str = "+z") -> None:
    """Show a model in the browser until Ctrl-C; `nsw view` ends here.

    Many splats on a CPU get levels of detail first, from which pictures are drawn while the camera moves.

    Args:
        up: the direction that is up in the model's world, a signed axis.

    Raises:
        InputError: when the port is taken, or `up` is no axis.
    """
    from nsw.models.gaussians import Gaussians

    if up not in UPS:
        raise InputError(f'The direction that is up is "{up}": expected {", ".join(UPS)}.')
    moving = None
    if isinstance(model, Gaussians) and len(model) >= _MANY and model.means.device.type == "cpu":
        from nsw.renderers.detail import DetailTree

        print(f"Building levels of detail over {len(model):,} splats ...", flush=True)
        moving = DetailTree(model)
    view = ViserView(model, scene, port, host, up, moving)
    told = "" if scene is not None else " (the model alone: no scene was kept with it)"
    print(f"{view.url}{told}\nCtrl-C stops.", flush=True)
    try:
        threading.Event().wait()
    finally:
        view.stop()
