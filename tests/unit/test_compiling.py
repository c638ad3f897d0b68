"""Where compiled kernels are kept on each system, what happens where nothing can be kept, and what is said meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from nsw import metrics
from nsw.kernels import compiling

CODE = """
import torch
from nsw.kernels import pack_info
print(pack_info(torch.tensor([0, 0, 2]), 3).tolist())
"""

BITS = """
import hashlib, torch
from nsw.losses import loss_ssim
x, y = (torch.rand(1, 40, 30, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
loss_ssim(x.requires_grad_(), y).backward()
print(hashlib.sha256(x.grad.numpy().tobytes()).hexdigest())
"""


def use_kernels(cache: Path, code: str = CODE) -> subprocess.CompletedProcess:
    environment = {**os.environ, "NSW_CACHE": str(cache)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)


def test_without_a_cache_folder_kernels_are_compiled_in_every_process_and_it_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    done = use_kernels(tmp_path / "file" / "cache")
    assert done.returncode == 0 and "[[0, 2], [2, 0], [2, 1]]" in done.stdout
    assert "cannot be kept" in done.stderr and "in every process" in done.stderr


def test_with_one_they_are_compiled_once(tmp_path):
    first, second = use_kernels(tmp_path), use_kernels(tmp_path)
    assert "once on this machine" in first.stderr and list(tmp_path.glob("kernels/*/**/*.nbc"))
    assert second.stdout == first.stdout and "compiling" not in second.stderr


def test_the_process_that_compiles_a_kernel_gets_the_bits_of_those_that_load_it(tmp_path):
    first, second = use_kernels(tmp_path, BITS), use_kernels(tmp_path, BITS)
    assert "compiling" in first.stderr and len(first.stdout) > 60 and first.stdout == second.stdout


@pytest.mark.parametrize(
    ("system", "variable", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", Path("place") / "nsw"),
        ("win32", "LOCALAPPDATA", Path("place") / "nsw" / "cache"),
        ("darwin", None, Path.home() / "Library" / "Caches" / "nsw"),
    ],
)
def test_each_system_has_its_place_for_caches(monkeypatch, system, variable, expected):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.delenv("NSW_CACHE", raising=False)
    if variable:
        monkeypatch.setenv(variable, "place")
    assert compiling.user_cache_folder() == expected
    monkeypatch.setenv("NSW_CACHE", "elsewhere")
    assert compiling.user_cache_folder() == Path("elsewhere")


def test_a_helper_may_be_called_from_python():
    from nsw.kernels.splat_lists import record_size

    assert [record_size(n) for n in (3, 6, 7)] == [16, 16, 32]


def test_no_clock_counts_the_compiler(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    began, progress = metrics.clock(), compiling._Progress()
    events = [Mock(data={"dispatcher": Mock()}) for _ in range(2)]
    for one in events:
        one.data["dispatcher"].py_func.__module__ = "nsw.kernels.elsewhere"
        one.data["dispatcher"].py_func.__name__ = "double"
    now[0] += 1
    progress.on_start(events[0])
    now[0] += 4
    progress.on_start(events[1])  # a helper inside the kernel
    now[0] += 4
    progress.on_end(events[1])
    progress.on_end(events[0])
    now[0] += 2
    assert metrics.clock() - began == pytest.approx(3.0) and progress.seconds == pytest.approx(8.0)


@pytest.mark.parametrize("collects", [True, False])
def test_rubbish_is_collected_as_before_after_a_kernel_is_compiled_and_after_one_that_cannot_be(collects):
    import gc

    import numba
    import numpy as np

    def double(x):
        return 2 * x

    def broken(x):
        return x.no_such_thing

    double.__module__ = broken.__module__ = "nsw.kernels.elsewhere"
    before = gc.isenabled()
    try:
        gc.enable() if collects else gc.disable()
        assert numba.njit(double)(np.float32(2)) == 4 and gc.isenabled() == collects
        with pytest.raises(numba.TypingError):
            numba.njit(broken)(np.float32(2))
        assert gc.isenabled() == collects
    finally:
        gc.enable() if before else gc.disable()


def test_threads_that_load_kernels_at_once_leave_each_other_the_folder_and_other_users_theirs(monkeypatch, tmp_path):
    import threading
    import time

    import numba

    monkeypatch.setattr(numba.config, "CACHE_DIR", "others")
    monkeypatch.setattr(compiling, "kernel_cache_folder", lambda: tmp_path)
    seen, both = [], threading.Barrier(2)

    def slow_njit(**_):
        def decorate(function):
            seen.append(numba.config.CACHE_DIR)
            time.sleep(0.02 * len(seen))
            seen.append(numba.config.CACHE_DIR)
            return function

        return decorate

    def load():
        both.wait()
        compiling.kernel(len)

    monkeypatch.setattr(numba, "njit", slow_njit)
    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [str(tmp_path)] * 4 and numba.config.CACHE_DIR == "others"
