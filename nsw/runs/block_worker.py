"""Where one block is worked on: in a process of its own (`python -m nsw.runs.block_worker`), or in a worker of Ray.

What is to be done comes as a pickle, as with `multiprocessing`: from the process that started this one, through a pipe that no
other can write to, or through Ray's own channels. No pickle is ever a file; results are safetensors and JSON.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

from nsw.errors import InputError


def perform(payload: bytes, path: Path, threads: int) -> dict[str, Any]:
    """Call `work(input, path)` with so many threads; return its wall seconds and this process's peak memory.

    Args:
        payload: (work, input), pickled.

    Raises:
        InputError: when the work leaves no file.
    """
    import torch

    from nsw.runs.measure import peak_memory_mb

    work, given = pickle.loads(payload)
    torch.set_num_threads(threads)
    path.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    work(given, path)
    seconds = time.perf_counter() - began
    if not path.is_file():
        raise InputError(f"{work.__qualname__} wrote no file {path.name}: write the result to the path it is given.")
    return {"seconds": round(seconds, 3), "peak_mb": round(peak_memory_mb(), 1)}


def send(stream: BinaryIO, message: Any) -> None:
    """Write one pickled message behind its length."""
    data = pickle.dumps(message)
    stream.write(len(data).to_bytes(8, "little") + data)
    stream.flush()


def _end_with(handle: int) -> None:
    """End this process when the other end of a pipe is gone: whoever started it was killed.

    It reads the bare handle: Python cannot end while a thread holds the lock of its standard input.
    """
    os.read(handle, 1)
    os._exit(1)


def main() -> None:
    """Read one message from standard input, work, and leave `block.json` and then the block where they belong."""
    stdin = sys.stdin.buffer
    message = pickle.loads(stdin.read(int.from_bytes(stdin.read(8), "little")))  # before the slow imports: the sender waits for it
    threading.Thread(target=_end_with, args=(stdin.fileno(),), daemon=True).start()
    working, finished = Path(message["working"]), Path(message["finished"])
    cost = perform(message["payload"], working, message["threads"])
    from nsw.models.state import write_json

    write_json(finished.with_suffix(".json"), {"made_from": message["made_from"], **cost})
    os.replace(working, finished)


if __name__ == "__main__":
    main()
