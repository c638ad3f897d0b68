"""Moving one camera around a scene: orbit, zoom and pan as functions from pose to pose."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.cameras import Cameras


class OrbitControl:
    """A camera that turns around a target point, starting from a given view.

    Attributes:
        camera: the present camera, a `Cameras` of one.
        target: the point [3] in world coordinates that it turns around.
    """

    def __init__(self, start: Cameras, centre: Float[Tensor, "3"]):
        self.start = start[0].to("cpu")
        self.camera = self.start
        self._centre = centre.detach().to("cpu", torch.float32)
        self.home()

    def home(self) -> None:
        """Go back to the first view."""
        self.camera = self.start
        pose = self.camera.world_from_cam[0]
        # The point on the optical axis beside the scene's centre: the first drag then turns what is looked at.
        distance = float((self._centre - pose[:3, 3]) @ pose[:3, 2])
        fallback = float((self._centre - pose[:3, 3]).norm())
        self.target = pose[:3, 3] + pose[:3, 2] * max(distance, 0.25 * fallback, 1e-3)

    @property
    def distance(self) -> float:
        """Distance from the camera to the target, world units."""
        return float((self.target - self.camera.origins[0]).norm())

    def orbit(self, right: float, up: float) -> None:
        """Turn around the target by angles in radians: `right` about the world's up, `up` towards the poles (they stop it)."""
        pose = self.camera.world_from_cam[0]
        turn = _rotation(torch.tensor([0.0, 0.0, 1.0]), -right)
        offset = pose[:3, 3] - self.target
        elevation = math.asin(max(-1.0, min(1.0, float(offset[2]) / max(self.distance, 1e-9))))
        limit = math.radians(88)
        allowed = max(min(up, limit - elevation), -limit - elevation)
        turn = turn @ _rotation(pose[:3, 0], allowed if abs(elevation) < math.pi / 2 else 0.0)
        self._set(turn @ pose[:3, :3], self.target + turn @ offset)

    def zoom(self, factor: float) -> None:
        """Multiply the distance to the target by `factor`."""
        pose = self.camera.world_from_cam[0]
        self._set(pose[:3, :3], self.target + (pose[:3, 3] - self.target) * max(factor, 1e-2))

    def pan(self, right: float, down: float) -> None:
        """Move camera and target sideways so that the target's plane shifts by these fractions of the picture's width."""
        pose = self.camera.world_from_cam[0]
        across = self.distance * self.camera.width / float(self.camera.Ks[0, 0, 0])
        shift = -(right * pose[:3, 0] + down * pose[:3, 1]) * across
        self.target = self.target + shift
        self._set(pose[:3, :3], pose[:3, 3] + shift)

    def sized(self, width: int) -> Cameras:
        """Return the present camera at a picture width, keeping its aspect."""
        return self.camera.resized(width, max(1, round(width * self.camera.height / self.camera.width)))

    def _set(self, rotation: Float[Tensor, "3 3"], origin: Float[Tensor, "3"]) -> None:
        u, _, v = torch.linalg.svd(rotation)  # thousands of small turns must not shear the axes
        rotation = u @ v
        cam_from_world = torch.eye(4)
        cam_from_world[:3, :3] = rotation.T
        cam_from_world[:3, 3] = -(rotation.T @ origin)
        self.camera = replace(self.camera, cam_from_world=cam_from_world[None])


def _rotation(axis: Float[Tensor, "3"], angle: float) -> Float[Tensor, "3 3"]:
    """Return the rotation by `angle` radians about a unit axis (Rodrigues)."""
    x, y, z = axis.tolist()
    K = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return torch.eye(3) + math.sin(angle) * K + (1 - math.cos(angle)) * (K @ K)
