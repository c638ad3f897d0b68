"""`nsw run`: planning with its refusals, and whole executions in real kernels."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from nsw import InputError
from nsw.runs import headless, measured
from nsw.runs.claims import make_claim
from nsw.runs.kernel import MemoryWatch
from nsw.runs.notebooks import all_notebooks, find_notebook, parameters, read_notebook, slug_of
from nsw.runs.run import _finite

PARAMETERS = """preset: str = "laptop"  # smoke, laptop or gpu
seed: int = 0  # of all random numbers
rate: float = 0.1  # step size
fast: bool = False  # skip"""
TRAIN = """
import time, nsw, torch
run = nsw.start("{slug}", preset=preset, seed=seed)
model = torch.nn.Linear(2, 1)
for step in run.steps({n}, save={{"model": model}}):
    time.sleep({pause})
run.claim("ours is better", ours={ours}, baseline=25.0, at_least=1.0)
run.claims.check()
"""


def write(folder: Path, name: str, *cells: str) -> Path:
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "no-such-kernel", "display_name": "x", "language": "python"}
    notebook.cells = [nbformat.v4.new_markdown_cell("# Title"), nbformat.v4.new_code_cell(PARAMETERS)]
    notebook.cells[1].metadata["tags"] = ["parameters"]
    notebook.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(notebook, folder / name)
    return folder / name


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("NSW_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(measured, "measured_path", lambda: tmp_path / "measured.json")
    return tmp_path


def test_parameters_are_read_with_type_default_and_help(place):
    found = parameters(read_notebook(write(place, "01_demo.ipynb")))
    assert [(p.name, p.kind, p.default, p.help) for p in found.values()] == [
        ("preset", "str", "laptop", "smoke, laptop or gpu"),
        ("seed", "int", 0, "of all random numbers"),
        ("rate", "float", 0.1, "step size"),
        ("fast", "bool", False, "skip"),
    ]


def test_notebooks_are_found_by_slug_number_name_and_path(place):
    path = write(place, "07_demo.ipynb")
    (place / "scratch.ipynb").write_text("{}")
    assert all_notebooks(place) == [path] and slug_of(path) == "demo"
    for name in ("demo", "07_demo", "07", "07_demo.ipynb", str(path)):
        assert find_notebook(name, place) == path


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"preset": "huge"}, '"smoke", "laptop" or "gpu"'),
        ({"given": {"seed": "three"}}, "expected a whole number"),
        ({"given": {"seed": "-1"}}, "from 0 to"),
        ({"given": {"seed": "1.5"}}, "expected a whole number"),
        ({"given": {"rate": "fast"}}, "expected a number"),
        ({"given": {"fast": "maybe"}}, "expected true or false"),
        ({"given": {"colour": "red"}}, 'has no parameter "colour": it has preset, seed, rate, fast'),
        ({"given": {"preset": "smoke"}, "preset": "gpu"}, "given twice"),
        ({"given": {"seed": "1"}, "seeds": (1, 2)}, "given twice"),
        ({"seeds": (-1,)}, "from 0 to"),
        ({"timeout": 0.0}, "more than 0"),
        ({"timeout": float("nan")}, "more than 0"),
        ({"every": True}, "not both"),
    ],
)
def test_what_cannot_run_is_refused_before_a_kernel_starts(place, settings, says):
    path = write(place, "01_demo.ipynb")
    with pytest.raises(InputError, match=says):
        headless.plan([str(path)], **settings)
    assert not (place / "runs").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not valid JSON"),
        ("{}", "no format number"),
        ("[]", "no format number"),
        ('{"nbformat": 4, "nbformat_minor": 5, "cells": 3}', "not a notebook"),
    ],
)
def test_a_damaged_notebook_is_one_sentence(place, text, says):
    (place / "01_x.ipynb").write_text(text)
    with pytest.raises(InputError, match=says):
        headless.plan([str(place / "01_x.ipynb")])


def test_unknown_notebooks_and_none(place):
    with pytest.raises(InputError, match='no notebook "nope"'):
        headless.plan(["nope"])
    with pytest.raises(InputError, match="Which notebook"):
        headless.plan([])


def test_jobs_have_folders_of_their_own(place):
    path = str(write(place, "01_demo.ipynb"))
    plain = headless.plan([path, path], preset="smoke", seeds=(0, 1, 1))
    assert [job.folder.relative_to(place / "runs").as_posix() for job in plain] == ["demo/smoke-seed0", "demo/smoke-seed1"]
    assert [job.limit for job in plain] == [300.0, 300.0]
    (changed,) = headless.plan([path], given={"rate": "0.5", "fast": "false"})
    assert changed.folder.name == "laptop-seed0-rate-0.5" and changed.values == {"rate": 0.5, "fast": False}


def test_good_and_bad_claims_side_by_side(place, capsys):
    good = write(place, "01_good.ipynb", TRAIN.format(slug="good", n=5, pause=0, ours=27.0))
    bad = write(place, "02_bad.ipynb", TRAIN.format(slug="bad", n=5, pause=0, ours=25.5))
    jobs = headless.plan([str(good), str(bad)], preset="smoke")
    assert headless.run(jobs, parallel=2, save=True) == 1
    out = capsys.readouterr().out
    assert (
        "1/1" in out and "0/1" in out and "claims not reproduced" in out and "measured +0.5 dB, asked at least 1 dB better" in out
    )
    folder = place / "runs" / "good" / "smoke-seed0"
    executed = nbformat.read(folder / "01_good.ipynb", 4)
    assert "train 5/5" in str(executed.cells[-1].outputs)
    budget = json.loads((folder / "budget.json").read_text())
    assert budget["status"] == "ok" and budget["seconds"] > 0 and budget["peak_mb"] > 50
    recorded = json.loads((place / "measured.json").read_text())
    assert list(recorded) == ["good"] and recorded["good"]["smoke"]["seeds"]["0"]["ours is better"]["gain"] == 2.0


def test_several_seeds_are_compared_each_with_its_own_baseline(place):
    path = write(place, "01_demo.ipynb")
    jobs = headless.plan([str(path)], preset="smoke", seeds=(0, 1, 2))
    assert headless.paired(jobs) == [] == headless.paired(jobs[:1])  # nothing ran yet
    for job, (ours, baseline) in zip(jobs, ((27.0, 25.0), (30.0, 29.5), (24.0, 22.5)), strict=True):
        claims = (
            make_claim("sharper", preset="smoke", ours=ours, baseline=baseline, at_least=1.0),
            make_claim("never", preset="smoke", ours=1.0, baseline=0.0, measure="ratio", at_most=2.0, presets=()),
            make_claim("on another scene", preset="smoke", ours=ours, baseline=baseline, at_least=1.0, judged=False),
        )
        job.claims = json.loads(json.dumps({"claims": [_finite(row.as_dict()) for row in claims]}))
    table, _ = headless.paired(jobs)
    head, _, sharper, never, elsewhere = (" ".join(line.split()) for line in table.splitlines())
    assert head.startswith("01_demo (smoke), gain over seeds 0, 1, 2 mean range")
    assert sharper == "sharper +1.33 dB 0.5 to 2 at least 1 dB better 2/3"
    assert elsewhere.endswith("2/3")  # not judged, and not met by all either
    assert never == "never none none at most 2 x 0/3"
    assert table in headless.report(jobs) and headless.paired(jobs[:1]) == []


def test_death_time_limit_and_error_are_reported(place, capsys):
    dies = write(place, "03_dies.ipynb", "import os; os._exit(9)")
    hangs = write(place, "04_hangs.ipynb", "while True: pass")
    wrong = write(place, "05_wrong.ipynb", "import nsw; nsw.start('wrong', preset='big')")
    jobs = headless.plan([str(dies), str(wrong)])
    jobs += headless.plan([str(hangs)], timeout=5 / 60)
    began = time.monotonic()
    assert headless.run(jobs, parallel=3) == 1
    assert time.monotonic() - began < 90  # noticed, not waited for
    assert [job.outcome.status for job in jobs] == ["died", "failed", "timeout"]
    out = capsys.readouterr().out
    assert "the kernel died" in out and "time limit" in out and 'InputError: Unknown preset "big"' in out
    assert all(job.output.is_file() for job in jobs)


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to a process")
def test_ctrl_c_stops_with_a_checkpoint_and_resume_goes_on(place):
    slow = write(place, "06_slow.ipynb", TRAIN.format(slug="slow", n=200, pause=0.1, ours=27.0))
    folder = place / "runs" / "slow" / "laptop-seed0"
    command = [sys.executable, "-m", "nsw.cli", "run", str(slow)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while process.poll() is None and not (folder / "run.json").is_file():  # nsw.start has come
        time.sleep(0.05)
    time.sleep(1.0)  # into the loop, which takes 20 s
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=90)
    assert process.returncode == 130 and "checkpoint kept" in out, out
    done = int(out.partition("stopped at step ")[2].split()[0])
    assert 0 < done < 200
    code = (
        f"import nsw; print(len(list(nsw.start('slow', out=r'{folder}', resume=True).steps(200, save={{'model': nsw_model()}}))))"
    )
    code = "import torch\nnsw_model = lambda: torch.nn.Linear(2, 1)\n" + code
    left = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert f"continues at step {done} of 200" in left.stdout and left.stdout.split()[-1] == str(200 - done)


def test_memory_of_children_counts():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'x = bytearray(200 << 20); input()'], stdin=0)"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    watch = MemoryWatch(process.pid, interval=0.02)
    watch.start()
    deadline = time.monotonic() + 30
    while watch.peak_mb < 200 and time.monotonic() < deadline:
        watch.join(0.05)
    process.stdin.close()
    process.wait(30)
    assert watch.stop() > 200
