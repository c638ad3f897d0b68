"""`nsw doctor`: the exit status follows the laptop preset, and every gap comes with a way to close it."""

from __future__ import annotations

import collections
import importlib.metadata
import subprocess
import sys

import pytest

from nsw.runs import doctor
from nsw.runs.doctor import BROKEN, GOOD, MISSING, Finding


def test_the_report_covers_what_was_promised():
    topics = {finding.topic for finding in doctor.examine()}
    wanted = ["Python", "packages", "versions", "device", "splats", "volumes", "memory", "disk", "scenes", "Jupyter"]
    wanted += ["ffmpeg", "Chromium", "sfm", "synth", "LPIPS"]
    assert topics >= {*wanted, "kernel cache"}


def test_whatever_is_not_good_names_its_remedy():
    for finding in doctor.examine():
        assert finding.text and (finding.state == GOOD or finding.fix), finding


@pytest.mark.parametrize(("state", "status"), [(GOOD, 0), (MISSING, 0), (BROKEN, 1)])
def test_status_says_whether_the_laptop_preset_runs(monkeypatch, capsys, state, status):
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("x", state, "text", "do this")])
    assert doctor.doctor() == status
    out = capsys.readouterr().out
    assert "do this" in out and ("does not run here" in out) == bool(status)


def test_old_python(monkeypatch):
    version = collections.namedtuple("version", "major minor micro")(3, 9, 1)
    monkeypatch.setattr(sys, "version_info", version)
    assert doctor.check_python().state == BROKEN


def test_missing_and_old_packages(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["no-such-package>=3", "numpy>=99", "x; extra == 'sfm'"])
    finding = doctor.check_packages()
    assert finding.state == BROKEN and "no-such-package (missing" in finding.text and "numpy (" in finding.text
    assert '-m pip install "no-such-package>=3" "numpy>=99"' in finding.fix


def test_little_memory_and_disk(monkeypatch, tmp_path):
    import psutil

    memory = collections.namedtuple("memory", "available total")(1 * 2**30, 8 * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert doctor.check_memory().state == BROKEN
    usage = collections.namedtuple("usage", "total used free")(100, 100, 0)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setenv("NSW_RUNS", str(tmp_path / "not" / "there"))
    assert doctor.check_disk().state == BROKEN and "NSW_RUNS" in doctor.check_disk().fix
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NSW_RUNS", str(tmp_path / "file" / "runs"))
    assert "cannot be written" in doctor.check_disk().text


def test_no_scenes(monkeypatch, tmp_path):
    monkeypatch.setenv("NSW_DATA", str(tmp_path))
    assert doctor.check_scenes().state == BROKEN


def test_kernel_cache(monkeypatch, tmp_path):
    from nsw.kernels import compiling

    monkeypatch.setattr(compiling, "kernel_cache_folder", lambda: tmp_path)
    assert doctor.check_kernel_cache().fix == "nsw doctor --warm"
    (tmp_path / "a.nbc").write_bytes(bytes(2**20))
    assert "1 compiled kernels, 1.0 MB" in doctor.check_kernel_cache().text
    monkeypatch.setattr(compiling, "kernel_cache_folder", lambda: None)
    assert "NSW_CACHE" in doctor.check_kernel_cache().fix


WARM = """
import importlib, pkgutil
import nsw.kernels
from nsw.runs import warming
assert [kind for kind, seconds in warming.warm() if seconds > 0] == list(warming.KINDS)
names = [found.name for found in pkgutil.iter_modules(nsw.kernels.__path__) if not found.name.endswith("_triton")]
modules = [importlib.import_module(f"nsw.kernels.{name}") for name in names]
kernels = {value for module in modules for value in vars(module).values() if getattr(value, "targetoptions", {}).get("nogil")}
print("FOUND", len(kernels) > 50, sorted(f"{k.__module__}.{k.__name__}" for k in kernels if not k.signatures))
"""


def test_warming_compiles_every_kernel():
    """In a process of its own: other tests have compiled kernels in this one."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", WARM], capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.splitlines()[-1] == "FOUND True []"


def test_missing_browser_and_extra(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor, "_installed", lambda name: False)
    assert doctor.check_browser().state == MISSING
    assert {finding.state for finding in doctor.check_extras()} == {MISSING}
    assert all("pip install" in finding.fix for finding in doctor.check_extras())
    assert doctor.check_jupyter().state == BROKEN


def test_a_gpu_that_torch_cannot_use(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    finding = doctor.check_device()
    assert finding.state == MISSING and "without CUDA" in finding.text and "torch" in finding.fix


def test_a_check_that_breaks_is_a_finding(monkeypatch):
    def check_everything():
        raise RuntimeError("broken install")

    (finding,) = doctor._guarded(check_everything)
    assert finding.state == BROKEN and "broken install" in finding.text and finding.fix
