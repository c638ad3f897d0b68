"""Own photos to a scene: features, matches and cameras by pycolmap (extra `nsw[sfm]`), with a report."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from nsw.errors import InputError
from nsw.scenes.capture_report import CaptureError, CaptureReport, Photo, reasons, sharpness
from nsw.scenes.images import is_picture, read_picture
from nsw.scenes.read_colmap import need_pycolmap

MIN_PHOTOS = 3
MIN_POINTS = 20
EXHAUSTIVE_UP_TO = 80
_LONGEST_SIDE = 1600
_TURNING_SHARE = 0.8
_TURN_SPREAD = 0.03
_OVERLAP = 10  # photos that a photo of a long sequence is matched with; pairs at doubling distances come on top
_PHOTO_SUFFIXES = (".heic", ".heif", ".dng", ".cr2", ".nef", ".arw")
_FOCAL_TAGS = (0x920A, 0xA405)  # EXIF FocalLength and FocalLengthIn35mmFilm: a start for the intrinsics, nothing private
_CAMERA_TAGS = (0x010F, 0x0110)  # Make and Model


def photos_to_scene(folder: str | Path, out: str | Path, progress: bool = True) -> CaptureReport:
    """Find the cameras of a folder of photos and write the scene: OUT/images, OUT/sparse/0 and OUT/report.json.

    SIFT features, exhaustive matching (sequential above 80 photos, in the order of their names), incremental mapping;
    photos are turned upright and brought to at most 1600 pixels. `nsw.scenes.load(out)` reads the result. The same
    photos give the same cameras up to rounding.

    Args:
        folder: at least 3 photos, better 20 to 60, that overlap by two thirds, taken from different places.
        out: a folder that does not exist yet; it appears only when all is done.
        progress: show progress bars.

    Raises:
        InputError: pycolmap missing, nothing to read, `out` exists.
        CaptureError: (an InputError) no cameras could be found; its `report` has the reason for every photo.
    """
    folder, out = Path(folder).expanduser(), Path(out).expanduser()
    files = _list_photos(folder)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists already; choose another name for the scene, or delete it first.")
    pycolmap = need_pycolmap("Finding the cameras of photos")
    started = time.monotonic()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another place for the scene.") from None
    try:
        return _build(pycolmap, files, folder, work, out, progress, started)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error}); choose another place for the scene.") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _build(pycolmap, files: Sequence[Path], folder: Path, work: Path, out: Path, progress: bool, started: float) -> CaptureReport:
    names, groups, sharp, unreadable = _prepare(files, work / "images", progress)
    if len(names) < MIN_PHOTOS:
        raise InputError(
            f"{folder}: only {len(names)} of {len(files)} photos can be read, expected at least {MIN_PHOTOS}; {unreadable[0][1]}"
        )
    database = work / "database.db"
    _run_worker(work, groups, progress)
    model = pycolmap.Reconstruction(str(work / "model")) if (work / "model").is_dir() else None
    features, matches, turning = _statistics(pycolmap, database, names)
    placed, points = np.zeros(len(names), bool), np.zeros(len(names), int)
    if model is not None:
        for image in model.images.values():
            if image.has_pose:
                placed[names.index(image.name)], points[names.index(image.name)] = True, image.num_points3D
    photos = reasons(names, placed, sharp, features, matches, points)
    photos += [Photo(path.name, False, "unreadable") for path, _ in unreadable]
    photos.sort(key=lambda photo: photo.name)
    seconds = time.monotonic() - started
    # turned on one spot, the mapper may still return a model, made of noise
    if model is None or placed.sum() < MIN_PHOTOS or turning > _TURNING_SHARE * (np.triu(matches) > 0).sum():
        photos = [replace(photo, registered=False, reason="not placed") if photo.registered else photo for photo in photos]
        cause = f"{folder}: no cameras could be found for these {len(files)} photos; {_cause(photos, matches, turning)}"
        raise CaptureError(cause, CaptureReport(photos, seconds=seconds, cause=cause))
    report = CaptureReport(photos, model.num_points3D(), model.compute_mean_reprojection_error(), seconds)
    scene = work / "scene"
    (scene / "sparse" / "0").mkdir(parents=True)
    (scene / "images").mkdir()
    model.write_binary(str(scene / "sparse" / "0"))
    for photo in report.registered:
        shutil.move(work / "images" / photo.name, scene / "images" / photo.name)
    report.save(scene / "report.json")
    if out.exists():
        out.rmdir()
    scene.rename(out)
    return report


def _list_photos(folder: Path) -> list[Path]:
    if not folder.exists():
        raise InputError(f"{folder}: there is no such folder of photos; check the path.")
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file, expected a folder of photos; give the folder.")
    try:
        files = sorted(p for p in folder.iterdir() if p.is_file() and (is_picture(p) or p.suffix.lower() in _PHOTO_SUFFIXES))
    except PermissionError:
        raise InputError(f"{folder}: no permission to read this folder; change its rights.") from None
    if len(files) < MIN_PHOTOS:
        raise InputError(f"{folder}: found {len(files)} photos, expected at least {MIN_PHOTOS} (20 to 60 are good); add photos.")
    return files


def _prepare(
    files: Sequence[Path], images: Path, progress: bool
) -> tuple[list[str], list[list[str]], list[float], list[tuple[Path, str]]]:
    """Write upright photos of at most 1600 pixels.

    Returns:
        names: of the photos that could be read.
        groups: the same names, by camera: those of one size, maker, model and focal length.
        sharpness: of each name.
        unreadable: the other photos with the reason.
    """
    from PIL import Image
    from tqdm.auto import tqdm

    images.mkdir()
    names, groups, sharp, unreadable = [], {}, [], []
    for path in tqdm(files, desc="reading photos", unit="photo", disable=not progress):
        try:
            picture = Image.fromarray(np.ascontiguousarray(read_picture(path, upright=True)[..., :3]))
        except InputError as error:
            unreadable.append((path, str(error)))
            continue
        if max(picture.size) > _LONGEST_SIDE:
            picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
        names.append(path.name)
        sharp.append(sharpness(np.asarray(picture)))
        exif = _focal_exif(path)
        groups.setdefault((picture.size, str(dict(exif)), str(dict(exif.get_ifd(0x8769)))), []).append(path.name)
        is_jpeg = path.suffix.lower() in (".jpg", ".jpeg")
        options = {"quality": 95, "subsampling": 0, "exif": exif} if is_jpeg else {}
        picture.save(images / path.name, **options)
    return names, list(groups.values()), sharp, unreadable


def _focal_exif(path: Path):
    """Return only the camera and focal length of a photo's EXIF, not where and when it was taken."""
    from PIL import Image

    kept = Image.Exif()
    with contextlib.suppress(Exception), Image.open(path) as image:  # EXIF is a hint; a broken one is as good as none
        exif = image.getexif()
        kept.update({tag: exif[tag] for tag in _CAMERA_TAGS if tag in exif})
        shot = exif.get_ifd(0x8769)
        kept.get_ifd(0x8769).update({tag: shot[tag] for tag in _FOCAL_TAGS if tag in shot})
    return kept


def _run_worker(work: Path, groups: Sequence[Sequence[str]], progress: bool) -> None:
    """Run features, matches and cameras in `photos_worker`, beside a progress bar for each; Ctrl-C ends it."""
    from tqdm.auto import tqdm

    count = sum(map(len, groups))
    exhaustive = count <= EXHAUSTIVE_UP_TO
    pairs = count * (count - 1) // 2 if exhaustive else count * _OVERLAP
    bars = {"features": ("finding features", "photo", count), "matches": ("matching pairs", "pair", pairs)}
    bars["cameras"] = ("placing cameras", "photo", count)
    settings = {"work": str(work), "groups": groups, "exhaustive": exhaustive, "overlap": _OVERLAP}
    settings |= {"smallest": MIN_PHOTOS, "points": MIN_POINTS}
    command = [sys.executable, str(Path(__file__).with_name("photos_worker.py")), json.dumps(settings)]
    heard = {"stage": "start", "placed": 0}
    with (work / "worker.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8")
        listener = threading.Thread(target=_listen, args=(process.stdout, heard), daemon=True)
        listener.start()
        try:
            for stage, (what, unit, total) in bars.items():
                with tqdm(total=total, desc=what, unit=unit, disable=not progress) as bar:
                    while listener.is_alive() and heard["stage"] in ("start", stage):
                        listener.join(0.2)
                        bar.update(min(_progress(stage, work / "database.db", heard), total) - bar.n)
                    bar.update(min(_progress(stage, work / "database.db", heard), total) - bar.n)
        finally:
            process.kill()
            code = process.wait()
            listener.join()
    if heard["stage"] != "done":
        what = bars.get(heard["stage"], ("starting", "", 0))[0]
        raise InputError(
            f"COLMAP stopped while {what} (exit status {code}); try fewer or smaller photos, and see that memory is free."
        )


def _listen(stream, heard: dict) -> None:
    """Note the worker's events until it closes its output."""
    for line in stream:
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            heard["stage"] = event.get("stage", heard["stage"])
            heard["placed"] += event.get("placed", 0)


def _progress(stage: str, database: Path, heard: dict) -> int:
    if stage == "cameras":
        return heard["placed"]
    return _rows(database, "descriptors" if stage == "features" else "two_view_geometries")


def _rows(database: Path, table: str) -> int:
    """Return how many rows a table of COLMAP's database has by now, for the progress bar."""
    try:
        with contextlib.closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=0.05)) as connection:
            return int(connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])
    except sqlite3.Error:  # not created yet, or being written
        return 0


def _statistics(pycolmap, database: Path, names: Sequence[str]) -> tuple[list[int], np.ndarray, int]:
    """Return features per photo, verified matches [n, n], and in how many pairs the camera only turned."""
    features, matches, homographies = [0] * len(names), np.zeros((len(names), len(names)), int), []
    kinds = pycolmap.TwoViewGeometryConfiguration
    with contextlib.closing(pycolmap.Database.open(database)) as opened:
        images = {image.image_id: image for image in opened.read_all_images()}
        sizes = {camera.camera_id: (camera.width, camera.height) for camera in opened.read_all_cameras()}
        index = {image_id: names.index(image.name) for image_id, image in images.items()}
        for image_id, i in index.items():
            features[i] = opened.num_keypoints_for_image(image_id)
        pair_ids, geometries = opened.read_two_view_geometries()
        for pair_id, geometry in zip(pair_ids, geometries, strict=True):
            a, b = pycolmap.pair_id_to_image_pair(pair_id)
            n = len(geometry.inlier_matches)
            matches[index[a], index[b]] = matches[index[b], index[a]] = n
            if n and geometry.H is not None and geometry.config in (kinds.PANORAMIC, kinds.PLANAR_OR_PANORAMIC):
                homographies.append((np.asarray(geometry.H), sizes[images[a].camera_id], sizes[images[b].camera_id]))
    return features, matches, _count_turning(homographies)


def _count_turning(homographies: Sequence[tuple[np.ndarray, tuple[int, int], tuple[int, int]]]) -> int:
    """Return how many homographies are turns of a camera on one spot, H = K_b R K_a^-1 with one focal length for all.

    A flat scene seen from two places gives a homography too, but then K_b^-1 H K_a is no rotation, at any focal length.
    """
    if not homographies:
        return 0
    spreads = np.array([[_spread(H, f * max(a), a, b) for f in np.geomspace(0.4, 4.0, 80)] for H, a, b in homographies])
    best = np.median(spreads, axis=0).argmin()
    return int((spreads[:, best] < _TURN_SPREAD).sum())


def _spread(H: np.ndarray, focal: float, size_a: tuple[int, int], size_b: tuple[int, int]) -> float:
    """Return by how much the singular values of K_b^-1 H K_a differ, as a share; 0 for a rotation."""
    Ka, Kb = (np.array([[focal, 0, w / 2], [0, focal, h / 2], [0, 0, 1.0]]) for w, h in (size_a, size_b))
    values = np.linalg.svd(np.linalg.solve(Kb, H @ Ka), compute_uv=False)
    return float(values[0] / max(values[2], 1e-12) - 1.0)


def _cause(photos: Sequence[Photo], matches: np.ndarray, turning: int) -> str:
    """Return why nothing could be reconstructed and what to do, for the end of a sentence."""
    count = {reason: sum(photo.reason == reason for photo in photos) for reason in {photo.reason for photo in photos}}
    pairs = int((np.triu(matches) > 0).sum())
    if pairs and turning > 0.5 * pairs:
        return (
            f"in {turning} of {pairs} overlapping pairs the camera only turned on one spot, or saw a single flat wall: "
            "move a step to the side between photos."
        )
    common = max(count, key=count.get)
    advice = next(photo.advice for photo in photos if photo.reason == common)
    said = "their views do not fit together" if common == "not placed" else f"{count[common]} have the fault: {common}"
    return f"{said}; {advice}."
