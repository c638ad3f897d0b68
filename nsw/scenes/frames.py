"""From frames (a picture file, a pose, a lens) to a Scene: what every reader ends with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from nsw import cameras as nsw_cameras
from nsw.cameras import Cameras
from nsw.errors import InputError
from nsw.scenes.backdrop import plain_backdrop, sentence
from nsw.scenes.bounds import Bounds
from nsw.scenes.images import picture_size, read_mask, read_picture
from nsw.scenes.scene import Points, Scene, area_average
from nsw.scenes.undistort import Lens, straighten

HOLD_OUT_EVERY = 8
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Frame:
    """One picture as a file lists it.

    Attributes:
        name: how messages call it.
        path: the picture.
        world_from_cam: [4, 4], OpenCV camera axes.
        lens: intrinsics for `lens.width` x `lens.height` pixels; the stored picture may be larger or smaller.
        split: "train", "val", "test" or "" for not said.
        mask: a picture that is dark where pixels must not be used.
        own_size: whether the file gives this very frame its size, so that sizes may differ between frames.
    """

    name: str
    path: Path
    world_from_cam: Float[np.ndarray, "4 4"]
    lens: Lens
    split: str = ""
    mask: Path | None = None
    own_size: bool = False


def opencv_from_opengl(world_from_cam: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, "n 4 4"]:
    """Return poses with OpenCV's camera axes for poses with OpenGL's and Blender's (y up, looking along -z)."""
    return world_from_cam * np.array([1.0, -1.0, -1.0, 1.0])


def cam_from_world(world_from_cam: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, "n 4 4"]:
    """Return the inverses of rigid poses, by the transpose; what is not rigid stays so, for `cameras.check` to find."""
    out = np.zeros_like(world_from_cam)
    rotation = world_from_cam[:, :3, :3].transpose(0, 2, 1)
    out[:, :3, :3] = rotation
    out[:, :3, 3] = -(rotation @ world_from_cam[:, :3, 3:])[..., 0]
    out[:, 3, 3] = 1.0
    return out


def checked_poses(frames: Sequence[Frame], source: Path) -> Float[np.ndarray, "n 4 4"]:
    """Return `world_from_cam` of all frames, after the checks that need no picture.

    Raises:
        InputError: fewer than two frames, a pose or an intrinsic that breaks a convention.
    """
    if len(frames) < 2:
        raise InputError(
            f"{source}: found {len(frames)} frame(s), expected at least 2 (one to train on, one to test on); add views."
        )
    poses = np.stack([frame.world_from_cam for frame in frames])
    lens = frames[0].lens
    with np.errstate(all="ignore"):
        transforms = torch.from_numpy(cam_from_world(poses)).float()
    Ks = torch.from_numpy(np.stack([frame.lens.K for frame in frames])).float()
    nsw_cameras.check(Cameras(transforms, Ks, lens.width, lens.height), [f'frame "{frame.name}"' for frame in frames], str(source))
    if (np.abs(poses[:, :3, 3]).max(axis=1) > 1e8).any():
        first = int((np.abs(poses[:, :3, 3]).max(axis=1) > 1e8).argmax())
        raise InputError(f'{source}: frame "{frames[first].name}" stands further than 1e8 from the origin; correct or remove it.')
    return poses


def assemble(
    frames: Sequence[Frame],
    *,
    name: str,
    source: Path,
    bounds: Bounds,
    size: int | None = None,
    points: Points | None = None,
    background: str = "none",
    notes: Sequence[str] = (),
) -> Scene:
    """Read the pictures of checked frames, straighten them, bring them to one size and return the scene.

    Pictures whose sizes the file gives frame by frame may differ: they are padded at the right and at the bottom to the
    largest, and the padding is masked out. Other pictures must agree.

    Args:
        frames: in the order of the scene.
        size: width to area-average to; None, or more than is stored, keeps the stored size.
        background: "white" or "none"; only kept when a picture has transparency. Opaque pictures before a plain
            backdrop have that, "plain".
    """
    uprights, targets, canvas = _plan(frames, source, size)
    with ThreadPoolExecutor(max_workers=4) as pool:
        read = list(pool.map(_read, frames, uprights, targets))
    images, masks = _stack(read, canvas)
    poses = np.stack([frame.world_from_cam for frame in frames])
    Ks = torch.from_numpy(np.stack([K for _, K, _ in read])).float()
    cameras = Cameras(torch.from_numpy(cam_from_world(poses)).float(), Ks, canvas[0], canvas[1])
    names = [frame.name for frame in frames]
    nsw_cameras.check(cameras, [f'frame "{n}"' for n in names], str(source))
    splits, said = split_indices([frame.split for frame in frames], source)
    if images.shape[-1] == 3:
        backdrop = plain_backdrop(images, splits["train"], masks)
        background = "none" if backdrop is None else "plain"
        if backdrop is not None:
            cameras = replace(cameras, background=backdrop)
            said.append(sentence(backdrop))
    return Scene(
        name=name,
        images=images,
        cameras=cameras,
        splits=splits,
        aabb=torch.from_numpy(np.asarray(bounds.aabb)).float(),
        near=float(bounds.near),
        far=float(bounds.far),
        names=names,
        masks=masks,
        points=points,
        background=background,
        source=Path(source),
        digest=digest(images, cameras),
        notes=(*notes, *said),
    )


def digest(images: UInt8[Tensor, "N H W c"], cameras: Cameras) -> str:
    """Return the SHA-256 of pictures and cameras, as hexadecimal digits."""
    sha = hashlib.sha256(repr(tuple(images.shape)).encode())
    for image in images:
        sha.update(image.contiguous().numpy().data)
    sha.update(cameras.cam_from_world.contiguous().float().numpy().tobytes())
    sha.update(cameras.Ks.contiguous().float().numpy().tobytes())
    return sha.hexdigest()


def split_indices(given: Sequence[str], source: Path | str) -> tuple[dict[str, Int[Tensor, "n"]], list[str]]:
    """Return the indices of "train", "val" and "test", and what had to be decided about them.

    A scene without "test" frames is tested on its "val" frames; one without either holds out every 8th training frame,
    beginning with the first, as LLFF and mip-NeRF 360 do.

    >>> split_indices(["train"] * 9, "here")[0]["test"].tolist()
    [0, 8]
    """
    index = {split: [i for i, s in enumerate(given) if (s or "train") == split] for split in SPLITS}
    notes = []
    if not index["test"] and index["val"]:
        index["test"], index["val"] = index["val"], []
        notes.append("The data set has no test views: its validation views are the test views.")
    if not index["test"]:
        index["test"] = index["train"][::HOLD_OUT_EVERY]
        index["train"] = [i for i in index["train"] if i not in set(index["test"])]
        notes.append(f"The data set has no test views: every {HOLD_OUT_EVERY}th view is held out for testing.")
    if not index["train"]:
        raise InputError(f'{source}: no frame is left for the split "train"; mark some frames as training views.')
    return {split: torch.tensor(index[split], dtype=torch.long) for split in SPLITS}, notes


def _plan(frames: Sequence[Frame], source: Path, size: int | None) -> tuple[list[bool], list[tuple[int, int]], tuple[int, int]]:
    """Return per frame whether to turn it upright and its final (width, height), and the size that holds them all."""
    uprights, stored = [], []
    for frame in frames:
        width, height, turned = picture_size(frame.path)
        upright = turned and not _same_shape(frame.lens, width, height) and _same_shape(frame.lens, height, width)
        if upright:
            width, height = height, width
        if not _same_shape(frame.lens, width, height):
            raise InputError(
                f'{source}: the picture of frame "{frame.name}" has {width} x {height} pixels, but its camera is for '
                f"{frame.lens.width} x {frame.lens.height}; give that frame its own w and h, or make all pictures one shape."
            )
        uprights.append(upright)
        stored.append((width, height))
    if not all(frame.own_size for frame in frames) and len(set(stored)) > 1:
        other = next(i for i, s in enumerate(stored) if s != stored[0])
        raise InputError(
            f'{source}: the pictures differ in size ("{frames[0].name}" has {stored[0][0]} x {stored[0][1]} pixels, '
            f'"{frames[other].name}" has {stored[other][0]} x {stored[other][1]}); bring them to one size.'
        )
    one_size = len(set(stored)) == 1
    full = stored[0] if one_size else (max(f.lens.width for f in frames), max(f.lens.height for f in frames))
    canvas = full if size is None or checked_size(size) >= full[0] else (size, max(1, round(full[1] * size / full[0])))
    if one_size:
        return uprights, [canvas] * len(frames), canvas
    scale = canvas[0] / full[0]
    sizes = [(max(1, round(f.lens.width * scale)), max(1, round(f.lens.height * scale))) for f in frames]
    return uprights, sizes, canvas


def checked_size(size: int) -> int:
    """Return a picture width given by the user.

    Raises:
        InputError: not a whole number from 1 to 20000.
    """
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or not 1 <= size <= 20000:
        raise InputError(f"size={size!r}: expected the picture width in pixels as a whole number from 1 to 20000, or None.")
    return int(size)


def _same_shape(lens: Lens, width: int, height: int) -> bool:
    """Return whether width x height is the lens's picture at some size; halving odd sizes loses a pixel."""
    expected = lens.height * width / lens.width
    return abs(expected - height) <= max(1.0, 0.005 * height)


def _read(frame: Frame, upright: bool, target: tuple[int, int]) -> tuple[np.ndarray, Float[np.ndarray, "3 3"], np.ndarray | None]:
    """Return a frame's picture at its final size, its K, and its valid pixels (None when all are)."""
    picture = read_picture(frame.path, upright=upright)
    height, width = picture.shape[:2]
    lens = frame.lens.resized(width, height)
    valid = None
    if frame.mask is not None:
        valid = read_mask(frame.mask)
        if valid.shape != (height, width):
            raise InputError(
                f"{frame.mask}: the mask has {valid.shape[1]} x {valid.shape[0]} pixels, but its picture has {width} x {height}; "
                "bring them to one size."
            )
    if lens.bend is not None:
        if valid is not None:
            valid = straighten(valid[..., None].astype(np.uint8) * 255, lens)[0][..., 0] >= 128
        picture, inside = straighten(picture, lens)
        valid = inside if valid is None else valid & inside
    if target != (width, height):
        picture = area_average(torch.from_numpy(picture)[None], target[1], target[0])[0].numpy()
        if valid is not None:  # a pixel is valid only when everything averaged into it was
            whole = torch.from_numpy(valid[..., None].astype(np.uint8) * 255)[None]
            valid = area_average(whole, target[1], target[0])[0, ..., 0].numpy() == 255
        lens = lens.resized(*target)
    return picture, lens.K, None if valid is None or valid.all() else valid


def _stack(read: list, canvas: tuple[int, int]) -> tuple[UInt8[Tensor, "N H W c"], Tensor | None]:
    """Return pictures padded to one size and channel count, and masks when any pixel is invalid.

    An alpha channel that is opaque everywhere says nothing and is dropped.
    """
    width, height = canvas
    alpha = any(p.shape[-1] == 4 and p[..., 3].min() < 255 for p, _, _ in read)
    images = np.zeros((len(read), height, width, 4 if alpha else 3), np.uint8)
    masks = np.zeros((len(read), height, width), bool)
    for image, mask, (picture, _, valid) in zip(images, masks, read, strict=True):
        h, w = min(height, picture.shape[0]), min(width, picture.shape[1])
        channels = picture.shape[-1] if alpha else 3
        image[:h, :w, :channels] = picture[:h, :w, :channels]
        if alpha and channels == 3:
            image[:h, :w, 3] = 255
        mask[:h, :w] = True if valid is None else valid[:h, :w]
    return torch.from_numpy(images), None if masks.all() else torch.from_numpy(masks)


def with_digest(scene: Scene) -> Scene:
    """Return the scene with the digest of its present pictures and cameras, for a scene that was resized."""
    return replace(scene, digest=digest(scene.images, scene.cameras))
