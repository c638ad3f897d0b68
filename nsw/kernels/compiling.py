"""How kernels are compiled: lazily, once a machine, into a folder of the user's own.

`kernel` is numba's `njit` with this package's settings. numba's cache looks only at the file of the function that was called; here
the folder's name also holds a digest of all files with kernels, so that a changed helper never leaves old machine code behind.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import threading
import warnings
from pathlib import Path

import numba

from nsw.kernels import simd

# Without "nnan" and "ninf": the kernels test for broken numbers, and the compiler must not assume those tests away.
FASTMATH = {"reassoc", "nsz", "arcp", "contract"}
_announced = False
_parallel_loops = threading.Lock()


def user_cache_folder() -> Path:
    """The folder for compiled kernels: `$NSW_CACHE`, else the platform's place for caches."""
    if os.environ.get("NSW_CACHE"):
        return Path(os.environ["NSW_CACHE"])
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "nsw" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "nsw"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "nsw"


@functools.cache
def kernel_cache_folder() -> Path | None:
    """Where this version's kernels are kept, or None when that place cannot be written."""
    digest = hashlib.sha256(f"{numba.__version__} {simd.LANES}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source = path.read_bytes()
        if path.name.startswith("simd") or b"kernels.compiling import" in source:
            digest.update(source)
    try:
        folder = user_cache_folder() / "kernels" / digest.hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f"probe-{os.getpid()}-{threading.get_ident()}"
        probe.touch()
        probe.unlink()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        warnings.warn(f"compiled kernels cannot be kept ({error}): each new process compiles them again", stacklevel=2)
        return None
    return folder


def kernel(function):
    """Compile a function for this machine on its first call, without Python's lock, and keep the result for the next process."""
    return _compiled(function, fastmath=FASTMATH)


def parallel_kernel(**options):
    """Compile a function with numba's parallel loops, to be called from Python; calls of several threads follow one another.

    Where neither OpenMP nor TBB is installed, as on most Macs, numba's own threads abort the process when two calls meet.
    """

    def decorate(function):
        compiled = _compiled(function, parallel=True, **options)

        @functools.wraps(function)
        def call(*arguments):
            with _parallel_loops:
                return compiled(*arguments)

        return call

    return decorate


def _compiled(function, **options):
    folder = kernel_cache_folder()
    options |= {"error_model": "numpy", "nogil": True}
    if folder is None:
        return numba.njit(**options)(function)
    # numba reads the folder from its global settings while it decorates; other users of numba keep theirs.
    previous, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(folder)
    try:
        return numba.njit(cache=True, **options)(function)
    finally:
        numba.config.CACHE_DIR = previous


def helper(function):
    """Compile a small function that kernels call; LLVM puts its body into theirs."""
    return numba.njit(fastmath=FASTMATH, error_model="numpy", inline="never")(function)


def announce_first_compile() -> None:
    """Say once a process that compiling takes a moment, if this machine has no kernels yet."""
    global _announced
    if _announced:
        return
    _announced = True
    folder = kernel_cache_folder()
    if folder is None or next(folder.rglob("*.nbc"), None) is None:
        once = "once on this machine" if folder else "in every process, for want of a cache folder"
        print(f"nsw: compiling splat kernels, {once}, about half a minute ...", file=sys.stderr, flush=True)
