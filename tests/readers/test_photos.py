"""Own photos: cameras are found, the report says what became of every photo, and sets that cannot work fail in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import photo_room as room
import pytest
import torch
from PIL import Image, ImageFilter

import nsw.scenes
from nsw import InputError
from nsw.scenes.capture_report import CaptureError, CaptureReport, Photo, read_report, reasons, sharpness
from nsw.scenes.photos import photos_to_scene

pytest.importorskip("pycolmap", reason="pycolmap (nsw[sfm]) is not installed")
SIZE = {"width": 320, "height": 240}
PHOTOS = Path(__file__).resolve().parents[3] / "shared" / "data" / "photos_castle"


def one_line(error: BaseException, *expected: str) -> None:
    text = str(error)
    assert "\n" not in text and "Traceback" not in text and len(text) < 600
    for word in expected:
        assert word in text, (word, text)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Seven good photos, one of them stored lying; a blurred one; one of elsewhere; three of another room; half a file."""
    folder = tmp_path_factory.mktemp("mixed")
    views = room.cameras(room.arc(8), **SIZE)
    pictures = room.render(views)
    room.write(folder, pictures)
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.fromarray(pictures[2]).transpose(Image.Transpose.ROTATE_90)
    lying.save(folder / "photo_02.jpg", quality=95, exif=exif)
    Image.fromarray(pictures[4]).filter(ImageFilter.GaussianBlur(7)).save(folder / "photo_04.jpg", quality=95)
    room.write(folder, room.render(room.cameras([room.arc(8)[i] for i in (2, 3, 4)], **SIZE), seed=1), first=20)
    room.write(folder, room.render(views[4], seed=2), first=30)
    content = (folder / "photo_01.jpg").read_bytes()
    (folder / "photo_40.jpg").write_bytes(content[: len(content) // 2])
    out = tmp_path_factory.mktemp("out") / "scene"
    return views, photos_to_scene(folder, out, progress=False), out


def test_good_photos_are_placed_and_the_others_have_their_reasons(mixed):
    _, report, _ = mixed
    found = {photo.name: photo.reason for photo in report.photos}
    assert found == {
        **{f"photo_{i:02d}.jpg": "registered" for i in range(8)},
        "photo_04.jpg": "blurred",
        **{f"photo_{i}.jpg": "isolated group" for i in (20, 21, 22)},
        "photo_30.jpg": "too few matches",
        "photo_40.jpg": "unreadable",
    }
    assert report.points > 300 and report.error_px < 1.0
    text = report.text()
    assert text.startswith("7 of 13 photos were placed")
    for words in ("blurred (1): photo_04.jpg. What to do: take it again", "isolated group (3)", "photo_30.jpg", "save it as JPEG"):
        assert words in text
    assert len(report.table().splitlines()) == 14


def test_the_scene_loads_and_its_cameras_stand_where_the_photos_were_taken(mixed):
    views, report, out = mixed
    scene = nsw.scenes.load(out)
    assert scene.names == [photo.name for photo in report.registered] and scene.images.shape == (7, 240, 320, 3)
    assert {path.name for path in out.iterdir()} == {"images", "sparse", "report.json"}
    assert read_report(out / "report.json") == CaptureReport(list(report.photos), report.points, report.error_px, report.seconds)
    true = views[[0, 1, 2, 3, 5, 6, 7]]
    turns = true.world_from_cam[:, :3, :3] @ scene.cameras.cam_from_world[:, :3, :3]  # our world to the true one, by each camera
    U, _, Vt = torch.linalg.svd(turns.double().mean(0))
    R = U @ Vt
    cosines = (torch.einsum("nij,ij->n", turns.double(), R) - 1) / 2
    assert torch.rad2deg(cosines.clamp(-1, 1).arccos()).max() < 0.5
    a = (scene.cameras.origins.double() - scene.cameras.origins.double().mean(0)) @ R.T
    b = true.origins.double() - true.origins.double().mean(0)
    scale = (a * b).sum() / (a * a).sum()
    assert (scale * a - b).norm(dim=-1).max() < 0.03 * b.norm(dim=-1).max()
    assert abs(float(scene.cameras.Ks[0, 0, 0]) / float(views.Ks[0, 0, 0]) - 1) < 0.03
    assert len(scene.points) == report.points


def test_photos_from_one_spot_fail_and_say_so(tmp_path):
    room.write(
        tmp_path / "photos",
        [room.render(room.cameras([(0, -1.5, 1.2)], (x, 2.0, 1.1), **SIZE))[0] for x in (-0.75, -0.25, 0.25, 0.75)],
    )
    with pytest.raises(CaptureError) as caught:
        photos_to_scene(tmp_path / "photos", tmp_path / "out", progress=False)
    one_line(caught.value, "turned on one spot", "move a step")
    assert not (tmp_path / "out").exists() and sorted(p.name for p in tmp_path.iterdir()) == ["photos"]
    assert len(caught.value.report.photos) == 4 and caught.value.report.text().startswith(str(tmp_path / "photos"))


def test_plain_walls_fail_and_say_so(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(4):
        Image.new("RGB", (200, 150), (180, 170 + i, 160)).save(tmp_path / "photos" / f"{i}.png")
    with pytest.raises(CaptureError) as caught:
        photos_to_scene(tmp_path / "photos", tmp_path / "out", progress=False)
    one_line(caught.value, "no cameras could be found", "too few features", "texture")
    assert not (tmp_path / "out").exists()


def test_a_worker_that_dies_is_one_sentence(tmp_path, monkeypatch):
    room.write(tmp_path / "photos", [np.zeros((40, 50, 3), np.uint8)] * 3)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(InputError) as caught:
        photos_to_scene(tmp_path / "photos", tmp_path / "out", progress=False)
    one_line(caught.value, str(tmp_path / "out"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos"]


def write_photos(folder: Path, n: int) -> Path:
    return room.write(folder, [np.full((30, 40, 3), 99, np.uint8)] * n)


def damaged(folder: Path) -> None:
    write_photos(folder, 4)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:200])


def heic(folder: Path) -> None:
    folder.mkdir()
    for i in range(4):
        (folder / f"IMG_{i}.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))


BAD = {
    "no folder": (lambda f: None, ["there is no such folder"]),
    "a file": (lambda f: f.write_text("x"), ["is a file"]),
    "empty": (lambda f: f.mkdir(), ["found 0 photos", "at least 3"]),
    "two photos": (lambda f: write_photos(f, 2), ["found 2 photos", "at least 3"]),
    "damaged photos": (damaged, ["only 0 of 4 photos can be read", "photo_00.jpg"]),
    "HEIC": (heic, ["only 0 of 4 photos", "HEIC", "JPEG"]),
    "texts": (lambda f: (f.mkdir(), [(f / f"{i}.jpg").write_text("not") for i in range(3)]), ["only 0 of 3"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_folders(tmp_path, name):
    spoil, expected = BAD[name]
    spoil(tmp_path / "photos")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as caught:
        photos_to_scene(tmp_path / "photos", tmp_path / "out", progress=False)
    one_line(caught.value, *expected)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_existing_scene_is_not_overwritten(tmp_path):
    write_photos(tmp_path / "photos", 3)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("x")
    with pytest.raises(InputError) as caught:
        photos_to_scene(tmp_path / "photos", tmp_path / "out", progress=False)
    one_line(caught.value, "exists already")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["precious.txt"]


def test_read_only_output_and_missing_pycolmap(tmp_path, monkeypatch):
    write_photos(tmp_path / "photos", 3)

    def refuse(*arguments, **keywords):
        raise PermissionError(13, "Permission denied", "out")

    with monkeypatch.context() as patch:
        patch.setattr("tempfile.mkdtemp", refuse)
        with pytest.raises(InputError) as caught:
            photos_to_scene(tmp_path / "photos", tmp_path / "out", progress=False)
        one_line(caught.value, "cannot be written", "another place")
    monkeypatch.setattr("nsw.scenes.read_colmap.available", lambda: False)
    with pytest.raises(InputError) as caught:
        photos_to_scene(tmp_path / "photos", tmp_path / "out", progress=False)
    one_line(caught.value, "pycolmap", "nsw[sfm]")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"photos": [{"name": 1}], "points": 0}', "\x00"])
def test_bad_reports(tmp_path, content):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(InputError) as caught:
        read_report(tmp_path / "report.json")
    one_line(caught.value, "report.json", "make the scene again")


def test_blur_lowers_sharpness_and_contrast_does_not():
    picture = room.render(room.cameras([(0, -1.5, 1.2)], width=200, height=150))[0]
    blurred = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(3)))
    assert sharpness(blurred) < 0.25 * sharpness(picture)
    assert sharpness(picture // 4) == pytest.approx(sharpness(picture), rel=0.15)
    assert sharpness(np.full((20, 20, 3), 7, np.uint8)) == 0.0


def test_reasons_name_the_most_basic_fault():
    matches = np.zeros((6, 6), int)
    matches[0, 1] = matches[1, 0] = 100
    matches[2, 3] = matches[3, 2] = 50
    photos = reasons(list("abcdef"), [True, True] + [False] * 4, [1, 1, 1, 1, 0.1, 1], [900] * 5 + [10], matches, [5] * 6)
    assert [p.reason for p in photos] == [
        "registered",
        "registered",
        "isolated group",
        "isolated group",
        "blurred",
        "too few features",
    ]
    assert photos[0] == Photo("a", True, "registered", 1.0, 900, 1, 100, 5) and photos[2].advice


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="../shared/data/photos_castle is not here")
def test_real_photos(tmp_path):
    """Four of the facade's photos, at a third of their size to be quick."""
    (tmp_path / "photos").mkdir()
    for path in sorted(PHOTOS.glob("*.jpg"))[3:7]:
        with Image.open(path) as image:
            image.reduce(4).save(tmp_path / "photos" / path.name, quality=95, exif=image.getexif())
    report = photos_to_scene(tmp_path / "photos", tmp_path / "out", progress=False)
    assert len(report.registered) == 4 and report.error_px < 1.0
    scene = nsw.scenes.load(tmp_path / "out", size=100)
    assert len(scene) == 4 and len(scene.points) > 100
