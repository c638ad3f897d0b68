"""Cameras and their rays.

The conventions of the whole package are said here once: camera axes are OpenCV's (x right, y down, z forward), the
world's up is +z, the centre of pixel (row 0, column 0) is at (0.5, 0.5), and `depth` is the camera's z, not the
distance along the ray. `cam_from_world` maps homogeneous world points to camera points.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nsw.errors import InputError


@dataclass(frozen=True)
class Cameras:
    """C pinhole cameras that share one picture size.

    Attributes:
        cam_from_world: rigid transforms [C, 4, 4], world to camera.
        Ks: intrinsics [C, 3, 3] in pixels.
        width: picture width in pixels.
        height: picture height in pixels.
        background: grey level or colour [3] in [0, 1] that a renderer puts behind a model unless it is told another one.
    """

    cam_from_world: Float[Tensor, "C 4 4"]
    Ks: Float[Tensor, "C 3 3"]
    width: int
    height: int
    background: float | Float[Tensor, "3"] = 1.0

    def __len__(self) -> int:
        return self.cam_from_world.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | Int[Tensor, "n"]) -> Cameras:
        """Return the chosen cameras; an integer, also numpy's or torch's, gives a batch of one.

        Raises:
            IndexError: for an integer that is no camera's; a GPU would end the process instead.
        """
        if not isinstance(index, slice) and getattr(index, "ndim", 0) == 0 and hasattr(index, "__index__"):
            index = [range(len(self))[int(index)]]
        return replace(self, cam_from_world=self.cam_from_world[index], Ks=self.Ks[index])

    def __iter__(self) -> Iterator[Cameras]:
        """Yield the cameras one by one, each as a batch of one."""
        return (self[i] for i in range(len(self)))

    def to(self, device: torch.device | str) -> Cameras:
        background = moved(self.background, device)
        return replace(self, cam_from_world=self.cam_from_world.to(device), Ks=self.Ks.to(device), background=background)

    @property
    def world_from_cam(self) -> Float[Tensor, "C 4 4"]:
        """The inverse of `cam_from_world`, by the transpose of its rotation."""
        rotation = self.cam_from_world[:, :3, :3].transpose(1, 2)
        out = torch.zeros_like(self.cam_from_world)
        out[:, :3, :3] = rotation
        out[:, :3, 3] = -(rotation @ self.cam_from_world[:, :3, 3:])[..., 0]
        out[:, 3, 3] = 1.0
        return out

    @property
    def origins(self) -> Float[Tensor, "C 3"]:
        """Camera centres in world coordinates."""
        return self.world_from_cam[:, :3, 3]

    def resized(self, width: int, height: int) -> Cameras:
        """Return the cameras of the same views at another picture size (intrinsics scale with it)."""
        scale = self.Ks.new_tensor([width / self.width, height / self.height, 1.0])
        return replace(self, Ks=self.Ks * scale[None, :, None], width=width, height=height)


@dataclass(frozen=True)
class Rays:
    """R rays in world coordinates.

    Attributes:
        origins: [R, 3].
        directions: unit vectors [R, 3], so that t is a distance.
        z_per_t: [R], camera depth gained per unit of distance: depth z = t * z_per_t.
        background: grey level or colour [3] behind all of them, as for `Cameras`.
    """

    origins: Float[Tensor, "R 3"]
    directions: Float[Tensor, "R 3"]
    z_per_t: Float[Tensor, "R"]
    background: float | Float[Tensor, "3"] = 1.0

    def __len__(self) -> int:
        return self.origins.shape[0]

    def __getitem__(self, index) -> Rays:
        index = row_numbers(index)
        rows = (rows_at(values, index) for values in (self.origins, self.directions, self.z_per_t))
        return Rays(*rows, self.background)

    def to(self, device: torch.device | str) -> Rays:
        tensors = (values.to(device) for values in (self.origins, self.directions, self.z_per_t))
        return Rays(*tensors, moved(self.background, device))

    def at_depth(self, z: Float[Tensor, "R"]) -> Float[Tensor, "R 3"]:
        """Return the points in the world at camera depth z along each ray: what a depth map shows."""
        return self.origins + self.directions * (z / self.z_per_t)[:, None]


def moved(background: float | Float[Tensor, "3"], device: torch.device | str) -> float | Float[Tensor, "3"]:
    """Return a background for use on a device: a colour is taken there, a grey level is the same everywhere.

    >>> moved(0.5, "cpu")
    0.5
    """
    return background.to(device) if isinstance(background, Tensor) else background


def row_numbers(index):
    """Return a mask as the numbers of the rows it chooses, looked for once for all tensors that it is to index.

    >>> row_numbers(torch.tensor([False, True])).tolist(), row_numbers(slice(2))
    ([1], slice(None, 2, None))
    """
    mask = isinstance(index, Tensor) and index.dtype == torch.bool and index.dim() == 1
    return index.nonzero()[:, 0] if mask else index


def rows_at(values: Float[Tensor, "R *k"], index) -> Float[Tensor, "M *k"]:
    """Return `values[index]`, in about a quarter of its time where the index is a list of row numbers, none of them negative.

    >>> rows_at(torch.arange(4.0), torch.tensor([2, 0])).tolist(), rows_at(torch.arange(4.0), slice(2)).tolist()
    ([2.0, 0.0], [0.0, 1.0])
    """
    numbers = isinstance(index, Tensor) and (index.dtype, index.device, index.dim()) == (torch.int64, values.device, 1)
    return values.index_select(0, index) if numbers else values[index]


def pixel_rays(cameras: Cameras, camera_index: Int[Tensor, "R"], rows: Int[Tensor, "R"], columns: Int[Tensor, "R"]) -> Rays:
    """Return the rays through the centres of the given pixels.

    The camera-space direction of pixel (i, j) is ((j + 0.5 - cx) / fx, (i + 0.5 - cy) / fy, 1), skew included.

    Args:
        cameras: C cameras.
        camera_index: which camera, in [0, C).
        rows: i, downwards.
        columns: j, to the right.
    """
    K = cameras.Ks[camera_index]
    y = (rows + 0.5 - K[:, 1, 2]) / K[:, 1, 1]
    x = (columns + 0.5 - K[:, 0, 2] - K[:, 0, 1] * y) / K[:, 0, 0]
    in_camera = torch.stack([x, y, torch.ones_like(x)], dim=-1)
    z_per_t = 1.0 / in_camera.norm(dim=-1)
    world_from_cam = cameras.world_from_cam[camera_index]
    directions = (world_from_cam[:, :3, :3] @ (in_camera * z_per_t[:, None])[..., None])[..., 0]
    return Rays(world_from_cam[:, :3, 3], directions, z_per_t, cameras.background)


def pixel_ray(cameras: Cameras, row: int, column: int) -> Rays:
    """Return the one ray through the centre of a pixel of the first camera.

    >>> len(pixel_ray(orbit(2, 3.0, width=8, height=8), 4, 4))
    1
    """
    return pixel_rays(cameras, *(torch.tensor([at], device=cameras.Ks.device) for at in (0, row, column)))


def random_rays(cameras: Cameras, n_rays: int, generator: torch.Generator) -> tuple[Rays, Int[Tensor, "R"]]:
    """Return rays through random pixels of random ones of these cameras, and which camera each belongs to."""
    sizes, device = (len(cameras), cameras.height, cameras.width), cameras.Ks.device
    camera, row, column = (torch.randint(size, (n_rays,), generator=generator, device=device) for size in sizes)
    return pixel_rays(cameras, camera, row, column), camera


def camera_rays(cameras: Cameras) -> Rays:
    """Return the rays of every pixel of every camera, in the order camera, row, column: C*H*W rays."""
    grid = torch.meshgrid(
        torch.arange(len(cameras), device=cameras.Ks.device),
        torch.arange(cameras.height, device=cameras.Ks.device),
        torch.arange(cameras.width, device=cameras.Ks.device),
        indexing="ij",
    )
    return pixel_rays(cameras, *(axis.reshape(-1) for axis in grid))


def project(cameras: Cameras, points_world: Float[Tensor, "N 3"]) -> tuple[Float[Tensor, "C N 2"], Float[Tensor, "C N"]]:
    """Return pixel coordinates (x, y) and depths z of world points in every camera.

    Points at z <= 0 are behind the camera; their pixel coordinates mean nothing.
    """
    R, t = cameras.cam_from_world[:, :3, :3], cameras.cam_from_world[:, :3, 3]
    points_cam = torch.einsum("cij,nj->cni", R, points_world) + t[:, None]
    z = points_cam[..., 2]
    pixels = torch.einsum("cij,cnj->cni", cameras.Ks, points_cam / torch.where(z.abs() > 1e-12, z, torch.ones_like(z))[..., None])
    return pixels[..., :2], z


def look_at(
    eyes: Float[Tensor, "C 3"],
    target: Sequence[float] | Float[Tensor, "*C 3"] = (0.0, 0.0, 0.0),
    up: Sequence[float] = (0.0, 0.0, 1.0),
) -> Float[Tensor, "C 4 4"]:
    """Return `cam_from_world` [C, 4, 4] of cameras at `eyes` that look at `target` with `up` upwards in the picture.

    >>> look_at(torch.tensor([[0.0, -2.0, 0.0]]))[0, 2, 3].item()
    2.0
    """
    eyes = torch.as_tensor(eyes, dtype=torch.float32).reshape(-1, 3)
    z = torch.nn.functional.normalize(torch.as_tensor(target).to(eyes) - eyes, dim=-1)
    x = torch.cross(z, eyes.new_tensor(up).expand_as(z), dim=-1)
    vertical = x.norm(dim=-1, keepdim=True) < 1e-6  # looking along `up`: any horizontal axis serves
    x = torch.nn.functional.normalize(torch.where(vertical, eyes.new_tensor([1.0, 0.0, 0.0]).expand_as(x), x), dim=-1)
    y = torch.cross(z, x, dim=-1)
    rotation = torch.stack([x, y, z], dim=-2)
    out = torch.eye(4, device=eyes.device).repeat(len(eyes), 1, 1)
    out[:, :3, :3] = rotation
    out[:, :3, 3] = -(rotation @ eyes[..., None])[..., 0]
    return out


def intrinsics(fov_x_degrees: float, width: int, height: int, n: int = 1) -> Float[Tensor, "n 3 3"]:
    """Return n equal intrinsic matrices with square pixels and a centred principal point."""
    focal = 0.5 * width / math.tan(math.radians(fov_x_degrees) / 2)
    K = torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
    return K.repeat(n, 1, 1)


def orbit(
    n: int = 60,
    radius: float = 4.0,
    elevation_degrees: float = 30.0,
    target: Sequence[float] = (0.0, 0.0, 0.0),
    fov_x_degrees: float = 45.0,
    width: int = 256,
    height: int = 256,
    azimuth_degrees: float = 0.0,
) -> Cameras:
    """Return n cameras on a horizontal circle around `target`, anticlockwise seen from above, all looking at it.

    >>> len(orbit(8))
    8
    """
    azimuth = math.radians(azimuth_degrees) + torch.arange(n) * (2 * math.pi / n)
    elevation = math.radians(elevation_degrees)
    eyes = radius * torch.stack(
        [math.cos(elevation) * azimuth.cos(), math.cos(elevation) * azimuth.sin(), torch.full((n,), math.sin(elevation))], dim=-1
    ) + torch.tensor(target, dtype=torch.float32)
    return Cameras(look_at(eyes, target), intrinsics(fov_x_degrees, width, height, n), width, height)


def check(cameras: Cameras, names: Sequence[str] | None = None, source: str = "cameras") -> Cameras:
    """Return the cameras unchanged, or say which frame breaks a convention of this module.

    Raises:
        InputError: a pose or intrinsic that is not finite, a rotation that is not a rotation, a focal length <= 0.
    """
    names = names or [f"frame {i}" for i in range(len(cameras))]
    R = cameras.cam_from_world[:, :3, :3].double()
    error = (R @ R.transpose(1, 2) - torch.eye(3, dtype=R.dtype, device=R.device)).abs().amax(dim=(1, 2))
    tests = [
        (~torch.isfinite(cameras.cam_from_world).flatten(1).all(1), "has a pose with a value that is not finite"),
        (~torch.isfinite(cameras.Ks).flatten(1).all(1), "has an intrinsic that is not finite"),
        (error > 1e-3, "has a pose whose 3x3 part is not a rotation (is it scaled, sheared or singular?)"),
        (torch.linalg.det(torch.nan_to_num(R)) < 0, "has a mirrored pose (determinant -1)"),
        ((cameras.Ks[:, 0, 0] <= 0) | (cameras.Ks[:, 1, 1] <= 0), "has a focal length that is zero or negative"),
    ]
    for bad, what in tests:
        if bool(bad.any()):
            first = int(bad.nonzero()[0, 0])
            raise InputError(
                f"{source}: {names[first]} {what}; correct that frame or remove it ({int(bad.sum())} of {len(cameras)} frames)."
            )
    return cameras
