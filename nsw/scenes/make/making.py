"""Make a bundled scene anew, at any size: what `nsw scene make` calls."""

from __future__ import annotations

import datetime
import importlib
from pathlib import Path

from nsw.errors import InputError
from nsw.scenes.bundled import data_dir
from nsw.scenes.make import store
from nsw.scenes.make.describe import Description

SCENES = ("toybox", "tea", "shelf", "room", "town", "toybox_defocus", "toybox_motion")
LICENCE = "CC0-1.0"
REVISION = 1  # of the generators; part of the settings, so that views of two revisions never mix


def describe(name: str, size: int | None = None, views: int | None = None, seed: int = 0) -> Description:
    """Return the description of a scene; size is the picture width, views the total number of views (None: as bundled).

    Raises:
        InputError: an unknown name, or a size, view count or seed that makes no sense.
    """
    if name not in SCENES:
        raise InputError(f'No generator for a scene "{name}": there are {", ".join(SCENES)}.')
    for what, value, low, high in (("size", size, 8, 8192), ("views", views, 2, 10_000), ("seed", seed, 0, 2**20)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InputError(f"{what}={value!r}: expected a whole number from {low} to {high}.")
    module = importlib.import_module(f"nsw.scenes.make.{name}")
    return module.describe(**({} if size is None else {"size": size}), views=views, seed=seed)


def make_scene(
    name: str,
    out: str | Path | None = None,
    size: int | None = None,
    spp: int | None = None,
    views: int | None = None,
    seed: int = 0,
    variant: str = "auto",
    denoise: bool = True,
    progress: bool = True,
) -> Path:
    """Path-trace a scene into a folder that `nsw.scenes.load` reads, and return the folder.

    Views that are already there are kept, so a stopped call continues when it is repeated; a scene that is complete is
    left as it is.

    Args:
        name: toybox, tea, shelf, room, town, toybox_defocus or toybox_motion.
        out: folder of the scene; empty, absent, or of an earlier call with the same settings. None takes NAME-WIDTH beside
            the bundled scenes, for example data/toybox-800.
        size: picture width in pixels; None for the bundled size.
        spp: samples a pixel; None for the generator's own number.
        views: about how many views in all; None for the bundled number.
        seed: of textures, arrangement and sampling.
        variant: Mitsuba's variant, for example "cuda_ad_rgb"; "auto" takes LLVM where it works, else scalar_rgb.
        denoise: remove the remaining noise (see `denoise.denoised`).
        progress: show a progress bar.

    Raises:
        InputError: unknown scene, Mitsuba missing, or a folder that holds something else.
    """
    from tqdm import tqdm

    from nsw.scenes.make.render import Studio, pick_variant

    description = describe(name, size, views, seed)
    spp = description.spp if spp is None else spp
    if isinstance(spp, bool) or not isinstance(spp, int) or not 1 <= spp <= 2**20:
        raise InputError(f"spp={spp!r}: expected a whole number of samples a pixel from 1 to {2**20}.")
    out = data_dir() / f"{name}-{description.cameras.width}" if out is None else Path(out)
    variant = pick_variant(variant)
    settings = store.settings_of(description, spp=spp, seed=seed, denoise=bool(denoise), revision=REVISION)
    store.begin(out, settings)
    todo = [i for i in range(len(description.views)) if not store.is_complete(out, description, i)]
    if not todo and (out / store.MANIFEST).is_file():
        return out
    if todo:
        studio = Studio(description, spp, seed, variant, denoise)
        done = len(description.views) - len(todo)
        bar = tqdm(todo, desc=name, unit="view", initial=done, total=len(description.views), disable=not progress)
        for index in bar:
            store.write_view(out, description, index, studio.view(index))
    store.finish(out, description, settings, _facts(description, size, spp, views, seed, variant, denoise))
    return out


def _facts(d: Description, size: int | None, spp: int, views: int | None, seed: int, variant: str, denoise: bool) -> dict:
    """Return what the manifest says about how the scene was made."""
    import mitsuba as mi

    command = f"nsw scene make {d.name} --size {d.cameras.width} --spp {spp}"
    call = f"make_scene({d.name!r}, out, size={d.cameras.width}, spp={spp}, views={views}, seed={seed}, denoise={denoise})"
    return {
        "licence": LICENCE,
        "generator": f"nsw.scenes.make.{d.name}",
        "seed": seed,
        "spp": spp,
        "denoised": denoise,
        "renderer": f"Mitsuba {mi.__version__}",
        "variant": variant,
        "command": command,
        "call": call,
        "date": datetime.date.today().isoformat(),
    }
