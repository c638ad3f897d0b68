"""Path-trace a `Description` with Mitsuba 3: colour, alpha and the truth maps of one view after the other."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nsw.cameras import camera_rays
from nsw.errors import InputError
from nsw.scenes import exposures
from nsw.scenes.make import shapes
from nsw.scenes.make.denoise import denoised
from nsw.scenes.make.describe import Description, Item, Material
from nsw.scenes.make.textures import display, linear

SAMPLES_A_PASS = 2**21  # bounds memory: a wavefront of this many paths takes about 1 GB
MOMENTS = 16  # cameras along the path of a shaken exposure


@dataclass(frozen=True)
class ViewMaps:
    """One finished view: display sRGB with straight alpha [H, W, 4] and maps from the pixel centres' rays.

    depth [H, W] is camera z (0: nothing hit), normals [H, W, 3] are in world axes and face the camera, albedo [H, W, 3] is
    display sRGB, ids [H, W] are instance numbers (-1: nothing hit).
    """

    rgba: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    albedo: np.ndarray
    ids: np.ndarray


def pick_variant(wanted: str = "auto") -> str:
    """Choose Mitsuba's variant, switch to it and return its name: `llvm_ad_rgb` where a usable LLVM is found, else `scalar_rgb`.

    Raises:
        InputError: Mitsuba is not installed, or lacks the wanted variant.
    """
    try:
        import mitsuba as mi
    except ImportError as error:
        raise InputError('Making scenes needs Mitsuba 3, which is not installed: run `pip install "nsw[synth]"`.') from error
    if wanted == "auto":
        wanted = "llvm_ad_rgb" if _llvm_works() else "scalar_rgb"
    if wanted not in mi.variants():
        raise InputError(f'Mitsuba has no variant "{wanted}" here: it has {", ".join(mi.variants())}.')
    mi.set_variant(wanted)
    mi.set_log_level(mi.LogLevel.Error)  # its samplers warn that they round the sample count up
    return wanted


def _llvm_works() -> bool:
    """Whether Dr.Jit finds an LLVM that can compile its code: before 17 it aborts the process on x86 (no `fminimum`)."""
    import drjit

    if not drjit.has_backend(drjit.JitBackend.LLVM):
        return False
    return tuple(drjit.detail.llvm_version()) >= (17,)


def _material(material: Material) -> dict[str, Any]:
    import mitsuba as mi

    value = np.asarray(material.colour, dtype=float)
    if material.kind == "light":
        return {"type": "area", "radiance": {"type": "rgb", "value": [float(x) for x in value]}}
    if value.ndim == 3:
        # Row 0 of a picture is its top, and v = 0 for Mitsuba; float pictures are taken as linear light.
        picture = mi.Bitmap(np.ascontiguousarray(linear(value)[::-1]).astype(np.float32))
        reflectance: dict[str, Any] = {"type": "bitmap", "bitmap": picture, "raw": True, "wrap_mode": "repeat"}
    else:
        reflectance = {"type": "rgb", "value": [float(x) for x in linear(value)]}
    if material.kind == "matte":
        inner = {"type": "diffuse", "reflectance": reflectance}
    elif material.kind == "gloss":
        inner = {
            "type": "roughplastic",
            "diffuse_reflectance": reflectance,
            "alpha": material.roughness,
            "distribution": "ggx",
            "nonlinear": True,
        }
    elif material.kind == "metal":
        inner = {
            "type": "roughconductor",
            "material": "none",
            "alpha": material.roughness,
            "distribution": "ggx",
            "specular_reflectance": reflectance,
        }
    else:
        raise ValueError(f"unknown kind of material: {material.kind}")
    return {"type": "twosided", "bsdf": inner}


def _look(material: Material) -> tuple:
    """Return a key that is the same for materials that look the same; a texture is compared by identity."""
    colour = id(material.colour) if np.ndim(material.colour) == 3 else tuple(map(float, material.colour))
    return material.kind, material.roughness, colour


class Studio:
    """A description loaded into Mitsuba; `view(i)` renders one of its cameras."""

    def __init__(self, description: Description, spp: int, seed: int, variant: str = "auto", denoise: bool = True):
        self.description, self.spp, self.seed, self.denoise = description, spp, seed, denoise
        self.variant = pick_variant(variant)
        import mitsuba as mi

        # What shares a material is one mesh, and a material is loaded once: Dr.Jit traces each of them anew for every view.
        groups: dict[Any, list[Item]] = {}
        for item in description.items:
            groups.setdefault(_look(item.material), []).append(item)
        self.groups = list(groups.values())
        self.instance_of_face = {
            f"group_{i}": np.repeat([x.instance for x in group], [len(x.mesh.faces) for x in group]).astype(np.int16)
            for i, group in enumerate(self.groups)
        }
        with tempfile.TemporaryDirectory() as folder:
            self.scene = mi.load_dict(self._scene_dict(Path(folder)), optimize=False)
        self._group_of_number: dict[int, str] = {}

    def _scene_dict(self, folder: Path) -> dict[str, Any]:
        import mitsuba as mi

        d = self.description
        out: dict[str, Any] = {"type": "scene"}
        for i, group in enumerate(self.groups):
            path, material = folder / f"group_{i}.ply", group[0].material
            mesh = shapes.joined([item.mesh for item in group])
            shapes.write_ply(mesh, path)
            look: dict[str, Any] = {"bsdf": _material(material)}
            if material.kind == "light":  # by their power, so that a dim lamp does not take half of the samples
                look = {"emitter": {**_material(material), "sampling_weight": shapes.area(mesh) * float(np.mean(material.colour))}}
            out[f"group_{i}"] = {"type": "ply", "filename": str(path), "id": f"group_{i}", **look}
        if d.sky is not None:
            # Mitsuba's environments have +y up and turn the other way round: flip the picture and rotate.
            bitmap = mi.Bitmap(np.ascontiguousarray(d.sky[:, ::-1]).astype(np.float32))
            world = np.array([[0.0, 0, -1, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
            out["sky"] = {"type": "envmap", "bitmap": bitmap, "to_world": mi.ScalarTransform4f(world)}
        return out

    def _sensors(self, index: int) -> list[Any]:
        """Return Mitsuba's cameras of a view: one, or one for every moment of a shaken exposure."""
        exposure = self.description.exposed(index)
        return [
            self._sensor(pose.double().numpy(), exposure)
            for pose in exposures.poses(exposure, self.description.cameras[index].world_from_cam[0], MOMENTS)
        ]

    def _sensor(self, world_from_cam: np.ndarray, exposure: exposures.Exposure) -> Any:
        import mitsuba as mi

        cameras = self.description.cameras
        pose = world_from_cam @ np.diag([-1.0, -1.0, 1.0, 1.0])  # Mitsuba: x left, y up
        focal = float(cameras.Ks[0, 0, 0])
        lens = {"type": "perspective"}
        if exposure.aperture:
            lens = {"type": "thinlens", "aperture_radius": exposure.aperture, "focus_distance": exposure.focus}
        return mi.load_dict(
            {
                **lens,
                "to_world": mi.ScalarTransform4f(pose),
                "fov": float(np.degrees(2 * np.arctan(cameras.width / (2 * focal)))),
                "fov_axis": "x",
                "near_clip": 0.01,
                "far_clip": 1000.0,
                "film": {
                    "type": "hdrfilm",
                    "width": cameras.width,
                    "height": cameras.height,
                    "pixel_format": "rgba",
                    "component_format": "float32",
                    "rfilter": {"type": "box"},
                },
                "sampler": {"type": "multijitter"},  # a third of the variance of independent samples at the same cost,
            }
        )

    def light(self, index: int) -> np.ndarray:
        """Return two independent halves [2, H, W, 10] of a view: linear premultiplied RGB, alpha, albedo and normals."""
        import mitsuba as mi

        d = self.description
        path = {"type": "path", "max_depth": d.max_depth, "rr_depth": 8, "hide_emitters": d.transparent or d.backdrop is not None}
        integrator = mi.load_dict({"type": "aov", "aovs": "albedo:albedo,normal:sh_normal", "inner": path})
        sensors = self._sensors(index)
        pixels = d.cameras.width * d.cameras.height
        rounds = max(1, -(-self.spp * pixels // (2 * SAMPLES_A_PASS)))
        each = max(1, -(-self.spp // (2 * rounds * len(sensors))))
        halves = np.zeros((2, d.cameras.height, d.cameras.width, 10))
        for i in range(2 * rounds * len(sensors)):
            seed = (self.seed * 1_000_003 + index * 4096 + i) % 2**31
            sensor = sensors[i // (2 * rounds)]
            halves[i % 2] += np.nan_to_num(
                np.array(mi.render(self.scene, sensor=sensor, integrator=integrator, seed=seed, spp=each))
            )
        return halves / (rounds * len(sensors))

    def view(self, index: int) -> ViewMaps:
        """Render camera `index` and its truth maps."""
        halves = self.light(index)
        mean = denoised(halves) if self.denoise else halves.mean(0)
        depth, normals, albedo, ids = self.truth(index)
        d, alpha = self.description, np.clip(mean[..., 3:4], 0, 1)
        light = mean[..., :3] * d.exposure + (0.0 if d.backdrop is None else d.backdrop * (1 - alpha))
        alpha = alpha if d.transparent else np.ones_like(alpha)
        straight = light / np.maximum(alpha, 1e-6)
        rgba = np.concatenate([display(np.where(alpha > 0, straight, 0)), alpha], -1)
        return ViewMaps(rgba, depth, normals, albedo, ids)

    def truth(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return depth, normals, albedo and ids seen along the rays through the pixel centres."""
        cameras = self.description.cameras
        rays = camera_rays(cameras[index])
        hit = self._hits_scalar(rays) if self.variant.startswith("scalar") else self._hits_jit(rays)
        t, normals, albedo, ids = hit
        seen = ids >= 0
        normals = np.where((normals * rays.directions.numpy()).sum(-1, keepdims=True) > 0, -normals, normals)
        depth = np.where(seen, t * rays.z_per_t.numpy(), 0.0)
        shape = (cameras.height, cameras.width)
        return (
            depth.reshape(shape),
            np.where(seen[:, None], normals, 0).reshape(*shape, 3),
            np.where(seen[:, None], display(albedo), 0).reshape(*shape, 3),
            ids.reshape(shape),
        )

    def _hits_jit(self, rays: Any) -> tuple[np.ndarray, ...]:
        import drjit as dr
        import mitsuba as mi

        ray = mi.Ray3f(mi.Point3f(rays.origins.T.contiguous().numpy()), mi.Vector3f(rays.directions.T.contiguous().numpy()))
        si = self.scene.ray_intersect(ray)
        number = dr.reinterpret_array(mi.UInt32, si.shape)  # Dr.Jit's own number of a shape, 0 for none
        if not self._group_of_number:  # the same for every view, and slow to ask for
            self._group_of_number = {int(dr.reinterpret_array(mi.UInt32, mi.ShapePtr(s))[0]): s.id() for s in self.scene.shapes()}
        number, face = np.array(number), np.array(si.prim_index)
        ids = np.full(len(number), -1, dtype=np.int16)
        for n in np.unique(number[number > 0]):
            here = number == n
            ids[here] = self.instance_of_face[self._group_of_number[int(n)]][face[here]]
        normals = np.array(si.sh_frame.n).T
        albedo = np.array(si.bsdf().eval_diffuse_reflectance(si, si.is_valid())).T
        return np.array(si.t), normals, albedo, ids

    def _hits_scalar(self, rays: Any) -> tuple[np.ndarray, ...]:
        import mitsuba as mi

        n = len(rays)
        t, normals, albedo, ids = np.zeros(n), np.zeros((n, 3)), np.zeros((n, 3)), np.full(n, -1, dtype=np.int16)
        for i, (o, d) in enumerate(zip(rays.origins.tolist(), rays.directions.tolist(), strict=True)):
            si = self.scene.ray_intersect(mi.Ray3f(o, d))
            if si.is_valid():
                t[i], ids[i] = si.t, self.instance_of_face[si.shape.id()][si.prim_index]
                normals[i], albedo[i] = si.sh_frame.n, si.bsdf().eval_diffuse_reflectance(si)
        return t, normals, albedo, ids
