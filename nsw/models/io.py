"""Models, scenes and settings as nested state, models on disk: safetensors and JSON, classes only from this package."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nsw.errors import InputError
from nsw.models.state import load_state, save_state, write_json

FORMAT = 1


def _class_name(cls: type) -> str:
    name = f"{cls.__module__}:{cls.__qualname__}"
    if not cls.__module__.startswith("nsw."):
        raise InputError(f"Cannot save {name}: only models defined in the nsw package, and its settings, can be loaded again.")
    return name


def _find_class(name: str, path: Path | str) -> type:
    """Return the class for "nsw.module:Class"; refuse whatever is not a class of this package."""
    module, _, cls = str(name).partition(":")
    if not module.startswith("nsw.") or not cls.isidentifier():
        raise InputError(f'{path} names the class "{name}": only classes of the nsw package are loaded.')
    try:
        found = getattr(importlib.import_module(module), cls)
    except (ImportError, AttributeError):
        raise InputError(f'{path} names the class "{name}", which this nsw does not have: update nsw.') from None
    if not (isinstance(found, type) and (issubclass(found, nn.Module) or dataclasses.is_dataclass(found))):
        raise InputError(f'{path} names "{name}", which is neither a model nor its settings.')
    return found


def pack(value: Any) -> Any:
    """Return models, scenes, settings, and what they hold, as the nested state that `nsw.models.state` stores.

    Objects become dicts that name their class. Lists and tuples are both lists here, and tuples after `unpack`.

    Raises:
        InputError: for objects of other packages, and for models that no `settings` build again.

    >>> pack({"size": (2, 3)}), unpack(pack({"size": (2, 3)}), "")
    ({'dict': {'size': [2, 3]}}, {'size': (2, 3)})
    """
    if isinstance(value, nn.Module) and hasattr(value, "settings"):
        return {"class": _class_name(type(value)), "settings": pack(value.settings), "state": value.state_dict()}
    if dataclasses.is_dataclass(value):
        values = {f.name: pack(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": _class_name(type(value)), "values": values}
    if isinstance(value, Mapping):
        return {"dict": {key: pack(item) for key, item in value.items()}}
    if isinstance(value, tuple | list):
        return [pack(item) for item in value]
    if isinstance(value, Path):
        return {"path": str(value)}
    if value is None or isinstance(value, bool | int | float | str | Tensor | np.ndarray | np.generic):
        return value
    raise InputError(
        f"Cannot store a {type(value).__name__}: only tensors, numbers, text, paths, lists and dicts of them, and models, scenes "
        "and settings of the nsw package can be."
    )


def unpack(packed: Any, source: Path | str) -> Any:
    """Undo `pack`; `source` says in messages where it came from.

    Raises:
        InputError: for a class from outside this package, or one that does not fit what is stored.
    """
    if isinstance(packed, list | tuple):
        return tuple(unpack(item, source) for item in packed)
    if not isinstance(packed, dict):
        return packed
    if "path" in packed:
        return Path(packed["path"])
    if "dict" in packed:
        return {key: unpack(item, source) for key, item in packed["dict"].items()}
    if "state" in packed:
        return _model(packed, packed["state"], source)
    cls = _find_class(packed["class"], source)
    values = {name: unpack(value, source) for name, value in packed["values"].items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise InputError(f"{source} holds settings that {cls.__name__} does not know ({error}): update nsw.") from error


def _model(about: Mapping[str, Any], state: Mapping[str, Tensor], source: Path | str) -> nn.Module:
    """Return the model of a class, with settings and weights."""
    cls, settings = _find_class(about["class"], source), unpack(about["settings"], source)
    if not issubclass(cls, nn.Module):
        raise InputError(f'{source} names "{about["class"]}", which is not a model.')
    model = cls(settings)
    try:
        model.load_state_dict(state)
    except (RuntimeError, KeyError) as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"{source} does not fit {cls.__name__}: {first}") from error
    return model


def save(model: nn.Module, folder: Path | str) -> Path:
    """Write a model to `folder/model.safetensors`, and what it is, readable, to `folder/model.json`.

    The safetensors header repeats the JSON, so that one file, replaced in one step, is enough to load the model.

    Args:
        model: a module of this package whose `settings` dataclass builds it again.
        folder: created when missing.

    Returns:
        The folder.

    Raises:
        InputError: for a class from elsewhere, and when the folder cannot be written.
    """
    folder = Path(folder)
    about = {"class": _class_name(type(model)), "settings": pack(model.settings), "format": FORMAT}
    save_state(folder / "model.safetensors", {"about": about, "state": model.state_dict()}, "model")
    write_json(folder / "model.json", about)
    return folder


def load(folder: Path | str, device: torch.device | str = "cpu") -> nn.Module:
    """Return the model that `save` wrote, on `device`.

    Raises:
        InputError: when a file is missing, cut off or names a class from outside this package.
    """
    path = Path(folder) / "model.safetensors"
    stored = load_state(path, "model")
    try:
        return _model(stored["about"], stored["state"], path).to(device)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} does not say which model it holds ({error}): save the model again.") from error
