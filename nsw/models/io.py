"""Models to disk and back: weights and settings in safetensors and JSON, classes only from this package."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nsw.errors import InputError
from nsw.models.state import load_state, save_state, write_json

FORMAT = 1


def _class_name(cls: type) -> str:
    name = f"{cls.__module__}:{cls.__qualname__}"
    if not cls.__module__.startswith("nsw."):
        raise InputError(f"Cannot save {name}: only models defined in the nsw package can be loaded again without pickle.")
    return name


def _find_class(name: str, path: Path) -> type:
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


def _pack(settings: Any) -> Any:
    """Return settings as JSON: dataclasses as {"class", "values"}."""
    if dataclasses.is_dataclass(settings):
        values = {f.name: _pack(getattr(settings, f.name)) for f in dataclasses.fields(settings)}
        return {"class": _class_name(type(settings)), "values": values}
    if isinstance(settings, tuple | list):
        return [_pack(item) for item in settings]
    if settings is None or isinstance(settings, bool | int | float | str):
        return settings
    raise InputError(f"Model settings may hold numbers, text and tuples of them, not {type(settings).__name__}.")


def _unpack(packed: Any, path: Path) -> Any:
    if isinstance(packed, list):
        return tuple(_unpack(item, path) for item in packed)
    if not isinstance(packed, dict):
        return packed
    cls = _find_class(packed["class"], path)
    values = {name: _unpack(value, path) for name, value in packed["values"].items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise InputError(f"{path} holds settings that {cls.__name__} does not know ({error}): update nsw.") from error


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
    about = {"class": _class_name(type(model)), "settings": _pack(model.settings), "format": FORMAT}
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
        about, state = stored["about"], stored["state"]
        cls, settings = _find_class(about["class"], path), _unpack(about["settings"], path)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} does not say which model it holds ({error}): save the model again.") from error
    if not issubclass(cls, nn.Module):
        raise InputError(f'{path} names "{about["class"]}", which is not a model.')
    model = cls(settings)
    try:
        model.load_state_dict(state)
    except (RuntimeError, KeyError) as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"{path} does not fit {cls.__name__}: {first}") from error
    return model.to(device)
