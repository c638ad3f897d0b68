"""Blocks as tasks of a Ray cluster: those of a lost node are run again on another, results travel back as bytes."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nsw.errors import InputError
from nsw.models.state import write_bytes, write_json
from nsw.runs import block_worker
from nsw.runs.blocks import Block

RETRIES = 3  # of a block whose node or process is lost


def import_ray(elsewhere: str | None = None) -> Any:
    """Return the module; Ray sends its makers nothing about its use unless the environment asks for that.

    Args:
        elsewhere: address of a cluster of several machines; without one, Ray listens on this machine's loopback address only.

    Raises:
        InputError: when it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not elsewhere:  # read when Ray is imported, on Linux too, where it would else take the address that others see
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError('Blocks on a cluster need Ray, which is not installed: run `pip install "nsw[cluster]"`.') from error
    return ray


def perform_there(work: str, given: bytes, name: str, threads: int, paths: list[str]) -> tuple[bytes, dict[str, Any]]:
    """Work on one block on any node; return the file's bytes and its cost: the nodes need not share a disk.

    Args:
        work, given: as in `Block`.
        paths: where the driver finds modules, so that a node on its machine finds the same.
    """
    sys.path += [path for path in paths if path not in sys.path]
    with tempfile.TemporaryDirectory(prefix="nsw-block-") as folder:
        path, source = Path(folder) / name, Path(folder) / "input"
        source.write_bytes(given)
        cost = block_worker.perform(work, source, path, threads)
        return path.read_bytes(), cost


def on_ray(blocks: Sequence[Block], threads: int, gpus: float, address: str | None) -> Iterator[tuple[Block, str] | None]:
    """Run blocks on the cluster; what still runs when this is closed is cancelled.

    Raises:
        InputError: when no node has so many cores or GPUs, or no cluster answers.
    """
    elsewhere = address or os.environ.get("RAY_ADDRESS")
    ray = import_ray(elsewhere)
    own = not ray.is_initialized()
    if own:
        _connect(ray, elsewhere)
    pending = {}
    try:
        _check_room(ray, threads, gpus)
        # A process of its own for every block: memory is freed at its end, and its peak is the block's.
        task = ray.remote(max_calls=1, max_retries=RETRIES, num_cpus=threads, num_gpus=gpus)(perform_there)
        paths = [os.path.abspath(path) for path in sys.path]
        pending = {task.remote(block.work, block.given, block.finished.name, threads, paths): block for block in blocks}
        while pending:
            ready, _ = ray.wait(list(pending), timeout=0.5)
            for reference in ready:
                block = pending.pop(reference)
                yield block, _keep(ray, reference, block)
            yield None
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
        if own:
            ray.shutdown()


def _connect(ray: Any, elsewhere: str | None) -> None:
    """Join the cluster, or start one on this machine."""
    alone = {} if elsewhere else {"include_dashboard": False}
    try:
        ray.init(address=elsewhere or "local", log_to_driver=False, logging_level="ERROR", **alone)
    except (ConnectionError, ValueError, RuntimeError) as error:
        first, place = (str(error).splitlines() or [""])[0], elsewhere or "this machine"
        raise InputError(f"No Ray cluster answers at {place} ({first}): start one with `ray start`.") from error


def _check_room(ray: Any, threads: int, gpus: float) -> None:
    """Refuse what Ray would wait for in vain."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= threads and node.get("GPU", 0) >= gpus for node in nodes):
        has = max((int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes)
        raise InputError(
            f"A block asks for {threads} cores and {gpus:g} GPUs, the largest node of the Ray cluster has {has[0]} and {has[1]}: "
            "give smaller `threads` or `gpus`."
        )


def _keep(ray: Any, reference: Any, block: Block) -> str:
    """Write the result of a task into the folder; return why there is none, or "" when there is one."""
    try:
        data, cost = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        write_bytes(block.log, str(error).encode())
        return f"stopped ({error.cause if isinstance(error.cause, InputError) else repr(error.cause)})"
    except ray.exceptions.RayError as error:  # the node, the process or the memory was lost, more often than RETRIES
        write_bytes(block.log, str(error).encode())
        return f"was lost {RETRIES + 1} times on Ray ({type(error).__name__}); look after the nodes' memory"
    write_json(block.finished.with_suffix(".json"), {"made_from": block.made_from, **cost})
    write_bytes(block.finished, data)
    return ""
