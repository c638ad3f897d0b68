"""`nsw doctor`: what works on this machine, what does not, and the one command that would change it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nsw.runs import folders, provenance
from nsw.runs.table import coloured, text_table

GOOD, MISSING, BROKEN = "ok", "optional", "problem"
LAPTOP_MEMORY_GB = 3.0
LAPTOP_DISK_GB = 1.0
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        topic: what was looked at.
        state: "ok", "optional" (works without) or "problem" (the laptop preset does not run).
        text: what was found.
        fix: the one command or step that changes it; empty when there is nothing to change.
    """

    topic: str
    state: str
    text: str
    fix: str = ""


def pip_install(what: str) -> str:
    """Return the command that adds packages to this Python; `what` is a package or an extra like "[sfm]"."""
    if what.startswith("["):
        root = folders.repo_dir()
        what = f'-e "{root}{what}"' if root else f'"nsw{what}"'
    python = Path(sys.executable)
    shown = os.path.relpath(python) if python.is_relative_to(Path.cwd()) else str(python)
    return f"{shown} -m pip install {what}"


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def check_python() -> Finding:
    """Python 3.11 to 3.13."""
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] < (3, 14):
        return Finding("Python", GOOD, f"{version}, {sys.executable}")
    return Finding("Python", BROKEN, f"{version}: 3.11, 3.12 or 3.13 is needed", "make a new environment with Python 3.12")


def check_packages() -> Finding:
    """Every package of the base install, in a version that is supported."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("nsw") or []
    except importlib.metadata.PackageNotFoundError:
        return Finding("packages", BROKEN, "nsw is not installed, only on the path", pip_install("[dev]"))
    wrong, count = [], 0
    for requirement in map(Requirement, lines):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append((requirement, "missing"))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append((requirement, version))
    if not wrong:
        return Finding("packages", GOOD, f"all {count} packages of the base install are here")
    told = ", ".join(f"{requirement.name} ({state}, needs {requirement.specifier})" for requirement, state in wrong)
    names = " ".join(f'"{requirement.name}{requirement.specifier}"' for requirement, _ in wrong)
    return Finding("packages", BROKEN, told, pip_install(names))


def check_versions() -> Finding:
    """Versions of what numbers depend on."""
    import nsw

    versions = {"nsw": nsw.__version__, **provenance.package_versions(("torch", "numpy", "numba", "gsplat", "nerfacc"))}
    commit = provenance.commit()
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    return Finding("versions", GOOD, text + (f", commit {commit}" if commit else ""))


def check_device() -> Finding:
    """The device that `nsw.device("auto")` chooses."""
    try:
        import torch
    except Exception as error:  # noqa: BLE001 - a broken install fails in many ways
        return Finding("device", BROKEN, f"torch does not load ({error})", pip_install("--force-reinstall torch"))
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return Finding("device", GOOD, f"CUDA: {torch.cuda.get_device_name(0)}, {memory:.0f} GB")
    cpu = f"CPU: {provenance.processor()}, {provenance.cores()} cores, {torch.get_num_threads()} threads"
    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        fix = pip_install("--force-reinstall torch") + " (a CUDA build: see pytorch.org, Get Started)"
        return Finding("device", MISSING, f"{cpu}; there is an NVIDIA GPU, but this torch is built without CUDA", fix)
    if shutil.which("nvidia-smi"):
        return Finding("device", MISSING, f"{cpu}; there is an NVIDIA GPU that torch cannot use", "update the NVIDIA driver")
    return Finding("device", GOOD, cpu)


def check_backends() -> list[Finding]:
    """What draws splats and what renders volumes here."""
    import torch

    if not torch.cuda.is_available():
        found = [Finding("splats", GOOD, "CPU kernels of nsw"), Finding("volumes", GOOD, "CPU kernels of nsw")]
        if not _installed("numba"):
            found = [Finding(f.topic, MISSING, "plain torch, slow: numba is missing", pip_install("numba")) for f in found]
        return found
    found = []
    for topic, package in (("splats", "gsplat"), ("volumes", "nerfacc")):
        if not _installed(package):
            found.append(Finding(topic, MISSING, f"CPU kernels: {package} is missing", pip_install(package)))
        elif shutil.which("nvcc") is None and not os.environ.get("CUDA_HOME"):
            found.append(
                Finding(topic, MISSING, f"{package}, which needs the CUDA toolkit once to compile", "install the CUDA toolkit")
            )
        else:
            found.append(Finding(topic, GOOD, f"{package} {importlib.metadata.version(package)}"))
    return found


def check_kernel_cache() -> Finding:
    """How many compiled kernels of this version are on disk."""
    from nsw.kernels.compiling import kernel_cache_folder

    folder = kernel_cache_folder()
    if folder is None:
        return Finding(
            "kernel cache", MISSING, "cannot be written: each process compiles anew", "set NSW_CACHE to a folder of yours"
        )
    files = list(folder.glob("**/*.nbc"))
    if not files:
        text = f"{folder} is empty: the first picture waits for compilation, once"
        return Finding("kernel cache", MISSING, text, "nsw doctor --warm")
    size = sum(file.stat().st_size for file in files) / 2**20
    return Finding("kernel cache", GOOD, f"{len(files)} compiled kernels, {size:.1f} MB in {folder}")


def check_memory() -> Finding:
    """Memory that is free now."""
    import psutil

    free, total = psutil.virtual_memory().available / 2**30, psutil.virtual_memory().total / 2**30
    text = f"{free:.1f} GB free of {total:.0f} GB"
    if free < LAPTOP_MEMORY_GB:
        return Finding("memory", BROKEN, f"{text}: the laptop preset needs {LAPTOP_MEMORY_GB:.0f} GB", "close other programs")
    return Finding("memory", GOOD, text)


def check_disk() -> Finding:
    """Whether runs can be written, and the space for them."""
    folder = folders.runs_dir()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return Finding("disk", BROKEN, f"{folder} cannot be written", "set NSW_RUNS to a folder of yours")
    free = shutil.disk_usage(existing).free / 2**30
    if free < LAPTOP_DISK_GB:
        return Finding(
            "disk", BROKEN, f"{free:.1f} GB free for {folder}: {LAPTOP_DISK_GB:.0f} GB is needed", "set NSW_RUNS to another disk"
        )
    return Finding("disk", GOOD, f"{free:.0f} GB free for {folder}")


def check_scenes() -> Finding:
    """The bundled scenes."""
    from nsw import scenes

    names = list(scenes.names())
    if names:
        return Finding("scenes", GOOD, ", ".join(names))
    return Finding("scenes", BROKEN, f"no bundled scene in {scenes.data_dir()}", "nsw scene make toybox (needs the extra synth)")


def check_jupyter() -> Finding:
    """JupyterLab and its kernel, in this environment."""
    absent = [name for name in ("jupyterlab", "ipykernel", "ipywidgets", "papermill") if not _installed(name)]
    if absent:
        return Finding("Jupyter", BROKEN, f"missing: {', '.join(absent)}", pip_install(" ".join(absent)))
    return Finding(
        "Jupyter",
        GOOD,
        f"JupyterLab {importlib.metadata.version('jupyterlab')}, ipykernel {importlib.metadata.version('ipykernel')}",
    )


def check_ffmpeg() -> Finding:
    """The encoder of orbit videos."""
    try:
        import imageio_ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
        subprocess.run([program, "-version"], capture_output=True, check=True, timeout=20, stdin=subprocess.DEVNULL)
    except (ImportError, RuntimeError, OSError, subprocess.SubprocessError):
        return Finding("ffmpeg", MISSING, "not found: no mp4, gif works", pip_install("imageio-ffmpeg"))
    return Finding("ffmpeg", GOOD, program)


def check_browser() -> Finding:
    """Chromium, for the browser tests only."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found:
        return Finding("Chromium", GOOD, found)
    fix = "make browser" if folders.repo_dir() else "install Chromium"
    return Finding("Chromium", MISSING, "not found: only the browser tests need it", fix)


def check_extras() -> list[Finding]:
    """The optional parts."""
    uses = {"sfm": ("pycolmap", "own photos and COLMAP scenes"), "synth": ("mitsuba", "rendering the bundled scenes anew")}
    uses |= {"cluster": ("ray", "blocks on several machines"), "priors": ("transformers", "pretrained priors")}
    found = []
    for extra, (package, use) in uses.items():
        if _installed(package):
            found.append(Finding(extra, GOOD, f"{package} {importlib.metadata.version(package)}: {use}"))
        else:
            found.append(Finding(extra, MISSING, f"{package} is not installed: {use}", pip_install(f"[{extra}]")))
    return found


def check_lpips() -> Finding:
    """Whether the perceptual distance can be measured."""
    from nsw import metrics

    path = metrics.vgg_file()
    if path.is_file():
        return Finding("LPIPS", GOOD, f"VGG weights in {path}")
    fix = f'curl -L --create-dirs -o "{path}" https://download.pytorch.org/models/{path.name}'
    return Finding("LPIPS", MISSING, "VGG weights are not on disk: metrics.lpips gives None", fix)


def _guarded(check: Callable[[], Finding | list[Finding]]) -> list[Finding]:
    """Run one check; a check that breaks is itself a finding."""
    try:
        result = check()
    except Exception as error:  # noqa: BLE001 - the doctor must finish its round on a broken machine
        name = check.__name__.removeprefix("check_")
        root = folders.repo_dir()
        fix = pip_install("--force-reinstall " + (f'-e "{root}"' if root else "nsw"))
        return [Finding(name, BROKEN, f"cannot be examined: {type(error).__name__}: {error}", fix)]
    return result if isinstance(result, list) else [result]


def examine() -> list[Finding]:
    """Return every finding, in the order of the report."""
    checks = (check_python, check_packages, check_versions, check_device, check_backends, check_kernel_cache, check_memory)
    checks += (check_disk, check_scenes, check_jupyter, check_ffmpeg, check_browser, check_extras, check_lpips)
    return [finding for check in checks for finding in _guarded(check)]


def can_run_laptop(findings: list[Finding]) -> bool:
    """Return whether nothing stands in the way of the laptop preset."""
    return all(finding.state != BROKEN for finding in findings)


def render(findings: list[Finding]) -> str:
    """Return the report as a table, the fixes below it, the verdict last."""
    colours = {GOOD: "green", MISSING: "yellow", BROKEN: "red"}
    rows = [[f.topic, coloured(f.state, colours[f.state]), f.text] for f in findings]
    lines = [text_table(["", "state", "found"], rows)]
    fixes = [f for f in findings if f.fix]
    if fixes:
        lines += ["", "To change it:"] + [f"  {f.topic:<13} {f.fix}" for f in fixes]
    good = can_run_laptop(findings)
    verdict = (
        "The laptop preset runs on this machine." if good else "The laptop preset does not run here yet: see the problems above."
    )
    return "\n".join([*lines, "", coloured(verdict, "green" if good else "red")])


def warm() -> None:
    """Compile the CPU kernels now, so that no picture and no training step need wait."""
    from nsw.runs import warming

    total = 0.0
    for kind, seconds in warming.warm():
        print(f"kernels of {kind}: {seconds:.1f} s", flush=True)
        total += seconds
    print(f"Kernels are compiled and cached ({total:.0f} s).\n")


def doctor(warm_up: bool = False) -> int:
    """Print the report and return the exit status: 0 when the laptop preset can run."""
    if warm_up:
        warm()
    findings = examine()
    print(render(findings))
    return 0 if can_run_laptop(findings) else 1
