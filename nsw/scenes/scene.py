"""What a reader returns and everything downstream takes: pictures with their cameras and, where known, the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from nsw.cameras import Cameras
from nsw.errors import InputError


@dataclass(frozen=True)
class Points:
    """Sparse surface points: positions [P, 3] in world coordinates and sRGB colours [P, 3] in [0, 1]."""

    xyz: Float[Tensor, "P 3"]
    rgb: Float[Tensor, "P 3"]

    def __len__(self) -> int:
        return self.xyz.shape[0]


@dataclass(frozen=True)
class Scene:
    """N posed pictures of one static scene, kept as stored: 8-bit sRGB with straight (not premultiplied) alpha.

    Attributes:
        name: short name, shown in titles.
        images: [N, H, W, 3] or [N, H, W, 4] uint8.
        cameras: N cameras of size W x H.
        splits: indices of the frames of "train", "val" and "test"; disjoint; "train" and "test" are never empty.
        aabb: box [2, 3] (minimum, maximum) in world units that holds what is to be reconstructed.
        near, far: camera distances along a ray between which the scene lies, world units.
        names: N frame names for messages.
        masks: [N, H, W] bool, False where a pixel must not be used.
        points: sparse points, for example from structure from motion.
        depth: [N, H, W] camera z in world units, 0 where nothing was hit.
        normals: [N, H, W, 3] unit world normals, 0 where nothing was hit.
        albedo: [N, H, W, 3] uint8 sRGB.
        ids: [N, H, W] int16 instance ids, -1 where nothing was hit; `id_names[i]` names instance i.
        extra_splits: further named camera paths with pictures, for example "walk" of the bundled room.
        background: what pictures stand before: "white" with alpha, else "plain" for one backdrop that all of them show, or "none".
            Its colour is the cameras', see `behind`.
        source: where it was read from.
        digest: SHA-256 over pictures and cameras, for provenance.
        notes: sentences about what the reader decided, for example which views it held out.
    """

    name: str
    images: UInt8[Tensor, "N H W c"]
    cameras: Cameras
    splits: Mapping[str, Int[Tensor, "n"]]
    aabb: Float[Tensor, "2 3"]
    near: float
    far: float
    names: Sequence[str] = ()
    masks: Bool[Tensor, "N H W"] | None = None
    points: Points | None = None
    depth: Float[Tensor, "N H W"] | None = None
    normals: Float[Tensor, "N H W 3"] | None = None
    albedo: UInt8[Tensor, "N H W 3"] | None = None
    ids: Int[Tensor, "N H W"] | None = None
    id_names: Sequence[str] = ()
    extra_splits: Mapping[str, Int[Tensor, "n"]] = field(default_factory=dict)
    background: str = "white"
    source: Path | None = None
    digest: str = ""
    notes: Sequence[str] = ()

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def has_alpha(self) -> bool:
        return self.images.shape[-1] == 4

    @property
    def behind(self) -> float | Float[Tensor, "3"]:
        """What stands behind the scene, in [0, 1]: the colour of a plain backdrop, else a grey level, white unless said."""
        return self.cameras.background

    @property
    def box(self) -> tuple[float, ...]:
        """The six numbers of `aabb`, as settings of models take them."""
        return tuple(self.aabb.flatten().tolist())

    @property
    def scale(self) -> float:
        """Scene extent as Gaussian splatting uses it: 1.1 x the largest distance of a training camera to their mean."""
        origins = self.cameras[self.splits["train"]].origins
        return float(1.1 * (origins - origins.mean(0)).norm(dim=-1).max())

    @property
    def is_own(self) -> bool:
        """Whether it was read from a user's folder, and not from one that `nsw.scenes.make` wrote."""
        return self.source is not None and not (self.source / "manifest.json").is_file()

    def knows(self, *truths: str) -> bool:
        """Return whether the scene has the named maps of the truth; if not, print that what asks for them is left out.

        Args:
            truths: of "depth", "normals", "albedo", "ids".
        """
        missing = [name for name in truths if getattr(self, name) is None]
        if missing:
            print(f"{self.name} comes without true {' and '.join(missing)}: what is measured against that truth is left out.")
        return not missing

    def frames(self, which: str | Sequence[int] | Int[Tensor, "n"]) -> Int[Tensor, "n"]:
        """Return frame indices for the name of a split, or the given indices as a tensor."""
        if not isinstance(which, str):
            return torch.as_tensor(which, dtype=torch.long).reshape(-1)
        known = {**self.splits, **self.extra_splits}
        if which not in known:
            raise InputError(f'Scene {self.name} has no split "{which}": it has {", ".join(sorted(known))}.')
        return known[which]

    def views(self, which: str | Sequence[int] | Int[Tensor, "n"]) -> Cameras:
        """Return the cameras of a split or of the given frames."""
        return self.cameras[self.frames(which)]

    def pixels(
        self,
        which: str | Sequence[int] | Int[Tensor, "n"],
        background: float | Float[Tensor, "3"] = 1.0,
        device: torch.device | str = "cpu",
    ) -> Float[Tensor, "n H W 3"]:
        """Return pictures as floats in [0, 1], composited over `background` (a grey level or an RGB colour).

        Args:
            device: where they are wanted; the stored pictures are copied there once and stay.
        """
        picked = self._images_on(torch.device(device))[self.frames(which)].float() / 255.0
        if not self.has_alpha:
            return picked
        alpha = picked[..., 3:]
        return picked[..., :3] * alpha + torch.as_tensor(background).to(picked) * (1.0 - alpha)

    def _images_on(self, device: torch.device) -> UInt8[Tensor, "N H W c"]:
        if device.type == "cpu":
            return self.images
        copies = self.__dict__.setdefault("_copies", {})  # not a field: a copy says nothing that the scene does not
        if device not in copies:
            copies[device] = self.images.to(device)
        return copies[device]

    def alphas(self, which: str | Sequence[int] | Int[Tensor, "n"]) -> Float[Tensor, "n H W"]:
        """Return opacity in [0, 1]; 1 everywhere for pictures without an alpha channel."""
        picked = self.images[self.frames(which)]
        return picked[..., 3].float() / 255.0 if self.has_alpha else torch.ones(picked.shape[:3])

    def usable(self, which: str | Sequence[int] | Int[Tensor, "n"]) -> Bool[Tensor, "n H W"]:
        """Return which pixels may be trained on: all that no mask leaves out."""
        frames = self.frames(which)
        whole = torch.ones(1, dtype=torch.bool).expand(len(frames), *self.images.shape[1:3])
        return whole if self.masks is None else self.masks[frames]

    def targets(
        self,
        which: str | Sequence[int] | Int[Tensor, "n"],
        background: float | Float[Tensor, "3"] = 1.0,
        device: torch.device | str = "cpu",
    ) -> Float[Tensor, "n H W 3"]:
        """Return `pixels`, NaN where a mask leaves one out: the losses of `nsw.losses` count none of these."""
        pixels = self.pixels(which, background, device)
        if self.masks is None:
            return pixels
        return pixels.masked_fill(~self.usable(which)[..., None].to(device), torch.nan)

    def resized(self, width: int, height: int | None = None) -> Scene:
        """Return the scene at another picture size, area-averaged; colours are averaged weighted by alpha.

        Depth, normals and ids take the nearest pixel centre, because averages of them are not on any surface. A pixel may
        be used only when all that is averaged into it may be.
        """
        height = height or round(self.images.shape[1] * width / self.images.shape[2])
        if (height, width) == tuple(self.images.shape[1:3]):
            return self

        def nearest(maps: Tensor | None) -> Tensor | None:
            if maps is None:
                return None
            rows = ((torch.arange(height) + 0.5) * maps.shape[1] / height).long()
            columns = ((torch.arange(width) + 0.5) * maps.shape[2] / width).long()
            return maps[:, rows][:, :, columns]

        masks = self.masks
        if masks is not None:
            masks = torch.cat([area_average(mask[None, ..., None].byte() * 255, height, width)[..., 0] == 255 for mask in masks])
        return replace(
            self,
            masks=masks,
            images=torch.cat([area_average(image[None], height, width) for image in self.images]),
            cameras=self.cameras.resized(width, height),
            **{name: nearest(getattr(self, name)) for name in ("depth", "normals", "albedo", "ids")},
        )


def area_average(images: UInt8[Tensor, "n H W c"], height: int, width: int) -> UInt8[Tensor, "n h w c"]:
    """Return pictures averaged over the pixels' areas, alpha-weighted so that transparent pixels lend no colour."""
    from torch.nn.functional import interpolate

    x = images.permute(0, 3, 1, 2).float() / 255.0
    alpha = x[:, 3:] if x.shape[1] == 4 else None
    if alpha is not None:
        x = torch.cat([x[:, :3] * alpha, alpha], dim=1)
    shrinking = height <= x.shape[2] and width <= x.shape[3]
    mode = dict(mode="area") if shrinking else dict(mode="bilinear", antialias=True)
    x = interpolate(x, size=(height, width), **mode)
    if alpha is not None:
        x = torch.cat([x[:, :3] / x[:, 3:].clamp_min(1e-6), x[:, 3:]], dim=1)
    return (x.clamp(0, 1) * 255.0).round().byte().permute(0, 2, 3, 1).contiguous()
