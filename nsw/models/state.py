"""Nested state to one safetensors file and back: written whole or not at all, and never a pickle.

Tensors become named entries of the file; the tree around them (dicts, lists, tuples, numbers, text) is JSON in the file's
header. That one file is replaced in one step, so a kill at any moment leaves the old file or the new one.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nsw.errors import InputError

FORMAT = 1
_MARKS = ("$tensor", "$tuple", "$dict", "$numpy")
_REASONS = {
    errno.ENOSPC: "the disk is full: free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up: free some space or choose another folder",
    errno.EACCES: "the folder or file may not be written: choose another folder",
    errno.EPERM: "the folder or file may not be written: choose another folder",
    errno.EROFS: "the disk is read-only: choose another folder",
    errno.EISDIR: "there is a folder of that name: choose another name",
    errno.ENOTDIR: "a part of that path is a file, not a folder: choose another folder",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
}


def cannot_write(path: Path, error: OSError) -> InputError:
    """Return one sentence for a failed write.

    >>> str(cannot_write(Path("a.json"), OSError(28, "No space left on device")))
    'Cannot write a.json: the disk is full: free some space or choose another folder.'
    """
    reason = _REASONS.get(error.errno or 0, (error.strerror or str(error)).lower())
    return InputError(f"Cannot write {path}: {reason}.")


@contextmanager
def replacing(path: Path, suffix: str = ".part") -> Iterator[Path]:
    """Give an empty file beside `path` to write into; it takes the path's place at the end, or is removed when anything fails.

    Args:
        suffix: of the file beside, for writers that go by it.

    Raises:
        InputError: when the disk is full, read-only or the like.
    """
    temporary = None
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(f"Cannot write {path}: it is a device or a pipe, not a file: choose another name.")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file by `data` in one step; what was there stays when anything fails.

    Raises:
        InputError: as `replacing`.
    """
    with replacing(Path(path)) as temporary, open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))


def read_json(path: Path, what: str = "file") -> Any:
    """Return the contents of a JSON file.

    Raises:
        InputError: when it is missing, cannot be read or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"There is no {what} {path}.") from None
    except OSError as error:
        raise InputError(f"Cannot read {path}: {(error.strerror or str(error)).lower()}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): it may be cut off; remove it or restore a copy.") from error


def flatten(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Split nested state into named tensors and a JSON-able tree that refers to them.

    >>> tensors, tree = flatten({"a": [torch.ones(2), 3], 7: (None, "x")})
    >>> list(tensors), tree["$dict"][1]
    (['0'], [7, {'$tuple': [None, 'x']}])
    """
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()

    def keep(value: Tensor) -> str:
        value = value.detach().cpu().contiguous()
        if value.numel() and value.untyped_storage().data_ptr() in seen:
            value = value.clone()  # safetensors refuses tensors that share memory
        seen.add(value.untyped_storage().data_ptr())
        name = str(len(tensors))
        tensors[name] = value
        return name

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            return {"$tensor": keep(value)}
        if isinstance(value, np.ndarray):
            return {"$numpy": keep(torch.from_numpy(np.array(value)))}
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, Mapping):
            if all(isinstance(key, str) and key not in _MARKS for key in value):
                return {key: walk(item) for key, item in value.items()}
            return {"$dict": [[walk(key), walk(item)] for key, item in value.items()]}
        if isinstance(value, tuple):
            return {"$tuple": [walk(item) for item in value]}
        if isinstance(value, list):
            return [walk(item) for item in value]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise InputError(f"Cannot store a {type(value).__name__}: state may hold tensors, numbers, text, lists and dicts.")

    return tensors, walk(state)


def unflatten(tensors: Mapping[str, Tensor], tree: Any) -> Any:
    """Undo `flatten`."""
    if isinstance(tree, list):
        return [unflatten(tensors, item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "$tensor" in tree:
        return tensors[tree["$tensor"]]
    if "$numpy" in tree:
        return tensors[tree["$numpy"]].numpy()
    if "$tuple" in tree:
        return tuple(unflatten(tensors, item) for item in tree["$tuple"])
    if "$dict" in tree:
        return {unflatten(tensors, key): unflatten(tensors, item) for key, item in tree["$dict"]}
    return {key: unflatten(tensors, item) for key, item in tree.items()}


def state_bytes(state: Any, kind: str) -> bytes:
    """Return nested state as the bytes of one safetensors file; equal states of one kind give equal bytes.

    Args:
        state: dicts, lists and tuples of tensors, arrays, numbers and text.
        kind: what the file is ("checkpoint", "model"); `load_state` asks for it.
    """
    from safetensors.torch import save

    tensors, tree = flatten(state)
    return save(tensors, metadata={"nsw": json.dumps({"format": FORMAT, "kind": kind, "tree": tree})})


def save_state(path: Path, state: Any, kind: str) -> None:
    """Write nested state (see `state_bytes`) to one safetensors file, in one step."""
    write_bytes(path, state_bytes(state, kind))


def load_state(path: Path, kind: str, device: torch.device | str = "cpu") -> Any:
    """Return the state that `save_state` wrote.

    Raises:
        InputError: when the file is missing, cut off, of another kind or of a newer format.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no {kind} {path}.")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            header = json.loads((file.metadata() or {}).get("nsw", "null"))
            # Copies: the file's own tensors are a map of it, and Windows replaces no file that somebody has mapped.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path} is damaged or cut off ({error}): remove it and start that {kind} again.") from error
    except OSError as error:
        raise InputError(f"Cannot read {path}: {(error.strerror or str(error)).lower()}.") from error
    if not isinstance(header, dict) or header.get("kind") != kind:
        raise InputError(f"{path} is not a {kind} written by nsw.")
    if header.get("format") != FORMAT:
        raise InputError(f"{path} has format {header.get('format')}, this nsw reads format {FORMAT}: update nsw.")
    try:
        return unflatten(tensors, header["tree"])
    except KeyError as error:
        raise InputError(f"{path} lacks the entry {error}: remove it and start that {kind} again.") from error
