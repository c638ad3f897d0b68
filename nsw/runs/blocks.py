"""Blocks of one large piece of work, side by side: in processes of this machine or, unchanged, on a Ray cluster.

A block is a call `work(input, path)` of a function that other processes can import; it writes one safetensors file. A finished
block is not run again, so that a run that was stopped or killed goes on where it was; one made from another input or by other
code is.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import nsw
from nsw.errors import InputError
from nsw.models.state import read_json
from nsw.runs import block_worker, provenance
from nsw.runs.progress import Eta, quiet_reporter

Work = Callable[[Any, Path], None]


@dataclass(frozen=True)
class Block:
    """One block: what is sent to its process, and where its result belongs."""

    index: int
    payload: bytes
    finished: Path
    made_from: str

    @property
    def log(self) -> Path:
        """What the block printed, and why it failed."""
        return self.finished.with_suffix(".log")

    @property
    def done(self) -> bool:
        """Whether the block's file is there and was made from this very input by this very code."""
        record = self.finished.with_suffix(".json")
        return self.finished.is_file() and record.is_file() and read_json(record).get("made_from") == self.made_from


@dataclass(frozen=True)
class Cost:
    """What a block took: seconds of wall time and MB (2^20 bytes) of memory at most, both measured where it ran."""

    seconds: float
    peak_mb: float


def run_blocks(
    work: Work,
    inputs: Sequence[Any],
    folder: str | Path,
    *,
    where: str = "processes",
    workers: int = 2,
    threads: int | None = None,
    gpus: float | None = None,
    address: str | None = None,
    resume: bool = True,
    progress: bool = True,
) -> list[Path]:
    """Run `work(input, path)` for every input and return the files, in the order of the inputs.

    Args:
        work: a function at the top level of a module. It writes `path`, a safetensors file, and may keep a checkpoint of its own
            beside it: a block that is run again gets the same path (not on Ray, where only the file comes back).
        inputs: settings, paths and tensors that can be pickled.
        folder: of the results; each has a `.json` with its cost and a `.log` with what it printed beside it.
        where: "processes" on this machine, or "ray" (extra `cluster`).
        workers: blocks at a time on this machine. On Ray the cluster's free cores and GPUs decide.
        threads: cores for each block; by default this machine's, divided among the workers.
        gpus: GPUs that each block holds on Ray, which hides all others from it; by default one where this machine has one.
        address: of the Ray cluster; by default the one that is connected or named by RAY_ADDRESS, else one on this machine.
        resume: False runs all blocks again: seconds that are to be compared are those of one call.
        progress: show a bar, or lines where there is no terminal.

    Raises:
        InputError: for work or input that no other process can load, and when blocks failed: the others are finished and kept.
    """
    places = {"processes": _in_processes, "ray": _on_ray}
    if where not in places:
        raise InputError(f'Blocks run in "processes" or on "ray", not in "{where}".')
    if workers < 1 or (threads is not None and threads < 1):
        raise InputError(f"Blocks need one worker and one thread at least, got workers={workers} and threads={threads}.")
    blocks = [_block(work, given, i, Path(folder).absolute()) for i, given in enumerate(inputs)]
    todo = [block for block in blocks if not (resume and block.done)]
    for block in todo:
        block.finished.unlink(missing_ok=True)
    if todo:
        Path(folder).mkdir(parents=True, exist_ok=True)
        threads = threads or max(1, provenance.cores() // workers)
        gpus = float(torch.cuda.is_available()) if gpus is None else gpus
        waiting = places[where](todo, workers=workers, threads=threads, gpus=gpus, address=address)
        failed = _watch(waiting, len(blocks), len(todo), progress)
        if failed:
            raise InputError(_sentence(failed, len(blocks)))
    return [block.finished for block in blocks]


def costs(files: Sequence[Path]) -> list[Cost]:
    """Return what each of the files that `run_blocks` returned had cost."""
    stored = (read_json(path.with_suffix(".json"), "record of a block") for path in files)
    return [Cost(record["seconds"], record["peak_mb"]) for record in stored]


def _block(work: Work, given: Any, index: int, folder: Path) -> Block:
    name = f"{getattr(work, '__module__', None)}.{getattr(work, '__qualname__', work)}"
    if name.startswith("__main__.") or "<" in name:
        raise InputError(f"Other processes cannot import {name}: put the work of blocks into a module, at its top level.")
    try:
        payload, made_from = pickle.dumps((work, given)), fingerprint(work, given)
    except (pickle.PicklingError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"The input of block {index} cannot be pickled ({error}): give settings, paths and tensors.") from error
    return Block(index, payload, folder / f"block-{index:03d}.safetensors", made_from)


class _Contents(pickle.Pickler):
    """Pickle tensors by what they hold; two equal ones need not be one object, nor the same one in another process."""

    def persistent_id(self, thing: Any) -> Any:
        if not isinstance(thing, torch.Tensor):
            return None
        raw = thing.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return str(thing.dtype), tuple(thing.shape), hashlib.sha256(raw).hexdigest()


def fingerprint(work: Work, given: Any) -> str:
    """Return a digest of an input, of the function and of the package's code: another one means another result.

    >>> same, other = torch.arange(3), torch.tensor([0, 1, 3])
    >>> fingerprint(print, same) == fingerprint(print, same.clone()) != fingerprint(print, other)
    True
    """
    stream = io.BytesIO()
    pickler = _Contents(stream)
    pickler.fast = True  # without references to what came before: they tell equal things from things that are one
    pickler.dump((work, given))
    return hashlib.sha256(_code_of(work.__module__) + stream.getvalue()).hexdigest()


@functools.cache
def _code_of(module: str) -> bytes:
    """Return a digest of the package's source and of the module's."""
    digest = hashlib.sha256()
    home = getattr(sys.modules.get(module), "__file__", None)
    for path in [*sorted(Path(nsw.__file__).parent.rglob("*.py")), *([Path(home)] if home else [])]:
        digest.update(path.read_bytes())
    return digest.digest()


def _watch(events: Iterator[tuple[Block, str] | None], total: int, todo: int, progress: bool) -> list[tuple[Block, str]]:
    """Show the progress of the events (a block and why it failed, or "" when it did not; None for nothing new)."""
    failed = []
    eta = Eta(total, total - todo, memory=1e9)  # blocks end in bunches: only their mean rate says something
    with contextlib.closing(quiet_reporter(eta, "blocks", progress)) as bar, contextlib.closing(events):
        for event in events:
            if event is not None:
                eta.step()
                failed += [event] if event[1] else []
            if event is not None or eta.done < total:  # the end is told once
                bar.update(eta.done, {"failed": len(failed)} if failed else {})
    return failed


def _sentence(failed: list[tuple[Block, str]], total: int) -> str:
    why = "; ".join(f"block {block.index} {reason}" for block, reason in sorted(failed, key=lambda pair: pair[0].index)[:3])
    more = f"; {len(failed) - 3} more failed" if len(failed) > 3 else ""
    n = total - len(failed)
    kept = f"the other {n} {'is' if n == 1 else 'are'} finished and kept, " if n else ""
    return f"{why[0].upper()}{why[1:]}{more}: {kept}run it again to do the missing ones only (logs in {failed[0][0].log.parent})."


def _in_processes(blocks: list[Block], workers: int, threads: int, **_) -> Iterator[tuple[Block, str] | None]:
    """Run blocks in new processes, so many at a time; all of them end when this is closed."""
    waiting, running = list(blocks), {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                block = waiting.pop(0)
                running[block] = _start(block, threads)
            for block, process in list(running.items()):
                if process.poll() is not None:
                    del running[block]
                    _close(process)
                    yield block, _why(block, process.returncode)
            yield None
            time.sleep(0.02)
    finally:
        for process in running.values():
            _end(process)


def _start(block: Block, threads: int) -> subprocess.Popen:
    """Start a process that finds the same modules as this one, with a kernel cache in common."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads)), "PYTHONIOENCODING": "utf-8"}
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    own_group = {"start_new_session": True} if os.name == "posix" else {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    with open(block.log, "wb") as log:
        command = [sys.executable, "-P", "-m", "nsw.runs.block_worker"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, **own_group)
    working = block.finished.parent / "working" / block.finished.name
    message = {"payload": block.payload, "working": str(working), "finished": str(block.finished)}
    with contextlib.suppress(OSError):  # it died at once: its exit status is reported
        block_worker.send(process.stdin, {**message, "threads": threads, "made_from": block.made_from})
    return process


def _end(process: subprocess.Popen) -> None:
    """End a process and those that it has started."""
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    _close(process)


def _close(process: subprocess.Popen) -> None:
    """Close the pipe to a process that has ended; what it never read is lost with it."""
    with contextlib.suppress(OSError):
        process.stdin.close()


def _why(block: Block, status: int) -> str:
    """Return why a block has failed, "" when it has not."""
    if status == 0 and block.done:
        return ""
    if status < 0:
        name = signal.Signals(-status).name
        hint = "; memory may have run out, fewer workers need less" if name == "SIGKILL" else ""
        return f"was ended by {name} (exit status {status}{hint})"
    lines = block.log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
    return f"stopped with exit status {status} ({last.removeprefix('nsw.errors.InputError: ')})"


def _on_ray(blocks: list[Block], workers: int, threads: int, gpus: float, address: str | None):
    from nsw.runs.blocks_on_ray import on_ray

    return on_ray(blocks, threads, gpus, address)
