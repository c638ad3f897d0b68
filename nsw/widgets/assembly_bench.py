"""An assembly bench in the browser: place a part on another with a gizmo, cut it, see where it touches, stitch it."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable
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

MARK = (0.84, 0.37, 0.0)  # colour of boundary splats


class Box:
    """Three ranges on the page, one an axis: `kept()` is what lies between them and was not brushed away."""

    def __init__(self, gui: Any, model: Gaussians, changed: Callable[[], None]):
        self.model = model
        low, high = (side.tolist() for side in model.means.detach().aminmax(dim=0))
        step = max(1e-4, max(b - a for a, b in zip(low, high, strict=True)) / 200)
        self.ranges = [
            gui.add_multi_slider(f"keep {axis}", min=a, max=b + step, step=step, initial_value=(a, b + step), marks=())
            for axis, a, b in zip("xyz", low, high, strict=True)
        ]
        for handle in self.ranges:
            handle.on_update(lambda _: changed())
        self.brushed = torch.zeros(len(model), dtype=torch.bool, device=model.means.device)

    def rows(self) -> torch.Tensor:
        """Return [N] bool: splats whose centres are inside, and that no brush took."""
        low, high = torch.tensor([handle.value for handle in self.ranges]).to(self.model.means).T
        return ((self.model.means >= low) & (self.model.means <= high)).all(dim=1) & ~self.brushed

    def kept(self) -> Gaussians:
        """Return those splats."""
        return part_of(self.model, self.rows())


def first_hit(means: torch.Tensor, solid: torch.Tensor, origin: Any, direction: Any, reach: float) -> int | None:
    """Return which of the centres [N, 3] that are `solid` [N] a ray meets first, passing within `reach` of it; None for none."""
    origin, direction = (torch.as_tensor(np.asarray(v), dtype=means.dtype, device=means.device) for v in (origin, direction))
    direction = direction / direction.norm()
    along = (means - origin) @ direction
    aside = (means - origin - along[:, None] * direction).norm(dim=1)
    met = solid & (along > 0) & (aside < reach)
    return int(along.where(met, torch.inf).argmin()) if bool(met.any()) else None


class Assembly:
    """A running bench: `url`, `source()` as it is cut, `target()` as it is cut and placed now, `union()`, `stop()`.

    Args:
        source: the model that stays.
        target: the model on the gizmo.
        recolour: called with (cut source, placed target) by the button "stitch"; returns the target in new colours.
    """

    def __init__(self, source: Gaussians, target: Gaussians, recolour: Any = None, port: int = 0, host: str = "127.0.0.1"):
        import viser

        self.recolour = recolour
        self.recoloured: Gaussians | None = None
        self.lock = threading.Lock()
        self.port = free_port(host, port)
        with quiet_console():
            self.server = viser.ViserServer(host=host, port=self.port, label="Assembly bench", verbose=False)
        self.url = f"http://{'localhost' if host in ('127.0.0.1', '0.0.0.0') else host}:{self.server.get_port()}"
        scene, camera = self.server.scene, self.server.initial_camera
        scene.set_up_direction("+z")
        camera.look_at, camera.position, camera.up = framing(joined(source, target), "+z")
        means = target.means.detach()
        size = float((means.amax(dim=0) - means.amin(dim=0)).norm())
        self.gizmo = scene.add_transform_controls("/target", scale=0.4 * size)
        self._add_gui(source, target)
        self.cut_source()

    def _add_gui(self, source: Gaussians, target: Gaussians) -> None:
        gui = self.server.gui
        with gui.add_folder("source"):
            self.source_box = Box(gui, source, self.cut_source)
        with gui.add_folder("target"):
            self.scale = gui.add_slider("size", min=0.25, max=4.0, step=0.05, initial_value=1.0)
            self.target_box = Box(gui, target, self.refresh)
        self.beta = gui.add_slider("beta", min=0.01, max=0.2, step=0.01, initial_value=0.06, hint="how near counts as touching")
        self.tau = gui.add_slider("tau", min=0.0, max=0.95, step=0.05, initial_value=0.4, hint="how opaque a boundary splat is")
        self.brush = gui.add_slider("brush", min=0.02, max=0.5, step=0.02, initial_value=0.1, hint="radius of a shift-click")
        gui.add_button("undo the brush").on_click(lambda _: self.unbrush())
        self.server.scene.on_click(modifier="shift")(lambda event: self.cut_at(event.ray_origin, event.ray_direction))
        gui.add_markdown("Shift-click brushes a piece away.")
        self.told = gui.add_markdown("")
        for handle in (self.scale, self.beta, self.tau):
            handle.on_update(lambda _: self.refresh())
        self.gizmo.on_update(lambda _: self.refresh())
        if self.recolour is not None:
            gui.add_button("stitch").on_click(lambda _: self.stitch())

    def source(self) -> Gaussians:
        """Return the model that stays as it is cut now."""
        return self.source_box.kept()

    def target(self) -> Gaussians:
        """Return the model on the gizmo as it is cut and placed now."""
        return self._placed(self.target_box.kept())

    def _placed(self, part: Gaussians) -> Gaussians:
        from scipy.spatial.transform import Rotation

        w, x, y, z = self.gizmo.wxyz
        turn = torch.from_numpy(Rotation.from_quat([x, y, z, w]).as_matrix())
        return placed(part, turn, torch.from_numpy(np.asarray(self.gizmo.position)), float(self.scale.value))

    def union(self) -> Gaussians:
        """Return both parts as one model, in new colours once they are stitched."""
        return joined(self.source(), self.recoloured or self.target())

    def cut_at(self, origin: Any, direction: Any) -> None:
        """Take away what lies within the brush around the first opaque splat that a ray meets, from the part that it belongs to."""
        radius = float(self.brush.value)
        places = (self.source_box.model.means.detach(), self._placed(self.target_box.model).means.detach())
        boxes = self.source_box, self.target_box
        solid = torch.cat([box.rows() & (box.model.activated_opacities > 0.3) for box in boxes])
        hit = first_hit(torch.cat(places), solid, origin, direction, radius / 4)
        if hit is None:
            self.told.content = "No opaque splat under the pointer."
            return
        which = int(hit >= len(places[0]))
        near = (places[which] - torch.cat(places)[hit]).norm(dim=1) < radius
        if bool((boxes[which].rows() & ~near).any()):  # a part of which nothing is left cannot be placed
            boxes[which].brushed |= near
        self.cut_source()

    def unbrush(self) -> None:
        """Bring back all that was brushed away."""
        for box in (self.source_box, self.target_box):
            box.brushed[:] = False
        self.cut_source()

    def cut_source(self) -> None:
        """Show what is left of the source, and the rest anew."""
        with self.lock:
            self._show("/source", self.source())
        self.refresh()

    def refresh(self) -> None:
        """Show the placed part, its boundary splats in orange; what was stitched before is forgotten."""
        with self.lock:
            self.recoloured = None
            self.server.scene.remove_by_name("/stitched")
            target, rows = self.target(), None
            try:
                rows = stitch.find_boundary(self.source(), target, float(self.beta.value), float(self.tau.value)).rows
                self.told.content = f"{len(rows)} of {len(target)} splats touch the source."
            except InputError as error:
                self.told.content = str(error)
            self._show("/target/splats", self.target_box.kept(), float(self.scale.value), rows)

    def stitch(self) -> None:
        """Recolour the placed part, and show it in place of the one on the gizmo."""
        with self.lock:
            self.told.content = "Stitching ..."
            try:
                self.recoloured = self.recolour(self.source(), self.target())
            except InputError as error:
                self.told.content = str(error)
                return
            self.server.scene.remove_by_name("/target/splats")
            self._show("/stitched", self.recoloured)
            self.told.content = "Stitched. Move the part to begin again."

    def _show(self, name: str, splats: Gaussians, scale: float = 1.0, marked: torch.Tensor | None = None) -> None:
        with torch.no_grad():
            rgb = splats.base_rgb.clamp(0, 1)
            if marked is not None:
                rgb[marked] = rgb.new_tensor(MARK)
            shown = dict(
                centers=scale * splats.means.cpu().numpy(),
                covariances=scale**2 * splats.covariances.cpu().numpy(),
                rgbs=rgb.cpu().numpy(),
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
        source: the model that stays; sliders cut a box out of it.
        target: the model to place; a gizmo moves and turns it, sliders size it and cut a box out of it.
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
