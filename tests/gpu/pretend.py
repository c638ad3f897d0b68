"""A GPU made of CPU memory: finds on any machine what would stop a notebook on a real one.

Tensors "on the card" are `Card`s: they say `cuda:0` to Python and to torch's own code, hold their numbers in a CPU tensor, and
are refused wherever CUDA refuses them: beside CPU tensors, in `.numpy()`, with a CPU generator. Calls of gsplat and nerfacc are
served by their twins in `nsw.kernels`, from copies on the CPU.

    python -m tests.gpu.pretend                        all notebooks at smoke with few steps: about 25 minutes of one core
    python -m tests.gpu.pretend 05 21 --preset gpu     some of them, with what the gpu preset does otherwise, at smoke's sizes

It sees devices and nothing else of a GPU: no memory that runs out, no CUDA kernel of gsplat or nerfacc, no sums in another order.
`begin()` must run before torch is imported, since torch asks once whether there is a card, and compiles 50 lines of C++ once.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).parent


def library() -> Path:
    """Return the compiled `pretended_card.cpp`, made once for a version of torch."""
    torch_at = Path(importlib.util.find_spec("torch").submodule_search_locations[0])
    source = HERE / "pretended_card.cpp"
    key = hashlib.sha256(source.read_bytes() + (torch_at / "version.py").read_bytes()).hexdigest()[:16]
    made = Path(tempfile.gettempdir()) / f"nsw-pretended-card-{key}.so"
    if not made.is_file():
        part = made.with_suffix(f".{os.getpid()}")
        paths = [f"-I{torch_at}/include", f"-L{torch_at}/lib", f"-Wl,-rpath,{torch_at}/lib"]
        command = ["c++", "-O0", "-std=c++20", "-shared", "-fPIC", str(source), "-o", str(part), *paths, "-lc10", "-ltorch_cpu"]
        subprocess.run(command, check=True)
        part.replace(made)
    return made


def begin() -> None:
    """Put a pretended card into this process.

    Raises:
        RuntimeError: when torch was imported before.
    """
    if "torch" in sys.modules:
        raise RuntimeError("begin() must run before torch is imported.")
    ctypes.CDLL(str(library()), ctypes.RTLD_GLOBAL)
    import torch

    from tests.gpu import pretended_tensors

    pretended_tensors.put_in_place()
    memory, name = 16 << 30, "pretended card"
    about = SimpleNamespace(name=name, total_memory=memory, major=9, minor=0, multi_processor_count=1)
    says = {"is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0, "_is_in_bad_fork": False}
    says |= {
        "get_device_name": name,
        "get_device_properties": about,
        "get_device_capability": (9, 0),
        "mem_get_info": (memory, memory),
    }
    says |= dict.fromkeys(("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"), 0)
    nothing = "synchronize empty_cache manual_seed manual_seed_all set_rng_state_all reset_peak_memory_stats _lazy_init"
    for name, answer in (says | dict.fromkeys(nothing.split())).items():
        setattr(torch.cuda, name, lambda *_, _answer=answer, **__: _answer)
    torch.cuda.get_rng_state_all = lambda: [torch.Generator("cuda").get_state()]


if __name__ == "__main__":
    from tests.gpu.pretended_notebooks import main

    sys.exit(main())
