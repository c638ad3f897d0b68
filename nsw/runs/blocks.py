"""Blocks of one large piece of work, side by side: in processes of this machine or, unchanged, on a Ray cluster.

A block is a call `work(input, path)` of a function that other processes can import; it writes one safetensors file, and its input
travels as one. A finished block is not run again, so that a run that was stopped or killed goes on where it was; one made from
another input or by other code is. A process of this machine does one block after the other: starting one takes seconds.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import pkgutil
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
from nsw.models.io import pack
from nsw.models.state import read_json, state_bytes, write_bytes
from nsw.runs import block_worker, provenance
from nsw.runs.progress import Eta, quiet_reporter

Work = Callable[[Any, Path], None]


@dataclass(frozen=True)
class Block:
    """One block: the function ("module:name") and the safetensors of its input, and where its result belongs."""

    index: int
    work: str
    given: bytes
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
    """What a block took: seconds of wall time and MB (2^20 bytes) of memory at most, both measured where it ran.

    A process that had other blocks before still holds what it does not give back; except on Linux, their peak counts too.
    """

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
        inputs: tensors, numbers, text, paths, tuples and dicts of them (a list arrives as a tuple), and models, scenes and settings
            of this package.
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
        for old in (block.finished, block.log):
            old.unlink(missing_ok=True)
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
    name = f"{getattr(work, '__module__', None)}:{getattr(work, '__qualname__', work)}"
    if not _can_be_imported(work, name):
        raise InputError(f"Other processes cannot import {name}: put the work of blocks into a module, at its top level.")
    try:
        sent = state_bytes(pack(given), block_worker.INPUT)
    except InputError as error:
        raise InputError(f"The input of block {index} cannot be sent to another process. {error}") from error
    return Block(index, name, sent, folder / f"block-{index:03d}.safetensors", fingerprint(name, sent))


def _can_be_imported(work: Work, name: str) -> bool:
    try:
        return not name.startswith("__main__:") and pkgutil.resolve_name(name) is work
    except (ImportError, AttributeError, ValueError):
        return False


def fingerprint(work: str, given: bytes) -> str:
    """Return a digest of an input, of the function's name and of the package's and its module's code: another means another result.

    >>> fingerprint("nsw.methods.sags:densified", b"1") == fingerprint("nsw.methods.sags:densified", b"2")
    False
    """
    return hashlib.sha256(_code_of(work.partition(":")[0]) + work.encode() + given).hexdigest()


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
    eta = Eta(total, total - todo, memory=1e9, unlike=0)  # blocks end in bunches: only their mean rate says something
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
    """Run blocks in so many processes, each one block after the other; all of them end when this is closed.

    A process that a block ended is replaced: the next block gets a new one.
    """
    waiting, running = list(blocks), {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                process = _start(waiting[0].log, threads)
                running[process] = _hand(process, waiting.pop(0))
            for process, block in list(running.items()):
                status = process.poll()
                if status is None and not block.finished.is_file():
                    continue
                del running[process]
                if status is None and waiting:
                    running[process] = _hand(process, waiting.pop(0))
                else:
                    _end(process)
                yield block, _why(block, status or 0)
            yield None
            time.sleep(0.02)
    finally:
        for process in running:
            _end(process)


def _start(log: Path, threads: int) -> subprocess.Popen:
    """Start a process that finds the same modules as this one, with a kernel cache in common, and waits for blocks."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads)), "PYTHONIOENCODING": "utf-8"}
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    own_group = {"start_new_session": True} if os.name == "posix" else {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    command = [sys.executable, "-P", "-m", "nsw.runs.block_worker", str(threads)]
    with open(log, "wb") as written:
        # One line of its input is one block. That the pipe ends tells it that this process needs it no more, or is gone.
        pipes = dict(stdin=subprocess.PIPE, stdout=written, stderr=written)
        return subprocess.Popen(command, env=environment, **pipes, **own_group)


def _hand(process: subprocess.Popen, block: Block) -> Block:
    """Give a process that waits its next block."""
    working = block.finished.parent / "working" / block.finished.name
    given = working.with_suffix(".input")
    write_bytes(given, block.given)
    order = [block.work, *map(str, (given, working, block.finished)), block.made_from, str(block.log)]
    with contextlib.suppress(OSError):  # it has ended already, which is seen at the next look
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
    return block


def _end(process: subprocess.Popen) -> None:
    """End a process and those that it has started."""
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    with contextlib.suppress(OSError):
        process.stdin.close()


def _why(block: Block, status: int) -> str:
    """Return why a block has failed, "" when it has not."""
    if block.done:
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
