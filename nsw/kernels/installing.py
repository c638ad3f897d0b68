"""`install()`: let code written for gsplat and nerfacc run on CPU tensors, as it stands.

Both libraries come without compiled code for the CPU: `gsplat.rasterization(...)` fails on a laptop. After `nsw.kernels.install()`
every function of theirs that has a twin here looks at its tensors first: CPU tensors go to the twin, CUDA tensors to the library.

Names are copied about in Python: `from gsplat import rasterization` before the call holds the old function, and gsplat's own
modules hold many of each other's. Replacing names would miss some. So the function objects stay, and only what they do changes:
their code becomes a detour. Classes (`SelectiveAdam`, `DefaultStrategy`, `OccGridEstimator`, ...) stay too; what they call takes
the detour.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import threading
from types import FunctionType, ModuleType

import torch

from nsw.errors import InputError

# Where the libraries define their calls; the functions are the same objects wherever else they are named.
MODULES = {
    "gsplat": ("gsplat", "gsplat.cuda._wrapper", "gsplat.relocation"),
    "nerfacc": ("nerfacc", "nerfacc.estimators.prop_net"),
}
_guard = threading.Lock()
_served: dict[str, Detour] = {}


class Detour:
    """One function of a library, with what it was and the name of its twin."""

    def __init__(self, function: FunctionType, twin: str):
        self.function, self.twin = function, twin
        self.kept = (function.__code__, function.__defaults__, function.__kwdefaults__)
        self.had_signature = "__signature__" in vars(function)
        self.original = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__)
        self.original.__kwdefaults__ = function.__kwdefaults__

    def put_in_place(self, key: str) -> None:
        function = self.function
        if not self.had_signature:
            function.__signature__ = inspect.signature(function)
        function.__defaults__, function.__kwdefaults__ = None, {"nsw_call": key}
        function.__code__ = _detour.__code__.replace(co_name=function.__name__)

    def take_away(self) -> None:
        self.function.__code__, self.function.__defaults__, self.function.__kwdefaults__ = self.kept
        if not self.had_signature:
            del self.function.__signature__


def _detour(*args, nsw_call=None, **kwargs):
    from nsw.kernels.installing import dispatch  # runs among the globals of the library's module: nothing is imported there

    return dispatch(nsw_call, args, kwargs)


def dispatch(key: str, args: tuple, kwargs: dict):
    """Call the twin if all tensors are on the CPU, and the library's own function if one is elsewhere or there is none."""
    from nsw import kernels

    detour = _served[key]
    devices = {tensor.device.type for value in (*args, *kwargs.values()) for tensor in _tensors(value)}
    twin = detour.original if devices != {"cpu"} else getattr(kernels, detour.twin)
    return twin(*args, **kwargs)


def _tensors(value) -> list[torch.Tensor]:
    """The tensors in an argument: itself, in a list of them, or in the fields of nerfacc's RayIntervals and RaySamples."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [item for item in value if isinstance(item, torch.Tensor)]
    fields = getattr(value, "__dataclass_fields__", None)
    return [] if fields is None else [t for t in (getattr(value, name, None) for name in fields) if isinstance(t, torch.Tensor)]


class Installed:
    """What `install` returns: as a context manager it takes back, on leaving, what that very call had put in place."""

    def __init__(self, names: tuple[str, ...], fresh: bool):
        self.names, self.fresh = names, fresh

    def __enter__(self) -> Installed:
        return self

    def __exit__(self, *_) -> None:
        if self.fresh:
            uninstall()

    def __repr__(self) -> str:
        return f"<{len(self.names)} calls of gsplat and nerfacc serve CPU tensors>"


def install() -> Installed:
    """Serve CPU tensors to code written for gsplat and nerfacc, as far as they are installed, until `uninstall()`.

    CUDA tensors still reach the libraries. May also be used as `with nsw.kernels.install(): ...`.

    Raises:
        InputError: when neither library can be imported.
    """
    from nsw import kernels

    found = [module for names in MODULES.values() for module in _import(names)]
    if not found:
        raise InputError("install() serves code written for gsplat and nerfacc, and neither can be imported: pip install gsplat.")
    with _guard:
        fresh = not _served
        for module in found:
            for name in kernels.__all__:
                function = inspect.unwrap(vars(module).get(name))
                key = f"{getattr(function, '__module__', '')}.{name}"
                if isinstance(function, FunctionType) and function.__closure__ is None and key not in _served:
                    _served[key] = Detour(function, name)
                    _served[key].put_in_place(key)
        return Installed(tuple(_served), fresh)


def uninstall() -> None:
    """Give gsplat's and nerfacc's functions their own code back; without `install` before, do nothing."""
    with _guard:
        for detour in _served.values():
            detour.take_away()
        _served.clear()


def _import(names: tuple[str, ...]) -> list[ModuleType]:
    """Import a library's modules; nothing if it is absent or broken."""
    if importlib.util.find_spec(names[0]) is None:
        return []
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError:
        return []
