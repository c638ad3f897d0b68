"""What a result came from: versions, commit, machine."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "numba", "gsplat", "nerfacc", "torchmetrics", "safetensors", "papermill", "mitsuba")


def package_versions(names: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Return the installed versions, without importing anything; absent packages are left out."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@functools.cache
def processor() -> str:
    """Return the processor's name as the machine gives it."""
    if sys.platform.startswith("linux"):
        try:
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
                if line.lower().startswith("model name"):
                    return " ".join(line.partition(":")[2].split())
        except OSError:
            pass
    if sys.platform == "darwin":
        return _output(["sysctl", "-n", "machdep.cpu.brand_string"]) or platform.machine()
    return platform.processor() or platform.machine() or "unknown processor"


def cores() -> int:
    """Return how many logical cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gb() -> float:
    """Return the machine's memory in GB."""
    import psutil

    return psutil.virtual_memory().total / 2**30


def hardware() -> str:
    """Return one line: processor, cores, memory, GPU."""
    import torch

    text = f"{processor()}, {cores()} cores, {memory_gb():.0f} GB"
    return f"{text}, {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else text


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@functools.cache
def commit() -> str | None:
    """Return the checkout's git commit, with "+changes" when tracked files differ from it; None outside a checkout."""
    from nsw.runs.folders import repo_dir

    folder = repo_dir()
    if folder is None:
        return None
    head = _output(["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"])
    if not head:
        return None
    changed = _output(["git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no"])
    return f"{head}+changes" if changed else head


def collect(device: Any = "cpu") -> dict[str, Any]:
    """Return everything that is known before a run begins, JSON-able."""
    import torch

    import nsw

    return {
        "nsw": nsw.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": package_versions(),
        "device": str(device),
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
