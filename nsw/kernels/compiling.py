"""How kernels are compiled: lazily, once a machine, into a folder of the user's own.

`kernel` is numba's `njit` with this package's settings. numba's cache looks only at the file of the function that was called; here
the folder's name also holds a digest of all files with kernels, so that a changed helper never leaves old machine code behind.

LLVM knows no exception: where the system refuses it memory, it ends the process (SIGABRT, "LLVM ERROR: out of memory", or nothing
said at all). Compiling takes some 100 MB for a moment; `nsw doctor --warm` does it where there is room.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import os
import sys
import threading
import warnings
from pathlib import Path

import numba
from numba.core import event
from numba.extending import register_jitable

from nsw import metrics
from nsw.kernels import simd

# Without "nnan" and "ninf": the kernels test for broken numbers, and the compiler must not assume those tests away.
FASTMATH = {"reassoc", "nsz", "arcp", "contract"}
_decorating = threading.Lock()


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
        if any(word in source for word in (b"import numba", b"from numba", b"kernels.compiling import")):
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
    folder = kernel_cache_folder()
    options = {"fastmath": FASTMATH, "error_model": "numpy", "nogil": True, "no_cfunc_wrapper": True}  # C never calls one
    if folder is None:
        return numba.njit(**options)(function)
    # numba reads the folder from its global settings while it decorates; other users of numba keep theirs. Two threads may import
    # two modules at once, and each would put back what it found while the other still needs it.
    with _decorating:
        previous, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(folder)
        try:
            return numba.njit(cache=True, **options)(function)
        finally:
            numba.config.CACHE_DIR = previous


def helper(function):
    """Let kernels call a small function, whose body LLVM must then put into theirs; called from Python it stays plain Python.

    A call that stayed a call would go to whichever kernel's copy the process met first, and copies are rounded differently: the
    process that compiled a kernel would differ from those that load it. It is compiled without the two entries that Python and C
    would need, which take about as long as the function itself.
    """
    entries = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return register_jitable(fastmath=FASTMATH, error_model="numpy", forceinline=True, **entries)(function)


class _Progress(event.Listener):
    """Say what is being compiled: on a terminal in a line that goes away afterwards, elsewhere once a process.

    Meanwhile Python looks for no rubbish: it would walk through all that torch has loaded, again and again, and find none. And LLVM
    optimises at its level 1: what the higher levels find in kernels whose vectors are written out does not repay their seconds.
    """

    def __init__(self) -> None:
        self.inside: set[object] = set()  # helpers are compiled within the kernel that calls them
        self.seconds, self.count, self.began, self.collected, self.level = 0.0, 0, 0.0, False, numba.config.OPT

    def on_start(self, event) -> None:
        dispatcher = event.data["dispatcher"]
        if not dispatcher.py_func.__module__.startswith("nsw.kernels"):
            return
        self.inside.add(dispatcher)
        if len(self.inside) > 1:
            return
        self.count, self.began, self.collected = self.count + 1, metrics.ticks(), gc.isenabled()
        gc.disable()
        self.level, numba.config.OPT = numba.config.OPT, type(numba.config.OPT)(1)
        once = "once on this machine" if kernel_cache_folder() else "in every process, for want of a cache folder"
        if sys.stderr.isatty():
            name = f"{dispatcher.py_func.__module__.rpartition('.')[2]}.{dispatcher.py_func.__name__}"
            self._show(f"nsw: compiling {name}, {once}: kernel {self.count}, {self.seconds:.0f} s so far ...")
        elif self.count == 1:
            stream = sys.stdout if "ipykernel" in sys.modules else sys.stderr  # a notebook shows stderr in red, as if it had failed
            print(f"nsw: compiling kernels, {once}, a second or two for each operation ...", file=stream, flush=True)

    def on_end(self, event) -> None:
        self.inside.discard(event.data["dispatcher"])
        if not self.inside and self.began:
            spent = metrics.ticks() - self.began
            metrics.leave_out(spent)
            self.seconds += spent
            self.began, numba.config.OPT = 0.0, self.level
            if self.collected:
                gc.enable()
            if sys.stderr.isatty():
                self._show("")

    def _show(self, line: str) -> None:
        print(f"\r{line:<100}" + ("" if line else "\r"), end="", file=sys.stderr, flush=True)


event.register("numba:compile", _Progress())
