"""Bad scenes: each gives one clear sentence that names the file or frame and what to do, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scene_files as files
from PIL import Image

import nsw.scenes
from nsw import InputError


def train(folder: Path, change) -> None:
    files.edit_json(folder / "transforms_train.json", change)


def frame(folder: Path, i: int = 2, **keys) -> None:
    """Set keys of one training frame; a key set to ... is removed."""

    def change(data):
        for key, value in keys.items():
            if value is ...:
                del data["frames"][i][key]
            else:
                data["frames"][i][key] = value

    train(folder, change)


def top(folder: Path, **keys) -> None:
    """Set keys of transforms.json; a key set to ... is removed."""

    def change(data):
        for key, value in keys.items():
            if value is ...:
                del data[key]
            else:
                data[key] = value

    files.edit_json(folder / "transforms.json", change)


def pose(folder: Path, change, i: int = 2) -> None:
    def edit(data):
        matrix = np.array(data["frames"][i]["transform_matrix"])
        change(matrix)
        data["frames"][i]["transform_matrix"] = matrix.tolist()

    train(folder, edit)


def cut(path: Path, keep: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def exr(folder: Path) -> None:
    (folder / "train" / "r_2.exr").write_bytes(b"v/1\x01" + bytes(50))
    frame(folder, file_path="./train/r_2.exr")


def float_tiff(folder: Path) -> None:
    Image.fromarray(np.full((files.HEIGHT, files.WIDTH), 0.5, np.float32)).save(folder / "train" / "r_2.tif")
    frame(folder, file_path="./train/r_2.tif")


def one_view(folder: Path) -> None:
    (folder / "transforms_test.json").unlink()
    train(folder, lambda d: d.update(frames=d["frames"][:1]))


def rows(folder: Path, change) -> None:
    values = np.load(folder / "poses_bounds.npy")
    np.save(folder / "poses_bounds.npy", change(values))


def set_row(folder: Path, row: int, column: int, value: float) -> None:
    values = np.load(folder / "poses_bounds.npy")
    values[row, column] = value
    np.save(folder / "poses_bounds.npy", values)


def every_frame(folder: Path, **keys) -> None:
    files.edit_json(folder / "transforms.json", lambda d: [frame.update(keys) for frame in d["frames"]])


def small_mask(folder: Path) -> None:
    Image.new("L", (5, 5)).save(folder / "mask.png")
    every_frame(folder, mask_path="mask.png")


def no_pictures(folder: Path) -> None:
    every_frame(folder, sharpness=1.0)
    for path in (folder / "images").iterdir():
        path.unlink()


def garbage_points(folder: Path) -> None:
    (folder / "p.ply").write_bytes(b"ply\nnonsense" * 9)
    top(folder, ply_file_path="p.ply")


nan, inf = float("nan"), float("inf")

BLENDER = {
    "missing picture": (lambda f: (f / "train/r_2.png").unlink(), ["r_2", "does not exist", "frame 2"]),
    "truncated picture": (lambda f: cut(f / "train/r_2.png"), ["r_2.png", "cut short"]),
    "empty picture": (lambda f: (f / "train/r_2.png").write_bytes(b""), ["r_2.png", "empty file"]),
    "text as picture": (lambda f: (f / "train/r_2.png").write_text("hello"), ["r_2.png", "not a picture"]),
    "header only": (lambda f: cut(f / "train/r_2.png", 0.03), ["r_2.png"]),
    "folder as picture": (lambda f: into_folder(f / "train/r_2.png"), ["r_2", "does not exist"]),
    "mixed sizes": (lambda f: Image.new("RGB", (64, 48)).save(f / "train/r_2.png"), ["r_2", "64 x 48", "one size"]),
    "other shape": (lambda f: Image.new("RGB", (24, 32)).save(f / "train/r_2.png"), ["r_2", "24 x 32"]),
    "OpenEXR": (exr, ["r_2.exr", "OpenEXR", "convert"]),
    "floating-point TIFF": (float_tiff, ["r_2.tif", "floating-point"]),
    "NaN pose": (lambda f: pose(f, lambda m: m.__setitem__((0, 3), nan)), ["r_2", "not finite"]),
    "infinite pose": (lambda f: pose(f, lambda m: m.__setitem__((1, 1), inf)), ["r_2", "not finite"]),
    "singular pose": (lambda f: pose(f, lambda m: m.__setitem__((slice(0, 3), slice(0, 3)), 0.0)), ["r_2", "not a rotation"]),
    "scaled pose": (lambda f: pose(f, lambda m: m.__imul__(2.0)), ["r_2", "not a rotation"]),
    "mirrored pose": (lambda f: pose(f, lambda m: m.__setitem__((slice(0, 3), 0), -m[:3, 0])), ["r_2", "mirrored"]),
    "pose far out": (lambda f: pose(f, lambda m: m.__setitem__((0, 3), 1e12)), ["r_2", "further than"]),
    "pose missing": (lambda f: frame(f, transform_matrix=...), ["frame 2", "transform_matrix", "missing"]),
    "pose 2 x 2": (lambda f: frame(f, transform_matrix=[[1, 0], [0, 1]]), ["frame 2", "4 x 4"]),
    "pose ragged": (lambda f: frame(f, transform_matrix=[[1, 0, 0], [0, 1]]), ["frame 2", "4 x 4"]),
    "pose of words": (lambda f: frame(f, transform_matrix=[["a"] * 4] * 4), ["frame 2", "4 x 4"]),
    "pose of objects": (lambda f: frame(f, transform_matrix={"x": 1}), ["frame 2", "4 x 4"]),
    "file name a number": (lambda f: frame(f, file_path=7), ["frame 2", "file_path", "a number"]),
    "file name empty": (lambda f: frame(f, file_path=""), ["frame 2", "file_path"]),
    "file name with a line break": (lambda f: frame(f, file_path="a\nb"), ["frame 2", "file_path", "control"]),
    "frame a number": (lambda f: train(f, lambda d: d["frames"].__setitem__(2, 5)), ["frame 2", "a number"]),
    "frames empty": (lambda f: train(f, lambda d: d.update(frames=[])), ["transforms_train.json", "empty list"]),
    "frames missing": (lambda f: train(f, lambda d: d.pop("frames")), ["transforms_train.json", "frames"]),
    "frames an object": (lambda f: train(f, lambda d: d.update(frames={})), ["frames", "an object"]),
    "angle missing": (lambda f: train(f, lambda d: d.pop("camera_angle_x")), ["focal length", "camera_angle_x"]),
    "angle zero": (lambda f: train(f, lambda d: d.update(camera_angle_x=0)), ["camera_angle_x", "between 0 and 180"]),
    "angle a word": (lambda f: train(f, lambda d: d.update(camera_angle_x="wide")), ["camera_angle_x", '"wide"']),
    "angle NaN": (lambda f: train(f, lambda d: d.update(camera_angle_x=nan)), ["camera_angle_x", "finite"]),
    "one view": (one_view, ["1 frame", "at least 2"]),
    "half the JSON": (lambda f: cut(f / "transforms_train.json"), ["transforms_train.json", "not valid JSON"]),
    "JSON a list": (lambda f: (f / "transforms_train.json").write_text("[1, 2]"), ["transforms_train.json", "a list"]),
    "JSON empty": (lambda f: (f / "transforms_train.json").write_text(""), ["not valid JSON"]),
    "JSON binary": (lambda f: (f / "transforms_train.json").write_bytes(b"\xff\xfe\x00\x80" * 9), ["UTF-8"]),
    "JSON very deep": (lambda f: (f / "transforms_train.json").write_text("[" * 100_000), ["transforms_train.json"]),
    "test file broken": (lambda f: cut(f / "transforms_test.json"), ["transforms_test.json", "not valid JSON"]),
}  # fmt: skip

TRANSFORMS = {
    "focal length zero": (lambda f: top(f, fl_x=0), ["000.png", "focal length", "zero"]),
    "focal length negative": (lambda f: top(f, fl_y=-5.0), ["focal length", "negative"]),
    "focal length NaN": (lambda f: top(f, fl_x=nan), ["fl_x", "finite"]),
    "focal length true": (lambda f: top(f, fl_x=True), ["fl_x", "true or false"]),
    "focal length huge": (lambda f: top(f, fl_x=1e308), ["fl_x"]),
    "centre a list": (lambda f: top(f, cx=[1]), ["cx", "a list"]),
    "panorama": (lambda f: top(f, camera_model="EQUIRECTANGULAR"), ["EQUIRECTANGULAR", "undistort"]),
    "size of another shape": (lambda f: top(f, w=100, h=20), ["32 x 24", "100 x 20"]),
    "unknown split": (lambda f: every_frame(f, split="dev"), ['"dev"', "train, val or test"]),
    "no training frames": (lambda f: every_frame(f, split="test"), ['"train"', "training views"]),
    "unknown file in a split": (lambda f: top(f, train_filenames=["images/zzz.png"]), ["zzz.png", "no frame"]),
    "split of files a word": (lambda f: top(f, test_filenames="all"), ["test_filenames", "a list"]),
    "all pictures missing": (no_pictures, ["none of the 9"]),
    "box inside out": (lambda f: top(f, aabb=[[1, 1, 1], [-1, -1, -1]]), ["aabb", "max above min"]),
    "box of another shape": (lambda f: top(f, aabb=[1, 2, 3]), ["aabb", "2 x 3"]),
    "aabb_scale negative": (lambda f: top(f, aabb_scale=-4), ["aabb_scale", "above 0"]),
    "aabb_scale a word": (lambda f: top(f, aabb_scale="big"), ["aabb_scale", '"big"']),
    "offset too short": (lambda f: top(f, aabb_scale=1, offset=[0.5]), ["offset", "3 numbers"]),
    "points missing": (lambda f: top(f, ply_file_path="p.ply"), ["p.ply", "does not exist"]),
    "points garbage": (garbage_points, ["p.ply", "not a .ply"]),
    "points a number": (lambda f: top(f, ply_file_path=3), ["ply_file_path", "a number"]),
    "mask missing": (lambda f: every_frame(f, mask_path="m.png"), ["m.png", "does not exist"]),
    "mask of another size": (small_mask, ["mask.png", "5 x 5"]),
}  # fmt: skip

LLFF = {
    "half a poses_bounds": (lambda f: cut(f / "poses_bounds.npy"), ["poses_bounds.npy", "not a whole"]),
    "poses_bounds empty": (lambda f: (f / "poses_bounds.npy").write_bytes(b""), ["poses_bounds.npy"]),
    "poses_bounds text": (lambda f: (f / "poses_bounds.npy").write_text("1 2 3"), ["poses_bounds.npy", "not a whole"]),
    "poses_bounds pickled": (lambda f: np.save(f / "poses_bounds.npy", np.array([{}], dtype=object)), ["poses_bounds.npy"]),
    "poses_bounds of words": (lambda f: np.save(f / "poses_bounds.npy", np.full((9, 17), "x")), ["poses_bounds.npy", "[N, 17]"]),
    "15 columns": (lambda f: rows(f, lambda v: v[:, :15]), ["[N, 17]", "[9, 15]"]),
    "no rows": (lambda f: rows(f, lambda v: v[:0]), ["[N, 17]"]),
    "a row too few": (lambda f: rows(f, lambda v: v[:-1]), ["8 rows", "images/ has 9"]),
    "pictures missing": (lambda f: (f / "images").rename(f / "photos"), ["no pictures", "images_4"]),
    "NaN pose": (lambda f: set_row(f, 3, 0, nan), ["image003", "not finite"]),
    "singular pose": (lambda f: rows(f, lambda v: v * np.where(np.arange(17) % 5 < 3, 0, 1)), ["not a rotation"]),
    "focal length zero": (lambda f: set_row(f, 3, 14, 0.0), ["row 3", "focal length 0"]),
    "height NaN": (lambda f: set_row(f, 3, 4, nan), ["row 3", "height nan"]),
    "depths the wrong way": (lambda f: rows(f, lambda v: v[:, [*range(15), 16, 15]]), ["depths", "nearest < furthest"]),
    "depth NaN": (lambda f: set_row(f, 0, 16, nan), ["depths"]),
    "truncated picture": (lambda f: cut(f / "images/image004.png"), ["image004.png", "cut short"]),
}  # fmt: skip

COLMAP = {
    "cameras garbage": (lambda f: (f / "sparse/0/cameras.bin").write_bytes(b"\xde\xad\xbe\xef" * 50), ["cameras.bin", "cut short"]),
    "images cut": (lambda f: cut(f / "sparse/0/images.bin", 0.9), ["images.bin", "cut short"]),
    "images garbage": (lambda f: (f / "sparse/0/images.bin").write_bytes(bytes(range(256)) * 4), ["images.bin"]),
    "points cut": (lambda f: cut(f / "sparse/0/points3D.bin", 0.99), ["points3D.bin", "cut short"]),
    "points missing": (lambda f: (f / "sparse/0/points3D.bin").unlink(), ["points3D.bin", "missing"]),
    "cameras empty": (lambda f: (f / "sparse/0/cameras.bin").write_bytes(b""), ["cameras.bin", "empty"]),
    "seven bytes": (lambda f: (f / "sparse/0/images.bin").write_bytes(bytes(7)), ["images.bin"]),
    "no registered pictures": (lambda f: (f / "sparse/0/images.bin").write_bytes(bytes(8)), ["sparse"]),
    "picture missing": (lambda f: (f / "images/view_03.png").unlink(), ["view_03.png", "does not exist"]),
    "picture cut": (lambda f: cut(f / "images/view_03.png"), ["view_03.png", "cut short"]),
    "picture of another shape": (lambda f: Image.new("RGB", (9, 50)).save(f / "images/view_03.png"), ["view_03.png", "9 x 50"]),
}  # fmt: skip

COLMAP_TEXT = {
    "text garbage": (lambda f: (f / "sparse/0/cameras.txt").write_text("what is this\n" * 3), ["sparse", "damaged"]),
    "unknown lens": (lambda f: (f / "sparse/0/cameras.txt").write_text("1 MAGIC 32 24 30 30 16 12\n"), ["sparse"]),
    "focal length zero": (lambda f: (f / "sparse/0/cameras.txt").write_text("1 PINHOLE 32 24 0 0 16 12\n"), ["focal length"]),
    "focal length NaN": (lambda f: (f / "sparse/0/cameras.txt").write_text("1 PINHOLE 32 24 nan 30 16 12\n"), ["sparse"]),
    "picture without a camera": (lambda f: (f / "sparse/0/cameras.txt").write_text("7 PINHOLE 32 24 30 30 16 12\n"), ["sparse"]),
}  # fmt: skip

WRITERS = {"blender": files.write_blender, "transforms": files.write_transforms, "llff": files.write_llff}
CASES = [
    (layout, name, *case)
    for layout, cases in (("blender", BLENDER), ("transforms", TRANSFORMS), ("llff", LLFF), ("bin", COLMAP), ("txt", COLMAP_TEXT))
    for name, case in cases.items()
]


def one_sentence(error: InputError, *expected: str) -> None:
    """Assert a message of one line, without traces of an exception, that contains what is expected."""
    text = str(error)
    assert "\n" not in text and 20 < len(text) < 600, text
    assert not any(word in text for word in ("Traceback", "Error:", "Exception", "Errno", "object at 0x")), text
    assert text.endswith((".", ")")), text
    for word in expected:
        assert word in text, (word, text)


@pytest.mark.parametrize("layout, name, spoil, expected", CASES, ids=[f"{layout}-{name}" for layout, name, *_ in CASES])
def test_bad_scene(tmp_path, layout, name, spoil, expected):
    if layout in ("bin", "txt"):
        pytest.importorskip("pycolmap", reason="pycolmap (nsw[sfm]) is not installed")
        files.write_colmap(tmp_path, ending=layout)
    else:
        WRITERS[layout](tmp_path)
    nsw.scenes.load(tmp_path, size=8)  # good before it is spoilt
    spoil(tmp_path)
    before = files.tree(tmp_path)
    with pytest.raises(InputError) as caught:
        nsw.scenes.load(tmp_path)
    one_sentence(caught.value, *expected)
    assert files.tree(tmp_path) == before


@pytest.mark.parametrize("size", [0, -5, 1.5, "big", True, 10**6])
@pytest.mark.parametrize("write", [files.write_blender, files.write_llff])
def test_bad_size(tmp_path, size, write):
    write(tmp_path)
    with pytest.raises(InputError) as caught:
        nsw.scenes.load(tmp_path, size=size)
    one_sentence(caught.value, "size=", "whole number")


def test_empty_folder_and_folder_of_something_else(tmp_path):
    with pytest.raises(InputError) as caught:
        nsw.scenes.load(tmp_path)
    one_sentence(caught.value, "an empty folder", "transforms.json", "poses_bounds.npy")
    (tmp_path / "notes.txt").write_text("x")
    files.write_llff(tmp_path / "fern")
    with pytest.raises(InputError) as caught:
        nsw.scenes.load(tmp_path)
    one_sentence(caught.value, "notes.txt", "perhaps you mean", "fern")


@pytest.mark.parametrize("name", ["", "  ", "no-such-scene", "no/such/folder", "\0", "a" * 5000])
def test_names_of_nothing(name):
    with pytest.raises(InputError) as caught:
        nsw.scenes.load(name)
    text = str(caught.value)
    assert "\n" not in text and "No scene" in text


@pytest.mark.parametrize("name", [None, 7, ["toybox"]])
def test_names_of_wrong_type(name):
    with pytest.raises(InputError) as caught:
        nsw.scenes.load(name)
    one_sentence(caught.value, "name or a folder")


def test_a_file_instead_of_a_folder(tmp_path):
    (tmp_path / "scene.zip").write_bytes(b"PK")
    with pytest.raises(InputError) as caught:
        nsw.scenes.load(tmp_path / "scene.zip")
    one_sentence(caught.value, "scene.zip", "is a file")


@pytest.mark.parametrize("victim", ["transforms_train.json", "r_2.png"])
def test_no_permission(tmp_path, monkeypatch, victim):
    files.write_blender(tmp_path)
    real = open

    def refusing(path, *arguments, **keywords):
        if str(path).endswith(victim):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **keywords)

    monkeypatch.setattr("builtins.open", refusing)
    monkeypatch.setattr("io.open", refusing)
    with pytest.raises(InputError) as caught:
        nsw.scenes.load(tmp_path)
    one_sentence(caught.value, victim)
    assert "permission" in str(caught.value).lower()


def test_colmap_without_pycolmap_names_the_extra(tmp_path, monkeypatch):
    pytest.importorskip("pycolmap", reason="pycolmap (nsw[sfm]) is needed to write the model")
    files.write_colmap(tmp_path)
    monkeypatch.setattr("nsw.scenes.read_colmap.available", lambda: False)
    with pytest.raises(InputError) as caught:
        nsw.scenes.load(tmp_path)
    one_sentence(caught.value, "pycolmap", "nsw[sfm]")


def test_json_keeps_what_python_reads_beyond_the_standard(tmp_path):
    """A byte order mark, as Windows editors write it, is no error."""
    files.write_blender(tmp_path)
    path = tmp_path / "transforms_train.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8-sig")
    assert len(nsw.scenes.load(tmp_path, size=8)) == 11
