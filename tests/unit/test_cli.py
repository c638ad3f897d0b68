"""The command line: what it prints, its exit status, and that no mistake ends in a traceback."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys

import pytest
import torch

import nsw
from nsw import cli, export
from nsw.runs import folders


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("NSW_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*args: str) -> int:
    """Return the exit status, whether returned or raised by the parser."""
    try:
        return cli.main(args)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1


def kept_run(place, slug="gaussian_splatting"):
    from nsw.models.gaussians import Gaussians

    run = nsw.start(slug, preset="smoke", out=place / "runs" / slug / "smoke-seed0")
    run.keep("splats", model=Gaussians.random(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]), 4, torch.Generator().manual_seed(0)))
    return run.folder


def test_board_without_a_run_says_what_makes_one(place, capsys):
    assert call("board") == 2
    assert "There is no run" in capsys.readouterr().err


@pytest.mark.parametrize("args", [["--help"], [], ["run", "--help"], ["scene", "--help"], ["scene"], ["export", "--help"]])
def test_help(args, capsys):
    assert call(*args) == 0
    out = capsys.readouterr().out
    assert "usage: nsw" in out
    if args in ([], ["--help"]):
        assert all(word in out for word in ("doctor", "run", "board", "scene", "view", "export", "convert", "Examples:"))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["run", "nope"], 'no notebook "nope"'),
        (["run"], "Which notebook"),
        (["run", "nope.ipynb"], "no notebook"),
        (["run", "--all", "01_nerf"], "not both"),
        (["run", "x", "-p", "seed", "1", "-p", "seed", "2"], "given twice"),
        (["view", "nope"], 'no run "nope"'),
        (["view", ""], "no run"),
        (["export", "nope", "ply"], 'no run "nope"'),
        (["export", "gaussian_splatting", "obj"], 'Cannot export "obj"'),
        (["export", "gaussian_splatting", "mp4", "--frames", "1"], "at least 2"),
        (["export", "gaussian_splatting", "mp4"], "kept without a scene"),
        (["view", "gaussian_splatting", "--port", "99999"], "0 .any free port. to 65535"),
        (["view", "gaussian_splatting", "--port", "-1"], "65535"),
        (["view", "a**"], 'no run "a..'),
        (["view", "none.spz"], "There is no file none.spz"),
        (["view", "some.txt"], "holds no Gaussians"),
        (["view", "some.ply", "--up", "x"], 'up is "x"'),
        (["export", "none.ply", "spz"], "There is no file none.ply"),
        (["export", "some.ply", "obj"], 'Cannot export "obj"'),
        (["export", "some.ply", "mp4"], "a file without a scene"),
        (["export", "some.ply", "ply"], "would replace the file"),
        (["export", "some.ply", "spz", "--out", "some.ply"], "would replace the file"),
        (["scene", "info", "nope"], 'No scene "nope"'),
        (["scene", "info", "."], "not a scene"),
        (["scene", "get", "nope"], 'No data set "nope"'),
        (["scene", "make", "nope"], "nope"),
        (["scene", "make", "toybox", "--size", "-3"], "size"),
        (["scene", "make", "toybox", "--spp", "0"], "spp"),
        (["scene", "photos", "nowhere", "--out", "s"], "no such folder"),
        (["scene", "photos", ".", "--out", "s"], "found 0 photos"),
    ],
)
def test_mistakes_are_one_sentence_on_stderr(place, capsys, args, says):
    run = kept_run(place)
    export.export_run(run, "ply", place / "some.ply")
    (place / "some.txt").write_text("hello")
    before = sorted(path for path in place.rglob("*"))
    capsys.readouterr()
    assert call(*args) == 2
    told = capsys.readouterr().err
    assert told.startswith("nsw: ") and told.count("\n") == 1
    assert re.search(says, told), told
    assert sorted(path for path in place.rglob("*")) == before  # nothing half-written


def test_a_run_becomes_files_and_a_file_becomes_others(place, capsys):
    from nsw import formats

    kept_run(place)
    capsys.readouterr()
    assert call("export", "gaussian_splatting", "spz", "--out", "a.spz") == 0
    for what in ("ply", "glb", "splat"):
        assert call("export", "a.spz", what) == 0
    told = capsys.readouterr().out.split()
    assert told == ["a.spz", "a.ply", "a.glb", "a.splat"] and all((place / name).is_file() for name in told)
    first = formats.load("a.spz")
    assert all(torch.equal(formats.load(name).means.sort(0)[0], first.means.sort(0)[0]) for name in told[1:4])
    assert call("export", "gaussian_splatting", "ply", "--out", "run.ply") == 0
    assert (formats.up_of("run.ply"), formats.up_of("a.ply")) == ("+z", "-y")
    assert call("export", "run.ply", "points") == 0 and (place / "run_points.ply").is_file()


@pytest.mark.parametrize("args", [[], ["--up=-z"]])
def test_view_opens_a_file_of_splats(place, monkeypatch, capsys, args):
    served = []
    monkeypatch.setattr(
        "nsw.widgets.viser_server.serve", lambda model, scene, **options: served.append((len(model), scene, options))
    )
    export.export_run(kept_run(place), "glb", place / "a.glb")
    capsys.readouterr()
    assert call("view", "a.glb", *args) == 0
    assert served == [(4, None, {"port": 0, "host": "127.0.0.1", "up": "-z" if args else "-y"})]
    assert capsys.readouterr().out == "a.glb: 4 splats, harmonics of degree 3\n"


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["run", "x", "-j", "many"],
        ["run", "x", "--seeds", "one"],
        ["run", "x", "-p", "seed"],
        ["run", "x", "--timeout", "soon"],
        ["scene", "fly"],
        ["export", "x"],
        ["view", "x", "--port", "http"],
        ["scene", "photos", "."],
    ],
)
def test_the_parser_refuses_with_status_2(place, capsys, args):
    assert call(*args) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_jobs_below_one(place, capsys):
    import nbformat

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
    nbformat.write(notebook, place / "x.ipynb")
    assert call("run", "x.ipynb", "-j", "0") == 2 and "1 or more" in capsys.readouterr().err


def test_a_taken_port_is_named(place, capsys):
    kept_run(place)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert call("view", "gaussian_splatting", "--port", str(taken.getsockname()[1])) == 2
    told = capsys.readouterr().err
    assert told.startswith("nsw: ") and str(taken) not in told and "port" in told and told.count("\n") == 1


def test_a_damaged_model_is_named(place, capsys):
    folder = kept_run(place)
    path = folder / "models" / "splats" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    capsys.readouterr()
    for args in (["view", str(folder)], ["export", str(folder), "ply"]):
        assert call(*args) == 2
        assert "model.safetensors is damaged or cut off" in capsys.readouterr().err


def test_export_writes_a_file(place, capsys):
    folder = kept_run(place)
    assert call("export", "gaussian_splatting", "ply", "--out", str(place / "a.ply")) == 0
    assert (place / "a.ply").read_bytes().startswith(b"ply") and "a.ply" in capsys.readouterr().out
    (place / "file").write_text("")
    assert call("export", str(folder), "ply", "--out", str(place / "file" / "a.ply")) == 2
    assert capsys.readouterr().err.startswith("nsw: Cannot write")


def test_a_damaged_claims_file_is_named(place, capsys):
    folder = place / "runs" / "nerf" / "smoke-seed0"
    folder.mkdir(parents=True)
    for text in ('{"claims": [', "[1, 2]"):
        (folder / "claims.json").write_text(text)
        assert call("board") == 2
        assert "claims.json" in capsys.readouterr().err


def test_an_unexpected_disk_error_is_one_sentence(place, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", "a.png")

    monkeypatch.setattr("nsw.runs.board.collect", full)
    assert call("board") == 2
    assert capsys.readouterr().err == "nsw: No space left on device (a.png).\n"


def test_ctrl_c_is_130(place, capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("nsw.runs.board.collect", interrupted)
    assert call("board") == 130 and capsys.readouterr().err == "nsw: interrupted\n"


def test_runs_go_where_they_were_sent(place, monkeypatch):
    assert folders.run_dir("nerf", "smoke", 3) == place / "runs" / "nerf" / "smoke-seed3"
    monkeypatch.delenv("NSW_RUNS")
    assert folders.runs_dir().name == "runs"


def test_as_a_module_and_into_a_closed_pipe(place):
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-m", "nsw.cli", "run", "nope"], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 2 and done.stderr.startswith("nsw: ") and not done.stdout
    if sys.platform == "win32":
        return
    reader, writer = os.pipe()
    os.close(reader)
    folder = place / "runs" / "nerf" / "smoke-seed0"
    folder.mkdir(parents=True)
    (folder / "budget.json").write_text(json.dumps({"preset": "smoke", "seed": 0, "status": "ok"}))
    done = subprocess.run([sys.executable, "-m", "nsw.cli", "board"], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writer)
    assert done.stderr == "" and done.returncode == 141


def test_a_console_without_greek_letters_still_shows_the_table(place):
    kept_run(place)
    card = place / "runs" / "gaussian_splatting" / "smoke-seed0" / "models" / "splats" / "card.json"
    card.write_text(card.read_text(encoding="utf-8").replace('"Gaussians"', '"Gau\u03c3\u03c3ians"'), encoding="utf-8")
    environment = {**os.environ, "NSW_RUNS": str(place / "runs"), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-m", "nsw.cli", "board"], capture_output=True, timeout=120, env=environment)
    assert done.returncode == 0 and b"Gau??ians" in done.stdout, done.stderr
