"""The long calls of pycolmap, run as a script in a process of their own: `python photos_worker.py SETTINGS_JSON`.

In a process of its own, because COLMAP's and Python's copies of SQLite must not open one database in one process (the
progress bar reads it), because a failure inside COLMAP ends its process, and because Ctrl-C can then stop it at once.
It prints a JSON line per event and imports nothing of nsw, so that it starts quickly.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def say(**event) -> None:
    print(json.dumps(event), flush=True)


def extract(pycolmap, database: Path, images: Path, groups: list[list[str]]) -> None:
    """Find the features of photos; the photos of a group share one camera's intrinsics."""
    options = pycolmap.FeatureExtractionOptions()
    options.use_gpu = False
    shared = {"camera_mode": pycolmap.CameraMode.SINGLE, "extraction_options": options, "device": pycolmap.Device.cpu}
    for names in groups:
        pycolmap.extract_features(database, images, image_names=names, **shared)


def match(pycolmap, database: Path, exhaustive: bool, overlap: int) -> None:
    options = pycolmap.FeatureMatchingOptions()
    options.use_gpu = False
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = 0
    shared = {"matching_options": options, "verification_options": verification, "device": pycolmap.Device.cpu}
    if exhaustive:
        pycolmap.match_exhaustive(database, **shared)
    else:
        pairing = pycolmap.SequentialPairingOptions()
        pairing.overlap = overlap
        pycolmap.match_sequential(database, pairing_options=pairing, **shared)


def place(pycolmap, database: Path, work: Path, settings: dict) -> bool:
    """Write the largest model to work/model; a set that no wide pair starts is tried once more with a narrower one."""
    smallest, points = settings["smallest"], settings["points"]
    for angle, inliers in ((16.0, 100), (4.0, 50)):
        options = pycolmap.IncrementalPipelineOptions()
        options.min_model_size = smallest
        options.random_seed = options.mapper.random_seed = options.triangulation.random_seed = 0
        options.num_threads = 1  # the order of sums, and so the cameras, would depend on the threads
        options.mapper.init_min_tri_angle, options.mapper.init_min_num_inliers = angle, inliers
        output = work / f"models-{angle:g}"
        output.mkdir()
        models = pycolmap.incremental_mapping(
            database, work / "images", output, options=options, next_image_callback=lambda: say(placed=1)
        )
        for model in models.values():
            for image in list(model.images.values()):
                if image.has_pose and image.num_points3D < points:  # placed by chance: a turning camera does that
                    model.deregister_frame(image.frame_id)
        best = max(models.values(), key=lambda model: (model.num_reg_images(), model.num_points3D()), default=None)
        if best is not None and best.num_reg_images() >= smallest:
            (work / "model").mkdir()
            best.write_binary(str(work / "model"))
            return True
    return False


def main(settings: dict) -> None:
    import pycolmap

    pycolmap.logging.minloglevel = pycolmap.logging.Level.FATAL.value
    pycolmap.set_random_seed(0)
    work = Path(settings["work"])
    database = work / "database.db"
    say(stage="features")
    extract(pycolmap, database, work / "images", settings["groups"])
    say(stage="matches")
    match(pycolmap, database, settings["exhaustive"], settings["overlap"])
    say(stage="cameras")
    place(pycolmap, database, work, settings)
    say(stage="done")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
