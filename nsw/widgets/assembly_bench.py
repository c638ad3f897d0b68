"""An assembly bench in the browser: place a part on another with a gizmo, cut it, see where it touches, stitch it."""

from __future__ import annotations

import html
import threading
from typing import Any

import numpy as np
import torch

from nsw.errors import InputError
from nsw.methods import gaussian_stitching as stitch
from nsw.models.gaussians import Gaussians
from nsw.models.parts import joined, part_of
from nsw.models.placing import placed
from nsw.widgets.frontend import emit
from nsw.widgets.viser_server import framing, free_port, quiet_console


class Assembly:
    """A running bench: `url`, `target()` as it is placed and cut now, `union()`, `stop()`.

    Args:
        source: the part that stays.
        target: the part on the gizmo.
        recolour: called with (source, placed target) by the button "stitch"; returns the target in new colours.
    """

    def __init__(self, source: Gaussians, target: Gaussians, recolour: Any = None, port: int = 0, host: str = "127.0.0.1"):
        import viser

        self.source, self.part, self.recolour = source, target, recolour
        self.recoloured: Gaussians | None = None
        self.lock = threading.Lock()
        self.port = free_port(host, port)
        with quiet_console():
            self.server = viser.ViserServer(host=host, port=self.port, label="Assembly bench", verbose=False)
        self.url = f"http://{'localhost' if host in ('127.0.0.1', '0.0.0.0') else host}:{self.server.get_port()}"
        scene, camera = self.server.scene, self.server.initial_camera
        scene.set_up_direction("+z")
        camera.look_at, camera.position, camera.up = framing(joined(source, target), "+z")
        self._show("/source", source)
        means = target.means.detach()
        size = float((means.amax(dim=0) - means.amin(dim=0)).norm())
        self.gizmo = scene.add_transform_controls("/target", scale=0.4 * size)
        self._add_gui()
        self._show("/target/splats", self._kept())
        self.refresh()

    def _add_gui(self) -> None:
        gui = self.server.gui
        z = self.part.means[:, 2].detach()
        low, high = float(z.min()), float(z.max())
        step = max(1e-4, (high - low) / 200)
        self.scale = gui.add_slider("size", min=0.25, max=4.0, step=0.05, initial_value=1.0)
        self.cut = gui.add_multi_slider("keep heights", min=low, max=high + step, step=step, initial_value=(low, high + step))
        self.beta = gui.add_slider("beta", min=0.01, max=0.2, step=0.01, initial_value=0.06, hint="how near counts as touching")
        self.tau = gui.add_slider("tau", min=0.0, max=0.95, step=0.05, initial_value=0.4, hint="how opaque a boundary splat is")
        self.told = gui.add_markdown("")
        for handle in (self.scale, self.cut, self.beta, self.tau):
            handle.on_update(lambda _: self.refresh())
        self.gizmo.on_update(lambda _: self.refresh())
        if self.recolour is not None:
            gui.add_button("stitch").on_click(lambda _: self.stitch())

    def _kept(self) -> Gaussians:
        low, high = self.cut.value
        z = self.part.means[:, 2]
        return part_of(self.part, (z >= low) & (z <= high))

    def target(self) -> Gaussians:
        """Return the part as it is cut and placed now."""
        from scipy.spatial.transform import Rotation

        w, x, y, z = self.gizmo.wxyz
        turn = torch.from_numpy(Rotation.from_quat([x, y, z, w]).as_matrix())
        return placed(self._kept(), turn, torch.from_numpy(np.asarray(self.gizmo.position)), float(self.scale.value))

    def union(self) -> Gaussians:
        """Return both parts as one model, in new colours once they are stitched."""
        return joined(self.source, self.recoloured or self.target())

    def refresh(self) -> None:
        """Show the placed part and its boundary splats anew; what was stitched before is forgotten."""
        with self.lock:
            self.recoloured = None
            self.server.scene.remove_by_name("/stitched")
            target = self.target()
            self._show("/target/splats", self._kept(), float(self.scale.value))
            self.server.scene.remove_by_name("/boundary")
            try:
                rows = stitch.find_boundary(self.source, target, float(self.beta.value), float(self.tau.value)).rows
            except InputError as error:
                self.told.content = str(error)
                return
            self.told.content = f"{len(rows)} of {len(target)} splats touch the source."
            points = target.means[rows].detach().numpy()
            red = np.broadcast_to(np.array([213, 94, 0], np.uint8), points.shape)
            self.server.scene.add_point_cloud("/boundary", points=points, colors=red, point_size=0.01)

    def stitch(self) -> None:
        """Recolour the placed part, and show it in place of the one on the gizmo."""
        with self.lock:
            self.told.content = "Stitching ..."
            try:
                self.recoloured = self.recolour(self.source, self.target())
            except InputError as error:
                self.told.content = str(error)
                return
            self.server.scene.remove_by_name("/target/splats")
            self.server.scene.remove_by_name("/boundary")
            self._show("/stitched", self.recoloured)
            self.told.content = "Stitched. Move the part to begin again."

    def _show(self, name: str, splats: Gaussians, scale: float = 1.0) -> None:
        with torch.no_grad():
            shown = dict(
                centers=scale * splats.means.cpu().numpy(),
                covariances=scale**2 * splats.covariances.cpu().numpy(),
                rgbs=splats.base_rgb.clamp(0, 1).cpu().numpy(),
                opacities=splats.activated_opacities[:, None].cpu().numpy(),
            )
        if len(splats):
            self.server.scene.add_gaussian_splats(name, **shown)
        else:
            self.server.scene.remove_by_name(name)

    def stop(self) -> None:
        """Close the page and free the port."""
        self.server.stop()


def assembly(source: Gaussians, target: Gaussians, recolour: Any = None, port: int = 0, host: str = "127.0.0.1") -> Assembly:
    """Open an assembly bench on two parts and show its link.

    Args:
        source: the part that stays.
        target: the part to place; a gizmo moves and turns it, sliders size and cut it.
        recolour: (source, placed target) -> target in new colours, for the button "stitch".
        port, host: as `viser_view`.

    Raises:
        InputError: when the port is taken.
    """
    bench = Assembly(source, target, recolour, port, host)
    link = f'<a href="{html.escape(bench.url)}" target="_blank" rel="noopener">{html.escape(bench.url)}</a>'
    told = f"<p>Assembly bench: {link} (on this machine, until its <code>.stop()</code>)</p>"
    emit({"text/html": told, "text/plain": bench.url})
    return bench
