"""Where one block is worked on: in a process of its own (`python -m nsw.runs.block_worker`), or in a worker of Ray."""

from __future__ import annotations

import os
import pkgutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

from nsw.errors import InputError

INPUT = "input of a block"  # the kind of its file


def perform(work: str, given: Path, path: Path, threads: int) -> dict[str, Any]:
    """Call `work(input, path)` with so many threads; return its wall seconds and this process's peak memory.

    Args:
        work: "module:name" of the function.
        given: file of the input.

    Raises:
        InputError: when the work leaves no file.
    """
    import torch

    from nsw.models.io import unpack
    from nsw.models.state import load_state
    from nsw.runs.measure import peak_memory_mb

    function, thing = pkgutil.resolve_name(work), unpack(load_state(given, INPUT), given)
    torch.set_num_threads(threads)
    path.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    function(thing, path)
    seconds = time.perf_counter() - began
    if not path.is_file():
        raise InputError(f"{function.__qualname__} wrote no file {path.name}: write the result to the path it is given.")
    return {"seconds": round(seconds, 3), "peak_mb": round(peak_memory_mb(), 1)}


def _end_with(pipe: int) -> None:
    """End this process when the other end of a pipe is gone: whoever started it was killed."""
    os.read(pipe, 1)
    os._exit(1)


def _take_standard_input() -> int:
    """The pipe at standard input, put elsewhere: Windows loads no library while a thread waits to read there."""
    pipe = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return pipe


def main(work: str, given: str, working: str, finished: str, made_from: str, threads: str) -> None:
    """Work, and leave `block.json` and then the block where they belong."""
    threading.Thread(target=_end_with, args=(_take_standard_input(),), daemon=True).start()
    cost = perform(work, Path(given), Path(working), int(threads))
    from nsw.models.state import write_json

    write_json(Path(finished).with_suffix(".json"), {"made_from": made_from, **cost})
    os.replace(working, finished)
    os.unlink(given)


if __name__ == "__main__":
    main(*sys.argv[1:])
