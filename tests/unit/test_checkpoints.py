"""Checkpoint and model files: what comes back, and what a broken disk or a hostile file may not do."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nsw import InputError
from nsw.models import io, state
from nsw.models.state import flatten, load_state, read_json, save_state, unflatten, write_bytes, write_json
from nsw.runs.checkpoints import load_checkpoint, restore_objects, save_checkpoint

STATE = {
    "weights": {"a": torch.arange(6.0).reshape(2, 3), "half": torch.ones(2, dtype=torch.float16), "scalar": torch.tensor(3)},
    "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0, 1], "name": None, "on": True}],
    "state": {0: {"step": torch.tensor(5.0)}, 1: {}},
    "array": np.arange(3),
    "number": np.float64(2.5),
    "odd": float("inf"),
    "empty": torch.zeros(0, 3),
}


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return a == b


def test_nested_state_comes_back(tmp_path):
    assert equal(unflatten(*flatten(STATE)), STATE)
    save_state(tmp_path / "x.safetensors", STATE, "checkpoint")
    assert equal(load_state(tmp_path / "x.safetensors", "checkpoint"), STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_shared_and_strided_tensors_come_back(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tied = {"a": base, "b": base, "row": base[1], "transposed": base.T}
    save_state(tmp_path / "x", tied, "model")
    assert equal(load_state(tmp_path / "x", "model"), tied)


def test_keys_that_look_like_marks_come_back(tmp_path):
    odd = {"$tensor": 1, "$dict": [2], 3: {"$tuple": torch.ones(1)}}
    assert equal(unflatten(*flatten(odd)), odd)


def test_what_has_no_place_in_a_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="Cannot store a function"):
        save_state(tmp_path / "x", {"f": lambda: 0}, "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, number):
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})

    def fails(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(state.os, "fsync", fails)
    with pytest.raises(InputError, match="Cannot write .*x.json: "):
        write_json(path, {"new": 2})
    assert read_json(path) == {"old": 1} and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_or_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a file"):
        write_bytes(tmp_path / "pipe", b"x")
    assert (tmp_path / "pipe").is_fifo() and [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="asks Linux which files are mapped")
def test_a_loaded_file_is_let_go(tmp_path):
    """Windows cannot replace a file that is mapped into memory: the next checkpoint would fail."""
    path = tmp_path / "held.safetensors"
    save_state(path, {"a": torch.ones(1000)}, "checkpoint")
    state = load_state(path, "checkpoint")
    assert "held.safetensors" not in Path("/proc/self/maps").read_text() and float(state["a"].sum()) == 1000


@pytest.mark.skipif(sys.platform == "win32" or not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_bytes(path, b"old")
    (tmp_path / "part").symlink_to("/dev/full")
    monkeypatch.setattr(state.tempfile, "mkstemp", lambda **kw: (os.open(os.devnull, os.O_WRONLY), str(tmp_path / "part")))
    with pytest.raises(InputError, match="the disk is full"):
        write_bytes(path, b"n" * 100_000)
    assert path.read_bytes() == b"old"


@contextlib.contextmanager
def as_a_plain_user():
    """Let go of root's rights for the file system: root is refused nothing."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.skipif(sys.platform == "win32", reason="folders are not read-only on Windows")
def test_a_read_only_folder_is_one_sentence():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        write_bytes(path, b"old")
        os.chmod(folder, 0o555)
        with as_a_plain_user(), pytest.raises(InputError, match="may not be written"):
            write_bytes(path, b"new")
        os.chmod(folder, 0o700)
        assert path.read_bytes() == b"old" and [child.name for child in Path(folder).iterdir()] == ["x"]


def test_ctrl_c_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_bytes(path, b"old")

    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(state.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_writing_over_a_folder_or_below_a_file(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="Cannot write"):
        write_bytes(tmp_path / "folder", b"x")
    write_bytes(tmp_path / "file", b"x")
    with pytest.raises(InputError, match="Cannot write"):
        write_bytes(tmp_path / "file" / "below", b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def checkpoint(path):
    save_checkpoint(path, {"model": nn.Linear(3, 2)}, {"done": 4, "log": []}, torch.Generator().manual_seed(1))
    return path


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 0.5, 0.99])
def test_half_a_checkpoint_is_named(tmp_path, keep):
    data = checkpoint(tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(data[: keep if keep >= 1 or keep == 0 else int(len(data) * keep)])
    with pytest.raises(InputError, match="x.safetensors is damaged or cut off"):
        load_checkpoint(tmp_path / "x.safetensors")


def test_other_files_are_no_checkpoints(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match="There is no checkpoint"):
        load_checkpoint(path)
    with pytest.raises(InputError, match="There is no checkpoint"):
        load_checkpoint(tmp_path)
    path.write_bytes(b"\x80\x04}\x94.")  # the format of other trainers' checkpoints, here an empty dict
    with pytest.raises(InputError, match="damaged or cut off"):
        load_checkpoint(path)
    save_file({"w": torch.ones(1)}, path)
    with pytest.raises(InputError, match="is not a checkpoint"):
        load_checkpoint(path)
    save_file({"w": torch.ones(1)}, path, metadata={"nsw": "{not json"})
    with pytest.raises(InputError, match="damaged"):
        load_checkpoint(path)
    save_state(path, {"x": 1}, "model")
    with pytest.raises(InputError, match="is not a checkpoint"):
        load_checkpoint(path)
    save_state(path, {"x": 1}, "checkpoint")
    with pytest.raises(InputError, match="not a checkpoint of a training loop"):
        load_checkpoint(path)


def test_a_newer_format_and_a_missing_tensor(tmp_path):
    path, header = tmp_path / "x", {"format": 99, "kind": "checkpoint", "tree": {}}
    save_file({}, path, metadata={"nsw": json.dumps(header)})
    with pytest.raises(InputError, match="format 99"):
        load_state(path, "checkpoint")
    header |= {"format": 1, "tree": {"a": {"$tensor": "7"}}}
    save_file({}, path, metadata={"nsw": json.dumps(header)})
    with pytest.raises(InputError, match="lacks the entry"):
        load_state(path, "checkpoint")


def test_a_checkpoint_of_other_shapes_or_names(tmp_path):
    stored = load_checkpoint(checkpoint(tmp_path / "x"))
    with pytest.raises(InputError, match="does not fit .*start again with resume=False"):
        restore_objects({"model": nn.Linear(5, 2)}, stored["objects"], tmp_path / "x")
    with pytest.raises(InputError, match="holds model, the loop saves net"):
        restore_objects({"net": nn.Linear(3, 2)}, stored["objects"], tmp_path / "x")


class Growing(nn.Module):
    """A module whose number of points changes, as splats do."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.zeros(n, 3))

    def load_state_dict(self, states, strict=True):
        self.points = nn.Parameter(states["points"].clone())


def test_an_optimizer_follows_parameters_that_were_replaced(tmp_path):
    model = Growing(7)
    optimizer = torch.optim.Adam(model.parameters())
    model.points.square().sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path / "x", {"optimizer": optimizer, "model": model}, {"done": 1, "log": []}, None)
    small = Growing(2)
    other = torch.optim.Adam(small.parameters())
    restore_objects({"optimizer": other, "model": small}, load_checkpoint(tmp_path / "x")["objects"], tmp_path / "x")
    assert other.param_groups[0]["params"][0] is small.points and other.state[small.points]["exp_avg"].shape == (7, 3)


def test_json_that_is_cut_off(tmp_path):
    (tmp_path / "claims.json").write_text('{"claims": [')
    with pytest.raises(InputError, match="not valid JSON"):
        read_json(tmp_path / "claims.json")
    with pytest.raises(InputError, match="There is no run"):
        read_json(tmp_path / "none.json", "run")


def gaussians():
    from nsw.models.gaussians import Gaussians

    box = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
    return Gaussians.random(box, 5, torch.Generator().manual_seed(0))


def test_a_model_comes_back(tmp_path):
    model = gaussians()
    io.save(model, tmp_path / "kept")
    again = io.load(tmp_path / "kept")
    assert type(again) is type(model) and again.settings == model.settings
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert json.loads((tmp_path / "kept" / "model.json").read_text())["class"] == "nsw.models.gaussians:Gaussians"


def rewritten(tmp_path, **changes):
    path = io.save(gaussians(), tmp_path / "kept") / "model.safetensors"
    stored = load_state(path, "model")
    stored["about"] |= changes
    save_state(path, stored, "model")
    return tmp_path / "kept"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("os:system", "only classes of the nsw package"),
        ("nswx.models:Gaussians", "only classes of the nsw package"),
        ("nsw.models.gaussians:Gaussians.random", "only classes of the nsw package"),
        ("nsw.models.gaussians:torch", "neither a model nor its settings"),
        ("nsw.models.none:Net", "update nsw"),
        ("nsw.errors:InputError", "neither a model nor its settings"),
        ("nsw.scenes.scene:Scene", "is not a model"),
        (7, "only classes of the nsw package"),
    ],
)
def test_only_models_of_the_package_are_built(tmp_path, name, says):
    with pytest.raises(InputError, match=says):
        io.load(rewritten(tmp_path, **{"class": name}))


def test_model_files_that_are_half_there(tmp_path):
    with pytest.raises(InputError, match="There is no model"):
        io.load(tmp_path)
    folder = io.save(gaussians(), tmp_path / "kept")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="damaged or cut off"):
        io.load(folder)
    save_state(folder / "model.safetensors", {"state": {}}, "model")
    with pytest.raises(InputError, match="does not say which model"):
        io.load(folder)
    with pytest.raises(InputError, match="does not know"):
        settings = {"class": "nsw.models.gaussians:GaussiansSettings", "values": {"nonsense": 3}}
        io.load(rewritten(tmp_path, settings=settings))


def test_a_model_from_elsewhere_is_refused_when_saved(tmp_path):
    with pytest.raises(InputError, match="only models defined in the nsw package"):
        io.save(nn.Linear(1, 1), tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_scenes_models_and_settings_come_back_from_one_file(tmp_path):
    import nsw.scenes

    scene = nsw.scenes.load("toybox", size=8)
    given = {"scene": scene, "model": gaussians(), "at": [Path("there"), None, True, 0.1, float("inf")], 3: {"class": "words"}}
    save_state(tmp_path / "given", io.pack(given), "input")
    again = io.unpack(load_state(tmp_path / "given", "input"), tmp_path / "given")
    assert list(again) == list(given) and again[3] == given[3] and again["at"] == tuple(given["at"])
    assert type(again["model"]) is type(given["model"]) and torch.equal(again["model"].means, given["model"].means)
    there = again["scene"]
    assert torch.equal(there.images, scene.images) and torch.equal(there.cameras.Ks, scene.cameras.Ks)
    assert there.splits.keys() == scene.splits.keys() and there.source == scene.source and tuple(there.names) == tuple(scene.names)
    assert (
        torch.equal(there.points.xyz, scene.points.xyz)
        and torch.equal(there.depth, scene.depth)
        and there.masks is scene.masks is None
    )


def test_only_what_this_package_can_build_again_is_packed():
    with pytest.raises(InputError, match="Cannot store a Linear: only tensors"):
        io.pack([nn.Linear(1, 1)])
    with pytest.raises(InputError, match="Cannot store a complex"):
        io.pack({"a": 1j})
    with pytest.raises(InputError, match="only classes of the nsw package"):
        io.unpack({"class": "subprocess:Popen", "values": {"args": "true"}}, "a file")
