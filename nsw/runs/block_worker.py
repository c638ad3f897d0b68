"""Where blocks are worked on, one after the other: in a process (`python -m nsw.runs.block_worker`), or in a worker of Ray."""

from __future__ import annotations

import json
import os
import pkgutil
import queue
import random
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
    import numpy as np
    import torch

    from nsw.models.io import unpack
    from nsw.models.state import load_state
    from nsw.runs.measure import forget_peak, peak_memory_mb

    forget_peak()
    function, thing = pkgutil.resolve_name(work), unpack(load_state(given, INPUT), given)
    torch.set_num_threads(threads)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)  # whatever this process did before: a block ends the same in any company
    np.random.seed(0)
    random.seed(0)
    began = time.perf_counter()
    function(thing, path)
    seconds = time.perf_counter() - began
    if not path.is_file():
        raise InputError(f"{function.__qualname__} wrote no file {path.name}: write the result to the path it is given.")
    return {"seconds": round(seconds, 3), "peak_mb": round(peak_memory_mb(), 1)}


def _take_standard_input() -> int:
    """The pipe at standard input, put elsewhere: Windows loads no library while a thread waits to read there."""
    pipe = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return pipe


def _listen(pipe: int, orders: queue.Queue) -> None:
    """Pass on what comes through a pipe, line by line, and end this process when its other end is closed, or gone."""
    try:
        with os.fdopen(pipe, "rb", buffering=0) as lines:  # a buffer's lock would be in the way when Python ends
            for line in lines:
                orders.put(json.loads(line))
    finally:  # also after half a line, from a process that was killed while it wrote
        os._exit(1)


def _write_to(log: str) -> None:
    """Let all that is said from now on go into a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    with open(log, "ab") as written:
        for stream in (1, 2):
            os.dup2(written.fileno(), stream)


def main(threads: str) -> None:
    """Work on one block after the other, and leave `block.json` and then the block where they belong."""
    orders = queue.Queue()
    threading.Thread(target=_listen, args=(_take_standard_input(), orders), daemon=True).start()
    while True:
        work, given, working, finished, made_from, log = orders.get()
        _write_to(log)
        cost = perform(work, Path(given), Path(working), int(threads))
        from nsw.models.state import write_json

        write_json(Path(finished).with_suffix(".json"), {"made_from": made_from, **cost})
        os.unlink(given)
        os.replace(working, finished)  # last: whoever waits for the block sees that it is there


if __name__ == "__main__":
    main(*sys.argv[1:])
